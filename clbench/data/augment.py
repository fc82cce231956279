"""Random image transformations, batched: every sample of a batch gets parameters of its own, drawn on the device."""

import torch
import torch.nn.functional as F
from torch import Tensor

from clbench.config import AugmentConfig


class Augmentation:
    """Crop and flip; see :class:`clbench.config.AugmentConfig`."""

    def __init__(self, config: AugmentConfig) -> None:
        self.config = config

    @staticmethod
    def changes_anything(config: AugmentConfig) -> bool:
        """Whether any transformation is switched on."""
        return any(bool(value) for value in vars(config).values())

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """uint8 (B, C, H, W) → uint8 or float of the same shape and range (0..255)."""
        batch, device = len(images), images.device
        pad = self.config.crop_padding
        if pad:
            offsets = torch.randint(0, 2 * pad + 1, (batch, 2), generator=generator, device=device)
            images = crop(F.pad(images, (pad, pad, pad, pad)), offsets, images.shape[-2:])
        if self.config.flip:
            flipped = torch.rand(batch, generator=generator, device=device) < 0.5
            images = torch.where(flipped.view(-1, 1, 1, 1), images.flip(-1), images)
        return images


def crop(images: Tensor, offsets: Tensor, size: tuple[int, int]) -> Tensor:
    """From each image (B, C, H', W') the window of ``size`` whose top left corner is ``offsets`` (B, 2: y, x)."""
    batch = torch.arange(len(images), device=images.device).view(-1, 1, 1, 1)
    channels = torch.arange(images.shape[1], device=images.device).view(1, -1, 1, 1)
    rows = (offsets[:, :1] + torch.arange(size[0], device=images.device)).view(len(images), 1, -1, 1)
    columns = (offsets[:, 1:] + torch.arange(size[1], device=images.device)).view(len(images), 1, 1, -1)
    return images[batch, channels, rows, columns]
