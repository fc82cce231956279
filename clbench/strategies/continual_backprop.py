"""Continual backpropagation: go on replacing the least useful units (Dohare et al. 2024, Nature 632, 768–774).

After every step, in every hidden layer (E: mean over the batch's samples, and over a channel's pixels):

    age      a_i ← a_i + 1
    mean     m_i ← 0.99 m_i + 0.01 E h_i;         ĥ_i = m_i / (1 − 0.99^a_i)
    utility  u_i ← 0.99 u_i + 0.01 y_i;           û_i = u_i / (1 − 0.99^a_i)
               contribution              y_i = E|h_i| · mean|outgoing weights|
               adaptable_contribution    y_i = E|h_i − ĥ_i| · mean|outgoing weights| / mean|incoming weights|
    replace  c ← c + ρ n_eligible, where units are eligible with a_i > m, the maturity; of these the ⌊c⌋ of least û, c ← c − ⌊c⌋

A unit that is replaced gets incoming weights from Kaiming's distribution and bias 0; W_out ĥ is added to the bias of the layer
that reads it, which so goes on with the unit's mean; then its outgoing weights W_out are set to 0, and so are age, mean and
utility. See :mod:`clbench.learning.parts.unit_resets` for the rest of what is reset. Behind a flattening, each pixel's E|h| is
multiplied by the weights of that pixel, before the mean over pixels.

Incoming weights are U(±√(6 / fan_in)), and N(0, 2 / fan_in) in layers with BatchNorm, as in the authors' ResNet. There the layer
that reads them has no bias to correct.

Differences from the authors' code (shibhansh/loss-of-plasticity):

* Activations are those of one more forward pass, after the step; there they are those of the training pass, before it.
* One rule for all networks. There each kind has its own: convolutions draw from U(±1 / √fan_in) and correct no bias, in
  networks with convolutions c grows by ρ times all units of a layer, and in ResNets |h| is summed up and never forgotten.
* The bias is corrected. There the mean is set to 0 before the correction reads it, so that nothing is added.

Stores three numbers for every unit. Reports ``units_reset`` in every task, of each layer and in all.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from clbench.config import StrategyConfig
from clbench.learning.base import Batch, Needs
from clbench.learning.parts.unit_resets import Reset, UnitResets
from clbench.models.continual import ContinualModel
from clbench.models.hidden_layers import HiddenLayer
from clbench.options import option
from clbench.registry import STRATEGIES
from clbench.scenarios.scenario import Scenario
from clbench.seeding import hashed_normal, hashed_uniform

DECAY = 0.99
"""Of the running means."""

LARGEST_RATE = 0.1
"""The largest replacement rate. Weights are drawn in every step for as many units as it may replace, which costs time."""


@dataclass
class ContinualBackpropConfig(StrategyConfig):
    """Options of ``strategy=continual_backprop``."""

    replacement_rate: float = option(
        help="share ρ of a layer's eligible units that is replaced in each step", at_least=0, at_most=LARGEST_RATE
    )
    maturity: int = option(help="steps that a unit has to be older than to be eligible", at_least=0)
    utility: str = option(help="measure of a unit's use", choices=("contribution", "adaptable_contribution"))


@STRATEGIES.register("continual_backprop")
class ContinualBackprop(UnitResets):
    """Replaces units of little use, a few at a time, all the time."""

    config = ContinualBackpropConfig
    needs = Needs(
        boundaries=False,
        traits=frozenset({"linear head", "reads weights", "remembers weights", "resets units", "moves weights"}),
    )
    options: ContinualBackpropConfig
    replacement_rate: Tensor
    age: Tensor
    mean: Tensor
    utility: Tensor
    owed: Tensor

    def __init__(self, config: ContinualBackpropConfig, model: ContinualModel, scenario: Scenario) -> None:
        super().__init__(config, model, scenario)
        widths = [len(self.incoming(layer)) for layer in self.layers]
        starts = [sum(widths[:index]) for index in range(len(widths))]
        # Where in age, mean and utility, which are those of all layers, the units of a layer are.
        self._parts = [slice(start, start + width) for start, width in zip(starts, widths, strict=True)]
        self.register_buffer("age", torch.zeros(sum(widths), dtype=torch.int64))
        self.register_buffer("mean", torch.zeros(sum(widths)))
        self.register_buffer("utility", torch.zeros(sum(widths)))
        self.register_buffer("owed", torch.zeros(len(widths), dtype=torch.float64))  # c

    def after_step(self, step: int, batch: Batch) -> Tensor:
        activations = self.activations(batch.samples.x)
        for layer, part, h in zip(self.layers, self._parts, activations, strict=True):
            self._judge(layer, part, h)
        ranks = [self._ranked(index, part) for index, part in enumerate(self._parts)]
        return self._replace(step, ranks)

    def _judge(self, layer: HiddenLayer, part: slice, h: Tensor) -> None:
        """Update age, mean and utility of a layer's units with activations h (B, U, …)."""
        self.age[part].add_(1)
        mean = h.mean([dimension for dimension in range(h.dim()) if dimension != 1])
        self.mean[part].mul_(DECAY).add_(mean, alpha=1 - DECAY)
        adaptable = self.options.utility == "adaptable_contribution"
        if adaptable:
            h = h - self._corrected(self.mean, part).view(-1, *[1] * (h.dim() - 2))
        use = contribution(
            h, self.outgoing(layer), isinstance(self.model.get_submodule(str(layer.outgoing)), nn.Linear)
        )
        if adaptable:
            use = use / self.incoming(layer).abs().flatten(1).mean(1)
        self.utility[part].mul_(DECAY).add_(use, alpha=1 - DECAY)

    def _ranked(self, index: int, part: slice) -> tuple[Tensor, Tensor]:
        """Which units of a layer are replaced, bool (U,), and their numbers among these, int64 (U,)."""
        eligible = self.age[part] > self.options.maturity
        owed = self.owed[index].add_(self.replacement_rate * eligible.sum())
        n = owed.floor()
        owed.sub_(n)
        utility = torch.where(eligible, self._corrected(self.utility, part), math.inf)
        rank = utility.argsort(stable=True).argsort()
        return eligible & (rank < n), rank

    def _replace(self, step: int, chosen: list[tuple[Tensor, Tensor]]) -> Tensor:
        """Replace units; returns which trained weights (P,) have been drawn anew."""
        resets = []
        parameters = self.model.trained()
        # All corrections come before the first reset: the bias of a unit that is itself replaced becomes 0 in the end.
        for layer, part, (units, rank) in zip(self.layers, self._parts, chosen, strict=True):
            bias = parameters.get(f"{layer.outgoing}.bias")
            if bias is not None:
                bias.add_(self.outgoing(layer).sum(2) @ (units * self._corrected(self.mean, part)))
            drawn = self._drawn(step, layer)
            weight = drawn[rank.clamp(max=len(drawn) - 1)].view(self.incoming(layer).shape)
            resets.append(Reset(units, weight, torch.zeros_like(self.mean[part])))
        for part, (units, _) in zip(self._parts, chosen, strict=True):
            for state in (self.age, self.mean, self.utility):
                state[part].mul_(~units)
        return self.reset(resets)

    def _corrected(self, average: Tensor, part: slice) -> Tensor:
        """A running mean (U,) of a layer without its bias towards the 0 that it started from."""
        return average[part] / (1 - DECAY ** self.age[part].to(average.dtype))

    def _drawn(self, step: int, layer: HiddenLayer) -> Tensor:
        """Incoming weights (n, fan_in) for as many units as may be replaced in one step."""
        weight = self.incoming(layer)
        n_rows, fan_in = 1 + math.floor(LARGEST_RATE * len(weight)), weight[0].numel()
        key, n = self.key_of(step, layer), n_rows * fan_in
        if layer.norm and isinstance(self.model.get_submodule(layer.norm), nn.modules.batchnorm._NormBase):
            drawn = math.sqrt(2 / fan_in) * hashed_normal(key, n)
        else:
            drawn = math.sqrt(6 / fan_in) * (2 * hashed_uniform(key, n) - 1)
        return drawn.to(weight.dtype).view(n_rows, fan_in)


def contribution(h: Tensor, outgoing: Tensor, by_pixel: bool) -> Tensor:
    """E|h| · mean|outgoing weights| (U,) of activations (B, U, …) and outgoing weights (n_out, U, n).

    With ``by_pixel`` each of n pixels of h has outgoing weights of its own; a single one where h is (B, U).
    """
    size = h.abs().mean(0).reshape(h.shape[1], -1)
    weight = outgoing.abs().mean(0)
    return (size * weight).mean(1) if by_pixel else size.mean(1) * weight.mean(1)
