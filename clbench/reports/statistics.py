"""Statistics over seeds and scenarios, as pure functions of arrays.

Which test compares two methods over the seeds that both have: with n pairs the smallest p-value that the exact Wilcoxon
signed-rank test can give is 2^(1−n), 6.3 % at n = 5 whatever the data, and Holm's correction multiplies it by the number of
comparisons. Where that leaves it above 5 %, the studentised bootstrap is used, elsewhere Wilcoxon (:func:`default_test`).

How often each calls two equal methods different at a level of 5 % (1,500 to 4,000 simulated data sets, standard error 0.3 to
0.7 points; skewed: exponential, which breaks Wilcoxon's assumption that the differences are symmetric; the differences of two
methods that have the same distribution are symmetric):

| pairs | Wilcoxon, normal | Wilcoxon, skewed | bootstrap, normal | bootstrap, skewed |
|---|---|---|---|---|
| 3 | 0.0 % | 0.0 % | 0.0 % | 0.0 % |
| 5 | 0.0 % | 0.0 % | 3.1 % | 6.7 % |
| 6 | 2.9 % | 6.9 % | 2.2 % | 7.3 % |
| 10 | 4.5 % | 8.6 % | 3.7 % | 7.7 % |

So both keep 5 % for symmetric differences, both exceed it for skewed ones, and with three pairs nothing is ever significant: a
resample that draws one seed only has no standard error and is counted against the difference, and such resamples are a ninth
of all. Discarding them instead, as is often done, gives false positives in 7.7 % (normal) and 12 % (skewed) of the cases.

The whole procedure of a table (:func:`against_best`: pick the best mean, compare it with every other, correct by Holm), over
equal methods with normal results: one of two methods is called best in 2.9 % of the cases with 5 seeds and 5.7 % with 10
(Wilcoxon), one of four in 0.1 % and 0.2 %; any of four is called worse than the best in 5.4 % and 6.0 %.
"""

import itertools
import math
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import stats

LEVEL = 0.05
"""Significance level of every test, and 1 minus the level of every interval."""

TESTS = ("wilcoxon", "bootstrap")
RESAMPLES = 9999

SMALLEST_SPREAD = 0.25
"""Smallest standard error of a resample, as a share of the sample's, see :func:`bootstrap_t`."""

MOST_ENUMERATED_BOOTSTRAP = 6
"""Up to so many pairs all n^n resamples are gone through (46,656), of more pairs :data:`RESAMPLES` are drawn."""

MOST_ENUMERATED_SIGNS = 12
"""Up to so many pairs with ties, whose distribution is not tabulated, Wilcoxon's p-value comes from all 2^n sign patterns."""


@dataclass(frozen=True)
class AgainstBest:
    """The method with the best mean compared with every other, over the seeds that both have."""

    metric: str
    """Column that was compared."""

    test: str
    """``wilcoxon`` or ``bootstrap``."""

    best: str
    """The method with the best mean among those that may be best."""

    comparisons: pd.DataFrame
    """A row per other method (index ``method``): ``pairs`` (seeds in common), ``difference`` (best minus other, mean over the
    pairs), ``low`` and ``high`` (its 95 % t-interval), ``effect_size`` (d_z with Hedges' correction), ``p``, ``p_holm``; the
    last two are NaN where so few pairs cannot reach 5 % whatever the data."""

    marks: dict[str, str]
    """Method → ``best`` (beats every other significantly, as far as their seeds suffice for a test), ``tied`` (cannot be told
    from the best, or is the best of such a group), or an empty string; empty for all where ``seeds_needed`` is set, and for
    methods that may not be best."""

    seeds_needed: int | None
    """None where the test can decide; with fewer shared seeds than this no comparison reaches 5 % whatever the data."""


@dataclass(frozen=True)
class Ranking:
    """Friedman test and Nemenyi critical difference over scenarios (Demšar 2006, JMLR 7)."""

    metric: str
    """Column that was ranked: mean over seeds, per scenario."""

    scenarios: list[str]
    """The scenarios that every ranked method has."""

    average_ranks: pd.Series
    """Method → average rank, ascending; 1 is best."""

    p: float
    """p-value of the Friedman test, NaN with two methods (it needs three)."""

    critical_difference: float
    """Average ranks that differ by at least this much differ significantly at 5 % (Nemenyi)."""

    cliques: list[list[str]]
    """Largest groups of at least two methods that cannot be told apart: the bars of the diagram."""

    left_out: tuple[str, ...] = ()
    """Methods that have runs on every scenario and are not ranked, since seeds are missing or the metric is not known."""


# ---- one method, and two methods over shared seeds -------------------------------------------------------------------


def t_interval(values: np.ndarray) -> tuple[float, float]:
    """Mean of values (n,) and half the width of its 95 % t-interval; with one value the half width is NaN, with none both."""
    n = len(values)
    mean = float(np.mean(values)) if n else math.nan
    if n < 2:
        return mean, math.nan
    return mean, float(half_widths(np.std(values, ddof=1), n))


def half_widths(deviations: ArrayLike, counts: ArrayLike) -> np.ndarray:
    """Half the widths of the 95 % t-intervals of means; NaN where there is one value.

    Args:
        deviations: standard deviations (ddof 1) of the values that each mean is over.
        counts: how many these are, in the same shape.
    """
    return stats.t.ppf(1 - LEVEL / 2, np.asarray(counts) - 1) * np.asarray(deviations) / np.sqrt(counts)


def wilcoxon(differences: np.ndarray) -> float:
    """Two-sided p-value of Wilcoxon's signed-rank test of paired differences (n,), zeros dropped (Wilcoxon 1945).

    Exact up to 50 pairs, with ties up to :data:`MOST_ENUMERATED_SIGNS`; NaN without pairs; 1 where all differences are zero.
    """
    moved = differences[differences != 0]
    if not len(moved):
        return 1.0 if len(differences) else math.nan
    has_ties = len(np.unique(np.abs(moved))) < len(moved)
    method: str | stats.PermutationMethod = "auto"
    if has_ties and len(moved) <= MOST_ENUMERATED_SIGNS:
        method = stats.PermutationMethod(n_resamples=2**MOST_ENUMERATED_SIGNS)
    elif not has_ties and len(moved) <= 50:
        method = "exact"
    return float(stats.wilcoxon(moved, method=method).pvalue)


def bootstrap_t(differences: np.ndarray) -> float:
    """Two-sided p-value that the mean of paired differences (n,) is zero, by the symmetric studentised bootstrap.

    The share of resamples with |mean* − mean| / se* ≥ |mean| / se (Efron & Tibshirani 1993, chapters 12 and 16). Resamples
    without spread count as larger; of others se* is at least a quarter of se (ours): where most differences are nearly equal,
    resamples of those would otherwise make a difference of 70 ± 6 points over six seeds insignificant.

    Deterministic: all resamples up to :data:`MOST_ENUMERATED_BOOTSTRAP` pairs, else drawn from a fixed seed, with the
    observed sample counted among them. NaN below two pairs.
    """
    n = len(differences)
    if n < 2:
        return math.nan
    mean, spread = differences.mean(), differences.std(ddof=1)
    negligible = 1e-9 * np.abs(differences).max()
    if spread <= negligible:
        return 1.0 if mean == 0 else float(n) ** (1 - n)  # the share of resamples that draw one seed only
    enumerated = n <= MOST_ENUMERATED_BOOTSTRAP
    if enumerated:
        chosen = np.array(list(itertools.product(range(n), repeat=n)))
    else:
        chosen = np.random.default_rng(0).integers(0, n, (RESAMPLES, n))
    resampled = differences[chosen]
    off, spreads = np.abs(resampled.mean(1) - mean), resampled.std(1, ddof=1)
    at_least = np.maximum(spreads, SMALLEST_SPREAD * spread)
    # |mean* − mean| / spread* ≥ |mean| / spread without dividing by a spread* of zero; up to rounding
    larger = (spreads <= negligible) | (off * spread >= np.abs(mean) * at_least * (1 - 1e-9))
    count = int(larger.sum())
    return count / len(chosen) if enumerated else (count + 1) / (len(chosen) + 1)


def default_test(pairs: int, comparisons: int) -> str:
    """The test to use, see the module docstring: Wilcoxon where it can reach 5 % after Holm's correction.

    Args:
        pairs: the smallest number of shared seeds of any of the comparisons.
        comparisons: how many there are.
    """
    return "wilcoxon" if can_decide("wilcoxon", pairs, comparisons) else "bootstrap"


def can_decide(test: str, pairs: int, comparisons: int) -> bool:
    """Whether the smallest p-value that the test can give reaches 5 % after Holm's correction over ``comparisons``."""
    if pairs < 2:
        return False
    smallest = 2.0 ** (1 - pairs) if test == "wilcoxon" else float(pairs) ** (1 - pairs)
    return smallest * comparisons <= LEVEL


def effect_size(differences: np.ndarray) -> float:
    """Paired Cohen's d_z = mean / standard deviation of the differences (n,), times Hedges' correction 1 − 3 / (4(n − 1) − 1).

    Lakens 2013 (Frontiers in Psychology 4:863). NaN below three pairs or without spread.
    """
    n = len(differences)
    spread = np.std(differences, ddof=1) if n > 2 else 0.0
    if spread <= 1e-9 * np.abs(differences).max(initial=0):
        return math.nan
    return float(differences.mean() / spread * (1 - 3 / (4 * (n - 1) - 1)))


def holm(p: np.ndarray) -> np.ndarray:
    """Holm's step-down adjusted p-values (Holm 1979) of p (m,), in the same order; NaN stays NaN and counts as a comparison."""
    order = np.argsort(p)  # NaN last
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return adjusted


def against_best(
    values: pd.DataFrame, metric: str, higher_is_better: bool, test: str | None = None, barred: Collection[str] = ()
) -> AgainstBest:
    """Compare the method with the best mean with every other, over shared seeds, with Holm's correction.

    The best is picked from the same data that it is tested on; what that costs is measured in the module docstring.

    Args:
        values: a row per seed, a column per method; NaN where a method has no result of that seed.
        test: one of :data:`TESTS`; None: :func:`default_test`.
        barred: methods that may not be best, since seeds are missing: what is left may be the easier ones. They are compared
            with the best over the seeds that they have, and have no mark. At least one method must not be among them.
    """
    means = values.mean().drop(list(barred))
    best = str(means.idxmax() if higher_is_better else means.idxmin())
    others = [method for method in values.columns if method != best]
    differences = {method: (values[best] - values[method]).dropna().to_numpy() for method in others}
    if test is None:
        test = default_test(min(map(len, differences.values())), len(others))
    p_value = wilcoxon if test == "wilcoxon" else bootstrap_t
    decides = can_decide(test, max(map(len, differences.values())), len(others))
    rows = []
    for method, difference in differences.items():
        mean, half = t_interval(difference)
        p = p_value(difference) if decides and can_decide(test, len(difference), 1) else math.nan
        rows.append((method, len(difference), mean, mean - half, mean + half, effect_size(difference), p))
    columns = ["method", "pairs", "difference", "low", "high", "effect_size", "p"]
    comparisons = pd.DataFrame(rows, columns=columns).set_index("method")
    comparisons["p_holm"] = holm(comparisons.p.to_numpy())
    # A method with missing seeds may be ahead on those that it has: only who is behind is worse.
    is_behind = comparisons.difference > 0 if higher_is_better else comparisons.difference < 0
    worse = comparisons.index[(comparisons.p_holm <= LEVEL) & is_behind]
    # One with too few seeds to be tested stands in nobody's way, unless it is ahead on them.
    cannot_tell = comparisons.index[comparisons.p.isna() & is_behind & comparisons.index.isin(list(barred))]
    seeds_needed = None
    marks = dict.fromkeys(map(str, values.columns), "")
    if not decides:
        seeds_needed = next(n for n in itertools.count(2) if can_decide(test, n, len(others)))
    elif len(worse) + len(cannot_tell) == len(others):
        marks[best] = "best"
    else:
        marks |= {method: "tied" for method in marks if method not in worse and method not in barred}
    return AgainstBest(metric, test, best, comparisons, marks, seeds_needed)


# ---- methods over scenarios ------------------------------------------------------------------------------------------


def rank_methods(means: pd.DataFrame, metric: str, higher_is_better: bool) -> Ranking:
    """Friedman test, average ranks and Nemenyi's critical difference.

    Args:
        means: a row per scenario, a column per method, no gaps; the scenarios are the sample, so seeds are averaged before.
    """
    ranks = means.rank(axis=1, ascending=not higher_is_better)
    average = ranks.mean().sort_values(kind="stable")
    n, k = means.shape
    same = (means.nunique(axis=1) == 1).all()  # scipy divides by zero where every scenario is a tie
    p = math.nan if k < 3 or same else float(stats.friedmanchisquare(*means.to_numpy().T).pvalue)
    difference = nemenyi_critical_difference(k, n)
    return Ranking(metric, [str(name) for name in means.index], average, p, difference, cliques(average, difference))


def nemenyi_critical_difference(methods: int, scenarios: int) -> float:
    """CD = q √(k (k + 1) / (6 N)), with q the 5 % point of the studentised range over √2 (Demšar 2006, section 3.2.2)."""
    q = stats.studentized_range.ppf(1 - LEVEL, methods, np.inf) / math.sqrt(2)
    return float(q * math.sqrt(methods * (methods + 1) / (6 * scenarios)))


def cliques(average_ranks: pd.Series, critical_difference: float) -> list[list[str]]:
    """The largest groups of at least two methods whose average ranks (ascending) lie less than the critical difference apart."""
    names, ranks = [str(name) for name in average_ranks.index], average_ranks.to_numpy()
    groups, reached = [], 0
    for start in range(len(ranks)):
        end = int(np.searchsorted(ranks, ranks[start] + critical_difference - 1e-12))
        if end - start > 1 and end > reached:  # else the group lies within the one before
            groups.append(names[start:end])
            reached = end
    return groups


def kendall_tau(a: np.ndarray, b: np.ndarray) -> float:
    """Kendall's τ-b between two scores (n,) of the same methods; NaN below two methods or where one is constant."""
    if len(a) < 2:
        return math.nan
    return float(stats.kendalltau(a, b).statistic)
