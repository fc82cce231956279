"""ResNet-18 with the CIFAR stem: a 3×3 convolution of stride 1 and no max-pooling (He et al. 2016, arXiv:1512.03385).

Two networks of the literature are this one at different widths:

* ``model=resnet18``: 64, 128, 256, 512 channels, global average pooling, 512 features (Mammoth and others).
* ``model=slim_resnet18``: 20, 40, 80, 160 channels, as introduced with GEM (Lopez-Paz & Ranzato 2017) and used by De Lange
  et al. 2023. It averages windows of 4×4 of the last feature map, which is global at 32×32 pixels (160 features) but gives
  640 features at 84×84 and 1,440 at 96×96; maps smaller than a window are averaged whole.

Both start from PyTorch's default initialisation, as those codes do. Layers are named as in torchvision, whose ResNet-18
differs in its stem (7×7, stride 2, max-pooling) and in how it is initialised; that network is ``model=timm
model.name=resnet18``.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from clbench.config import ModelConfig
from clbench.models.hidden_layers import HiddenLayer, residual_layers
from clbench.models.stages import Stage, numbered
from clbench.options import option
from clbench.registry import MODELS


@dataclass
class ResNet18Config(ModelConfig):
    """Options of ``model=resnet18`` and ``model=slim_resnet18``."""

    width: int = option(help="channels of the first of the four stages; each later stage has twice as many", at_least=1)
    pool: int | None = option(
        help="side of the windows of the last feature map that are averaged; null: the whole map", at_least=1
    )


class BasicBlock(nn.Module):
    """Two 3×3 convolutions with BatchNorm and a shortcut, a 1×1 convolution where the shape changes."""

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(n_out)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(n_out, n_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(n_out)
        self.relu2 = nn.ReLU()
        self.downsample = nn.Sequential()
        if stride != 1 or n_in != n_out:
            self.downsample = nn.Sequential(nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out))

    def forward(self, x: Tensor) -> Tensor:
        """(B, n_in, H, W) → (B, n_out, ⌈H / stride⌉, ⌈W / stride⌉)."""
        y = self.relu1(self.bn1(self.conv1(x)))
        return self.relu2(self.bn2(self.conv2(y)) + self.downsample(x))


@MODELS.register("resnet18")
class ResNet18(nn.Module):
    """Four stages of two blocks.

    Args:
        config: width and pooling.
        input_shape: (C, H, W).
    """

    config = ResNet18Config
    classifier = ("fc", "linear")
    """Modules of a checkpoint that belong to its classifier and are not loaded."""

    def __init__(self, config: ResNet18Config, input_shape: tuple[int, int, int]) -> None:
        super().__init__()
        channels, height, width = input_shape
        self.conv1 = nn.Conv2d(channels, config.width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(config.width)
        self.relu = nn.ReLU()
        self.layer1 = _stage(config.width, config.width, 1)
        self.layer2 = _stage(config.width, 2 * config.width, 2)
        self.layer3 = _stage(2 * config.width, 4 * config.width, 2)
        self.layer4 = _stage(4 * config.width, 8 * config.width, 2)
        for _ in range(3):
            height, width = -(-height // 2), -(-width // 2)
        window = (height, width) if config.pool is None else (min(config.pool, height), min(config.pool, width))
        self.pool = nn.AvgPool2d(window)
        self.n_features = 8 * config.width * (height // window[0]) * (width // window[1])

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, n_features) of images (B, C, H, W)."""
        x = self._stem(x)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self._pooled(x)

    def stages(self) -> dict[str, nn.Module]:
        """The stem, every block, the pooling."""
        return {
            "stem": Stage(self._stem, conv1=self.conv1, bn1=self.bn1, relu=self.relu),
            **numbered("layer1", self.layer1),
            **numbered("layer2", self.layer2),
            **numbered("layer3", self.layer3),
            **numbered("layer4", self.layer4),
            "pool": Stage(self._pooled),
        }

    def hidden_layers(self) -> list[HiddenLayer]:
        """The stem, and of every block the first convolution, whose units can be reset, and the sum."""
        return residual_layers(self, "layer1", "layer2", "layer3", "layer4")

    def _stem(self, x: Tensor) -> Tensor:
        return self.relu(self.bn1(self.conv1(x)))

    def _pooled(self, x: Tensor) -> Tensor:
        return self.pool(x).flatten(1)


def _stage(n_in: int, n_out: int, stride: int) -> nn.Sequential:
    return nn.Sequential(BasicBlock(n_in, n_out, stride), BasicBlock(n_out, n_out, 1))
