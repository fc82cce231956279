"""Random image transformations, batched: every sample of a batch gets parameters of its own, drawn on the device.

In this order: resized crop, padded crop, flip, brightness, contrast, saturation. Each is torchvision's (``RandomResizedCrop``,
``RandomCrop``, ``RandomHorizontalFlip``, ``ColorJitter``) for the same parameters, except that ``ColorJitter`` applies its
operations in a random order and rounds to whole grey levels after each.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from clbench.config import AugmentConfig

ASPECT_RATIOS = 3 / 4, 4 / 3
"""Narrowest and widest window of a resized crop (torchvision's default)."""

ATTEMPTS = 10
"""Windows drawn for a resized crop, of which the first that lies within the image is taken (torchvision's number)."""

WHITE = 255.0


class Augmentation:
    """Crops, flip and colour jitter; see :class:`clbench.config.AugmentConfig`."""

    def __init__(self, config: AugmentConfig) -> None:
        self.config = config

    @staticmethod
    def changes_anything(config: AugmentConfig) -> bool:
        """Whether any transformation is switched on."""
        return any(bool(value) for value in vars(config).values())

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """uint8 (B, C, H, W) → the same shape and range (0..255); uint8 after padded crop and flip alone, else float."""
        return self.apply(images, self.draw(len(images), images.shape[-2], images.shape[-1], generator))

    def draw(self, batch: int, height: int, width: int, generator: torch.Generator) -> list[Tensor]:
        """The random parameters for ``batch`` images of ``height`` × ``width``: one tensor (batch, ...) per transformation."""
        device, config = generator.device, self.config
        drawn = []
        if config.resized_crop:
            drawn.append(draw_windows(batch, height, width, config.resized_crop, generator))
        if config.crop_padding:
            drawn.append(torch.randint(0, 2 * config.crop_padding + 1, (batch, 2), generator=generator, device=device))
        if config.flip:
            drawn.append(torch.rand(batch, generator=generator, device=device) < 0.5)
        for strength in (config.brightness, config.contrast, config.saturation):
            if strength:
                factors = torch.empty(batch, device=device)
                drawn.append(factors.uniform_(max(0.0, 1 - strength), 1 + strength, generator=generator))
        return drawn

    def apply(self, images: Tensor, drawn: list[Tensor]) -> Tensor:
        """Transform images (B, C, H, W) by the parameters of :meth:`draw`."""
        config, parameters = self.config, iter(drawn)
        height, width = images.shape[-2:]
        if config.resized_crop:
            images = resized_crop(images, next(parameters))
        if config.crop_padding:
            pad = config.crop_padding
            images = crop(F.pad(images, (pad, pad, pad, pad)), next(parameters), (height, width))
        if config.flip:
            images = flip(images, next(parameters))
        jitters = (
            (config.brightness, adjust_brightness),
            (config.contrast, adjust_contrast),
            (config.saturation, adjust_saturation),
        )
        for strength, adjust in jitters:
            if strength:
                images = adjust(images.float(), next(parameters))
        return images


def draw_windows(batch: int, height: int, width: int, smallest_area: float, generator: torch.Generator) -> Tensor:
    """Windows of ``RandomResizedCrop`` for images of ``height`` × ``width``: int64 (batch, 4: top, left, height, width).

    Area uniform in [``smallest_area``, 1] of the image's, aspect ratio log-uniform in [3/4, 4/3]. Where none of the attempts
    lies within the image, the largest centred window with an admissible ratio.
    """
    shape, device = (batch, ATTEMPTS), generator.device
    areas = torch.empty(shape, device=device).uniform_(smallest_area, 1, generator=generator) * (height * width)
    low, high = (math.log(ratio) for ratio in ASPECT_RATIOS)
    ratios = torch.empty(shape, device=device).uniform_(low, high, generator=generator).exp()
    heights, widths = (areas / ratios).sqrt().round(), (areas * ratios).sqrt().round()
    fits = (heights > 0) & (heights <= height) & (widths > 0) & (widths <= width)
    first = fits.float().argmax(1, keepdim=True)  # of equal values the first
    found = fits.any(1)
    h = torch.where(found, heights.gather(1, first)[:, 0], min(height, round(width / ASPECT_RATIOS[0])))
    w = torch.where(found, widths.gather(1, first)[:, 0], min(width, round(height * ASPECT_RATIOS[1])))
    where = torch.rand((2, batch), generator=generator, device=device)
    top = torch.where(found, where[0] * (height - h + 1), (height - h) / 2).floor()
    left = torch.where(found, where[1] * (width - w + 1), (width - w) / 2).floor()
    return torch.stack([top, left, h, w], 1).long()


def resized_crop(images: Tensor, windows: Tensor) -> Tensor:
    """From each image (B, C, H, W) its window (B, 4: top, left, height, width), scaled up to H × W bilinearly; float."""
    height, width = images.shape[-2:]
    top, left, h, w = (column[:, None].float() for column in windows.unbind(1))
    # Centres of the output pixels in the window, held within it, so that nothing from outside the window is mixed in.
    y = top + ((torch.arange(height, device=images.device) + 0.5) * h / height - 0.5).clamp(min=0).minimum(h - 1)
    x = left + ((torch.arange(width, device=images.device) + 0.5) * w / width - 0.5).clamp(min=0).minimum(w - 1)
    shape = (len(images), height, width)
    grid = torch.stack([((2 * x + 1) / width - 1)[:, None, :].expand(shape),
                        ((2 * y + 1) / height - 1)[:, :, None].expand(shape)], -1)  # fmt: skip
    return F.grid_sample(images.float(), grid, mode="bilinear", padding_mode="border", align_corners=False)


def crop(images: Tensor, offsets: Tensor, size: tuple[int, int]) -> Tensor:
    """From each image (B, C, H', W') the window of ``size`` whose top left corner is ``offsets`` (B, 2: y, x)."""
    windows = images.unfold(2, size[0], 1).unfold(3, size[1], 1)  # a view: (B, C, tops, lefts, H, W)
    return windows[torch.arange(len(images), device=images.device), :, offsets[:, 0], offsets[:, 1]]


def flip(images: Tensor, flipped: Tensor) -> Tensor:
    """Images (B, C, H, W) with left and right exchanged where ``flipped`` (B,) is True."""
    return torch.where(flipped[:, None, None, None], images.flip(-1), images)


def adjust_brightness(images: Tensor, factors: Tensor) -> Tensor:
    """Float images (B, C, H, W) in 0..255 times ``factors`` (B,)."""
    return (images * factors[:, None, None, None]).clamp(0, WHITE)


def adjust_contrast(images: Tensor, factors: Tensor) -> Tensor:
    """Distance from each image's mean grey level, times ``factors`` (B,)."""
    return _move_away(_grey(images).mean((1, 2, 3), keepdim=True), images, factors)


def adjust_saturation(images: Tensor, factors: Tensor) -> Tensor:
    """Distance of each pixel from its grey level, times ``factors`` (B,); grey images stay as they are."""
    return images if images.shape[1] == 1 else _move_away(_grey(images), images, factors)


def _grey(images: Tensor) -> Tensor:
    """(B, 1, H, W): the grey level of every pixel (ITU-R 601-2 luma, as torchvision and Pillow)."""
    if images.shape[1] == 1:
        return images
    red, green, blue = images.split(1, dim=1)
    return 0.2989 * red + 0.587 * green + 0.114 * blue


def _move_away(grey: Tensor, images: Tensor, factors: Tensor) -> Tensor:
    return torch.lerp(grey, images, factors[:, None, None, None]).clamp(0, WHITE)
