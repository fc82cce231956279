"""The continual evaluator: accuracy on every task seen so far, after every ``every`` optimizer steps.

De Lange, van de Ven & Tuytelaars 2023 (arXiv:2205.13452). Each task is represented by a subset that is drawn once, from a
generator of its own, so that a minimum over iterations measures the network and not the draw. One evaluation is one fused
forward pass over the subsets of all seen tasks; its counts stay on the device until :meth:`ContinualEvaluator.flush`.

Many methods do something when a task is over, and some of them predict otherwise from then on (RanPAC solves its head there).
So where a strategy has such a hook, the last iteration of a task is evaluated twice: before the hooks, as any other iteration,
and after them (``consolidated``).
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import accumulate, groupby, pairwise
from operator import itemgetter
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from clbench.config import EvaluatorConfig
from clbench.learning.learner import Learner
from clbench.models.answers import SpokenLabels
from clbench.precision import Precision
from clbench.scenarios.inputs import InputPipeline
from clbench.scenarios.scenario import Samples, Scenario, Split
from clbench.seeding import torch_generator

log = logging.getLogger(__name__)

T = TypeVar("T")

COLUMNS = ["task_learning", "iteration", "task_eval", "n", "correct", "loss"]
"""One row per evaluation and task: the task being learned and the one evaluated count from 0; ``iteration`` is the number of
optimizer steps since the start of the stream (0: before the first); ``loss`` is the summed cross-entropy of ``n`` samples."""

CURVE_COLUMNS = [*COLUMNS, "consolidated"]
"""Those of the curve: ``consolidated`` is True in rows that were evaluated after the hooks at the end of ``task_learning``."""

ANSWER_COLUMNS = ["task_learning", "iteration", "task_eval", "n", "exact", "valid", "consolidated"]
"""One row per evaluation and task, as the curve's, of a language model that says its answers: in how many of ``n`` samples the
right answer is the likeliest token of all, and in how many some answer of the sample's task is."""

SEEN_COLUMNS = ["task_learning", "iteration", "classes", "n", "correct"]
"""One row per evaluation of a stream whose classes need not arrive each with its task: how many classes have been seen, how many
samples of the subsets are of one of them, and how many of those are classified correctly."""

SAMPLES_AT_ONCE = {"cuda": 4096, "cpu": 8192, "cpu, convolutions": 128}
"""Samples of one forward pass. Convolutions on a processor want their activations to stay in its cache: slim ResNet-18 takes
0.6 times as long for 128 at a time as for 1,024 (two cores)."""

LARGEST_CACHE = 2**31
"""Bytes of normalised evaluation inputs that are kept; larger subsets are kept as uint8 and normalised each time."""


class ContinualEvaluator:
    """Evaluates a learner without leaving a trace in it.

    Args:
        learner: what is evaluated.
        scenario: the stream; ``config.split`` names the split that is read.
        inputs: makes network inputs.
        config: period, subset size, split.
        seed: the run's seed; the subsets come from the stream (seed, "evaluation_subset", task).
        precision: of the forward passes, the same as in training.
    """

    def __init__(
        self,
        learner: Learner,
        scenario: Scenario,
        inputs: InputPipeline,
        config: EvaluatorConfig,
        seed: int,
        precision: Precision,
    ) -> None:
        self.learner, self.scenario, self.inputs, self.config = learner, scenario, inputs, config
        self.precision = precision
        self.split: Split = scenario.test if config.split == "test" else scenario.validation  # type: ignore[assignment]
        self.subset_ids: list[Tensor] = []
        for task in range(scenario.n_groups):
            ids = self.split.ids(task)
            drawn = torch.randperm(len(ids), generator=torch_generator(seed, "evaluation_subset", task))
            self.subset_ids.append(ids[drawn[: config.subset].sort().values])
        self.sizes = [len(ids) for ids in self.subset_ids]
        self._images, labels, tasks = self.split.take(torch.cat(self.subset_ids))
        if 4 * self._images.numel() <= LARGEST_CACHE:
            self._images = inputs.normalise(self._images)
        self._labels, self._tasks = labels, tasks
        self._stages_done = 0  # see compute_prefix
        self._after_stages: Tensor | None = None
        self._stages_of: list[nn.Module] = []  # what the network consisted of when its stages were made
        self._stages: list[nn.Module] = []
        self._pending: list[tuple[int, int, bool, Tensor]] = []
        self._rows: list[np.ndarray] = []
        self.classes_apart = scenario.segments is not None and scenario.setting == "class"
        """Whether classes need not arrive each with its task."""
        self.counts_seen = self.classes_apart and config.kind == "periodic"
        """Whether each evaluation counts over the classes seen so far, too."""
        self._pending_seen: list[tuple[int, int, Tensor]] = []
        self._seen_rows: list[np.ndarray] = []
        self.hears_answers = isinstance(learner.model.answer, SpokenLabels)
        """Whether each evaluation counts what a language model says, too, see :attr:`answers`."""
        self._width = len(CURVE_COLUMNS) + 2 * self.hears_answers
        self._modules = list(learner.modules())
        convolves = any(isinstance(module, nn.Conv2d) for module in self._modules)
        self._samples_at_once = SAMPLES_AT_ONCE[
            "cuda" if labels.is_cuda else "cpu, convolutions" if convolves else "cpu"
        ]
        tokens = getattr(learner.model.backbone, "tokens_at_once", None)
        if tokens is not None and (scenario.reads == "tokens" or len(scenario.input_shape) == 2):
            at_once = tokens["cuda" if labels.is_cuda else "cpu"] // scenario.input_shape[0]
            self._samples_at_once = max(1, min(self._samples_at_once, at_once))
        self._halvings = 0  # of the number of samples at once, for want of memory
        self.seconds = 0.0
        """Time spent evaluating. On a GPU, where work is queued, only the time to queue it."""

    def after_step(self, task_learning: int, step: int, n_steps: int, iteration: int) -> None:
        """Evaluate where due: after ``step`` (from 1) of the task's ``n_steps``."""
        if self.due(step, n_steps):
            self.evaluate(task_learning, iteration)

    def due(self, step: int, n_steps: int) -> bool:
        """Whether to evaluate after ``step`` (from 1) of a task's ``n_steps``: periodically, and around task switches."""
        every = self.config.every
        return step in (1, n_steps) or (every > 0 and step % every == 0)

    @property
    def settled(self) -> bool:
        """Whether every evaluation that is due so far has been made."""
        return True

    def settle(self) -> None:
        """Make evaluations that are due and wait."""

    def compute_prefix(self) -> None:
        """Compute what the frozen first stages of the network make of the subsets; called in training mode.

        Nothing in training changes it, so that every evaluation of the task can start from there. Hooks between training may
        change it: it has to be computed again after them. Not where a strategy's predictions may look at the images by
        themselves.
        """
        model = self.learner.model
        n = 0
        if self.learner.predicts_from_features:
            n = model.frozen_prefix() if self.learner.learns_by_gradient else len(model.stages())
        self._stages_done, self._after_stages = 0, None
        if n == 0:
            return
        with self.undisturbed(), self.precision.autocast():
            parts = self.fitting(lambda: [model.prefix(self.subset(part).x, n) for part in self.parts(sum(self.sizes))])
            if sum(part.numel() * part.element_size() for part in parts) <= LARGEST_CACHE:
                self._stages_done, self._after_stages = n, torch.cat(parts)

    def begins_as(self, other: "ContinualEvaluator") -> bool:
        """Whether the first stages, where they have been computed, make the same of the same samples as another's."""
        mine, its = self._after_stages, other._after_stages
        return its is None if mine is None else its is not None and torch.equal(mine, its)

    def from_stages(self) -> AbstractContextManager:
        """The context in which the network takes what :meth:`subset` gives: images, or the output of its first stages."""
        model = self.learner.model
        if self._stages_done:
            modules = list(model.backbone.modules())
            if modules != self._stages_of:  # compared by identity
                self._stages_of, self._stages = modules, list(model.stages().values())
        return model.after_prefix(self._stages_done, self._stages)

    def evaluate(self, task_learning: int, iteration: int) -> None:
        """Evaluate all tasks up to ``task_learning`` on their subsets; no result is read on the host."""
        self._evaluate(task_learning, iteration, consolidated=False)

    def evaluate_consolidated(self, task_learning: int, iteration: int) -> None:
        """The same after the hooks at the end of ``task_learning``; ``iteration`` is its last one.

        The hooks may have changed what :meth:`compute_prefix` computed.
        """
        self._evaluate(task_learning, iteration, consolidated=True)

    def _evaluate(self, task_learning: int, iteration: int, consolidated: bool) -> None:
        started = time.perf_counter()
        with self.undisturbed(), self.from_stages():
            n = task_learning + 1
            sizes = self.sizes if self.counts_seen else self.sizes[:n]
            parts = self.fitting(lambda: [self._scores(self.subset(p), task) for p, task in self.passes(sizes)])
            scores = torch.cat(parts)
            sums = sums_per_task(scores, sizes)[:n]
            if self.counts_seen:
                self._pending_seen.append((task_learning, iteration, self._over_seen_classes(scores[:, 0])))
        self._pending.append((task_learning, iteration, consolidated, sums))
        self.seconds += time.perf_counter() - started

    def _over_seen_classes(self, correct: Tensor) -> Tensor:
        """float64 (3,): classes seen so far, samples of the subsets of one of them, and how many are ``correct`` (n,)."""
        answer = self.learner.model.answer
        seen = answer.first_seen <= answer.current_task
        counts = seen[self._labels]
        return torch.stack([seen.sum(), counts.sum(), (correct * counts).sum()]).double()

    def parts(self, n: int, states: int = 1) -> list[slice]:
        """``n`` samples in forward passes of nearly equal size, no larger than ``evaluator.batch_size`` or what suits the device.

        ``states``: how many networks see them at the same time. What turns out not to fit into memory is halved, see
        :meth:`fitting`.
        """
        at_once = max(1, (self.config.batch_size or self._samples_at_once // states) >> self._halvings)
        bounds = np.linspace(0, n, 1 + -(-n // at_once)).round().astype(int)
        return [slice(int(start), int(stop)) for start, stop in pairwise(bounds)]

    def fitting(self, compute: Callable[[], T]) -> T:
        """``compute()``, which divides its samples by :meth:`parts`; while memory runs out, again with parts of half the size.

        Raises:
            torch.OutOfMemoryError: a single sample does not fit.
        """
        while True:
            try:
                return compute()
            except torch.OutOfMemoryError:
                if (self.config.batch_size or self._samples_at_once) >> self._halvings <= 1:
                    raise
            # Not while the error is handled, which holds all that the attempt had made.
            self._halvings += 1
            log.warning("out of memory in an evaluation: from now on half as many samples at a time")

    def passes(self, sizes: list[int], states: int = 1) -> list[tuple[slice, int | None]]:
        """The forward passes over tasks of ``sizes`` samples, laid one after another: samples, and the task they all are of.

        Passes mix tasks (None), unless the learner has a network for every task.
        """
        if not self.learner.separates_tasks:
            return [(part, None) for part in self.parts(sum(sizes), states)]
        return [
            (slice(start + part.start, start + part.stop), task)
            for task, (start, size) in enumerate(zip(accumulate([0, *sizes]), sizes, strict=False))
            for part in self.parts(size, states)
        ]

    def subset_of(self, task: int) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs as they are kept (uint8 images are not normalised yet), labels and tasks of one task's subset."""
        start = sum(self.sizes[:task])
        part = slice(start, start + self.sizes[task])
        return self._kept(part), self._labels[part], self._tasks[part]

    def subset(self, part: slice) -> Samples:
        """A part of the subsets of all tasks, one after another, as the network takes them (see :meth:`from_stages`)."""
        kept = self._kept(part)
        x = self.inputs.normalise(kept) if kept.dtype == torch.uint8 else kept
        return Samples(x, self._labels[part], self._tasks[part])

    def _kept(self, part: slice) -> Tensor:
        return self._images[part] if self._after_stages is None else self._after_stages[part]

    def evaluate_full(self, task_learning: int, iteration: int) -> pd.DataFrame:
        """Evaluate on the whole split, as a table with the columns :data:`COLUMNS`.

        Covers the tasks seen so far; where outputs do not grow (task- and domain-incremental) also those to come, which
        forward transfer needs. ``task_learning`` is −1 before the first task.
        """
        last = task_learning + 1 if self.scenario.setting == "class" else self.scenario.n_groups
        rows = []
        started = time.perf_counter()
        with self.undisturbed():
            for task in range(last):
                ids = self.split.ids(task)
                rows.append((task_learning, iteration, task, len(ids), *self.sums_of(task, ids)))
        self.seconds += time.perf_counter() - started
        return as_table(np.array(rows, np.float64).reshape(-1, len(COLUMNS)))

    def sums_of(self, task: int, ids: Tensor) -> tuple[int, float]:
        """Correct answers and summed cross-entropy of samples of one task, by their ids. Called within :meth:`undisturbed`."""
        sums = self.fitting(
            lambda: [
                self._scores(self.inputs.plain(self.split, ids[part]), task).sum(0, dtype=torch.float64)
                for part in self.parts(len(ids))
            ]
        )
        correct, loss = torch.stack(sums).sum(0).tolist()[:2]
        return int(correct), loss

    def first_images(self, task: int, n: int) -> Samples:
        """The first ``n`` samples of a task's subset, as images."""
        return self.inputs.plain(self.split, self.subset_ids[task][:n])

    def feature_drift_probe(self, task_learning: int) -> Tensor | None:
        """Penultimate features of the seen tasks' subsets, for drift between two moments (diagnostics).

        None where a strategy predicts by networks of its own making: the model's features are then nobody's.
        """
        if not self.learner.predicts_by_model:
            return None
        with self.undisturbed(), self.from_stages():
            n_seen = sum(self.sizes[: task_learning + 1])
            return self.learner.model.features(self.subset(slice(n_seen)).x)

    def latest(self) -> list[float]:
        """Accuracy on every seen task at the last evaluation. Waits for the device; meant for a progress display."""
        if self._pending:
            correct = self._pending[-1][-1][:, 0].tolist()
        elif self._rows and len(self._rows[-1]):
            rows = self._rows[-1]
            same_evaluation = (rows[:, [1, 6]] == rows[-1, [1, 6]]).all(1)  # iteration, consolidated
            correct = rows[same_evaluation, 4].tolist()
        else:
            return []
        return [c / n for c, n in zip(correct, self.sizes, strict=False)]

    def flush(self) -> np.ndarray:
        """All rows so far, float64 (rows, len(CURVE_COLUMNS)), on the host; with two columns more where it hears answers."""
        for (task_learning, consolidated), group in groupby(self._pending, key=itemgetter(0, 2)):
            together = list(group)
            # One copy from the device for all evaluations within a task.
            sums = torch.stack([sums for *_, sums in together]).cpu().numpy()
            self._append(task_learning, [iteration for _, iteration, *_ in together], sums, consolidated)
        self._pending = []
        if len(self._rows) > 1:
            self._rows = [np.concatenate(self._rows)]
        return self._rows[0] if self._rows else np.empty((0, self._width))

    @property
    def answers(self) -> pd.DataFrame:
        """The table with the columns :data:`ANSWER_COLUMNS`, of an evaluator that :attr:`hears_answers`."""
        return as_table(self.flush(), [*CURVE_COLUMNS, "exact", "valid"])[ANSWER_COLUMNS]

    @property
    def seen(self) -> pd.DataFrame:
        """The table with the columns :data:`SEEN_COLUMNS`, empty unless the evaluator :attr:`counts_seen`."""
        rows = self._flush_seen()
        return pd.DataFrame({name: rows[:, i].astype("int64") for i, name in enumerate(SEEN_COLUMNS)})

    def _flush_seen(self) -> np.ndarray:
        if self._pending_seen:
            counts = torch.stack([counts for *_, counts in self._pending_seen]).cpu().numpy()
            at = np.array([at[:2] for at in self._pending_seen], np.float64)
            self._seen_rows = [*self._seen_rows, np.column_stack([at, counts])]
            self._pending_seen = []
        return np.concatenate([np.empty((0, len(SEEN_COLUMNS))), *self._seen_rows])

    def drop_from(self, iteration: int) -> None:
        """Forget all evaluations after ``iteration`` steps or more."""
        self.settle()
        rows, seen = self.flush(), self._flush_seen()
        self.restore(rows[rows[:, 1] < iteration])
        self._seen_rows = [seen[seen[:, 1] < iteration]]

    def extend(self, task_learning: int, iterations: list[int], sums: np.ndarray) -> None:
        """Record evaluations made elsewhere, after ``iterations`` (E,): their sums (E, tasks, 2: correct, loss; or 4)."""
        self.flush()
        self._append(task_learning, iterations, sums)

    def _append(self, task_learning: int, iterations: list[int], sums: np.ndarray, consolidated: bool = False) -> None:
        n_evaluations, n_tasks, n_sums = sums.shape
        sums = sums.reshape(-1, n_sums)
        tasks = np.tile(np.arange(n_tasks), n_evaluations)
        self._rows.append(
            np.column_stack(
                [
                    np.full(len(tasks), task_learning),
                    np.repeat(iterations, n_tasks),
                    tasks,
                    np.array(self.sizes)[tasks],
                    sums[:, :2],
                    np.full(len(tasks), consolidated),
                    sums[:, 2:],
                ]
            )
        )

    def restore(self, rows: np.ndarray) -> None:
        """Start from the rows of a checkpoint."""
        if rows.shape[1] == len(COLUMNS):  # of before there were consolidated rows
            rows = np.column_stack([rows, np.zeros(len(rows))])
        self._pending, self._rows = [], [rows]

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run has to know beside the rows, as plain values."""
        return {"seen": torch.from_numpy(self._flush_seen())} if self.counts_seen else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from the state of a checkpoint."""
        if self.counts_seen:
            self._pending_seen, self._seen_rows = [], [state["seen"].cpu().numpy()]

    def _scores(self, samples: Samples, task: int | None) -> Tensor:
        learner, compilation = self.learner, self.learner.compilation
        if task is not None and learner.separates_tasks:
            call: tuple[Any, ...] = ("predictions of a task", learner.predict_task, samples.x, task)
        else:
            call = ("predictions", learner.predict, samples.x, samples.task)
        with self.precision.autocast(), learner.model.judged():
            logits = compilation.guarded(lambda: compilation.run(*call))
        return self.learner.model.answer.judge(logits.float(), samples.y)

    @contextmanager
    def undisturbed(self, inference: bool = True) -> Iterator[None]:
        """Evaluation mode, no gradients (unless ``inference`` is False); afterwards every module is in the mode it was in."""
        modes = [module.training for module in self._modules]
        self.learner.prepare_for_eval()
        self.learner.eval()
        try:
            with torch.inference_mode(inference):
                yield
        finally:
            for module, mode in zip(self._modules, modes, strict=True):
                module.training = mode


def sums_per_task(scores: Tensor, sizes: list[int]) -> Tensor:
    """float64 (..., T, 2): the sums of scores (..., n, 2) over the tasks' successive ``sizes``."""
    return torch.stack([part.sum(-2, dtype=torch.float64) for part in scores.split(sizes, dim=-2)], dim=-2)


def as_table(rows: np.ndarray, columns: list[str] = COLUMNS) -> pd.DataFrame:
    """Rows in the order of :data:`COLUMNS`, or :data:`CURVE_COLUMNS`, as a typed table."""
    types = {"loss": "float64", "consolidated": "bool"}
    return pd.DataFrame({name: rows[:, i].astype(types.get(name, "int64")) for i, name in enumerate(columns)})
