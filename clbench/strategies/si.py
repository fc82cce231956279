"""SI: synaptic intelligence (Zenke, Poole and Ganguli 2017, arXiv:1703.04200).

While a task is learned, the path integral ω of the gradient g along the way of every weight adds up how much of the loss's
decrease that weight has brought about; Ω is what it was over the earlier tasks, per squared distance that the weight went:

    every step   ω ← ω − g Δθ
    task's end   Ω ← Ω + max(ω, 0) / ((θ − θ*)² + ξ),  then θ* ← θ,  ω ← 0

    penalty      c Σ Ω (θ − θ*)²

g is that of the loss on the samples alone (``gradient=data``): that of the penalty, 2 c Ω (θ − θ*), is taken off. Avalanche and
van de Ven's code integrate the gradient of everything (``gradient=total``). Penalties of strategies beside it count in either
case. Negative ω, which the paper's definition leaves open, are cut off (``clamp=relu``); the codes named here keep them
(``clamp=none``), so that Ω may be negative. Van de Ven's c is ours; Avalanche's has a factor ½.

Stores four numbers per trained weight: Ω, θ*, ω and the weights before the step.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from clbench.config import StrategyConfig
from clbench.learning.base import Batch, Needs
from clbench.learning.parts.importance import ImportancePenalty
from clbench.models.continual import ContinualModel
from clbench.options import option
from clbench.registry import STRATEGIES
from clbench.scenarios.scenario import Scenario
from clbench.scenarios.task import Task


@dataclass
class SIConfig(StrategyConfig):
    """Options of ``strategy=si``."""

    c: float = option(help="weight c of the penalty", at_least=0)
    xi: float = option(help="ξ, which bounds the importance of weights that hardly moved", above=0)
    gradient: str = option(help="gradient of the loss on samples, or of everything", choices=("data", "total"))
    clamp: str = option(help="cut negative contributions of a task off, or keep them", choices=("relu", "none"))


@STRATEGIES.register("si")
class SI(ImportancePenalty):
    """Weights are held by what they have contributed to the loss's decrease."""

    config = SIConfig
    needs = Needs(traits=frozenset({"reads weights", "remembers weights"}))
    options: SIConfig
    c: Tensor
    xi: Tensor
    omega: Tensor

    def __init__(self, config: SIConfig, model: ContinualModel, scenario: Scenario) -> None:
        super().__init__(config, model, scenario)
        self.register_buffer("omega", torch.zeros_like(self.anchor))

    @property
    def strength(self) -> Tensor:
        return self.c

    @property
    def follows_gradient(self) -> bool:
        """Its product with the step is integrated."""
        return True

    @torch.no_grad()
    def weights_renewed(self, renewed: Tensor) -> None:
        """Let go of them."""
        super().weights_renewed(renewed)
        self.omega.copy_(torch.where(renewed, 0.0, self.omega))

    def after_step(self, step: int, batch: Batch) -> None:
        assert batch.gradient is not None
        of_data = self.options.gradient == "data"
        gradient = self.data_gradient(batch) if of_data else batch.gradient[: len(self.omega)]
        theta = self.flat_parameters()
        self.omega.sub_((theta - self.before).mul_(gradient))
        self.before.copy_(theta)

    @torch.no_grad()
    def end_task(self, task: Task) -> None:
        theta = self.flat_parameters()
        contribution = self.omega.clamp(min=0) if self.options.clamp == "relu" else self.omega
        self.importance.add_(contribution / ((theta - self.anchor).square() + self.xi))
        self.anchor.copy_(theta)
        self.omega.zero_()
