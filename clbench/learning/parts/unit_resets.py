"""What methods share that reset single hidden units while the network trains.

To reset unit i of a layer (:mod:`clbench.models.hidden_layers`) is to

* draw its incoming weights anew, and set their bias as the method says;
* set scale and shift of its normalisation to 1 and 0, running mean and variance to 0 and 1;
* set its outgoing weights to 0, so that what it computes now changes no output;
* let the optimizer forget all of these weights.

Layers are reset from the input on. So a weight between two units that are both reset is drawn anew, as an incoming weight of the
second, whose own outgoing weights are 0.

Activations h are those of the step's batch, replayed samples included, in one more forward pass after the optimizer's step. It
is made in the mode that training has: BatchNorm normalises with the batch's statistics. Its running statistics do not move.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from clbench.config import StrategyConfig
from clbench.errors import ConfigError
from clbench.learning.base import Measurement, Strategy
from clbench.models.continual import ContinualModel
from clbench.models.hidden_layers import HiddenLayer
from clbench.registry import MODELS
from clbench.scenarios.scenario import Scenario
from clbench.scenarios.task import Task
from clbench.seeding import stream_seed


class Reset(NamedTuple):
    """What happens to the units of one layer.

    Attributes:
        units: bool (U,), which of them are reset.
        weight: what their incoming weights become; like the layer's incoming weight, of which only the chosen rows are used.
        bias: (U,), the same for the bias.
    """

    units: Tensor
    weight: Tensor
    bias: Tensor


class UnitResets(Strategy):
    """Base of methods that reset units: they override ``after_step``, and return there what :meth:`reset` does.

    Raises:
        ConfigError: the network has no unit that can be reset.
    """

    renews_weights = True
    key: Tensor
    n_reset: Tensor

    def __init__(self, config: StrategyConfig, model: ContinualModel, scenario: Scenario) -> None:
        super().__init__(config, model, scenario)
        self.flat_parameters()  # refuses a network of which nothing is trained
        self.layers = self._resettable_layers()
        self.register_buffer("key", torch.zeros((), dtype=torch.int64))  # of the task's random numbers
        self.register_buffer("n_reset", torch.zeros(len(self.layers), dtype=torch.int64))  # units, in this task

    def begin_task(self, task: Task) -> None:
        self.key.fill_(stream_seed(task.seed, self.name, task.index))
        self.n_reset.zero_()

    def measurements(self) -> list[Measurement]:
        """``units_reset``: in the task, of every layer and in all; a unit counts as often as it was reset."""
        counts = self.n_reset.tolist()
        of_layers = [
            Measurement("units_reset", layer.name, count) for layer, count in zip(self.layers, counts, strict=True)
        ]
        return [Measurement("units_reset", "", sum(counts)), *of_layers]

    # ---- what methods use -----------------------------------------------------------------------------------------

    def activations(self, x: Tensor) -> list[Tensor]:
        """h of the layers, (B, U) or (B, U, H, W), for images x."""
        before = [(buffer, buffer.clone()) for buffer in self.model.buffers()]
        found = self.model.activations(x)[1]
        for buffer, value in before:
            buffer.copy_(value)
        return [found[layer.name] for layer in self.layers]

    def key_of(self, step: int, layer: HiddenLayer) -> Tensor:
        """Key (int64 scalar) of the random numbers for a layer after a step of the task."""
        return self.key ^ stream_seed(step, layer.name)

    def incoming(self, layer: HiddenLayer) -> Tensor:
        """Incoming weights (U, n_in) of a layer, or (U, n_in, height, width)."""
        return cast(Tensor, self.model.get_submodule(str(layer.incoming)).weight)

    def outgoing(self, layer: HiddenLayer) -> Tensor:
        """Outgoing weights (n_out, U, n) of a layer: n is the number of a kernel's or, behind a flattening, of all pixels."""
        weight = cast(Tensor, self.model.get_submodule(str(layer.outgoing)).weight)
        return weight.reshape(len(weight), len(self.incoming(layer)), -1)

    def reset(self, resets: Sequence[Reset]) -> Tensor:
        """Reset units of every layer, in place; returns which trained weights, bool (P,), have been drawn anew."""
        parameters = self.model.trained()
        renewed = {name: torch.zeros_like(parameter, dtype=torch.bool) for name, parameter in parameters.items()}

        def put(name: str, where: Tensor, value: Tensor | float) -> None:
            if name in parameters:
                parameters[name].copy_(torch.where(where, value, parameters[name]))
                renewed[name] = renewed[name] | where

        for index, (layer, (units, weight, bias)) in enumerate(zip(self.layers, resets, strict=True)):
            put(f"{layer.incoming}.weight", _rows(units, weight), weight)
            put(f"{layer.incoming}.bias", units, bias)
            if layer.norm is not None:
                self._reset_norm(layer.norm, units, put)
            like = parameters[f"{layer.outgoing}.weight"]
            columns = units[:, None].expand_as(self.outgoing(layer)[0])
            put(f"{layer.outgoing}.weight", columns.reshape(like.shape[1:]).expand_as(like), 0.0)
            self.n_reset[index].add_(units.sum())
        return self.model.flat_mask(renewed)  # type: ignore[return-value]  # something is trained, see _resettable_layers

    def _reset_norm(self, name: str, units: Tensor, put: Callable[[str, Tensor, float], None]) -> None:
        """Reset units of a normalisation layer; ``put`` writes to a trained parameter where a mask is True."""
        norm: Any = self.model.get_submodule(name)
        if norm.weight is not None:
            put(f"{name}.weight", _rows(units, norm.weight), 1.0)
            put(f"{name}.bias", _rows(units, norm.bias), 0.0)
        if isinstance(norm, nn.modules.batchnorm._NormBase):
            for statistic, start in ((norm.running_mean, 0.0), (norm.running_var, 1.0)):
                if statistic is not None:
                    statistic.copy_(torch.where(units, start, statistic))

    def _resettable_layers(self) -> list[HiddenLayer]:
        """The layers of which single units can be reset, and whose weights are trained."""
        trained = self.model.trained().keys()
        layers = [
            layer
            for layer in self.model.hidden_layers()
            if layer.incoming is not None and {f"{layer.incoming}.weight", f"{layer.outgoing}.weight"} <= trained
        ]
        if not layers:
            able = [name for name in MODELS.names() if hasattr(MODELS[name], "hidden_layers")]
            raise ConfigError(
                f"{self.name} resets hidden units, and this {type(self.model.backbone).__name__} has none that can be reset: "
                f"choose a network of the kinds {', '.join(able)} with at least one hidden layer, with activation=relu, and "
                "do not freeze all of its hidden layers"
            )
        return layers


def _rows(units: Tensor, like: Tensor) -> Tensor:
    """bool (U, 1, …), with as many dimensions as ``like`` (U, …) has."""
    return units.view(-1, *[1] * (like.dim() - 1))
