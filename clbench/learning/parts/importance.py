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
from clbench.scenarios.task import Task


class ImportancePenalty(Strategy):
    """Base of such methods: they fill ``importance`` (P,) and set ``anchor`` (P,) when a task is over.

    One that ``follows_gradient`` also has ``before`` (P,), the weights before a step, and in ``after_step`` what
    :meth:`data_gradient` says.
    """

    importance: Tensor
    anchor: Tensor
    before: Tensor

    def __init__(self, config: StrategyConfig, model: ContinualModel, scenario: Scenario) -> None:
        super().__init__(config, model, scenario)
        theta = self.protected().detach()
        self.register_buffer("importance", torch.zeros_like(theta))
        self.register_buffer("anchor", theta.clone())
        if self.follows_gradient:
            self.register_buffer("before", theta.clone())

    @property
    def strength(self) -> Tensor:
        """c, a scalar."""
        raise NotImplementedError

    @property
    def follows_gradient(self) -> bool:
        """Whether the method looks at the gradient of every step."""
        return False

    @property
    def keeps_gradient(self) -> bool:
        return self.follows_gradient

    def protected(self) -> Tensor:
        """θ (P,): all trained weights, or those of the backbone, which come first."""
        return self.flat_parameters()

    @torch.no_grad()
    def begin_task(self, task: Task) -> None:
        if self.follows_gradient:
            self.before.copy_(self.protected())

    @torch.no_grad()
    def weights_renewed(self, renewed: Tensor) -> None:
        """Let go of them: what was important has been the old weights, and the leap to the new values is no learning."""
        renewed, theta = renewed[: len(self.importance)], self.protected()
        self.importance.copy_(torch.where(renewed, 0.0, self.importance))
        self.anchor.copy_(torch.where(renewed, theta, self.anchor))
        if self.follows_gradient:
            self.before.copy_(torch.where(renewed, theta, self.before))

    def penalty(self, batch: Batch, outputs: Outputs) -> Tensor | None:
        if self.tasks_learned == 0:
            return None
        return self.strength * self.distance()

    def distance(self) -> Tensor:
        """Σ Ω (θ − θ*)², a scalar."""
        return (self.importance * (self.protected() - self.anchor).square()).sum()

    def data_gradient(self, batch: Batch) -> Tensor:
        """The step's gradient (P,) with that of the penalty taken off; penalties of strategies beside it count.

        For ``after_step``, which sets ``before`` to the present weights once it has looked.
        """
        assert batch.gradient is not None
        gradient = batch.gradient[: len(self.importance)]  # the model's part comes first, and in it the backbone's
        if self.tasks_learned == 0:
            return gradient
        return gradient - 2 * self.strength * self.importance * (self.before - self.anchor)
