"""The training loop: the only one.

One step is: take the plan's samples, let the learner name its loss terms, differentiate their sum, let the learner edit the
gradient, step the optimizer, evaluate where due. Where a method learns without gradients, it learns from the samples by itself
instead. Nothing in a step reads a device tensor on the host.
"""

import dataclasses
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from clbench.config import RunConfig, TrainerConfig
from clbench.errors import Diverged, Interrupted
from clbench.evaluation.connectivity import Connectivity
from clbench.evaluation.diagnostics import Diagnostics
from clbench.evaluation.evaluator import COLUMNS, CURVE_COLUMNS, ContinualEvaluator, as_table
from clbench.evaluation.per_sample import refuse_batch_dependence
from clbench.evaluation.plasticity import Plasticity
from clbench.evaluation.policy_shift import REPORTED_BY, PolicyShift
from clbench.learning.base import Batch, Outputs, Plan
from clbench.learning.learner import Learner
from clbench.learning.microbatch import backward_in_pieces, refuse_batch_norm
from clbench.learning.stage import JointStage, part_of
from clbench.scenarios.inputs import InputPipeline
from clbench.scenarios.scenario import Samples, Scenario
from clbench.scenarios.task import Task
from clbench.seeding import stream_seed
from clbench.training.checkpoint import load_checkpoint, load_weights, position_in, save_checkpoint
from clbench.training.compute_budget import relative_cost
from clbench.training.frozen_weights import FrozenWeights
from clbench.training.held import Held, Slowed
from clbench.training.interruption import noted
from clbench.training.loss_record import LossRecord
from clbench.training.optimizers import (
    assign_gradients,
    flatten_gradients,
    forget,
    learning_rates,
    make_optimizer,
    next_update,
    optimizer_of_task,
)
from clbench.training.single_samples import notes_of_joined, refuse_single_samples, smallest_batch
from clbench.training.steps import Step, steps_of

PROGRESS_SECONDS = 0.25
"""The display is refreshed, and the losses are checked for NaN, this often."""


class Trainer:
    """Trains a learner on a scenario's tasks in turn.

    Args:
        config: the run's configuration.
        scenario: the stream.
        learner: model and strategies.
        inputs: makes network inputs.
        evaluator: evaluates while training.
        checkpoint: file that the state is saved to, and resumed from where it exists.
        on_progress: called a few times a second with (task, step, steps of the task, accuracies on the seen tasks).
        on_task_end: called with the index of a finished task after its tables are complete; of several that are recorded as one,
            with that of the last.
    """

    def __init__(
        self,
        config: RunConfig,
        scenario: Scenario,
        learner: Learner,
        inputs: InputPipeline,
        evaluator: ContinualEvaluator,
        checkpoint: Path,
        on_progress: Callable[[int, int, int, list[float]], None] | None = None,
        on_task_end: Callable[[int], None] | None = None,
    ) -> None:
        self.config, self.scenario, self.learner = config, scenario, learner
        self.inputs, self.evaluator, self.checkpoint = inputs, evaluator, checkpoint
        self.on_progress, self.on_task_end = on_progress, on_task_end
        self.device = next(learner.parameters()).device
        self.diagnostics = Diagnostics(learner, evaluator, config.evaluator.diagnostics_every)
        self.plasticity = Plasticity(learner, evaluator, config.evaluator.plasticity_every, config.seed)
        self.connectivity = Connectivity(learner, evaluator, config.evaluator.connectivity_points)
        self.policy_shift = PolicyShift(learner, evaluator, config.evaluator.kl_from)
        self.parameters = list(learner.trainable().values())
        self.optimizer = make_optimizer(config.trainer.of_task(0), self.parameters, learner.renews_weights)
        self.options = config.trainer
        """The options of ``trainer`` in the present stage."""
        self._optimizer_of_plan: torch.optim.Optimizer | None = None  # while that of a stage after the plan is in use
        self._optimizer_state: dict[str, Any] | None = None  # of a checkpoint in such a stage
        self.precision = evaluator.precision
        self.frozen_weights = FrozenWeights(learner)
        self.task = self.step = self.iteration = 0  # the next step is step ``step`` (from 0) of task ``task``
        self.steps: list[Step] = []
        """The steps of the current task's plan, or of the stage after it; set by :meth:`begin_task` and :meth:`begin_stage`."""
        self.n_stages_after = 0  # stages after the task's plan that have begun
        self.steps_before = 0  # steps of the task before the last of them
        self._within: dict[int, JointStage] = {}  # stages within the plan, by the step with which they begin
        self._after: list[JointStage] = []
        self.batches_per_update: dict[int, float] = {}
        """Of every task that has begun, where computation has a budget: how many batches arrive per batch trained on."""
        self.step_cost: float | None = None
        """Of the last task in which it was measured: operations of a step in units of a step of finetuning."""
        self.held: Held | None = None
        """The weights that the present stage does not train."""
        self.slowed: Slowed | None = None
        """The learning-rate factors of the weights, where any differs from 1."""
        self._begun = False  # whether the checkpoint lies within a task
        self.seconds_before = 0.0  # spent before a resume
        self.share_of_time = 1.0
        """The part of the time that passes which is this run's; less than 1 in a fleet."""
        self._started = time.perf_counter()
        self.losses = LossRecord()
        self._task_tables: list[pd.DataFrame] = []
        self._measurements: list[tuple[int, str, str, str, float]] = []
        self._reference: tuple[Tensor, Samples] | None = None

    # ---- results --------------------------------------------------------------------------------------------------

    @property
    def curve(self) -> pd.DataFrame:
        """The per-iteration table, see :data:`clbench.evaluation.evaluator.CURVE_COLUMNS`."""
        return as_table(self.evaluator.flush(), CURVE_COLUMNS)

    @property
    def tasks(self) -> pd.DataFrame:
        """Its columns but the last, on full test sets at task ends."""
        if not self._task_tables:
            return as_table(np.empty((0, len(COLUMNS))))
        return pd.concat(self._task_tables, ignore_index=True)

    @property
    def training(self) -> pd.DataFrame:
        """Training loss by term: task_learning, iteration, term, loss."""
        return self.losses.table

    @property
    def method(self) -> pd.DataFrame:
        """What strategies report of themselves at task ends, and the evaluator of the network: task_learning, strategy, quantity,
        part, value."""
        return pd.DataFrame(self._measurements, columns=["task_learning", "strategy", "quantity", "part", "value"])

    @property
    def seconds(self) -> float:
        """Wall-clock seconds of training and evaluation, over all resumes."""
        return self.seconds_before + self.share_of_time * (time.perf_counter() - self._started)

    # ---- the loop -------------------------------------------------------------------------------------------------

    def fit(self) -> None:
        """Train to the end of the stream, from the checkpoint where there is one.

        Raises:
            Diverged: a training loss is NaN or infinite; the tables end with the last step before it.
            Interrupted: Ctrl-C or SIGTERM has come; the checkpoint is that of the last step.
        """
        self.begin()
        while self.task < self.scenario.n_tasks:
            self.fit_task()

    def fit_task(self) -> None:
        """Learn the task that comes next."""
        self.begin_task()
        self._run_task()
        while self.begin_stage():
            self._run_task()
        self.end_task()

    def begin(self) -> None:
        """Load the checkpoint where there is one, or evaluate the untrained network.

        Raises:
            ConfigError: the network cannot be trained on a single sample, and would have to be; or not in pieces of a batch.
        """
        self._started = time.perf_counter()
        if self._smallest_batch() > 1:
            refuse_single_samples(self.scenario, self.learner, self.config.trainer)
        if self.config.trainer.microbatch is not None:
            with self._in_training_mode():
                refuse_batch_norm(self.learner.model, self.config.trainer.microbatch)
        self._resume()
        if self.task == self.step == 0 and not self._begun and self.scenario.setting != "class":
            self._task_tables.append(self.evaluator.evaluate_full(-1, 0))  # accuracy at initialisation, for FWT

    def begin_task(self) -> None:
        """Call the learner's hooks and lay out the task's steps."""
        index = self.task
        config = self.config.trainer.of_task(index)
        self.options = config
        self.learner.enter(self.learner.main_stage)  # hooks are not to see the last stage of the task before
        self._task = Task(index, self.scenario.n_tasks, self.scenario.classes_arriving(index), config, self.config.seed,
                          self.scenario.train, self.inputs, self.scenario.segments, self._smallest_batch(),
                          ordered=self.scenario.ordered)  # fmt: skip
        if not self._begun:
            if self._optimizer_of_plan is not None:
                self.optimizer, self._optimizer_of_plan = self._optimizer_of_plan, None
            drawn = self.learner.begin_task(self._task)
            self.policy_shift.begin_task(index)
            self.parameters = list(self.learner.trainable().values())  # the network may have grown
            if index > 0:
                renews = self.learner.renews_weights
                self.optimizer = optimizer_of_task(self.optimizer, config, self.parameters, renews)
                if drawn is not None and config.adam_steps == "own":
                    forget(self.optimizer, drawn)
        self._begun = False
        if config.budget is not None or (self.config.record.step_cost and index == self.scenario.n_tasks - 1):
            self._measure_cost(config.budget)
        self._plan = self.learner.plan(self._task)
        self.steps = self._placed(self._plan)
        self.learning_rates = learning_rates(config, len(self.steps))
        within, self._after = self.learner.stages(self._task, len(self.steps))
        self._within = {stage.start: stage for stage in within if stage.start is not None}
        if self.n_stages_after:
            self._go_on_after_plan()
        else:
            begun = [start for start in self._within if start < self.step]
            self._enter(self._within[max(begun, default=0)], resumed=bool(begun))
        self.train_mode()
        self.evaluator.compute_prefix()
        if self.step == 0 and (index == 0 or not self.steps):
            self.evaluator.evaluate(self.group, self.iteration)
        if self.step == 0:
            self.look_at_plasticity()

    def _measure_cost(self, budget: float | None) -> None:
        """Measure what a step costs; where there is a budget the task misses the batches that arrive while steps are computed."""
        self.train_mode()
        steps = self._placed(self.learner.plan(self._task))
        if not steps:
            return
        full = max(step.n_new for step in steps)  # what an epoch leaves over costs less
        step = self._recalled([step for step in steps if step.n_new == full][-1])
        self.step_cost = relative_cost(self.learner, self._batch_of(step, self.task))
        if budget is None:
            return
        every = max(1.0, self.step_cost * self.options.steps_per_batch / budget)
        self.batches_per_update[self.task] = every
        self._task = dataclasses.replace(self._task, batches_per_update=every)

    # ---- stages ---------------------------------------------------------------------------------------------------

    def begin_stage(self) -> bool:
        """Begin the next of the stages after the task's plan; False where there is none."""
        if self.n_stages_after == len(self._after):
            return False
        self.steps_before += self.step
        self.step = 0
        self.n_stages_after += 1
        self._enter(self._after[self.n_stages_after - 1])
        self._lay_out_stage()
        return True

    def _lay_out_stage(self) -> None:
        """Make the optimizer and plan the steps of a stage after the task's plan."""
        stage = self.learner.stage
        self.options = self._options_of(stage)
        self._optimizer_of_plan = self._optimizer_of_plan or self.optimizer
        self.optimizer = make_optimizer(self.options, self.parameters, self.learner.renews_weights)
        task = dataclasses.replace(self._task, budget=self.options, stage=self.n_stages_after)
        self.steps = self._placed(stage.plan(task, Plan(new=task.shuffled_batches(task.ids))))
        self.learning_rates = learning_rates(self.options, len(self.steps))
        self.train_mode()
        self.evaluator.compute_prefix()

    def _options_of(self, stage: JointStage) -> TrainerConfig:
        """The options of ``trainer`` in a stage."""
        return dataclasses.replace(self.config.trainer.of_task(self.task), **stage.trainer)

    def _go_on_after_plan(self) -> None:
        """Be in the stage after the task's plan in which a killed run has stopped."""
        self._enter(self._after[self.n_stages_after - 1], resumed=True)
        self._lay_out_stage()
        assert self._optimizer_state is not None
        self.optimizer.load_state_dict(self._optimizer_state)

    def _enter(self, stage: JointStage, resumed: bool = False) -> None:
        """Begin ``stage``, or go on with it."""
        self.learner.enter(stage)
        if not resumed:
            self.learner.eval()
            with self.precision.autocast():
                self.learner.begin_stage(self._task)
        if stage.start is not None and stage.plans:
            end = min((start for start in self._within if start > stage.start), default=len(self.steps))
            self.steps[stage.start : end] = self._placed(stage.plan(self._task, part_of(self._plan, stage.start, end)))
        trained = self.learner.trained_in_stage()
        self.held = None if trained is None else Held(self.parameters, trained)
        factors = self.learner.rate_factors(self._options_of(stage).backbone_rate)
        self.slowed = None if factors is None else Slowed(self.parameters, factors)

    def _smallest_batch(self) -> int:
        """The fewest samples that the network can be trained on at a time in the present task."""
        if not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in self.learner.modules()):
            return 1
        with self._in_training_mode():
            return smallest_batch(self.learner.model, self.scenario.input_shape)

    @contextmanager
    def _in_training_mode(self) -> Iterator[None]:
        """Within, modules are in the modes in which the present task trains them."""
        modes = [(module, module.training) for module in self.learner.modules()]
        self.train_mode()
        yield
        for module, training in modes:
            module.training = training

    def notes(self) -> list[str]:
        """What a reader of the results has to know of how it was trained."""
        notes = notes_of_joined(self.scenario, self.learner, self.config.trainer)
        if self.batches_per_update:
            least, most = (f"{f(self.batches_per_update.values()):.2f}" for f in (min, max))
            per_task = f", {most} in the task in which they cost most" if least != most else ""
            notes.append(
                f"trainer.budget={self.config.trainer.budget}: the steps on a batch take as long as {least} batches take to "
                f"arrive{per_task}; the others are missed"
            )
        return notes

    def _run_task(self) -> None:
        """Take the task's remaining steps."""
        last_look = last_checkpoint = time.monotonic()
        while self.step < len(self.steps):
            self.advance()
            now = time.monotonic()
            if now - last_look >= PROGRESS_SECONDS:
                last_look = now
                self.check_finite()
                self.show_progress()
            if noted() is not None and self.may_save:
                self.save()
                raise Interrupted(str(self.checkpoint.parent.parent), noted())
            if now - last_checkpoint >= self.config.record.checkpoint_seconds and self.may_save:
                self.save()
                last_checkpoint = time.monotonic()
        self.check_finite()
        self.show_progress()

    def advance(self) -> None:
        """Take one step, and evaluate where it is due."""
        self.enter_where_due()
        self._train_step(self.task, self.steps[self.step])
        self.step += 1
        self.iteration += 1
        self.evaluator.after_step(self.group, self.steps_before + self.step, self.n_steps, self.iteration)
        self.look_at_plasticity()

    @property
    def group(self) -> int:
        """The group of evaluated samples that is recorded as being learned: the task, but for streams that say otherwise."""
        return self.scenario.group_at(self.task)

    @property
    def n_steps(self) -> int:
        """Steps of the task that are known of: with its plan and the stages after it that have begun."""
        return self.steps_before + len(self.steps)

    def enter_where_due(self) -> None:
        """Enter the stage within the plan that begins with the next step."""
        if self.n_stages_after == 0 and self.step > 0 and self.step in self._within:
            self._enter(self._within[self.step])
            self.train_mode()

    def look_at_plasticity(self) -> None:
        """Take measures of plasticity, where it is time to."""
        if self.plasticity.due(self.steps_before + self.step, self.n_steps):
            self.plasticity.look(self.task, self.iteration)

    def end_task(self) -> None:
        """Call the learner's hooks, evaluate on full test sets, save."""
        self.learner.end_task(self._task)
        if self.learner.consolidates:
            self._evaluate_consolidated()
        if self.task in (0, 1, self.scenario.n_tasks - 1):
            refuse_batch_dependence(self.evaluator, self.group)
        self.connectivity.look(self.task)
        closes = self.task + 1 == self.scenario.n_tasks or self.scenario.group_at(self.task + 1) != self.group
        if closes:
            self._measurements += [(self.group, name, *reported) for name, reported in self.learner.measurements()]
            self._measurements += [(self.group, REPORTED_BY, *found) for found in self.policy_shift.look(self.group)]
            self._task_tables.append(self.evaluator.evaluate_full(self.group, self.iteration))
        finished, self.task, self.step, self._reference = self.task, self.task + 1, 0, None
        self.n_stages_after = self.steps_before = 0
        self.save()
        if self.config.record.checkpoint == "all":
            unfinished = self.checkpoint.with_name(f"task_{self.task}.unfinished")
            shutil.copyfile(self.checkpoint, unfinished)
            unfinished.replace(unfinished.with_suffix(".pt"))
        if self.on_task_end and closes:
            self.on_task_end(finished)

    def _evaluate_consolidated(self) -> None:
        """Evaluate what the hooks at the task's end have made of the learner."""
        self.train_mode()
        self.evaluator.compute_prefix()
        self.learner.eval()
        self.evaluator.evaluate_consolidated(self.group, self.iteration)

    def show_progress(self) -> None:
        """Tell whoever displays it where training is."""
        if self.on_progress:
            self.on_progress(self.task, self.steps_before + self.step, self.n_steps, self.evaluator.latest())

    @property
    def may_save(self) -> bool:
        """Whether a checkpoint taken now, within a task, resumes to the same run."""
        return self.step < len(self.steps) and self.evaluator.settled

    def _train_step(self, task: int, step: Step) -> None:
        step = self._recalled(step)
        batch = self._batch_of(step, task)
        if not self.scenario.boundaries:
            self.learner.model.answer.see(self.scenario.train.labels[batch.ids])
        if self.learner.learns_by_gradient:
            terms = self._follow_gradient(task, batch)
        else:
            with torch.no_grad(), self.precision.autocast():
                terms = self.learner.learn(batch)
        kept = self.learner.compilation.kept
        self.losses.add(self.group, self.iteration + 1, {name: kept(term) for name, term in terms.items()})

    def _batch_of(self, step: Step, task: int) -> Batch:
        """What the step sees; without augmentation where nothing is learned by gradient."""
        ids = step.ids.to(self.device, non_blocking=True)
        if not self.learner.learns_by_gradient:
            return Batch(self.inputs.plain(self.scenario.train, step.ids), ids, step.n_new, columns=step.columns)
        samples = self.inputs.training(self.scenario.train, step.ids, task, self.steps_before + self.step)
        reference = None if step.reference is None else self._reference_samples(step.reference, task)
        return Batch(samples, ids, step.n_new, reference, step.reference_sizes, step.columns)

    def _recalled(self, step: Step) -> Step:
        """The step with the ids of what its slots hold at present."""
        if step.replay_slots is None and step.reference_slots is None:
            return step
        with torch.no_grad():
            return step.recalled(self.learner.recall)

    def _follow_gradient(self, task: int, batch: Batch) -> dict[str, Tensor]:
        """One optimizer step for the batch; returns its loss terms."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rates[self.step]
        look = self.diagnostics.due(self.step)

        def differentiate() -> tuple[dict[str, Tensor], Outputs | None]:
            size = self.options.microbatch
            if size is not None and len(batch.ids) > size:
                return self._differentiate_in_pieces(batch, size)
            with self.precision.autocast():
                terms, outputs = self.learner.compilation.run("losses", self.learner.loss_and_outputs, batch)
                total = sum(terms.values())
            self.optimizer.zero_grad(set_to_none=True)
            if look:
                self.diagnostics.before_step(self.group, self.iteration + 1, terms)
            self.precision.backward(total, self.optimizer)
            return terms, outputs

        terms, outputs = self.learner.compilation.guarded(differentiate)
        if self.learner.stage.trains_head_only:
            # What has no gradient gets zeros, as in a fleet: the optimizer, too, has to go on as it does there.
            assign_gradients(self.parameters, flatten_gradients(self.parameters))
        gradient = None
        if self.learner.edits_gradients or self.learner.keeps_gradient:
            gradient = self.precision.finite(flatten_gradients(self.parameters))
        if gradient is not None and self.learner.edits_gradients:
            if self.learner.looks_ahead:
                update = next_update(self.optimizer, gradient)
                batch = batch._replace(update=update if self.slowed is None else self.slowed.factors * update)
            with self.precision.autocast():
                edited = self.learner.edit_gradients(gradient, batch)
            if look:
                self.diagnostics.projection(gradient, edited)
            assign_gradients(self.parameters, edited)
        if self.held is not None:
            self.held.leave_out()
        if self.options.clip_grad_norm is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.options.clip_grad_norm)
        if self.slowed is not None:
            self.slowed.before_step()
        self.precision.step(self.optimizer)
        if self.slowed is not None:
            self.slowed.after_step()
        if self.held is not None:
            self.held.put_back()
        if self.learner.acts_after_steps:
            with torch.no_grad():
                seen = batch._replace(update=None, gradient=gradient, outputs=outputs)
                renewed = self.learner.after_step(self.steps_before + self.step + 1, seen)
            if renewed is not None:
                forget(self.optimizer, renewed)
        if look:
            self.diagnostics.after_step()
        return terms

    def _differentiate_in_pieces(self, batch: Batch, size: int) -> tuple[dict[str, Tensor], Outputs]:
        """The loss terms and outputs of the batch, and its gradient, from pieces of at most ``size`` samples."""

        def run(name: str, function: Callable[..., Any], *arguments: Any) -> Any:
            with self.precision.autocast():
                return self.learner.compilation.run(name, function, *arguments)

        self.optimizer.zero_grad(set_to_none=True)
        found = backward_in_pieces(
            batch,
            size,
            partial(run, "outputs", self.learner.outputs),
            partial(run, "terms", self.learner.terms),
            self.precision.scaled,
        )
        self.precision.unscale(self.optimizer)
        return found

    def _placed(self, plan: Plan) -> list[Step]:
        return steps_of(plan, self.scenario.train.store.index_device, self.device)

    def _reference_samples(self, ids: Tensor, task: int) -> Samples:
        """Reference samples; kept from step to step while the ids are the same and nothing random is done to them."""
        if self._reference is None or self._reference[0] is not ids or self.inputs.augmentation is not None:
            # A step number that no training batch has, so that the two draw different augmentations.
            self._reference = (
                ids,
                self.inputs.training(self.scenario.train, ids, task, -1 - self.steps_before - self.step),
            )
        return self._reference[1]

    def train_mode(self) -> None:
        """Training mode, with BatchNorm as ``trainer.batch_norm`` says, and all that features depend on where they are held."""
        if not self.learner.learns_by_gradient:
            self.learner.eval()
            return
        self.learner.train()
        policy = self.config.trainer.batch_norm
        if policy == "frozen" or (policy == "freeze_after_first_task" and self.task > 0):
            for module in self.learner.model.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        if self.learner.stage.trains_head_only:
            self.learner.model.backbone.eval()

    def check_finite(self) -> None:
        """Raise Diverged at the first non-finite loss, dropping everything recorded from that step on."""
        bad = self.losses.first_not_finite()
        if bad is None:
            return
        task, iteration, term, loss = bad
        self.evaluator.drop_from(iteration)
        raise Diverged(f"the loss term {term!r} became {loss} at iteration {iteration} (task {task})")

    # ---- checkpoints ----------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write the checkpoint."""
        save_checkpoint(
            self.checkpoint,
            {
                **self._state_of_learner(),
                "optimizer": (self._optimizer_of_plan or self.optimizer).state_dict(),
                "optimizer_of_stage": self.optimizer.state_dict() if self._optimizer_of_plan else None,
                "loss_scale": self.precision.state_dict(),
                "position": {
                    "task": self.task,
                    "stages_after": self.n_stages_after,
                    "steps_before": self.steps_before,
                    "step": self.step,
                    "iteration": self.iteration,
                },
                "curve": torch.from_numpy(self.evaluator.flush()),
                "evaluator": self.evaluator.state_dict(),
                "tasks": torch.from_numpy(self.tasks.to_numpy(np.float64)),
                "losses": self.losses.rows(),
                "diagnostics": self.diagnostics.rows(),
                "plasticity": self.plasticity.rows(),
                "connectivity": self.connectivity.state_dict(),
                "policy_shift": self.policy_shift.state_dict(),
                "measurements": list(self._measurements),
                "batches_per_update": dict(self.batches_per_update),
                "step_cost": self.step_cost,
                "rng": torch.get_rng_state(),
                "cuda_rng": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
                "seconds": self.seconds,
                "evaluation_seconds": self.evaluator.seconds,
            },
        )

    def keep_what_is_asked_for(self) -> None:
        """After the last step: leave of the checkpoint what ``record.checkpoint`` asks for."""
        match self.config.record.checkpoint:
            case "last":
                position = {"task": self.task, "step": self.step, "iteration": self.iteration}
                save_checkpoint(self.checkpoint, {**self._state_of_learner(), "position": position})
            case "none":
                shutil.rmtree(self.checkpoint.parent, ignore_errors=True)

    def _state_of_learner(self) -> dict[str, Any]:
        """Its state, and the SHA-256 of the weights that are left out of it, see :mod:`clbench.training.frozen_weights`."""
        state, left_out = self.frozen_weights.left_out_of(self.learner.state_dict())
        return {"learner": state, "left_out": left_out}

    def _resume(self) -> None:
        """Load the checkpoint if there is one; if not, start torch's own generators."""
        state: dict[str, Any] | None = load_checkpoint(self.checkpoint, self.device)
        if state is None:
            seed_torch(self.config.seed)
            return
        position = position_in(state, self.checkpoint)
        left_out = state.get("left_out", {})  # none in older checkpoints
        for name, parameter in self.learner.model.named_parameters(prefix="model"):
            # Other members of a fleet may hold the same tensor, see share_frozen.
            if not parameter.requires_grad and name not in left_out:
                parameter.data = parameter.data.clone()
        self.task, self.step, self.iteration = (position[key] for key in ("task", "step", "iteration"))
        self.n_stages_after = position.get("stages_after", 0)  # not in older checkpoints
        self.steps_before = position.get("steps_before", 0)
        self._begun = self.step > 0 or self.n_stages_after > 0
        self.learner.resume_at(self.task, begun=self._begun)
        whole = self.frozen_weights.put_into(state["learner"], left_out, self.checkpoint)
        load_weights(self.learner, whole, self.checkpoint)
        self.parameters = list(self.learner.trainable().values())
        last = self.task if self._begun else max(self.task - 1, 0)  # task whose optimizer is saved
        options = self.config.trainer.of_task(last)
        self.optimizer = make_optimizer(options, self.parameters, self.learner.renews_weights)
        self.optimizer.load_state_dict(state["optimizer"])
        self._optimizer_state = state.get("optimizer_of_stage")  # not in older checkpoints
        self.precision.load_state_dict(state["loss_scale"])
        self.evaluator.restore(state["curve"].cpu().numpy())
        self.evaluator.load_state_dict(state["evaluator"])
        self._task_tables = [as_table(state["tasks"].cpu().numpy())]
        self.losses.restore(state["losses"])
        self.diagnostics.restore(state["diagnostics"])
        self.plasticity.restore(state.get("plasticity", []))  # none in older checkpoints
        if "connectivity" in state:  # not in older checkpoints
            self.connectivity.load_state_dict(state["connectivity"], self.task)
        if "policy_shift" in state:  # not in older checkpoints
            self.policy_shift.load_state_dict(state["policy_shift"])
        self._measurements = [tuple(row) for row in state.get("measurements", [])]  # none in older checkpoints
        self.batches_per_update = state.get("batches_per_update", {})  # not in older checkpoints
        self.step_cost = state.get("step_cost")
        torch.set_rng_state(state["rng"].cpu())
        if state["cuda_rng"] is not None:
            torch.cuda.set_rng_state(state["cuda_rng"].cpu(), self.device)
        self.seconds_before, self.evaluator.seconds = state["seconds"], state["evaluation_seconds"]


def seed_torch(seed: int) -> None:
    """Start torch's own generators, of all devices, from the stream (seed, "dropout"): what draws from them while training."""
    torch.manual_seed(stream_seed(seed, "dropout"))
