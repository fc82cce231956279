"""The size of a source's images: resized, and framed by zeros."""

import math
from dataclasses import replace

import numpy as np
import torch

from clbench.data.images import ImageSet, SourceData
from clbench.data.text import TextSet


def resized(data: SourceData, size: int | None) -> SourceData:
    """The same data at ``size`` × ``size`` pixels (antialiased bilinear), or unchanged for None."""
    if size is None or isinstance(data.train, TextSet) or data.train.pixels.shape[-2:] == (size, size):
        return data

    def shrink(images: ImageSet) -> ImageSet:
        from torchvision.transforms.v2.functional import resize

        parts = [
            resize(torch.from_numpy(np.array(images.pixels[i : i + 1024])), [size, size], antialias=True).numpy()
            for i in range(0, len(images), 1024)
        ]
        return ImageSet(np.concatenate(parts), images.labels, images.domains)

    return replace(data, train=shrink(data.train), test=shrink(data.test))


def padded(data: SourceData, pad: int | None) -> SourceData:
    """The same data with ``pad`` pixels of value 0 on each side of every image, or unchanged for None.

    Mean and standard deviation become those of the padded pixels: with the share s of the pixels that are the image's own,
    sμ and √(s(σ² + μ²) − s²μ²). For MNIST at 32×32 that is 0.1 and 0.2752, the constants of Hsu et al. 2018.
    """
    if pad is None or isinstance(data.train, TextSet):
        return data
    height, width = data.train.pixels.shape[-2:]
    own = height * width / ((height + 2 * pad) * (width + 2 * pad))

    def framed(images: ImageSet) -> ImageSet:
        around = ((0, 0), (0, 0), (pad, pad), (pad, pad))
        return ImageSet(np.pad(images.pixels, around), images.labels, images.domains)

    return replace(
        data,
        train=framed(data.train),
        test=framed(data.test),
        mean=tuple(own * mean for mean in data.mean),
        std=tuple(
            math.sqrt(own * (std**2 + mean**2) - (own * mean) ** 2)
            for mean, std in zip(data.mean, data.std, strict=True)
        ),
    )
