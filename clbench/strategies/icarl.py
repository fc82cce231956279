"""iCaRL: incremental classifier and representation learning (Rebuffi et al. 2017, arXiv:1611.07725).

Every batch is drawn from the task's samples and the exemplars of earlier classes together. With N the new classes, O the earlier
ones, z the logits and z̄ those of the network before the task, summed over classes and averaged over samples

    L = Σ_{c ∈ N} bce(z_c, 1[y = c]) + Σ_{c ∈ O} bce(z_c, σ(z̄_c))                                           (Algorithm 3)

Prediction is by the nearest mean of exemplars, φ the features divided by their norm:

    ŷ = argmin_c ‖ φ(x) − μ_c ‖,    μ_c = Σ φ(p_i), divided by its norm                                     (Algorithm 1)

with the means of the present network at every evaluation; the logits of a prediction are minus the squared distances. Exemplars
are chosen by herding (Algorithm 4), see :mod:`clbench.learning.parts.exemplars`, also for how a class is predicted before its
task is over.

* ``loss=bce_sum`` is the paper's; ``bce_mean`` divides by the number of classes seen, as the authors' code does, which goes with
  their learning rate of 2; ``ce_kd`` is PyCIL's, cross-entropy over the classes seen plus distillation at T = 2.
* ``classifier=head`` predicts by the logits ("hybrid 1" in the paper's ablation).

Differences to other code: Mammoth averages over all outputs of the stream, and its best CIFAR-100 configuration takes class
means over all training data of all tasks. Avalanche's teacher is not in evaluation mode. Means of flipped exemplars (authors,
PyCIL) are not added here.

Stores M exemplars (ids, labels and images) with room for M more, and the previous network.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from clbench.config import StrategyConfig
from clbench.learning.base import Batch, Needs, Outputs, Plan
from clbench.learning.parts.exemplars import ExemplarMemory
from clbench.learning.parts.teacher import Teacher, WithTeacher
from clbench.models.continual import ContinualModel
from clbench.options import option
from clbench.registry import STRATEGIES
from clbench.scenarios.scenario import Scenario
from clbench.scenarios.task import Task
from clbench.strategies.lwf import distillation
from clbench.strategies.predkd import binary_distillation

TEMPERATURE = 2.0
"""Of ``loss=ce_kd``."""


@dataclass
class ICaRLConfig(StrategyConfig):
    """Options of ``strategy=icarl``."""

    memory_size: int = option(help="exemplars in all, shared equally by the classes seen", at_least=1)
    loss: str = option(help="binary cross-entropy, or PyCIL's softmax", choices=("bce_sum", "bce_mean", "ce_kd"))
    classifier: str = option(help="nearest mean of exemplars, or the logits", choices=("nme", "head"))


@STRATEGIES.register("icarl")
class ICaRL(WithTeacher):
    """Exemplars, distillation, and the nearest mean of exemplars."""

    config = ICaRLConfig
    needs = Needs(
        memory=True,
        settings=("class", "task"),
        traits=frozenset({"remembers outputs", "one task a class", "mixes exemplars"}),
    )
    options: ICaRLConfig
    means: Tensor
    teacher: Teacher

    def __init__(self, config: ICaRLConfig, model: ContinualModel, scenario: Scenario) -> None:
        super().__init__(config, model, scenario)
        self.memory = ExemplarMemory(config.memory_size, scenario)
        self.register_buffer("means", torch.zeros(model.head.out_features, model.head.in_features))

    def begin_task(self, task: Task) -> None:
        super().begin_task(task)
        self.memory.begin_task(task)

    def plan(self, task: Task, plan: Plan) -> Plan:
        """Batches of the task's samples and the earlier classes' exemplars together."""
        return self.memory.mixed(task, plan)

    def data_loss(self, batch: Batch, outputs: Outputs) -> dict[str, Tensor]:
        model, z = self.model, outputs.logits
        old, new = (
            model.answer.first_seen < model.answer.current_task,
            model.answer.first_seen == model.answer.current_task,
        )
        teacher = None
        if self.tasks_learned > 0:
            with torch.no_grad():
                teacher = self.teacher(batch.samples.x)
        if self.options.loss == "ce_kd":
            terms = {"new": self.cross_entropy(z, batch.samples).mean()}
            if teacher is not None:
                terms["distillation"] = distillation(z, teacher, old, z.new_tensor(TEMPERATURE))
            return terms
        n = (old | new).sum() if self.options.loss == "bce_mean" else 1
        is_label = (batch.samples.y[:, None] == torch.arange(len(new), device=z.device)).to(z)
        of_new = F.binary_cross_entropy_with_logits(z, is_label, reduction="none")
        terms = {"new": (of_new * new).sum(1).mean() / n}
        if teacher is not None:
            terms["distillation"] = (binary_distillation(z, teacher) * old).sum(1).mean() / n
        return terms

    def end_task(self, task: Task) -> None:
        self.memory.choose(task, self.model)

    def prepare_for_eval(self) -> None:
        """The classes' means, as the present network has them."""
        if self.options.classifier == "nme":
            self.means.copy_(self.memory.means(self.model))

    def predict(self, x: Tensor, task: Tensor | None) -> Tensor:
        if self.options.classifier == "head":
            return super().predict(x, task)
        features = F.normalize(self.model.features(x))
        squares = 1 + self.means.square().sum(1) - 2 * features @ self.means.T  # ‖φ‖ = 1
        return self.model.answer.restrict(-squares, task, predicting=True)

    def notes(self) -> list[str]:
        if self.options.classifier == "head":
            return []
        return ["while a task is learned, a random draw of its samples stands in for the exemplars of its classes"]
