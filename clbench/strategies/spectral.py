"""Spectral: pull every layer's largest singular value to 1 (Lewandowski et al., ICLR 2025, arXiv:2406.06811).

    L = CE(new) + λ [ Σ_l (σ_max(W_l)^k − t_l)² + Σ_l (‖b_l‖^k)² + Σ_n Σ_i (γ_ni^k − 1)² ],    k = 2

against loss of plasticity. W_l are the trained weights of linear and convolutional layers, the head included; a filter bank
(n_out, n_in, kernel…) is the matrix (n_out, n_in · kernel), and the fused ``qkv`` weights of timm's attention are three
layers, with three biases. γ_n are the scales of normalisation layers, whose shifts count as biases b_l. What belongs to no such
layer (class token, position and other embeddings) is left alone, which is our choice.

    sigma_target  one: t_l = 1;  initial: t_l = σ_max(W_l)^k of the initial weights
    bias_form     squared: (‖b‖^k)², as above;  plain: ‖b‖^k
    norm_params   elementwise: as above;  skip: neither scales nor shifts of normalisation layers

σ_max = uᵀWv with unit vectors from power iteration, v ← Wᵀu / ‖Wᵀu‖ and u ← Wv / ‖Wv‖: ``power_iterations`` times after each
step, and WARM_UP times at the start of a task, where the head may have weights drawn anew. u and v are constants of the
gradient, which is ∂σ/∂W = uvᵀ. The head is one matrix with the rows of all classes, those of later tasks included.

Stores u and v of every layer (a row and a column of its weights).
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from clbench.config import StrategyConfig
from clbench.errors import ConfigError
from clbench.learning.base import Batch, Needs, Outputs, Strategy
from clbench.learning.parts.masked_layers import NORM_LAYERS
from clbench.models.continual import ContinualModel
from clbench.options import option
from clbench.registry import STRATEGIES
from clbench.scenarios.scenario import Scenario
from clbench.scenarios.task import Task

WARM_UP = 20
"""Power iterations at the start of a task."""


@dataclass
class SpectralConfig(StrategyConfig):
    """Options of ``strategy=spectral``."""

    lam: float = option(help="weight λ of the penalty", at_least=0)
    k: int = option(help="exponent k of singular values, norms of biases and scales", at_least=1)
    power_iterations: int = option(help="power iterations after every step", at_least=1)
    sigma_target: str = option(
        help="what the largest singular values are pulled to: 1, or their initial values", choices=("one", "initial")
    )
    bias_form: str = option(help="penalty of a bias: (‖b‖^k)² or ‖b‖^k", choices=("squared", "plain"))
    norm_params: str = option(
        help="scales and shifts of normalisation layers: each scale is pulled to 1 and shifts are biases; or neither",
        choices=("elementwise", "skip"),
    )


class Rows(NamedTuple):
    """Some rows of a trained parameter: of most parameters all, of fused ones a part.

    Attributes:
        name: of the parameter in the model.
        rows: which rows.
    """

    name: str
    rows: slice


class Penalised(NamedTuple):
    """What of a model is penalised: weight matrices, biases, and the scales of normalisation layers (names)."""

    weights: list[Rows]
    biases: list[Rows]
    scales: list[str]


@STRATEGIES.register("spectral")
class Spectral(Strategy):
    """Largest singular values to 1, biases to 0."""

    config = SpectralConfig
    needs = Needs(weights_only=True, traits=frozenset({"linear head", "reads weights"}))
    options: SpectralConfig
    lam: Tensor
    left: Tensor
    right: Tensor
    sigma_targets: Tensor

    def __init__(self, config: SpectralConfig, model: ContinualModel, scenario: Scenario) -> None:
        super().__init__(config, model, scenario)
        self.penalised = penalised_parts(model, with_norm_layers=config.norm_params == "elementwise")
        if not self.penalised.weights:
            raise ConfigError(
                "spectral acts on trained weights of linear and convolutional layers, of which there are none: a hypernetwork "
                "makes them all, or they are frozen"
            )
        matrices = self._matrices()
        self._n_rows = [len(W) for W in matrices]
        self._n_columns = [W.shape[1] for W in matrices]
        left = [nn.functional.normalize(torch.randn(n), dim=0) for n in self._n_rows]
        right = [nn.functional.normalize(torch.randn(n), dim=0) for n in self._n_columns]
        self.register_buffer("left", torch.cat(left).to(matrices[0]))  # u of all layers, one after another
        self.register_buffer("right", torch.cat(right).to(matrices[0]))  # v
        self._iterate(WARM_UP)
        sigmas = self._sigmas().detach()
        self.register_buffer("sigma_targets", sigmas if config.sigma_target == "initial" else torch.ones_like(sigmas))

    def begin_task(self, task: Task) -> None:
        self._iterate(WARM_UP)

    def penalty(self, batch: Batch, outputs: Outputs) -> Tensor | None:
        parameters, k = self.model.trained(), self.options.k
        total = (self._sigmas() ** k - self.sigma_targets**k).square().sum()
        for name, rows in self.penalised.biases:
            norm = torch.linalg.vector_norm(parameters[name][rows])
            total = total + norm ** (2 * k if self.options.bias_form == "squared" else k)
        for name in self.penalised.scales:
            total = total + (parameters[name] ** k - 1).square().sum()
        return self.lam * total

    def after_step(self, step: int, batch: Batch) -> None:
        self._iterate(self.options.power_iterations)

    def notes(self) -> list[str]:
        said = [
            "reconstruction: the penalty follows the abstract and reviews of arXiv:2406.06811 and re-implementations of it; "
            "the equation, λ and what is done to normalisation layers were not checked against the paper"
        ]
        penalised = {name for name, _ in (*self.penalised.weights, *self.penalised.biases)} | set(self.penalised.scales)
        others = [name for name in self.model.trained() if name not in penalised]
        if others:
            said.append(f"{len(others)} trained tensors of the network are not penalised: {', '.join(others[:3])}, …")
        return said

    def _matrices(self) -> list[Tensor]:
        """The weights (n_out, n_in) of every layer."""
        parameters = self.model.trained()
        return [parameters[name].flatten(1)[rows] for name, rows in self.penalised.weights]

    def _sigmas(self) -> Tensor:
        """uᵀWv (L,) of every layer."""
        vectors = zip(self._matrices(), self.left.split(self._n_rows), self.right.split(self._n_columns), strict=True)
        # A sum over entries and not matrix products, which autocast would compute in half precision.
        return torch.stack([(W * torch.outer(u, v)).sum() for W, u, v in vectors])

    @torch.no_grad()
    def _iterate(self, times: int) -> None:
        """Power iterations of every layer."""
        vectors = zip(self._matrices(), self.left.split(self._n_rows), self.right.split(self._n_columns), strict=True)
        for W, u, v in vectors:
            for _ in range(times):
                v.copy_(_unit(W.mT @ u, otherwise=v))
                u.copy_(_unit(W @ v, otherwise=u))


def penalised_parts(model: ContinualModel, with_norm_layers: bool) -> Penalised:
    """The trained parameters of linear, convolutional and, if asked for, normalisation layers."""
    trained = model.trained()
    parts = Penalised([], [], [])
    for name, module in model.named_modules():
        weight, bias = f"{name}.weight", f"{name}.bias"
        if isinstance(module, nn.Linear | nn.modules.conv._ConvNd):
            fused = name.endswith(".qkv") and len(module.weight) == 3 * module.weight[0].numel()
            n = len(module.weight) // (3 if fused else 1)
            pieces = [slice(start, start + n) for start in range(0, len(module.weight), n)]
            parts.weights.extend(Rows(weight, piece) for piece in pieces if weight in trained)
            parts.biases.extend(Rows(bias, piece) for piece in pieces if bias in trained)
        elif isinstance(module, NORM_LAYERS) and with_norm_layers:
            parts.scales.extend([weight] if weight in trained else [])
            parts.biases.extend([Rows(bias, slice(None))] if bias in trained else [])
    return parts


def _unit(x: Tensor, otherwise: Tensor) -> Tensor:
    """x / ‖x‖; ``otherwise`` for x = 0, which a layer of zeros gives, and from which no iteration would lead away."""
    norm = torch.linalg.vector_norm(x)
    return torch.where(norm > 0, x / norm, otherwise)
