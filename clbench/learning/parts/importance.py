"""What methods share that hold on to weights by how important each was to earlier tasks.

    penalty  c Σ_i Ω_i (θ_i − θ*_i)²

θ* are the weights at the end of the last task, Ω ≥ 0 their importance. The penalty acts from the second task on.
"""

import torch
from torch import Tensor

from clbench.config import StrategyConfig
from clbench.learning.base import Batch, Outputs, Strategy
from clbench.models.continual import ContinualModel
from clbench.scenarios.scenario import Scenario


class ImportancePenalty(Strategy):
    """Base of such methods: they fill ``importance`` (P,) and set ``anchor`` (P,) when a task is over."""

    importance: Tensor
    anchor: Tensor

    def __init__(self, config: StrategyConfig, model: ContinualModel, scenario: Scenario) -> None:
        super().__init__(config, model, scenario)
        theta = self.flat_parameters().detach()
        self.register_buffer("importance", torch.zeros_like(theta))
        self.register_buffer("anchor", theta.clone())

    @property
    def strength(self) -> Tensor:
        """c, a scalar."""
        raise NotImplementedError

    @torch.no_grad()
    def weights_renewed(self, renewed: Tensor) -> None:
        """Let go of them: what was important has been the old weights."""
        self.importance.copy_(torch.where(renewed, 0.0, self.importance))
        self.anchor.copy_(torch.where(renewed, self.flat_parameters(), self.anchor))

    def penalty(self, batch: Batch, outputs: Outputs) -> Tensor | None:
        if self.tasks_learned == 0:
            return None
        return self.strength * (self.importance * (self.flat_parameters() - self.anchor).square()).sum()
