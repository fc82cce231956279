"""What methods share that hold on to weights by how important each was to earlier tasks.

    penalty  c Σ_i Ω_i (θ_i − θ*_i)²

θ* are the weights at the end of the last task, Ω ≥ 0 their importance. The penalty acts from the second task on.
"""

import torch
from torch import Tensor, nn

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

    @property
    def penalises(self) -> bool:
        """Whether there is a penalty in the task being learned."""
        return self.tasks_learned > 0

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
        return self.strength * self.distance() if self.penalises else None

    def distance(self) -> Tensor:
        """Σ Ω (θ − θ*)², a scalar."""
        return (self.importance * (self.protected() - self.anchor).square()).sum()

    def penalty_gradient(self) -> Tensor:
        """The gradient (P,) of the penalty at the weights ``before`` the step."""
        return (2 * self.strength * self.importance).mul_(
            self.before - self.anchor
        )  # in place: one pass over memory less

    def data_gradient(self, batch: Batch) -> Tensor:
        """The step's gradient (P,) with that of the penalty taken off; penalties of strategies beside it count.

        For ``after_step``, which sets ``before`` to the present weights once it has looked.
        """
        assert batch.gradient is not None
        gradient = batch.gradient[: len(self.importance)]  # the model's part comes first, and in it the backbone's
        return gradient - self.penalty_gradient() if self.penalises else gradient


class GaussianPrior(nn.Module):
    """A prior N(0, σ²) of the weights that no task has learned yet: those of the first task, later those that are drawn anew.

    With the mean loss over n samples it is p/2 · ‖θ‖² of these weights, p = 1/(σ² n).

    Args:
        like: (P,), weights.
    """

    precision: Tensor
    unlearned: Tensor

    def __init__(self, like: Tensor) -> None:
        super().__init__()
        self.register_buffer("precision", torch.zeros(()))
        self.register_buffer("unlearned", torch.ones_like(like, dtype=torch.bool))

    def begin_task(self, variance: Tensor, n: int) -> None:
        """Be that of a task of ``n`` samples, for σ²."""
        self.precision.copy_(1 / (variance * n))

    def loss(self, theta: Tensor) -> Tensor:
        """p/2 · ‖θ‖² (scalar), for weights (P,)."""
        return self.precision / 2 * (self.unlearned * theta.square()).sum()

    def gradient(self, theta: Tensor) -> Tensor:
        """That of :meth:`loss`, (P,)."""
        return self.precision * self.unlearned * theta

    def renew(self, renewed: Tensor) -> None:
        """Weights, boolean (P,), that have been drawn anew come from the prior again; pure."""
        self.unlearned.logical_or_(renewed)

    def learned(self) -> Tensor:
        """All weights have been learned now. Returns what the prior adds to the precision (P,) of each."""
        added = self.precision * self.unlearned
        self.unlearned.zero_()
        return added
