"""Whether two means are the same: a published one, of which only the spread is known, and one of runs.

    z = (m₁ − m₂) / √(s₁²/n₁ + s₂²/n₂)

is compared with Student's t at Welch's degrees of freedom (Welch 1947). The published standard deviation s₁ is made from what is
printed: with n in the denominator, as numpy has it by default, times √(n/(n−1)); a standard error times √n.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy import stats

from clbench.published.tables import PublishedCell

LEVEL = 0.05

VERDICTS = {
    "within tolerance": "the means differ by no more than the cell's tolerance",
    "differs": "they differ by more, and the test says that this is no chance (p < 5 %), or there is no test",
    "undecided": "they differ by more than the tolerance, but so few and scattered seeds may do so by chance (p ≥ 5 %)",
    "diverged": "a run's loss became infinite or NaN, so that there is no mean over all seeds",
    "failed": "runs ended with an error",
    "not run": "no run of this configuration has ended",
    "not possible": "clbench lacks something that the setting needs, or the source does not say what the setting is",
}
"""What each word means."""


@dataclass(frozen=True)
class Compared:
    """Means and their comparison, in percentage points."""

    mean: float
    deviation: float
    """Of the runs, with n − 1; NaN of a single one."""

    difference: float
    """Runs minus published."""

    p: float
    """Two-sided; NaN where one of the spreads is not known."""

    verdict: str


def compared(cell: PublishedCell, values: list[float]) -> Compared:
    """Compare runs with the published figure.

    Args:
        cell: the published figure.
        values: of each run, in percent; at least one.
    """
    mean = float(np.mean(values))
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
    p = welch(cell.mean, published_deviation(cell), cell.seeds or 0, mean, deviation, len(values))
    difference = mean - cell.mean
    beyond = "undecided" if p >= LEVEL else "differs"
    verdict = "within tolerance" if abs(difference) <= cell.tolerance * (1 + 1e-9) else beyond
    return Compared(mean, deviation, difference, p, verdict)


def published_deviation(cell: PublishedCell) -> float:
    """The published standard deviation over runs (n − 1 in the denominator); NaN where it is not known."""
    n = cell.seeds or 0
    if cell.spread is None or n < 2:
        return math.nan
    factors = {"std": 1.0, "population_std": math.sqrt(n / (n - 1)), "sem": math.sqrt(n)}
    return cell.spread * factors.get(cell.spread_kind, math.nan)


def welch(mean_1: float, std_1: float, n_1: int, mean_2: float, std_2: float, n_2: int) -> float:
    """Two-sided p-value of Welch's test; NaN where a deviation is not known, or both are 0."""
    if min(n_1, n_2) < 2 or math.isnan(std_1 + std_2) or std_1 == std_2 == 0:
        return math.nan
    return float(stats.ttest_ind_from_stats(mean_1, std_1, n_1, mean_2, std_2, n_2, equal_var=False).pvalue)
