"""Data sets that torchvision knows how to fetch and read.

torchvision's own check is the MD5 of particular files. It is left to the archives that are downloaded; what is read is
verified by content instead (:func:`clbench.data.location.verified`) where the official content is known, so that a repacked
copy of the same images is good. ``data.folder`` names a folder within the root that holds torchvision's layout.

Means and standard deviations are over the training pixels scaled to [0, 1]. Those of MNIST, Fashion-MNIST, CIFAR-100 and
Omniglot were recomputed from the pixels; the others are the values in common use. CIFAR-10's standard deviation is in
common use, too, although it is not that of the pixels (0.247, 0.243, 0.262) but the mean over that of single images.
"""

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from clbench.config import DataConfig
from clbench.data.decode import decode_files
from clbench.data.folder_sources import read_split_folder
from clbench.data.images import ImageSet, SourceData
from clbench.data.location import data_folder, data_root, read_or_download, verified
from clbench.registry import SOURCES

DIGITS = [str(digit) for digit in range(10)]


def _torchvision() -> Any:
    """torchvision's data sets; imported where one is read, since that takes longer than importing torch."""
    from torchvision import datasets

    return datasets


def _mnist_like(source: str, config: DataConfig, cls: Any, mean: float, std: float, **options: Any) -> SourceData:
    """The MNIST family: idx files below ``<folder>/<class name>/raw``."""
    root = data_folder(config)
    location = root / cls.__name__ / "raw"
    what = "the data set's idx files, unpacked (with data.download=true their .gz files will do)"

    def split(train: bool) -> tuple[ImageSet, list[str]]:
        data = read_or_download(
            source, config, location, what, lambda fetch: cls(str(root), train=train, download=fetch, **options)
        )
        return ImageSet(data.data.numpy()[:, None], data.targets.numpy().astype(np.int64)), list(data.classes)

    (train, names), (test, _) = split(True), split(False)
    plain_names = [name.split(" - ")[0] for name in names]  # "0" where torchvision says "0 - zero"
    return verified(source, SourceData(train, test, plain_names, (mean,), (std,)), location)


@SOURCES.register("mnist")
def mnist(config: DataConfig) -> SourceData:
    """MNIST: 60,000 + 10,000 handwritten digits, 28×28 grey (LeCun et al. 1998)."""
    return _mnist_like("mnist", config, _torchvision().MNIST, 0.1307, 0.3081)


@SOURCES.register("fashion_mnist")
def fashion_mnist(config: DataConfig) -> SourceData:
    """Fashion-MNIST: 60,000 + 10,000 articles of clothing, 28×28 grey (Xiao et al. 2017)."""
    return _mnist_like("fashion_mnist", config, _torchvision().FashionMNIST, 0.2860, 0.3530)


@SOURCES.register("kmnist")
def kmnist(config: DataConfig) -> SourceData:
    """Kuzushiji-MNIST: 60,000 + 10,000 cursive Japanese characters, 28×28 grey (Clanuwat et al. 2018)."""
    return _mnist_like("kmnist", config, _torchvision().KMNIST, 0.1918, 0.3483)


@SOURCES.register("emnist")
def emnist(config: DataConfig) -> SourceData:
    """EMNIST, split 'balanced': 112,800 + 18,800 letters and digits in 47 classes, 28×28 grey (Cohen et al. 2017)."""
    return _mnist_like("emnist", config, _torchvision().EMNIST, 0.1751, 0.3332, split="balanced")


@SOURCES.register("svhn")
def svhn(config: DataConfig) -> SourceData:
    """SVHN, cropped digits: 73,257 + 26,032 house-number digits, 32×32 RGB (Netzer et al. 2011)."""
    root = data_folder(config)

    def split(name: str) -> ImageSet:
        data = read_or_download(
            "svhn", config, root / f"{name}_32x32.mat", "the official file of that name",
            lambda fetch: _torchvision().SVHN(str(root), name, download=fetch),
        )  # fmt: skip
        return ImageSet(np.ascontiguousarray(data.data), data.labels.astype(np.int64))

    statistics = (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)
    return verified("svhn", SourceData(split("train"), split("test"), DIGITS, *statistics), root)


@SOURCES.register("usps")
def usps(config: DataConfig) -> SourceData:
    """USPS: 7,291 + 2,007 handwritten digits, 16×16 grey (Hull 1994)."""
    root = data_folder(config)

    def split(name: str, train: bool) -> ImageSet:
        data = read_or_download(
            "usps", config, root / name, "the official file of that name",
            lambda fetch: _torchvision().USPS(str(root), train, download=fetch),
        )  # fmt: skip
        return ImageSet(data.data[:, None], np.array(data.targets, np.int64))

    train, test = split("usps.bz2", True), split("usps.t.bz2", False)
    return verified("usps", SourceData(train, test, DIGITS, (0.2469,), (0.2989,)), root)


@SOURCES.register("cifar10")
def cifar10(config: DataConfig) -> SourceData:
    """CIFAR-10: 50,000 + 10,000 images in 10 classes, 32×32 RGB (Krizhevsky 2009).

    A copy elsewhere is read with ``data.folder``, the folder that holds ``cifar-10-batches-py``.
    """
    location = data_folder(config) / "cifar-10-batches-py"
    what = "data_batch_1 … 5, test_batch and batches.meta (or the archive cifar-10-python.tar.gz beside that folder)"
    train, test, names = _cifar("cifar10", config, _torchvision().CIFAR10, location, what)
    statistics = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
    return verified("cifar10", SourceData(train, test, names, *statistics), location)


@SOURCES.register("cifar100")
def cifar100(config: DataConfig) -> SourceData:
    """CIFAR-100: 50,000 + 10,000 images in 100 classes of 20 superclasses, 32×32 RGB (Krizhevsky 2009)."""
    location = data_folder(config) / "cifar-100-python"
    what = "the files train, test and meta (or the archive cifar-100-python.tar.gz beside that folder)"
    train, test, names = _cifar("cifar100", config, _torchvision().CIFAR100, location, what)
    statistics = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
    data = verified("cifar100", SourceData(train, test, names, *statistics), location)
    return replace(data, superclass=_superclasses(location, data.test.labels))


def _cifar(
    source: str, config: DataConfig, cls: Any, location: Path, what: str
) -> tuple[ImageSet, ImageSet, list[str]]:
    """Training and test images and the class names of CIFAR-10 or -100, without torchvision's MD5 of every file."""

    class Unchecked(cls):
        # torchvision takes a file whose MD5 is None as it is.
        train_list = [(name, None) for name, _ in cls.train_list]  # noqa: RUF012
        test_list = [(name, None) for name, _ in cls.test_list]  # noqa: RUF012
        meta = {**cls.meta, "md5": None}  # noqa: RUF012

    def split(train: bool) -> tuple[ImageSet, list[str]]:
        data = read_or_download(
            source, config, location, what, lambda fetch: Unchecked(str(location.parent), train=train, download=fetch)
        )
        pixels = np.ascontiguousarray(data.data.transpose(0, 3, 1, 2))
        return ImageSet(pixels, np.array(data.targets, np.int64)), list(data.classes)

    (train, names), (test, _) = split(True), split(False)
    return train, test, names


def _superclasses(folder: Path, labels: np.ndarray) -> np.ndarray:
    """int64 (100,): the coarse label of every fine label, from the test file, of which torchvision keeps the fine ones."""
    with (folder / "test").open("rb") as file:
        coarse = np.array(pickle.load(file, encoding="latin1")["coarse_labels"])
    first = np.array([np.flatnonzero(labels == label)[0] for label in range(100)])
    return coarse[first].astype(np.int64)


@SOURCES.register("gtsrb")
def gtsrb(config: DataConfig) -> SourceData:
    """GTSRB: 43 traffic signs, RGB, decoded to one size, usually 32×32 (Stallkamp et al. 2012).

    torchvision's layout ``gtsrb/``: 26,640 images of the training archive it fetches, 12,630 of the final test. Or, with
    ``data.folder``, a folder with ``train/`` and ``test/`` of class folders.
    """
    root = data_folder(config)
    statistics = (0.3403, 0.3121, 0.3214), (0.2724, 0.2608, 0.2669)
    if config.folder and (root / "train").is_dir():
        data = read_split_folder("gtsrb", config, root)
        return verified("gtsrb", replace(data, mean=statistics[0], std=statistics[1]), root)

    def listing(split: str) -> list[tuple[str, int]]:
        what = "GTSRB/Training, GTSRB/Final_Test and GT-final_test.csv of the official archives"
        data = read_or_download(
            "gtsrb", config, root / "gtsrb", what, lambda fetch: _torchvision().GTSRB(str(root), split, download=fetch)
        )
        return sorted(data._samples)

    train, test = listing("train"), listing("test")
    files, labels = zip(*train, *test, strict=True)
    pixels = decode_files([Path(file) for file in files], config.image_size or 32, "RGB", data_root(config))
    n, numbers = len(train), np.array(labels, np.int64)
    sets = ImageSet(pixels[:n], numbers[:n]), ImageSet(pixels[n:], numbers[n:])
    return verified("gtsrb", SourceData(*sets, [f"{label:05d}" for label in range(43)], *statistics), root / "gtsrb")


@SOURCES.register("omniglot")
def omniglot(config: DataConfig) -> SourceData:
    """Omniglot: 20 drawings of each handwritten character, 105×105 grey, ink bright (Lake et al. 2015).

    The classes are the characters of the evaluation alphabets (659), alphabets and characters in alphabetical order; of every
    character's 20 drawers the first 15 are training data and the last 5 test data, since Omniglot itself has no such split.
    The superclasses are the alphabets.
    """
    root = data_folder(config)
    location = root / "omniglot-py" / "images_evaluation"

    published: Any = _torchvision().Omniglot

    class Unchecked(published):
        def _check_integrity(self) -> bool:
            return location.is_dir()

    read_or_download(
        "omniglot", config, location, "the folders of images_evaluation.zip",
        lambda fetch: Unchecked(str(root), background=False, download=fetch),
    )  # fmt: skip
    files = sorted(location.glob("*/*/*.png"))  # <alphabet>/<character>/<number of the character>_<drawer>.png
    names = sorted({f"{file.parts[-3]}/{file.parts[-2]}" for file in files})
    number = {name: label for label, name in enumerate(names)}
    labels = np.array([number[f"{file.parts[-3]}/{file.parts[-2]}"] for file in files], np.int64)
    is_test = np.array([int(file.stem.rpartition("_")[2]) > 15 for file in files])
    pixels = 255 - decode_files(files, config.image_size, "L", data_root(config))
    train, test = (ImageSet(pixels[chosen], labels[chosen]) for chosen in (~is_test, is_test))
    alphabet = np.unique([name.split("/")[0] for name in names], return_inverse=True)[1]
    return verified("omniglot", SourceData(train, test, names, (0.0842,), (0.2776,), superclass=alphabet), location)
