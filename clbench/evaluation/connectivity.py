"""Optional mode connectivity: what lies on the straight line between the state after one task and that after the next.

After every task t ≥ 1 (counted from 0) the learner is evaluated as it would be with

    θ(λ) = (1 − λ) θ_{t−1} + λ θ_t,    λ = 0, 1/(P − 1), …, 1,

on the evaluation subset of every task seen so far (Mirzadeh et al. 2021, arXiv:2010.04495; as an analysis of low-rank adapters
Ren et al. 2024, arXiv:2402.18865, whose paper could not be read: the form is ours). The barrier of the pair is

    max_λ [L(λ) − ((1 − λ) L(0) + λ L(1))] ≥ 0,

L the mean cross-entropy on the current task, or the mean over the earlier tasks of theirs. Reports compute it
(:mod:`clbench.reports.connectivity_tables`). What is on the line:

* θ_t is everything of the learner that is a floating-point tensor, as its strategies leave it at the end of task t: trained
  parameters, BatchNorm's statistics, slow, merged or generated weights, class means, Gram matrices. It is interpolated tensor by
  tensor. Of low-rank adapters A and B are, each by itself, and not the product BA. BatchNorm's statistics are not estimated
  anew, so that a part of a barrier may be theirs.
* All other state (memories, masks, which classes have been seen) is that after task t, for every λ. So in a class-incremental
  scenario the classes of task t compete at λ = 0 already, with the rows of the classifier that they had at the end of task
  t − 1, untrained; accuracy on earlier tasks may be lower there than it was at the end of task t − 1. Where the task is given
  or all outputs are seen from the start, λ = 0 is the network as it was; a method that infers the task (a hypernetwork) chooses
  among all tasks up to t there too.

The learner is put into each state in turn and back into its own, bit for bit, and no random number is drawn.
"""

import time

import pandas as pd
import torch
from torch import Tensor

from clbench.evaluation.evaluator import ContinualEvaluator
from clbench.learning.learner import Learner

COLUMNS = ["task_learning", "lam", "task_eval", "n", "correct", "loss"]
"""One row per pair, point and task: ``lam`` is λ on the line to the state after ``task_learning``; the others as in the curve."""

INTERPOLATED = (
    "every parameter and floating-point buffer of model and strategies, tensor by tensor (of low-rank adapters A and B, each by "
    "itself); all other state is that after the later task"
)
"""What the line is in, for the record of a run."""


class Connectivity:
    """Evaluates the line of the module docstring at the end of every task but the first.

    Args:
        learner: what is looked at.
        evaluator: holds the subsets and knows how to look without leaving a trace.
        points: P, values of λ with both ends; 0: never.
    """

    def __init__(self, learner: Learner, evaluator: ContinualEvaluator, points: int) -> None:
        self.learner, self.evaluator, self.points = learner, evaluator, points
        self._before: dict[str, Tensor] = {}  # θ after the last task that has ended
        self._rows: list[tuple[int, float, int, int, int, float]] = []

    def look(self, task: int) -> None:
        """Evaluate the line to the learner as it is now, after the end of ``task``, from its state at the last look."""
        if not self.points:
            return
        started = time.perf_counter()
        after = {name: tensor.detach().clone() for name, tensor in self._state().items()}
        if task > 0:
            try:
                for place in range(self.points):
                    lam = place / (self.points - 1)
                    self._move(lam, after)
                    self._evaluate(task, lam)
            finally:
                self._move(1, after)
        self._before = after
        self.evaluator.seconds += time.perf_counter() - started

    def rows(self) -> list[tuple[int, float, int, int, int, float]]:
        """Rows of :data:`COLUMNS` so far."""
        return list(self._rows)

    def table(self) -> pd.DataFrame:
        """The same as a table."""
        integers = {name: "int64" for name in COLUMNS if name not in ("lam", "loss")}
        return pd.DataFrame(self._rows, columns=COLUMNS).astype({**integers, "lam": "float64", "loss": "float64"})

    def state_dict(self) -> dict[str, object]:
        """Rows, and of the state after the last task what the learner, which the checkpoint holds as well, differs from by now.

        So weights that are never trained, such as those of a pretrained backbone, are not stored twice.
        """
        now = self._state()
        changed = {name: old for name, old in self._before.items() if not torch.equal(old, now[name])}
        return {"rows": self.rows(), "changed": changed}

    def load_state_dict(self, state: dict, task: int) -> None:
        """Continue from a checkpoint whose learner has been loaded; ``task``: how many tasks had ended."""
        self._rows = [tuple(row) for row in state["rows"]]
        if self.points and task > 0:
            changed = state["changed"]
            self._before = {name: changed.get(name, now).detach().clone() for name, now in self._state().items()}

    def _state(self) -> dict[str, Tensor]:
        """The live floating-point tensors of the learner by name, each once."""
        named = (*self.learner.named_parameters(), *self.learner.named_buffers())
        return {name: tensor for name, tensor in named if tensor.is_floating_point()}

    @torch.no_grad()
    def _move(self, lam: float, after: dict[str, Tensor]) -> None:
        """Put the learner into θ(``lam``)."""
        for name, tensor in self._state().items():
            tensor.copy_(between(self._before[name], after[name], lam))

    def _evaluate(self, task: int, lam: float) -> None:
        with self.evaluator.undisturbed():
            for seen in range(task + 1):
                ids = self.evaluator.subset_ids[seen]
                self._rows.append((task, lam, seen, len(ids), *self.evaluator.sums_of(seen, ids)))


def between(before: Tensor, after: Tensor, lam: float) -> Tensor:
    """(1 − ``lam``) ``before`` + ``lam`` ``after``; exact at both ends and where the two agree."""
    if lam in (0, 1):
        return after if lam else before
    # Without where, rounding would move weights that are never trained.
    return torch.where(before == after, after, (1 - lam) * before + lam * after)
