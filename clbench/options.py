"""Documented and checked fields of configuration dataclasses, whatever these are for.

A field made with :func:`option` carries its help text, its valid choices and its bounds; the same metadata checks a run
before it starts and is printed by ``python -m clbench describe``.
"""

import dataclasses
import math
import re
from dataclasses import field
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue

from clbench.errors import ConfigError, choose_from


def option(
    default: Any = MISSING,
    *,
    help: str,
    choices: tuple[str | None, ...] | None = None,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
) -> Any:
    """A documented, checked field of a config dataclass.

    Without ``default`` the value has to come from the group's YAML file, which is where paper values and their sources
    are written down.
    """
    metadata = {"help": help, "choices": choices, "at_least": at_least, "above": above, "at_most": at_most}
    if isinstance(default, list | dict):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def to_dataclass(config: DictConfig) -> Any:
    """A typed dataclass instance of a composed config, every field checked by :func:`check_fields`.

    Raises:
        ConfigError: a value is missing, out of bounds or not among the choices.
    """
    for group in ("strategy", "scenario", "model"):
        if group in config and not dataclasses.is_dataclass(OmegaConf.get_type(config, group)):
            raise ConfigError(
                f"the YAML file that {group}= has chosen does not say which options there are: its defaults list has to begin "
                f"with 'schema/<registered name>@_here_', followed by '_self_', as in conf/{group}/ of clbench"
            )
    _refuse_unknown(config, "")
    try:
        return OmegaConf.to_object(config)
    except MissingMandatoryValue:  # it names one of them; looking for all takes twice as long as the conversion
        missing = ", ".join(sorted(OmegaConf.missing_keys(config)))
        raise ConfigError(f"no value for {missing}: set it on the command line, or in the YAML file") from None


def _refuse_unknown(config: DictConfig, prefix: str) -> None:
    """Refuse keys that ``+key=value`` has added to a group and that nothing would read."""
    schema = OmegaConf.get_type(config)
    if not dataclasses.is_dataclass(schema):
        return
    known = [spec.name for spec in dataclasses.fields(schema)]
    for key, node in ((str(key), node) for key, node in config.items_ex(resolve=False)):
        if key not in known:
            raise ConfigError(choose_from("option", f"{prefix}{key}", [f"{prefix}{name}" for name in known]))
        if OmegaConf.is_dict(node) and not OmegaConf.is_missing(config, key):
            _refuse_unknown(node, f"{prefix}{key}.")


def check_fields(config: Any, prefix: str) -> None:
    """Check every field of a config dataclass against the metadata given to :func:`option`, recursively."""
    for spec in dataclasses.fields(config):
        value, where = getattr(config, spec.name), f"{prefix}{spec.name}"
        if dataclasses.is_dataclass(value):
            check_fields(value, f"{where}.")
            continue
        choices = spec.metadata.get("choices")
        if choices and value not in choices:
            raise ConfigError(choose_from(f"value for {where}", value, [override_value(choice) for choice in choices]))
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        bounds = {
            "at least": (spec.metadata.get("at_least"), lambda v, b: v >= b),
            "above": (spec.metadata.get("above"), lambda v, b: v > b),
            "at most": (spec.metadata.get("at_most"), lambda v, b: v <= b),
        }
        for words, (bound, holds) in bounds.items():
            if bound is not None and not (math.isfinite(value) and holds(value, bound)):
                raise ConfigError(f"{where}={value} is out of range: it has to be {words} {bound:g}")


def override_value(value: Any) -> str:
    """A value as it is written in an override on the command line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list | tuple):
        return f"[{','.join(override_value(part) for part in value)}]"
    text = str(value)
    if isinstance(value, str) and not re.fullmatch(r"[A-Za-z0-9_./-]+", text):
        return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
    return text
