"""L2 Init: stay near the initial weights (regenerative regularisation; Kumar et al. 2023, arXiv:2308.11958).

    L = CE(new) + λ Σ_j (θ_j − θ0_j)²          no factor ½, as in the paper's text; the authors' code has it

against loss of plasticity: weights that the data do not hold return to where they could be trained well. θ0 are the weights
before the first task. Where weights are drawn anew, what they become is their θ0 from then on: the rows of new classes, the
zeros of ``trainer.zero_head``, a task's prompts, units that another strategy resets.

Unlike ``l2``, θ0 does not follow the tasks. Stores one copy of the weights.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from clbench.config import StrategyConfig
from clbench.learning.base import Batch, Needs, Outputs, Strategy
from clbench.models.continual import ContinualModel
from clbench.options import option
from clbench.registry import STRATEGIES
from clbench.scenarios.scenario import Scenario


@dataclass
class L2InitConfig(StrategyConfig):
    """Options of ``strategy=l2_init``."""

    lam: float = option(help="weight λ of the penalty", at_least=0)


@STRATEGIES.register("l2_init")
class L2Init(Strategy):
    """Squared distance to the initial weights."""

    config = L2InitConfig
    needs = Needs(boundaries=False, weights_only=True, traits=frozenset({"reads weights"}))
    lam: Tensor
    initial: Tensor

    def __init__(self, config: L2InitConfig, model: ContinualModel, scenario: Scenario) -> None:
        super().__init__(config, model, scenario)
        self.register_buffer("initial", self.flat_parameters().detach().clone())

    @torch.no_grad()
    def weights_renewed(self, renewed: Tensor) -> None:
        """Take what they have become for their initial values."""
        self.initial.copy_(torch.where(renewed, self.flat_parameters(), self.initial))

    def penalty(self, batch: Batch, outputs: Outputs) -> Tensor | None:
        return self.lam * (self.flat_parameters() - self.initial).square().sum()
