"""Search spaces, and the draws from them.

A space maps options to what is tried: a list (independent categorical draws), or ``{low: …, high: …, log: true}`` for a
real value. It is put together from

* ``protocol.search``, the options that all methods share (conf/search_space/),
* the strategy's own ``search`` (its YAML file), and that of every strategy in ``strategy.plus``,
* the command line: a swept value (``trainer.lr=0.01,0.1`` or ``trainer.lr=interval(0.001,0.1)``) replaces what is tried, a
  fixed one (``trainer.lr=0.05``) takes the option out of the space.

Trial i of the random sampler draws each option from a random stream of its own: (sampler_seed, option, i) for shared options,
so that all methods try the same values of them, and (sampler_seed, method, option, i) for a method's own. So draws are the
same on every machine and in whatever order, and those of an option do not depend on what else of a method is tuned. Shared
options are drawn again until they are new together, as long as they can be, and so is a whole configuration that an earlier
trial had: no budget goes into a configuration twice while there are others.
"""

import math
from dataclasses import dataclass
from typing import Any

import optuna
from omegaconf import DictConfig, OmegaConf
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, GridSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from clbench.conf_files import config_file, yaml_mapping
from clbench.config import typed
from clbench.errors import ConfigError
from clbench.options import override_value
from clbench.protocol.options import ProtocolConfig
from clbench.registry import STRATEGIES
from clbench.seeding import numpy_generator, stream_seed

Values = dict[str, Any]
"""Option → value."""


@dataclass(frozen=True)
class SearchSpace:
    """What is tried for one method.

    Attributes:
        distributions: option → Optuna distribution; an empty one means that nothing is tuned.
        shared: the options among them that all methods share.
    """

    distributions: dict[str, BaseDistribution]
    shared: frozenset[str]

    @property
    def size(self) -> float:
        """Number of different configurations; infinite where an option is real-valued."""
        sizes = [
            len(d.choices) if isinstance(d, CategoricalDistribution) else math.inf for d in self.distributions.values()
        ]
        return math.prod(sizes)

    def part(self, names: frozenset[str]) -> "SearchSpace":
        """The space of some of the options."""
        return SearchSpace({name: d for name, d in self.distributions.items() if name in names}, self.shared & names)

    def described(self) -> dict[str, Any]:
        """The space as plain data: a list of choices, or low, high and log."""
        return {
            name: list(d.choices)
            if isinstance(d, CategoricalDistribution)
            else {"low": d.low, "high": d.high, "log": d.log}  # type: ignore[attr-defined]
            for name, d in self.distributions.items()
        }


def space_of(composed: DictConfig, shared: dict[str, Any], swept: dict[str, Any], fixed: set[str]) -> SearchSpace:
    """The search space of the method that ``composed`` configures.

    Args:
        composed: the method's configuration.
        shared: ``protocol.search``.
        swept: option → space, from the command line.
        fixed: options that the command line gives one value.

    Raises:
        ConfigError: what is to be tried is neither a list nor a range, the option does not exist, or a value is not possible.
    """
    own = dict(composed.strategy.search)
    for added in composed.strategy.plus:
        own |= {name.replace("strategy.", f"plus.{added}.", 1): values for name, values in _search_of(added).items()}
    every = {**shared, **own, **swept}
    distributions = {
        name: distribution(name, values) for name, values in sorted(every.items()) if name not in fixed or name in swept
    }
    for name in distributions:
        if _has_no_value(composed, name):
            raise ConfigError(
                f"{name} is to be tuned, and has no value that others start from: give it one in the YAML file"
            )
        if not name.startswith("plus.") and not _exists(composed, name):
            raise ConfigError(
                f"{name} is to be tuned, but {composed.strategy.name} on {composed.scenario.name} has no such option"
            )
    for name, d in distributions.items():
        tried = d.choices if isinstance(d, CategoricalDistribution) else (d.low, d.high)  # type: ignore[attr-defined]
        for value in tried:
            with_values(composed, {name: value})
    return SearchSpace(distributions, frozenset(name for name in distributions if name not in own))


def with_values(composed: DictConfig, values: Values) -> DictConfig:
    """The configuration with these values, checked.

    Raises:
        ConfigError: an option does not exist, or a value is of the wrong type or out of range.
    """
    changed = composed.copy()
    for name, value in values.items():
        try:
            # Lists are text here, as on the command line.
            parsed = OmegaConf.create(f"value: {value}").value if _is_list(value) else value
            OmegaConf.update(changed, name, parsed, force_add=name.startswith("plus."))
        except Exception as error:  # OmegaConf has no common base for "no such key" and "wrong type"
            raise ConfigError(f"{name}={value} cannot be set: {str(error).splitlines()[0]}") from error
    typed(changed)
    return changed


def distribution(name: str, values: Any) -> BaseDistribution:
    """The Optuna distribution that a list or a range stands for.

    Raises:
        ConfigError: it is neither, is empty, or runs backwards.
    """
    if OmegaConf.is_config(values):
        values = OmegaConf.to_container(values, resolve=True)
    if isinstance(values, list) and values:
        return CategoricalDistribution([v if not isinstance(v, list) else override_value(v) for v in values])
    if isinstance(values, dict) and {"low", "high"} <= set(values) <= {"low", "high", "log"}:
        low, high, log = values["low"], values["high"], bool(values.get("log", False))
        if low < high and (low > 0 or not log):
            return (IntDistribution if isinstance(low, int) and isinstance(high, int) else FloatDistribution)(
                low, high, log
            )
    raise ConfigError(
        f"what is to be tried of {name} is {values}: it has to be a list of values, or {{low: …, high: …}} with low < high "
        "(and log: true for a draw of the logarithm, with low > 0)"
    )


class SeededRandomSampler(BaseSampler):
    """Draws of trial i that depend on nothing but the seed, the method, the option and i; see the module docstring."""

    def __init__(self, seed: int, method: str, space: SearchSpace, attempts: tuple[int, int]) -> None:
        self._seed, self._method, self._space, self._attempts = seed, method, space, attempts

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """None: every option is drawn by itself."""
        return {}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> Values:
        """Nothing."""
        return {}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """One draw."""
        is_shared = param_name in self._space.shared
        method, attempt = ("every method", self._attempts[0]) if is_shared else (self._method, self._attempts[1])
        rng = numpy_generator(self._seed, f"trial/{method}/{param_name}/{attempt}", trial.number)
        match param_distribution:
            case CategoricalDistribution(choices=choices):
                return choices[rng.integers(len(choices))]
            case IntDistribution(low=low, high=high, log=False):
                return int(rng.integers(low, high + 1))
            case IntDistribution(low=low, high=high):
                return min(high, max(low, round(math.exp(rng.uniform(math.log(low), math.log(high))))))
            case FloatDistribution(low=low, high=high, log=log):
                return math.exp(rng.uniform(math.log(low), math.log(high))) if log else rng.uniform(low, high)
        raise TypeError(f"no draw from {param_distribution}")


MOST_ATTEMPTS = 1000
"""Draws after which a repeated configuration is accepted; the size of a space with real values is not known."""


def next_values(known: list[FrozenTrial], method: str, space: SearchSpace, options: ProtocolConfig) -> Values:
    """The configuration that the sampler proposes after the trials ``known``.

    A function of its arguments alone: a study that was stopped continues as if it had not been.

    Args:
        known: earlier trials of the study in their order, running ones (without a value) among them.
    """
    if options.sampler != "random":
        return _proposal(known, _sampler(method, space, options, len(known)), space)
    return _new_draw(known, method, space, options.sampler_seed)


def _new_draw(known: list[FrozenTrial], method: str, space: SearchSpace, seed: int) -> Values:
    """A random draw that no earlier trial had.

    The shared options are drawn again until they are new among themselves, as long as they can be: so methods have the same
    values of them whether or not they have options of their own.
    """
    tried = {_key(trial.params) for trial in known}
    tried_shared = {_key(trial.params, space.shared) for trial in known}
    shared_left = len(tried_shared) < space.part(space.shared).size
    own_attempts = MOST_ATTEMPTS if set(space.distributions) - space.shared else 1
    for shared_attempt in range(MOST_ATTEMPTS):
        for own_attempt in range(own_attempts):
            sampler = SeededRandomSampler(seed, method, space, (shared_attempt, own_attempt))
            values = _proposal(known, sampler, space)
            if shared_left and _key(values, space.shared) in tried_shared:
                break  # whatever is drawn for the method's own options
            if _key(values) not in tried or len(tried) >= space.size:
                return values
    return values


def n_trials(space: SearchSpace, options: ProtocolConfig) -> int:
    """Trials of a method: ``protocol.trials``, or all configurations there are where those are fewer."""
    return int(min(options.trials, space.size))


def _proposal(known: list[FrozenTrial], sampler: BaseSampler, space: SearchSpace) -> Values:
    study = optuna.create_study(
        sampler=sampler, direction="maximize"
    )  # in memory: what is proposed is recorded by the caller
    study.add_trials(known)
    return study.ask(space.distributions).params


def _sampler(method: str, space: SearchSpace, options: ProtocolConfig, number: int) -> BaseSampler:
    if options.sampler == "grid":
        choices = {name: list(d.choices) for name, d in space.distributions.items()}  # type: ignore[attr-defined]
        return GridSampler(choices, seed=options.sampler_seed)
    # A new sampler for every trial, so that its state is a function of the trial's number.
    seed = stream_seed(options.sampler_seed, f"tpe/{method}", number) % 2**32
    return TPESampler(seed=seed, constant_liar=True)


def refuse_unlisted(space: SearchSpace, options: ProtocolConfig) -> None:
    """A grid needs lists.

    Raises:
        ConfigError: ``sampler=grid`` and an option without a list.
    """
    for name, d in space.distributions.items():
        if options.sampler == "grid" and not isinstance(d, CategoricalDistribution):
            raise ConfigError(
                f"protocol.sampler=grid needs a list of values for {name}, which has a range: choose random or tpe"
            )


def as_overrides(values: Values) -> list[str]:
    """The values as overrides of the command line."""
    written = {name: v if _is_list(v) else override_value(v) for name, v in values.items()}
    return [f"{'++' if name.startswith('plus.') else ''}{name}={value}" for name, value in written.items()]


def frozen_trial(values: Values, space: SearchSpace) -> FrozenTrial:
    """A running trial with these values."""
    return optuna.trial.create_trial(state=TrialState.RUNNING, params=values, distributions=space.distributions)


def _search_of(strategy: str) -> dict[str, Any]:
    file = config_file("strategy", strategy)
    if file is not None:
        return dict(yaml_mapping(file).get("search") or {})
    return dict(STRATEGIES[strategy].config(name=strategy).search)


def _exists(composed: DictConfig, name: str) -> bool:
    group, _, option = name.rpartition(".")
    node = OmegaConf.select(composed, group) if group else composed
    return OmegaConf.is_dict(node) and option in node


def _has_no_value(composed: DictConfig, name: str) -> bool:
    group, _, option = name.rpartition(".")
    node = OmegaConf.select(composed, group) if group else composed
    return isinstance(node, DictConfig) and OmegaConf.is_missing(node, option)


def _is_list(value: Any) -> bool:
    """Whether a choice is a list, which Optuna only takes as text."""
    return isinstance(value, str) and value.startswith("[")


def _key(values: Values, names: frozenset[str] | None = None) -> tuple:
    """The values (of some of the options) in a form that sets can hold."""
    return tuple(sorted((name, repr(value)) for name, value in values.items() if names is None or name in names))
