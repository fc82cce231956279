"""L2 Init: stay near the initial weights (regenerative regularisation; Kumar et al. 2023, arXiv:2308.11958).

    L = CE(new) + λ Σ_j (θ_j − θ0_j)²          no factor ½, as in the paper's text; the authors' code has it

against loss of plasticity: weights that the data do not hold return to where they could be trained well. θ0 are the weights
before the first task. What the head is given when a later task begins, the drawn rows of new classes or the zeros of
``trainer.zero_head``, is θ0 of these weights from then on.

Unlike ``l2``, θ0 does not follow the tasks. Stores one copy of the weights.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from clbench.config import StrategyConfig, option
from clbench.models.continual import ContinualModel
from clbench.registry import STRATEGIES
from clbench.scenarios.scenario import Scenario
from clbench.scenarios.task import Task
from clbench.strategies.base import Batch, Needs, Outputs, Strategy


@dataclass
class L2InitConfig(StrategyConfig):
    """Options of ``strategy=l2_init``."""

    lam: float = option(help="weight λ of the penalty", at_least=0)


@STRATEGIES.register("l2_init")
class L2Init(Strategy):
    """Squared distance to the initial weights."""

    config = L2InitConfig
    needs = Needs(weights_only=True)
    lam: Tensor
    initial: Tensor

    def __init__(self, config: L2InitConfig, model: ContinualModel, scenario: Scenario) -> None:
        super().__init__(config, model, scenario)
        self.register_buffer("initial", self.flat_parameters().detach().clone())

    @torch.no_grad()
    def begin_task(self, task: Task) -> None:
        if task.index == 0:
            return
        trained = self.model.trained()
        renewed = self._renewed_outputs(task.index)
        parts = self.initial.split([parameter.numel() for parameter in trained.values()])
        for (name, parameter), part in zip(trained.items(), parts, strict=True):
            if name in ("head.weight", "head.bias"):
                part.view(parameter.shape)[renewed] = parameter[renewed]

    def penalty(self, batch: Batch, outputs: Outputs) -> Tensor | None:
        return self.lam * (self.flat_parameters() - self.initial).square().sum()

    def _renewed_outputs(self, task: int) -> Tensor:
        """bool (n_classes,): the outputs whose head weights are set anew as ``task`` begins (ContinualModel.begin_task)."""
        model = self.model
        if model.zero_head:
            return torch.ones_like(model.class_task, dtype=torch.bool)
        if model.setting == "class" and model.logit_scope == "all":
            return torch.zeros_like(model.class_task, dtype=torch.bool)
        return model.class_task == task  # in domain-incremental streams none: all classes are of task 0
