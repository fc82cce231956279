"""Which files of a folder are images, and of which class: by class folders, or by lists of files."""

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from clbench.errors import DataError

SUFFIXES = {
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".webp", ".bmp", ".ppm", ".pgm", ".pbm", ".pnm", ".tif", ".tiff",
}  # fmt: skip
"""Of files that are read as images, in small or capital letters."""

SYSTEM_NAMES = {
    "__macosx",
    "thumbs.db",
    "desktop.ini",
    "$recycle.bin",
    "system volume information",
    "lost+found",
    "@eadir",
}
"""What operating systems, archives and storage boxes leave in folders, in small letters."""

LINE = re.compile(r"(?P<path>.+?)[ \t,;]+(?P<number>\d+)")
"""A line of a list that numbers the classes."""

FORMAT = "a line is a path within the folder, or path, space (or tab or comma) and class number"

Listing = list[tuple[Path, int]]
"""Image files with their labels."""

LeftOut = Counter[str]
"""What lies in a folder of images and is not read, in words → how often."""


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is none of the user's data: hidden, or left there by a system."""
    return name.startswith(".") or name.lower() in SYSTEM_NAMES


def is_image(name: str) -> bool:
    """Whether a file of this name is read as an image."""
    return os.path.splitext(name)[1].lower() in SUFFIXES  # noqa: PTH122


def class_folders(path: Path, below: str = "") -> tuple[Listing, list[str], LeftOut]:
    """Image files with labels, the class names, and what was left out, of ``<path>/<class>/<below>/…``.

    Every folder that is not hidden is a class, in alphabetical order. Its images may lie in folders of their own, links are
    followed.

    Raises:
        DataError: there are no images, a class has none, a folder cannot be read, or two names can hardly be told apart.
    """
    left_out: LeftOut = Counter()
    folders = []
    for child in sorted(path.iterdir(), key=lambda child: child.name):
        if child.is_dir() and not is_hidden(child.name):
            folders.append(child)
        else:
            left_out.update(_why_left_out(child.name, child.is_dir(), beside_classes=True))
    files: Listing = []
    empty = []
    for label, folder in enumerate(folders):
        own = sorted(_images_below(folder / below, left_out))
        files += [(file, label) for file in own]
        if not own:
            empty.append(folder.name)
    if not files:
        raise DataError(f"{path} holds no images: it has to hold one folder of images per class")
    if empty:
        raise DataError(
            f"{named(empty, 'folder')} in {path} would be classes without an image: put images there, take them away, or hide "
            "them by a dot before the name"
        )
    names = [folder.name for folder in folders]
    refuse_look_alikes(names, path)
    return files, names, left_out


def refuse_look_alikes(names: list[str], path: Path) -> None:
    """Refuse class names that differ in case alone, or that look the same, or that are no text.

    Raises:
        DataError: naming them.
    """
    alike: dict[str, str] = {}
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise DataError(f"the name of the class folder {name!a} in {path} is not UTF-8: rename it") from None
        other = alike.setdefault(unicodedata.normalize("NFC", name).casefold(), name)
        if other != name:
            raise DataError(
                f"the class folders {other} and {name} in {path} differ in case or in how accents are written alone, and are one "
                "folder on other systems: merge them, or rename one"
            )


def _images_below(folder: Path, left_out: LeftOut) -> Iterator[Path]:
    """The image files in ``folder`` and in the folders in it; counts what is left out."""
    entered = set()
    for where, folders, files in os.walk(folder, followlinks=True, onerror=_cannot_be_read):
        real = os.path.realpath(where)
        if real in entered:  # a link back
            folders.clear()
            continue
        entered.add(real)
        for name in folders:
            if is_hidden(name):
                left_out.update(_why_left_out(name, is_folder=True))
        folders[:] = [name for name in folders if not is_hidden(name)]
        for name in files:
            file = Path(where, name)
            if is_image(name) and not is_hidden(name) and (file.is_file() or file.is_symlink()):
                yield file  # a link to nothing as well, which then is missed
            else:
                left_out.update(_why_left_out(name, is_folder=False))


def _why_left_out(name: str, is_folder: bool, beside_classes: bool = False) -> list[str]:
    """In words what is left out, as a list of at most one; what a system leaves behind is not worth a word."""
    if name.lower() in SYSTEM_NAMES or name in (".DS_Store", ".clbench-cache"):
        return []
    if is_folder:
        return ["hidden folder"]
    if is_hidden(name):
        return ["hidden image file"] if is_image(name) else []
    if beside_classes:  # lists, licences and notes are at home there
        return ["image file beside the class folders"] if is_image(name) else []
    suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122
    return [f"file *{suffix}" if suffix and not is_image(name) else "file without a suffix"]


def _cannot_be_read(error: OSError) -> None:
    raise DataError(f"the folder {error.filename} cannot be read: {error.strerror}") from error


def in_words(left_out: LeftOut) -> str:
    """What was left out as a clause, or nothing.

    >>> in_words(Counter({"file *.xml": 3, "hidden folder": 1}))
    'left out: 3 × file *.xml, 1 × hidden folder'
    """
    parts = ", ".join(f"{count} × {what}" for what, count in sorted(left_out.items()))
    return f"left out: {parts}" if parts else ""


def same_classes(one: Path, classes: list[str], other: Path, other_classes: list[str]) -> None:
    """Refuse two folders whose class folders differ."""
    odd = sorted(set(classes) ^ set(other_classes))
    if odd:
        raise DataError(f"the classes below {one} and {other} differ: {', '.join(odd[:5])}")


def named(names: list[str], what: str) -> str:
    """``the folders a, b and 3 more``: a few of the names, and how many more there are."""
    few = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    plural = "es" if what.endswith("s") else "s"
    return f"the {what}{plural if len(names) > 1 else ''} {few}"


# ---- lists of files -------------------------------------------------------------------------------------------------------


def listed_files(root: Path, lists: list[Path]) -> tuple[list[Listing], list[str]]:
    """The listing of each list of files, and the class names.

    The classes are those that the lists number, in the order of the numbers; a number that does not occur is no class. Where the
    lists number none, they are the folders that the files lie in, in alphabetical order.

    Raises:
        DataError: a list is no text, a file that it names does not exist, or only some files have numbers.
    """
    rows = [_rows(root, listed) for listed in lists]
    numbers = {number for part in rows for _, number in part}
    if None in numbers and len(numbers) > 1:
        raise DataError(f"{' and '.join(map(str, lists))} number the classes of some images and not of others")
    if None in numbers:
        names = sorted({file.parent.name for part in rows for file, _ in part})
        label = {name: i for i, name in enumerate(names)}
        return [sorted((file, label[file.parent.name]) for file, _ in part) for part in rows], names
    order = sorted(number for number in numbers if number is not None)
    position = {number: label for label, number in enumerate(order)}
    listings = [sorted((file, position[number]) for file, number in part if number is not None) for part in rows]
    return listings, _names_of_numbers(order, rows)


def _names_of_numbers(order: list[int], rows: list[list[tuple[Path, int | None]]]) -> list[str]:
    """The folder of a numbered class where that is its own, else ``class <number>``."""
    folders: dict[int | None, set[str]] = {}
    for file, number in (row for part in rows for row in part):
        folders.setdefault(number, set()).add(file.parent.name)
    shared = Counter(folder for own in folders.values() for folder in own)
    return [
        next(iter(folders[number]))
        if len(folders[number]) == 1 and shared[next(iter(folders[number]))] == 1
        else f"class {number}"
        for number in order
    ]


def _rows(root: Path, listed: Path) -> list[tuple[Path, int | None]]:
    """The files that a list names, with their class numbers or None.

    Raises:
        DataError: the list is not UTF-8, or names files that do not exist.
    """
    rows: list[tuple[Path, int | None]] = []
    missing = []
    for line in text_lines(listed):
        match = LINE.fullmatch(line)
        path, number = (match["path"], int(match["number"])) if match else (line, None)
        file = _existing(root, path.strip("\"'"))
        if file is None:
            missing.append(line)
        else:
            rows.append((file, number))
    if missing:
        raise DataError(
            f"{listed} names {len(missing)} of {len(missing) + len(rows)} images that are not below {root}, such as "
            f"{', '.join(map(repr, missing[:3]))} ({FORMAT})"
        )
    return rows


def text_lines(file: Path) -> list[str]:
    """The lines of a text file without the blanks around them, without empty ones and Windows' mark at the beginning.

    Raises:
        DataError: it is not UTF-8.
    """
    try:
        return [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8 text: {error}") from error


def _existing(root: Path, path: str) -> Path | None:
    """The file that a list means: as it is written, or with other separators or another way to write accents."""
    for form in (path, path.replace("\\", "/")):
        for spelt in (form, unicodedata.normalize("NFC", form), unicodedata.normalize("NFD", form)):
            file = Path(os.path.normpath(root / spelt))
            if file.is_file():
                return file
    return None


def refuse_contradictions(lists: list[Path], listings: list[Listing], names: list[str]) -> None:
    """Refuse lists that name a file twice: under two classes, for training and test, or the same way.

    Raises:
        DataError: naming the file.
    """
    seen: dict[Path, tuple[Path, int]] = {}
    for listed, listing in zip(lists, listings, strict=True):
        for file, label in listing:
            if file not in seen:
                seen[file] = listed, label
                continue
            first, other = seen[file]
            if other != label:
                raise DataError(
                    f"the lists give {file} two classes, {names[other]} and {names[label]}: remove one line"
                )
            where = f"{listed} names {file} twice" if listed == first else f"{first} and {listed} both name {file}"
            raise DataError(f"{where}: remove one line")
