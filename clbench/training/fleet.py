"""Many runs trained as one computation.

R trainers of the same model, strategy and stream shape, which may differ in seed, class order and real-valued options, are
taken through the stream in lockstep. Their hooks at task boundaries run one trainer after another, as in a run alone; a
training step and an evaluation are one computation for all (:class:`clbench.learning.stack.Stack`). Every learner holds
its row of the stacks as a view, so that its checkpoint and its tables are those of a run alone, which
``python -m clbench resume`` continues.

Batches, augmentation draws and initial weights are those of the run alone. Results agree with it within the rounding of
batched products; dropout draws other numbers of the same distribution, from the stream of the first member.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from clbench.errors import ConfigError, Diverged, Interrupted
from clbench.evaluation.adaptive import AdaptiveEvaluator, StackedAdaptive
from clbench.evaluation.stacked import Place, StackedPeriodic
from clbench.learning.base import Batch
from clbench.learning.stack import Stack, row_numbers
from clbench.learning.stage import JointStage
from clbench.scenarios.scenario import Samples
from clbench.scenarios.stacked_inputs import StackedInputs
from clbench.training.held import slowed
from clbench.training.interruption import noted
from clbench.training.stacked_optimizer import StackedOptimizer, clip_rows
from clbench.training.steps import Step
from clbench.training.trainer import PROGRESS_SECONDS, Trainer, seed_torch


class Fleet:
    """Trains R runs together; see the module docstring.

    Args:
        members: the runs, not begun or all stopped at the same step, of equal structure
            (see :mod:`clbench.sweeps.grouping`).
        on_progress: called a few times a second with (task, step, steps of the task, mean accuracy on every seen task).

    Raises:
        ConfigError: the runs compute in fp16.
    """

    def __init__(
        self, members: list[Trainer], on_progress: Callable[[int, int, int, list[float]], None] | None = None
    ) -> None:
        if any(member.config.trainer.precision == "fp16" for member in members):
            raise ConfigError(
                "trainer.precision=fp16 is not possible in a fleet, where one loss scale would leave out a step of all runs as "
                "soon as one overflows: choose trainer.precision=bf16 or fp32, or train the runs one by one"
            )
        self.members, self.on_progress = members, on_progress
        self.diverged: dict[int, Diverged] = {}
        """Why, for every run that has diverged. Such a run is frozen: it takes no further part."""
        self._alive = list(range(len(members)))
        self._reference: tuple[list[Tensor], Samples] | None = None  # see _reference_samples

    def fit(self) -> None:
        """Train every run to the end of its stream, or to where it diverges.

        Raises:
            Interrupted: Ctrl-C or SIGTERM has come; the checkpoints are those of the last step.
        """
        for member in self.members:
            member.begin()
            member.share_of_time = 1 / len(self.members)
        if not any(member.iteration for member in self.members):  # not resumed
            seed_torch(self.members[0].config.seed)
        places = {(member.task, member.n_stages_after, member.step) for member in self.members}
        if len(places) > 1:
            raise ValueError(f"the members of a fleet stand at different steps: {sorted(places)}")
        while self._alive and self._living[0].task < self._living[0].scenario.n_tasks:
            self.begin_task()
            self._run_task()
            while self._begin_stage():
                self._run_task()
            for member in self._living:
                member.end_task()

    # ---- one task -------------------------------------------------------------------------------------------------

    def begin_task(self) -> None:
        """Call every member's hooks, then stack the members."""
        for member in self._living:
            member.begin_task()
        self._task = self._living[0].task
        self._n_steps = max(len(member.steps) for member in self._living)
        self._stack()

    def _begin_stage(self) -> bool:
        """Let every member begin the next stage after the task's plan, of which all have as many; False where there is none."""
        begun = [member.begin_stage() for member in self._living]
        if not any(begun):
            return False
        self._n_steps = max(len(member.steps) for member in self._living)
        self._stack()
        return True

    def _run_task(self) -> None:
        """Take the task's remaining steps."""
        last_look = last_checkpoint = time.monotonic()
        between_checkpoints = self._living[0].config.record.checkpoint_seconds
        while self._alive and self.step < self._n_steps:
            self.train_step()
            now = time.monotonic()
            if now - last_look >= PROGRESS_SECONDS and self._evaluation.settled:
                last_look = now
                self._freeze_diverged()
                self._show_progress()
            stop = noted()
            is_due = stop is not None or now - last_checkpoint >= between_checkpoints
            if is_due and self._evaluation.settled and self.step < self._n_steps:
                self._hand_back()
                for member in self._living:
                    member.save()
                last_checkpoint = time.monotonic()
                if stop is not None:
                    raise Interrupted(str(self._living[0].checkpoint.parent.parent), stop)
        self._freeze_diverged()
        self._show_progress()
        self._hand_back()

    def train_step(self) -> None:
        """One step of every member that has steps left, and the evaluation where it is due."""
        step = self.step
        groups: dict[Any, list[int]] = {}
        for row, member in enumerate(self._living):
            if step < len(member.steps):
                member.enter_where_due()
                key = member.steps[step].shape, member.learner.stage.key, member.steps_before
                groups.setdefault(key, []).append(row)
        # Batches of one shape are one computation. They differ where tasks differ in size: an epoch's last batch is smaller.
        own = self._living[0].learner.stage
        stages = [member.learner.stage for member in self._living]
        for rows in groups.values():
            self._enter(stages[rows[0]])
            self._step_together(rows, step)
        self._enter(own)
        places = [
            Place(row, member.group, member.steps_before + member.step, member.n_steps, member.iteration)
            for row, member in enumerate(self._living)
            if member.step > step
        ]
        self._evaluation.after_step(self._stacked, places)
        for member in self._living:
            if member.step > step:
                member.look_at_plasticity()

    def evaluate(self, task_learning: int) -> Tensor:
        """Sums (R, tasks, 2: correct, loss) of all members as they are now, on the tasks up to ``task_learning``."""
        with self._living[0].evaluator.undisturbed():
            return self._evaluation.evaluation.sums(self._stacked, list(range(len(self._stacked))), task_learning)

    @property
    def step(self) -> int:
        """The number of steps taken in the current task."""
        return max(member.step for member in self._living)

    def _enter(self, stage: JointStage) -> None:
        """Let the learner of the stack, which is the first member's own, be in the ``stage`` of the members that step next."""
        first = self._living[0]
        if first.learner.stage.key != stage.key:
            first.learner.enter(stage)
            first.train_mode()

    def _step_together(self, rows: list[int], step: int) -> None:
        """One step of the members in ``rows``."""
        members = [self._living[row] for row in rows]
        steps = [member.steps[step] for member in members]
        index = self._index(rows)
        stack = self._stacked if index is None else self._stacked.select(index)
        if steps[0].replay_slots is not None or steps[0].reference_slots is not None:
            steps = self._recalled(stack, steps)
        ids = [s.ids for s in steps]
        columns = {name: torch.stack([s.columns[name] for s in steps]) for name in steps[0].columns}
        batch = partial(
            Batch,
            ids=torch.stack(ids).to(stack.weights.device, non_blocking=True),
            n_new=steps[0].n_new,
            reference_sizes=steps[0].reference_sizes,
            columns=columns,
        )
        if self._stacked.learner.learns_by_gradient:
            place = members[0].steps_before + step  # within the task, of all of them
            samples = self._inputs.training(rows, index, ids, self._task, place)
            reference = self._reference_samples(rows, index, steps, place)
            terms = self._follow_gradients(stack, index, members, batch(samples=samples, reference=reference), step)
        else:
            with torch.no_grad(), members[0].precision.autocast():
                terms = stack.learn(batch(samples=self._inputs.plain(rows, index, ids)))
        if index is not None:
            self._stacked.put(index, stack)
        for member in members:
            member.step += 1
            member.iteration += 1
        self._losses.append((members, [member.iteration for member in members], terms))

    def _follow_gradients(
        self, stack: Stack, index: Tensor | None, members: list[Trainer], batch: Batch, step: int
    ) -> dict[str, Tensor]:
        """One optimizer step of the rows ``index`` (None for all), which are ``members``; returns their loss terms."""
        precision, learner = self._living[0].precision, self._stacked.learner
        factors = _rate_factors(members, stack.weights)
        with precision.autocast():
            terms, outputs, gradients = stack.losses_and_gradients(batch, members[0].options.microbatch)
            of_loss = gradients if learner.keeps_gradient else None
            if learner.edits_gradients:
                if learner.looks_ahead:
                    update = self._optimizer.next_update(stack.weights, gradients, step, index)
                    batch = batch._replace(update=update if factors is None else factors * update)
                gradients = stack.edited(gradients, batch)
        held = [member.held for member in members if member.held is not None]
        if held:
            trained, kept = (torch.stack([getattr(h, name) for h in held]) for name in ("trained", "kept"))
            gradients = gradients.masked_fill(~trained, 0)  # nor do they count when gradients are clipped
        if self._clip is not None:
            gradients = clip_rows(gradients, self._clip if index is None else self._clip[index])
        before = None if factors is None else stack.weights.clone()
        self._optimizer.step(stack.weights, gradients, step, index)
        if before is not None and factors is not None:
            stack.weights.copy_(slowed(before, stack.weights, factors))
        if held:
            stack.weights.copy_(torch.where(trained, stack.weights, kept))
        if learner.acts_after_steps:
            with torch.no_grad():
                seen = batch._replace(update=None, gradient=of_loss, outputs=outputs)
                renewed = stack.after_step(members[0].steps_before + step + 1, seen)
            if renewed is not None:
                self._optimizer.forget(renewed, index)
        return terms

    @staticmethod
    def _recalled(stack: Stack, steps: list[Step]) -> list[Step]:
        """The steps with the ids of what their slots hold at present."""
        held: dict[str, Any] = {}
        for name in ("replay_slots", "reference_slots"):
            if getattr(steps[0], name) is not None:
                with torch.no_grad():
                    held[name] = stack.recall(torch.stack([getattr(step, name) for step in steps]))
        return [
            step._replace(**{name: ids[row] for name, ids in held.items()}).recalled(lambda ids: ids)
            for row, step in enumerate(steps)
        ]

    def _index(self, rows: list[int]) -> Tensor | None:
        """``rows`` on the device; None for all."""
        if len(rows) == len(self._living):
            return None
        key = tuple(rows)
        if key not in self._indices:
            self._indices[key] = row_numbers(rows, self._stacked.weights.device)
        return self._indices[key]

    def _reference_samples(self, rows: list[int], index: Tensor | None, steps: list[Step], step: int) -> Samples | None:
        """Reference samples; kept from step to step while the ids are the same and nothing random is done to them."""
        ids = [s.reference for s in steps if s.reference is not None]
        if not ids:
            return None
        # The tensors themselves are kept: ids that a memory has just been asked for are freed after the step, and the next ones
        # may well stand at the same address.
        kept = [] if self._reference is None else self._reference[0]
        is_the_same = len(kept) == len(ids) and all(mine is its for mine, its in zip(kept, ids, strict=True))
        if self._reference is None or not is_the_same or self._living[0].inputs.augmentation is not None:
            # The step number is that of Trainer._reference_samples, so that the same augmentation is drawn.
            self._reference = ids, self._inputs.training(rows, index, ids, self._task, -1 - step)
        return self._reference[1]

    # ---- stacking -------------------------------------------------------------------------------------------------

    def _stack(self) -> None:
        """Stack what the living members hold."""
        members = self._living
        self._stacked = Stack.of([member.learner for member in members])
        configs = [member.options for member in members]
        rates = torch.zeros(self._n_steps, len(members), dtype=torch.float64)
        for row, member in enumerate(members):
            rates[: len(member.steps), row] = torch.tensor(member.learning_rates, dtype=torch.float64)
        self._optimizer = StackedOptimizer(
            configs, rates, [member.parameters for member in members], [member.optimizer for member in members]
        )
        largest = [config.clip_grad_norm for config in configs]
        self._clip: Tensor | None = None if largest[0] is None else self._stacked.weights.new_tensor(largest)
        self._inputs = StackedInputs([member.inputs for member in members], [m.scenario.train for m in members])
        evaluators = [member.evaluator for member in members]
        adaptive = [evaluator for evaluator in evaluators if isinstance(evaluator, AdaptiveEvaluator)]  # all or none
        self._evaluation = StackedAdaptive(adaptive) if adaptive else StackedPeriodic(evaluators)
        self._indices: dict[tuple[int, ...], Tensor] = {}
        self._reference = None
        self._losses: list[tuple[list[Trainer], list[int], dict[str, Tensor]]] = []

    def _hand_back(self) -> None:
        """Bring the members up to date. Their weights are views of the stacks, and are already."""
        self._collect_losses()
        self._evaluation.hand_back()
        self._optimizer.export()

    @property
    def _living(self) -> list[Trainer]:
        return [self.members[index] for index in self._alive]

    # ---- bookkeeping ----------------------------------------------------------------------------------------------

    def _collect_losses(self) -> None:
        """Give the members their recorded losses; one copy from the device for all."""
        if not self._losses:
            return
        together = torch.cat([loss for _, _, terms in self._losses for loss in terms.values()]).tolist()
        values = iter(together)
        for members, iterations, terms in self._losses:
            for name in terms:
                for member, iteration in zip(members, iterations, strict=True):
                    member.losses.add_value(member.group, iteration, name, next(values))
        self._losses = []

    def _freeze_diverged(self) -> None:
        """Take members whose loss is no longer finite out of the fleet."""
        self._collect_losses()
        self._evaluation.hand_back()
        for index in list(self._alive):
            try:
                self.members[index].check_finite()
            except Diverged as error:
                self.diverged[index] = error
                self._alive.remove(index)
        if self._alive and len(self._alive) < len(self._stacked):
            self._optimizer.export()
            self._stack()

    def _show_progress(self) -> None:
        if not self.on_progress or not self._alive:
            return
        accuracies = [member.evaluator.latest() for member in self._living]
        mean = [sum(of_task) / len(of_task) for of_task in zip(*accuracies, strict=True)]
        self.on_progress(self._task, self.step, self._n_steps, mean)


def _rate_factors(members: list[Trainer], weights: Tensor) -> Tensor | None:
    """The factors of the learning rate (R, P) of the members' weights (R, P); None where all are 1."""
    if all(member.slowed is None for member in members):
        return None
    nothing = torch.ones_like(weights[0])
    return torch.stack([nothing if m.slowed is None else m.slowed.factors for m in members])
