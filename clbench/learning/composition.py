"""Which strategies go together, with each other and with the rest of a run: all rules in one place.

A rule is one of

* a hook of :data:`EXCLUSIVE`, which one strategy at most may override, since it decides the whole of something;
* a row of :data:`CONFLICTS`: two traits (:data:`TRAITS`) that contradict each other, in whichever order the strategies are
  named;
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
from clbench.models.continual import ContinualModel
from clbench.registry import STRATEGIES
from clbench.scenarios.scenario import EXAMPLES, Scenario

EXCLUSIVE = {
    "outputs": "the weights of the network",
    "recall": "what the planned slots of a memory hold",
    "data_loss": "the loss on the batch's samples",
    "edit_gradients": "the gradient's projection",
    "learn": "what is learned without gradients",
    "predict": "the prediction",
}
"""Hooks that one strategy at most overrides, and what they decide."""

TRAITS = {
    # what follows from hooks and needs
    "makes networks": "it makes a network for every task: overrides outputs",
    "learns without gradients": "it overrides learn",
    "adds modules": "it freezes the network and trains what it puts in: changes_network",
    "transformer": "it acts within a vision transformer: needs.transformer",
    "trains on all data": "earlier tasks' samples are among the new ones: needs.all_data, or a memory of them",
    "sends samples": "it takes the model for the network, and sends samples through it: not needs.weights_only",
    # what is declared of how it treats weights
    "makes all weights": "no weight of the network itself is trained",
    "redraws weights": "trained weights are drawn anew for every task, and what they were is merged elsewhere",
    "starts from scratch": "every task begins with the initial weights",
    "trains once": "all tasks but the last have no steps",
    "moves weights": "it changes weights after steps, beside the optimizer",
    "takes steps back": "of what several steps have changed it takes a part back",
    "shrinks weights": "it makes all trained weights smaller",
    "shrinks between tasks": "it does so at the start of a task",
    "trains first task": "it learns without gradients, but for the first task",
    "grows": "the network gets further modules with every task",
    # what is declared of what it relies on
    "linear head": "it acts on the weights of the head as those of a linear layer",
    "reads weights": "it acts on trained weights of the network",
    "remembers weights": "it keeps, from task to task, what single weights are worth or have been",
    "remembers outputs": "it keeps the network of the task before, to be like it",
    "acts from second task": "in the first task it does nothing",
    "reads logits": "it looks at the logits of the network's head, or at their gradients",
    "trains no head": "its loss and its predictions leave the network's head out",
    "resets units": "it acts on single hidden units",
    "projects layers": "it acts on the inputs of linear layers and convolutions",
    "holds features": "in a part of each task all that features depend on stands still",
    "reads current task": "it takes the new samples for those of the current task",
    "one task a class": "it takes a class for one that arrives with a single task",
    "trains on its memory": "on what lies in its memory, and on nothing else",
    "looks at stored samples": "its plan names reference samples",
    "virtual outliers": "it trains the head against virtual outliers",
    "reads the forward pass": "its losses look at what a forward pass leaves within the network, beside its outputs",
}
"""What decides with which others a strategy goes together."""


class Conflict(NamedTuple):
    """Two traits that contradict each other.

    Attributes:
        one, other: traits of two strategies, named first in the sentence and second.
        why: completes "a and b cannot be combined: …"; {one} and {other} stand for their names.
        unless: a trait that lifts the rule where ``one`` has it too.
    """

    one: str
    other: str
    why: str
    unless: str = ""


CONFLICTS = (
    Conflict("adds modules", "adds modules", "each of them freezes the network and trains what it puts into it"),
    Conflict(
        "makes networks",
        "adds modules",
        "{one} makes a network for every task, and {other} puts modules into a single one",
    ),
    Conflict(
        "makes all weights",
        "reads weights",
        "{one} makes all weights of the network, and leaves none that are trained to {other}",
    ),
    Conflict("makes networks", "sends samples", "{one} makes a network for every task, which {other} knows nothing of"),
    Conflict(
        "learns without gradients",
        "sends samples",
        "{one} learns without gradients and in one pass, where {other} has nothing to act on",
    ),
    Conflict(
        "learns without gradients",
        "acts from second task",
        "{one} trains the network in the first task at most, and {other} does not act before the second",
    ),
    Conflict(
        "learns without gradients",
        "reads weights",
        "{one} learns without gradients and in one pass, where {other} has nothing to act on",
        unless="trains first task",
    ),
    Conflict(
        "learns without gradients",
        "adds modules",
        "{one} learns without gradients and in one pass, where {other} has nothing to act on",
        unless="trains first task",
    ),
    Conflict(
        "transformer", "resets units", "{other} resets hidden units, and the transformer of {one} has none that can be"
    ),
    Conflict(
        "adds modules",
        "projects layers",
        "{other} projects gradients of linear layers and convolutions, of which {one} trains the head alone",
    ),
    Conflict(
        "projects layers",
        "shrinks weights",
        "{one} projects gradients, and {other} changes weights beside them, as weight decay does",
    ),
    Conflict(
        "redraws weights",
        "remembers weights",
        "{one} draws its trained weights anew for every task, and {other} keeps what single ones were worth to earlier tasks",
    ),
    Conflict(
        "redraws weights",
        "shrinks between tasks",
        "{one} draws its trained weights anew for every task, and {other} shrinks what earlier tasks have made of them",
    ),
    Conflict(
        "redraws weights",
        "starts from scratch",
        "{one} merges what a task has learned into frozen weights, and {other} starts every task from the initial ones",
    ),
    Conflict(
        "starts from scratch",
        "remembers weights",
        "{one} starts every task from the initial weights, and {other} keeps what single ones were worth to earlier tasks",
    ),
    Conflict(
        "starts from scratch",
        "shrinks between tasks",
        "{one} starts every task from the initial weights, and {other} shrinks what earlier tasks have made of them",
    ),
    Conflict(
        "starts from scratch",
        "remembers outputs",
        "{one} starts every task from the initial weights, and {other} holds on to what the network was before",
    ),
    *(
        Conflict("trains once", other, "{one} trains once, on all tasks together, and {other} acts between tasks")
        for other in (
            "remembers weights",
            "remembers outputs",
            "looks at stored samples",
            "redraws weights",
            "shrinks between tasks",
            "acts from second task",
        )
    ),
    Conflict(
        "holds features",
        "moves weights",
        "{one} keeps features as they are in a part of every task, and {other} changes the weights behind them after steps",
    ),
    *(
        Conflict(
            "takes steps back",
            other,
            "{one} takes back a part of what several steps have changed, and {other} changes weights beside them",
        )
        for other in ("moves weights", "shrinks between tasks")
    ),
    Conflict(
        "reads current task",
        "trains on all data",
        "{one} takes the new samples for those of the current task, and {other} trains on those of earlier tasks among them",
    ),
    Conflict("grows", "adds modules", "{one} adds to a network that {other} freezes"),
    Conflict(
        "grows", "reads weights", "{one} adds weights with every task, and {other} acts on the same ones in all tasks"
    ),
    Conflict(
        "grows",
        "remembers outputs",
        "{one} adds modules with every task, and {other} keeps a network like the present one",
    ),
    Conflict(
        "grows",
        "holds features",
        "{one} grows further features with every task, and {other} keeps some of a fixed number",
    ),
    Conflict(
        "looks at stored samples",
        "looks at stored samples",
        "each of them decides which stored samples a step looks at",
    ),
    Conflict(
        "trains no head",
        "reads logits",
        "{one} trains features and leaves the network's head as it is, and {other} looks at what that says",
    ),
    Conflict(
        "trains no head",
        "resets units",
        "{one} trains features and leaves the network's head as it is, and {other} resets units by what they lead to",
    ),
    Conflict(
        "trains on its memory",
        "looks at stored samples",
        "{one} trains on what lies in its memory alone, and {other} looks at samples that it stores beside it",
    ),
    Conflict("virtual outliers", "virtual outliers", "each of them trains the head against virtual outliers"),
)
"""In the order in which they are looked at."""


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
    if needs.transformer and getattr(model.backbone, "transformer", None) is None:
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


def traits_of(cls: type[Strategy], options: StrategyConfig) -> frozenset[str]:
    """All traits of a strategy with these options: those that follow from its hooks and needs, and those it declares.

    Raises:
        ValueError: it declares one that does not exist.
    """
    declared = cls.traits(options)
    unknown = declared - TRAITS.keys()
    if unknown:
        raise ValueError(f"{cls.__name__} declares {', '.join(sorted(unknown))}, none of {', '.join(TRAITS)}")
    follows = {
        "makes networks": overrides(cls, "outputs"),
        "learns without gradients": overrides(cls, "learn"),
        "adds modules": cls.changes_network,
        "transformer": cls.needs.transformer,
        "trains on all data": cls.needs.all_data,
        "sends samples": not cls.needs.weights_only,
    }
    return declared | {trait for trait, holds in follows.items() if holds}


def overrides(cls: type[Strategy], hook: str) -> bool:
    """Whether a strategy defines ``hook`` itself."""
    return getattr(cls, hook) is not getattr(Strategy, hook)


def predicts_by_itself(cls: type[Strategy]) -> bool:
    """Whether predictions depend on more than the model: the strategy prepares or makes them."""
    return any(overrides(cls, hook) for hook in ("prepare_for_eval", "outputs", "predict", "predict_task"))


# ---- places and pairs -------------------------------------------------------------------------------------------------


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
    if "adds modules" in main.traits and (model.trained != "all" or model.frozen):
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
