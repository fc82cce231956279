"""Multi-layer perceptron; 2 × 400 ReLU is the network of the Split-, Rotated- and Permuted-MNIST literature."""

from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor, nn

from clbench.config import ModelConfig, option
from clbench.models.hidden_layers import HEAD, HiddenLayer
from clbench.registry import MODELS


@dataclass
class MLPConfig(ModelConfig):
    """Options of ``model=mlp``."""

    hidden: list[int] = option(help="units of each hidden layer")


@MODELS.register("mlp")
class MLP(nn.Module):
    """Fully connected layers with ReLU, on the flattened image.

    Args:
        config: the hidden layers.
        input_shape: (C, H, W).
    """

    config = MLPConfig

    def __init__(self, config: MLPConfig, input_shape: tuple[int, int, int]) -> None:
        super().__init__()
        channels, height, width = input_shape
        sizes = [channels * height * width, *config.hidden]
        layers: list[nn.Module] = [nn.Flatten()]
        for n_in, n_out in pairwise(sizes):
            layers += [nn.Linear(n_in, n_out), nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        self.n_features = sizes[-1]

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, last hidden size) of images (B, C, H, W)."""
        return self.layers(x)

    def stages(self) -> dict[str, nn.Module]:
        """Each hidden layer with its ReLU; the first one flattens the image as well."""
        if len(self.layers) == 1:
            return {"flatten": self.layers}
        ends = range(3, len(self.layers) + 1, 2)
        return {f"hidden{n}": self.layers[end - (3 if n == 1 else 2) : end] for n, end in enumerate(ends, start=1)}

    def hidden_layers(self) -> list[HiddenLayer]:
        """All of them, ``hidden1`` first."""
        linear = range(1, len(self.layers), 2)
        readers = [*(f"layers.{index}" for index in linear[1:]), HEAD]
        return [
            HiddenLayer(f"hidden{n}", f"layers.{index + 1}", f"layers.{index}", None, reader)
            for n, (index, reader) in enumerate(zip(linear, readers[: len(linear)], strict=True), start=1)
        ]
