"""No method gains by runs that diverged, are missing or are not known."""

import json

import pytest
from made_runs import write_run, write_sweep
from scipy import stats
from test_tables import cells

from clbench.reports import print_figures
from clbench.reports.comparison import compare
from clbench.reports.figures import figures_of
from clbench.reports.interactive_figures import cost_fronts
from clbench.reports.palette import looks
from clbench.reports.text_formats import latex, main_numbers, markdown

STEADY = [0.50, 0.51, 0.52, 0.50, 0.53]


def fragile(tmp_path, status: str, n: int = 4, survivors: tuple[float, ...] = (0.90, 0.91, 0.92)):
    """A method with ``n`` finished seeds, and one that looks better by its survivors: the last seed has ``status``."""
    write_sweep(tmp_path, {"steady": STEADY[:n]})
    for seed, accuracy in enumerate(survivors):
        write_run(tmp_path / f"fragile{seed}", "fragile", seed, ACC=accuracy, FORG=0.0, seconds=1.0)
    if status != "missing":
        write_run(
            tmp_path / "last", "fragile", len(survivors), status=status, ACC=0.99, FORG=0.0, min_ACC=0.9, seconds=0.1
        )
    return tmp_path


def test_a_diverged_run_counts_at_chance_in_the_mean_and_in_the_tests(tmp_path):
    """Four classes: ACC of a guess is 25 %; what the run had reached before it diverged does not count."""
    comparison = compare([fragile(tmp_path, "diverged", survivors=(0.55, 0.56, 0.58))])
    counted = [0.55, 0.56, 0.58, 0.25]
    table = cells(comparison.main[0])
    low, high = stats.ttest_1samp(counted, 0).confidence_interval(0.95)
    assert table["fragile", "ACC ↑"].text == f"{100 * sum(counted) / 4:.1f} ± {50 * (high - low):.1f}"
    assert table["fragile", "finished"].text == "3 of 4 (1 diverged)"
    assert table["fragile", "average incremental ↑"].value == pytest.approx(100 * (3 * 0.9 + (1 / 2 + 1 / 4) / 2) / 4)
    assert table["fragile", "min-ACC ↑"].value == pytest.approx(100 * 3 * 0.5 / 4)
    assert table["fragile", "WC-ACC ↑"].value == pytest.approx(100 * 3 * 0.6 / 4)
    assert table["fragile", "FORG ↓"].text == "0.0 ± 0.0 (3 runs)"  # the finished ones
    assert table["fragile", "time (s) ↓"].text == "1.0 ± 0.0 (3 runs)"
    against = comparison.statistics["stream"]
    assert against.best == "steady"  # by the survivors it would be fragile
    assert against.comparisons.loc["fragile"].pairs == 4
    assert against.comparisons.difference["fragile"] == pytest.approx(sum(STEADY[:4]) / 4 - sum(counted) / 4)
    assert "Diverged runs (1 of 4 of fragile) are counted at chance level in accuracies" in comparison.main[0].caption


@pytest.mark.parametrize("status", ["missing", "failed", "running"])
def test_a_method_with_a_missing_seed_is_never_best(tmp_path, status):
    comparison = compare([fragile(tmp_path, status)])
    against = comparison.statistics["stream"]
    assert against.best == "steady"
    assert against.comparisons.pairs["fragile"] == 3
    assert against.comparisons.difference["fragile"] == pytest.approx(-0.4)
    assert set(against.marks.values()) == {""} or against.marks["fragile"] == ""
    assert cells(comparison.main[0])["fragile", "ACC ↑"].mark == ""
    assert "Cannot be best in ACC: fragile (1 of 4 seeds missing)." in comparison.main[0].caption
    assert comparison.tests[0].caption.startswith("The method with the best mean of those with all seeds, steady")
    assert main_numbers(comparison).set_index("method").not_best["fragile"] == "1 of 4 seeds missing"


def test_who_is_ahead_on_the_seeds_that_it_has_is_not_worse(tmp_path):
    """Six seeds of one and five of the other, clearly better: nobody is marked best, and the incomplete one not at all."""
    write_sweep(tmp_path, {"steady": [*STEADY, 0.52], "lwf": [0.10, 0.12, 0.15, 0.11, 0.16, 0.13]})
    write_sweep(tmp_path, {"fragile": [0.90, 0.92, 0.91, 0.905, 0.93]})
    marks = compare([tmp_path]).statistics["stream"].marks
    assert marks == {"steady": "tied", "lwf": "", "fragile": ""}


def test_without_any_method_that_has_all_seeds_nobody_is_best(tmp_path):
    write_run(tmp_path / "a", "er", 0, ACC=0.9)
    write_run(tmp_path / "b", "ewc", 1, ACC=0.5)
    comparison = compare([tmp_path])
    assert comparison.statistics == {}
    assert comparison.tests == []
    assert "er (1 of 2 seeds missing), ewc (1 of 2 seeds missing)" in comparison.main[0].caption


@pytest.mark.parametrize("metric", ["FORG", "seconds", "gap_depth"])
def test_what_a_diverged_run_would_have_had_is_not_known_of_forgetting_gaps_and_costs(tmp_path, metric):
    comparison = compare([fragile(tmp_path, "diverged")], metric=metric)
    assert comparison.statistics["stream"].best == "steady"
    assert "of 1 diverged run not known" in comparison.not_best["stream"]["fragile"]


def test_undefined_values_do_not_make_a_method_best(tmp_path):
    """Recovery is undefined where accuracy never comes back: one quick recovery of two must not win."""
    for seed, recovery in enumerate([1.0, None]):
        write_run(tmp_path / f"a{seed}", "er", seed, recovery_iterations=recovery)
        write_run(tmp_path / f"b{seed}", "ewc", seed, recovery_iterations=20.0)
    comparison = compare([tmp_path], metric="recovery_iterations")
    assert comparison.statistics["stream"].best == "ewc"
    assert comparison.not_best["stream"] == {"er": "recovery (iterations) undefined in 1 run"}


def test_a_method_all_of_whose_runs_diverged_is_at_chance(tmp_path):
    write_sweep(tmp_path, {"er": [0.8, 0.7]})
    for seed in range(2):
        write_run(tmp_path / f"x{seed}", "gem", seed, status="diverged", ACC=None)
    comparison = compare([tmp_path])
    assert cells(comparison.main[0])["gem", "ACC ↑"].text == "25.0 ± 0.0"
    assert cells(comparison.main[0])["gem", "gap depth ↓"].text == "–"
    assert [figure.kind for figure in figures_of(comparison)]  # they show er, and do without gem


def test_ranks_over_scenarios_are_over_methods_with_all_seeds(tmp_path):
    for scenario in ("one", "two", "three"):
        write_sweep(tmp_path, {"er": [0.8, 0.7], "ewc": [0.6, 0.5], "lwf": [0.9]}, scenario)
    write_run(tmp_path / "l1", "lwf", 1, "one", ACC=0.9)
    write_run(tmp_path / "l2", "lwf", 1, "two", ACC=0.9)
    comparison = compare([tmp_path])
    assert comparison.ranks.average_ranks.to_dict() == {"er": 1.0, "ewc": 2.0}
    assert comparison.ranks.left_out == ("lwf",)
    assert "Not ranked, since seeds are missing or the metric is not known: lwf." in comparison.tests[-1].caption
    [diagram] = [figure for figure in figures_of(comparison) if figure.kind == "critical_difference"]
    assert "lwf" in diagram.caption


def test_a_run_that_diverged_in_its_first_task_counts_although_it_has_no_accuracy(tmp_path):
    """Its record says that ACC is undefined, since no task was learned to its end."""
    write_sweep(tmp_path, {"er": [0.9, 0.8]})
    folder = write_run(tmp_path / "x", "er", 2, status="diverged", ACC=None, min_ACC=None)
    summary = json.loads((folder / "summary.json").read_text())
    summary["metrics"]["undefined"] = dict.fromkeys(["ACC", "ACC_pooled", "min_ACC"], "no task was learned to its end")
    (folder / "summary.json").write_text(json.dumps(summary))
    counted = compare([tmp_path]).counted.set_index("seed")
    assert counted.ACC[2] == counted.ACC_pooled[2] == 0.25
    assert counted.min_ACC[2] == 0


def test_ranks_over_scenarios_count_diverged_runs(tmp_path):
    for scenario in ("one", "two", "three"):
        write_sweep(tmp_path, {"er": [0.5, 0.5], "ewc": [0.6]}, scenario)
        write_run(tmp_path / f"{scenario}x", "ewc", 1, scenario, status="diverged")
    assert compare([tmp_path]).ranks.average_ranks.to_dict() == {"er": 1.0, "ewc": 2.0}


def test_figures_say_which_runs_they_leave_out_and_the_front_does_without_incomplete_methods(tmp_path):
    comparison = compare([fragile(tmp_path, "failed")])
    captions = {figure.kind: figure.caption for figure in figures_of(comparison)}
    for kind in ("accuracy_curves", "accuracy_matrices", "stability_plasticity"):
        assert captions[kind].endswith("Finished runs only: fragile 3 of 4.")
    [front] = [figure for figure in figures_of(comparison) if figure.kind == "cost_fronts"]
    assert front.data["off_front"] == ["fragile"]
    assert front.caption.endswith("Not on the line: fragile (1 of 4 seeds missing).")
    assert "Finished runs only: fragile 3 of 4." in comparison.costs[0].caption


def test_cost_figures_count_diverged_runs(tmp_path):
    comparison = compare([fragile(tmp_path, "diverged", survivors=(0.55, 0.56, 0.58))])
    [front] = [figure for figure in figures_of(comparison) if figure.kind == "cost_fronts"]
    runs = front.data["runs"]
    assert runs[runs.method == "fragile"].ACC.mean() == pytest.approx((0.55 + 0.56 + 0.58 + 0.25) / 4)
    assert runs[runs.method == "fragile"].seconds.mean() == 1.0
    assert "Diverged runs count at chance level in ACC" in front.caption


# ---- n, p -------------------------------------------------------------------------------------------------------------


def test_n_is_what_was_evaluated_and_a_range_where_tasks_differ(tmp_path):
    write_run(tmp_path / "a", "er", 0, subsets=(68, 70))
    write_run(tmp_path / "b", "er", 1, subsets=(69, 72))
    comparison = compare([tmp_path])
    for text in (markdown(comparison, []), latex(comparison)):
        assert "n=1000" not in text
    assert "min-ACC, WC-ACC, WF10, WP10, WP100, gap depth, recovery (iterations): subsets, every=1, n=68–72" in (
        comparison.main[0].notes
    )
    assert {row[0].text: row[1].text for row in comparison.provenance[0].rows}["curve"] == "every=1, n=68–72"
    assert "every=1, n=68–72" in next(f for f in figures_of(comparison) if f.kind == "accuracy_curves").caption


def test_p_is_left_out_where_no_p_could_reach_the_level_and_the_interval_stays(tmp_path):
    write_sweep(tmp_path, {"er": [0.90, 0.91, 0.92], "ewc": [0.50, 0.52, 0.51]})
    comparison = compare([tmp_path])
    [row] = comparison.tests[0].rows
    assert [cell.text for cell in row[5:]] == ["–", "–"]
    low, high = stats.ttest_rel([90, 91, 92], [50, 52, 51]).confidence_interval(0.95)
    assert [cell.text for cell in row[2:4]] == ["40.0", f"{low:.1f} to {high:.1f}"]
    assert "n too small" in comparison.tests[0].caption
    assert "it takes 4." in comparison.tests[0].caption
    assert main_numbers(comparison).p.isna().all()


def test_a_large_p_is_not_said_to_mean_equal(tmp_path):
    write_sweep(tmp_path, {"er": [0.5, 0.6, 0.4, 0.55, 0.45], "ewc": [0.5, 0.59, 0.42, 0.54, 0.46]})
    comparison = compare([tmp_path])
    assert float(comparison.tests[0].rows[0][6].text) > 0.5
    assert "A large p does not say that two methods are equal" in comparison.tests[0].caption


# ---- what is undefined, twice there, or only a bound -----------------------------------------------------------------


def test_metrics_without_meaning_are_dashes_with_the_reason_at_the_method(tmp_path):
    reason = "its head exists only after the end of a task"
    for seed in range(2):
        write_run(
            tmp_path / f"a{seed}", "ranpac", seed, undefined={"gap_depth": reason, "min_ACC": reason}, gap_depth=-0.665
        )
        write_run(tmp_path / f"b{seed}", "er", seed)
    [table] = compare([tmp_path]).main
    assert [cells(table)["ranpac", name].text for name in ("gap depth ↓", "min-ACC ↑")] == ["–", "–"]
    assert cells(table)["er", "gap depth ↓"].text == "20.0 ± 0.0"
    assert table.footnotes == [f"ranpac – no gap depth, min-ACC: {reason}."]
    assert cells(table)["ranpac", "method"].footnotes == (1,)
    assert compare([tmp_path], metric="gap_depth").statistics == {}  # one method is left


@pytest.mark.parametrize("without", [0, 1])
def test_what_only_some_seeds_lack_is_no_footnote(tmp_path, without):
    reason = {"recovery_iterations": "what is lost stays lost"}
    write_run(tmp_path / f"{without}", "er", without, recovery_iterations=None, undefined=reason)
    write_run(tmp_path / f"{1 - without}", "er", 1 - without, recovery_iterations=12.0, undefined={})
    [table] = compare([tmp_path]).main
    assert cells(table)["er", "recovery (iterations) ↓"].text == "12.0 (1 run)"
    assert table.footnotes == []


def test_columns_that_repeat_another_or_that_no_method_defines_are_left_out(tmp_path):
    write_run(tmp_path / "a", "er", 0, WF100=0.3, WP100=0.7, undefined={"gap_depth": "there is one task"})
    write_run(tmp_path / "b", "ewc", 0, WF100=0.3, WP100=0.8, undefined={"gap_depth": "there is one task"})
    [table] = compare([tmp_path]).main
    headings = [column.heading for column in table.columns]
    assert "WF100 ↓" not in headings
    assert "WP100 ↑" in headings  # equal in one run only
    assert "gap depth ↓" not in headings
    assert "WF100 equals WF10 in every run: left out." in table.caption
    assert "No gap depth: there is one task." in table.caption
    assert table.footnotes == []
    assert "WF100 ↓" in [column.heading for column in compare([tmp_path], metric="WF100").main[0].columns]


def test_unresolved_minima_are_bounds(tmp_path):
    for seed, resolved in enumerate([True, False]):
        write_run(tmp_path / f"a{seed}", "er", seed, min_ACC=0.80 + 0.034 * seed, min_ACC_resolved=resolved)
        write_run(tmp_path / f"b{seed}", "ewc", seed, min_ACC=0.4, min_ACC_resolved=True)
    comparison = compare([tmp_path], metric="min_ACC")
    table = cells(comparison.main[0])
    assert table["er", "min-ACC ↑"].text == "≤ 81.7"
    assert table["er", "WC-ACC ↑"].text == "≤ 60.0"
    assert table["er", "gap depth ↓"].text == "≥ 20.0"
    assert table["er", "min-ACC ↑"].value == pytest.approx(81.7)
    assert table["ewc", "min-ACC ↑"].text == "40.0 ± 0.0"
    assert table["er", "ACC ↑"].text == "80.0 ± 0.0"
    assert comparison.statistics["stream"].best == "ewc"
    assert comparison.not_best["stream"] == {"er": "min-ACC known only as a bound"}
    assert "≤ and ≥: bounds" in comparison.main[0].caption
    assert r"$\le$ 81.7" in latex(comparison)
    assert "≤ 81.7" in markdown(comparison, [])
    numbers = main_numbers(comparison).set_index("method")
    assert numbers.min_ACC_is_bound.to_dict() == {"er": True, "ewc": False}
    assert numbers.min_ACC["er"] == pytest.approx(0.817)


@pytest.mark.parametrize(("accuracy", "mark"), [(0.1, "best"), (0.95, "tied")])
def test_too_few_seeds_to_be_tested_stand_in_nobodys_way_unless_ahead(tmp_path, accuracy, mark):
    write_sweep(
        tmp_path, {"er": [0.90, 0.91, 0.92, 0.90, 0.93], "ewc": [0.50, 0.52, 0.51, 0.55, 0.51], "gem": [accuracy]}
    )
    comparison = compare([tmp_path])
    assert comparison.statistics["stream"].marks == {"er": mark, "ewc": "", "gem": ""}
    assert ("too few seeds to test: gem." in comparison.main[0].caption) == (mark == "best")
    assert "Dashes for p: n too small." in comparison.tests[0].caption


def test_the_front_of_costs_is_drawn_without_methods_that_cannot_be_best(tmp_path):
    """``fragile`` is cheaper and better than ``steady``, by the seeds that it has."""
    comparison = compare([fragile(tmp_path, "failed")])
    [front] = [figure for figure in figures_of(comparison) if figure.kind == "cost_fronts"]
    steady = 100 * sum(STEADY[:4]) / 4
    line = cost_fronts(looks=looks(["steady", "fragile"]), **front.data).data[0]
    assert list(line.y) == pytest.approx([steady])
    drawn = print_figures.cost_fronts(looks=looks(["steady", "fragile"]), **front.data)
    assert drawn.axes[0].lines[0].get_ydata() == pytest.approx([steady])
