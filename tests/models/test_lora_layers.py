"""Low-rank adapters against W + s B A written out."""

import copy

import pytest
import torch
from torch import nn

from clbench.errors import ConfigError
from clbench.models.lora import TARGETS, AdaptedLinear, Adapter, adapted_layers, adapters, add_adapters
from clbench.models.small_vit import SmallViT, SmallViTConfig

WIDTH, DEPTH, RANK, ALPHA = 8, 2, 3, 4.5

ROWS = {
    "q": [("attn.qkv", slice(0, WIDTH))],
    "k": [("attn.qkv", slice(WIDTH, 2 * WIDTH))],
    "v": [("attn.qkv", slice(2 * WIDTH, 3 * WIDTH))],
    "proj": [("attn.proj", slice(None))],
    "mlp": [("mlp.fc1", slice(None)), ("mlp.fc2", slice(None))],
}
"""Which rows of which layers of a block a target is, as timm's attention splits them."""

N_ADAPTERS = {"q": 1, "k": 1, "v": 1, "proj": 1, "mlp": 2}


@pytest.fixture
def network() -> SmallViT:
    """A small transformer whose attention is not all but uniform, as it is with timm's initial weights."""
    torch.manual_seed(0)
    config = SmallViTConfig(kind="small_vit", name="small_vit", patch_size=4, width=WIDTH, depth=DEPTH, heads=2)
    network = SmallViT(config, (1, 8, 8)).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    return network


def train(network: nn.Module) -> None:
    """Give every adapter weights as training might."""
    for _, adapter in adapters(network):
        nn.init.normal_(adapter.A, std=0.5)
        nn.init.normal_(adapter.B, std=0.5)


def written_out(network: SmallViT, adapted: SmallViT, targets: list[str]) -> SmallViT:
    """A copy of the network with s B A added to its weights, target by target."""
    updated = copy.deepcopy(network)
    for ours, theirs in zip(updated.network.blocks, adapted.network.blocks, strict=True):
        for target in targets:
            for layer, rows in ROWS[target]:
                name = layer.split(".")[1]
                adapter = theirs.get_submodule(layer).adapters[name if name.startswith("fc") else target]
                with torch.no_grad():
                    ours.get_submodule(layer).weight[rows] += ALPHA / RANK * adapter.B @ adapter.A
    return updated


@pytest.mark.parametrize("targets", [*([target] for target in TARGETS), ["v", "q"], list(TARGETS)])
def test_network_is_the_one_with_the_updates_in_its_weights_before_and_after_the_merge(targets, network):
    adapted = copy.deepcopy(network)
    add_adapters(adapted.transformer, targets, RANK, ALPHA)
    x = torch.randn(5, 1, 8, 8)
    torch.testing.assert_close(adapted(x), network(x), rtol=0, atol=0)  # B is 0
    train(adapted)
    expected = written_out(network, adapted, targets)(x)
    assert (expected - network(x)).abs().max() > 0.05
    torch.testing.assert_close(adapted(x), expected, rtol=1e-5, atol=1e-5)
    for layer in adapted_layers(adapted).values():
        layer.merge()
    assert all((adapter.B == 0).all() and (adapter.A != 0).any() for _, adapter in adapters(adapted))
    torch.testing.assert_close(adapted(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(7, 5), (2, 3, 5)])
def test_every_part_of_a_fused_layer_has_its_own_update(shape):
    torch.manual_seed(0)
    base = nn.Linear(5, 12)
    layer = AdaptedLinear(base, ("q", "k", "v"), ["q", "v"], rank=2, alpha=3.0)
    train(layer)
    x = torch.randn(shape)
    for part, rows in {"q": slice(0, 4), "k": slice(4, 8), "v": slice(8, 12)}.items():
        weight = base.weight[rows]
        if part != "k":
            weight = weight + 1.5 * layer.adapters[part].B @ layer.adapters[part].A
        torch.testing.assert_close(layer(x)[..., rows], x @ weight.T + base.bias[rows])


def test_product_leaves_the_scale_out():
    adapter = Adapter(4, 6, rank=2, alpha=8.0)
    train(adapter)
    torch.testing.assert_close(adapter(torch.eye(4)).T, 4 * adapter.product())


def test_merge_leaves_a_weight_alone_that_another_network_shares(network):
    """Members of a fleet hold one copy of what is frozen."""
    other = copy.deepcopy(network)
    add_adapters(network.transformer, ["q"], RANK, ALPHA)
    add_adapters(other.transformer, ["q"], RANK, ALPHA)
    (mine, *_), (its, *_) = adapted_layers(network).values(), adapted_layers(other).values()
    its.base.weight.data = mine.base.weight.data
    before = its.base.weight.clone()
    train(network)
    mine.merge()
    assert torch.equal(its.base.weight, before)
    assert not torch.equal(mine.base.weight, before)
    assert not mine.base.weight.requires_grad


@pytest.mark.parametrize("targets", [["q"], ["k", "v"], ["proj"], ["mlp"], list(TARGETS)])
def test_adapters_alone_are_trained_and_are_as_many_as_they_should_be(targets, network):
    add_adapters(network.transformer, targets, RANK, ALPHA)
    trained = {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert {name.rpartition(".")[2] for name in trained} == {"A", "B"}
    assert len(dict(adapters(network))) == DEPTH * sum(N_ADAPTERS[target] for target in targets)
    sides = {"mlp": 2 * (WIDTH + 4 * WIDTH)}  # rows and columns, together
    expected = DEPTH * RANK * sum(sides.get(target, 2 * WIDTH) for target in targets)
    assert sum(parameter.numel() for parameter in trained.values()) == expected


def test_fresh_adapters_are_drawn_from_the_generator():
    """A uniformly within ±1/√n_in, B zero."""
    torch.manual_seed(0)
    adapter = Adapter(400, 6, rank=20, alpha=1.0)
    first = adapter.A.clone()
    train(adapter)
    adapter.start_anew(torch.Generator().manual_seed(3))
    again = Adapter(400, 6, rank=20, alpha=1.0)
    again.start_anew(torch.Generator().manual_seed(3))
    assert torch.equal(adapter.A, again.A)
    assert not torch.equal(adapter.A, first)
    for A in (first, adapter.A):
        assert 0.0499 < A.abs().max() <= 0.05  # 1/√400
        assert A.mean().abs() < 0.001
    assert (adapter.B == 0).all()


@pytest.mark.parametrize("targets", [[], ["q", "q"], ["qkv"], ["q", "head"]])
def test_targets_are_checked(targets, network):
    with pytest.raises(ConfigError, match=r"strategy\.targets=.* has to name some of q, k, v, proj, mlp, each once"):
        add_adapters(network.transformer, targets, RANK, ALPHA)
