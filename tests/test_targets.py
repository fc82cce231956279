"""``python -m clbench strategy=X`` with no other argument reproduces the stored figure within its tolerance."""

import csv

import pytest

from clbench.config import catalogue_dir, compose
from clbench.registry import STRATEGIES
from clbench.run import run

TARGETS = catalogue_dir() / "split_digits" / "targets.csv"


def rows(strategy: str) -> list[dict[str, str]]:
    with TARGETS.open() as file:
        return [row for row in csv.DictReader(file) if row["strategy"] == strategy]


def check(strategy: str, tmp_path) -> None:
    summary = run(compose([f"strategy={strategy}", "progress=false"]), tmp_path)
    targets = rows(strategy)
    assert targets
    for row in targets:
        measured = 100 * summary["metrics"][row["metric"]]
        assert abs(measured - float(row["value"])) <= float(row["tolerance"]), row


def test_every_strategy_has_a_target():
    assert {name for name in STRATEGIES.names() if rows(name)} == set(STRATEGIES.names())


@pytest.mark.parametrize("strategy", ["er", "l2"])
def test_target(strategy, tmp_path):
    check(strategy, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", sorted(set(STRATEGIES.names()) - {"er", "l2"}))
def test_other_targets(strategy, tmp_path):
    check(strategy, tmp_path)
