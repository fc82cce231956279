"""``python -m clbench strategy=X`` reproduces the stored figure within its tolerance: on the default stream with no other
argument, or on its task-incremental sister."""

import csv

import pytest
from streams import digits_for

from clbench.compose import compose
from clbench.conf_files import catalogue_dir
from clbench.registry import STRATEGIES
from clbench.run import run

ON_DIGITS = [name for name in STRATEGIES.names() if not STRATEGIES[name].needs.transformer]
"""What acts within a pretrained transformer has nothing to show on an untrained one."""


def rows(strategy: str, scenario: str) -> list[dict[str, str]]:
    with (catalogue_dir() / scenario / "targets.csv").open() as file:
        return [row for row in csv.DictReader(file) if row["strategy"] == strategy]


def check(strategy: str, tmp_path, scenario: str | None = None) -> None:
    scenario = scenario or digits_for(strategy)
    summary = run(compose([f"strategy={strategy}", f"scenario={scenario}", "progress=false"]), tmp_path)
    targets = rows(strategy, scenario)
    assert targets
    for row in targets:
        measured = 100 * summary["metrics"][row["metric"]]
        assert abs(measured - float(row["value"])) <= float(row["tolerance"]), row


def test_every_strategy_has_a_target():
    assert all(rows(name, digits_for(name)) for name in ON_DIGITS)


@pytest.mark.parametrize("strategy", ["er", pytest.param("l2", marks=pytest.mark.slow)])
def test_target(strategy, tmp_path):
    check(strategy, tmp_path)


def test_target_with_the_task_given(tmp_path):
    check("dst", tmp_path)


@pytest.mark.slow
def test_other_target_with_the_task_given(tmp_path):
    check("hypernetwork", tmp_path, "split_digits_task")


@pytest.mark.slow
@pytest.mark.parametrize("strategy", sorted(set(ON_DIGITS) - {"er", "l2", "dst"}))
def test_other_targets(strategy, tmp_path):
    check(strategy, tmp_path)
