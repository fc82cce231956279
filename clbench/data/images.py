"""Decoded images with labels, and the content hash that says which images they are.

The hash of a set of samples is the sum, modulo 2**64 in two lanes, of a 128-bit BLAKE2b digest per (pixels, label).
A sum does not depend on order, so a repacked copy of the same images has the same hash, a copy with one changed pixel,
one changed label, one missing or one doubled image has another, and the hash of any subset is the sum over it.
"""

import hashlib
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np


@dataclass(frozen=True)
class ImageSet:
    """One split of a data source.

    Attributes:
        pixels: uint8 array (N, C, H, W); may be a read-only memory map.
        labels: int64 array (N,), the source's own class numbers.
        domains: int64 array (N,), the domain of every image, or None where the source has only one.
    """

    pixels: np.ndarray
    labels: np.ndarray
    domains: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def digests(self) -> np.ndarray:
        """uint64 array (N, 2): a 128-bit digest of each sample's pixels (with their shape) and label."""
        shape = np.asarray(self.pixels.shape[1:], "<i8").tobytes()
        labels = self.labels.astype("<i8")
        digests = bytearray()
        for image, label in zip(np.asarray(self.pixels), labels, strict=True):
            digest = hashlib.blake2b(shape + label.tobytes(), digest_size=16)
            digest.update(np.ascontiguousarray(image).data)
            digests += digest.digest()
        return np.frombuffer(bytes(digests), "<u8").reshape(len(self), 2).astype(np.uint64)

    @property
    def content_hash(self) -> str:
        """The hash of all samples of this split."""
        return content_hash(self.digests)


def content_hash(digests: np.ndarray) -> str:
    """The hash of a multiset of samples, 32 hexadecimal digits, from its ``(N, 2)`` uint64 digests."""
    low, high = (int(lane) for lane in digests.sum(axis=0, dtype=np.uint64))
    return f"{high:016x}{low:016x}"


@dataclass(frozen=True)
class SourceData:
    """Everything a source delivers.

    Attributes:
        train: training images.
        test: test images.
        class_names: name of every class, in the order of the labels.
        mean: per-channel mean of the training pixels scaled to [0, 1], for normalisation.
        std: per-channel standard deviation of the same.
        domain_names: name of every domain, or empty.
        superclass: for each class the number of its superclass (CIFAR-100's coarse labels), or None.
        superclass_names: name of every superclass, or empty: they are told by their classes.
        refused: names of superclasses that belong to the source and that this copy does not give → why, in a clause.
        note: what a reader of results has to know about this copy of the data, or empty.
        answers: for each class how a language model is to say it after the text, e.g. " World", or None: it has numbers only.
    """

    train: ImageSet
    test: ImageSet
    class_names: list[str]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    domain_names: list[str] = field(default_factory=list)
    superclass: np.ndarray | None = None
    superclass_names: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    note: str = ""
    answers: tuple[str, ...] | None = None
