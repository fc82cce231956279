"""Wasserstein: keep the distribution of each layer's weights, not the weights (Lewandowski et al., arXiv:2406.06811v1).

    L = CE(new) + λ Σ_l ‖ sort(w_l) − sort(w_l⁰) ‖²          w_l: the entries of the l-th weight or bias tensor

against loss of plasticity. Over n_l, this is the squared 2-Wasserstein distance of the two sets of numbers; it is 0 for
any permutation of the initial weights w⁰, and never more than the squared distance to them that ``l2_init`` takes.
``reduction=mean`` does divide by n_l, so that large layers count no more than small ones. Every trained tensor of the network
counts, those of normalisation layers too; the head with the rows of all classes, those of later tasks included.

Weights that are drawn only when their task begins (prompts) are among w⁰ from then on; until then they count as 0.

Stores two copies of the weights, one of them sorted. A step sorts every tensor, O(n log n).
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
class WassersteinConfig(StrategyConfig):
    """Options of ``strategy=wasserstein``."""

    lam: float = option(help="weight λ of the penalty", at_least=0)
    reduction: str = option(help="a tensor's squares are summed, or averaged", choices=("sum", "mean"))


@STRATEGIES.register("wasserstein")
class Wasserstein(Strategy):
    """Squared distance of the sorted weights to the sorted initial weights."""

    config = WassersteinConfig
    needs = Needs(boundaries=False, weights_only=True, traits=frozenset({"reads weights"}))
    options: WassersteinConfig
    lam: Tensor
    initial: Tensor
    targets: Tensor

    def __init__(self, config: WassersteinConfig, model: ContinualModel, scenario: Scenario) -> None:
        super().__init__(config, model, scenario)
        self._sizes = [parameter.numel() for parameter in model.trained().values()]
        initial = self.flat_parameters().detach()
        self.register_buffer("initial", initial.clone())
        self.register_buffer("targets", self._sorted(initial))  # initial, in ascending order within each tensor

    @torch.no_grad()
    def weights_renewed(self, renewed: Tensor) -> None:
        """Take in what has been drawn for the first time."""
        self.initial.copy_(self.first_drawn(self.initial, renewed))
        self.targets.copy_(self._sorted(self.initial))

    def penalty(self, batch: Batch, outputs: Outputs) -> Tensor | None:
        squares = (self._sorted(self.flat_parameters()) - self.targets).square()
        if self.options.reduction == "sum":
            return self.lam * squares.sum()
        return self.lam * torch.stack([part.mean() for part in squares.split(self._sizes)]).sum()

    def notes(self) -> list[str]:
        return [
            "reconstruction: sorted weights per tensor, their squared distance summed, are a reading of the abstract of "
            "arXiv:2406.06811v1; the equation was not checked"
        ]

    def _sorted(self, weights: Tensor) -> Tensor:
        """Flat weights (P,) in ascending order within each tensor."""
        # Stable, so that equal weights (biases of 0) get a gradient that does not depend on how they are sorted.
        return torch.cat([part.sort(stable=True).values for part in weights.split(self._sizes)])
