"""Decoding image files once: the result is cached as one uint8 array and memory-mapped from then on."""

import hashlib
import logging
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

import numpy as np
from PIL import Image
from platformdirs import user_cache_path
from rich.console import Console
from rich.progress import track

from clbench.data.image_file import read_image
from clbench.errors import DataError

log = logging.getLogger(__name__)

CACHE_FOLDER = ".clbench-cache"
"""Within the data root. It may be deleted at any time; nothing in it is removed by clbench itself."""

DECODER = 2
"""Version of what turns a file into pixels, in the names of cached arrays: those of an earlier version are not read."""

DECODED_AT_ONCE = 1024
"""Files decoded before their pixels are written, which bounds the memory taken."""


class _SizesDiffer(Exception):
    """Raised while decoding to one array: an image is not of the size of the first one."""


def decode_files(files: list[Path], size: int | None, mode: str, root: Path, as_shown: bool = False) -> np.ndarray:
    """Decode image files to one array.

    Square images that are all of one size are kept as they are, so that their content does not depend on how a library
    resizes. Others are brought to ``size`` × ``size``: the shorter side is scaled to it (antialiased bilinear) and the
    centre cut out. Without a ``size`` images of one size are kept even if they are not square.

    Args:
        files: image files, in the order of the result.
        size: height and width in pixels for images that are not all squares of one size, or None.
        mode: ``RGB`` or ``L`` (grey).
        root: the data root, in which the cache is kept where it can be written (else in the user's cache folder, else nowhere).
        as_shown: read files as image viewers show them, see :func:`clbench.data.image_file.read_image`.

    Returns:
        uint8 (len(files), C, H, W): a read-only memory map of the cache, or an array in memory where there can be no cache.

    Raises:
        DataError: there are no files, one is missing or cannot be decoded, or sizes differ and ``size`` is None.
    """
    if not files:
        raise DataError(f"there are no image files to read below {root}")
    name = f"{_state(files)}-{mode}{'-as-shown' if as_shown else ''}-v{DECODER}"
    folder = _cache_folder(root)
    as_they_are, scaled = (None if folder is None else folder / f"{stem}.npy" for stem in (name, f"{name}-{size}"))
    pixels = _cached(scaled, len(files))
    if pixels is not None:
        return pixels
    pixels = _cached(as_they_are, len(files))
    if pixels is None:
        try:
            pixels = _decode_all(as_they_are, files, None, mode, as_shown)
        except _SizesDiffer as difference:
            if size is None:
                raise DataError(f"{difference}: set scenario.image_size, e.g. 64") from None
    if pixels is not None and (size is None or pixels.shape[-2] == pixels.shape[-1]):
        return pixels
    return _decode_all(scaled, files, size, mode, as_shown)


def _cached(file: Path | None, n: int) -> np.ndarray | None:
    """The array of ``n`` images in a file of the cache; None where there is none that is whole and may be read."""
    if file is None or not file.exists():
        return None
    try:
        pixels = np.load(file, mmap_mode="r")
    except (OSError, ValueError, EOFError):  # another user's, or cut off: it is made again
        return None
    return pixels if pixels.dtype == np.uint8 and pixels.ndim == 4 and len(pixels) == n else None


def _decode_all(target: Path | None, files: list[Path], size: int | None, mode: str, as_shown: bool) -> np.ndarray:
    """All images in one array; in the file ``target`` of the cache where it can be written.

    Raises:
        _SizesDiffer: with ``size=None``, an image has another size than the first.
        DataError: a file cannot be decoded.
    """
    if target is not None:
        try:
            _write(target, len(files), _decoded(files, size, mode, as_shown))
            return np.load(target, mmap_mode="r")
        except OSError as error:  # of the cache: those of the images are DataErrors
            log.warning("%s", _no_cache(f"{target.parent} ({error.strerror})"))
    return np.concatenate(list(_decoded(files, size, mode, as_shown)))


def _write(target: Path, n: int, parts: Iterator[np.ndarray]) -> None:
    """Write ``n`` images to ``target``, which appears only when it is complete.

    By ordinary writes: on a full disk these raise, where writing to a memory map would kill the process.
    """
    unfinished = target.with_name(f"{target.name}.{uuid4().hex}.unfinished")  # several processes may write one cache
    try:
        with unfinished.open("wb") as file:
            for number, part in enumerate(parts):
                if number == 0:
                    shape = (n, *part.shape[1:])
                    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
                file.write(np.ascontiguousarray(part).data)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)


def _decoded(files: list[Path], size: int | None, mode: str, as_shown: bool) -> Iterator[np.ndarray]:
    """The images in parts, uint8 (n, C, H, W)."""
    parts = [files[start : start + DECODED_AT_ONCE] for start in range(0, len(files), DECODED_AT_ONCE)]
    shape: tuple[int, ...] | None = None
    with ThreadPoolExecutor() as pool:
        for part in track(
            parts, "decoding images (once)", console=Console(stderr=True), disable=len(parts) < 5, transient=True
        ):
            images = list(pool.map(lambda file: _decode(file, size, mode, as_shown), part))
            shape = shape or images[0].shape
            for file, image in zip(part, images, strict=True):
                if image.shape != shape:
                    height, width = image.shape[1:]
                    raise _SizesDiffer(f"{file} has {width}×{height} pixels and {files[0]} {shape[2]}×{shape[1]}")
            yield np.stack(images)


def _decode(file: Path, size: int | None, mode: str, as_shown: bool) -> np.ndarray:
    """uint8 (C, H, W)."""
    image = read_image(file, mode, as_shown)
    if size is not None and image.size != (size, size):
        scale = size / min(image.size)
        width, height = (max(size, round(length * scale)) for length in image.size)
        image = image.resize((width, height), Image.Resampling.BILINEAR)
        left, top = (width - size) // 2, (height - size) // 2
        image = image.crop((left, top, left + size, top + size))
    array = np.asarray(image, np.uint8)
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def _state(files: list[Path]) -> str:
    """A digest of which files these are, in which order, how large and when changed.

    With the time at which the system last noted a change, which a tool that sets a file's date back cannot set.
    """
    digest = hashlib.blake2b(digest_size=16)
    for file in files:
        try:
            status = file.stat()
        except OSError as error:
            raise DataError(f"the image {file} is listed but cannot be read: {error.strerror}") from error
        digest.update(os.fsencode(file))
        digest.update(f"/{status.st_size}/{status.st_mtime_ns}/{status.st_ctime_ns}\n".encode())
    return digest.hexdigest()


def _cache_folder(root: Path) -> Path | None:
    """``.clbench-cache`` in the data root, or a folder in the user's cache where the root cannot be written, or None."""
    for folder in (root / CACHE_FOLDER, user_cache_path("clbench") / "decoded"):
        try:
            folder.mkdir(parents=folder.parent != root, exist_ok=True)
            if os.access(folder, os.W_OK):
                return folder
        except OSError:  # a read-only file system, somebody else's folder, no home
            continue
    log.warning("%s", _no_cache(f"{root} and {user_cache_path('clbench')}"))
    return None


def _no_cache(where: str) -> str:
    return f"decoded images cannot be kept in {where}: they are decoded anew at every start"
