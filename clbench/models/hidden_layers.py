"""The hidden units of a network: what measures of plasticity look at, and what some methods reset.

A backbone may have a method ``hidden_layers()``: its hidden layers from the input on, with names relative to the backbone.
A backbone without the method has none that are known. A unit is an output of a linear layer or a channel of a convolution.
Where a layer names them, unit i of it is

* row i of ``incoming.weight`` (and of its bias, if it has one),
* entry i (along the first dimension) of the weight, the bias and the running statistics of ``norm``,
* column i of ``outgoing.weight`` viewed as (n_out, units, −1). This covers linear → linear, convolution → convolution, and
  convolution → flatten → linear, where flattening puts all pixels of a channel side by side.

With column i at zero, the logits do not depend on the unit's activation. LayerNorm still lets a unit's incoming weights
act on the other units of its layer, by way of the mean and variance that they share.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from clbench.config import ModelConfig
from clbench.options import option

HEAD = "head"
"""What a backbone writes for ``outgoing`` where the network's head, which is outside the backbone, reads the units."""


class HiddenLayer(NamedTuple):
    """One hidden layer; modules are given by name.

    Attributes:
        name: of the layer, as in records.
        activation: the module whose output is the layer's activations h, (B, units) or (B, units, H, W): after the
            non-linearity, and after max-pooling where that follows it, which is what the next layer reads.
        incoming: the linear layer or convolution whose outputs the units are.
        norm: the normalisation between the two, or None.
        outgoing: the one linear layer or convolution that reads the units, which nothing else reads.

    ``incoming``, ``norm`` and ``outgoing`` are None together where single units cannot be reset: after a residual sum,
    whose units have several sources, with CReLU, where one row of weights makes two units, and with tanh, of which no unit is
    ever dormant.
    """

    name: str
    activation: str
    incoming: str | None = None
    norm: str | None = None
    outgoing: str | None = None


class CReLU(nn.Module):
    """relu(x) and relu(−x), one behind the other along dimension 1 (Shang et al. 2016; Abbas et al. 2023, arXiv:2303.07507).

    Twice as many features as inputs, of which half are active for every sample.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, n, …) → (B, 2n, …)."""
        return torch.cat([x, -x], dim=1).relu()


@dataclass
class HiddenLayersConfig(ModelConfig):
    """What networks without BatchNorm and shortcuts can change in their hidden layers, against loss of plasticity."""

    activation: str = option("relu", help="non-linearity of the hidden layers", choices=("relu", "crelu", "tanh"))
    norm: str | None = option(
        None, help="normalisation before each non-linearity: LayerNorm or none", choices=(None, "layer")
    )


ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "crelu": CReLU, "tanh": nn.Tanh}
"""What ``model.activation`` may name."""

FEATURES_PER_OUTPUT = {"relu": 1, "crelu": 2, "tanh": 1}
"""How many features each of them makes of one output of a linear layer or one channel of a convolution."""


def residual_layers(network: nn.Module, *groups: str) -> list[HiddenLayer]:
    """The hidden layers of a ResNet of two-convolution blocks.

    Args:
        network: has the stem's ``relu`` and sequences of blocks, whose modules are called conv1, bn1, relu1, conv2 and relu2.
        groups: names of the sequences.
    """
    layers = [HiddenLayer("stem", "relu")]
    for group in groups:
        for block, _ in network.get_submodule(group).named_children():
            of = f"{group}.{block}"
            layers += [
                HiddenLayer(f"{of}.conv1", f"{of}.relu1", f"{of}.conv1", f"{of}.bn1", f"{of}.conv2"),
                HiddenLayer(of, f"{of}.relu2"),
            ]
    return layers
