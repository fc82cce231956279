"""Densities, schedules and masks: against published values, closed forms and brute force."""

import math

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2

from clbench.learning.parts.sparsity import (
    annealed,
    growth_priority,
    layer_counts,
    layer_densities,
    ordered,
    smallest,
    update_mask,
)
from clbench.seeding import hashed_uniform

# ---- densities --------------------------------------------------------------------------------------------------------


def resnet18() -> dict[str, tuple[int, ...]]:
    """Weights of torchvision's ResNet-18 with 100 classes, without biases and BatchNorm."""
    model = torchvision.models.resnet18(num_classes=100)
    return {name: tuple(p.shape) for name, p in model.named_parameters() if p.ndim > 1}


CHECKED = {  # worked out apart from this code
    0.2: {"conv1": 1, "fc": 1, "layer2.0.downsample.0": 1, "layer4.0.downsample.0": 1, "layer1.0.conv1": 0.9975,
          "layer2.0.conv2": 0.4876, "layer3.1.conv1": 0.2410, "layer4.1.conv2": 0.1198},
    0.1: {"fc": 1, "layer1.1.conv2": 0.4580, "layer4.0.conv2": 0.0550},
    0.05: {"conv1": 0.5185, "layer1.0.conv2": 0.2189, "fc": 0.7199, "layer4.1.conv1": 0.0263},
}  # fmt: skip


@pytest.mark.parametrize("density", CHECKED)
def test_erk_of_resnet18(density):
    shapes = resnet18()
    n = sum(map(math.prod, shapes.values()))
    assert n == 11_218_112
    found = dict(zip(shapes, layer_densities(list(shapes.values()), density, "erk"), strict=True))
    for layer, expected in CHECKED[density].items():
        assert found[f"{layer}.weight"] == pytest.approx(expected, abs=5e-5)
    assert sum(found[name] * math.prod(shape) for name, shape in shapes.items()) == pytest.approx(density * n)
    assert sum(layer_counts(list(shapes.values()), density, "erk")) == round(density * n)


def test_er_leaves_the_kernel_out():
    shapes = [(64, 32, 3, 3), (16, 64)]
    sparse = layer_densities(shapes, 0.01, "er")
    assert sparse[0] / sparse[1] == pytest.approx((96 / (64 * 32)) / (80 / (16 * 64)))


SHAPES = st.lists(
    st.one_of(
        st.tuples(st.integers(1, 40), st.integers(1, 40)),
        st.tuples(st.integers(1, 40), st.integers(1, 40), st.integers(1, 5), st.integers(1, 5)),
    ),
    min_size=1,
    max_size=8,
)


@given(shapes=SHAPES, density=st.floats(0.001, 1), init=st.sampled_from(["uniform", "er", "erk"]))
def test_densities_of_any_layers(shapes, density, init):
    """They fill the budget, follow the rule where not dense, and a layer that is dense would exceed 1 by it."""
    sizes = [math.prod(shape) for shape in shapes]
    found = layer_densities(shapes, density, init)
    assert sum(d * size for d, size in zip(found, sizes, strict=True)) == pytest.approx(density * sum(sizes))
    if init == "uniform":
        assert found == [density] * len(shapes)
    else:
        raw = [sum(s[:2]) / math.prod(s[:2]) if init == "er" else sum(s) / math.prod(s) for s in shapes]
        epsilons = [d / r for d, r in zip(found, raw, strict=True) if d < 1]
        assert all(0 < d <= 1 for d in found)
        assert not epsilons or max(epsilons) == pytest.approx(min(epsilons))
        assert all(r * min(epsilons) >= 1 - 1e-9 for d, r in zip(found, raw, strict=True) if d == 1 and epsilons)
    counts = layer_counts(shapes, density, init)
    assert sum(counts) == round(density * sum(sizes))
    for count, d, size in zip(counts, found, sizes, strict=True):
        assert 0 <= count <= size
        assert abs(count - d * size) < 1


# ---- schedules --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("cosine", [0.5, 0.005 + 0.495 * (1 + 1 / 2**0.5) / 2, 0.2525, 0.005]),
        ("linear", [0.5, 0.37625, 0.2525, 0.005]),
        ("constant", [0.5, 0.5, 0.5, 0.5]),
    ],
)
def test_schedules(schedule, expected):
    start, end = torch.tensor(0.5, dtype=torch.float64), torch.tensor(0.005, dtype=torch.float64)
    done = torch.tensor([0, 0.25, 0.5, 1], dtype=torch.float64)
    values = torch.stack([annealed(schedule, start, end, part) for part in done])
    torch.testing.assert_close(values, torch.tensor(expected, dtype=torch.float64))


def test_the_cosine_is_torchs():
    optimizer = torch.optim.SGD([torch.zeros(())], lr=0.5)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 37, 0.005)
    for step in range(1, 37):
        optimizer.step()
        scheduler.step()
        ours = annealed("cosine", torch.tensor(0.5), torch.tensor(0.005), torch.tensor(step / 37).double())
        assert ours.item() == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-5)


# ---- masks ------------------------------------------------------------------------------------------------------------


def draws(seed: int, n: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 2**30, n, dtype=np.int32))


@settings(max_examples=50)
@given(values=st.lists(st.integers(-3, 3), min_size=1, max_size=30), data=st.data())
def test_smallest_is_exact_whatever_ties(values, data):
    n = data.draw(st.integers(0, len(values)))
    found = smallest(torch.tensor(values, dtype=torch.int32), torch.tensor(n))
    expected = np.zeros(len(values), bool)
    expected[np.argsort(values, kind="stable")[:n]] = True
    assert found.tolist() == expected.tolist()


def test_keys_are_in_the_order_of_the_numbers():
    strength = torch.tensor([3.0, 1e-40, 0.0, 1e30, 1e-3, 0.0, 2.0, 0.0])
    keys = ordered(strength, torch.tensor([5, 5, 1, 5, 5, 9, 5, 4], dtype=torch.int32))
    assert keys.argsort().tolist() == [5, 7, 2, 1, 4, 6, 0, 3]  # zeros by their draws, then the rest by size


@settings(max_examples=60)
@given(seed=st.integers(0, 2**16), size=st.integers(2, 200), rule=st.sampled_from(["random", "unfired", "gradient"]))
def test_an_update_by_brute_force(seed, size, rule):
    """Drops the n smallest magnitudes; grows the n largest priorities among what is not kept and allowed."""
    rng = np.random.default_rng(seed)
    mask = rng.random(size) < 0.4
    mask[rng.integers(size)] = True
    n = math.ceil(rng.random() * mask.sum())
    theta, gradient = rng.normal(size=(2, size)).astype(np.float32)
    growable = rng.random(size) < rng.random()
    fired = mask | (rng.random(size) < 0.3)
    random = rng.permutation(size).astype(np.int32)  # distinct, so that there is one answer
    priority = growth_priority(
        rule, torch.from_numpy(random), torch.from_numpy(fired), torch.from_numpy(np.abs(gradient))
    )
    after = update_mask(
        torch.from_numpy(mask),
        torch.tensor(n),
        ordered(torch.from_numpy(np.abs(theta)), draws(seed, size)),
        priority,
        torch.from_numpy(growable),
    ).numpy()

    active = np.flatnonzero(mask)
    dropped = active[np.argsort(np.abs(theta[active]))[:n]]
    kept = np.setdiff1d(active, dropped)
    candidates = [i for i in range(size) if i not in kept and (growable[i] or mask[i])]
    rank = {
        "random": lambda i: random[i],
        "unfired": lambda i: (not fired[i], random[i]),
        "gradient": lambda i: abs(gradient[i]),
    }[rule]
    grown = sorted(candidates, key=rank, reverse=True)[:n]
    assert sorted([*kept, *grown]) == np.flatnonzero(after).tolist()
    assert after.sum() == mask.sum()


def test_unfired_weights_come_first_then_any():
    fired = torch.tensor([True, True, False, True, False, True])
    priority = growth_priority("unfired", draws(1, 6), fired=fired)
    assert priority[~fired].min() > priority[fired].max()
    assert len(priority[fired].unique()) == 4


def test_random_growth_is_uniform():
    """Pearson's χ² over 4,000 draws without replacement, from the generator that training uses."""
    size, n, rounds = 40, 5, 4000
    mask = torch.arange(size) < 10
    drop_keys = torch.arange(size, dtype=torch.int32)  # the first five go
    counts = torch.zeros(size)
    for key in range(rounds):
        random = (hashed_uniform(torch.tensor(key), size) * 2**30).to(torch.int32)
        after = update_mask(mask, torch.tensor(n), drop_keys, growth_priority("random", random), torch.ones_like(mask))
        counts += after
    assert (counts[5:10] == rounds).all()  # kept
    candidates = torch.cat([counts[:5], counts[10:]])
    share = n / len(candidates)
    expected = rounds * share
    statistic = ((candidates - expected) ** 2 / (expected * (1 - share))).sum() * (1 - 1 / len(candidates))
    assert 0.001 < chi2.sf(statistic.item(), len(candidates) - 1) < 0.999
