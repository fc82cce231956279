"""Means, spreads and verdicts."""

import math

import numpy as np
import pytest
from scipy import stats

from clbench.published.comparison import VERDICTS, compared, published_deviation, welch
from clbench.published.tables import PublishedCell

THEIRS = np.array([70.0, 71.5, 69.0, 73.0, 70.5, 72.0])
OURS = [74.0, 72.0, 75.5]


def cell(**changed) -> PublishedCell:
    values = {"name": "c", "method": "m", "mean": 70.0, "tolerance": 1.0, "metric": "ACC", "spread": 1.0, "seeds": 6}
    return PublishedCell(**{**values, "spread_kind": "std", **changed})


@pytest.mark.parametrize(
    ("kind", "spread"),
    [
        ("std", THEIRS.std(ddof=1)),
        ("population_std", THEIRS.std()),
        ("sem", stats.sem(THEIRS)),
    ],
)
def test_p_is_that_of_welchs_test_of_the_runs_themselves(kind, spread):
    """Of whatever spread the source prints, the same p as from the six runs that it is of."""
    found = compared(cell(mean=THEIRS.mean(), spread=float(spread), spread_kind=kind), OURS)
    assert found.p == pytest.approx(stats.ttest_ind(THEIRS, OURS, equal_var=False).pvalue, rel=1e-9)
    assert found.mean == pytest.approx(np.mean(OURS))
    assert found.deviation == pytest.approx(np.std(OURS, ddof=1))
    assert found.difference == pytest.approx(np.mean(OURS) - THEIRS.mean())


def test_unequal_spreads_are_not_pooled():
    assert welch(70, 0.1, 10, 71, 3.0, 5) > 0.4
    assert stats.ttest_ind_from_stats(70, 0.1, 10, 71, 3.0, 5).pvalue < 0.4


@pytest.mark.parametrize(
    "changed", [{"spread": None}, {"spread_kind": "reading"}, {"spread_kind": "none"}, {"seeds": None}, {"seeds": 1}]
)
def test_without_a_spread_over_runs_there_is_no_test(changed):
    """A digitised figure's error is none over runs."""
    assert math.isnan(published_deviation(cell(**changed)))
    found = compared(cell(**changed), [69.5, 70.5])
    assert math.isnan(found.p)
    assert found.verdict == "within tolerance"
    assert compared(cell(**changed), [74.0, 76.0]).verdict == "differs"


def test_one_run_has_no_spread():
    found = compared(cell(), [70.5])
    assert math.isnan(found.deviation)
    assert math.isnan(found.p)


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ([69.9, 70.0, 70.1], "within tolerance"),
        ([71.0, 71.0, 71.0], "within tolerance"),  # the tolerance itself
        ([69.0, 69.0, 69.0], "within tolerance"),
        ([73.0, 73.1, 72.9], "differs"),
        ([67.0, 67.1, 66.9], "differs"),
        ([60.0, 72.0, 85.0], "undecided"),
    ],
)
def test_verdicts(values, verdict):
    assert compared(cell(), values).verdict == verdict
    assert verdict in VERDICTS


def test_a_difference_that_is_no_chance_but_within_tolerance_is_within_tolerance():
    found = compared(cell(spread=0.1), [70.9, 70.91, 70.89])
    assert found.p < 0.001
    assert found.verdict == "within tolerance"


def test_two_spreads_of_zero_are_no_test():
    assert math.isnan(welch(70, 0.0, 5, 71, 0.0, 5))
    assert not math.isnan(welch(70, 0.0, 5, 71, 0.5, 5))
