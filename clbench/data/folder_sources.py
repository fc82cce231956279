"""Data sets that are folders of image files: ImageNet subsets, ImageNet-R and -A, CUB, Tiny- and Mini-ImageNet, DomainNet, PACS.

Classes are folder names in alphabetical order, unless a list of files numbers them; files within a class too. Where a data set
has no split of its own, every class's files are dealt out by a fixed rule (:func:`_spread_test_files`), so that everybody gets
the same test images. ``data.folder`` names the folder within the root where it is not the usual one. All are normalised with
ImageNet's statistics, as usual for these sets; ``scenario.mean`` and ``scenario.std`` change that.
"""

import logging
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np

from clbench.config import DataConfig
from clbench.data.decode import decode_files
from clbench.data.image_folders import (
    LeftOut,
    Listing,
    class_folders,
    in_words,
    is_hidden,
    listed_files,
    named,
    refuse_contradictions,
    same_classes,
    text_lines,
)
from clbench.data.images import ImageSet, SourceData
from clbench.data.location import data_folder, data_root, require, verified
from clbench.data.same_images import refuse_or_note
from clbench.errors import ConfigError, DataError
from clbench.registry import SOURCES

log = logging.getLogger(__name__)

IMAGENET_STATISTICS = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and standard deviation that torchvision's models expect."""

PACS_DOMAINS = ["art_painting", "cartoon", "photo", "sketch"]
DOMAINNET_DOMAINS = ["clipart", "infograph", "painting", "quickdraw", "real", "sketch"]


@SOURCES.register("folder")
def folder(config: DataConfig) -> SourceData:
    """Any folder of class folders, named by ``data.folder`` (ImageNet subsets, data of your own).

    Either ``<folder>/train/<class>/…`` and ``<folder>/test/…`` (or ``val``), or ``<folder>/<class>/…``. Of these the lists
    ``<folder>/train.txt`` and ``<folder>/test.txt`` say which image is in which split (a line is a file's path within the
    folder, and after a space, tab or comma its class number where the list numbers the classes; the classes are the numbers that
    occur); without lists ``data.test_fraction`` of every class is held out.

    Read are files with the suffixes in :data:`clbench.data.image_folders.SUFFIXES`, as image viewers show them. Hidden files and
    folders are no data; what else is left out is noted in the record. Refused are a class without images, a file that is listed
    twice or cannot be decoded, and images under two classes or in both splits (``data.duplicates=keep`` keeps these).
    """
    if not config.folder:
        raise ConfigError(
            "scenario.source=folder needs data.folder: the name of a folder of class folders within data.root"
        )
    path = require("folder", config, data_folder(config), "a folder of images per class")
    return _read_with_the_split_found("folder", config, path)


@SOURCES.register("imagenet_r")
def imagenet_r(config: DataConfig) -> SourceData:
    """ImageNet-R: 30,000 renditions of 200 ImageNet classes (Hendrycks et al., arXiv:2006.16241), below ``imagenet-r/``.

    Class folders as in its archive, which has no split: that of Smith et al. 2023 (24,000 and 6,000 images) is taken from
    lists as ``source=folder`` reads them, which GT-RIPL/CODA-Prompt and zugexiaodui/VPTinNSforCL publish. Or train/ and test/,
    as LAMDA-CL/LAMDA-PILOT packs it. Else ``data.test_fraction`` of every class is held out.
    """
    path = require("imagenet_r", config, data_folder(config, "imagenet-r"), "the 200 class folders of imagenet-r.tar")
    return verified("imagenet_r", _read_with_the_split_found("imagenet_r", config, path), path)


@SOURCES.register("imagenet_a")
def imagenet_a(config: DataConfig) -> SourceData:
    """ImageNet-A: 7,500 photographs of 200 ImageNet classes that mislead networks (Hendrycks et al. 2021), below ``imagenet-a/``.

    Class folders as in its archive (arXiv:1907.07174), which has no split, with the same choices as ``imagenet_r``. No lists of
    a split are published: jpmorganchase/ovor reads train/ and test/ that its user has made, LAMDA-CL/LAMDA-PILOT offers a copy
    of its own.
    """
    path = require("imagenet_a", config, data_folder(config, "imagenet-a"), "the 200 class folders of imagenet-a.tar")
    return verified("imagenet_a", _read_with_the_split_found("imagenet_a", config, path), path)


@SOURCES.register("cub200")
def cub200(config: DataConfig) -> SourceData:
    """CUB-200-2011: 200 species of birds, 5,994 training and 5,794 test images (Wah et al. 2011), below ``CUB_200_2011/``.

    The folder of the archive: ``images/<class>/…`` with ``images.txt`` (number and path of every image) and
    ``train_test_split.txt`` (its number, and 1 for training or 0). A copy that is sorted into train/ and test/, as
    LAMDA-CL/LAMDA-PILOT offers it, is read with ``scenario.source=folder data.folder=<that copy>``.
    """
    path = data_folder(config, "CUB_200_2011")
    what = "the unpacked CUB_200_2011.tgz, with images/, images.txt and train_test_split.txt"
    paths, splits = (
        _numbered(require("cub200", config, path / name, what)) for name in ("images.txt", "train_test_split.txt")
    )
    odd = paths.keys() ^ splits.keys()
    if odd:
        raise DataError(f"image {min(odd)} is in only one of {path / 'images.txt'} and {path / 'train_test_split.txt'}")
    files = {number: path / "images" / name for number, name in paths.items()}
    names = sorted({file.parent.name for file in files.values()})
    label = {name: i for i, name in enumerate(names)}
    train, test = (
        sorted((file, label[file.parent.name]) for number, file in files.items() if splits[number] == mark)
        for mark in ("1", "0")
    )
    return verified("cub200", _read(config, train, test, names), path)


@SOURCES.register("tiny_imagenet")
def tiny_imagenet(config: DataConfig) -> SourceData:
    """Tiny-ImageNet: 200 classes, 100,000 training and 10,000 validation images (used as test), 64×64 RGB (Le & Yang 2015)."""
    path = data_folder(config, "tiny-imagenet-200")
    what = "the unpacked tiny-imagenet-200.zip, with train/, val/ and val/val_annotations.txt"
    require("tiny_imagenet", config, path / "train", what)
    files, names, _ = class_folders(path / "train", below="images")
    number = {name: label for label, name in enumerate(names)}
    annotations = require("tiny_imagenet", config, path / "val" / "val_annotations.txt", what)
    test = []
    for line in text_lines(annotations):
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
    path = require("mini_imagenet", config, data_folder(config, "miniimagenet"), "the 100 class folders")
    parts = [path / part for part in ("train", "val", "test") if (path / part).is_dir()] or [path]
    listings = [class_folders(part) for part in parts]
    names = sorted(name for _, names, _ in listings for name in names)
    number = {name: label for label, name in enumerate(names)}
    if len(number) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(
            f"the class {twice} is in more than one of {', '.join(part.name for part in parts)} below {path}"
        )
    files = sorted((file, number[own[label]]) for listing, own, _ in listings for file, label in listing)
    sized = replace(config, image_size=config.image_size or 84)
    return verified("mini_imagenet", _read(sized, *_spread_test_files(files, 1 / 6), names), path)


@SOURCES.register("domainnet")
def domainnet(config: DataConfig) -> SourceData:
    """DomainNet: 345 classes in six domains (Peng et al. 2019), below ``domainnet/``.

    ``<domain>/<class>/…`` with the official lists ``<domain>_train.txt`` and ``<domain>_test.txt`` (path and class number a
    line); domains without a folder are left out. scenario.image_size has to be set, since the images differ in size.
    """
    path = require(
        "domainnet", config, data_folder(config, "domainnet"), "the folders of the domains and their file lists"
    )
    domains = [domain for domain in DOMAINNET_DOMAINS if (path / domain).is_dir()]
    if not domains:
        raise DataError(
            f"{path} holds no domain of domainnet: put at least one there of {', '.join(DOMAINNET_DOMAINS)}"
        )
    lists = [path / f"{domain}_{split}.txt" for split in ("train", "test") for domain in domains]
    for listed in lists:
        require("domainnet", config, listed, "DomainNet's official list of that name")
    listings, names = listed_files(path, lists)
    train, test = listings[: len(domains)], listings[len(domains) :]
    return verified("domainnet", _read_domains(config, train, test, names, domains), path)


@SOURCES.register("domainnet_200")
def domainnet_200(config: DataConfig) -> SourceData:
    """A part of DomainNet: 200 classes, 47,532 and 20,450 images of six domains (Wang et al. 2023), below ``domainnet/``.

    The images that the lists ``domainnet/train.txt`` and ``domainnet/test.txt`` name, with the classes that they number:
    train.txt and test.txt of iamwangyabin/ESN, whose stream Lu et al. 2024 use as well (sdomain_train.txt and sdomain_val.txt
    of zugexiaodui/VPTinNSforCL).
    """
    path = require(
        "domainnet_200",
        config,
        data_folder(config, "domainnet"),
        "the folders of the domains and the lists of iamwangyabin/ESN",
    )
    return verified("domainnet_200", _read_by_lists("domainnet_200", config, path), path)


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
        require("pacs", config, path / domain, "the images of that domain, a folder per class")
        files, found, _ = class_folders(path / domain)
        same_classes(path / PACS_DOMAINS[0], names or found, path / domain, found)
        names = found
        kept, held_out = _spread_test_files(files, 0.1)
        train.append(kept)
        test.append(held_out)
    return verified("pacs", _read_domains(config, train, test, names, PACS_DOMAINS), path)


def read_split_folder(source: str, config: DataConfig, path: Path) -> SourceData:
    """``<path>/train/<class>/…`` and ``<path>/test/<class>/…`` (or ``val``)."""
    require(source, config, path / "train", "class folders with the training images")
    test_folder = path / "val" if (path / "val").is_dir() and not (path / "test").is_dir() else path / "test"
    require(source, config, test_folder, "class folders with the test images")
    train, names, left_out = class_folders(path / "train")
    test, test_names, also_left_out = class_folders(test_folder)
    same_classes(path / "train", names, test_folder, test_names)
    left_out += also_left_out
    for beside in sorted(path.iterdir()):
        is_list = beside.name in ("train.txt", "test.txt")
        if is_list or (
            beside.is_dir() and beside.name not in ("train", test_folder.name) and not is_hidden(beside.name)
        ):
            left_out[f"{beside.name} beside train"] += 1
    return _read(config, train, test, names, own=source == "folder", left_out=left_out)


def _read_with_the_split_found(source: str, config: DataConfig, path: Path) -> SourceData:
    """The split into train/ and test/, else that of train.txt and test.txt, else a part of every class of ``path``."""
    if (path / "train").is_dir():
        return read_split_folder(source, config, path)
    if (path / "train.txt").exists() or (path / "test.txt").exists():
        return _read_by_lists(source, config, path)
    files, names, left_out = class_folders(path)
    train, test = _spread_test_files(files, config.test_fraction)
    if not test:
        raise DataError(
            f"no class of {path} has enough images for a test set of data.test_fraction={config.test_fraction}"
        )
    untested = [name for label, name in enumerate(names) if label not in {label for _, label in test}]
    if untested:
        raise DataError(
            f"{named(untested, 'class folder')} in {path} would have no test image: data.test_fraction={config.test_fraction} of "
            "so few is less than one"
        )
    note = f"{path.name} came without a split: data.test_fraction={config.test_fraction} of every class is held out as test data"
    data = _read(config, train, test, names, own=source == "folder", left_out=left_out)
    return replace(data, note=f"{note}; {data.note}" if data.note else note)


def _read_by_lists(source: str, config: DataConfig, path: Path) -> SourceData:
    """The images that ``<path>/train.txt`` and ``<path>/test.txt`` name."""
    what = "the list of that split's images, a path a line"
    lists = [require(source, config, path / name, what) for name in ("train.txt", "test.txt")]
    (train, test), names = listed_files(path, lists)
    for listed, listing in zip(lists, (train, test), strict=True):
        if not listing:
            raise DataError(f"{listed} names no images")
    refuse_contradictions(lists, [train, test], names)
    return _read(config, train, test, names, own=source == "folder")


def _numbered(file: Path) -> dict[str, str]:
    """The lines of a list of CUB-200-2011: an image's number, and what the list says of it."""
    lines = [line.split(maxsplit=1) for line in text_lines(file)]
    odd = next((line for line in lines if len(line) != 2), None)
    if odd is not None:
        raise DataError(f"{file} has a line {odd[0]!r}, which is not an image's number and something of it")
    return dict(lines)


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


def _read(
    config: DataConfig,
    train: Listing,
    test: Listing,
    names: list[str],
    own: bool = False,
    left_out: LeftOut | None = None,
) -> SourceData:
    """Decode both splits, into one array so that they get one image size.

    Data of the user's ``own``, and not of a published set, are decoded as image viewers show them. Images that occur twice are
    refused there, and what was ``left_out`` is noted.
    """
    files = [file for file, _ in train + test]
    pixels = decode_files(files, config.image_size, "RGB", data_root(config), as_shown=own)
    labels = np.array([label for _, label in train + test], np.int64)
    n, notes = len(train), []
    if own:
        notes = [in_words(left_out or Counter())]
        notes.append(refuse_or_note(files, pixels, labels, n, config.duplicates == "keep"))
    note = "; ".join(filter(None, notes))
    if note:
        log.warning("%s: %s", data_folder(config), note)
    sets = ImageSet(pixels[:n], labels[:n]), ImageSet(pixels[n:], labels[n:])
    return SourceData(*sets, names, *IMAGENET_STATISTICS, note=note)


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
