"""Decoding image files once: the result is cached as one uint8 array and memory-mapped from then on."""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image
from platformdirs import user_cache_path
from rich.console import Console
from rich.progress import track

from clbench.errors import DataError

CACHE_FOLDER = ".clbench-cache"
"""Within the data root. It may be deleted at any time; nothing in it is removed by clbench itself."""

DECODED_AT_ONCE = 1024
"""Files decoded before their pixels are written, which bounds the memory taken."""


class _SizesDiffer(Exception):
    """Raised while decoding to one array: an image is not of the size of the first one."""


def decode_files(files: list[Path], size: int | None, mode: str, root: Path) -> np.ndarray:
    """Decode image files to one array.

    Square images that are all of one size are kept as they are, so that their content does not depend on how a library
    resizes. Others are brought to ``size`` × ``size``: the shorter side is scaled to it (antialiased bilinear) and the
    centre cut out. Without a ``size`` images of one size are kept even if they are not square.

    Args:
        files: image files, in the order of the result.
        size: height and width in pixels for images that are not all squares of one size, or None.
        mode: ``RGB`` or ``L`` (grey).
        root: the data root, in which the cache is kept where it can be written (else in the user's cache folder).

    Returns:
        A read-only memory map, uint8 (len(files), C, H, W).

    Raises:
        DataError: a file is missing or cannot be decoded, or sizes differ and ``size`` is None.
    """
    name = _cache_folder(root) / f"{_state(files)}-{mode}"
    as_they_are, scaled = name.with_suffix(".npy"), name.with_name(f"{name.name}-{size}.npy")
    if scaled.exists():
        return np.load(scaled, mmap_mode="r")
    if not as_they_are.exists():
        try:
            _decode_to(as_they_are, files, None, mode)
        except _SizesDiffer as difference:
            if size is None:
                raise DataError(f"{difference}: set scenario.image_size, e.g. 64") from None
    if as_they_are.exists():
        pixels = np.load(as_they_are, mmap_mode="r")
        if size is None or pixels.shape[-2] == pixels.shape[-1]:
            return pixels
    _decode_to(scaled, files, size, mode)
    return np.load(scaled, mmap_mode="r")


def _decode_to(target: Path, files: list[Path], size: int | None, mode: str) -> None:
    """Write the decoded images to ``target``, which appears only when it is complete.

    Raises:
        _SizesDiffer: with ``size=None``, an image has another size than the first.
        DataError: a file cannot be decoded.
    """
    shape = _decode(files[0], size, mode).shape
    unfinished = target.with_suffix(f".{os.getpid()}.unfinished")
    parts = [files[start : start + DECODED_AT_ONCE] for start in range(0, len(files), DECODED_AT_ONCE)]
    try:
        array = np.lib.format.open_memmap(unfinished, "w+", np.uint8, (len(files), *shape))
        written = 0
        with ThreadPoolExecutor() as pool:
            for part in track(
                parts, "decoding images (once)", console=Console(stderr=True), disable=len(parts) < 5, transient=True
            ):
                images = list(pool.map(lambda file: _decode(file, size, mode), part))
                for file, image in zip(part, images, strict=True):
                    if image.shape != shape:
                        height, width = image.shape[1:]
                        raise _SizesDiffer(f"{file} has {width}×{height} pixels and {files[0]} {shape[2]}×{shape[1]}")
                array[written : written + len(part)] = images
                written += len(part)
        array.flush()
        del array
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)


def _decode(file: Path, size: int | None, mode: str) -> np.ndarray:
    """uint8 (C, H, W)."""
    try:
        with Image.open(file) as opened:
            image = opened.convert(mode)
    except (OSError, ValueError, SyntaxError) as error:  # Pillow raises any of these for a damaged file
        raise DataError(f"the image {file} cannot be decoded: {error}") from error
    if size is not None and image.size != (size, size):
        scale = size / min(image.size)
        width, height = (max(size, round(length * scale)) for length in image.size)
        image = image.resize((width, height), Image.Resampling.BILINEAR)
        left, top = (width - size) // 2, (height - size) // 2
        image = image.crop((left, top, left + size, top + size))
    array = np.asarray(image, np.uint8)
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def _state(files: list[Path]) -> str:
    """A digest of which files these are, in which order, how large and when changed."""
    digest = hashlib.blake2b(digest_size=16)
    for file in files:
        try:
            status = file.stat()
        except OSError as error:
            raise DataError(f"the image {file} is listed but cannot be read: {error.strerror}") from error
        digest.update(f"{file}/{status.st_size}/{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _cache_folder(root: Path) -> Path:
    """``.clbench-cache`` in the data root, or a folder in the user's cache where the root cannot be written."""
    folder = root / CACHE_FOLDER
    try:
        folder.mkdir(exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    except OSError:  # a read-only file system or somebody else's folder
        pass
    folder = user_cache_path("clbench") / "decoded"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
