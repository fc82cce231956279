"""Decoding image files once: the result is cached as one uint8 array and memory-mapped from then on."""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image
from platformdirs import user_cache_path

from clbench.errors import DataError

CACHE_FOLDER = ".clbench-cache"


def decode_files(files: list[Path], size: int | None, mode: str, root: Path) -> np.ndarray:
    """Decode image files to one array.

    Args:
        files: image files, in the order of the result.
        size: height and width in pixels; the shorter side is scaled to it (antialiased bilinear) and the centre cut out.
            None keeps the images as they are, which have to be of one size.
        mode: ``RGB`` or ``L`` (grey).
        root: the data root, in which the cache is kept where it can be written (else in the user's cache folder).

    Returns:
        A read-only memory map, uint8 (len(files), C, H, W).

    Raises:
        DataError: a file cannot be decoded, or sizes differ and ``size`` is None.
    """
    cached = _cache_file(files, size, mode, root)
    if not cached.exists():
        shape = (len(files), *_decode(files[0], size, mode).shape)
        unfinished = cached.with_suffix(f".{os.getpid()}.unfinished")
        array = np.lib.format.open_memmap(unfinished, "w+", np.uint8, shape)
        with ThreadPoolExecutor() as pool:
            for index, image in enumerate(pool.map(lambda file: _decode(file, size, mode), files)):
                if image.shape != shape[1:]:
                    unfinished.unlink()
                    raise DataError(
                        f"{files[index]} has {image.shape[-2:]} pixels and {files[0]} {shape[-2:]}: "
                        "set scenario.image_size, e.g. 64"
                    )
                array[index] = image
        array.flush()
        del array
        unfinished.replace(cached)
    return np.load(cached, mmap_mode="r")


def _decode(file: Path, size: int | None, mode: str) -> np.ndarray:
    try:
        with Image.open(file) as opened:
            image = opened.convert(mode)
    except OSError as error:
        raise DataError(f"the image {file} cannot be decoded: {error}") from error
    if size is not None and image.size != (size, size):
        scale = size / min(image.size)
        width, height = (max(size, round(length * scale)) for length in image.size)
        image = image.resize((width, height), Image.Resampling.BILINEAR)
        left, top = (width - size) // 2, (height - size) // 2
        image = image.crop((left, top, left + size, top + size))
    array = np.asarray(image, np.uint8)
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def _cache_file(files: list[Path], size: int | None, mode: str, root: Path) -> Path:
    """Named after everything the result depends on: which files, how large, when changed, and how they are decoded."""
    key = hashlib.blake2b(f"{size}/{mode}".encode(), digest_size=16)
    for file in files:
        state = file.stat()
        key.update(f"{file}/{state.st_size}/{state.st_mtime_ns}".encode())
    folder = root / CACHE_FOLDER
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK)
    except OSError:
        writable = False
    if not writable:
        folder = user_cache_path("clbench", ensure_exists=True) / "decoded"
        folder.mkdir(exist_ok=True)
    return folder / f"{key.hexdigest()}.npy"
