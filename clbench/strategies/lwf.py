"""LwF: learning without forgetting (Li & Hoiem 2016, arXiv:1606.09282).

    L = CE(new) + λ · KD(z̄, z),      KD = T^(2s) · mean KL( softmax(z̄ / T) ‖ softmax(z / T) )   over the old outputs

z̄ are the logits of the network as it was before the task (the teacher), on the *current* samples; the softmax runs over
the outputs of earlier tasks (in task-incremental streams over each earlier head, and the heads' terms add up). KL differs
from the cross-entropy of the paper by the teacher's entropy, a constant. s = 0 is Avalanche's and PyCIL's form (no T²).

That is ``outputs=old``. Others weigh the two parts by the number k of the task, and distil over more outputs:

* ``outputs=seen``: in class-incremental streams softmax(z) runs over all outputs seen so far, those of the task's own classes
  included, to which the teacher gives no probability: they are pushed down. With ``scenario.logit_scope=all`` both run over the
  outputs of the whole stream (van de Ven et al. 2022, whose code has no T² there either).
* ``factor=tasks``: KD is the mean over earlier heads, and is multiplied by k − 1; in task-incremental streams that is their
  sum (van de Ven et al., in task- and domain-incremental streams).
* ``weighting=tasks``: CE counts 1/k, and KD 1 − 1/k. With ``factor=tasks`` KD's weights are 0, 1/2, 4/3, 9/4, 16/5, … (the
  baselines of Avalanche on Split-MNIST).

Stores the teacher. With ``outputs=old`` its gradient is exactly 0 at a task's first step, where student and teacher are equal.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from clbench.config import StrategyConfig
from clbench.learning.base import Batch, Needs, Outputs
from clbench.learning.parts.teacher import Teacher, WithTeacher
from clbench.options import option
from clbench.registry import STRATEGIES


@dataclass
class LwFConfig(StrategyConfig):
    """Options of ``strategy=lwf``."""

    lam: float = option(help="weight λ of the distillation term", at_least=0)
    temperature: float = option(help="temperature T of both softmax", above=0)
    scale_by_temperature: bool = option(
        help="multiply the term by T², which keeps its gradient's size (Hinton et al. 2015)"
    )
    outputs: str = option(
        "old",
        help="class-incremental: the student's softmax runs over the outputs of earlier tasks, or over all that have been seen",
        choices=("old", "seen"),
    )
    factor: str = option(
        "one",
        help="factor of the distillation term: 1, of the sum over earlier heads; or the number of earlier tasks, of their mean",
        choices=("one", "tasks"),
    )
    weighting: str = option(
        "one",
        help="in the k-th task: cross-entropy and distillation count fully; or 1/k and 1 - 1/k",
        choices=("one", "tasks"),
    )


@STRATEGIES.register("lwf")
class LwF(WithTeacher):
    """Distillation from the network before the task, on the current samples."""

    config = LwFConfig
    needs = Needs(traits=frozenset({"remembers outputs", "reads logits"}))
    options: LwFConfig
    lam: Tensor
    temperature: Tensor
    teacher: Teacher

    @property
    def data_weight(self) -> float:
        return 1.0 if self.options.weighting == "one" else 1 / (self.tasks_learned + 1)

    def penalty(self, batch: Batch, outputs: Outputs) -> Tensor | None:
        k = self.tasks_learned + 1
        if k == 1 or not batch.n_new:
            return None
        with torch.no_grad():
            target = self.teacher(batch.samples.x[: batch.n_new])
        student, heads = outputs.logits[: batch.n_new], self._heads()
        total = sum(distillation(student, target, of_student, self.temperature, old) for of_student, old in heads)
        scale = self.temperature**2 if self.options.scale_by_temperature else 1.0
        if self.options.factor == "tasks":
            scale = scale * ((k - 1) / len(heads))
        if self.options.weighting == "tasks":
            scale = scale * (1 - 1 / k)
        return self.lam * scale * total

    def _heads(self) -> list[tuple[Tensor, Tensor]]:
        """Boolean masks (n_classes,): over which outputs the softmax of student and of teacher runs, for every term."""
        answer = self.model.answer
        if answer.setting == "task":
            return [(head, head) for head in (answer.class_task == task for task in range(self.tasks_learned))]
        old = answer.learned_before()
        if self.options.outputs == "old":
            return [(old, old)]
        seen = answer.visible(None, predicting=True)
        return [(torch.ones_like(old), torch.ones_like(old)) if seen is None else (seen, old)]


def distillation(
    student: Tensor, teacher: Tensor, outputs: Tensor, temperature: Tensor, of_teacher: Tensor | None = None
) -> Tensor:
    """Mean KL( softmax(teacher / T) ‖ softmax(student / T) ) over the ``outputs`` (boolean mask), for logits (B, C).

    The teacher's softmax runs over ``of_teacher``, a part of them, and is 0 on the others; None: over the same.

    Its gradient is written down, (softmax(student / T) − softmax(teacher / T)) / (T · B), instead of left to autograd: it
    is then exactly, not nearly, zero where student and teacher agree.
    """
    of_teacher = outputs if of_teacher is None else of_teacher
    student = student.masked_fill(~outputs, -math.inf) / temperature
    teacher = teacher.masked_fill(~of_teacher, -math.inf) / temperature
    p, q = F.softmax(teacher, dim=1), F.softmax(student, dim=1).detach()
    log_ratio = torch.where(of_teacher, F.log_softmax(teacher, dim=1) - F.log_softmax(student, dim=1).detach(), 0.0)
    value = (p * log_ratio).sum(dim=1).mean()
    linear = (torch.where(outputs, student, 0.0) * (q - p)).sum(dim=1).mean()
    return value + linear - linear.detach()
