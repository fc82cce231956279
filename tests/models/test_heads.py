"""Heads other than the linear one, against their equations written out, and which methods go with them."""

import math

import pytest
import torch

from clbench.errors import ConfigError
from clbench.models.heads import CosineHead, FixedHead, make_head, simplex
from clbench.registry import STRATEGIES
from clbench.testing.small_runs import STREAMS, setting_of, small_network, small_options


def cosine(a, b):
    a, b = a.detach(), b.detach()
    return float(a @ b / (a.norm() * b.norm()))


@pytest.mark.parametrize("proxies", [1, 3])
def test_cosines_written_out(proxies):
    torch.manual_seed(0)
    head, features = CosineHead(5, 4, proxies, scale=2.5).double(), torch.randn(6, 5, dtype=torch.float64)
    logits = head(features)
    for b in range(6):
        for c in range(4):
            s = [cosine(features[b], head.weight[c, k]) for k in range(proxies)]
            weights = [math.exp(v) / sum(map(math.exp, s)) for v in s]
            expected = 2.5 * sum(w * v for w, v in zip(weights, s, strict=True))
            assert logits[b, c].item() == pytest.approx(expected, abs=1e-12)
    torch.testing.assert_close(head(7 * features), logits)  # lengths do not count


def test_the_scale_is_learned_from_one_or_given():
    learned, given = CosineHead(3, 2), CosineHead(3, 2, scale=4.0)
    assert learned.scale.item() == 1
    assert "scale" in dict(learned.named_parameters())
    assert "scale" not in dict(given.named_parameters())
    assert "scale" in given.state_dict()


@pytest.mark.parametrize(("n", "d"), [(2, 1), (2, 4), (5, 4), (10, 16)])
def test_corners_of_a_simplex(n, d):
    corners = simplex(n, d)
    assert corners.shape == (n, d)
    products = corners @ corners.T
    torch.testing.assert_close(products.diagonal(), torch.ones(n), atol=1e-5, rtol=0)
    apart = products[~torch.eye(n, dtype=torch.bool)]
    torch.testing.assert_close(apart, torch.full_like(apart, -1 / (n - 1)), atol=1e-5, rtol=0)


def test_too_few_features_for_a_simplex():
    with pytest.raises(ConfigError, match="9, and this network has 8"):
        FixedHead(8, 10)
    FixedHead(9, 10)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("linear", 4, 3, 2.0), "head_scale=2.0"),
        (("linear", 4, 3, None, 2), "head_proxies=2"),
        (("fixed", 4, 3, None, 2), "head_proxies"),
    ],
)
def test_options_without_a_meaning(options, says):
    with pytest.raises(ConfigError, match=says):
        make_head(*options)


def test_new_classes_get_new_rows_and_the_scale_stays(small_trainer):
    trainer = small_trainer("model.head=cosine", "model.head_proxies=2", "trainer.lr=0.1", "strategy=finetune")
    head = trainer.learner.model.head
    trainer.fit_task()
    before, scale = head.weight.detach().clone(), float(head.scale)
    assert scale != 1
    trainer.begin_task()
    changed = (head.weight != before).flatten(1).all(1)
    assert changed.nonzero().flatten().tolist() == trainer.scenario.task_classes[1]
    assert float(head.scale) == scale
    bound = head.in_features**-0.5
    assert float(head.weight[trainer.scenario.task_classes[1]].abs().max()) <= bound


def test_a_fixed_head_stays_what_it_is_and_is_learned_with(small_trainer):
    options = [
        "model.head=fixed",
        "model.head_scale=16.0",
        "trainer.weight_decay=0.01",
        "trainer.lr=0.1",
        "strategy=er",
    ]
    trainer = small_trainer(*options, "trainer.max_steps_per_task=80", "scenario.tasks=2", "scenario.frozen=null")
    corners = trainer.learner.model.head.weight.detach().clone()
    trainer.fit()
    assert torch.equal(trainer.learner.model.head.weight, corners)
    assert not any(name.startswith("head.") for name in trainer.learner.trainable())
    last = trainer.tasks[trainer.tasks.task_learning == 1]
    assert (last.correct / last.n).min() > 0.8


LINEAR = {name for name in STRATEGIES.names() if "linear head" in STRATEGIES[name].needs.traits}


def test_methods_that_read_the_weights_of_a_linear_head():
    assert {"continual_backprop", "der_expandable", "dst", "owm", "packnet", "redo", "spectral"} == LINEAR


@pytest.mark.parametrize(
    "name", [n if i % 3 == 0 else pytest.param(n, marks=pytest.mark.slow) for i, n in enumerate(STRATEGIES.names())]
)
def test_every_method_trains_with_proxies_or_says_why_not(name, small_trainer):
    setting = setting_of(name, "class")
    options = [*STREAMS[setting], *small_network(name), *small_options(name), "model.head=cosine", "model.head_proxies=3",
               "trainer.max_steps_per_task=2", "trainer.batch_size=6", "evaluator.every=0", "trainer.epochs=null"]  # fmt: skip
    if name in LINEAR:
        with pytest.raises(ConfigError, match=r"model\.head=linear"):
            small_trainer(*options)
        return
    trainer = small_trainer(*options)
    trainer.fit()
    assert trainer.training.loss.notna().all()


def test_a_head_of_zeros_has_no_direction(small_setup):
    with pytest.raises(ConfigError, match="no direction"):
        small_setup("model.head=cosine", "trainer.zero_head=true", "strategy=finetune")
