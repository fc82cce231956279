"""Deep SLDA: streaming linear discriminant analysis (Hayes and Kanan 2020, arXiv:1909.01520).

Means μ_k and counts c_k of the classes and one covariance Σ, updated by one sample (x, y) after the other::

    δ = x − μ_y        with the mean before the sample
    S ← S + f δδᵀ      f = c_y / (c_y + 1)   covariance=exact
                       f = n / (n + 1)       covariance=released, n = Σ_k c_k: the authors' code
    μ_y ← μ_y + δ / (c_y + 1),  c_y ← c_y + 1

    Λ = ((1 − ε) Σ + ε I)⁻¹ with Σ = S / n
    score_k = μ_kᵀ Λ x − ½ μ_kᵀ Λ μ_k        the same prior for all classes

``exact`` makes S the scatter within classes, Σ_i (x_i − μ_y)(x_i − μ_y)ᵀ with the means of all samples so far, whatever the
order. ``released`` also counts the first sample of a class in full, whose δ is x itself, so that Σ holds the distance of the
classes from zero as well.

A batch is taken in as if its samples came one by one: the mean before each of them follows from the batch's earlier samples of
its class. A class without samples scores less than all others. The paper's start from the shrunken covariance of a base set is
not here: the first task is streamed as all others are.

The recorded loss of a batch is the mean of |δ|². Stores S, μ and c; weights Λμ_k and biases are derived before evaluations.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from clbench.learning.base import Needs
from clbench.learning.parts.class_statistics import means_with
from clbench.learning.parts.frozen_features import FrozenFeatures, FrozenFeaturesConfig
from clbench.models.continual import ContinualModel
from clbench.options import option
from clbench.registry import STRATEGIES
from clbench.scenarios.scenario import Scenario


@dataclass
class SLDAConfig(FrozenFeaturesConfig):
    """Options of ``strategy=slda``."""

    covariance: str = option(
        help="covariance within classes, or the authors' code, in which the first sample of every class counts in full",
        choices=("exact", "released"),
    )
    shrinkage: float = option(help="weight ε of the identity beside the covariance", above=0, at_most=1)


@STRATEGIES.register("slda")
class SLDA(FrozenFeatures):
    """Linear discriminant analysis on a frozen extractor's features, a sample at a time."""

    config = SLDAConfig
    needs = Needs(boundaries=False)
    options: SLDAConfig
    shrinkage: Tensor
    means: Tensor
    counts: Tensor
    scatter: Tensor
    weight: Tensor
    bias: Tensor

    def __init__(self, config: SLDAConfig, model: ContinualModel, scenario: Scenario) -> None:
        super().__init__(config, model, scenario)
        n_features, n_classes = model.head.in_features, model.head.out_features
        for name, shape in {
            "means": (n_classes, n_features),
            "counts": (n_classes,),
            "scatter": (n_features, n_features),
        }.items():
            self.register_buffer(name, torch.zeros(shape, dtype=torch.float64))
        # Derived from the others by prepare_for_eval.
        for name, shape in {"weight": (n_features, n_classes), "bias": (n_classes,)}.items():
            self.register_buffer(name, torch.zeros(shape, dtype=torch.float64), persistent=False)

    def absorb(self, features: Tensor, labels: Tensor) -> Tensor:
        Y = self.targets(labels)
        place = torch.arange(len(Y), device=Y.device)
        # (B, B): whether sample j is of sample i's class and comes before it in the batch.
        earlier = (Y @ Y.T) * (place[:, None] > place)
        c = Y @ self.counts + earlier.sum(1)  # samples of each one's class before it
        sums = (Y * self.counts) @ self.means + earlier @ features
        delta = features - sums / c.clamp(min=1)[:, None]
        seen = c if self.options.covariance == "exact" else self.counts.sum() + place
        self.scatter.add_((delta * (seen / (seen + 1))[:, None]).T @ delta)
        means, counts = means_with(self.means, self.counts, features, Y)
        self.means.copy_(means)
        self.counts.copy_(counts)
        return delta.square().sum(1).mean()

    @torch.no_grad()
    def prepare_for_eval(self) -> None:
        """Weights and biases of the classes from their means and the covariance."""
        covariance = self.scatter / self.counts.sum().clamp(min=1)
        eye = torch.eye(len(covariance), dtype=torch.float64, device=covariance.device)
        factor = torch.linalg.cholesky_ex((1 - self.shrinkage) * covariance + self.shrinkage * eye).L
        self.weight.copy_(torch.cholesky_solve(self.means.T, factor))
        self.bias.copy_(-(self.weight * self.means.T).sum(0) / 2)

    def scores(self, features: Tensor, task: Tensor | None = None) -> Tensor:
        scores = features @ self.weight + self.bias
        return torch.where(self.counts > 0, scores, scores.amin(1, keepdim=True) - 1)
