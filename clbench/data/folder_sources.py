"""Data sets that are folders of image files: ImageNet subsets, ImageNet-R, CUB, Tiny- and Mini-ImageNet, DomainNet, PACS.

Classes are folder names in alphabetical order, files within a class too. Where a data set has no split of its own, every
class's files are dealt out by a fixed rule (:func:`_spread_test_files`), so that everybody gets the same test images.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np

from clbench.config import DataConfig
from clbench.data.decode import decode_files
from clbench.data.images import ImageSet, SourceData
from clbench.data.location import data_root, require, verified
from clbench.errors import DataError
from clbench.registry import SOURCES

IMAGENET_STATISTICS = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".tif", ".tiff"}
Listing = list[tuple[Path, int]]


@SOURCES.register("folder")
def folder(config: DataConfig) -> SourceData:
    """Any folder of class folders, named by ``data.folder`` (ImageNet subsets, ImageNet-R, CUB, data of your own).

    Either ``<folder>/train/<class>/…`` and ``<folder>/test/…`` (or ``val``), or ``<folder>/<class>/…``, of which
    ``data.test_fraction`` of every class is held out.
    """
    if not config.folder:
        raise DataError("scenario.source=folder needs data.folder, the folder of class folders within data.root")
    path = require("folder", data_root(config) / config.folder, "a folder of class folders")
    if (path / "train").is_dir():
        return read_split_folder("folder", config, path)
    files, names = _classes(path)
    train, test = _spread_test_files(files, config.test_fraction)
    return _source(config, train, test, names)


@SOURCES.register("tiny_imagenet")
def tiny_imagenet(config: DataConfig) -> SourceData:
    """Tiny-ImageNet: 200 classes, 100,000 training and 10,000 validation images (used as test), 64×64 RGB (Le & Yang 2015)."""
    path = data_root(config) / (config.folder or "tiny-imagenet-200")
    what = "the unpacked tiny-imagenet-200.zip, with train/, val/ and val/val_annotations.txt"
    require("tiny_imagenet", path / "train", what)
    files, names = _classes(path / "train", below="images")
    number = {name: label for label, name in enumerate(names)}
    annotations = require("tiny_imagenet", path / "val" / "val_annotations.txt", what).read_text().splitlines()
    rows = [line.split("\t")[:2] for line in annotations if line]
    test = sorted((path / "val" / "images" / name, number[label]) for name, label in rows)
    return verified("tiny_imagenet", _source(config, files, test, names))


@SOURCES.register("mini_imagenet")
def mini_imagenet(config: DataConfig) -> SourceData:
    """Mini-ImageNet: 100 classes of 600 images, 84×84 RGB (Vinyals et al. 2016), below ``miniimagenet/``.

    Class folders directly below, or below train/, val/ and test/ (the few-shot split, whose classes are pooled here); of
    every class's files in alphabetical order each sixth is a test image: 500 + 100 of 600, as in De Lange et al. 2023.
    """
    path = require("mini_imagenet", data_root(config) / (config.folder or "miniimagenet"), "the 100 class folders")
    parts = [path / part for part in ("train", "val", "test") if (path / part).is_dir()] or [path]
    folders = sorted(
        (child for part in parts for child in part.iterdir() if child.is_dir()), key=lambda child: child.name
    )
    files = [(file, label) for label, child in enumerate(folders) for file in _images(child)]
    train, test = _spread_test_files(files, 1 / 6)
    sized = replace(config, image_size=config.image_size or 84)
    return verified("mini_imagenet", _source(sized, train, test, [child.name for child in folders]))


@SOURCES.register("domainnet")
def domainnet(config: DataConfig) -> SourceData:
    """DomainNet: 345 classes in six domains (Peng et al. 2019), below ``domainnet/``.

    ``<domain>/<class>/…`` with the official lists ``<domain>_train.txt`` and ``<domain>_test.txt`` (path and class number a
    line). scenario.image_size has to be set, since the images differ in size.
    """
    path = require(
        "domainnet", data_root(config) / (config.folder or "domainnet"), "the domain folders and their file lists"
    )
    domains = sorted(child.name for child in path.iterdir() if child.is_dir() and not child.name.startswith("."))
    splits: dict[str, list[Listing]] = {"train": [], "test": []}
    for domain in domains:
        for split, listings in splits.items():
            listed = require("domainnet", path / f"{domain}_{split}.txt", "DomainNet's official list of that name")
            rows = (line.rsplit(" ", 1) for line in listed.read_text().splitlines() if line)
            listings.append(sorted((path / name, int(label)) for name, label in rows))
    every = [row for listings in splits.values() for listing in listings for row in listing]
    names = [""] * (1 + max(label for _, label in every))
    for file, label in every:
        names[label] = file.parent.name
    return verified("domainnet", _domains_source(config, splits["train"], splits["test"], names, domains))


@SOURCES.register("pacs")
def pacs(config: DataConfig) -> SourceData:
    """PACS: 9,991 images of 7 classes in the domains art_painting, cartoon, photo, sketch (Li et al. 2017), below ``PACS/``.

    ``<domain>/<class>/…``; of every class of every domain each tenth file in alphabetical order is a test image, since
    no official test split exists. A resized copy is read with ``data.folder``.
    """
    path = require("pacs", data_root(config) / (config.folder or "PACS"), "the four domain folders")
    domains = sorted(child.name for child in path.iterdir() if child.is_dir() and not child.name.startswith("."))
    train, test, names = [], [], []
    for domain in domains:
        files, names = _classes(path / domain)
        kept, held_out = _spread_test_files(files, 0.1)
        train.append(kept)
        test.append(held_out)
    return verified("pacs", _domains_source(config, train, test, names, domains))


def read_split_folder(source: str, config: DataConfig, path: Path) -> SourceData:
    """``<path>/train/<class>/…`` and ``<path>/test/<class>/…`` (or ``val``)."""
    require(source, path / "train", "class folders with the training images")
    test_folder = path / "test" if (path / "test").is_dir() else path / "val"
    require(source, test_folder, "class folders with the test images")
    train, names = _classes(path / "train")
    test, test_names = _classes(test_folder)
    if test_names != names:
        odd = sorted(set(names) ^ set(test_names))
        raise DataError(f"the classes below {path / 'train'} and {test_folder} differ: {', '.join(odd[:5])}")
    return _source(config, train, test, names)


def _classes(path: Path, below: str = "") -> tuple[Listing, list[str]]:
    """Image files with labels, and the class names, of ``<path>/<class>/<below>/…``."""
    folders = sorted((child for child in path.iterdir() if child.is_dir()), key=lambda child: child.name)
    files = [(file, label) for label, child in enumerate(folders) for file in _images(child / below)]
    if not files:
        raise DataError(f"{path} holds no images: it has to hold one folder of images per class")
    return files, [child.name for child in folders]


def _images(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES)


def _spread_test_files(files: Listing, fraction: float) -> tuple[Listing, Listing]:
    """Training and test files: of each class in its order, file i is a test file where ⌊(i + 1) f⌋ > ⌊i f⌋."""
    train, test, position = [], [], {}
    for file, label in files:
        index = position.get(label, 0)
        position[label] = index + 1
        (test if int((index + 1) * fraction + 1e-9) > int(index * fraction + 1e-9) else train).append((file, label))
    return train, test


def _image_set(config: DataConfig, files: Listing) -> ImageSet:
    if not files:
        raise DataError(
            f"no class of {config.folder} has enough images for a test set of data.test_fraction={config.test_fraction}"
        )
    paths, labels = zip(*files, strict=True)
    pixels = decode_files(list(paths), config.image_size, "RGB", data_root(config))
    return ImageSet(pixels, np.array(labels, np.int64))


def _source(config: DataConfig, train: Listing, test: Listing, names: list[str]) -> SourceData:
    return SourceData(_image_set(config, train), _image_set(config, test), names, *IMAGENET_STATISTICS)


def _domains_source(
    config: DataConfig, train: list[Listing], test: list[Listing], names: list[str], domains: list[str]
) -> SourceData:
    def pooled(listings: list[Listing]) -> ImageSet:
        images = _image_set(config, [row for listing in listings for row in listing])
        domain = np.repeat(np.arange(len(listings)), [len(listing) for listing in listings])
        return ImageSet(images.pixels, images.labels, domain)

    return SourceData(pooled(train), pooled(test), names, *IMAGENET_STATISTICS, domain_names=domains)
