"""Sentences for what Hydra and OmegaConf refuse: which override it is, what is wrong with it, and what would be right."""

import dataclasses
import difflib
import types
import typing
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from clbench.compose import compose
from clbench.conf_files import conf_dir, group_choices, require_choice
from clbench.config import RunConfig
from clbench.errors import ConfigError, choose_from
from clbench.options import override_value
from clbench.registry import STRATEGIES

LAUNCHERS = ("joblib", "ray", "submitit")
"""Hydra's launchers that are packages of their own."""

NAMED = ("strategy", "scenario", "model", "evaluator", "experiment", "debug", "protocol", "search_space", "training")


def refuse_unknown_name(override: Override) -> None:
    """Raise where ``strategy=``, ``scenario=``, … names something that there is not.

    Raises:
        ConfigError: with the nearest match and all choices.
    """
    group = override.key_or_group
    if group not in NAMED or override.is_delete():
        return
    values = [override.value()]
    if override.is_sweep_override():
        values = (
            list(override.sweep_iterator()) if override.is_choice_sweep() and hasattr(override.value(), "list") else []
        )
    for value in values:
        if isinstance(value, str | int | float) and str(value) != "" and not isinstance(value, bool):
            require_choice(group, str(value))
        elif value is not None and not isinstance(value, str):
            raise ConfigError(choose_from(group, value, group_choices(group)))
        elif value == "":
            raise ConfigError(f"{group}= has no value. Valid choices: {', '.join(group_choices(group))}")


NEEDED = ("strategy", "scenario", "model", "evaluator")
"""What every run has one of."""


def refuse_sign_before_name(override: Override) -> None:
    """Raise where a name is added or left out with a sign before it: one is chosen already, and another takes its place.

    Raises:
        ConfigError: with the override that chooses.
    """
    group, text = override.key_or_group, override.input_line or ""
    if override.is_delete() and group in NEEDED:
        raise ConfigError(
            f"{text}: every run has a {group}, so that it cannot be left out: choose another with {group}=… from "
            f"{', '.join(group_choices(group))}"
        )
    is_chosen_by_default = (group in NAMED and group != "search_space") or group.startswith("hydra/")
    if (override.is_add() or override.is_force_add()) and is_chosen_by_default:
        raise ConfigError(f"{text}: a name takes the place of the one by default, so it has no +: {text.lstrip('+')}")


def refuse_unknown_key(override: Override) -> None:
    """Raise where the first part of an option's key is no part of a configuration.

    Raises:
        ConfigError: with the nearest match and all choices.
    """
    first = override.key_or_group.partition(".")[0]
    known = {field.name for field in dataclasses.fields(RunConfig)} | set(NAMED) - {"training"}
    is_added = override.is_add() or override.is_force_add()
    if not is_added and first != "hydra" and first not in known and not group_choices(first):
        raise ConfigError(choose_from("option", first, known))


def explained(overrides: list[str], error: Exception) -> ConfigError:
    """What to say where ``overrides`` do not make a configuration: about the first override that does not fit."""
    parsed = [OverridesParser.create().parse_override(text) for text in overrides]
    files = [
        override for override in parsed if override.key_or_group in NAMED or override.key_or_group.startswith("hydra/")
    ]
    try:
        config = compose([override.input_line or "" for override in files], with_hydra=True)
    except (HydraException, OmegaConfBaseException, ValueError) as of_files:
        return _about_files(of_files, parsed)
    for override in parsed:
        if override in files:
            continue
        try:
            put_in(config, override)
        except ConfigError as found:
            return found
    return ConfigError(_in_one_line(error))


def put_in(config: DictConfig, override: Override) -> None:
    """Set one option, as Hydra does.

    Raises:
        ConfigError: there is no such option, or the value is not of its type.
    """
    text, key = override.input_line or "", override.key_or_group
    where, _, name = key.rpartition(".")
    parent = _node(config, where)
    if not override.is_force_add():
        known = [] if parent is None else [str(part) for part in parent]
        if override.is_add():
            if name in known:
                raise ConfigError(f"{text}: {key} is there already, so it is set without a +: {text.lstrip('+')}")
        elif parent is None or name not in known:
            raise ConfigError(_unknown_option(config, text, key))
    try:
        ConfigLoaderImpl._apply_overrides_to_config([override], config)
    except (HydraException, OmegaConfBaseException) as error:
        if override.is_delete():
            raise ConfigError(f"{text}: {key} cannot be left out") from error
        raise ConfigError(_wrong_value(parent, text, key, error)) from error


def refuse_wrong_options_of_added(config: Any, composed: DictConfig) -> None:
    """Check ``strategy.plus`` and the names and types of what is set under ``plus``.

    Args:
        config: the run's configuration, typed.
        composed: the same, as composed.

    Raises:
        ConfigError: an added strategy that does not exist, or an option that it has not, or one of the wrong type.
    """
    for name in config.strategy.plus:
        STRATEGIES[name]
    for name, options in (composed.get("plus") or {}).items():
        if name not in config.strategy.plus:
            continue  # said when the run is set up
        if not OmegaConf.is_dict(options):
            raise ConfigError(
                f"plus.{name}={options}: the options of {name} are set one by one, as plus.{name}.<option>=…"
            )
        schema = OmegaConf.structured(STRATEGIES[name].config)
        known = [str(key) for key in schema]
        for option, value in options.items():
            if option not in known:
                raise ConfigError(choose_from(f"option of plus.{name}", str(option), known))
            try:
                schema[option] = value
            except OmegaConfBaseException as error:
                raise ConfigError(
                    _wrong_value(schema, f"plus.{name}.{option}={value}", f"plus.{name}.{option}", error)
                ) from error


def _node(config: DictConfig, path: str) -> DictConfig | None:
    node = config
    for part in path.split(".") if path else ():
        if not OmegaConf.is_dict(node) or part not in node:
            return None
        node = node[part]
    return node if OmegaConf.is_dict(node) else None


def _unknown_option(config: DictConfig, text: str, key: str) -> str:
    """The sentence for an option that there is not: what is wrong is the first part that is not there."""
    node, parts = config, key.split(".")
    for place, part in enumerate(parts):
        here = ".".join(parts[:place])
        if not OmegaConf.is_dict(node):
            return f"{text}: {here} is one value and has no options"
        if part not in node:
            names = [str(name) for name in node if name != "hydra" or place or key.startswith("hyd")]
            if not place:
                names = sorted({*names, *(group for group in NAMED if group != "training")})
            chosen = OmegaConf.select(config, f"hydra.runtime.choices.{here}") if here in NAMED else None
            whose = f"{here}={chosen}: " if chosen else ""  # of several in a sweep, the one that has it not
            return whose + choose_from(f"option of {here}" if here else "option", part, names)
        node = node[part]
    return f"{text}: there is no such option"


def _wrong_value(parent: DictConfig | None, text: str, key: str, error: Exception) -> str:
    name = key.rpartition(".")[2]
    schema = OmegaConf.get_type(parent) if parent is not None else None
    if dataclasses.is_dataclass(schema):
        field = next((field for field in dataclasses.fields(schema) if field.name == name), None)
        if field is not None and dataclasses.is_dataclass(field.type):
            return f"{text}: {key} is a group of options, each set as {key}.<option>=…"
        if field is not None:
            choices = [override_value(c) for c in field.metadata.get("choices") or ()]
            expected = f"one of {', '.join(choices)}" if choices else _in_words(typing.get_type_hints(schema)[name])
            return f"{text}: the value has to be {expected}{_for_example(text, choices)}"
    if parent is not None and OmegaConf.is_dict(parent._get_node(name)):
        return f"{text}: {key} is a group of options, each set as {key}.<option>=…"
    return f"{text}: {_in_one_line(error)}"


def _for_example(text: str, choices: list[str]) -> str:
    near = difflib.get_close_matches(text.partition("=")[2].casefold(), choices, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _in_words(annotation: Any) -> str:
    """A type as a user calls it."""
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", Any: "a value"}
    if annotation in words:
        return words[annotation]
    arguments = typing.get_args(annotation)
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        return " or ".join("null" if part is type(None) else _in_words(part) for part in arguments)
    if typing.get_origin(annotation) is list:
        plural = {int: "whole numbers", float: "numbers", str: "names"}.get(arguments[0], "values")
        return f"a list of {plural}, written [{'a,b' if arguments[0] is str else '0,1'}]"
    return "a group of values, written {key:value}" if typing.get_origin(annotation) is dict else f"a {annotation}"


def _about_files(error: Exception, overrides: list[Override]) -> ConfigError:
    """The sentence for YAML files that are not there or do not fit together."""
    text = str(error)
    for override in overrides:
        launcher = str(override.value()).removeprefix("fleet_")
        if override.key_or_group == "hydra/launcher" and launcher.startswith(LAUNCHERS) and "hydra/launcher" in text:
            return ConfigError(
                f"{override.input_line} needs Hydra's launcher of that name, which is not installed: pip install "
                "'clbench[launchers]'"
            )
        if override.key_or_group.startswith("hydra/") and f"'{override.key_or_group}/" in text:
            return ConfigError(
                choose_from(override.key_or_group, override.value(), _hydra_choices(override.key_or_group))
            )
    return ConfigError(_in_one_line(error))


def _hydra_choices(group: str) -> list[str]:
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.object_type import ObjectType

    GlobalHydra.instance().clear()
    with initialize_config_dir(config_dir=str(conf_dir()), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        return loader.get_group_options(group, ObjectType.CONFIG, config_name="config", overrides=[])


def _in_one_line(error: BaseException) -> str:
    """The first lines of a message of Hydra's or OmegaConf's, with its cause, without their hints at full_key and object_type."""
    lines = [
        line.strip()
        for part in (error, error.__cause__)
        if part is not None
        for line in str(part).splitlines()
        if line.strip() and not line.strip().startswith(("full_key:", "object_type=", "reference_type=", "See http"))
    ]
    return " ".join(dict.fromkeys(lines)) or type(error).__name__
