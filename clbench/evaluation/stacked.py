"""Evaluation of many states of learners in one forward pass: of the runs of a fleet, or of snapshots along one run."""

import time
from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from clbench.evaluation.evaluator import ContinualEvaluator, sums_per_task
from clbench.learning.stack import Stack, row_numbers


class Place(NamedTuple):
    """Where a run stands: its number, task, step within the task (from 1) of how many, and iteration in the stream."""

    run: int
    task: int
    step: int
    n_steps: int
    iteration: int


class StackedEvaluation:
    """Scores states on the fixed subsets of the runs they belong to.

    Args:
        evaluators: of the R runs, which hold the subsets. Runs whose subsets are the same share them.
    """

    def __init__(self, evaluators: Sequence[ContinualEvaluator]) -> None:
        self._evaluators = evaluators
        first = evaluators[0]
        self._shared = all(
            evaluator.split.store is first.split.store
            and all(torch.equal(a, b) for a, b in zip(evaluator.subset_ids, first.subset_ids, strict=True))
            and torch.equal(evaluator.split.rows, first.split.rows)
            and evaluator.begins_as(first)
            for evaluator in evaluators[1:]
        )
        sizes = torch.tensor([evaluator.sizes for evaluator in evaluators])
        # Subsets differ in size where a task has fewer samples than asked for: the shorter ones are filled up, and what
        # was filled in does not count.
        self._sizes = sizes.amax(0).tolist()
        if not self._shared:
            parts = [self._padded(task) for task in range(len(self._sizes))]
            self._images, self._labels, self._tasks, self._counts = (
                torch.cat(of_all, dim=1) for of_all in zip(*parts, strict=True)
            )

    def sums(self, stack: Stack, runs: list[int], task_learning: int) -> Tensor:
        """Correct answers and summed cross-entropy, float64 (K, tasks seen, 2 or 4), of the K states in ``stack``.

        Args:
            stack: K states.
            runs: (K,) the run on whose subsets each of them is evaluated.
            task_learning: the last of the tasks seen.
        """
        first = self._evaluators[0]
        everyone = runs == list(range(len(self._evaluators)))
        return first.fitting(lambda: self._sums(stack, None if everyone else runs, task_learning))

    def _sums(self, stack: Stack, runs: list[int] | None, task_learning: int) -> Tensor:
        """As :meth:`sums`; None for all runs, one after another."""
        first = self._evaluators[0]
        chosen = None if runs is None or self._shared else row_numbers(runs, stack.weights.device)
        parts = []
        # A GPU takes as many samples at a time for each of up to sixteen states as for one; then memory would run short.
        states = -(-len(stack) // 16) if stack.weights.is_cuda else len(stack)
        for part, one_task in first.passes(self._sizes[: task_learning + 1], states):
            if self._shared:
                x, labels, tasks = first.subset(part)
            else:
                images, labels, tasks = (
                    (table[:, part] if chosen is None else table[chosen, part])
                    for table in (self._images, self._labels, self._tasks)
                )
                x = images
                if images.dtype == torch.uint8:
                    x = first.inputs.normalise(images.flatten(0, 1)).view(images.shape)
            with first.precision.autocast(), first.from_stages(), first.learner.model.judged():
                logits = stack.predict(x, tasks if one_task is None else one_task, self._shared)
            flat = first.learner.model.answer.judge(
                logits.float().flatten(0, 1), labels.expand(logits.shape[:2]).flatten()
            )
            result = flat.view(*logits.shape[:2], -1)
            if not self._shared:
                counts = self._counts[:, part] if chosen is None else self._counts[chosen, part]
                result = result * counts[..., None]
            parts.append(result)
        return sums_per_task(torch.cat(parts, dim=1), self._sizes[: task_learning + 1])

    def _padded(self, task: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Inputs, labels, tasks and which of them count (R, n, ...) of a task's subsets."""
        subsets = [evaluator.subset_of(task) for evaluator in self._evaluators]
        x, labels, tasks = (pad_sequence(list(of_all), batch_first=True) for of_all in zip(*subsets, strict=True))
        counts = pad_sequence([torch.ones(len(labels)) for _, labels, _ in subsets], batch_first=True)
        return x, labels, tasks, counts.to(x.device)


class StackedPeriodic:
    """The periodic evaluation of every run of a fleet: what :meth:`ContinualEvaluator.after_step` is to a run alone."""

    settled = True
    """Whether every evaluation that is due so far has been made."""

    def __init__(self, evaluators: Sequence[ContinualEvaluator]) -> None:
        self._evaluators = evaluators
        self.evaluation = StackedEvaluation(evaluators)
        self._pending: list[tuple[list[int], int, list[int], Tensor]] = []

    def after_step(self, stack: Stack, places: list[Place]) -> None:
        """Evaluate the runs that are due; ``places`` are those that have just taken a step."""
        due = [place for place in places if self._evaluators[place.run].due(place.step, place.n_steps)]
        if not due:
            return
        started = time.perf_counter()
        runs = [place.run for place in due]
        with self._evaluators[0].undisturbed():
            if len(runs) < len(stack):
                stack = stack.select(row_numbers(runs, stack.weights.device))
            sums = self.evaluation.sums(stack, runs, due[0].task)
        self._pending.append((runs, due[0].task, [place.iteration for place in due], sums))
        share_seconds(self._evaluators, time.perf_counter() - started)

    def hand_back(self) -> None:
        """Give every run its rows; one copy from the device for all evaluations of the same runs within a task."""
        for (runs, task), group in groupby(self._pending, key=lambda evaluation: evaluation[:2]):
            together = list(group)
            sums = torch.stack([sums for *_, sums in together]).cpu().numpy()  # (E, K, tasks, 2)
            for position, run in enumerate(runs):
                iterations = [iterations[position] for _, _, iterations, _ in together]
                self._evaluators[run].extend(task, iterations, sums[:, position])
        self._pending = []


def share_seconds(evaluators: Sequence[ContinualEvaluator], seconds: float) -> None:
    """Book the time of a common evaluation on the runs in equal shares."""
    for evaluator in evaluators:
        evaluator.seconds += seconds / len(evaluators)
