"""FeCAM: feature covariance-aware metric (Goswami et al. 2023, arXiv:2309.14062).

Features φ of a frozen extractor, and of every class c a prototype μ_c and a covariance Σ_c of its own::

    φ̃ = φ^β                          Tukey's ladder of powers, entry by entry; sign(φ) |φ|^β where φ < 0
    Σ_c = covariance of φ̃            of the class's samples, n_c − 1 in the denominator
    Σ_c ← Σ_c + α₁ v I + α₂ u (1 − I)   v the mean of its diagonal, u that of all else; twice
    R_c = Σ_c / (σ σᵀ), σ² = diag Σ_c
    d_c(x) = δᵀ R_c⁻¹ δ,  δ = φ̃ / ‖φ̃‖ − μ̃_c / ‖μ̃_c‖

The class of the smallest distance is predicted; the logits are −d_c. With R = I that is the nearest mean by cosine.

* ``prototype=transformed_mean``: μ̃_c = (mean of φ)^β, as in the authors' code; ``mean_of_transformed``: the mean of φ̃.

Statistics are taken in batch after batch, exactly, so that they do not depend on the order of the samples. A class of a single
sample, and features that are the same in all samples of a class where α₁ v is 0, have R = I in those entries. 10⁻⁹ is added to
the diagonal of R, which for α₂ > α₁ need not have an inverse. A class without samples scores less than all others.

Differences to the authors' code: they take u over entries other than 0, and predict the first task by the network's own weights
(as here until the task is over). Their transformers' features, which may be negative, are not transformed at all: β = 1, α₂ = 0.

The recorded loss of a batch is the mean of |φ̃ − mean|² before it is taken in, or with it in a class's first batch. Stores
C D² + 2 C D numbers.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from clbench.learning.base import Needs
from clbench.learning.parts.class_statistics import means_with
from clbench.learning.parts.frozen_features import FrozenFeatures, FrozenFeaturesConfig
from clbench.models.continual import ContinualModel
from clbench.options import option
from clbench.registry import STRATEGIES
from clbench.scenarios.scenario import Scenario

SHRINKAGES = 2
"""How often a covariance is shrunk."""

TINY = 1e-9
"""Added to the diagonal of R, whose entries are 1."""

ROWS = 64
"""Rows of all covariances that a batch is added to at a time: B × ROWS × D numbers are held for it."""


@dataclass
class FeCAMConfig(FrozenFeaturesConfig):
    """Options of ``strategy=fecam``."""

    beta: float = option(help="power β that features are taken to; 1: they stay as they are", above=0, at_most=1)
    alpha1: float = option(help="weight α₁ of the mean variance that is added to the diagonal", at_least=0)
    alpha2: float = option(help="weight α₂ of the mean covariance that is added to all else", at_least=0)
    prototype: str = option(
        help="the power of the mean feature (authors), or the mean of features' powers",
        choices=("transformed_mean", "mean_of_transformed"),
    )


@STRATEGIES.register("fecam")
class FeCAM(FrozenFeatures):
    """The nearest class by a distance of its own, on a frozen extractor's features."""

    config = FeCAMConfig
    needs = Needs(boundaries=False)
    options: FeCAMConfig
    beta: Tensor
    alpha1: Tensor
    alpha2: Tensor
    counts: Tensor
    means: Tensor
    transformed_means: Tensor
    scatter: Tensor
    whitening: Tensor

    def __init__(self, config: FeCAMConfig, model: ContinualModel, scenario: Scenario) -> None:
        super().__init__(config, model, scenario)
        D, C = model.head.in_features, model.head.out_features
        for name, shape in {
            "counts": (C,),
            "means": (C, D),
            "transformed_means": (C, D),
            "scatter": (C, D, D),
        }.items():
            self.register_buffer(name, torch.zeros(shape, dtype=torch.float64))
        # Of every class L⁻ᵀ for R = L Lᵀ, derived from the others by prepare_for_eval.
        self.register_buffer("whitening", torch.zeros(C, D, D, dtype=torch.float64), persistent=False)

    def absorb(self, features: Tensor, labels: Tensor) -> Tensor:
        Y, transformed = self.targets(labels), self.power(features)
        self.means.copy_(means_with(self.means, self.counts, features, Y)[0])
        means, counts = means_with(self.transformed_means, self.counts, transformed, Y)
        # Σ (x − mean before the batch)(x − mean after it)ᵀ is what a batch adds to the scatter around the mean (Welford). For a
        # class without samples any mean before it does: with 0, digits would be lost where features are far from it.
        before = transformed - torch.where(self.counts[:, None] > 0, self.transformed_means, means)[labels]
        after = transformed - means[labels]
        for start in range(0, features.shape[1], ROWS):
            rows = slice(start, start + ROWS)
            self.scatter[:, rows].index_add_(0, labels, before[:, rows, None] * after[:, None])
        self.transformed_means.copy_(means)
        self.counts.copy_(counts)
        return before.square().sum(1).mean()

    def power(self, features: Tensor) -> Tensor:
        """φ̃ of φ, entry by entry."""
        return features.sign() * features.abs() ** self.beta

    @torch.no_grad()
    def prepare_for_eval(self) -> None:
        """The classes' distances from their covariances."""
        eye = torch.eye(self.scatter.shape[1], dtype=torch.float64, device=self.scatter.device)
        for c, n in enumerate(self.counts):  # one after another: D² numbers at a time, and not C D²
            R = self.correlation(self.scatter[c] / (n - 1).clamp(min=1))
            L = torch.linalg.cholesky_ex(R + TINY * eye).L
            self.whitening[c] = torch.linalg.solve_triangular(L, eye, upper=False).T

    def correlation(self, covariance: Tensor) -> Tensor:
        """R (D, D) of a class from its covariance (D, D)."""
        D = len(covariance)
        eye = torch.eye(D, dtype=covariance.dtype, device=covariance.device)
        for _ in range(SHRINKAGES):
            v = covariance.diagonal().mean()
            u = (covariance.sum() - D * v) / max(D * (D - 1), 1)
            covariance = covariance + self.alpha1 * v * eye + self.alpha2 * u * (1 - eye)
        std = covariance.diagonal().sqrt()
        R = covariance / torch.where(std > 0, std, 1.0).outer(torch.where(std > 0, std, 1.0))
        return torch.where(eye > 0, 1.0, R)

    def scores(self, features: Tensor, task: Tensor | None = None) -> Tensor:
        x = F.normalize(self.power(features))
        transformed_mean = self.options.prototype == "transformed_mean"
        prototypes = F.normalize(self.power(self.means) if transformed_mean else self.transformed_means)
        pairs = zip(prototypes, self.whitening, strict=True)
        scores = -torch.stack([((x - mean) @ whitening).square().sum(1) for mean, whitening in pairs], 1)
        return torch.where(self.counts > 0, scores, scores.amin(1, keepdim=True) - 1)
