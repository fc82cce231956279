"""Strategies on features that a test makes up: the network passes its inputs on."""

import torch
from torch import Tensor, nn

from clbench.config import StrategyConfig
from clbench.learning.parts.frozen_features import FrozenFeatures
from clbench.models.continual import ContinualModel


class PassedOn(nn.Flatten):
    """(B, D, 1, 1) → (B, D)."""

    def __init__(self, n_features: int) -> None:
        super().__init__()
        self.n_features = n_features


def on_given_features(
    cls: type[FrozenFeatures], options: StrategyConfig, n_features: int, task_classes: list[list[int]], seed: int = 0
) -> FrozenFeatures:
    """A strategy of class-incremental tasks whose extractor gives (B, n_features) as they come in."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ContinualModel(PassedOn(n_features), task_classes, "class")
        return cls(options, model, None)  # type: ignore[arg-type]


def clusters(n_per_class: int, n_classes: int, n_features: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Features (n, D), float64, and labels (n,), class after class: normal clusters of one covariance."""
    generator = torch.Generator().manual_seed(seed)
    means = 3 * torch.randn(n_classes, n_features, generator=generator, dtype=torch.float64)
    mixing = torch.randn(n_features, n_features, generator=generator, dtype=torch.float64) / n_features**0.5
    y = torch.arange(n_classes).repeat_interleave(n_per_class)
    noise = torch.randn(len(y), n_features, generator=generator, dtype=torch.float64)
    return means[y] + noise @ mixing, y


def shuffled(n: int, seed: int) -> Tensor:
    """A permutation of n positions."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))
