"""Taking the command line apart: flags, folders of YAML files, overrides."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from clbench.errors import ConfigError, choose_from, nearest

GROUPS = ("strategy", "scenario", "model", "evaluator", "experiment", "debug", "protocol", "search_space")
"""What chooses a YAML file by its name."""

PLAIN = (
    "--help", "-h", "--hydra-help", "--version", "--run", "-r", "--multirun", "-m", "--resolve", "--shell-completion", "-sc",
)  # fmt: skip
VALUED = (
    "--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd",
    "--experimental-rerun",
)  # fmt: skip
OPTIONAL = ("--info", "-i")
"""Hydra's flags: without a value, with one, and with one or none."""

INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
"""What may follow ``--info``."""

WAYS = (("--run", "-r"), ("--multirun", "-m"), ("--cfg", "-c"), ("--info", "-i"), ("--shell-completion", "-sc"))
"""What can be done with a configuration, of which Hydra does one at a time."""

CFG = ("job", "hydra", "all")
"""What has to follow ``--cfg``."""

OF_HYDRA_ALONE = {
    "--hydra-help", "--shell-completion", "-sc", "--config-path", "-cp", "--config-name", "-cn", "--experimental-rerun",
}  # fmt: skip
"""Flags with which the rest is not about a configuration of clbench."""


@dataclass
class Arguments:
    """The command line, taken apart.

    Attributes:
        overrides: ``key=value``, ``+key=value``, ``~key`` and the like, in their order.
        flags: for Hydra, with their values; without ``--config-dir``.
        config_dirs: folders with YAML files of the user's.
    """

    overrides: list[str] = field(default_factory=list)
    flags: list[str] = field(default_factory=list)
    config_dirs: list[Path] = field(default_factory=list)

    @property
    def is_sweep(self) -> bool:
        """Whether many runs are asked for."""
        return bool({"-m", "--multirun"} & set(self.flags)) or "hydra.mode=MULTIRUN" in self.overrides

    @property
    def is_hydras(self) -> bool:
        """Whether Hydra alone knows what to do with it: shell completion and the like."""
        return bool(OF_HYDRA_ALONE & set(self.flags))

    @property
    def only_shows(self) -> bool:
        """Whether a configuration is to be shown, and not run."""
        return bool({"--cfg", "-c", "--info", "-i"} & set(self.flags))


def taken_apart(words: list[str], commands: Iterable[str]) -> Arguments:
    """The parts of a command line.

    Args:
        words: what the user has typed, without the program.
        commands: names of the sub-commands, for what is neither an override nor a flag.

    Raises:
        ConfigError: an unknown flag, one without its value, or a word that is neither flag nor override.
    """
    arguments = Arguments()
    left = iter(words)
    for word in left:
        if not word.startswith("-") or word == "-":
            _refuse_word(word, words, commands)
            arguments.overrides.append(word)
            continue
        flag, equals, value = word.partition("=")
        if flag in PLAIN and not equals:
            arguments.flags.append(flag)
        elif flag in OPTIONAL:
            following = value if equals else _next_of(INFO, words, left, word)
            if following and following not in INFO:
                raise ConfigError(choose_from(f"value of {flag}", following, INFO))
            arguments.flags += [flag, following or "all"]
        elif flag in VALUED:
            value = value if equals else next(left, "")
            if not value:
                raise ConfigError(f"{flag} needs a value after it")
            if flag in ("--cfg", "-c") and value not in CFG:
                raise ConfigError(choose_from(f"value of {flag}", value, CFG))
            if flag in ("--config-dir", "-cd"):
                arguments.config_dirs.append(_folder(Path(value), word))
            else:
                arguments.flags += [flag, value]
        elif flag in PLAIN:
            raise ConfigError(f"{flag} takes no value")
        elif equals and not flag.startswith("--") and flag[1:]:
            raise ConfigError(f"{word}: an option is given without a dash before it, as {word.lstrip('-')}")
        else:
            raise ConfigError(
                choose_from("flag", flag, (*PLAIN, *VALUED, *OPTIONAL)) + "; see python -m clbench --help"
            )
    _refuse_combination(arguments.flags)
    arguments.config_dirs += _search_path(arguments.overrides)
    return arguments


def _refuse_combination(flags: list[str]) -> None:
    """Raise where flags exclude each other or one lacks another."""
    given = [name for name, short in WAYS if {name, short} & set(flags)]
    if len(given) > 1:
        raise ConfigError(f"{' and '.join(given)} exclude each other: leave all but one out")
    if "--resolve" in flags and "--cfg" not in given:
        raise ConfigError("--resolve is for what --cfg prints: add --cfg job")


def config_dirs_of(words: list[str]) -> tuple[list[str], list[Path]]:
    """The words of a sub-command without ``--config-dir FOLDER``, and the folders."""
    left, folders, given = [], [], iter(words)
    for word in given:
        flag, equals, value = word.partition("=")
        if flag in ("--config-dir", "-cd"):
            folders.append(_folder(Path(value if equals else next(given, "")), word))
        else:
            left.append(word)
    return left, folders


def _next_of(valid: tuple[str, ...], words: list[str], left: Iterator[str], word: str) -> str:
    """The word after ``word``, taken from ``left``, where it is one of ``valid``."""
    position = words.index(word) + 1
    return next(left) if position < len(words) and words[position] in valid else ""


def _refuse_word(word: str, words: list[str], commands: Iterable[str]) -> None:
    """Raise where a word is no override."""
    if "=" in word.lstrip("=") or word.startswith("~"):
        return
    position = words.index(word)
    if "=" in words[position : position + 2] or word.startswith("="):
        raise ConfigError(f"{' '.join(words)}: an override is written without spaces, as key=value")
    if position > 0 and word in commands:
        raise ConfigError(f"the command {word} comes first: python -m clbench {word} …")
    if word in GROUPS:
        raise ConfigError(f"{word} needs a value: {word}=…; python -m clbench list {word} shows the choices")
    near = nearest(word, GROUPS)
    if near and not nearest(word, commands):
        raise ConfigError(f"unknown command {word!r}: did you mean {near[0]}=…?")
    raise ConfigError(choose_from("command", word, commands) + ", or key=value overrides")


def _folder(folder: Path, given: str) -> Path:
    if not folder.is_dir():
        raise ConfigError(f"{given}: there is no folder {folder}")
    return folder.resolve()


def _search_path(overrides: list[str]) -> list[Path]:
    """The folders that ``hydra.searchpath=[file://…,pkg://…]`` names."""
    folders = []
    for override in overrides:
        key, _, value = override.lstrip("+").partition("=")
        if key != "hydra.searchpath":
            continue
        for part in value.strip().removeprefix("[").removesuffix("]").split(","):
            path = part.strip().strip("'\"")
            if path.startswith("pkg://"):
                package = path.removeprefix("pkg://").replace("/", ".")
                spec = find_spec(package) if find_spec(package.partition(".")[0]) else None
                if spec is None or not spec.submodule_search_locations:
                    raise ConfigError(f"{override}: there is no package {package}")
                folders += [Path(location) for location in spec.submodule_search_locations]
            elif path:
                folders.append(_folder(Path(path.removeprefix("file://")), override))
    return folders
