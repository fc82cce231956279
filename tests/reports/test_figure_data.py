"""What the figures show, against closed forms and brute force."""

import math

import numpy as np
import pandas as pd
import pytest
from made_comparison import Shape, made_curve, task_ends

from clbench.evaluation.evaluator import CURVE_COLUMNS
from clbench.evaluation.metrics import accuracy_matrix, final_accuracy, forgetting, recovery_per_switch
from clbench.reports.figure_data import (
    MEAN_PANEL,
    across_seeds,
    after_switches,
    costs,
    curves,
    equal_acc_levels,
    just_learned_lines,
    mean_matrix,
    pareto_front,
    plasticity_and_stability,
    score_by_value,
    shown_tasks,
    sides,
    stability_at,
    stability_gaps,
    thin_out,
)
from clbench.reports.tables import METRICS

GAP = Shape(gap=0.3, loss=0.0)


# ---- thinning out -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 99, 100, 101, 12345])
def test_thinned_curve_keeps_minimum_maximum_ends_and_switches(n):
    y = np.random.default_rng(n).normal(size=n)
    x = np.arange(n) * 2.0
    switches = x[[n // 3, n // 2]]
    kept = thin_out(x, y, 100, switches)
    assert len(kept) <= 100 + 2 * len(switches)
    assert (np.diff(kept) > 0).all()
    assert {0, n - 1, int(y.argmin()), int(y.argmax())} <= set(kept.tolist())
    if n > 100:
        assert {n // 3, n // 3 + 1, n // 2, n // 2 + 1} <= set(kept.tolist())


def test_minimum_of_every_bucket_survives():
    y = np.ones(10_000)
    dips = np.arange(37, 10_000, 500)  # one evaluation deep, twenty of them
    y[dips] = 0
    assert set(dips) <= set(thin_out(np.arange(10_000), y, 2000).tolist())


def test_short_curve_is_left_as_it_is():
    np.testing.assert_array_equal(thin_out(np.arange(50), np.zeros(50), 50), np.arange(50))


# ---- curves -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n_tasks", "shown"), [(1, [0]), (2, [0]), (3, [0, 1]), (4, [0, 1, 2]), (5, [0, 2, 3]), (20, [0, 9, 18])]
)
def test_first_middle_and_next_to_last_task(n_tasks, shown):
    assert shown_tasks(n_tasks) == shown


def test_lines_are_mean_lowest_and_highest_seed():
    tables = [made_curve(GAP, shift=shift) for shift in (0.0, 0.03, -0.06)]
    found = curves({"er": tables})
    assert [panel.title for panel in found.panels][:3] == [f"accuracy on task {task}" for task in (1, 2, 3)]
    assert found.panels[-1].title == MEAN_PANEL
    np.testing.assert_array_equal(found.switches, [100, 200, 300])
    assert found.x_label.startswith("iteration")
    assert found.end == 400
    line = found.panels[1].lines.set_index("x")
    assert line.index.min() == 101  # nothing before the task is learned
    assert line.loc[205, ["mean", "low", "high"]].tolist() == pytest.approx([0.59, 0.54, 0.63])
    mean = found.panels[-1].lines.set_index("x")
    # Learning task 3, five iterations after the switch: two tasks at 0.6 and one at 0.9, and the seeds' mean shift of −0.01.
    assert mean["mean"][205] == pytest.approx((0.6 + 0.6 + 0.9) / 3 - 0.01)


def test_seeds_evaluated_at_other_iterations_are_interpolated_between_their_own():
    first = pd.Series([0.0, 1.0], [0.0, 10.0])
    second = pd.Series([0.5, 0.5], [5.0, 20.0])
    table = across_seeds([first, second]).set_index("x")
    assert table.loc[5].tolist() == [0.5, 0.5, 0.5]
    assert table.loc[0].tolist() == [0.0, 0.0, 0.0]  # the second seed has nothing before its first evaluation
    assert table.loc[10].tolist() == [0.75, 0.5, 1.0]
    assert table.loc[20].tolist() == [0.5, 0.5, 0.5]


def test_other_task_lengths_share_an_axis_that_counts_tasks():
    found = curves({"er": [made_curve(GAP, per_task=100)], "ewc": [made_curve(GAP, per_task=50)]})
    assert found.x_label == "tasks learned"
    np.testing.assert_array_equal(found.switches, [1, 2, 3])
    assert found.end == 4
    for method, per_task in (("er", 100), ("ewc", 50)):
        line = found.panels[0].lines
        line = line[line.method == method]
        lowest = line[line.x.between(1, 2)]["mean"].idxmin()
        assert line.x[lowest] == pytest.approx(1 + 5 / per_task)


def test_accuracy_on_tasks_not_yet_seen_is_not_in_the_mean():
    table = made_curve(GAP)
    unseen = table[(table.task_learning == 0)].assign(task_eval=3, correct=0)
    with_unseen = curves({"er": [pd.concat([table, unseen])]}).panels[-1].lines
    pd.testing.assert_frame_equal(with_unseen, curves({"er": [table]}).panels[-1].lines)


# ---- the stability gap --------------------------------------------------------------------------------------------------


def test_gap_begins_at_the_switch_and_ends_where_the_metric_says():
    table = made_curve(GAP)
    gaps = curves({"er": [table]}).panels[0].gaps
    assert gaps.start.tolist() == [100, 200, 300]
    assert gaps.level.tolist() == [0.9] * 3
    # Up by 0.3/15 an iteration from 0.6 at iteration 5; 95 % of 0.9 is 0.855, reached at 5 + 12.75.
    assert (gaps.stop - gaps.start).tolist() == [18, 18, 18]
    assert recovery_per_switch(table).tolist() == [18, 18, 18]


def test_what_stays_lost_is_no_gap():
    assert curves({"finetune": [made_curve(Shape(gap=0.0, loss=0.3))]}).panels[0].gaps.empty


def test_gap_to_a_lower_plateau_ends_at_that_plateau():
    gaps = curves({"ewc": [made_curve(Shape(gap=0.2, loss=0.1))]}).panels[0].gaps
    assert gaps.level.tolist() == pytest.approx([0.9, 0.8, 0.7])
    assert (gaps.stop - gaps.start).between(5, 20).all()


def test_no_gap_where_only_switches_were_evaluated():
    x = pd.Series([0, 100, 101, 200, 201, 300])
    accuracy = pd.Series([0.1, 0.9, 0.3, 0.9, 0.3, 0.9])
    learning = pd.Series([0, 0, 1, 1, 2, 2])
    assert stability_gaps(x, accuracy, learning, 0).empty


def test_zoom_is_the_mean_over_switches_from_the_switch_on():
    table = made_curve(GAP)
    later = table.task_learning == 3
    table.loc[later & (table.task_eval == 2), "correct"] -= 90  # the last of three switches: 0.09 lower after it
    line = after_switches({"er": [table]}).set_index("x")["mean"]
    assert line.index.tolist() == list(range(51))
    assert line[0] == pytest.approx(0.9)
    assert line[5] == pytest.approx(0.6 - 0.03)
    assert line[40] == pytest.approx(0.9 - 0.03)


@pytest.mark.parametrize("n_tasks", [1, 2])
def test_zoom_without_switches_or_close_evaluations_is_empty(n_tasks):
    table = made_curve(GAP, n_tasks)
    ends_only = table[table.iteration.isin([0, 100, 101, 200])]
    assert after_switches({"er": [ends_only]}).empty


# ---- task ends ----------------------------------------------------------------------------------------------------------


def test_mean_matrix_is_the_mean_over_the_seeds_that_measured():
    first = task_ends(made_curve(GAP, n_tasks=2))
    second = first.assign(correct=first.correct - 100)
    matrix = mean_matrix([first, second])
    np.testing.assert_allclose(matrix, [[0.85, np.nan], [0.85, 0.85]])
    np.testing.assert_allclose(mean_matrix([first, second[second.task_learning == 0]])[1], [0.9, 0.9])


def test_plane_coordinates_and_lines_of_equal_acc():
    tasks = task_ends(made_curve(Shape(gap=0.0, loss=0.1), n_tasks=5))
    plasticity, stability = plasticity_and_stability(tasks)
    matrix = accuracy_matrix(tasks)
    assert plasticity == pytest.approx(0.9)
    assert stability == pytest.approx(1 - forgetting(matrix))
    assert stability_at(np.array(plasticity), final_accuracy(matrix), 5) == pytest.approx(stability)


def test_one_task_has_no_place_in_the_plane():
    assert all(map(math.isnan, plasticity_and_stability(task_ends(made_curve(GAP, n_tasks=1)))))


def test_levels_of_acc_are_round_and_within_the_picture():
    levels = equal_acc_levels((0.5, 1.0), (0.2, 1.0), 4)
    lowest = 0.5 - 0.75 * 0.8
    assert 3 <= len(levels) <= 8
    assert ((levels > lowest) & (levels < 1)).all()
    np.testing.assert_allclose(levels, np.round(levels, 2), atol=1e-12)


def test_accuracy_on_tasks_just_learned():
    ends = pd.DataFrame({"task_learning": [0, 1, 1], "task_eval": [0, 0, 1], "n": 10})
    er = [ends.assign(correct=correct) for correct in ([9, 0, 7], [5, 0, 8])]
    short = pd.DataFrame({"task_learning": [0], "task_eval": [0], "n": 10, "correct": [4]})
    lines = just_learned_lines({"er": er, "ewc": [short]})
    assert lines[["method", "x"]].to_numpy().tolist() == [["er", 1], ["er", 2], ["ewc", 1]]
    np.testing.assert_allclose(lines[["mean", "low", "high"]], [[0.7, 0.5, 0.9], [0.75, 0.7, 0.8], [0.4, 0.4, 0.4]])


# ---- costs, ranks, hyperparameters ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("higher", [True, False])
def test_pareto_front_is_what_nothing_beats(higher):
    generator = np.random.default_rng(0)
    cost, score = generator.integers(0, 8, 40).astype(float), generator.integers(0, 8, 40).astype(float)
    front = pareto_front(cost, score, higher)
    gain = score if higher else -score
    unbeaten = {
        (cost[i], score[i])
        for i in range(40)
        if not any(
            cost[j] <= cost[i] and gain[j] >= gain[i] and (cost[j], gain[j]) != (cost[i], gain[i]) for j in range(40)
        )
    }
    assert {(cost[i], score[i]) for i in front} == unbeaten
    assert (np.diff(cost[front]) > 0).all()


def test_costs_are_in_the_units_of_their_labels():
    run = {"method": "er", "ACC": 0.5, "seconds": 10.0, "evaluation_seconds": 4.0, "peak_memory_bytes": 2**21}
    run |= {"parameters": 2**18, "strategy_bytes": 2**19, "forward_flops_per_sample": 3e6}
    row = costs(pd.DataFrame([run]), METRICS["ACC"]).iloc[0]
    assert row.tolist() == ["er", 50.0, 6.0, 2.0, 1.5, 3.0]


def test_labels_of_the_critical_difference_diagram_do_not_cross():
    placed = sides(pd.Series({"c": 3.0, "a": 1.0, "e": 5.0, "b": 2.0, "d": 4.0}))
    assert placed == [
        ("a", 1.0, "left", 0), ("b", 2.0, "left", 1), ("c", 3.0, "left", 2), ("e", 5.0, "right", 0), ("d", 4.0, "right", 1),
    ]  # fmt: skip


def test_values_of_a_hyperparameter_are_in_numerical_order():
    scores = pd.DataFrame({"parameter": "lr", "value": [10, 0.5, 2, 0.5], "trial": range(4), "score": [1.0, 2, 3, 4]})
    points, are_categories = score_by_value(scores, "lr")
    assert are_categories
    assert points.value.tolist() == ["0.5", "0.5", "2", "10"]
    assert points.score.tolist() == [2, 4, 3, 1]


def test_many_numbers_are_shown_on_a_scale():
    scores = pd.DataFrame({"parameter": "lr", "value": np.geomspace(1e-4, 1, 13), "trial": range(13), "score": 0.5})
    points, are_categories = score_by_value(scores, "lr")
    assert not are_categories
    assert points.value.tolist() == scores.value.tolist()


@pytest.mark.parametrize("values", [["step", "cosine", None], [True, False, True], ["a", 1, 2]])
def test_words_and_truth_values_are_categories(values):
    scores = pd.DataFrame({"parameter": "p", "value": pd.Series(values, dtype=object), "trial": range(3), "score": 0.5})
    points, are_categories = score_by_value(scores, "p")
    assert are_categories
    assert sorted(points.value) == sorted(map(str, values))


def test_of_two_evaluations_of_an_iteration_the_one_after_the_hooks_is_shown():
    """On task 1, accuracy is .2 before the hooks at the end of task 1 and .8 after; on task 2, .1 and .7 at its end."""
    rows = [
        (0, 1, 0, 10, 2, 0.0, False), (0, 2, 0, 10, 2, 0.0, False), (0, 2, 0, 10, 8, 0.0, True),
        (1, 3, 0, 10, 6, 0.0, False), (1, 3, 1, 10, 0, 0.0, False),
        (1, 4, 0, 10, 5, 0.0, False), (1, 4, 1, 10, 1, 0.0, False),
        (1, 4, 0, 10, 7, 0.0, True), (1, 4, 1, 10, 7, 0.0, True),
    ]  # fmt: skip
    curve = pd.DataFrame(rows, columns=CURVE_COLUMNS).sample(frac=1, random_state=0)
    drawn = curves({"ranpac": [curve]})
    first, mean = drawn.panels[0].lines, drawn.panels[-1].lines
    assert dict(zip(first.x, first["mean"], strict=True)) == {1: 0.2, 2: 0.8, 3: 0.6, 4: 0.7}
    assert dict(zip(mean.x, mean["mean"], strict=True)) == {1: 0.2, 2: 0.8, 3: 0.3, 4: 0.7}
    after = after_switches({"ranpac": [curve]})
    assert dict(zip(after.x, after["mean"], strict=True)) == {0: 0.8, 1: 0.6, 2: 0.7}
