"""Statistics of reports against closed forms, scipy, brute force and published examples."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from clbench.reports.statistics import (
    against_best,
    bootstrap_t,
    can_decide,
    cliques,
    default_test,
    effect_size,
    holm,
    kendall_tau,
    nemenyi_critical_difference,
    rank_methods,
    t_interval,
    wilcoxon,
)


def test_t_interval_is_scipys():
    values = np.array([0.71, 0.74, 0.69, 0.80])
    mean, half = t_interval(values)
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (mean - half, mean + half) == pytest.approx((low, high))


def test_t_interval_of_one_value_and_of_none():
    mean, half = t_interval(np.array([0.5]))
    assert mean == 0.5
    assert math.isnan(half)
    assert all(math.isnan(value) for value in t_interval(np.array([])))


def sign_pattern_p(differences: np.ndarray) -> float:
    """Wilcoxon's p-value from its definition: all sign patterns of the ranks."""
    ranks = stats.rankdata(np.abs(differences))
    total = ranks.sum() / 2
    observed = abs(ranks[differences > 0].sum() - total)
    sums = [abs(sum(r for r, s in zip(ranks, signs, strict=True) if s) - total)
            for signs in itertools.product([0, 1], repeat=len(ranks))]  # fmt: skip
    return float(np.mean([value >= observed - 1e-9 for value in sums]))


@pytest.mark.parametrize(
    "differences",
    [
        [0.1, 0.2, 0.3, 0.4, 0.5],
        [0.1, -0.2, 0.3, 0.4, 0.5, 0.6],
        [0.5, 0.5, -0.5, 1.0, 1.0, 2.0],  # ties, where the tabulated exact distribution is wrong
    ],
)
def test_wilcoxon_is_the_share_of_sign_patterns(differences):
    assert wilcoxon(np.array(differences)) == pytest.approx(sign_pattern_p(np.array(differences)))


def test_wilcoxon_drops_zeros():
    assert wilcoxon(np.array([0.0, 0.1, 0.2, 0.3])) == pytest.approx(0.25)
    assert wilcoxon(np.zeros(4)) == 1.0
    assert math.isnan(wilcoxon(np.array([])))


def test_wilcoxon_of_many_pairs_is_scipys():
    differences = np.random.default_rng(0).normal(0.3, 1, 40)
    assert wilcoxon(differences) == stats.wilcoxon(differences).pvalue


def test_bootstrap_by_hand():
    # Of the 27 resamples, the 3 that draw one value only have no spread and count as larger; of none is it below a quarter.
    d = np.array([0.0, 1.0, 5.0])
    t = d.mean() / stats.sem(d)
    count = 0
    for resample in itertools.product(d, repeat=3):
        resample = np.array(resample)
        spread = stats.sem(resample)
        count += spread == 0 or abs(resample.mean() - d.mean()) / max(spread, stats.sem(d) / 4) >= t - 1e-9
    assert 3 < count < 27
    assert bootstrap_t(d) == pytest.approx(count / 27)


def test_bootstrap_is_blind_to_unit_sign_and_order():
    d = np.array([0.02, -0.01, 0.05, 0.04, 0.03])
    assert bootstrap_t(d) == bootstrap_t(1000 * d) == bootstrap_t(-d) == bootstrap_t(d[::-1])


def test_drawn_bootstrap_agrees_with_the_enumerated_one(monkeypatch):
    d = np.array([0.02, -0.03, 0.05, 0.01, 0.03])
    enumerated = bootstrap_t(d)
    monkeypatch.setattr("clbench.reports.statistics.MOST_ENUMERATED_BOOTSTRAP", 2)
    drawn = bootstrap_t(d)
    assert drawn == bootstrap_t(d)  # seeded
    assert drawn == pytest.approx(enumerated, abs=4 * math.sqrt(enumerated / 9999))


def test_nearly_equal_differences_do_not_hide_a_large_one():
    """Resamples of the four alike have next to no spread; 70 points over six seeds are no accident all the same."""
    d = np.array([73.0, 73.01, 73.0, 72.99, 60.0, 69.0])
    t = [abs(r.mean() - d.mean()) / stats.sem(r) for r in (d[[0, 1, 2, 3, 0, 0]], d[[0, 1, 2, 2, 2, 0]])]
    assert min(t) > d.mean() / stats.sem(d)  # so they would count against it
    assert bootstrap_t(d) < 0.005


def test_bootstrap_without_spread_and_with_one_pair():
    assert bootstrap_t(np.zeros(5)) == 1.0
    assert bootstrap_t(np.full(5, 0.1)) == pytest.approx(5.0**-4)
    assert math.isnan(bootstrap_t(np.array([0.1])))


def test_smallest_p_values():
    certain = np.array([10.0, 10.1, 10.2, 10.3, 10.4])
    assert wilcoxon(certain) == pytest.approx(2 * 0.5**5)
    assert bootstrap_t(certain) == pytest.approx(5.0**-4)
    assert bootstrap_t(certain[:3]) == pytest.approx(1 / 9)


def test_default_test_is_one_that_can_reach_five_percent():
    assert [default_test(n, 1) for n in (3, 5, 6, 10)] == ["bootstrap", "bootstrap", "wilcoxon", "wilcoxon"]
    assert default_test(6, 2) == "bootstrap"  # Holm doubles Wilcoxon's 3.1 %
    assert default_test(10, 25) == "wilcoxon"
    assert not can_decide("bootstrap", 3, 1)
    assert can_decide("bootstrap", 4, 3)
    assert not can_decide("bootstrap", 4, 4)
    assert not can_decide("bootstrap", 1, 1)


@pytest.mark.parametrize(("n", "most"), [(3, 0.0), (5, 0.05)])
def test_default_test_calls_equal_methods_different_in_few_cases(n, most):
    draws = np.random.default_rng(7).normal(size=(500, n))
    assert default_test(n, 1) == "bootstrap"
    assert np.mean([bootstrap_t(d) <= 0.05 for d in draws]) <= most


@pytest.mark.parametrize(("methods", "most"), [(2, 0.05), (4, 0.01)])
def test_no_method_is_best_among_equals(methods, most):
    rng = np.random.default_rng(11)
    tables = [pd.DataFrame(rng.normal(size=(5, methods))).add_prefix("m") for _ in range(300)]
    found = [against_best(table, "ACC", True) for table in tables]
    assert np.mean(["best" in result.marks.values() for result in found]) <= most


@pytest.mark.parametrize("test", [wilcoxon, bootstrap_t])
def test_tests_find_a_difference_of_two_standard_deviations_in_ten_pairs(test):
    draws = np.random.default_rng(3).normal(2, 1, size=(50, 10))
    assert np.mean([test(d) <= 0.05 for d in draws]) > 0.9


def test_holm_by_hand():
    # Holm 1979: sorted p times 4, 3, 2, 1, never falling
    p = np.array([0.03, 0.01, 0.04, 0.005])
    assert holm(p) == pytest.approx([0.06, 0.03, 0.06, 0.02])
    assert holm(np.array([0.9, 0.8])) == pytest.approx([1, 1])


def test_holm_counts_an_undefined_comparison():
    adjusted = holm(np.array([math.nan, 0.02]))
    assert math.isnan(adjusted[0])
    assert adjusted[1] == pytest.approx(0.04)


def test_effect_size_by_hand():
    d = np.array([1.0, 2.0, 3.0, 4.0])
    assert effect_size(d) == pytest.approx(2.5 / math.sqrt(5 / 3) * (1 - 3 / 11))
    assert effect_size(-d) == -effect_size(d)
    assert math.isnan(effect_size(np.full(4, 0.5)))
    assert math.isnan(effect_size(d[:2]))


def five_seeds(**columns: list[float]) -> pd.DataFrame:
    return pd.DataFrame(columns, index=range(5))


NOISE = np.array([0.000, 0.004, 0.001, 0.003, 0.002])


def test_clear_winner_is_best():
    values = five_seeds(er=0.9 + NOISE, ewc=0.5 + NOISE[::-1], lwf=0.4 + NOISE**2)
    result = against_best(values, "ACC", higher_is_better=True)
    assert (result.best, result.test, result.seeds_needed) == ("er", "bootstrap", None)
    assert result.marks == {"er": "best", "ewc": "", "lwf": ""}
    assert result.comparisons.difference["ewc"] == pytest.approx(0.4)
    assert result.comparisons.low["ewc"] < 0.4 < result.comparisons.high["ewc"]
    assert (result.comparisons.p_holm >= result.comparisons.p).all()


def test_winner_that_cannot_be_told_from_another_is_tied():
    values = five_seeds(er=0.9 + NOISE, ewc=0.899 + NOISE[::-1], lwf=0.4 + NOISE**2)
    assert against_best(values, "ACC", True).marks == {"er": "tied", "ewc": "tied", "lwf": ""}


def test_lower_is_better():
    values = five_seeds(er=0.1 + NOISE, ewc=0.5 + NOISE[::-1])
    result = against_best(values, "FORG", higher_is_better=False)
    assert result.best == "er"
    assert result.comparisons.difference["ewc"] < 0


def test_three_seeds_decide_nothing_and_say_how_many_do():
    values = five_seeds(er=0.9 + NOISE, ewc=0.1 + NOISE[::-1]).head(3)
    result = against_best(values, "ACC", True)
    assert result.seeds_needed == 4
    assert set(result.marks.values()) == {""}
    assert against_best(values, "ACC", True, test="wilcoxon").seeds_needed == 6


def test_pairs_are_seeds_that_both_have():
    values = five_seeds(er=0.9 + NOISE, ewc=0.5 + NOISE[::-1])
    values.loc[4, "ewc"] = math.nan
    values.loc[0, "er"] = math.nan
    comparisons = against_best(values, "ACC", True).comparisons
    assert comparisons.pairs["ewc"] == 3
    assert comparisons.difference["ewc"] == pytest.approx(np.mean((0.9 + NOISE - 0.5 - NOISE[::-1])[1:4]))


def test_no_shared_seed_is_no_error():
    values = pd.DataFrame({"er": [0.9, math.nan], "ewc": [math.nan, 0.5]})
    result = against_best(values, "ACC", True)
    assert math.isnan(result.comparisons.p["ewc"])
    assert set(result.marks.values()) == {""}


MEANS = pd.DataFrame(
    [[0.9, 0.8, 0.7, 0.6], [0.9, 0.8, 0.6, 0.7], [0.8, 0.9, 0.7, 0.6], [0.9, 0.8, 0.7, 0.7], [0.5, 0.5, 0.4, 0.3]],
    index=list("vwxyz"),
    columns=["a", "b", "c", "d"],
)
"""Mean metric by scenario (rows) and method (columns), with two ties."""


def test_ranks_by_hand():
    ranking = rank_methods(MEANS, "ACC", higher_is_better=True)
    assert ranking.scenarios == list("vwxyz")
    by_scenario = {"a": [1, 1, 2, 1, 1.5], "b": [2, 2, 1, 2, 1.5], "c": [3, 4, 3, 3.5, 3], "d": [4, 3, 4, 3.5, 4]}
    expected = {method: np.mean(ranks) for method, ranks in by_scenario.items()}
    assert ranking.average_ranks.to_dict() == pytest.approx(expected)
    assert list(ranking.average_ranks.index) == ["a", "b", "c", "d"]
    assert ranking.p == pytest.approx(stats.friedmanchisquare(*MEANS.to_numpy().T).pvalue)


def test_friedman_without_ties_is_demsars_equation():
    means = MEANS.loc[["v", "w", "x"]]
    ranking, (n, k) = rank_methods(means, "ACC", True), means.shape
    chi2 = 12 * n / (k * (k + 1)) * ((ranking.average_ranks**2).sum() - k * (k + 1) ** 2 / 4)
    assert ranking.p == pytest.approx(stats.chi2.sf(chi2, k - 1))


def test_demsars_example():
    """Demšar 2006, section 3.2.4: four classifiers on 14 data sets; Nemenyi's test cannot tell the best from the worst."""
    ranks = pd.Series({"C4.5+m+cf": 1.964, "C4.5+m": 2.000, "C4.5+cf": 2.893, "C4.5": 3.143})
    difference = nemenyi_critical_difference(4, 14)
    assert difference == pytest.approx(1.25, abs=0.005)
    assert cliques(ranks, difference) == [list(ranks.index)]


def test_ranks_of_a_metric_where_lower_is_better_are_reversed():
    up = rank_methods(MEANS, "ACC", True).average_ranks
    down = rank_methods(MEANS, "ACC", False).average_ranks
    assert (up + down[up.index]).to_numpy() == pytest.approx(5)


@pytest.mark.parametrize(("methods", "q"), [(2, 1.960), (3, 2.343), (4, 2.569), (5, 2.728), (6, 2.850), (10, 3.164)])
def test_nemenyi_has_demsars_critical_values(methods, q):
    n = 20
    expected = q * math.sqrt(methods * (methods + 1) / (6 * n))
    assert nemenyi_critical_difference(methods, n) == pytest.approx(expected, rel=5e-4)


def test_cliques_are_the_largest_groups_and_overlap():
    ranks = pd.Series({"a": 1.0, "b": 1.8, "c": 2.4, "d": 3.6, "e": 5.5})
    assert cliques(ranks, 1.5) == [["a", "b", "c"], ["c", "d"]]
    assert cliques(ranks, 0.5) == []
    assert cliques(ranks, 10.0) == [["a", "b", "c", "d", "e"]]
    assert cliques(pd.Series({"a": 1.0, "b": 2.5}), 1.5) == []  # at the critical difference they differ


def test_two_methods_have_ranks_but_no_friedman_test():
    ranking = rank_methods(MEANS[["c", "a"]], "ACC", True)
    assert math.isnan(ranking.p)
    assert ranking.average_ranks["a"] < ranking.average_ranks["c"]


def test_all_scenarios_tied():
    ranking = rank_methods(pd.DataFrame(np.ones((4, 3)), columns=list("abc")), "ACC", True)
    assert math.isnan(ranking.p)
    assert (ranking.average_ranks == 2).all()


def test_kendall_tau_by_counting_pairs():
    a, b = np.array([1, 2, 3, 4]), np.array([1, 3, 2, 4])  # 5 pairs agree, 1 does not
    assert kendall_tau(a, b) == pytest.approx(4 / 6)
    assert kendall_tau(a, -a) == pytest.approx(-1)
    assert math.isnan(kendall_tau(a[:1], b[:1]))
    assert math.isnan(kendall_tau(a, np.ones(4)))
