"""Convolutions with max-pooling, then fully connected layers: the networks of work on loss of plasticity.

* ``model=cnn``: the network of Continual ImageNet (Dohare et al. 2024, Nature 632, 768–774; layers as in the authors' code).
* ``model=cnn_small``: that of Kumar et al. 2023 (arXiv:2308.11958), who also use two changes of it: LayerNorm before each
  non-linearity, and CReLU in place of ReLU (Abbas et al. 2023, arXiv:2303.07507).

Convolutions are not padded, pooling takes the maximum of 2×2 pixels and drops a last odd row or column, and weights start from
PyTorch's default initialisation, as in both codes. LayerNorm normalises the whole output of a convolution, channels and pixels
together, and scales and shifts each of its entries by itself, as in the code of Kumar et al.
"""

from collections import OrderedDict
from dataclasses import dataclass

from torch import Tensor, nn

from clbench.errors import ConfigError
from clbench.models.hidden_layers import ACTIVATIONS, FEATURES_PER_OUTPUT, HEAD, HiddenLayer, HiddenLayersConfig
from clbench.options import option
from clbench.registry import MODELS


@dataclass
class CNNConfig(HiddenLayersConfig):
    """Options of ``model=cnn`` and ``model=cnn_small``."""

    channels: list[int] = option(
        help="channels of each convolution; with activation=crelu a convolution makes twice as many feature maps"
    )
    kernel_sizes: list[int] = option(help="side in pixels of each convolution's kernels")
    hidden: list[int] = option(help="units of each fully connected layer after the convolutions")


@MODELS.register("cnn")
class CNN(nn.Module):
    """Convolutions, each with a non-linearity and 2×2 max-pooling; then fully connected layers with a non-linearity.

    Args:
        config: the layers.
        input_shape: (C, H, W).

    Raises:
        ConfigError: there is not one kernel size for each of at least one convolution, or no pixel is left after one.
    """

    config = CNNConfig

    def __init__(self, config: CNNConfig, input_shape: tuple[int, int, int]) -> None:
        super().__init__()
        if not config.channels or len(config.channels) != len(config.kernel_sizes):
            raise ConfigError(
                f"model.channels={list(config.channels)} does not fit model.kernel_sizes={list(config.kernel_sizes)}: both "
                "need one entry for every convolution, and at least one"
            )
        self.options = config
        self.layers = nn.Sequential()
        n_in, height, width = input_shape
        for n, (n_out, side) in enumerate(zip(config.channels, config.kernel_sizes, strict=True), start=1):
            height, width = height - side + 1, width - side + 1
            if min(height, width) < 2:
                raise ConfigError(
                    f"model.kernel_sizes={list(config.kernel_sizes)} leave less than 2×2 pixels of images of "
                    f"{input_shape[1]}×{input_shape[2]} after convolution {n}: choose fewer or smaller kernels, or larger images "
                    "with scenario.image_size"
                )
            parts = [
                ("conv", nn.Conv2d(n_in, n_out, side)), *self._activated(n_out, height, width), ("pool", nn.MaxPool2d(2))
            ]  # fmt: skip
            if n == len(config.channels):
                parts.append(("flatten", nn.Flatten()))
            self.layers.add_module(f"conv{n}", nn.Sequential(OrderedDict(parts)))
            n_in, height, width = FEATURES_PER_OUTPUT[config.activation] * n_out, height // 2, width // 2
        n_in *= height * width
        for n, n_out in enumerate(config.hidden, start=1):
            parts = [("linear", nn.Linear(n_in, n_out)), *self._activated(n_out)]
            self.layers.add_module(f"hidden{n}", nn.Sequential(OrderedDict(parts)))
            n_in = FEATURES_PER_OUTPUT[config.activation] * n_out
        self.n_features = n_in

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, n_features) of images (B, C, H, W)."""
        return self.layers(x)

    def stages(self) -> dict[str, nn.Module]:
        """Each convolution and each fully connected layer with what follows it."""
        return dict(self.layers.named_children())

    def hidden_layers(self) -> list[HiddenLayer]:
        """The convolutions, after pooling, then the fully connected layers."""
        weighted = {name: "conv" if name.startswith("conv") else "linear" for name in self.stages()}
        readers = [*(f"layers.{name}.{kind}" for name, kind in weighted.items()), HEAD][1:]
        layers = []
        for (name, kind), reader in zip(weighted.items(), readers, strict=True):
            layer = HiddenLayer(name, f"layers.{name}.{'pool' if kind == 'conv' else 'activation'}")
            if self.options.activation == "relu":
                norm = None if self.options.norm is None else f"layers.{name}.norm"
                layer = layer._replace(incoming=f"layers.{name}.{kind}", norm=norm, outgoing=reader)
            layers.append(layer)
        return layers

    def _activated(self, *shape: int) -> list[tuple[str, nn.Module]]:
        """The normalisation, if there is one, and the non-linearity of outputs (B, *shape), by name."""
        norm = [] if self.options.norm is None else [("norm", nn.LayerNorm(shape))]
        return [*norm, ("activation", ACTIVATIONS[self.options.activation]())]
