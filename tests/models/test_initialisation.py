"""Initial weights by their names in published codes: distributions in closed form, in all layers and in rows drawn later."""

import math

import pytest
import torch
from torch import nn

from clbench.errors import ConfigError
from clbench.models.initialisation import INITS, drawn_like, initialise

N_OUT, N_IN = 300, 200


def bounds_and_std(init: str) -> tuple[float, float, float]:
    """The largest size that a weight may have, the standard deviation, and the bias."""
    fan = N_IN + N_OUT
    # Of the standard normal distribution beyond ±2: 1 − 2·2·φ(2) / (Φ(2) − Φ(−2)) is the variance of what is left.
    density, share = math.exp(-2) / math.sqrt(2 * math.pi), math.erf(2 / math.sqrt(2))
    return {
        "default": (N_IN**-0.5, (3 * N_IN) ** -0.5, math.nan),
        "xavier": (math.sqrt(6 / fan), math.sqrt(2 / fan), 0.0),
        "xavier_normal": (math.inf, math.sqrt(2 / fan), 0.0),
        "truncated_normal": (0.2, 0.1 * math.sqrt(1 - 4 * density / share), 0.1),
    }[init]


@pytest.mark.parametrize("init", INITS)
def test_distributions(init):
    bound, std, bias = bounds_and_std(init)
    torch.manual_seed(0)
    layer = nn.Linear(N_IN, N_OUT)
    initialise(layer, init)
    weight = layer.weight.detach()
    n = weight.numel()
    assert weight.abs().max() <= bound + 1e-7
    assert weight.abs().max() > (0.999 * bound if math.isfinite(bound) else 3.5 * std)
    assert abs(weight.mean()) < 4 * std / math.sqrt(n)
    assert weight.std().item() == pytest.approx(std, rel=0.02)
    if init != "default":
        assert torch.equal(layer.bias.detach(), torch.full((N_OUT,), bias))


def test_the_default_is_untouched():
    torch.manual_seed(0)
    layer = nn.Linear(4, 3)
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    state = torch.get_rng_state()
    initialise(layer, "default")
    assert all(torch.equal(tensor, before[name]) for name, tensor in layer.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("init", INITS)
def test_a_generator_decides(init):
    drawn = [drawn_like(torch.empty(5, 4), init, 4, torch.Generator().manual_seed(seed)) for seed in (3, 3, 4)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize("init", ["xavier", "xavier_normal", "truncated_normal"])
def test_all_layers_of_a_run_begin_so(init, small_setup):
    """The head too, with the classes of the whole stream as its outputs; every seed has weights of its own."""
    networks = [
        small_setup("model.hidden=[300,200]", f"model.init={init}", f"seed={seed}").learner.model for seed in (0, 0, 1)
    ]
    for layer in (m for m in networks[0].modules() if isinstance(m, nn.Linear)):
        n_in, n_out = layer.in_features, layer.out_features
        std = 0.1 * 0.8796 if init == "truncated_normal" else math.sqrt(2 / (n_in + n_out))
        assert layer.weight.std().item() == pytest.approx(std, rel=5 / math.sqrt(2 * layer.weight.numel()) + 1e-3)
        assert torch.equal(layer.bias, torch.full_like(layer.bias, 0.1 if init == "truncated_normal" else 0.0))
    assert networks[0].head.out_features == 10
    same, other = (network.head.weight for network in networks[1:])
    assert torch.equal(same, networks[0].head.weight)
    assert not torch.equal(other, networks[0].head.weight)


def test_rows_of_the_head_that_are_drawn_with_their_task_are_drawn_so(small_setup, task_of):
    model = small_setup("model.hidden=[400]", "model.init=xavier").learner.model
    with torch.no_grad():
        model.head.weight.fill_(7.0)
        model.head.bias.fill_(7.0)
    renewed = model.begin_task(1, torch.Generator().manual_seed(0))
    rows = model.answer.first_seen == 1
    assert rows.sum() == 2
    assert (model.head.weight[~rows] == 7).all()
    drawn, bound = model.head.weight[rows], math.sqrt(6 / (400 + 10))
    assert 0.98 * bound < drawn.abs().max() <= bound + 1e-7
    assert (model.head.bias[rows] == 0).all()
    assert renewed.sum() == 2 * 401


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["model.init=xavier", "strategy=redo"], "model.init=xavier is how linear layers begin, and redo draws"),
        (["model.init=xavier", "strategy=hypernetwork"], "and hypernetwork draws weights by a rule of its own"),
        (
            ["model.init=xavier", "strategy=er", "model.head=cosine"],
            "and model.head=cosine draws weights by a rule of its own",
        ),
        (["model.init=kaiming"], "unknown value for model.init"),
    ],
)
def test_where_it_has_no_meaning_it_is_refused(options, sentence, small_setup):
    with pytest.raises(ConfigError, match=sentence):
        small_setup(*options)
