"""The ResNets against their published sizes and against other implementations."""

import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from clbench.compose import compose
from clbench.errors import ConfigError
from clbench.models.weights import load_backbone
from clbench.options import to_dataclass
from clbench.registry import MODELS


def backbone(name: str, shape: tuple[int, int, int] = (3, 32, 32), *overrides: str) -> nn.Module:
    config = to_dataclass(compose([f"model={name}", *overrides])).model
    return MODELS[config.kind](config, shape)


def n_parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_resnet18_equals_torchvisions_with_the_stem_replaced():
    from torchvision.models import resnet18

    torch.manual_seed(0)
    reference = resnet18()
    reference.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    reference.maxpool = nn.Identity()
    reference.fc = nn.Identity()
    ours = backbone("resnet18")
    ours.load_state_dict(reference.state_dict())
    x = torch.randn(2, 3, 32, 32)
    for mode in (True, False):
        torch.testing.assert_close(ours.train(mode)(x), reference.train(mode)(x))
    assert ours.n_features == 512
    assert n_parameters(ours) + 512 * 10 + 10 == 11_173_962  # as published for CIFAR-10


def slim_resnet18_parameters(width: int) -> int:
    """By hand: convolutions without bias, two numbers per BatchNorm channel."""

    def conv_bn(n_in, n_out, size):
        return n_in * n_out * size**2 + 2 * n_out

    total, n_in = conv_bn(3, width, 3), width
    for n_out in (width, 2 * width, 4 * width, 8 * width):
        total += conv_bn(n_in, n_out, 3) + 3 * conv_bn(n_out, n_out, 3)
        total += conv_bn(n_in, n_out, 1) if n_in != n_out else 0
        n_in = n_out
    return total


@pytest.mark.parametrize(
    ("side", "n_features"),
    [(32, 160), (84, 640), (96, 1440), (28, 160), (64, 640), (8, 160)],
)
def test_slim_resnet18_features_as_in_the_literature(side, n_features):
    """160, 640 and 1,440 features are those of De Lange et al. 2023 at 32, 84 and 96 pixels."""
    model = backbone("slim_resnet18", (3, side, side))
    assert model.n_features == n_features
    assert model.eval()(torch.randn(1, 3, side, side)).shape == (1, n_features)
    assert n_parameters(model) == slim_resnet18_parameters(20)


def test_slim_resnet18_averages_windows_of_four():
    """Against the same layers with the pooling written out."""
    model = backbone("slim_resnet18", (3, 84, 84)).eval()
    x = torch.randn(1, 3, 84, 84)
    maps = model.layer4(model.layer3(model.layer2(model.layer1(F.relu(model.bn1(model.conv1(x)))))))
    assert maps.shape == (1, 160, 11, 11)
    windows = [maps[0, :, i : i + 4, j : j + 4].mean((1, 2)) for i in (0, 4) for j in (0, 4)]
    torch.testing.assert_close(model(x)[0], torch.stack(windows, 1).flatten())


def test_resnet32_size_and_features():
    model = backbone("resnet32")
    assert n_parameters(model) + 64 * 10 + 10 == 464_154
    assert model.n_features == 64
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 64)
    assert n_parameters(backbone("resnet32", (3, 32, 32), "model.depth=20")) + 650 == 269_722


def test_resnet32_shortcuts_are_parameter_free():
    """With the residual branches switched off the network only subsamples and pads channels, half before and half after."""
    model = backbone("resnet32").eval()
    for module in model.modules():
        if hasattr(module, "bn2"):
            nn.init.zeros_(module.bn2.weight)
    x = torch.randn(2, 3, 32, 32)
    stem = F.relu(model.bn1(model.conv1(x)))
    expected = torch.zeros(2, 64)
    expected[:, 24:40] = stem[:, :, ::4, ::4].mean((2, 3))
    torch.testing.assert_close(model(x), expected)


def test_resnet32_depth_is_checked():
    with pytest.raises(ConfigError, match=r"model\.depth=33 is not of the form 6n \+ 2"):
        backbone("resnet32", (3, 32, 32), "model.depth=33")


@pytest.mark.parametrize("name", ["resnet18", "slim_resnet18", "resnet32"])
def test_grey_images(name):
    model = backbone(name, (1, 28, 28)).eval()
    assert model(torch.randn(2, 1, 28, 28)).shape == (2, model.n_features)


@pytest.mark.parametrize(("file", "depth"), [("resnet20-12fca82f.th", 20), ("resnet32-d509ac18.th", 32)])
def test_published_cifar10_weights_classify_cifar10(file, depth, real_data):
    """The checkpoints of akamaster/pytorch_resnet_cifar10 load and reach their accuracy (92.5 and 92.9 % of 1,000 images)."""
    weights = os.environ.get("CLBENCH_WEIGHTS")
    if not weights or not (path := Path(weights) / "resnet_cifar10_akamaster" / file).is_file():
        pytest.skip("needs pretrained weights: set CLBENCH_WEIGHTS to the folder with resnet_cifar10_akamaster/")
    images = real_data / "cifar10_small"
    if not images.is_dir():
        pytest.skip("needs the CIFAR-10 subset cifar10_small in CLBENCH_DATA")
    import pickle

    model = backbone("resnet32", (3, 32, 32), f"model.depth={depth}")
    load_backbone(model, str(path))
    state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    (batch,) = images.rglob("test_batch")
    with batch.open("rb") as stream:
        content = pickle.load(stream, encoding="latin1")
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x = (torch.tensor(content["data"][:200]).view(-1, 3, 32, 32) / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    with torch.no_grad():
        logits = F.linear(model.eval()(x), state["module.linear.weight"], state["module.linear.bias"])
    accuracy = (logits.argmax(1) == torch.tensor(content["labels"][:200])).float().mean()
    assert accuracy > 0.88
