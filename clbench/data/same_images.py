"""Images that occur more than once in data of one's own: under two classes, or in training and test."""

import zlib
from collections import defaultdict
from pathlib import Path

import numpy as np

from clbench.errors import DataError


def groups_of_equal(pixels: np.ndarray) -> list[list[int]]:
    """The rows of every image that occurs more than once, ``pixels`` (N, C, H, W)."""
    candidates: dict[int, list[int]] = defaultdict(list)
    for row, image in enumerate(pixels):
        candidates[zlib.crc32(np.ascontiguousarray(image).data)].append(row)
    groups: dict[tuple[int, bytes], list[int]] = defaultdict(list)
    for checksum, rows in candidates.items():
        if len(rows) > 1:
            for row in rows:
                groups[checksum, pixels[row].tobytes()].append(row)
    return [rows for rows in groups.values() if len(rows) > 1]


def refuse_or_note(files: list[Path], pixels: np.ndarray, labels: np.ndarray, n_train: int, keep: bool) -> str:
    """What a reader has to know of equal images, a clause or nothing.

    Args:
        files: of all images, those for training first.
        pixels: uint8 (N, C, H, W).
        labels: (N,).
        n_train: how many are for training.
        keep: whether such images are to be kept (``data.duplicates=keep``).

    Raises:
        DataError: images are under two classes, or test images are training images as well, and ``keep`` is false.
    """
    contradictory, leaked = [], []
    for rows in groups_of_equal(pixels):
        other_class = next((row for row in rows if labels[row] != labels[rows[0]]), None)
        if other_class is not None:
            contradictory.append((rows[0], other_class))
        elif rows[0] < n_train <= rows[-1]:
            leaked.append((rows[0], rows[-1]))
    said = []
    for pairs, what in ((contradictory, "under two classes"), (leaked, "both for training and for test")):
        if pairs:
            first, second = (files[row] for row in pairs[0])
            count = f"{len(pairs)} images are" if len(pairs) > 1 else "one image is"
            said.append(f"{count} {what}, such as {first} and {second}")
    if said and not keep:
        raise DataError(
            f"{' and '.join(said)}, which hold the same pixels: remove one of them, or set data.duplicates=keep to use all as "
            "they are"
        )
    return "; ".join(said)
