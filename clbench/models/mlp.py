"""Multi-layer perceptron; 2 × 400 ReLU is the network of the Split-, Rotated- and Permuted-MNIST literature.

Two changes of it are baselines against loss of plasticity, as in Kumar et al. 2023 (arXiv:2308.11958): LayerNorm before each
hidden non-linearity, and CReLU in place of ReLU (Abbas et al. 2023, arXiv:2303.07507). Other changes are of published codes whose
networks start from other weights (:mod:`clbench.models.initialisation`), or train with dropout after each non-linearity.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from clbench.models.hidden_layers import ACTIVATIONS, FEATURES_PER_OUTPUT, HEAD, HiddenLayer, HiddenLayersConfig
from clbench.models.initialisation import INITS, initialise
from clbench.options import option
from clbench.registry import MODELS


@dataclass
class MLPConfig(HiddenLayersConfig):
    """Options of ``model=mlp``."""

    hidden: list[int] = option(
        help="units of each hidden layer; with activation=crelu a layer makes twice as many features"
    )
    init: str = option(
        "default",
        help="initial weights of all layers, the head's included: default (PyTorch's), xavier (uniform; GEM, Mammoth), "
        "xavier_normal (OWM) or truncated_normal (A-GEM)",
        choices=INITS,
    )
    dropout: float = option(
        0.0,
        help="share of the units that are left out in training after each hidden non-linearity, the others divided by what is "
        "left (Avalanche's SimpleMLP 0.5, OWM 0.2)",
        at_least=0,
        at_most=0.95,
    )


@MODELS.register("mlp")
class MLP(nn.Module):
    """Fully connected layers with a non-linearity, on the flattened image.

    Args:
        config: the hidden layers.
        input_shape: (C, H, W).
    """

    config = MLPConfig

    def __init__(self, config: MLPConfig, input_shape: tuple[int, int, int]) -> None:
        super().__init__()
        channels, height, width = input_shape
        n_in = channels * height * width
        layers: list[nn.Module] = [nn.Flatten()]
        for n_out in config.hidden:
            layers.append(nn.Linear(n_in, n_out))
            if config.norm is not None:
                layers.append(nn.LayerNorm(n_out))
            layers.append(ACTIVATIONS[config.activation]())
            if config.dropout:
                layers.append(nn.Dropout(config.dropout))
            n_in = FEATURES_PER_OUTPUT[config.activation] * n_out
        self.layers = nn.Sequential(*layers)
        self.n_features = n_in
        self.options = config
        initialise(self, config.init)

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, n_features) of images (B, C, H, W)."""
        return self.layers(x)

    def stages(self) -> dict[str, nn.Module]:
        """Each hidden layer with its non-linearity; the first one flattens the image as well."""
        if not self.options.hidden:
            return {"flatten": self.layers}
        return {
            f"hidden{n}": self.layers[0 if n == 1 else start : start + self._modules_per_layer]
            for n, start in enumerate(self._starts, start=1)
        }

    def hidden_layers(self) -> list[HiddenLayer]:
        """All of them, ``hidden1`` first."""
        layers = []
        for n, start in enumerate(self._starts, start=1):
            end = start + self._modules_per_layer
            activation = end - 2 if self.options.dropout else end - 1
            layer = HiddenLayer(f"hidden{n}", f"layers.{activation}")
            if self.options.activation == "relu":
                layer = layer._replace(
                    incoming=f"layers.{start}",
                    norm=None if self.options.norm is None else f"layers.{start + 1}",
                    outgoing=HEAD if n == len(self._starts) else f"layers.{end}",
                )
            layers.append(layer)
        return layers

    @property
    def _modules_per_layer(self) -> int:
        return 2 + (self.options.norm is not None) + bool(self.options.dropout)

    @property
    def _starts(self) -> range:
        """Where in ``layers`` the linear layers are."""
        return range(1, len(self.layers), self._modules_per_layer)
