"""ReDo: reset the units that are dormant (Sokar et al. 2023, arXiv:2302.12902).

    s_i = E|h_i| / (mean_k E|h_k| + 10⁻⁹)      score of unit i among the units k of its layer; a channel counts as one unit
    s_i ≤ τ                                    dormant: its incoming weights are drawn anew, its outgoing weights become 0

E is the mean over the batch's samples, new and replayed, and over the pixels of a channel. With τ = 0 a ReLU unit is dormant
that is 0 for every sample. See :mod:`clbench.learning.parts.unit_resets` for what is reset, and on which activations. What
incoming weights become:

* ``reinit=xavier``: U(±√(6 / (fan_in + fan_out))), the bias 0, as in dopamine, the authors' code;
* ``reinit=initial``: what they and their biases were when the run began, as in the code of Kumar et al. 2023.

The period counts steps of a task, or tasks; then it is after the first step of every ``period``-th task but the first, on that
step's batch. Kumar et al. reset before that step, with activations of whatever the network saw last.

Differences from dopamine: a weight between two units that are both reset is drawn anew, there it is 0. Adam's count of steps
starts anew for weights that are reset, not only its moments.

Stores one copy of the weights with ``reinit=initial``, else nothing. Reports ``units_reset`` in every task, of each layer and in
all.
"""

import math
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from clbench.config import StrategyConfig
from clbench.learning.base import Batch, Needs
from clbench.learning.parts.unit_resets import Reset, UnitResets
from clbench.models.continual import ContinualModel
from clbench.models.hidden_layers import HiddenLayer
from clbench.options import option
from clbench.registry import STRATEGIES
from clbench.scenarios.scenario import Scenario
from clbench.seeding import hashed_uniform


@dataclass
class ReDoConfig(StrategyConfig):
    """Options of ``strategy=redo``."""

    period: int = option(help="units are reset after every so many steps, or in every so many tasks", at_least=1)
    period_unit: str = option(
        help="what the period counts: steps of a task, or tasks, in which units are reset after the first step",
        choices=("steps", "tasks"),
    )
    threshold: float = option(help="largest score τ of a unit that is reset; 0: only units that are silent", at_least=0)
    reinit: str = option(
        help="what incoming weights become: drawn from Xavier's uniform distribution with bias 0, or the initial ones",
        choices=("xavier", "initial"),
    )


@STRATEGIES.register("redo")
class ReDo(UnitResets):
    """Resets, now and then, the units whose activations are small."""

    config = ReDoConfig
    needs = Needs(traits=frozenset({"linear head", "reads weights", "resets units", "moves weights"}))
    options: ReDoConfig
    threshold: Tensor

    def __init__(self, config: ReDoConfig, model: ContinualModel, scenario: Scenario) -> None:
        super().__init__(config, model, scenario)
        if config.reinit == "initial":
            for index, layer in enumerate(self.layers):
                self.register_buffer(f"weight_{index}", self.incoming(layer).detach().clone())
                self.register_buffer(f"bias_{index}", self._bias(layer).detach().clone())

    def after_step(self, step: int, batch: Batch) -> Tensor | None:
        if not self._is_due(step):
            return None
        dormant = [scores(h) <= self.threshold for h in self.activations(batch.samples.x)]
        return self.reset(
            [
                Reset(units, *self._fresh(index, layer, step))
                for index, (layer, units) in enumerate(zip(self.layers, dormant, strict=True))
            ]
        )

    def _is_due(self, step: int) -> bool:
        if self.options.period_unit == "steps":
            return step % self.options.period == 0
        return step == 1 and self.tasks_learned > 0 and self.tasks_learned % self.options.period == 0

    def _fresh(self, index: int, layer: HiddenLayer, step: int) -> tuple[Tensor, Tensor]:
        """Incoming weights and bias for all units of a layer."""
        if self.options.reinit == "initial":
            return self.get_buffer(f"weight_{index}"), self.get_buffer(f"bias_{index}")
        weight = self.incoming(layer)
        n_out, n_in = weight.shape[:2]
        bound = math.sqrt(6 / ((n_in + n_out) * weight[0, 0].numel()))
        drawn = bound * (2 * hashed_uniform(self.key_of(step, layer), weight.numel()) - 1)
        return drawn.to(weight.dtype).view(weight.shape), torch.zeros_like(self._bias(layer))

    def _bias(self, layer: HiddenLayer) -> Tensor:
        """Biases (U,) of a layer; zeros where it has none."""
        bias = cast(Tensor | None, self.model.get_submodule(str(layer.incoming)).bias)
        return self.incoming(layer).new_zeros(len(self.incoming(layer))) if bias is None else bias


def scores(h: Tensor) -> Tensor:
    """s (U,) of activations (B, U) or (B, U, H, W)."""
    size = h.abs().mean([dimension for dimension in range(h.dim()) if dimension != 1])
    return size / (size.mean() + 1e-9)
