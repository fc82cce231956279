"""PredKD: distillation of predictions within one binary cross-entropy (Smith et al. 2023, arXiv:2203.17269).

It is LwF.MC of Rebuffi et al. 2017 (arXiv:1611.07725): no stored data, no temperature, and no weight between the two parts.
z are the logits on the task's own samples, z̄ those of the network before the task, L the classes seen so far, O those of
earlier tasks, N = L \\ O, y the label, σ the sigmoid and bce(z, t) = −t log σ(z) − (1 − t) log(1 − σ(z)). The mean over the
batch of, by ``loss``,

    bce_kd         s/|L| · ( Σ_{c∈N} bce(z_c, 1[c=y]) + Σ_{c∈O} bce(z_c, σ(z̄_c)) )
    balanced_bce   1/|L| · ( w Σ_{c∈N} v_c bce(z_c, 1[c=y]) + Σ_{c∈O} bce(z_c, σ(z̄_c)) )
                   v_c = 1 where c = y and 1/|N| elsewhere,  w = 2|N| / (1 + 1/|N|)
    softmax_kd     −log softmax_L(z)_y + KL( softmax_O(z̄/T) ‖ softmax_O(z/T) )
    bce_local      s/|N| · Σ_{c∈N} bce(z_c, 1[c=y])
    bce_all        s/|L| · Σ_{c∈L} bce(z_c, 1[c=y])
    softmax        −log softmax_L(z)_y

bce_kd is the method of the paper; the last three do not distil. The sum over N is recorded as the loss ``new``, that over O (or
the KL) as ``predkd``, whose gradient is exactly 0 at a task's first step. In the first task O is empty.

Read in the authors' code (shaunak27/data-free-continual-learning at 5388102, learners/kd.py): all six, with s = 5 and T = 2
hard-coded, no s in balanced_bce, and a cross-entropy in place of the KL, which differs by a constant. Second-hand: that the
paper's PredKD is bce_kd, from notes on the paper that give its figures; they write the second sum as CE(p_θ(x), p_θ̄(x)).

``strategy.plus=[l2]``, ``[ewc]`` or ``[featkd]`` adds the penalties of the paper. Theirs are added to a loss with s = 5: a
weight of a penalty belongs to an s. Stores the teacher, where there is distillation.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from clbench.config import StrategyConfig
from clbench.errors import ConfigError
from clbench.learning.base import Batch, Needs, Outputs
from clbench.learning.parts.teacher import WithTeacher
from clbench.models.continual import ContinualModel
from clbench.options import option
from clbench.registry import STRATEGIES
from clbench.scenarios.scenario import Scenario
from clbench.strategies.lwf import distillation

WITH_TEACHER = ("bce_kd", "balanced_bce", "softmax_kd")
"""Values of ``loss`` that distil."""


@dataclass
class PredKDConfig(StrategyConfig):
    """Options of ``strategy=predkd``."""

    loss: str = option(
        help="binary or softmax cross-entropy, with distillation (bce_kd, balanced_bce, softmax_kd) or without",
        choices=("bce_kd", "balanced_bce", "softmax_kd", "bce_local", "bce_all", "softmax"),
    )
    scale: float = option(help="loss=bce_kd, bce_local or bce_all: factor s of the loss", above=0)
    temperature: float = option(help="loss=softmax_kd: temperature T of both softmax", above=0)


@STRATEGIES.register("predkd")
class PredKD(WithTeacher):
    """Binary cross-entropy whose targets for old classes are the old network's predictions."""

    config = PredKDConfig
    needs = Needs(settings=("class",))
    options: PredKDConfig
    scale: Tensor
    temperature: Tensor

    def __init__(self, config: PredKDConfig, model: ContinualModel, scenario: Scenario) -> None:
        super().__init__(config, model, scenario)
        if model.answer.logit_scope == "current":
            raise ConfigError(
                "scenario.logit_scope=current hides the logits of old classes, which strategy=predkd chooses by strategy.loss: "
                "set scenario.logit_scope to seen or all, and strategy.loss=bce_local for a loss over the task's own logits"
            )

    @classmethod
    def traits(cls, options: PredKDConfig) -> frozenset[str]:
        return cls.needs.traits | ({"remembers outputs"} if options.loss in WITH_TEACHER else frozenset())

    @property
    def distils(self) -> bool:
        return self.options.loss in WITH_TEACHER

    def data_loss(self, batch: Batch, outputs: Outputs) -> dict[str, Tensor]:
        loss = self.options.loss
        if loss in ("softmax", "softmax_kd"):
            return super().data_loss(batch, outputs)
        seen = self._seen()
        own = seen & ~self.model.answer.learned_before()
        labels = torch.arange(len(seen), device=seen.device)
        target = (labels == batch.samples.y.unsqueeze(1)).to(outputs.logits.dtype)
        terms = F.binary_cross_entropy_with_logits(outputs.logits, target, reduction="none")
        if loss == "balanced_bce":
            n = own.sum()
            terms = 2 * n / (1 + 1 / n) * torch.where(target == 1, 1.0, 1 / n) * terms
        else:
            terms = self.scale * terms
        summed = seen if loss == "bce_all" else own
        divisor = own if loss == "bce_local" else seen
        return {"new": (terms * summed).sum(dim=1).mean() / divisor.sum()}

    def penalty(self, batch: Batch, outputs: Outputs) -> Tensor | None:
        if self.teacher is None or self.tasks_learned == 0:
            return None
        with torch.no_grad():
            target = self.teacher(batch.samples.x)
        old = self.model.answer.learned_before()
        if self.options.loss == "softmax_kd":
            return distillation(outputs.logits, target, old, self.temperature)
        terms = binary_distillation(outputs.logits, target)
        mean = (terms * old).sum(dim=1).mean() / self._seen().sum()
        return self.scale * mean if self.options.loss == "bce_kd" else mean

    def _seen(self) -> Tensor:
        """Boolean (n_classes,): the classes L, which are those of the whole stream with ``logit_scope=all``."""
        visible = self.model.answer.visible(None, predicting=True)
        return torch.ones_like(self.model.answer.class_task, dtype=torch.bool) if visible is None else visible


def binary_distillation(student: Tensor, teacher: Tensor) -> Tensor:
    """bce(z, σ(z̄)) for every entry of logits of the same shape.

    Its gradient is written down, σ(z) − σ(z̄), instead of left to autograd: it is then exactly, not nearly, zero where student
    and teacher agree, in any precision.
    """
    p, q = teacher.sigmoid(), student.sigmoid().detach()
    value = F.binary_cross_entropy_with_logits(student.detach(), p, reduction="none")
    linear = student * (q - p)
    return value + linear - linear.detach()
