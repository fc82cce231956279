"""What the tests of data sources share."""

import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def write_images() -> Callable[..., None]:
    """A function: folder and number → that many random image files ``000.png``, ``001.png``, … in it, others in every folder."""

    def write(folder: Path, count: int, size: tuple[int, int] = (8, 8), seed: int = 0, suffix: str = "png") -> None:
        rng = np.random.default_rng([seed, zlib.crc32("/".join(folder.parts[-2:]).encode())])
        folder.mkdir(parents=True)
        for i in range(count):
            Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(folder / f"{i:03d}.{suffix}")

    return write
