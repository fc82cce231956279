"""Hidden layers against forward passes written out, and what their names promise about units, rows and columns."""

import copy
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from torch import nn
from torch.func import functional_call, stack_module_state

from clbench.compose import compose, load_run_config
from clbench.errors import ConfigError
from clbench.models.cnn import CNN, CNNConfig
from clbench.models.continual import ContinualModel
from clbench.models.hidden_layers import CReLU
from clbench.models.mlp import MLP, MLPConfig
from clbench.models.resnet18 import ResNet18, ResNet18Config
from clbench.models.resnet32 import ResNet32, ResNet32Config
from clbench.options import to_dataclass

SHAPE = (2, 14, 14)


def mlp(**options) -> MLP:
    return MLP(MLPConfig(kind="mlp", name="mlp", hidden=[7, 5], **options), SHAPE)


def cnn(**options) -> CNN:
    options = {"hidden": [6, 5], **options}
    return CNN(CNNConfig(kind="cnn", name="cnn", channels=[4, 3], kernel_sizes=[3, 2], **options), SHAPE)


MAKE = {
    "mlp": mlp,
    "mlp_norm": lambda: mlp(norm="layer"),
    "mlp_crelu": lambda: mlp(activation="crelu"),
    "mlp_both": lambda: mlp(activation="crelu", norm="layer"),
    "mlp_tanh": lambda: mlp(activation="tanh"),
    "mlp_dropout": lambda: mlp(dropout=0.5),
    "mlp_norm_dropout": lambda: mlp(norm="layer", dropout=0.5),
    "cnn": cnn,
    "cnn_norm": lambda: cnn(norm="layer"),
    "cnn_crelu": lambda: cnn(activation="crelu"),
    "cnn_both": lambda: cnn(activation="crelu", norm="layer"),
    "cnn_to_head": lambda: cnn(hidden=[]),
    "resnet18": lambda: ResNet18(ResNet18Config(kind="resnet18", name="resnet18", width=2, pool=None), SHAPE),
    "resnet32": lambda: ResNet32(ResNet32Config(kind="resnet32", name="resnet32", depth=8), SHAPE),
}
RESETTABLE = [
    "mlp",
    "mlp_norm",
    "mlp_dropout",
    "mlp_norm_dropout",
    "cnn",
    "cnn_norm",
    "cnn_to_head",
    "resnet18",
    "resnet32",
]


@cache
def kept(name: str, seed: int) -> ContinualModel:
    torch.manual_seed(seed)
    backbone = MAKE[name]()
    with torch.no_grad():  # nothing is zero or one that a mistake could hide behind
        for parameter in backbone.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
        for buffer in backbone.buffers():
            if buffer.is_floating_point():
                buffer.add_(torch.rand_like(buffer), alpha=0.1)
    return ContinualModel(backbone, [[0, 1, 2]], "domain").double().eval()


def model_of(name: str, seed: int = 0) -> ContinualModel:
    return copy.deepcopy(kept(name, seed))


def images(n: int = 5) -> torch.Tensor:
    return torch.randn(n, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def layer_norm(x, module: nn.LayerNorm):
    dims = tuple(range(1, x.ndim))
    mean = x.mean(dims, keepdim=True)
    variance = (x - mean).square().mean(dims, keepdim=True)
    return (x - mean) / torch.sqrt(variance + 1e-5) * module.weight + module.bias


def non_linear(x, norm: nn.LayerNorm | None, activation: str):
    x = x if norm is None else layer_norm(x, norm)
    match activation:
        case "crelu":
            return torch.cat([x.clamp(min=0), (-x).clamp(min=0)], 1)
        case "tanh":
            return (x.exp() - (-x).exp()) / (x.exp() + (-x).exp())
    return x.clamp(min=0)


def mlp_by_hand(net: MLP, x) -> dict[str, torch.Tensor]:
    linear = [module for module in net.layers if isinstance(module, nn.Linear)]
    norms = [module for module in net.layers if isinstance(module, nn.LayerNorm)] or [None, None]
    h, found = x.flatten(1), {}
    for n, (layer, norm) in enumerate(zip(linear, norms, strict=True), start=1):
        h = non_linear(h @ layer.weight.T + layer.bias, norm, net.options.activation)
        found[f"hidden{n}"] = h
    return found


def cnn_by_hand(net: CNN, x) -> dict[str, torch.Tensor]:
    h, found = x, {}
    for name, block in net.layers.named_children():
        norm, activation = getattr(block, "norm", None), net.options.activation
        if name.startswith("conv"):
            h = F.max_pool2d(non_linear(F.conv2d(h, block.conv.weight, block.conv.bias), norm, activation), 2)
        else:
            h = non_linear(h.flatten(1) @ block.linear.weight.T + block.linear.bias, norm, activation)
        found[name] = h
    return found


def resnet_by_hand(net, x) -> dict[str, torch.Tensor]:
    h = F.relu(net.bn1(net.conv1(x)))
    found = {"stem": h}
    for group in ("layer1", "layer2", "layer3", "layer4"):
        for index, block in enumerate(getattr(net, group, [])):
            inner = F.relu(block.bn1(block.conv1(h)))
            if isinstance(net, ResNet18):
                shortcut = block.downsample(h)
            else:
                added = inner.shape[1] - h.shape[1]
                stride = 2 if added else 1
                shortcut = F.pad(h[:, :, ::stride, ::stride], (0, 0, 0, 0, added // 2, added // 2))
            h = F.relu(block.bn2(block.conv2(inner)) + shortcut)
            found |= {f"{group}.{index}.conv1": inner, f"{group}.{index}": h}
    return found


BY_HAND = {"mlp": mlp_by_hand, "cnn": cnn_by_hand, "resnet18": resnet_by_hand, "resnet32": resnet_by_hand}


@pytest.mark.parametrize("name", MAKE)
def test_activations_equal_a_forward_pass_written_out(name):
    model, x = model_of(name), images()
    logits, found = model.activations(x)
    expected = BY_HAND[name.split("_")[0]](model.backbone, x)
    assert list(found) == list(expected) == [layer.name for layer in model.hidden_layers()]
    for layer, h in found.items():
        torch.testing.assert_close(h, expected[layer])
        assert (h > 0).any()
    assert torch.equal(logits, model(x))
    features = found[model.hidden_layers()[-1].name]
    if "resnet" in name:
        features = features.mean((2, 3))
    torch.testing.assert_close(logits, F.linear(features.flatten(1), model.head.weight, model.head.bias))


class Activations(nn.Module):
    """What functional_call needs to call the method with other weights."""

    def __init__(self, model: ContinualModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model.activations(x)


@pytest.mark.parametrize("name", ["mlp_both", "cnn_norm", "resnet32"])
def test_activations_of_stacked_models(name):
    models = [Activations(model_of(name, seed)) for seed in (0, 1)]
    x, state = images(), stack_module_state(models)
    logits, found = torch.vmap(lambda parameters, buffers: functional_call(models[0], (parameters, buffers), x))(*state)
    for index, model in enumerate(models):
        own_logits, own = model(x)
        torch.testing.assert_close(logits[index], own_logits)
        assert list(found) == list(own)
        for layer in found:
            torch.testing.assert_close(found[layer][index], own[layer])


def test_activations_are_compiled_in_one_piece():
    models = [Activations(model_of("mlp", seed)) for seed in (0, 1)]
    x, state = images(), stack_module_state(models)

    def stacked(x):
        return torch.vmap(lambda parameters, buffers: functional_call(models[0], (parameters, buffers), x))(*state)[1]

    torch._dynamo.reset()
    compiled = torch.compile(stacked, backend="eager", fullgraph=True)(x)
    for layer, h in stacked(x).items():
        torch.testing.assert_close(compiled[layer], h)


def test_nothing_is_kept_and_a_copy_collects_its_own():
    model, x = model_of("mlp"), images()
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.backbone.layers[1].bias.add_(1)
    found = model.activations(x)[1]
    before = {layer: h.clone() for layer, h in found.items()}
    other(x)
    model(2 * x)
    others = other.activations(x)[1]
    assert model._found is None
    assert all(torch.equal(found[layer], before[layer]) for layer in before)
    assert not torch.equal(others["hidden1"], found["hidden1"])
    with pytest.raises(RuntimeError):
        model.activations(x[:, :, :3])
    assert model._found is None


def test_activations_need_all_stages():
    model = model_of("mlp")
    with model.after_prefix(1), pytest.raises(AssertionError, match="stages that are left out"):
        model.activations(torch.zeros(1, 7))


def test_a_backbone_that_names_no_hidden_layers():
    backbone = nn.Flatten()
    backbone.n_features = 2 * 14 * 14
    model = ContinualModel(backbone, [[0, 1]], "domain").double()
    assert model.hidden_layers() == []
    logits, found = model.activations(images())
    assert found == {}
    assert torch.equal(logits, model(images()))


def logits_with_changed_unit(model: ContinualModel, layer, unit: int, x) -> torch.Tensor:
    """What the network makes of x where a unit's activation is another: 3 more at every pixel and sample."""

    def change(_module, _inputs, h):
        changed = h.clone()
        changed[:, unit] += 3
        return changed

    hook = model.get_submodule(layer.activation).register_forward_hook(change)
    logits = model(x)
    hook.remove()
    return logits


@pytest.mark.parametrize("name", RESETTABLE)
def test_column_of_outgoing_is_the_only_way_from_a_unit_to_the_logits(name):
    x, model = images(), model_of(name)
    layers = [layer for layer in model.hidden_layers() if layer.outgoing is not None]
    assert layers
    for layer in layers:
        n_units = len(model.get_submodule(layer.incoming).weight)
        outgoing = model.get_submodule(layer.outgoing).weight
        for unit in range(min(n_units - 1, 3)):
            assert not torch.allclose(logits_with_changed_unit(model, layer, unit, x), model(x))
            with torch.no_grad():
                outgoing.view(len(outgoing), n_units, -1)[:, unit] = 0
            torch.testing.assert_close(logits_with_changed_unit(model, layer, unit, x), model(x), rtol=0, atol=1e-12)
            assert not torch.allclose(logits_with_changed_unit(model, layer, unit + 1, x), model(x))


@pytest.mark.parametrize("name", RESETTABLE)
def test_row_of_incoming_and_entry_of_norm_belong_to_the_unit(name):
    """LayerNorm mixes the units of a layer, so that there it is the scale and the shift that act on one unit alone."""
    x, model = images(), model_of(name)
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.forward = F.leaky_relu  # so that changes of a unit at zero can be seen
    for layer in model.hidden_layers():
        roles = (layer.norm,) if "_norm" in name else (layer.incoming, layer.norm)
        for parameter in (p for role in roles if role for p in model.get_submodule(role).parameters()):
            h, original = model.activations(x)[1][layer.name], parameter.detach().clone()
            for unit in range(min(h.shape[1], 2)):
                with torch.no_grad():
                    parameter[unit] += 1
                changed = (model.activations(x)[1][layer.name] != h).transpose(0, 1).flatten(1).any(1)
                assert changed.tolist() == [i == unit for i in range(h.shape[1])]
                with torch.no_grad():
                    parameter.copy_(original)


@pytest.mark.parametrize("name", ["mlp_crelu", "mlp_both", "mlp_tanh", "cnn_crelu", "cnn_both"])
def test_units_of_crelu_and_tanh_are_not_reset(name):
    assert all(layer[2:] == (None, None, None) for layer in model_of(name).hidden_layers())


@pytest.mark.parametrize("name", ["resnet18", "resnet32"])
def test_units_of_residual_sums_are_not_reset(name):
    for layer in model_of(name).hidden_layers():
        assert (layer.outgoing is not None) == layer.name.endswith(".conv1")
        assert (layer.incoming is None) == (layer.norm is None) == (layer.outgoing is None)


def test_crelu():
    x = torch.tensor([[1.0, -2.0]])
    assert CReLU()(x).tolist() == [[1, 0, 0, 2]]
    maps = torch.randn(3, 2, 4, 4)
    assert torch.equal(CReLU()(maps), torch.cat([maps, -maps], 1).clamp(min=0))


def test_the_mlp_without_options_is_the_one_of_old_runs():
    """The same names and, from the same generator, the same initial weights."""
    torch.manual_seed(3)
    old = nn.Sequential(
        nn.Flatten(), nn.Linear(2 * 14 * 14, 7), nn.ReLU(), nn.Linear(7, 5), nn.ReLU()
    ).state_dict(prefix="layers.")  # fmt: skip
    torch.manual_seed(3)
    new = mlp().state_dict()
    assert list(new) == list(old)
    assert all(torch.equal(new[name], old[name]) for name in old)


def test_run_folders_from_before_the_options(tmp_path):
    config = compose(["strategy=finetune"])
    saved = OmegaConf.to_container(config)
    for name in ("activation", "norm", "init", "dropout"):
        del saved["model"][name]
    OmegaConf.save(saved, tmp_path / "config.yaml")
    assert load_run_config(tmp_path / "config.yaml").model == config.model


def n_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("name", "convolutions", "linear", "shapes_of_norms"),
    [
        ("cnn", [(3, 32, 5), (32, 64, 3), (64, 128, 3)], [(2 * 2 * 128, 128), (128, 128)],
         [(32, 28, 28), (64, 12, 12), (128, 4, 4), (128,), (128,)]),
        ("cnn_small", [(3, 16, 5), (16, 16, 5)], [(5 * 5 * 16, 100), (100, 100)],
         [(16, 28, 28), (16, 10, 10), (100,), (100,)]),
    ],
)  # fmt: skip
def test_published_networks(name, convolutions, linear, shapes_of_norms):
    """Sizes at 3×32×32, as the layers of the authors' codes give them."""
    config = to_dataclass(compose([f"model={name}"])).model
    expected = sum(n_out * (n_in * side**2 + 1) for n_in, n_out, side in convolutions)
    expected += sum(n_out * (n_in + 1) for n_in, n_out in linear)
    network = CNN(config, (3, 32, 32))
    assert n_parameters(network) == expected
    assert network.n_features == linear[-1][1]
    assert network(torch.randn(2, 3, 32, 32)).shape == (2, network.n_features)
    config.norm = "layer"
    normalised = [m for m in CNN(config, (3, 32, 32)).modules() if isinstance(m, nn.LayerNorm)]
    assert [module.normalized_shape for module in normalised] == shapes_of_norms


def test_widths_of_crelu_that_match_the_number_of_parameters():
    """Kumar et al. 2023 take off 27 % for the CNN and 9 % for the MLP of 2 × 100 units, heads of two and ten classes included."""

    def total(backbone, n_classes):
        return n_parameters(backbone) + (backbone.n_features + 1) * n_classes

    def small(width, channels, activation):
        return CNN(CNNConfig("cnn", "cnn", channels=[channels] * 2, kernel_sizes=[5, 5], hidden=[width] * 2,
                             activation=activation), (3, 32, 32))  # fmt: skip

    def two_layers(width, activation):
        return MLP(MLPConfig("mlp", "mlp", hidden=[width] * 2, activation=activation), (1, 28, 28))

    assert total(small(73, 11, "crelu"), 2) == pytest.approx(total(small(100, 16, "relu"), 2), rel=0.01)
    assert total(two_layers(91, "crelu"), 10) == pytest.approx(total(two_layers(100, "relu"), 10), rel=0.01)


@pytest.mark.parametrize(
    ("channels", "kernel_sizes", "sentence"),
    [
        ([4, 4], [3], r"model\.channels=\[4, 4\] does not fit model\.kernel_sizes=\[3\]"),
        ([], [], r"at least one"),
        ([4, 4, 4], [5, 3, 3], r"less than 2×2 pixels of images of 14×14 after convolution 3: choose fewer"),
    ],
)
def test_convolutions_that_are_refused(channels, kernel_sizes, sentence):
    with pytest.raises(ConfigError, match=sentence):
        CNN(CNNConfig("cnn", "cnn", channels=channels, kernel_sizes=kernel_sizes, hidden=[]), SHAPE)
