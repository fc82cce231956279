"""Data sets that torchvision knows how to fetch and read.

torchvision's own check is the MD5 of particular files. It is left to the archives that are downloaded; what is read is
verified by content instead (:func:`clbench.data.location.verified`), so that a repacked copy of the same images is good.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from torchvision import datasets

from clbench.config import DataConfig
from clbench.data.decode import decode_files
from clbench.data.images import ImageSet, SourceData
from clbench.data.location import data_root, read_or_download, verified
from clbench.registry import SOURCES

CIFAR10_STATISTICS = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
"""Mean and standard deviation as the continual-learning literature uses them (De Lange et al. 2023 and others)."""


def _mnist_like(
    name: str, cls: type, mean: float, std: float, pick: dict[str, Any] | None = None
) -> Callable[[DataConfig], SourceData]:
    """A reader of the MNIST family: idx files below ``<root>/<class name>/raw``."""

    def read(config: DataConfig) -> SourceData:
        root = data_root(config)
        location = root / cls.__name__ / "raw"
        what = "the .gz (or unpacked) idx files of the data set"

        def split(train: bool) -> tuple[ImageSet, list[str]]:
            data = read_or_download(
                name, config, location, what, lambda fetch: cls(str(root), train=train, download=fetch, **(pick or {}))
            )
            return ImageSet(data.data.numpy()[:, None], data.targets.numpy().astype(np.int64)), list(data.classes)

        (train, names), (test, _) = split(True), split(False)
        plain_names = [str(n).split(" - ")[0] for n in names]  # "0" where torchvision says "0 - zero"
        return verified(name, SourceData(train, test, plain_names, (mean,), (std,)))

    return read


@SOURCES.register("mnist")
def mnist(config: DataConfig) -> SourceData:
    """MNIST: 60,000 + 10,000 handwritten digits, 28×28 grey (LeCun et al. 1998)."""
    return _mnist_like("mnist", datasets.MNIST, 0.1307, 0.3081)(config)


@SOURCES.register("fashion_mnist")
def fashion_mnist(config: DataConfig) -> SourceData:
    """Fashion-MNIST: 60,000 + 10,000 articles of clothing, 28×28 grey (Xiao et al. 2017)."""
    return _mnist_like("fashion_mnist", datasets.FashionMNIST, 0.2860, 0.3530)(config)


@SOURCES.register("kmnist")
def kmnist(config: DataConfig) -> SourceData:
    """Kuzushiji-MNIST: 60,000 + 10,000 cursive Japanese characters, 28×28 grey (Clanuwat et al. 2018)."""
    return _mnist_like("kmnist", datasets.KMNIST, 0.1918, 0.3483)(config)


@SOURCES.register("emnist")
def emnist(config: DataConfig) -> SourceData:
    """EMNIST, split 'balanced': 112,800 + 18,800 letters and digits in 47 classes, 28×28 grey (Cohen et al. 2017)."""
    return _mnist_like("emnist", datasets.EMNIST, 0.1751, 0.3332, {"split": "balanced"})(config)


@SOURCES.register("svhn")
def svhn(config: DataConfig) -> SourceData:
    """SVHN, cropped digits: 73,257 + 26,032 house-number digits, 32×32 RGB (Netzer et al. 2011)."""
    root = data_root(config)

    def split(name: str) -> ImageSet:
        location = root / f"{name}_32x32.mat"
        data = read_or_download(
            "svhn",
            config,
            location,
            "the file of that name",
            lambda fetch: datasets.SVHN(str(root), name, download=fetch),
        )
        return ImageSet(data.data, data.labels.astype(np.int64))

    digits = [str(digit) for digit in range(10)]
    statistics = (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)
    return verified("svhn", SourceData(split("train"), split("test"), digits, *statistics))


@SOURCES.register("usps")
def usps(config: DataConfig) -> SourceData:
    """USPS: 7,291 + 2,007 handwritten digits, 16×16 grey (Hull 1994)."""
    root = data_root(config)

    def split(train: bool) -> ImageSet:
        location = root / ("usps.bz2" if train else "usps.t.bz2")
        data = read_or_download(
            "usps",
            config,
            location,
            "the file of that name",
            lambda fetch: datasets.USPS(str(root), train, download=fetch),
        )
        return ImageSet(data.data[:, None], np.array(data.targets, np.int64))

    return verified("usps", SourceData(split(True), split(False), [str(d) for d in range(10)], (0.2469,), (0.2989,)))


def _cifar(cls: type, root: Path, train: bool, fetch: bool) -> tuple[ImageSet, list[str]]:
    """Read one split of CIFAR-10 or -100 without torchvision's per-file MD5."""

    class Unchecked(cls):  # type: ignore[misc, valid-type]
        pass

    # torchvision compares each file's MD5 with these, and skips a file whose MD5 is None.
    Unchecked.train_list = [(name, None) for name, _ in cls.train_list]
    Unchecked.test_list = [(name, None) for name, _ in cls.test_list]
    Unchecked.meta = {**cls.meta, "md5": None}
    data = Unchecked(str(root), train=train, download=fetch)
    pixels = np.ascontiguousarray(data.data.transpose(0, 3, 1, 2))
    return ImageSet(pixels, np.array(data.targets, np.int64)), list(data.classes)


@SOURCES.register("cifar10")
def cifar10(config: DataConfig) -> SourceData:
    """CIFAR-10: 50,000 + 10,000 images in 10 classes, 32×32 RGB (Krizhevsky 2009). ``data.folder``: folder that holds
    ``cifar-10-batches-py``."""
    root = data_root(config) / (config.folder or "")
    location = root / "cifar-10-batches-py"
    what = "data_batch_1 … 5, test_batch and batches.meta (or the archive cifar-10-python.tar.gz beside that folder)"
    train, test = (
        read_or_download("cifar10", config, location, what, lambda fetch, t=t: _cifar(datasets.CIFAR10, root, t, fetch))
        for t in (True, False)
    )
    return verified("cifar10", SourceData(train[0], test[0], train[1], *CIFAR10_STATISTICS))


@SOURCES.register("cifar100")
def cifar100(config: DataConfig) -> SourceData:
    """CIFAR-100: 50,000 + 10,000 images in 100 classes of 20 superclasses, 32×32 RGB (Krizhevsky 2009)."""
    root = data_root(config) / (config.folder or "")
    location = root / "cifar-100-python"
    what = "the files train, test and meta (or the archive cifar-100-python.tar.gz beside that folder)"
    train, test = (
        read_or_download(
            "cifar100", config, location, what, lambda fetch, t=t: _cifar(datasets.CIFAR100, root, t, fetch)
        )
        for t in (True, False)
    )
    statistics = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
    data = SourceData(train[0], test[0], train[1], *statistics, superclass=_superclasses(location, train[0].labels))
    return verified("cifar100", data)


def _superclasses(folder: Path, labels: np.ndarray) -> np.ndarray:
    """int64 (100,): the coarse label of every fine label, from the training file, which torchvision reads but drops."""
    import pickle

    with (folder / "train").open("rb") as file:
        coarse = np.array(pickle.load(file, encoding="latin1")["coarse_labels"])
    first = np.array([np.flatnonzero(labels == label)[0] for label in range(100)])
    return coarse[first].astype(np.int64)


@SOURCES.register("gtsrb")
def gtsrb(config: DataConfig) -> SourceData:
    """GTSRB: 43 traffic signs, images decoded to one size (Stallkamp et al. 2012).

    Reads torchvision's layout (``gtsrb/``), or with ``data.folder`` a folder with ``train/`` and ``test/`` of class folders.
    """
    from clbench.data.folder_sources import read_split_folder

    root = data_root(config)
    if config.folder:
        return verified("gtsrb", read_split_folder("gtsrb", config, root / config.folder))

    def split(name: str) -> ImageSet:
        data = read_or_download(
            "gtsrb", config, root / "gtsrb", "the folder GTSRB with Training and Final_Test, and the ground-truth table",
            lambda fetch: datasets.GTSRB(str(root), name, download=fetch),
        )  # fmt: skip
        files, labels = zip(*data._samples, strict=True)
        pixels = decode_files([Path(file) for file in files], config.image_size or 32, "RGB", root)
        return ImageSet(pixels, np.array(labels, np.int64))

    names = [str(label) for label in range(43)]
    return verified(
        "gtsrb", SourceData(split("train"), split("test"), names, (0.3403, 0.3121, 0.3214), (0.2724, 0.2608, 0.2669))
    )


@SOURCES.register("omniglot")
def omniglot(config: DataConfig) -> SourceData:
    """Omniglot: 20 drawings of each handwritten character, 28×28 grey, ink bright (Lake et al. 2015).

    The classes are the characters of the evaluation alphabets (659), alphabets and characters in alphabetical order; of every
    character's 20 drawers the first 15 are training data and the last 5 test data, since Omniglot itself has no such split.
    The superclasses are the alphabets.
    """
    root = data_root(config)
    location = root / "omniglot-py" / "images_evaluation"

    def read(fetch: bool) -> list[tuple[Path, int]]:
        class Unchecked(datasets.Omniglot):
            def _check_integrity(self) -> bool:
                return location.is_dir()

        data = Unchecked(str(root), background=False, download=fetch)
        folder = Path(data.target_folder)
        files = [(folder / data._characters[label] / name, label) for name, label in data._flat_character_images]
        return sorted(files)

    files = read_or_download("omniglot", config, location, "the folders of images_evaluation.zip", read)
    paths, labels = [path for path, _ in files], np.array([label for _, label in files], np.int64)
    pixels = 255 - decode_files(paths, config.image_size or 28, "L", root)
    drawer = np.array([int(path.stem.split("_")[1]) for path in paths])  # files are <character>_<drawer>.png
    is_test = drawer > 15
    order = {label: new for new, label in enumerate(dict.fromkeys(labels.tolist()))}
    labels = np.array([order[label] for label in labels.tolist()], np.int64)
    names = list(dict.fromkeys("/".join(path.parts[-3:-1]) for path in paths))
    sets = (ImageSet(pixels[chosen], labels[chosen]) for chosen in (~is_test, is_test))
    alphabet = np.unique([name.split("/")[0] for name in names], return_inverse=True)[1]
    return verified("omniglot", SourceData(*sets, names, (0.0781,), (0.2325,), superclass=alphabet))
