"""ACIL: analytic class-incremental learning (Zhuang et al. 2022, arXiv:2205.14922).

    h = ReLU(φ W_b)                  W_b (D, M): random, frozen
    R ← R − R Hᵀ (I + H R Hᵀ)⁻¹ H R   R = I/γ at first
    W ← W + R Hᵀ (Y − H W)            W = 0 at first; Y one-hot over all classes of the stream
    score = h W

After every batch W is the ridge regression with penalty γ on all samples so far, whatever the order and the tasks in which they
came: the classifier forgets nothing, and all that is lost is lost by features that were not trained for later tasks. The
authors' code appends columns of zeros to W as classes come, which is the same.

Everything is float64, as there. The recorded loss of a batch is the squared error before the batch is taken in. Stores R, M²
numbers, and W.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from clbench.learning.base import Needs
from clbench.learning.parts.frozen_features import FrozenFeatures, FrozenFeaturesConfig
from clbench.learning.parts.least_squares import update_ridge
from clbench.models.continual import ContinualModel
from clbench.options import option
from clbench.registry import STRATEGIES
from clbench.scenarios.scenario import Scenario


@dataclass
class ACILConfig(FrozenFeaturesConfig):
    """Options of ``strategy=acil``."""

    width: int = option(
        help="number M of random features; a batch costs M² per sample, memory is M² numbers", at_least=1
    )
    gamma: float = option(help="penalty γ of the ridge regression", above=0)


@STRATEGIES.register("acil")
class ACIL(FrozenFeatures):
    """Recursive ridge regression on random features of a frozen extractor."""

    config = ACILConfig
    needs = Needs(boundaries=False)
    options: ACILConfig
    expansion: Tensor
    R: Tensor
    W: Tensor

    def __init__(self, config: ACILConfig, model: ContinualModel, scenario: Scenario) -> None:
        super().__init__(config, model, scenario)
        # The initialisation of torch.nn.Linear without a bias, as in the authors' code.
        expansion = nn.Linear(model.head.in_features, config.width, bias=False).weight.detach().T
        self.register_buffer("expansion", expansion.double().contiguous())
        self.register_buffer("R", torch.eye(config.width, dtype=torch.float64) / config.gamma)
        self.register_buffer("W", torch.zeros(config.width, model.head.out_features, dtype=torch.float64))

    def absorb(self, features: Tensor, labels: Tensor) -> Tensor:
        H, Y = self.expand(features), self.targets(labels)
        error = (Y - H @ self.W).square().sum(1).mean()
        R, W = update_ridge(self.R, self.W, H, Y)
        self.R.copy_(R)
        self.W.copy_(W)
        return error

    def scores(self, features: Tensor, task: Tensor | None = None) -> Tensor:
        return self.expand(features) @ self.W

    def expand(self, features: Tensor) -> Tensor:
        """Random features h (B, M) of φ (B, D)."""
        return (features @ self.expansion).relu()
