"""Looks for what is wrong with the overrides of a command line before Hydra makes anything of them.

Each override is read alone, each configuration is composed once, and what does not fit is said in one sentence with the valid
choices. A few ways of writing are made good on the way: ``plus.ewc.lam=5`` without its ``+``, ``protocol.tuning_seeds=2`` for
two seeds, and in a sweep over strategies an option that only the swept ones have.
"""

import itertools
import sys

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, IntervalSweep, Override
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from clbench.command_line.arguments import GROUPS, Arguments
from clbench.command_line.explanations import (
    explained,
    put_in,
    refuse_sign_before_name,
    refuse_unknown_key,
    refuse_unknown_name,
    refuse_wrong_options_of_added,
)
from clbench.compose import compose
from clbench.conf_files import group_choices
from clbench.config import typed
from clbench.errors import ConfigError

FIRST_SEEDS = {"protocol.tuning_seeds": 0, "protocol.evaluation_seeds": 100}
"""Options of a protocol that may be given as a number of seeds → the first of these."""

MANY_SEEDS = 1000


def checked(arguments: Arguments) -> tuple[list[str], DictConfig]:
    """The overrides, checked, as Hydra shall get them, and a configuration that they make (of the first job), with Hydra's part.

    Raises:
        ConfigError: they do not make a configuration, or, in a sweep, one of its choices does not.
    """
    overrides = [_parsed(_made_good(text)) for text in arguments.overrides]
    refuse_doubled_groups(overrides)
    for override in overrides:
        refuse_unknown_name(override)
        refuse_sign_before_name(override)
        if override.is_sweep_override() and not arguments.is_sweep:
            _refuse_sweep(override, arguments)
        if override.is_sweep_override() and override.key_or_group.startswith("protocol."):
            raise ConfigError(
                f"{override.input_line}: the options of a protocol have one value each; a list is written [0,1]"
            )
    configs = _checked_choices(overrides)
    is_protocol = any(config.get("protocol") is not None for config in configs)
    if is_protocol and not arguments.is_sweep and not arguments.only_shows:
        raise ConfigError("a protocol makes many runs: python -m clbench -m " + " ".join(arguments.overrides))
    if not arguments.is_sweep:
        return [text.input_line or "" for text in overrides], configs[0]
    for override in overrides:
        if override.is_sweep_override() and override.key_or_group.startswith("protocol."):
            raise ConfigError(
                f"{override.input_line}: the options of a protocol have one value each; a list is written [0,1]"
            )
    if not any(o.is_sweep_override() and _is_group(o) for o in overrides):
        return [o.input_line or "" for o in overrides], configs[0]
    return _for_each_job(overrides), configs[0]


def check_overrides(overrides: list[str]) -> DictConfig:
    """The configuration of a single run, checked.

    Raises:
        ConfigError: the overrides do not make a configuration.
    """
    parsed = [_parsed(_made_good(text)) for text in overrides]
    for override in parsed:
        refuse_unknown_name(override)
        refuse_sign_before_name(override)
    texts = [override.input_line or "" for override in parsed]
    composed = _composed(texts)
    _check_config(composed, texts)
    return composed


def refuse_doubled_groups(overrides: list[Override]) -> None:
    """Raise where a name is chosen twice; say so where an option is set twice, of which the last holds."""
    seen: dict[str, Override] = {}
    for override in overrides:
        key = override.key_or_group
        before = seen.get(key)
        if before is not None and before.value() != override.value():
            if _is_group(override):
                raise ConfigError(f"{before.input_line} and {override.input_line} exclude each other: leave one out")
            print(f"clbench: {key} is given twice: {override.input_line} holds", file=sys.stderr)
        seen[key] = override


def _made_good(text: str) -> str:
    """An override as it was meant."""
    key, _, value = text.partition("=")
    if key.startswith("plus.") or key.startswith("+plus."):
        return f"++{text.lstrip('+')}"  # nothing is under plus until something is put there
    if key == "best":
        return f"+{text}"
    if key.lstrip("+") in FIRST_SEEDS and value.strip().isdecimal():
        n, first = int(value), FIRST_SEEDS[key.lstrip("+")]
        if not 1 <= n <= MANY_SEEDS:
            raise ConfigError(
                f"{text}: a number of seeds from 1 to {MANY_SEEDS}, or a list of seeds such as [{first},{first + 1}]"
            )
        return f"{key}=[{','.join(str(first + i) for i in range(n))}]"
    return text


def _parsed(text: str) -> Override:
    try:
        return OverridesParser.create().parse_override(text)
    except (HydraException, OmegaConfBaseException) as error:
        detail = next((line for line in str(error).splitlines() if not line.startswith("See ")), "")
        raise ConfigError(
            f"{text!r} is not of the form key=value ({detail}): put a value with special characters into quotes within quotes, "
            "such as 'data.folder=\"my (own) images\"'"
        ) from error


def _is_group(override: Override) -> bool:
    return override.key_or_group in GROUPS or override.key_or_group.startswith("hydra/")


def _refuse_sweep(override: Override, arguments: Arguments) -> None:
    """Say what several values of one option may have been meant as."""
    text = override.input_line or ""
    key, _, values = text.partition("=")
    as_list = f"{key}=[{values}]" if not any(mark in values for mark in "()") else f"{key}='…'"
    raise ConfigError(
        f"{text} names several values: add -m for a sweep (python -m clbench -m {' '.join(arguments.overrides)}), or write "
        f'a list as "{as_list}" and a text with a comma in quotes'
    )


def _checked_choices(overrides: list[Override]) -> list[DictConfig]:
    """Configurations with every swept name, in which every swept value was put; of a single run there is one.

    A value out of bounds among the swept ones is no error yet: its job will fail, and the others be run.

    Raises:
        ConfigError: one of the jobs cannot be composed, or none of them can be run.
    """
    choices = [_choices(override) for override in overrides]
    is_value = [override.is_sweep_override() and not _is_group(override) for override in overrides]
    fixed = [own for own, swept in zip(choices, is_value, strict=True) if not swept]
    combined = itertools.islice(itertools.product(*fixed), MOST_COMBINATIONS)
    for override, swept in zip(overrides, is_value, strict=True):
        if swept:
            refuse_unknown_key(override)
    configs = [_composed(list(job)) for job in combined]
    for own, swept in zip(choices, is_value, strict=True):
        for choice in own if swept else ():
            put_in(configs[0].copy(), _parsed(choice))
        for config in configs[1:] if swept else ():  # whether each name has the option, of which one value tells
            put_in(config.copy(), _parsed(own[0]))
    errors = []
    for config in configs:
        try:
            _check_config(config, [text for own in fixed for text in own])
        except ConfigError as error:
            errors.append(error)
    if len(errors) == len(configs):
        raise errors[0]
    return configs


MOST_COMBINATIONS = 32
"""Combinations of names that are looked at in advance; Hydra composes every job before the first is run."""


def _choices(override: Override) -> list[str]:
    text = override.input_line or ""
    if not override.is_sweep_override():
        return [text]
    prefix = text[: len(text) - len(text.lstrip("+"))]
    value = override.value()
    if isinstance(value, Glob):
        values = value.filter(group_choices(override.key_or_group))
    elif isinstance(value, IntervalSweep):
        values = [str(value.start), str(value.end)]
    else:
        values = list(override.sweep_string_iterator())
    if not values:
        raise ConfigError(f"{text} stands for no value at all")
    return [f"{prefix}{override.key_or_group}={value}" for value in values]


def _composed(overrides: list[str]) -> DictConfig:
    """The configuration of one run with Hydra's part."""
    try:
        return compose(overrides, with_hydra=True)
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise explained(overrides, error) from error


def _check_config(composed: DictConfig, overrides: list[str]) -> None:
    """Check all that can be checked without data."""
    from clbench.protocol.tuned_values import with_tuned_values

    own, _ = with_tuned_values(composed, overrides)
    config = typed(own)
    refuse_wrong_options_of_added(config, own)


def _for_each_job(overrides: list[Override]) -> list[str]:
    """The overrides of a sweep over names, in which options that only the swept ones have are sweeps over one value.

    Hydra applies fixed options to a configuration without what is swept, in which they may not exist: EWC, the default, has no
    ``memory_size``. Swept options are applied to each job.
    """
    fixed_names = [o.input_line or "" for o in overrides if _is_group(o) and not o.is_sweep_override()]
    without_swept = compose(fixed_names, with_hydra=True)
    texts = []
    for override in overrides:
        text = override.input_line or ""
        texts.append(text)
        if override.is_sweep_override() or _is_group(override) or override.is_delete():
            continue
        try:
            put_in(without_swept, override)
        except ConfigError:
            key, _, value = text.partition("=")
            texts[-1] = f"{key}=choice({value})"
    return texts
