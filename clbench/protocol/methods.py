"""What the command line says about a study: which methods it compares, and what is tried of each.

A swept group (``strategy=ewc,er``, ``scenario=…``, ``model=…``, ``experiment=…``) makes a method of each choice; a swept value
(``trainer.lr=0.01,0.1``) is searched, a fixed one is the same for all.
"""

import itertools
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override
from hydra.errors import HydraException
from omegaconf import DictConfig

from clbench.errors import ConfigError
from clbench.protocol.options import ProtocolConfig
from clbench.protocol.search_space import SearchSpace, refuse_unlisted, space_of
from clbench.protocol.streams import Compose

TUNABLE_OF_A_SCENARIO = ("scenario.augment.", "scenario.logit_scope")
"""Options of a scenario that do not change which samples it has."""

METHOD_GROUPS = ("strategy", "scenario", "model", "evaluator", "experiment", "debug")


@dataclass(frozen=True)
class Method:
    """One method of a study.

    Attributes:
        name: as tables show it: the strategy, with ``protocol.label`` and what else distinguishes it.
        scenario: name of its scenario.
        overrides: its configuration, without what is tuned.
        composed: the configuration that they make.
        space: what is tuned.
    """

    name: str
    scenario: str
    overrides: list[str]
    composed: DictConfig
    space: SearchSpace


def methods_of(arguments: list[str], options: ProtocolConfig, compose: Compose) -> list[Method]:
    """The methods that the command line names.

    Args:
        arguments: overrides of the command line, ``protocol`` ones among them.
        options: of the protocol.
        compose: makes configurations.

    Raises:
        ConfigError: a seed is given, or two methods cannot be told apart.
    """
    given = [_fixed_if_single(o) for o in OverridesParser.create().parse_overrides(arguments)]
    overrides = [o for o in given if not _is_the_protocols(o)]
    for override in overrides:
        if override.key_or_group in ("seed", "evaluator.split", "scenario.validation", "scenario.tasks"):
            raise ConfigError(
                f"{override.input_line} is not for a protocol, which sets {override.key_or_group} itself: see "
                "protocol.tuning_seeds, protocol.evaluation_seeds, protocol.validation and protocol.first_tasks"
            )
    groups = [o for o in overrides if o.is_sweep_override() and o.key_or_group in METHOD_GROUPS]
    searched = {_option(o): _space(o) for o in overrides if o.is_sweep_override() and o not in groups}
    same = [o for o in overrides if not o.is_sweep_override()]
    fixed = {_option(o) for o in same}
    for name in searched:
        if name.startswith(("scenario.", "data.")) and not name.startswith(TUNABLE_OF_A_SCENARIO):
            raise ConfigError(
                f"{name} decides about the stream, which is the same for all configurations that are tried: give it one value, "
                "or sweep over scenarios"
            )
    choices = [_choices(override) for override in groups]
    methods = []
    for chosen in itertools.product(*choices):
        own = [*(o.input_line for o in same if o.input_line is not None), *chosen]
        composed = compose(own)
        space = space_of(composed, dict(options.search), searched, fixed)
        refuse_unlisted(space, options)
        name = "+".join([composed.strategy.name, *composed.strategy.plus])
        name = "-".join(filter(None, [name, options.label]))
        methods.append(Method(name, composed.scenario.name, own, composed, space))
    return _told_apart(methods, choices)


def _choices(override: Override) -> list[str]:
    try:
        return [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]
    except HydraException as error:
        raise ConfigError(
            f"{override.input_line} is a pattern, which a protocol does not know: name the choices, such as strategy=er,ewc"
        ) from error


def _fixed_if_single(override: Override) -> Override:
    """A sweep over one value, ``choice(5)``, is that value: clbench's command line writes fixed options so (see its checks)."""
    if not override.is_choice_sweep() or not isinstance(override.value(), ChoiceSweep):
        return override
    choices = list(override.sweep_string_iterator())
    if len(choices) > 1:
        return override
    return OverridesParser.create().parse_override(f"{override.get_key_element()}={choices[0]}")


def _is_the_protocols(override: Override) -> bool:
    return override.key_or_group.split(".")[0] in ("protocol", "search_space")


def _option(override: Override) -> str:
    """The option's name, without the signs before it."""
    return override.key_or_group


def _space(override: Override) -> Any:
    value = override.value()
    if isinstance(value, IntervalSweep):
        return {"low": value.start, "high": value.end, "log": "log" in value.tags}
    return list(override.sweep_iterator())


def _told_apart(methods: list[Method], choices: list[list[str]]) -> list[Method]:
    """The methods, with their other choices in the name where strategy and scenario do not distinguish them."""
    keys = [(method.name, method.scenario) for method in methods]
    named = []
    for method, key in zip(methods, keys, strict=True):
        name = method.name
        if keys.count(key) > 1:
            more = [
                o.partition("=")[2]
                for o in method.overrides
                if o.partition("=")[0] in ("model", "evaluator", "experiment")
            ]
            name = "-".join([name, *more])
        named.append(Method(name, method.scenario, method.overrides, method.composed, method.space))
    twice = [m.name for m in named if [(n.name, n.scenario) for n in named].count((m.name, m.scenario)) > 1]
    if twice:
        raise ConfigError(
            f"the command line names the method {twice[0]} twice: every choice of a swept group makes one"
        )
    return named
