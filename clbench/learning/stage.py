"""Stages: the parts of a task's training, one after another.

A task has at least one stage, in which all weights are trained with the task's plan. A strategy says by ``stages`` what else
there is: a stage that begins in the midst of the plan, and goes on with its steps, optimizer and schedule, or a stage that comes
after it, with a plan, a budget, an optimizer and a schedule of its own. Where strategies are combined, all enter a stage of one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from clbench.scenarios.task import Task

if TYPE_CHECKING:
    from clbench.learning.base import Plan

TRAINED = ("all", "head", "mask")


@dataclass(frozen=True)
class Stage:
    """What one strategy wants of a part of a task's training.

    Attributes:
        name: the strategy's hooks look at it in ``self.stage.name``.
        start: the step of the task's plan before which it begins; None: after the plan, with one of its own.
        trains: ``all`` weights, the ``head`` alone, with features computed in evaluation mode and without a gradient, or those of
            a ``mask``. What is not trained is held exactly: neither momentum nor weight decay moves it.
        by_gradient: whether losses, gradients and the optimizer train it. Where not, :meth:`Strategy.learn` takes its batches,
            without augmentation and with the network in evaluation mode.
        mask: with ``trains=mask``: gives boolean (P,), which weights are trained, when the stage is entered or gone on with.
        trainer: for a stage after the plan: options of ``trainer`` that differ in it, e.g. ``{"epochs": 20, "lr": 0.05}``.
        begin: called once before its first step, in evaluation mode; may change buffers and weights, and read the host. Returns
            which of the trained weights, boolean (P,), it has drawn anew, or None for none.
        plan: amends the plan of its steps; of a stage after the plan, that is by default all of the task's samples for its
            budget. Called after ``begin``, and again when a killed run goes on within the stage: it may only read buffers.
    """

    name: str = "main"
    start: int | None = 0
    trains: str = "all"
    by_gradient: bool = True
    mask: Callable[[], Tensor] | None = None
    trainer: dict[str, Any] = field(default_factory=dict)
    begin: Callable[[Task], Tensor | None] | None = None
    plan: "Callable[[Task, Plan], Plan] | None" = None

    def __post_init__(self) -> None:
        if self.trains not in TRAINED:
            raise ValueError(f"a stage trains one of {', '.join(TRAINED)}, not {self.trains!r}")
        if (self.trains == "mask") != (self.mask is not None):
            raise ValueError("a stage has a mask exactly where it trains one")
        if self.trainer and self.start is not None:
            raise ValueError(
                "a stage within the task's plan goes on with its optimizer and schedule: it has no trainer options"
            )


@dataclass(frozen=True)
class JointStage:
    """The stages that all strategies are in at a time.

    Attributes:
        start: as in :class:`Stage`.
        parts: one stage per strategy.
        beginning: which of them begin with it.
    """

    start: int | None
    parts: tuple[Stage, ...]
    beginning: tuple[bool, ...]

    @property
    def trains_head_only(self) -> bool:
        """Whether a strategy wants the head alone to be trained."""
        return any(part.trains == "head" for part in self.parts)

    @property
    def holds(self) -> bool:
        """Whether anything is held."""
        return any(part.trains != "all" for part in self.parts)

    @property
    def by_gradient(self) -> bool:
        """Whether it is trained by gradients: no strategy learns from the batches by itself."""
        return all(part.by_gradient for part in self.parts)

    @property
    def key(self) -> tuple[Any, ...]:
        """What has to be equal for runs to step together: what decides which operations a step takes."""
        return tuple((part.name, part.trains, part.by_gradient) for part in self.parts)

    @property
    def trainer(self) -> dict[str, Any]:
        """Options of ``trainer`` that differ in it."""
        return {name: value for part in self.parts for name, value in part.trainer.items()}

    def begin(self, task: Task) -> list[Tensor | None]:
        """Let the strategies act whose stage begins; returns which weights (P,) each has drawn anew, or None."""
        begun = zip(self.parts, self.beginning, strict=True)
        return [part.begin(task) for part, begins in begun if begins and part.begin is not None]

    def plan(self, task: Task, plan: "Plan") -> "Plan":
        """The plan of its steps."""
        for part in self.parts:
            if part.plan is not None:
                plan = part.plan(task, plan)
        return plan

    @property
    def plans(self) -> bool:
        """Whether a strategy amends the plan."""
        return any(part.plan is not None for part in self.parts)


def joined(of_strategies: Sequence[Sequence[Stage]], main: JointStage) -> tuple[list[JointStage], list[JointStage]]:
    """The stages within the plan and those after it, of strategies that have these each.

    A strategy that names none for the plan's first step is in its part of ``main`` there.
    """
    within = [[stage for stage in stages if stage.start is not None] for stages in of_strategies]
    within = [
        stages if any(s.start == 0 for s in stages) else [part, *stages]
        for stages, part in zip(within, main.parts, strict=True)
    ]
    of_plan = []
    for start in sorted({stage.start for stages in within for stage in stages if stage.start is not None}):
        begun = [[s for s in stages if s.start is not None and s.start <= start] for stages in within]
        parts = tuple(max(stages, key=lambda s: s.start or 0) for stages in begun)
        of_plan.append(JointStage(start, parts, tuple(part.start == start for part in parts)))
    after = []
    for owner, stages in enumerate(of_strategies):
        for stage in (s for s in stages if s.start is None):
            others = Stage(stage.name, None)
            parts = tuple(stage if index == owner else others for index in range(len(of_strategies)))
            after.append(JointStage(None, parts, tuple(index == owner for index in range(len(parts)))))
    return of_plan, after


def part_of(plan: "Plan", start: int, end: int) -> "Plan":
    """The steps from ``start`` to before ``end`` of a plan."""

    def cut(steps: list[Tensor] | None) -> list[Tensor] | None:
        return None if steps is None else steps[start:end]

    columns = {name: steps[start:end] for name, steps in plan.columns.items()}
    return plan._replace(
        new=plan.new[start:end],
        replay=cut(plan.replay),
        reference=cut(plan.reference),
        replay_slots=cut(plan.replay_slots),
        reference_slots=cut(plan.reference_slots),
        columns=columns,
    )
