"""Random image transformations, batched: every sample of a batch gets parameters of its own, drawn on the device.

In this order: crop, flip, brightness, contrast, saturation. The three colour operations are torchvision's (``ColorJitter``),
which applies them in a random order instead.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from clbench.config import AugmentConfig

WHITE = 255.0
GREY_WEIGHTS = (0.2989, 0.587, 0.114)
"""Weights of red, green and blue in a grey level (ITU-R 601-2 luma, as torchvision and Pillow)."""


class Augmentation:
    """Crop, flip and colour jitter; see :class:`clbench.config.AugmentConfig`."""

    def __init__(self, config: AugmentConfig) -> None:
        self.config = config

    @staticmethod
    def changes_anything(config: AugmentConfig) -> bool:
        """Whether any transformation is switched on."""
        return any(bool(value) for value in vars(config).values())

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """uint8 (B, C, H, W) → the same shape and range (0..255); float where colours are jittered, else uint8."""
        batch, device, config = len(images), images.device, self.config
        if config.crop_padding:
            pad = config.crop_padding
            offsets = torch.randint(0, 2 * pad + 1, (batch, 2), generator=generator, device=device)
            images = crop(F.pad(images, (pad, pad, pad, pad)), offsets, (images.shape[-2], images.shape[-1]))
        if config.flip:
            images = flip(images, torch.rand(batch, generator=generator, device=device) < 0.5)
        jitters = (
            (config.brightness, adjust_brightness),
            (config.contrast, adjust_contrast),
            (config.saturation, adjust_saturation),
        )
        for strength, adjust in jitters:
            if strength:
                low = max(0.0, 1 - strength)
                factors = low + (1 + strength - low) * torch.rand(batch, generator=generator, device=device)
                images = adjust(images.float(), factors)
        return images


def crop(images: Tensor, offsets: Tensor, size: tuple[int, int]) -> Tensor:
    """From each image (B, C, H', W') the window of ``size`` whose top left corner is ``offsets`` (B, 2: y, x)."""
    device = images.device
    rows = offsets[:, :1] + torch.arange(size[0], device=device)  # (B, H)
    columns = offsets[:, 1:] + torch.arange(size[1], device=device)  # (B, W)
    batch = torch.arange(len(images), device=device)[:, None, None, None]
    channels = torch.arange(images.shape[1], device=device)[None, :, None, None]
    return images[batch, channels, rows[:, None, :, None], columns[:, None, None, :]]


def flip(images: Tensor, flipped: Tensor) -> Tensor:
    """Images (B, C, H, W) with left and right exchanged where ``flipped`` (B,) is True."""
    return torch.where(flipped[:, None, None, None], images.flip(-1), images)


def adjust_brightness(images: Tensor, factors: Tensor) -> Tensor:
    """Float images (B, C, H, W) in 0..255 times ``factors`` (B,)."""
    return _blend(images, torch.zeros_like(images[:1]), factors)


def adjust_contrast(images: Tensor, factors: Tensor) -> Tensor:
    """Distance from each image's mean grey level, times ``factors`` (B,)."""
    return _blend(images, _grey(images).mean((1, 2, 3), keepdim=True), factors)


def adjust_saturation(images: Tensor, factors: Tensor) -> Tensor:
    """Distance of each pixel from its grey level, times ``factors`` (B,); grey images stay as they are."""
    return images if images.shape[1] == 1 else _blend(images, _grey(images), factors)


def _grey(images: Tensor) -> Tensor:
    if images.shape[1] == 1:
        return images
    weights = images.new_tensor(GREY_WEIGHTS)[None, :, None, None]
    return (images * weights).sum(1, keepdim=True)


def _blend(images: Tensor, other: Tensor, factors: Tensor) -> Tensor:
    weight = factors[:, None, None, None]
    return (weight * images + (1 - weight) * other).clamp(0, WHITE)
