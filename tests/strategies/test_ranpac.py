"""RanPAC: its statistics, its choice of the penalty and its head against plain computations on all features."""

from types import SimpleNamespace

import pytest
import torch
from given_features import clusters, on_given_features, shuffled

from clbench.learning.base import Measurement, Plan
from clbench.strategies.ranpac import CANDIDATES, RanPAC, RanPACConfig
from clbench.testing.stepping import finish_stage


def make(projection: int | None = 25, lam: float | None = None) -> RanPAC:
    options = RanPACConfig("ranpac", extractor="frozen", projection=projection, lam=lam)
    return on_given_features(RanPAC, options, 6, [[0, 1], [2, 3]])


def learn(strategy: RanPAC, x: torch.Tensor, y: torch.Tensor, batch: int = 7) -> None:
    """One task, in the order of its samples."""
    task = SimpleNamespace(ids=torch.arange(len(y)))
    strategy.begin_task(task)
    for ids in strategy.plan(task, Plan(new=list(task.ids.split(batch)) * 2)).new:
        strategy.absorb(x[ids], y[ids])
    strategy.end_task(task)


def solve(H: torch.Tensor, y: torch.Tensor, lam: float) -> torch.Tensor:
    G = H.T @ H + lam * torch.eye(H.shape[1], dtype=torch.float64)
    return torch.linalg.solve(G, H.T @ torch.eye(4, dtype=torch.float64)[y])


def chosen_by_hand(H: torch.Tensor, y: torch.Tensor) -> float:
    """The penalty with the smallest mean squared error on the last fifth after a fit to the rest."""
    n = int(0.8 * len(y))
    targets = torch.eye(4, dtype=torch.float64)[y]
    errors = [(H[n:] @ solve(H[:n], y[:n], lam) - targets[n:]).square().mean() for lam in CANDIDATES]
    return CANDIDATES[int(torch.stack(errors).argmin())]


@pytest.mark.parametrize("projection", [25, None])
def test_penalty_and_head(projection):
    """Two tasks, batches that lie across the border of the two parts; the tasks differ in noise."""
    x, y = clusters(30, 4, 6)
    first, second = shuffled(60, 0), 60 + shuffled(60, 1)
    x += torch.randn(120, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    x[:60] *= 3
    strategy = make(projection)

    def features(ids):
        return x[ids] if projection is None else (x[ids] @ strategy.projected).relu()

    penalties = []
    for ids in (first, second):
        learn(strategy, x[ids], y[ids])
        penalties.append(chosen_by_hand(features(ids), y[ids]))
        assert strategy.measurements() == [Measurement("ridge_penalty", "", penalties[-1])]
    assert len({*penalties, CANDIDATES[0]}) == 3  # the first candidate is what is chosen where all errors are equal
    everything = torch.cat([first, second])
    expected = solve(features(everything), y[everything], penalties[1])
    torch.testing.assert_close(strategy.W, expected, rtol=0, atol=1e-8)
    torch.testing.assert_close(strategy.scores(x), features(torch.arange(120)) @ expected)


def test_a_fixed_penalty_gives_one_head_for_all_orders_of_tasks():
    x, y = clusters(20, 4, 6)
    heads = []
    for order in ([0, 1, 2, 3], [3, 1, 0, 2]):
        strategy = make(lam=0.5)
        for label in order:
            learn(strategy, x[y == label], y[y == label], batch=3 + label)
        heads.append(strategy.W)
        assert strategy.measurements()[0].value == 0.5
    torch.testing.assert_close(heads[0], heads[1], rtol=0, atol=1e-8)
    torch.testing.assert_close(heads[0], solve((x @ strategy.projected).relu(), y, 0.5), rtol=0, atol=1e-8)


def test_the_head_waits_for_the_end_of_the_task():
    x, y = clusters(10, 4, 6)
    strategy = make()
    learn(strategy, x[:20], y[:20])
    head = strategy.W.clone()
    strategy.begin_task(None)
    loss = strategy.absorb(x[20:30], y[20:30])
    assert torch.equal(strategy.W, head)
    torch.testing.assert_close(loss, (strategy.scores(x[20:30]) - torch.eye(4)[y[20:30]]).square().sum(1).mean())


def test_a_penalty_below_the_rounding_of_the_sums_is_passed_over(monkeypatch):
    """All features equal: beside G, whose entries are 64, the two best candidates are zero in double precision."""
    x, y = torch.ones(64, 6, dtype=torch.float64), torch.arange(64) // 16
    strategy = make(projection=None)
    monkeypatch.setattr(strategy, "_best_first", lambda: [1e-300, 1e-30, 1e-2, 1.0])
    learn(strategy, x, y)
    assert float(strategy.used_lam) == 1e-2
    torch.testing.assert_close(strategy.W, solve(x, y, 1e-2), rtol=0, atol=1e-8)


def test_projections_are_standard_normal():
    projected = make(projection=3000).projected
    assert projected.shape == (6, 3000)
    assert projected.mean().abs() < 0.03
    assert projected.std() == pytest.approx(1, abs=0.03)


def test_says_what_is_chosen_and_what_is_missing():
    assert "a penalty is chosen per task on its training data" in make().notes()[0]
    assert "phase 1" in make(lam=1.0).notes()[0]
    assert "chosen" not in make(lam=1.0).notes()[0]


def test_the_parts_of_the_task_that_trains_the_extractor(small_trainer, task_of):
    """Four fifths of all its samples, in the order in which the classifier gets them."""
    trainer = small_trainer("strategy=ranpac", "strategy.projection=null", "strategy.extractor=first_task",
                            "trainer.lr=0.05", "evaluator.every=0")  # fmt: skip
    trainer.begin_task()
    finish_stage(trainer)
    trainer.begin_stage()
    order = torch.cat([step.ids for step in trainer.steps])
    finish_stage(trainer)
    trainer.end_task()
    task, strategy = task_of(trainer, 0), trainer.learner.strategies[0]
    assert torch.equal(order.sort().values, task.ids)
    samples = task.samples(order)
    with torch.no_grad():
        H = trainer.learner.model.features(samples.x).double()
    assert int(strategy.n_absorbed) == len(order)
    assert float(strategy.used_lam) == chosen_by_hand(H, samples.y)  # two classes, 0 and 1
    torch.testing.assert_close(strategy.W[:, :4], solve(H, samples.y, float(strategy.used_lam)), rtol=0, atol=1e-6)
