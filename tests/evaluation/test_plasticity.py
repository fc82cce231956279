"""Measures of plasticity against numpy, and that they leave no trace."""

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clbench.evaluation.plasticity import of_activations, ranks, singular_values
from clbench.training.fleet import Fleet

RANKS = ["erank_entropy", "srank_99_sigma", "approx_rank_99_energy", "stable_rank", "num_rank"]


@pytest.mark.parametrize(
    ("diagonal", "expected"),
    [
        ([1, 1, 1, 1], [4, 4, 4, 4, 4]),
        ([10, 1, 1, 1], [2.2122, 4, 3, 1.03, 4]),  # 103/100; e^{H(10/13, 1/13, 1/13, 1/13)}
        ([5, 0, 0, 0], [1, 1, 1, 1, 1]),
        ([0, 0, 0, 0], [0, 0, 0, 0, 0]),
    ],
)
def test_the_five_ranks_differ_as_their_formulas_do(diagonal, expected):
    found = ranks(singular_values(torch.diag(torch.tensor(diagonal, dtype=torch.float32))), 4)
    assert [found[name] for name in RANKS] == pytest.approx(expected, abs=1e-3)


def test_activations_that_are_not_finite_have_no_rank_and_stop_nothing():
    assert np.isnan(of_activations(torch.full((5, 3), torch.nan))["stable_rank"])


def brute_force(h: np.ndarray) -> dict[str, float]:
    """The module docstring, unit by unit; h (N, d) or (N, d, H, W)."""
    units = [h[:, i].ravel() for i in range(h.shape[1])]
    means = [np.abs(u).mean() for u in units]
    average = sum(means) / len(means)
    flat = h.reshape(*h.shape[:2], -1).mean(2)
    s = np.linalg.svd(flat.astype(np.float64), compute_uv=False)

    def least(parts):
        total = 0.0
        for k, part in enumerate(parts, start=1):
            total += part
            if total >= 0.99 * sum(parts) - 1e-9 * sum(parts):
                return k
        raise AssertionError

    p = s[s > 0] / s.sum()
    return {
        "dead_frac_exact": np.mean([not u.any() for u in units]),
        "dormant_frac_fire": np.mean([np.count_nonzero(u) / len(u) < 0.01 for u in units]),
        "dormant_frac_redo": np.mean([m / (average + 1e-9) <= 0.1 for m in means]),
        "active_entry_frac": np.count_nonzero(h) / h.size,
        "erank_entropy": np.exp(-sum(p * np.log(p))),
        "srank_99_sigma": least(s),
        "approx_rank_99_energy": least(s**2),
        "stable_rank": (s**2).sum() / s[0] ** 2,
        "num_rank": sum(s > np.finfo(np.float32).eps * s[0] * max(flat.shape)),
    }


@given(
    shape=st.sampled_from([(12, 5), (4, 9), (130, 3), (6, 4, 3, 2)]),
    dead=st.integers(0, 2),
    quiet=st.floats(1e-4, 1.0),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=40, deadline=None)
def test_equal_to_numpy(shape, dead, quiet, seed):
    rng = np.random.default_rng(seed)
    h = np.maximum(rng.normal(size=shape), 0).astype(np.float32)
    h[:, :dead] = 0
    h[:, -1] *= quiet
    h[1:, dead] = 0  # fires for one sample
    if not h.any():
        return
    found, expected = of_activations(torch.from_numpy(h)), brute_force(h)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-6, abs=1e-9), name


OPTIONS = ["strategy=finetune", "evaluator.plasticity_every=2", "model.hidden=[16,8]"]


def test_a_run_records_them_and_is_not_disturbed(small_trainer):
    """Weights, curve and losses are bit-identical with and without; rows at start, end and period of every task."""
    looked, plain = small_trainer(*OPTIONS), small_trainer(*OPTIONS[:1], OPTIONS[2], checkpoint="plain")
    looked.fit(), plain.fit()
    for a, b in zip(looked.learner.state_dict().values(), plain.learner.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    pd.testing.assert_frame_equal(looked.curve, plain.curve)
    pd.testing.assert_frame_equal(looked.training, plain.training)
    table = looked.plasticity.table()
    of_task = table[(table.task_learning == 1) & (table.quantity == "train_accuracy") & (table.probe == "current")]
    assert of_task.iteration.tolist() == [4, 6, 8]  # tasks of four steps
    assert set(table[table.task_learning == 0].probe) == {"current", ""}
    assert set(table[table.task_learning == 1].probe) == {"current", "earlier", ""}
    assert not table.duplicated(["task_learning", "iteration", "probe", "quantity", "part"]).any()


def test_values_of_a_run_are_those_of_its_network(small_trainer):
    """Accuracy, weights, distance, gradient and spectral norms recomputed at the end of a run of one task."""
    trainer = small_trainer(*OPTIONS, "scenario.tasks=1")
    initial = torch.cat([p.detach().flatten().clone() for p in trainer.learner.model.parameters()])
    trainer.fit()
    rows = trainer.plasticity.table()
    last = rows[rows.iteration == rows.iteration.max()].set_index(["quantity", "part"]).value
    model, train = trainer.learner.model.eval(), trainer.scenario.train
    samples = trainer.inputs.plain(train, train.ids(0))  # fewer than the probe's 2,000
    logits = model.answer.restrict(model(samples.x), samples.task)
    assert last["train_accuracy", ""] == pytest.approx((logits.argmax(1) == samples.y).double().mean().item())
    model.zero_grad()
    torch.nn.functional.cross_entropy(logits, samples.y).backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
    assert last["grad_norm_probe", ""] == pytest.approx(gradient.norm().item(), rel=1e-5)
    weights = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert last["weight_abs_mean", ""] == pytest.approx(weights.abs().mean().item(), rel=1e-5)
    assert last["weight_rms", ""] == pytest.approx(weights.norm().item() / len(weights) ** 0.5, rel=1e-5)
    assert last["init_distance_rms", ""] == pytest.approx(
        (weights - initial).norm().item() / len(weights) ** 0.5, rel=1e-5
    )
    s = np.linalg.svd(model.head.weight.detach().numpy(), compute_uv=False)
    assert last["sigma_max", "head"] == pytest.approx(s[0], rel=1e-5)
    assert last["condition", "head"] == pytest.approx(s[0] / s[-1], rel=1e-4)
    h = model.features(samples.x).detach().numpy()
    layer = model.hidden_layers()[-1].name
    assert last["feature_norm", layer] == pytest.approx(np.linalg.norm(h, axis=1).mean(), rel=1e-5)
    assert last["stable_rank", layer] == pytest.approx(brute_force(h)["stable_rank"], rel=1e-5)


def test_rows_survive_a_resume_and_a_fleet_records_the_same(small_trainer):
    options = [*OPTIONS, "scenario.tasks=2"]
    whole, first = small_trainer(*options), small_trainer(*options, checkpoint="stopped")
    whole.fit()
    first.begin()
    first.fit_task()
    second = small_trainer(*options, checkpoint="stopped")
    second.fit()
    pd.testing.assert_frame_equal(whole.plasticity.table(), second.plasticity.table())
    members = [small_trainer(*options, f"seed={seed}", checkpoint=f"fleet{seed}") for seed in (0, 1)]
    Fleet(members).fit()
    pd.testing.assert_frame_equal(whole.plasticity.table(), members[0].plasticity.table(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("strategy", ["hypernetwork", "dst"])
def test_of_a_network_that_a_strategy_makes_no_activations_are_recorded(strategy, small_trainer):
    small = ["strategy.chunk_size=300"] if strategy == "hypernetwork" else []
    trainer = small_trainer(f"strategy={strategy}", "scenario=split_digits_task", "evaluator.plasticity_every=2",
                            "scenario.tasks=2", "model.hidden=[16]", *small)  # fmt: skip
    trainer.fit()
    table = trainer.plasticity.table()
    assert "train_accuracy" in set(table.quantity)
    assert "stable_rank" not in set(table.quantity)
