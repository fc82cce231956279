"""Where data sets lie, what is said when one is missing, and whether its content is the one it should be."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from platformdirs import user_cache_path

from clbench.config import DataConfig
from clbench.data.images import SourceData
from clbench.errors import DataError


def data_root(config: DataConfig) -> Path:
    """``data.root``, else the environment variable ``CLBENCH_DATA``, else a cache folder of the user's."""
    chosen = config.root or os.environ.get("CLBENCH_DATA")
    return Path(chosen).expanduser().absolute() if chosen else user_cache_path("clbench") / "data"


def data_folder(config: DataConfig, usual: str = "") -> Path:
    """``data.folder`` within the root, or the source's ``usual`` folder where the user names none."""
    return data_root(config) / (Path(config.folder).expanduser() if config.folder else usual)


def require(source: str, config: DataConfig, path: Path, what: str) -> Path:
    """``path``, where it exists.

    Raises:
        DataError: it does not; says what belongs there, or which option names a folder that is not there.
    """
    if not path.exists():
        raise DataError(_missing(source, config, path, what))
    return path


def _missing(source: str, config: DataConfig, path: Path, what: str) -> str:
    root = data_root(config)
    if config.root:
        origin = f"data.root={config.root}"
    else:
        origin = f"CLBENCH_DATA={root}" if os.environ.get("CLBENCH_DATA") else f"the default data folder {root}"
    if not root.is_dir():
        wrong = "is no folder" if root.exists() else "does not exist"
        return f"{origin} {wrong}: set data.root to the folder that holds the data of {source}"
    if config.folder and not data_folder(config).is_dir():
        wrong = "is no folder" if data_folder(config).exists() else "does not exist"
        return (
            f"data.folder={config.folder} {wrong} in {origin}: name a folder there with {what}, or set data.root to the folder "
            "that holds it"
        )
    return f"the data of {source} are not at {path}: put {what} there, or set data.root to the folder that holds them"


def read_or_download(source: str, config: DataConfig, expected: Path, what: str, read: Callable[[bool], Any]) -> Any:
    """``read(download=False)``, or ``read(download=True)`` where data are missing and downloading is allowed.

    Args:
        source: name of the data source.
        config: says whether downloading is allowed.
        expected: the folder or file that has to exist.
        what: what belongs there, for the message.
        read: reads the data through torchvision; given True, fetches them first.

    Raises:
        DataError: the data are missing and cannot be downloaded, or they are damaged; says what belongs where.
    """
    try:
        return read(False)
    except Exception as error:  # a truncated file can make a reader fail in any way
        cause = error
    reason = f"damaged: {_in_one_line(cause)}"
    if isinstance(cause, RuntimeError | FileNotFoundError):  # torchvision's ways to say that something is missing
        reason = "something is missing, and data.download=false"
        if config.download:
            try:
                return read(True)
            except Exception as error:  # whatever the network, the server or the archive did
                same = str(error) == str(cause)
                reason = f"damaged: {_in_one_line(cause)}" if same else f"the download failed: {_in_one_line(error)}"
    raise DataError(
        f"the data of {source} cannot be read from {expected} ({reason}): put {what} there, "
        "or set data.root to the folder that holds them"
    ) from cause


def verified(source: str, data: SourceData, location: Path | str) -> SourceData:
    """The same data, with a note where they are a known inexact copy.

    The hash of each split is compared with ``content_hashes.json``: per source and split the hash of the official data, and
    the hashes of copies that are known to differ, each with what to tell the reader. A source that is not listed there, or whose
    official hash is null, is not checked: its official content was not at hand when this was written.

    Args:
        source: name of the data source.
        data: what was read.
        location: where it was read from, for the message.

    Raises:
        DataError: a split is neither the official one nor a known copy.
    """
    known = _known_hashes().get(source)
    if known is None:
        return data
    notes = []
    for split in ("train", "test"):
        samples = getattr(data, split)
        found = samples.content_hash
        if found == known[split]:
            continue
        copies = {copy[split]: copy["note"] for copy in known.get("copies", [])}
        if found in copies:
            notes.append(copies[found])
        elif known[split] is not None:
            kind = "images" if samples.pixels.dtype == np.uint8 else "texts"
            raise DataError(
                f"the {split} {kind} of {source} at {location} are damaged or not the official ones: their content hash "
                f"is {found}, expected {known[split]}; delete that copy and fetch it again"
            )
    return replace(data, note="; ".join(dict.fromkeys(notes))) if notes else data


@cache
def _known_hashes() -> dict[str, Any]:
    return json.loads((Path(__file__).parent / "content_hashes.json").read_text(encoding="utf-8"))


def _in_one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
