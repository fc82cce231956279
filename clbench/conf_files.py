"""The YAML files of the Hydra tree: where they lie, and which names may follow ``group=``."""

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from clbench.errors import ConfigError, choose_from
from clbench.registry import MODELS, STRATEGIES, broken_plug_ins, plug_in_folders


def conf_dir() -> Path:
    """The Hydra tree: the checkout's ``conf/`` where there is one, else the copy inside the installed wheel."""
    return _shipped("conf", "_conf")


_added_dirs: list[Path] = []


def add_config_dirs(folders: list[Path]) -> None:
    """Let choices be looked for in these folders as well, as ``--config-dir`` and ``hydra.searchpath`` ask for."""
    _added_dirs.extend(folder for folder in folders if folder not in _added_dirs)


def added_config_dirs() -> list[Path]:
    """Folders with YAML files beside clbench's own: those that were added, and those of packages with an entry point."""
    return [*_added_dirs, *plug_in_folders()]


def config_file(group: str, name: str) -> Path | None:
    """The YAML file of ``group=name`` in the first folder that has one, or None: code can be registered without a file."""
    for folder in (conf_dir(), *added_config_dirs()):
        file = folder / group / f"{name}.yaml"
        if file.is_file():
            return file
    return None


def yaml_mapping(file: Path) -> DictConfig:
    """The content of a YAML file.

    Raises:
        ConfigError: it is no mapping.
    """
    content = OmegaConf.load(file)
    if not isinstance(content, DictConfig):
        raise ConfigError(f"{file} has a list where names with values have to be")
    return content


def catalogue_dir() -> Path:
    """The frozen scenario definitions: the checkout's ``scenarios/``, else the copy inside the installed wheel."""
    return _shipped("scenarios", "_catalogue")


def published_dir() -> Path:
    """The comparisons with published figures: the checkout's ``reports/published/``, else the copy inside the installed wheel."""
    return _shipped("reports/published", "_published")


def _shipped(in_checkout: str, in_wheel: str) -> Path:
    package = Path(__file__).resolve().parent
    checkout = package.parent / in_checkout
    is_checkout = (package.parent / "pyproject.toml").is_file() and checkout.is_dir()
    return checkout if is_checkout else package / in_wheel


def group_choices(group: str) -> list[str]:
    """The names that may follow ``group=`` on the command line."""
    registry = {"strategy": STRATEGIES, "model": MODELS}.get(group)
    names = {path.stem for folder in (conf_dir(), *added_config_dirs()) for path in (folder / group).glob("*.yaml")}
    return sorted(names | set(registry.names() if registry is not None else []))


def require_choice(group: str, name: str) -> None:
    """Raise ConfigError, with the nearest match and all choices, where ``group=name`` is not possible."""
    choices = group_choices(group)
    if name not in choices:
        raise ConfigError(choose_from(group, name, choices) + broken_plug_ins())
