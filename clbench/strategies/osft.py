"""OSFT: training within the directions of small singular values (Nayak et al. 2025, "Sculpting Subspaces", arXiv:2504.07097).

Before every task each adapted weight is decomposed; its k largest singular values, and their directions, stand for what the
network can do already, and are kept:

    W = U_h S_h V_h + U_l S_l V_l        U_l, S_l, V_l and the head are trained; k = ⌊c/100 · min(rows, columns)⌋
    dU_l ← dU_l − U_h U_hᵀ dU_l,   dV_l ← dV_l − dV_l V_hᵀ V_h

The next task decomposes what the task has made of W, so that what it has made large is kept too. No task has parameters, data or
gradients of its own, and all weights W may change, if within these directions.

Where the published codes project gradients, here the projectors stand in the network (:mod:`clbench.models.singular_parts`),
which is the same for gradients; but then Adam, whose step is not along its gradient, stays within the directions too. c is
one share for all layers and tasks, as in Hugging Face PEFT (OSF, a half). The paper gives a layer the more directions the more
alike its inputs and outputs are, which is not done here: a layer of an MLP has inputs and outputs of different lengths. Weights
that are not adapted, biases and normalisation layers are frozen, as in PEFT; queries, keys and values are weights of their own.

Reported after every task: ``kept_energy``, the share of ‖W‖² that is in U_h S_h V_h, for every adapted weight.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from clbench.config import StrategyConfig
from clbench.errors import ConfigError
from clbench.learning.base import Measurement, Needs, Strategy
from clbench.models.continual import ContinualModel
from clbench.models.lora import TARGETS, AdaptedLinear, adapted_layers, add_adapters
from clbench.models.singular_parts import LowPart
from clbench.options import option
from clbench.registry import STRATEGIES
from clbench.scenarios.scenario import Scenario
from clbench.scenarios.task import Task


@dataclass
class OSFTConfig(StrategyConfig):
    """Options of ``strategy=osft``."""

    kept_percent: int = option(help="c: of a weight's singular directions so many are kept", at_least=0, at_most=100)
    targets: list[str] = option(help=f"what is trained in every block: some of {', '.join(TARGETS)}")


@STRATEGIES.register("osft")
class OSFT(Strategy):
    """Trains the part of every adapted weight that belongs to its small singular values, and the head."""

    config = OSFTConfig
    needs = Needs(transformer=True, weights_only=True, traits=frozenset({"redraws weights"}))
    changes_network = True
    options: OSFTConfig

    def __init__(self, config: OSFTConfig, model: ContinualModel, scenario: Scenario) -> None:
        super().__init__(config, model, scenario)
        add_adapters(model.backbone.transformer, config.targets, rank=1, alpha=1.0)
        for name, layer in adapted_layers(model.backbone).items():
            n_in, n_out = layer.base.in_features, layer.base.out_features // len(layer.parts)
            n_kept = config.kept_percent * min(n_in, n_out) // 100
            if n_kept == min(n_in, n_out):
                raise ConfigError(
                    f"strategy.kept_percent={config.kept_percent} leaves no direction to train of the {n_out}×{n_in} weight of "
                    f"{name}: choose a smaller one"
                )
            for part in layer.adapters:
                layer.adapters[part] = LowPart(n_in, n_out, n_kept)
        model.train(model.training)  # the new modules take the network's mode

    @torch.no_grad()
    def begin_task(self, task: Task) -> Tensor | None:
        """Decompose every adapted weight as it is now."""
        renewed = {}
        for name, layer in adapted_layers(self.model.backbone).items():
            weight = layer.base.weight.clone()  # members of a fleet may share the one before
            for part, rows, low in low_parts(layer):
                weight[rows] = low.split(weight[rows] + low.product())
                for of_part, parameter in low.named_parameters():
                    renewed[f"backbone.{name}.adapters.{part}.{of_part}"] = torch.ones_like(parameter, dtype=torch.bool)
            layer.base.weight = nn.Parameter(weight, requires_grad=False)
        return self.model.flat_mask(renewed)

    @torch.no_grad()
    def measurements(self) -> list[Measurement]:
        """How much of every weight is kept."""
        found = []
        for name, layer in adapted_layers(self.model.backbone).items():
            for part, rows, low in low_parts(layer):
                of_kept, of_low = layer.base.weight[rows].square().sum(), low.product().square().sum()
                found.append(Measurement("kept_energy", f"{name}.{part}", float(of_kept / (of_kept + of_low))))
        return found


def low_parts(layer: AdaptedLinear) -> list[tuple[str, slice, LowPart]]:
    """Of every trained part of the layer: its name, its rows in the layer's weight, and what is trained of it."""
    n_out = layer.base.out_features // len(layer.parts)
    return [
        (part, slice(place * n_out, (place + 1) * n_out), layer.adapters[part])  # type: ignore[misc]
        for place, part in enumerate(layer.parts)
        if part in layer.adapters
    ]
