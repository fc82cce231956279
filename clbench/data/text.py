"""Texts as samples: their tokens, and the digests that say which texts they are.

A text becomes a row of ``data.length`` token numbers, int32. What is longer is cut off, and 0 stands behind the end of what is
shorter: all numbers of a tokenizer are raised by one, so that it stands nowhere else. Digests are of the text itself, so that a
stream's hash does not depend on how it is read.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from clbench.config import DataConfig
from clbench.data.images import ImageSet
from clbench.errors import ConfigError

BYTES = 256
"""Tokens where no tokenizer is named: the bytes of the text in UTF-8, raised by one."""


@dataclass(frozen=True)
class TextSet(ImageSet):
    """One split of texts; ``pixels`` are their tokens, int32 (N, L).

    Attributes:
        texts: the texts.
    """

    texts: tuple[str, ...] = ()

    @cached_property
    def digests(self) -> np.ndarray:
        """uint64 array (N, 2): a 128-bit digest of each text (UTF-8) and label."""
        digests = bytearray()
        for text, label in zip(self.texts, self.labels.astype("<i8"), strict=True):
            digests += hashlib.blake2b(text.encode() + b"\0" + label.tobytes(), digest_size=16).digest()
        return np.frombuffer(bytes(digests), "<u8").reshape(len(self), 2).astype(np.uint64)


def text_set(texts: list[str], labels: list[int], config: DataConfig, domains: np.ndarray | None = None) -> TextSet:
    """The texts with their tokens."""
    return TextSet(tokens(texts, config), np.asarray(labels, np.int64), domains, texts=tuple(texts))


def text_digest(text: str) -> int:
    """A number in 0..2**64 − 1 that depends on the text alone: what a set without a split of its own is dealt out by."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def note_of_cut(*splits: TextSet) -> str:
    """What a reader has to know of texts that are cut off, a clause or nothing; of those that just fit it takes some for cut."""
    full = np.concatenate([split.pixels[:, -1] > 0 for split in splits])
    length = splits[0].pixels.shape[1]
    n = int(full.sum())
    return f"{n:,} of the {len(full):,} texts fill all of data.length={length} tokens, and may be cut off" if n else ""


def refuse_foreign_tokens(table: Tensor, vocabulary: int, tokenizer: str | None, path: str | None) -> None:
    """Refuse a network that does not know the tokens, or knows them for others.

    Args:
        table: int32 (N, L), tokens as :func:`tokens` makes them.
        vocabulary: how many the network knows.
        tokenizer: ``data.tokenizer``.
        path: ``model.path``; None for a network of random weights.

    Raises:
        ConfigError: with the option to be set.
    """
    if path is not None and tokenizer != path:
        raise ConfigError(
            f"model.path={path} has learned the tokens of its own tokenizer, and data.tokenizer={tokenizer} makes others: set "
            f"data.tokenizer={path}"
        )
    most = int(table.max())
    if most > vocabulary:
        raise ConfigError(
            f"model.vocabulary={vocabulary} is fewer than the {most} tokens that data.tokenizer={tokenizer} makes: set "
            f"model.vocabulary={most} at least"
        )


def tokens(texts: list[str], config: DataConfig) -> np.ndarray:
    """int32 (len(texts), ``data.length``), see the module's docstring.

    Raises:
        ConfigError: ``data.tokenizer`` names no folder with a ``tokenizer.json``.
    """
    rows = token_numbers(texts, config.tokenizer)
    table = np.zeros((len(rows), config.length), np.int32)
    for row, numbers in zip(table, rows, strict=True):
        row[: len(numbers)] = [number + 1 for number in numbers[: config.length]]
    return table


def token_numbers(texts: Sequence[str], tokenizer: str | None, special: bool = True) -> list[list[int]]:
    """The numbers of every text's tokens, from 0; ``special``: with those that the tokenizer puts around a text."""
    if tokenizer is None:
        return [list(text.encode()) for text in texts]
    reader = library("tokenizers").Tokenizer.from_file(
        str(model_folder(tokenizer, "data.tokenizer", "tokenizer.json") / "tokenizer.json")
    )
    reader.no_padding()
    reader.no_truncation()
    return [encoding.ids for encoding in reader.encode_batch(list(texts), add_special_tokens=special)]


def library(name: str) -> Any:
    """The module of a library that only texts need; imported where one is read, since that takes seconds.

    Raises:
        ConfigError: it is not installed.
    """
    if find_spec(name) is None:
        raise ConfigError(f"networks that read texts need {name}, which is not installed: pip install 'clbench[text]'")
    return import_module(name)


def model_folder(name: str, option: str, file: str) -> Path:
    """The folder that ``name`` stands for: a path, or ``package:<name>`` for the folder within an installed package.

    Args:
        name: as the user gives it.
        option: by which option.
        file: what has to be there.

    Raises:
        ConfigError: there is none with such a file.
    """
    if not name.startswith("package:"):
        folders = [Path(name).expanduser()]
    else:
        package = find_spec(name.removeprefix("package:"))
        if package is None or package.submodule_search_locations is None:
            raise ConfigError(
                f"{option}={name}: no such package is installed: pip install {name.removeprefix('package:')}"
            )
        files = [found for place in package.submodule_search_locations for found in Path(place).rglob(file)]
        folders = [found.parent for found in sorted(files, key=lambda path: len(path.parts))]
    found = next((folder for folder in folders if (folder / file).is_file()), None)
    if found is None:
        raise ConfigError(f"{option}={name} names no folder with a {file}")
    return found
