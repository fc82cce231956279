"""What methods share that fit a classifier to the features of a frozen extractor, without gradients.

    φ(x)    features of the backbone, in evaluation mode and float64
    learn   statistics ← statistics of the batch's (φ(x), y); every sample of a task is seen once
    scores  (B, n_classes) from φ(x), in closed form

``extractor`` says where the backbone comes from:

* ``frozen``       as the run starts: pretrained (``model.checkpoint``, ``model.pretrained``), or random;
* ``first_task``   trained on the first task by gradient, with the network's own head, as finetuning is; then frozen. In a
                   second stage of that task the classifier takes its features in, and from the next task on it predicts.

Only the statistics are kept of earlier data.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from clbench.config import StrategyConfig
from clbench.errors import ConfigError
from clbench.learning.base import Batch, Plan, Strategy
from clbench.learning.stage import Stage
from clbench.models.continual import ContinualModel
from clbench.options import option
from clbench.scenarios.scenario import Scenario
from clbench.scenarios.task import Task


@dataclass
class FrozenFeaturesConfig(StrategyConfig):
    """The option that all methods on frozen features share."""

    extractor: str = option(
        help="the features' network: as the run starts (pretrained, or random), or trained on the first task and then frozen",
        choices=("frozen", "first_task"),
    )


class FrozenFeatures(Strategy):
    """Base of methods that learn a classifier on frozen features: they override ``absorb`` and ``scores``."""

    takes_over_at_task_end = True
    options: FrozenFeaturesConfig

    @classmethod
    def traits(cls, options: FrozenFeaturesConfig) -> frozenset[str]:
        return cls.needs.traits | ({"trains first task"} if options.extractor == "first_task" else frozenset())

    def __init__(self, config: FrozenFeaturesConfig, model: ContinualModel, scenario: Scenario) -> None:
        super().__init__(config, model, scenario)
        if config.extractor == "first_task" and not scenario.boundaries:
            raise ConfigError(
                f"strategy.extractor=first_task has no end in {scenario.name}, which does not tell where a task ends: set "
                "strategy.extractor=frozen"
            )
        if config.extractor == "frozen":
            model.backbone.requires_grad_(False)

    # ---- what a method says ---------------------------------------------------------------------------------------

    def absorb(self, features: Tensor, labels: Tensor) -> Tensor:
        """Take in features, float64 (B, n_features), and labels (B,), in place; returns a loss (scalar) for the record.

        Pure in the sense of :mod:`clbench.learning.base`.
        """
        raise NotImplementedError

    def scores(self, features: Tensor, task: Tensor | None = None) -> Tensor:
        """Scores (B, n_classes) of features, float64 (B, n_features); ``task`` (B,) where the scenario gives it."""
        raise NotImplementedError

    # ---- what follows from it ---------------------------------------------------------------------------------------

    @property
    def learns_by_gradient(self) -> bool:
        """Only while the extractor is trained."""
        return self.options.extractor == "first_task" and self.tasks_learned == 0

    def plan(self, task: Task, plan: Plan) -> Plan:
        """Without gradients, the first of the plan's passes over the task: more would count samples twice."""
        return plan if self.learns_by_gradient else Plan(new=first_pass(plan.new, len(task.ids)))

    def learn(self, batch: Batch) -> dict[str, Tensor]:
        """Take in the batch."""
        return {"new": self.absorb(self.features(batch.samples.x), batch.samples.y)}

    def stages(self, task: Task, n_steps: int) -> list[Stage]:
        """After the extractor's training on the first task, one pass in which the classifier takes that task in."""
        if not self.learns_by_gradient:
            return []
        one_pass = {"epochs": 1, "max_steps_per_task": None}
        return [Stage("absorb", None, by_gradient=False, trainer=one_pass, begin=self.before_absorbing)]

    def before_absorbing(self, task: Task) -> None:
        """Called where the extractor is trained, before the first batch is taken in."""

    def targets(self, labels: Tensor) -> Tensor:
        """One-hot float64 (B, n_classes) of labels (B,)."""
        n_classes = self.model.head.out_features
        # F.one_hot looks at the labels' values on the host.
        return (labels[:, None] == torch.arange(n_classes, device=labels.device)).double()

    def features(self, x: Tensor) -> Tensor:
        """float64 (B, n_features) of images (B, C, H, W)."""
        return self.model.features(x).double()

    def predict(self, x: Tensor, task: Tensor | None) -> Tensor:
        """The classifier's scores; until the task is over on which the extractor is trained, the network's logits."""
        if self.learns_by_gradient:
            return super().predict(x, task)
        scores = self.scores(self.features(x), task).to(self.model.head.weight.dtype)
        return self.model.answer.restrict(scores, task, predicting=True)

    @property
    def predicts_from_features(self) -> bool:
        """Images are seen through the backbone alone."""
        return True


def first_pass(batches: list[Tensor], n_samples: int) -> list[Tensor]:
    """The first of ``batches`` that hold ``n_samples`` ids, or all where they are fewer; of one that is repeated, one."""
    chosen: list[Tensor] = []
    n_left = n_samples
    for batch in batches:
        if n_left <= 0:
            break
        if chosen and batch is chosen[-1]:
            continue
        chosen.append(batch)
        n_left -= len(batch)
    return chosen
