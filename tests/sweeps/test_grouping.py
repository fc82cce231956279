"""Which runs of a sweep may train as one stack, and how they are parted."""

import pytest

from clbench.registry import STRATEGIES
from clbench.sweeps.grouping import grouped, why_alone
from clbench.testing.small_runs import composed


def groups(*overrides: list[str], largest: int = 64, workers: int = 1) -> list[list[int]]:
    return grouped([composed(*o) for o in overrides], largest, workers)


@pytest.mark.parametrize(
    "difference",
    [
        "seed=3", "trainer.lr=0.5", "trainer.momentum=0.1", "trainer.weight_decay=0.1", "strategy.lam=3", "strategy.decay=0.5",
        "scenario.class_order=shuffled", "record.checkpoint_seconds=3", "wandb.mode=offline", "progress=false",
    ],
)  # fmt: skip
def test_together_whatever_differs_in_values_only(difference):
    assert groups(["strategy=ewc"], ["strategy=ewc", difference]) == [[0, 1]]


@pytest.mark.parametrize(
    "difference",
    [
        "strategy=l2", "model.hidden=[32]", "scenario.increment=5", "trainer.batch_size=7", "trainer.optimizer=adam",
        "strategy.fisher=exact", "strategy.fisher_samples=5", "evaluator.every=2", "evaluator=adaptive",
        "scenario.augment.flip=true", "trainer.clip_grad_norm=1.0", "trainer.epochs=1", "scenario.validation=0.1",
    ],
)  # fmt: skip
def test_apart_where_what_is_computed_differs(difference):
    assert groups(["strategy=ewc"], ["strategy=ewc", difference]) == [[0], [1]]


def test_options_of_added_strategies_are_real_values_too():
    plus = ["strategy=er", "strategy.plus=[ewc]"]
    assert groups([*plus, "+plus.ewc.lam=5.0"], [*plus, "+plus.ewc.lam=6.0"]) == [[0, 1]]


def test_groups_follow_the_order_of_the_sweep():
    assert groups(["strategy=er"], ["strategy=ewc"], ["strategy=er", "seed=1"], ["strategy=ewc", "seed=1"]) == [
        [0, 2],
        [1, 3],
    ]


def test_parts_of_nearly_equal_size():
    seeds = [["strategy=er", f"seed={seed}"] for seed in range(10)]
    assert [len(part) for part in groups(*seeds, largest=4)] == [4, 4, 2]
    assert [len(part) for part in groups(*seeds, workers=2)] == [5, 5]
    assert [len(part) for part in groups(*seeds[:1], workers=2)] == [1]
    assert sorted(job for part in groups(*seeds, workers=3) for job in part) == list(range(10))


@pytest.mark.parametrize("reason", ["evaluator.diagnostics_every=1", "trainer.precision=fp16"])
def test_what_is_trained_alone_says_why(reason):
    assert why_alone(composed(reason))
    assert groups([reason], [reason, "seed=1"]) == [[0], [1]]


def test_strategies_that_cannot_be_stacked_are_these():
    """A strategy says so, and why, by its ``needs``; every other one is in test_fleet.py's comparison with solo runs."""
    assert {name: STRATEGIES[name].needs.alone for name in STRATEGIES.names() if STRATEGIES[name].needs.alone} == {
        "der_expandable": "the network gets another extractor with every task"
    }


def test_a_strategys_own_reason(monkeypatch):
    import dataclasses

    cls = STRATEGIES["l2"]
    monkeypatch.setattr(cls, "needs", dataclasses.replace(cls.needs, alone="it draws a tree"))
    assert why_alone(composed("strategy=l2")) == "l2: it draws a tree"
    assert why_alone(composed("strategy=er", "strategy.plus=[l2]")) == "l2: it draws a tree"
