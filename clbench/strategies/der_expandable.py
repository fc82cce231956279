"""DER: dynamically expandable representation (Yan et al. 2021, arXiv:2103.16788).

Every task gets a feature extractor of its own, φ_t, which begins as a copy of the one before; earlier ones are frozen. The
classifier W sees the features of all. Every batch is drawn from the task's samples and the exemplars of earlier classes together:

    L = CE( W [φ_1(x), …, φ_t(x)], y ) + λ CE( A φ_t(x), ỹ )                                                  (equations 6 to 8)

where the auxiliary classifier A, drawn anew for every task, tells the classes of the task apart, and takes all earlier ones for
one: ỹ = 0 for those. It makes φ_t learn what the features before do not tell. In the first task λ = 0. From the second task on a
second stage follows (section 3.4): exemplars are chosen among the new classes, too, by herding, the classifier is drawn anew and
trained alone on all exemplars, of which there are equally many of every class, with a softmax of temperature δ.

Left out: the masks that prune extractors (section 3.3), which the authors' released configurations do not use either; so the
network grows by a whole extractor with every task. Left out, too: ten epochs of warm-up in the released code, after which both
classifiers are drawn once more. PyCIL calls DER a variant that aligns the weights of the classifier (WA) in place of the second
stage. Not to be taken for ``der``: dark experience replay, DER too, has nothing to do with this.

Stores M exemplars (ids, labels and images) with room for M more, and, in the network, an extractor per task.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clbench.config import StrategyConfig
from clbench.learning.base import Batch, Measurement, Needs, Outputs, Plan, Strategy
from clbench.learning.parts.exemplars import ExemplarMemory
from clbench.learning.stage import Stage
from clbench.models.continual import ContinualModel
from clbench.models.expandable import ExpandableBackbone
from clbench.models.heads import CosineHead
from clbench.options import option
from clbench.registry import STRATEGIES
from clbench.scenarios.scenario import Samples, Scenario
from clbench.scenarios.task import Task


@dataclass
class DERExpandableConfig(StrategyConfig):
    """Options of ``strategy=der_expandable``."""

    memory_size: int = option(help="exemplars in all, shared equally by the classes seen", at_least=1)
    lam: float = option(help="weight λ of the auxiliary classifier's loss", at_least=0)
    tuning_epochs: int = option(help="passes of the classifier over the balanced exemplars", at_least=1)
    tuning_lr: float | None = option(
        help="learning rate of that stage, where it begins; null: trainer.lr once more", above=0
    )
    temperature: float = option(help="temperature δ of the classifier's softmax in that stage", above=0)


@STRATEGIES.register("der_expandable")
class DERExpandable(Strategy):
    """An extractor per task, and a classifier over all of them."""

    config = DERExpandableConfig
    needs = Needs(
        memory=True,
        settings=("class", "task"),
        cost_grows=True,
        traits=frozenset({"linear head", "grows", "one task a class", "mixes exemplars"}),
        alone="the network gets another extractor with every task",
    )
    options: DERExpandableConfig
    lam: Tensor
    temperature: Tensor
    tuning_lr: Tensor

    def __init__(self, config: DERExpandableConfig, model: ContinualModel, scenario: Scenario) -> None:
        super().__init__(config, model, scenario)
        self.memory = ExemplarMemory(config.memory_size, scenario)
        self.backbone_width = int(model.backbone.n_features)
        model.replace_backbone(ExpandableBackbone(model.backbone))
        most = max(map(len, scenario.task_classes))
        self.auxiliary = nn.Linear(self.backbone_width, 1 + most)

    # ---- a task -----------------------------------------------------------------------------------------------------

    def begin_task(self, task: Task) -> None:
        _draw(self.auxiliary, task.torch_generator("auxiliary"))

    def plan(self, task: Task, plan: Plan) -> Plan:
        """Batches of the task's samples and the earlier classes' exemplars together."""
        return self.memory.mixed(task, plan)

    def stages(self, task: Task, n_steps: int) -> list[Stage]:
        """The classifier alone on balanced exemplars, from the second task on."""
        if task.index == 0:
            return []
        tuning: dict[str, float] = {"epochs": self.options.tuning_epochs}
        if self.options.tuning_lr is not None:
            tuning["lr"] = float(self.tuning_lr)
        return [
            Stage("balanced", None, trains="head", trainer=tuning, begin=self._begin_again, plan=self.memory.balanced)
        ]

    def _begin_again(self, task: Task) -> Tensor | None:
        self.memory.choose(task, self.model)
        assert isinstance(self.model.head, nn.Linear | CosineHead), "heads of other kinds do not grow"
        _draw(self.model.head, task.torch_generator("balanced"))
        return self.model.flat_mask(
            {f"head.{n}": torch.ones_like(p) > 0 for n, p in self.model.head.named_parameters()}
        )

    def end_task(self, task: Task) -> None:
        if task.index == 0:  # later they have been chosen before the second stage, which leaves features as they are
            self.memory.choose(task, self.model)

    # ---- losses -----------------------------------------------------------------------------------------------------

    def data_loss(self, batch: Batch, outputs: Outputs) -> dict[str, Tensor]:
        if self.stage.name == "balanced":
            return {"new": self.cross_entropy(outputs.logits / self.temperature, batch.samples).mean()}
        terms = {"new": self.cross_entropy(outputs.logits, batch.samples).mean()}
        if self.tasks_learned > 0:
            terms["auxiliary"] = self.lam * self._auxiliary_loss(outputs.features, batch.samples)
        return terms

    def _auxiliary_loss(self, features: Tensor, samples: Samples) -> Tensor:
        """Cross-entropy of the classes of the task and of all earlier ones as one, from the last extractor's features."""
        is_new = self.model.answer.class_task == self.model.answer.current_task
        number = torch.where(is_new, is_new.cumsum(0), 0)  # of a class among the auxiliary classifier's outputs
        logits = self.auxiliary(features[:, -self.backbone_width :])
        exists = torch.arange(logits.shape[1], device=logits.device) <= is_new.sum()
        return F.cross_entropy(logits.masked_fill(~exists, -math.inf), number[samples.y])

    def measurements(self) -> list[Measurement]:
        """How many weights the extractors have together."""
        return [Measurement("extractor_weights", "", sum(p.numel() for p in self.model.backbone.parameters()))]


def _draw(layer: nn.Linear | CosineHead, generator: torch.Generator) -> None:
    """Draw a layer anew as ``torch.nn.Linear`` does, from a CPU generator."""
    bound = 1 / math.sqrt(layer.in_features)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator))
