"""IGMN: incremental Gaussian mixture network (Heinen, Engel & Pinto 2012; in the form of precisions Pinto & Engel 2015, FIGMN).

One mixture of normal distributions over features and labels together, z = [u, one-hot y] (D), in one pass, a sample at a time.
Component j has a mean μ, a precision Λ = C⁻¹, log |C|, and sp, the sum of the posteriors that it has had::

    q_j = eᵀ Λ e, e = z − μ                  p_j = p(j | z) ∝ sp_j N(z; μ_j, C_j)
    if q_j ≥ χ²_{D, 1−β} for all j           a new component: μ = z, C = δ² I, sp = 1
    else, for every j                        sp ← sp + p,  ω = p / sp,  μ ← μ + ω e
                                             C ← (1 − ω) (C + ω e eᵀ)

so that sp C is δ² I and the scatter around the mean of all that it has been given, weighted by posteriors: exactly, and always
positive definite. On Λ it is one step of rank one: Λ ← [Λ − ω Λe eᵀΛ / (1 + ω q)] / (1 − ω), and
log |C| ← log |C| + D log(1 − ω) + log(1 + ω q).

* ``covariance=released`` has the published step, (1 − ω) C + ω e* e*ᵀ − Δμ Δμᵀ, with e* = z − μ after the step and Δμ that of
  the mean. It equals (1 − ω) C + ω (1 − 3ω + ω²) e eᵀ, which is not the covariance, and at a component's second sample not
  positive definite as soon as q > 4. A component that has lost its definiteness answers no more, as in the authors' code, where
  its density is NaN.

Prediction, with the parts x and y of every component: p(j | u) ∝ sp_j N(u; μ_x, C_xx), and the logits are
Σ_j p(j | u) (μ_y − Λ_yy⁻¹ Λ_yx (u − μ_x)). No gradients, nothing replayed, and no need to know where a task ends.

u are the extractor's features (or ``extractor=pixels``), in ``projection`` random directions that are orthonormal, scaled so that
the mean of their squares is 1. That takes the place of the paper's division by the range of the data, which a stream does not
tell in advance; δ is the standard deviation that a component begins with on this scale. There are ``components`` at most: once
they are used up, a sample that fits none of them is learned by those that there are. With ``prune`` a component whose age is
above 2D samples and whose sp is below D + 1 is removed, as in one of two codes of the authors; it forgets rare classes.

The recorded loss of a batch is the mean of −log p(z) before each sample is learned. Stores K (D² + D + 4) numbers for K
components.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from clbench.errors import ConfigError
from clbench.learning.base import Measurement, Needs
from clbench.learning.parts.frozen_features import FrozenFeatures, FrozenFeaturesConfig
from clbench.models.continual import ContinualModel
from clbench.options import option
from clbench.registry import STRATEGIES
from clbench.scenarios.scenario import Scenario

MOST_INPUTS = 200
"""Inputs u at most: a sample costs K D² operations, and precisions of more lose their digits."""


@dataclass
class IGMNConfig(FrozenFeaturesConfig):
    """Options of ``strategy=igmn``."""

    extractor: str = option(
        help="what is modelled: pixels; the features of the network as the run starts (pretrained, or random); or those of a "
        "network that is trained on the first task and then frozen",
        choices=("pixels", "frozen", "first_task"),
    )
    projection: int | None = option(
        help=f"random directions that inputs are projected to, at most {MOST_INPUTS}; null: inputs as they are",
        at_least=1,
        at_most=MOST_INPUTS,
    )
    components: int = option(help="components K at most", at_least=1)
    beta: float = option(
        help="probability β with which a component takes a sample of its own for a stranger", above=0, at_most=1
    )
    delta: float = option(help="standard deviation δ that components begin with", above=0)
    covariance: str = option(
        help="step of the covariance: exact, or as published, which can lose its definiteness",
        choices=("exact", "released"),
    )
    prune: bool = option(help="remove components that have had few samples for their age")


@STRATEGIES.register("igmn")
class IGMN(FrozenFeatures):
    """One pass of a growing mixture of normal distributions, over features and labels together."""

    config = IGMNConfig
    needs = Needs(boundaries=False)
    options: IGMNConfig
    delta: Tensor
    gate: Tensor
    directions: Tensor
    means: Tensor
    precisions: Tensor
    log_dets: Tensor
    sp: Tensor
    age: Tensor
    active: Tensor
    gain: Tensor
    marginal: Tensor
    marginal_log_dets: Tensor

    def __init__(self, config: IGMNConfig, model: ContinualModel, scenario: Scenario) -> None:
        super().__init__(config, model, scenario)
        if config.extractor == "pixels":
            model.backbone.requires_grad_(False)
        n_inputs = math.prod(scenario.input_shape) if config.extractor == "pixels" else model.head.in_features
        d, C, K = min(config.projection or n_inputs, n_inputs), model.head.out_features, config.components
        if d > MOST_INPUTS:
            raise ConfigError(
                f"strategy.projection=null leaves {d} inputs to strategy igmn, which takes {MOST_INPUTS} at most: set "
                f"strategy.projection={MOST_INPUTS // 2}, say"
            )
        random = torch.randn(n_inputs, d, dtype=torch.float64)
        projects = config.projection is not None and d < n_inputs
        self.register_buffer("directions", torch.linalg.qr(random).Q if projects else torch.eye(d, dtype=torch.float64))
        self.n_inputs, D = d, d + C
        from scipy.stats import chi2  # slow to import, and most runs do without

        self.register_buffer("gate", torch.tensor(chi2.ppf(1 - config.beta, D), dtype=torch.float64))
        for name, shape in {
            "means": (K, D),
            "precisions": (K, D, D),
            "log_dets": (K,),
            "sp": (K,),
            "age": (K,),
        }.items():
            self.register_buffer(name, torch.zeros(shape, dtype=torch.float64))
        self.register_buffer("active", torch.zeros(K, dtype=torch.bool))
        # Derived from the others by prepare_for_eval.
        for name, shape in {"gain": (K, C, d), "marginal": (K, d, d), "marginal_log_dets": (K,)}.items():
            self.register_buffer(name, torch.zeros(shape, dtype=torch.float64), persistent=False)

    # ---- inputs -----------------------------------------------------------------------------------------------------

    def features(self, x: Tensor) -> Tensor:
        """u, float64 (B, d), of images (B, C, H, W)."""
        seen = x.flatten(1).double() if self.options.extractor == "pixels" else super().features(x)
        projected = seen @ self.directions
        size = projected.square().mean(1, keepdim=True).sqrt()
        return projected / torch.where(size > 0, size, 1.0)

    @property
    def predicts_from_features(self) -> bool:
        """Unless it sees the pixels."""
        return self.options.extractor != "pixels"

    # ---- learning ---------------------------------------------------------------------------------------------------

    def absorb(self, features: Tensor, labels: Tensor) -> Tensor:
        """One sample after another, since each is judged by what those before it have left."""
        samples = torch.cat([features, self.targets(labels)], 1)
        return torch.stack([self._learn(z) for z in samples]).mean()

    def _learn(self, z: Tensor) -> Tensor:
        """Take in one sample (D,); −log p(z) before that, 0 without a component."""
        D, K = len(z), len(self.sp)
        e = z - self.means
        v = (self.precisions @ e[:, :, None])[:, :, 0]  # Λe, (K, D)
        q = (e * v).sum(1)
        answers = self.active & self.log_dets.isfinite()
        log_densities = self.sp.clamp(min=1).log() - (q + self.log_dets + D * math.log(2 * math.pi)) / 2
        log_densities = log_densities.masked_fill(~answers, -torch.inf)
        log_total = log_densities.logsumexp(0) - (self.sp * answers).sum().clamp(min=1).log()
        fits = (answers & (q < self.gate)).any()
        creates = ~fits & ~self.active.all()
        p = torch.where(answers.any() & ~creates, log_densities, 0.0).softmax(0) * (answers & ~creates)
        sp = self.sp + p
        omega = p / sp.clamp(min=1)
        # C ← (1 − ω) (C + a e eᵀ)
        a = omega if self.options.covariance == "exact" else omega * (1 - 3 * omega + omega.square()) / (1 - omega)
        growth = 1 + a * q
        shrunk = self.precisions - (a / growth)[:, None, None] * v[:, :, None] * v[:, None]
        is_new = creates & (torch.arange(K, device=z.device) == self.active.long().argmin())
        first = torch.eye(D, dtype=z.dtype, device=z.device) / self.delta.double().square()
        self.precisions.copy_(torch.where(is_new[:, None, None], first, shrunk / (1 - omega)[:, None, None]))
        log_dets = self.log_dets + D * (1 - omega).log() + growth.log()
        self.log_dets.copy_(torch.where(is_new, 2 * D * self.delta.double().log(), log_dets))
        self.means.copy_(torch.where(is_new[:, None], z, self.means + omega[:, None] * e))
        self.age.copy_(torch.where(is_new, 1.0, self.age + self.active))
        self.sp.copy_(torch.where(is_new, 1.0, sp))
        self.active.copy_(self.active | is_new)
        if self.options.prune:
            self.active.copy_(self.active & ~((self.age > 2 * D) & (self.sp < D + 1)))
            self.sp.mul_(self.active)
        return torch.where(answers.any(), -log_total, 0.0)

    # ---- prediction -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def prepare_for_eval(self) -> None:
        """What every component says of labels, and the precision of its inputs alone."""
        d, C = self.n_inputs, self.precisions.shape[1] - self.n_inputs
        eye = torch.eye(C, dtype=torch.float64, device=self.precisions.device)
        exists = (self.active & self.log_dets.isfinite())[:, None, None]
        of_labels = torch.where(exists, self.precisions[:, d:, d:], eye)
        L = torch.linalg.cholesky_ex(of_labels).L
        self.gain.copy_(torch.cholesky_solve(self.precisions[:, d:, :d], L))
        self.marginal.copy_(self.precisions[:, :d, :d] - self.precisions[:, :d, d:] @ self.gain)
        # |C| = |C_xx| |Λ_yy⁻¹|
        self.marginal_log_dets.copy_(self.log_dets + 2 * L.diagonal(dim1=1, dim2=2).log().sum(1))

    def scores(self, features: Tensor, task: Tensor | None = None) -> Tensor:
        d = self.n_inputs
        answers = self.active & self.marginal_log_dets.isfinite()
        q, labels = [], []
        for mean, precision, gain in zip(self.means, self.marginal, self.gain, strict=True):
            e = features - mean[:d]
            q.append((e @ precision * e).sum(1))
            labels.append(mean[d:] - e @ gain.T)
        log_densities = self.sp.clamp(min=1).log() - (torch.stack(q, 1) + self.marginal_log_dets) / 2
        p = torch.where(answers, log_densities, -torch.inf)
        p = torch.where(answers.any(), p, 0.0).softmax(1) * answers
        said = torch.stack(labels, 1).masked_fill(~answers[:, None], 0.0)  # what has lost its definiteness may say NaN
        return (p[:, :, None] * said).sum(1)

    def measurements(self) -> list[Measurement]:
        """Components that there are, and those of them that have lost their definiteness."""
        lost = self.active & ~self.log_dets.isfinite()
        return [
            Measurement("components", "", float(self.active.sum())),
            Measurement("components_not_positive_definite", "", float(lost.sum())),
        ]
