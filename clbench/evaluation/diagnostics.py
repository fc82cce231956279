"""Optional diagnostics: which part of the loss pulls the weights where, and how far features move.

Gradients are taken from the loss terms of the training step itself, so that nothing is computed twice, no BatchNorm
statistic moves and no random number is drawn. Recorded quantities, per step:

=========================  =============================================================================================
``gradient_norm/<term>``   L2 norm of the gradient of one loss term (plasticity: ``new``; stability: every other one)
``gradient_norm/stability``  norm of the sum of all stability gradients, a projection's change included
``gradient_norm/projection`` ‖g̃ − g‖ of a strategy that edits the gradient (GEM, A-GEM); 0 where nothing is violated
``gradient_cosine``        cosine between the plasticity gradient and the sum of the stability gradients (our addition)
``feature_drift/<task>``   mean over a task's subset of ‖h_after − h_before‖², h the penultimate features, over one step; not
                           where a strategy makes the predictions
=========================  =============================================================================================
"""

import pandas as pd
import torch
from torch import Tensor

from clbench.evaluation.evaluator import ContinualEvaluator
from clbench.learning.learner import Learner


class Diagnostics:
    """Collects the quantities of the module docstring every ``every`` steps (0: never)."""

    def __init__(self, learner: Learner, evaluator: ContinualEvaluator, every: int) -> None:
        self.learner, self.evaluator, self.every = learner, evaluator, every
        self._rows: list[tuple[int, int, str, float]] = []
        self._pending: list[tuple[int, int, str, Tensor]] = []

    def due(self, step: int) -> bool:
        """Whether ``step`` (from 0) of a task is looked at; the first always is."""
        return self.every > 0 and step % self.every == 0

    def before_step(self, task: int, iteration: int, terms: dict[str, Tensor]) -> None:
        """Take the gradient of every term, and the features before the step; anew where the step is tried again."""
        self._at = task, iteration
        self._pending = [row for row in self._pending if row[:2] != self._at]
        self._parameters = list(self.learner.trainable().values())
        self._features = self.evaluator.feature_drift_probe(task)
        gradients = {name: self._gradient(term) for name, term in terms.items()}
        for name, gradient in gradients.items():
            self._add(f"gradient_norm/{name}", gradient.norm())
        nothing = torch.zeros_like(next(iter(gradients.values())))
        self._plasticity = gradients.get("new", nothing)  # there are steps of replayed samples alone
        self._stability = sum((g for name, g in gradients.items() if name != "new"), nothing)

    def projection(self, gradient: Tensor, edited: Tensor) -> None:
        """Take the change that a gradient edit made."""
        self._add("gradient_norm/projection", (edited - gradient).norm())
        self._stability = self._stability + (edited - gradient)

    def after_step(self) -> None:
        """Take what is known only after the step."""
        self._add("gradient_norm/stability", self._stability.norm())
        self._add("gradient_cosine", torch.cosine_similarity(self._plasticity, self._stability, dim=0))
        task, _ = self._at
        features = self.evaluator.feature_drift_probe(task)
        if features is None or self._features is None:
            return
        moved = (features - self._features).square().sum(1)
        sizes = [len(ids) for ids in self.evaluator.subset_ids[: task + 1]]
        for index, part in enumerate(moved.split(sizes)):
            self._add(f"feature_drift/{index}", part.mean())

    def rows(self) -> list[tuple[int, int, str, float]]:
        """(task_learning, iteration, quantity, value) of everything so far."""
        self._rows += [(task, iteration, name, float(value)) for task, iteration, name, value in self._pending]
        self._pending = []
        return list(self._rows)

    def table(self) -> pd.DataFrame:
        """The same as a table."""
        return pd.DataFrame(self.rows(), columns=["task_learning", "iteration", "quantity", "value"])

    def restore(self, rows: list) -> None:
        """Start from the rows of a checkpoint."""
        self._rows = [tuple(row) for row in rows]

    def _add(self, quantity: str, value: Tensor) -> None:
        self._pending.append((*self._at, quantity, value.detach()))

    def _gradient(self, term: Tensor) -> Tensor:
        if not term.requires_grad:
            return torch.cat([torch.zeros_like(p).view(-1) for p in self._parameters])
        gradients = torch.autograd.grad(term, self._parameters, retain_graph=True, materialize_grads=True)
        return torch.cat([g.reshape(-1) for g in gradients])
