"""LwF: learning without forgetting (Li & Hoiem 2016, arXiv:1606.09282).

    L = CE(new) + λ · KD(z̄, z),      KD = T^(2s) · mean KL( softmax(z̄ / T) ‖ softmax(z / T) )   over the old outputs

z̄ are the logits of the network as it was before the task (the teacher), on the *current* samples; the softmax runs over
the outputs of earlier tasks (in task-incremental streams over each earlier head, and the heads' terms add up). KL differs
from the cross-entropy of the paper by the teacher's entropy, a constant. s = 0 is Avalanche's and PyCIL's form (no T²).

Stores the teacher. Its gradient is exactly 0 at a task's first step, where student and teacher are equal.
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


@STRATEGIES.register("lwf")
class LwF(WithTeacher):
    """Distillation from the network before the task, on the current samples."""

    config = LwFConfig
    needs = Needs(traits=frozenset({"remembers outputs"}))
    options: LwFConfig
    lam: Tensor
    temperature: Tensor
    teacher: Teacher

    def penalty(self, batch: Batch, outputs: Outputs) -> Tensor | None:
        if self.tasks_learned == 0:
            return None
        with torch.no_grad():
            target = self.teacher(batch.samples.x[: batch.n_new])
        student = outputs.logits[: batch.n_new]
        total = sum(distillation(student, target, old, self.temperature) for old in self._old_heads())
        scale = self.temperature**2 if self.options.scale_by_temperature else 1.0
        return self.lam * scale * total

    def _old_heads(self) -> list[Tensor]:
        """Boolean masks (n_classes,): the outputs over which one softmax runs."""
        if self.model.answer.setting != "task":
            return [self.model.answer.learned_before()]
        return [self.model.answer.class_task == task for task in range(self.tasks_learned)]


def distillation(student: Tensor, teacher: Tensor, outputs: Tensor, temperature: Tensor) -> Tensor:
    """Mean KL( softmax(teacher / T) ‖ softmax(student / T) ) over the ``outputs`` (boolean mask), for logits (B, C).

    Its gradient is written down, (softmax(student / T) − softmax(teacher / T)) / (T · B), instead of left to autograd: it
    is then exactly, not nearly, zero where student and teacher agree.
    """
    student = student.masked_fill(~outputs, -math.inf) / temperature
    teacher = teacher.masked_fill(~outputs, -math.inf) / temperature
    p, q = F.softmax(teacher, dim=1), F.softmax(student, dim=1).detach()
    log_ratio = torch.where(outputs, F.log_softmax(teacher, dim=1) - F.log_softmax(student, dim=1).detach(), 0.0)
    value = (p * log_ratio).sum(dim=1).mean()
    linear = (torch.where(outputs, student, 0.0) * (q - p)).sum(dim=1).mean()
    return value + linear - linear.detach()
