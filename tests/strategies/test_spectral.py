"""The spectral regulariser against singular value decompositions."""

import pytest
import timm
import torch
from torch import nn

from clbench.errors import ConfigError
from clbench.models.continual import ContinualModel
from clbench.strategies.spectral import Spectral, SpectralConfig, penalised_parts


def config(**options) -> SpectralConfig:
    paper = {"lam": 1.0, "k": 2, "power_iterations": 1, "sigma_target": "one", "bias_form": "squared",
             "norm_params": "elementwise"}  # fmt: skip
    return SpectralConfig(name="spectral", **{**paper, **options})


def strategy_for(backbone: nn.Module, n_features: int, **options) -> Spectral:
    """A spectral regulariser of a backbone with a head of two classes, whose penalty is 0."""
    backbone.n_features = n_features
    model = ContinualModel(backbone, [[0], [1]], "class")
    nn.init.eye_(model.head.weight)
    nn.init.zeros_(model.head.bias)
    return Spectral(config(**options), model, scenario=None)


def linear(weight: list[list[float]], bias: list[float]) -> nn.Sequential:
    layer = nn.Linear(len(weight[0]), len(weight))
    layer.load_state_dict({"weight": torch.tensor(weight), "bias": torch.tensor(bias)})
    return nn.Sequential(layer)


def penalty(strategy: Spectral) -> torch.Tensor:
    """After as many iterations as it takes to converge."""
    strategy._iterate(300)
    return strategy.penalty(None, None)


@pytest.mark.parametrize(
    ("options", "value"),
    [
        ({}, (9 - 1) ** 2 + 5**2),
        ({"lam": 0.5}, 0.5 * 89),
        ({"bias_form": "plain"}, 64 + 5),
        ({"k": 1}, (3 - 1) ** 2 + 5),
        ({"k": 1, "bias_form": "plain"}, 4 + 5**0.5),
        ({"k": 3, "bias_form": "plain"}, 26**2 + 5**1.5),
        ({"sigma_target": "initial"}, 25),
    ],
)
def test_value_by_hand(options, value):
    strategy = strategy_for(linear([[3.0, 0.0], [0.0, 1.0]], [1.0, 2.0]), 2, **options)
    assert penalty(strategy).item() == pytest.approx(value, rel=1e-5)


def test_initial_target_stays_when_weights_change():
    backbone = linear([[3.0, 0.0], [0.0, 1.0]], [0.0, 0.0])
    strategy = strategy_for(backbone, 2, sigma_target="initial")
    with torch.no_grad():
        backbone[0].weight.mul_(2)
    assert penalty(strategy).item() == pytest.approx((36 - 9) ** 2, rel=1e-5)


def test_orthogonal_weights_without_bias_cost_nothing():
    backbone = linear(nn.init.orthogonal_(torch.empty(2, 6)).tolist(), [0.0, 0.0])
    assert penalty(strategy_for(backbone, 2)).item() == pytest.approx(0, abs=1e-10)


def test_convolution_norm_layers_and_gradient():
    """Value and gradient are those of the whole equation, by singular value decomposition of the reshaped filters."""
    torch.manual_seed(0)
    conv, batch_norm, group_norm = nn.Conv2d(3, 5, 2), nn.BatchNorm2d(5), nn.GroupNorm(1, 5)
    linear_layer, layer_norm = nn.Linear(20, 2), nn.LayerNorm(2)
    backbone = nn.Sequential(conv, batch_norm, nn.ReLU(), group_norm, nn.Flatten(), linear_layer, layer_norm)
    for norm in (batch_norm, group_norm, layer_norm):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    backbone.class_token = nn.Parameter(torch.randn(1, 1, 4))
    strategy = strategy_for(backbone, 2, lam=0.3)
    nn.init.normal_(strategy.model.head.weight)
    head = strategy.model.head
    matrices = [conv.weight.reshape(5, 12), linear_layer.weight, head.weight]
    biases = [m.bias for m in (conv, batch_norm, group_norm, linear_layer, layer_norm, head)]
    expected = sum((torch.linalg.svdvals(W)[0] ** 2 - 1) ** 2 for W in matrices)
    expected = expected + sum(b.square().sum() ** 2 for b in biases)
    expected = 0.3 * (expected + sum(((n.weight**2 - 1) ** 2).sum() for n in (batch_norm, group_norm, layer_norm)))
    computed = penalty(strategy)
    torch.testing.assert_close(computed, expected)
    parameters = list(strategy.model.trained().values())
    ours, theirs = (torch.autograd.grad(t, parameters, materialize_grads=True) for t in (computed, expected))
    for name, mine, its in zip(strategy.model.trained(), ours, theirs, strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-4, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}")
    assert not ours[list(strategy.model.trained()).index("backbone.class_token")].any()

    without = penalised_parts(strategy.model, with_norm_layers=False)
    assert not without.scales
    assert [part.name for part in without.biases] == ["backbone.0.bias", "backbone.5.bias", "head.bias"]


def test_attention_is_layers_for_query_key_and_value():
    vit = timm.create_model("vit_tiny_patch16_224", img_size=32, embed_dim=24, depth=1, num_heads=2, num_classes=0)
    nn.init.normal_(vit.blocks[0].attn.qkv.bias)
    strategy = strategy_for(vit, 24)
    weights, biases, scales = strategy.penalised
    block = "backbone.blocks.0."
    thirds = [slice(0, 24), slice(24, 48), slice(48, 72)]
    assert [rows for name, rows in weights if name == f"{block}attn.qkv.weight"] == thirds
    assert [rows for name, rows in biases if name == f"{block}attn.qkv.bias"] == thirds
    assert {name for name, _ in weights} == {"backbone.patch_embed.proj.weight", "head.weight"} | {
        f"{block}{name}.weight" for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    }
    assert scales == [f"{block}norm1.weight", f"{block}norm2.weight", "backbone.norm.weight"]
    touched = torch.autograd.grad(penalty(strategy), [vit.cls_token, vit.pos_embed, vit.patch_embed.proj.bias],
                                  allow_unused=True)  # fmt: skip
    assert touched[0] is touched[1] is None
    expected = [torch.linalg.svdvals(W)[0] for W in vit.blocks[0].attn.qkv.weight.chunk(3)]
    where = [index for index, (name, _) in enumerate(weights) if "qkv" in name]
    torch.testing.assert_close(strategy._sigmas()[where], torch.stack(expected), rtol=1e-3, atol=0)


def test_vectors_follow_the_weights_step_by_step():
    """As many iterations a step as asked for, from where the last ones ended; frozen layers are out."""
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3), nn.Linear(3, 2))
    backbone[1].requires_grad_(False)
    strategy = strategy_for(backbone, 2, power_iterations=2)
    assert [name for name, _ in strategy.penalised.weights] == ["backbone.0.weight", "backbone.2.weight", "head.weight"]
    W, u = backbone[0].weight.detach(), strategy.left[:4].clone()
    W.copy_(torch.randn(4, 6))
    strategy.after_step(1, None)
    for _ in range(2):
        v = nn.functional.normalize(W.T @ u, dim=0)
        u = nn.functional.normalize(W @ v, dim=0)
    torch.testing.assert_close(strategy.left[:4], u)
    torch.testing.assert_close(strategy.right[:6], v)
    W.copy_(torch.diag(torch.tensor([1.0, 2.0, 3.0, 9.0, 0.0, 0.0]))[:4])
    before = strategy._sigmas()[0].item()
    strategy.begin_task(None)
    assert before < 8 < strategy._sigmas()[0].item()
    assert strategy._sigmas()[0].item() == pytest.approx(9)


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("bias_form", ["squared", "plain"])
def test_zeros_have_a_finite_gradient_and_are_left_again(k, bias_form):
    """A head of zeros (trainer.zero_head) and biases of zeros; the vectors stay unit vectors."""
    backbone = linear([[0.0, 0.0], [0.0, 0.0]], [0.0, 0.0])
    strategy = strategy_for(backbone, 2, k=k, bias_form=bias_form)
    value = penalty(strategy)
    assert value.item() == pytest.approx(1)
    for gradient in torch.autograd.grad(value, list(backbone.parameters())):
        assert gradient.isfinite().all()
    with torch.no_grad():
        backbone[0].weight.copy_(torch.diag(torch.tensor([3.0, 1.0])))
    assert penalty(strategy).item() == pytest.approx((3**k - 1) ** 2, rel=1e-5)


def test_full_precision_under_autocast():
    strategy = strategy_for(linear([[3.1, 0.0], [0.0, 1.0]], [0.0, 0.0]), 2)
    with torch.autocast("cpu", torch.bfloat16):
        assert penalty(strategy).item() == pytest.approx((3.1**2 - 1) ** 2, rel=1e-5)


def test_training_draws_what_it_draws_without(small_trainer):
    """With λ = 0 a run is bit for bit that of finetuning, with as many of torch's random numbers drawn."""
    ends = []
    for options in (["strategy=finetune"], ["strategy=spectral", "strategy.lam=0"]):
        trainer = small_trainer(*options, checkpoint=options[0])
        trainer.fit()
        ends.append((trainer.learner.strategies[0].flat_parameters(), torch.get_rng_state()))
    assert torch.equal(ends[0][0], ends[1][0])
    assert torch.equal(ends[0][1], ends[1][1])
    assert {"strategies.0.left", "strategies.0.right"} <= trainer.learner.state_dict().keys()  # in the checkpoint


@pytest.mark.parametrize("strategy", ["ewc", "er", "gem", "dst"])
def test_beside_other_strategies(strategy, small_trainer, learn_tasks):
    """The penalty lowers what it penalises, compared with the other strategy alone (of dst's weights, some are held)."""
    options = [f"strategy={strategy}", "scenario=split_digits_task", "trainer.lr=0.02", "trainer.max_steps_per_task=8"]
    options += ["strategy.memory_size=40"] if strategy in ("er", "gem") else []
    distance = []
    for more in ([], ["+plus.spectral.lam=0.5"]):
        trainer = small_trainer(*options, *(["strategy.plus=[spectral]", *more] if more else []), checkpoint=str(more))
        learn_tasks(trainer, 2)
        model = trainer.learner.model
        sigmas = [torch.linalg.svdvals(W.detach())[0] for W in (model.backbone.layers[1].weight, model.head.weight)]
        distance.append(sum(abs(sigma.item() ** 2 - 1) for sigma in sigmas))
    assert set(trainer.training.term) >= {"new", "spectral"}
    assert distance[1] < 0.95 * distance[0]


def test_nothing_to_regularise_is_refused():
    backbone = nn.Sequential(nn.Linear(2, 2))
    backbone.n_features = 2
    model = ContinualModel(backbone, [[0], [1]], "class").requires_grad_(False)
    with pytest.raises(ConfigError, match="spectral acts on trained weights of linear and convolutional layers"):
        Spectral(config(), model, scenario=None)
