"""Which strategies go together, with each other and with the rest of a run: all rules, read from the tables in ``traits``.

A rule is one of

* a hook of :data:`~clbench.learning.traits.EXCLUSIVE`, which one strategy at most may override, since it decides the whole of
  something;
* a row of :data:`~clbench.learning.traits.CONFLICTS`: two traits that contradict each other, in whichever order the strategies
  are named;
* a place: what makes the network, or changes it, has to be the main strategy;
* an option of the run (optimizer, ``trainer.zero_head``, ``model.frozen``, …) that makes a strategy meaningless, or the strategy
  the option.

A strategy of one's own gets the first kind of rule from what it overrides, and some traits from its :class:`Needs`; it declares
the others in ``Needs.traits``, or, where they depend on its options, in :meth:`Strategy.traits`. Without any it is taken for a
method that sends samples through the network and keeps nothing of single weights.

:func:`refuse` reads classes and options alone, before data are loaded or anything is built.
"""

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import NamedTuple

from clbench.config import RunConfig, StrategyConfig
from clbench.errors import ConfigError
from clbench.learning.base import Strategy
from clbench.learning.traits import CONFLICTS, EXCLUSIVE, overrides, predicts_by_itself, traits_of
from clbench.models.continual import ContinualModel
from clbench.registry import STRATEGIES
from clbench.scenarios.scenario import EXAMPLES, Scenario


class Chosen(NamedTuple):
    """A strategy of a run, not built yet."""

    name: str
    cls: type[Strategy]
    options: StrategyConfig
    traits: frozenset[str]


def refuse(chosen: Sequence[StrategyConfig], config: RunConfig) -> None:
    """Refuse strategies that do not go together, or not with the run's other options.

    Args:
        chosen: options of the main strategy, then of those in ``strategy.plus``.
        config: the run.

    Raises:
        ConfigError: with the names of both, and why.
    """
    strategies = [Chosen(o.name, STRATEGIES[o.name], o, traits_of(STRATEGIES[o.name], o)) for o in chosen]
    for one, other in combinations(strategies, 2):
        _refuse_pair(one, other)
    _refuse_places(strategies)
    _refuse_options(strategies, config)


def refuse_network(options: StrategyConfig, model: ContinualModel, scenario: Scenario) -> None:
    """Refuse a strategy that is not defined for this setting or for this kind of network.

    Raises:
        ConfigError: with the valid choices.
    """
    needs = STRATEGIES[options.name].needs
    if scenario.setting not in needs.settings:
        raise ConfigError(
            f"strategy {options.name} is not defined for {scenario.setting}-incremental scenarios such as {scenario.name}. "
            f"Valid choices: {', '.join(f'{s}-incremental, e.g. scenario={EXAMPLES[s]}' for s in needs.settings)}"
        )
    transformer = getattr(model.backbone, "transformer", None)
    if needs.transformer and scenario.reads == "tokens" and (needs.vision or transformer is None):
        raise ConfigError(
            f"strategy {options.name} acts within a vision transformer, and the samples of {scenario.name} are tokens. Valid "
            "choices: strategies with adapters, e.g. strategy=lora"
            if needs.vision
            else f"strategy {options.name} acts within a transformer, which this network is not. Valid choices: "
            "model=causal_lm, model=text_encoder"
        )
    if needs.transformer and (transformer is None or (needs.vision and not hasattr(transformer, "patch_embed"))):
        raise ConfigError(
            f"strategy {options.name} acts within a vision transformer, which this network is not. Valid choices: "
            "model=small_vit, or model=timm with a plain ViT, e.g. model.name=vit_base_patch16_224 model.pretrained=true"
        )


def refuse_stream(chosen: Sequence[StrategyConfig], scenario: Scenario, config: RunConfig) -> None:
    """Refuse what is not defined where classes return, and what begins anew with every task where nobody is told of tasks.

    Raises:
        ConfigError: with the option or the strategy, and what goes instead.
    """
    names, trainer = [options.name for options in chosen], config.trainer
    if scenario.segments is not None:
        for name, options in zip(names, chosen, strict=True):
            if "one task a class" in traits_of(STRATEGIES[name], options):
                raise ConfigError(
                    f"strategy {name} takes a class for one that arrives with a single task, and in {scenario.name} classes "
                    "return"
                )
            if overrides(STRATEGIES[name], "predict_task"):
                raise ConfigError(
                    f"strategy {name} makes a network for every task, and in {scenario.name} samples of several arrive together"
                )
    if scenario.groups_at is not None:
        for name, number in (
            ("plasticity_every", config.evaluator.plasticity_every),
            ("connectivity_points", config.evaluator.connectivity_points),
        ):
            if number:
                raise ConfigError(
                    f"evaluator.{name}={number} compares tasks, and {scenario.name} has other tasks to learn than to evaluate: "
                    f"set evaluator.{name}=0"
                )
    if scenario.ordered and (trainer.epochs != 1 or trainer.max_steps_per_task is not None):
        raise ConfigError(
            f"trainer.epochs={trainer.epochs} with trainer.max_steps_per_task={trainer.max_steps_per_task}: the samples of "
            f"{scenario.name} arrive in one order, and once: set trainer.epochs=1 trainer.max_steps_per_task=null"
        )
    if trainer.budget is not None and (trainer.epochs != 1 or trainer.max_steps_per_task is not None):
        raise ConfigError(
            f"trainer.budget={trainer.budget} is of batches that arrive once: set trainer.epochs=1 "
            "trainer.max_steps_per_task=null"
        )
    for name, options in zip(names, chosen, strict=True):
        if trainer.budget is not None and traits_of(STRATEGIES[name], options) & {
            "trains on all data",
            "mixes exemplars",
            "leaves out samples",
        }:
            raise ConfigError(
                f"trainer.budget={trainer.budget} is of batches that arrive, and strategy {name} trains on batches of its own "
                "making: leave trainer.budget at null"
            )
    if scenario.boundaries:
        return
    free = [name for name in STRATEGIES.names() if not STRATEGIES[name].needs.boundaries]
    for name in names:
        if name not in free:
            raise ConfigError(
                f"strategy {name} has to be told where a task begins, which {scenario.name} does not tell: set "
                f"scenario.boundaries=told, or a number of samples, or choose one of {', '.join(free)}"
            )
    for option, given, has_to_be in (
        ("trainer.reset_optimizer", trainer.reset_optimizer, False),
        ("trainer.scheduler", trainer.scheduler, "constant"),
        ("trainer.zero_head", trainer.zero_head, False),
    ):
        if given != has_to_be:
            raise ConfigError(
                f"{option}={str(given).lower()} begins anew with every task, of which {scenario.name} does not tell: set "
                f"{option}={str(has_to_be).lower()}"
            )
    if trainer.first_task.given:
        raise ConfigError(
            f"trainer.first_task has no meaning in {scenario.name}, which does not tell where a task ends: leave it empty"
        )
    if trainer.batch_norm == "freeze_after_first_task":
        raise ConfigError(
            f"trainer.batch_norm=freeze_after_first_task has no meaning in {scenario.name}, which does not tell where a task ends"
        )


def _refuse_pair(one: Chosen, other: Chosen) -> None:
    reason = next(_contradictions(one, other), None)
    if reason is not None:
        raise ConfigError(f"{one.name} and {other.name} cannot be combined: {reason}")


def _contradictions(one: Chosen, other: Chosen) -> Iterator[str]:
    """Why the two cannot be combined, clauses in the order of the rules."""
    common = [s for s in one.cls.needs.settings if s in other.cls.needs.settings]
    if not common:
        of_one, of_other = ("-, ".join(s.cls.needs.settings) for s in (one, other))
        yield f"the first is defined for {of_one}-incremental streams, the second for {of_other}-incremental ones"
    for hook, what in EXCLUSIVE.items():
        if overrides(one.cls, hook) and overrides(other.cls, hook):
            yield f"each of them decides {what}"
    for rule in CONFLICTS:
        for first, second in ((one, other), (other, one)):
            if rule.one in first.traits and rule.other in second.traits and rule.unless not in first.traits:
                yield rule.why.format(one=first.name, other=second.name)


def _refuse_places(strategies: list[Chosen]) -> None:
    """Refuse an added strategy that has to be the main one; pairs of such strategies have been refused already."""
    for added in strategies[1:]:
        others = [s.name for s in strategies if s is not added]
        command = f"strategy={added.name} strategy.plus=[{','.join(others)}]"
        if "adds modules" in added.traits:
            raise ConfigError(
                f"{added.name} puts modules into the network, where the other strategies have to find them: make it the main "
                f"strategy, {command}"
            )
        # The maker may change what is trained, and the others have to find it as it is then.
        if "grows" in added.traits:
            raise ConfigError(f"{added.name} makes the network grow and has to be the main strategy: {command}")
        if "makes networks" in added.traits:
            raise ConfigError(f"{added.name} makes a network for every task and has to be the main strategy: {command}")


# ---- options of the run -----------------------------------------------------------------------------------------------


def _refuse_options(strategies: list[Chosen], config: RunConfig) -> None:
    main, model, trainer = strategies[0], config.model, config.trainer
    adapts = main.cls.needs.transformer and not main.cls.needs.vision  # blocks that are not frozen get adapters
    if "adds modules" in main.traits and (model.trained != "all" or (model.frozen and not adapts)):
        option, left_at = (
            (f"trained={model.trained}", "all") if model.trained != "all" else (f"frozen={model.frozen}", "0")
        )
        raise ConfigError(
            f"model.{option} has no meaning with strategy={main.name}, which freezes the network and trains what it puts "
            f"into it: leave it at {left_at}"
        )
    if model.head != "linear":
        if trainer.zero_head:
            raise ConfigError(
                f"trainer.zero_head=true has no meaning with model.head={model.head}: weights of 0 have no direction"
            )
        for strategy in strategies:
            if "linear head" in strategy.traits:
                raise ConfigError(
                    f"strategy {strategy.name} acts on the weights of a linear head, and model.head={model.head} is none: set "
                    "model.head=linear"
                )
    init = getattr(model, "init", "default")
    by_rules = [s.name for s in strategies if s.traits & {"makes all weights", "resets units", "grows"}]
    undoes = by_rules[0] if by_rules else f"model.head={model.head}" if model.head != "linear" else None
    if init != "default" and undoes is not None:
        raise ConfigError(
            f"model.init={init} is how linear layers begin, and {undoes} draws weights by a rule of its own: set "
            "model.init=default"
        )
    if "redraws weights" in main.traits and model.frozen_dtype != "fp32":
        raise ConfigError(
            f"model.frozen_dtype={model.frozen_dtype} would round away what strategy={main.name} merges into frozen weights: set "
            "model.frozen_dtype=fp32"
        )
    if "grows" in main.traits and config.evaluator.connectivity_points:
        raise ConfigError(
            f"evaluator.connectivity_points={config.evaluator.connectivity_points} looks between two networks of the same "
            f"weights, and {main.name} adds weights with every task: set evaluator.connectivity_points=0"
        )
    if trainer.microbatch is not None:
        _refuse_microbatch(strategies, config)
    for strategy in strategies:
        _refuse_optimizer(strategy, config)
        if strategy is not main:
            _refuse_attention(strategy, main, model.trained)
        if trainer.zero_head and predicts_by_itself(strategy.cls):
            raise ConfigError(
                "trainer.zero_head=true is for methods that predict with the network's own head, which "
                f"{strategy.name} does not: set trainer.zero_head=false"
            )
        for option, given in (("zero_head", trainer.zero_head), ("first_task", trainer.first_task.given)):
            if given and "trains once" in strategy.traits:
                raise ConfigError(f"trainer.{option} is of single tasks, and {strategy.name} trains once: leave it out")
        if not trainer.reset_optimizer and "starts from scratch" in strategy.traits:
            raise ConfigError(
                "trainer.reset_optimizer=false goes on with what the optimizer remembers of other weights than "
                f"{strategy.name} begins every task with: set trainer.reset_optimizer=true"
            )
        if trainer.zero_head and "starts from scratch" in strategy.traits:
            raise ConfigError(
                f"trainer.zero_head=true has no meaning with {strategy.name}, which gives the head its initial weights at every "
                "task's start: set trainer.zero_head=false"
            )


def _refuse_microbatch(strategies: list[Chosen], config: RunConfig) -> None:
    """Refuse pieces of a batch where more is wanted of a forward pass than its outputs."""
    given = f"trainer.microbatch={config.trainer.microbatch} sends a batch through the network in pieces"
    for strategy in strategies:
        if "reads the forward pass" in strategy.traits:
            raise ConfigError(
                f"{given}, and {strategy.name} looks at what the whole batch leaves within the network: set "
                "trainer.microbatch=null"
            )
    if config.evaluator.diagnostics_every:
        raise ConfigError(
            f"{given}, and evaluator.diagnostics_every={config.evaluator.diagnostics_every} differentiates every loss term for "
            "the whole of it: set evaluator.diagnostics_every=0, or trainer.microbatch=null"
        )
    if config.trainer.compile == "max":
        raise ConfigError(
            f"{given}, whose gradients add up from one CUDA graph's replay to the next, which trainer.compile=max does not "
            "allow: set trainer.compile=auto or off, or trainer.microbatch=null"
        )


def _refuse_optimizer(strategy: Chosen, config: RunConfig) -> None:
    needs, trainer = strategy.cls.needs, config.trainer
    if trainer.optimizer not in needs.optimizers:
        raise ConfigError(
            f"trainer.optimizer={trainer.optimizer} undoes what {strategy.name} makes of gradients. Valid choices: "
            f"{', '.join(needs.optimizers)}"
        )
    if trainer.weight_decay and not needs.weight_decay:
        raise ConfigError(
            f"trainer.weight_decay={trainer.weight_decay} moves weights beside the gradients that {strategy.name} projects: set "
            "trainer.weight_decay=0"
        )


def _refuse_attention(added: Chosen, main: Chosen, trained: str) -> None:
    """Refuse ``where=attention`` of an added strategy where the main one takes other weights for trained."""
    if getattr(added.options, "where", None) != "attention":
        return
    if "adds modules" in main.traits:
        raise ConfigError(
            f"plus.{added.name}.where=attention names weights that strategy={main.name} freezes: set it to all or backbone"
        )
    if "attention" not in (trained, getattr(main.options, "where", None)):
        raise ConfigError(
            f"plus.{added.name}.where=attention freezes weights that strategy={main.name} takes for trained ones: set "
            "model.trained=attention as well"
        )
