"""What decides which strategies go together: hooks that one at most may override, traits, and what contradicts what.

:mod:`clbench.learning.composition` says how the tables are read. A new trait is a row of :data:`TRAITS`, a rule about it a row of
:data:`CONFLICTS`.
"""

from typing import NamedTuple

from clbench.config import StrategyConfig
from clbench.learning.base import Strategy

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
    "transformer": "it acts within a transformer: needs.transformer",
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
    "leaves out samples": "of the samples that arrive it trains on some",
    "mixes exemplars": "stored samples, chosen by the network, are among the new ones of its batches",
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
    *(
        Conflict(
            "leaves out samples",
            other,
            "{one} chooses which of the task's samples are trained on, and {other} makes batches of its own",
        )
        for other in ("trains on all data", "mixes exemplars", "trains on its memory")
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
