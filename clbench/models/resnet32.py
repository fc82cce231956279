"""The CIFAR ResNets of He et al. 2016 (arXiv:1512.03385, section 4.2): depth 6n + 2; ResNet-32 by default.

Three stages of n blocks with 16, 32 and 64 channels; shortcuts without parameters (their option A): every second pixel,
and zeros for the added channels. 464,154 parameters with a head of ten classes. Convolutions start from Kaiming's
normal initialisation. ResNet-32 is the backbone of most class-incremental work on CIFAR-100 (FACIL, PyCIL; PyCIL averages
2×2 pixels in the shortcut instead). Layers are named so that the checkpoints of akamaster/pytorch_resnet_cifar10 load.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from clbench.config import ModelConfig
from clbench.errors import ConfigError
from clbench.models.hidden_layers import HiddenLayer, residual_layers
from clbench.models.stages import Stage, numbered
from clbench.options import option
from clbench.registry import MODELS


@dataclass
class ResNet32Config(ModelConfig):
    """Options of ``model=resnet32``."""

    depth: int = option(help="number of weighted layers with the classifier, 6n + 2: 20, 32, 44, 56, …", at_least=8)


class OptionABlock(nn.Module):
    """Two 3×3 convolutions with BatchNorm and a shortcut without parameters."""

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(n_out)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(n_out, n_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(n_out)
        self.relu2 = nn.ReLU()
        self.stride = stride
        self.added_channels = n_out - n_in

    def forward(self, x: Tensor) -> Tensor:
        """(B, n_in, H, W) → (B, n_out, ⌈H / stride⌉, ⌈W / stride⌉)."""
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.added_channels:
            before = self.added_channels // 2
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, self.added_channels - before))
        return self.relu2(y + x)


@MODELS.register("resnet32")
class ResNet32(nn.Module):
    """Three stages of (depth − 2) / 6 blocks, global average pooling, 64 features.

    Args:
        config: the depth.
        input_shape: (C, H, W).

    Raises:
        ConfigError: the depth is not 6n + 2.
    """

    config = ResNet32Config
    classifier = ("fc", "linear")
    """Modules of a checkpoint that belong to its classifier and are not loaded."""

    def __init__(self, config: ResNet32Config, input_shape: tuple[int, int, int]) -> None:
        super().__init__()
        n_blocks, rest = divmod(config.depth - 2, 6)
        if rest:
            raise ConfigError(f"model.depth={config.depth} is not of the form 6n + 2. Valid choices: 20, 32, 44, 56, …")
        self.conv1 = nn.Conv2d(input_shape[0], 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU()
        self.layer1 = _stage(16, 16, n_blocks, 1)
        self.layer2 = _stage(16, 32, n_blocks, 2)
        self.layer3 = _stage(32, 64, n_blocks, 2)
        self.n_features = 64
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, 64) of images (B, C, H, W)."""
        return self._pooled(self.layer3(self.layer2(self.layer1(self._stem(x)))))

    def stages(self) -> dict[str, nn.Module]:
        """The stem, every block, the pooling."""
        return {
            "stem": Stage(self._stem, conv1=self.conv1, bn1=self.bn1, relu=self.relu),
            **numbered("layer1", self.layer1),
            **numbered("layer2", self.layer2),
            **numbered("layer3", self.layer3),
            "pool": Stage(self._pooled),
        }

    def hidden_layers(self) -> list[HiddenLayer]:
        """The stem, and of every block the first convolution, whose units can be reset, and the sum."""
        return residual_layers(self, "layer1", "layer2", "layer3")

    def _stem(self, x: Tensor) -> Tensor:
        return self.relu(self.bn1(self.conv1(x)))

    def _pooled(self, x: Tensor) -> Tensor:
        return x.mean(dim=(2, 3))


def _stage(n_in: int, n_out: int, n_blocks: int, stride: int) -> nn.Sequential:
    later = [OptionABlock(n_out, n_out, 1) for _ in range(n_blocks - 1)]
    return nn.Sequential(OptionABlock(n_in, n_out, stride), *later)
