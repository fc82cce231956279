"""Data sets that are folders of image files: ImageNet subsets, ImageNet-R, CUB, Tiny- and Mini-ImageNet, DomainNet, PACS.

Classes are folder names in alphabetical order, files within a class too. Where a data set has no split of its own, every
class's files are dealt out by a fixed rule (:func:`_spread_test_files`), so that everybody gets the same test images.
``data.folder`` names the folder within the root where it is not the usual one. All are normalised with ImageNet's
statistics, as usual for these sets; ``scenario.mean`` and ``scenario.std`` change that.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np

from clbench.config import DataConfig
from clbench.data.decode import decode_files
from clbench.data.images import ImageSet, SourceData
from clbench.data.location import data_folder, data_root, require, verified
from clbench.errors import ConfigError, DataError
from clbench.registry import SOURCES

IMAGENET_STATISTICS = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and standard deviation that torchvision's models expect."""

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".tif", ".tiff"}
PACS_DOMAINS = ["art_painting", "cartoon", "photo", "sketch"]
DOMAINNET_DOMAINS = ["clipart", "infograph", "painting", "quickdraw", "real", "sketch"]

Listing = list[tuple[Path, int]]
"""Image files with their labels."""


@SOURCES.register("folder")
def folder(config: DataConfig) -> SourceData:
    """Any folder of class folders, named by ``data.folder`` (ImageNet subsets, ImageNet-R, CUB, data of your own).

    Either ``<folder>/train/<class>/…`` and ``<folder>/test/…`` (or ``val``), or ``<folder>/<class>/…``, of which
    ``data.test_fraction`` of every class is held out.
    """
    if not config.folder:
        raise ConfigError(
            "scenario.source=folder needs data.folder: the name of a folder of class folders within data.root"
        )
    path = require("folder", data_folder(config), "a folder of images per class")
    if (path / "train").is_dir():
        return read_split_folder("folder", config, path)
    files, names = _classes(path)
    train, test = _spread_test_files(files, config.test_fraction)
    if not test:
        raise DataError(
            f"no class of {path} has enough images for a test set of data.test_fraction={config.test_fraction}"
        )
    return _read(config, train, test, names)


@SOURCES.register("tiny_imagenet")
def tiny_imagenet(config: DataConfig) -> SourceData:
    """Tiny-ImageNet: 200 classes, 100,000 training and 10,000 validation images (used as test), 64×64 RGB (Le & Yang 2015)."""
    path = data_folder(config, "tiny-imagenet-200")
    what = "the unpacked tiny-imagenet-200.zip, with train/, val/ and val/val_annotations.txt"
    require("tiny_imagenet", path / "train", what)
    files, names = _classes(path / "train", below="images")
    number = {name: label for label, name in enumerate(names)}
    annotations = require("tiny_imagenet", path / "val" / "val_annotations.txt", what)
    test = []
    for line in annotations.read_text().splitlines():
        name, _, rest = line.partition("\t")
        wnid = rest.split("\t")[0]
        if wnid not in number:
            raise DataError(f"{annotations} gives {name} the class {wnid!r}, which is no folder in {path / 'train'}")
        test.append((path / "val" / "images" / name, number[wnid]))
    return verified("tiny_imagenet", _read(config, files, sorted(test), names), path)


@SOURCES.register("mini_imagenet")
def mini_imagenet(config: DataConfig) -> SourceData:
    """Mini-ImageNet: 100 classes of 600 images, 84×84 RGB (Vinyals et al. 2016), below ``miniimagenet/``.

    Class folders directly below, or below train/, val/ and test/ (the few-shot split, whose classes are pooled here); of
    every class's files in alphabetical order each sixth is a test image: 500 + 100 of 600, as in De Lange et al. 2023.
    """
    path = require("mini_imagenet", data_folder(config, "miniimagenet"), "the 100 class folders")
    parts = [path / part for part in ("train", "val", "test") if (path / part).is_dir()] or [path]
    listings = [_classes(part) for part in parts]
    names = sorted(name for _, names in listings for name in names)
    number = {name: label for label, name in enumerate(names)}
    if len(number) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(
            f"the class {twice} is in more than one of {', '.join(part.name for part in parts)} below {path}"
        )
    files = sorted((file, number[own[label]]) for listing, own in listings for file, label in listing)
    sized = replace(config, image_size=config.image_size or 84)
    return verified("mini_imagenet", _read(sized, *_spread_test_files(files, 1 / 6), names), path)


@SOURCES.register("domainnet")
def domainnet(config: DataConfig) -> SourceData:
    """DomainNet: 345 classes in six domains (Peng et al. 2019), below ``domainnet/``.

    ``<domain>/<class>/…`` with the official lists ``<domain>_train.txt`` and ``<domain>_test.txt`` (path and class number a
    line); domains without a folder are left out. scenario.image_size has to be set, since the images differ in size.
    """
    path = require("domainnet", data_folder(config, "domainnet"), "the folders of the domains and their file lists")
    domains = [domain for domain in DOMAINNET_DOMAINS if (path / domain).is_dir()]
    if not domains:
        raise DataError(
            f"{path} holds no domain of domainnet: put at least one there of {', '.join(DOMAINNET_DOMAINS)}"
        )
    splits: dict[str, list[Listing]] = {"train": [], "test": []}
    names: dict[int, str] = {}
    for domain in domains:
        for split, listings in splits.items():
            listed = require("domainnet", path / f"{domain}_{split}.txt", "DomainNet's official list of that name")
            rows = [line.rsplit(" ", 1) for line in listed.read_text().splitlines() if line]
            listings.append(sorted((path / name, int(label)) for name, label in rows))
            names.update((label, file.parent.name) for file, label in listings[-1])
    class_names = [names.get(label, f"class {label}") for label in range(1 + max(names))]
    return verified("domainnet", _read_domains(config, splits["train"], splits["test"], class_names, domains), path)


@SOURCES.register("pacs")
def pacs(config: DataConfig) -> SourceData:
    """PACS: 9,991 images of 7 classes in the domains art_painting, cartoon, photo, sketch (Li et al. 2017), below ``PACS/``.

    ``<domain>/<class>/…``; of every class of every domain each tenth file in alphabetical order is a test image, since
    no official test split exists. A resized copy is read with ``data.folder``.
    """
    path = data_folder(config, "PACS")
    train: list[Listing] = []
    test: list[Listing] = []
    names: list[str] = []
    for domain in PACS_DOMAINS:
        require("pacs", path / domain, "the images of that domain, a folder per class")
        files, found = _classes(path / domain)
        _same_classes(path / PACS_DOMAINS[0], names or found, path / domain, found)
        names = found
        kept, held_out = _spread_test_files(files, 0.1)
        train.append(kept)
        test.append(held_out)
    return verified("pacs", _read_domains(config, train, test, names, PACS_DOMAINS), path)


def read_split_folder(source: str, config: DataConfig, path: Path) -> SourceData:
    """``<path>/train/<class>/…`` and ``<path>/test/<class>/…`` (or ``val``)."""
    require(source, path / "train", "class folders with the training images")
    test_folder = path / "val" if (path / "val").is_dir() and not (path / "test").is_dir() else path / "test"
    require(source, test_folder, "class folders with the test images")
    train, names = _classes(path / "train")
    test, test_names = _classes(test_folder)
    _same_classes(path / "train", names, test_folder, test_names)
    return _read(config, train, test, names)


def _classes(path: Path, below: str = "") -> tuple[Listing, list[str]]:
    """Image files with labels, and the class names, of ``<path>/<class>/<below>/…``."""
    folders = sorted((child for child in path.iterdir() if child.is_dir()), key=lambda child: child.name)
    folders = [child for child in folders if not child.name.startswith(".")]
    files = [
        (file, label)
        for label, child in enumerate(folders)
        for file in sorted(file for file in (child / below).rglob("*") if file.suffix.lower() in SUFFIXES)
    ]
    if not files:
        raise DataError(f"{path} holds no images: it has to hold one folder of images per class")
    return files, [child.name for child in folders]


def _same_classes(one: Path, classes: list[str], other: Path, other_classes: list[str]) -> None:
    odd = sorted(set(classes) ^ set(other_classes))
    if odd:
        raise DataError(f"the classes below {one} and {other} differ: {', '.join(odd[:5])}")


def _spread_test_files(files: Listing, fraction: float) -> tuple[Listing, Listing]:
    """Training and test files: of each class in its order, file i is a test file where ⌊(i + 1) f⌋ > ⌊i f⌋."""
    train: Listing = []
    test: Listing = []
    position: dict[int, int] = {}
    for file, label in files:
        index = position.get(label, 0)
        position[label] = index + 1
        (test if int((index + 1) * fraction + 1e-9) > int(index * fraction + 1e-9) else train).append((file, label))
    return train, test


def _read(config: DataConfig, train: Listing, test: Listing, names: list[str]) -> SourceData:
    """Decode both splits, into one array so that they get one image size."""
    pixels = decode_files([file for file, _ in train + test], config.image_size, "RGB", data_root(config))
    labels = np.array([label for _, label in train + test], np.int64)
    n = len(train)
    return SourceData(ImageSet(pixels[:n], labels[:n]), ImageSet(pixels[n:], labels[n:]), names, *IMAGENET_STATISTICS)


def _read_domains(
    config: DataConfig, train: list[Listing], test: list[Listing], names: list[str], domains: list[str]
) -> SourceData:
    """As :func:`_read`, with one listing per domain."""
    every_train, every_test = ([row for listing in listings for row in listing] for listings in (train, test))
    data = _read(config, every_train, every_test, names)

    def with_domains(images: ImageSet, listings: list[Listing]) -> ImageSet:
        return replace(images, domains=np.repeat(np.arange(len(listings)), [len(listing) for listing in listings]))

    return replace(
        data, train=with_domains(data.train, train), test=with_domains(data.test, test), domain_names=domains
    )
