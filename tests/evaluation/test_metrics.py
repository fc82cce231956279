"""Metrics against hand-worked cases and against slow restatements of their definitions."""

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clbench.evaluation import metrics
from clbench.evaluation.evaluator import COLUMNS, CURVE_COLUMNS
from clbench.evaluation.refinement import CONFIDENCE, SUSPECTED


def table(traces: list[list[float]], starts: list[int], length: int, n: int = 1000) -> pd.DataFrame:
    """A curve from accuracy traces; task i is learned from iteration starts[i] (from 1) to the next start."""
    rows = []
    for task, (trace, start) in enumerate(zip(traces, starts, strict=True)):
        for offset, accuracy in enumerate(trace):
            iteration = start + offset
            learning = max(i for i, s in enumerate(starts) if s <= iteration)
            rows.append((learning, iteration, task, n, round(accuracy * n), 0.0))
    assert max(row[1] for row in rows) == length
    return pd.DataFrame(rows, columns=COLUMNS)


def task_table(matrix: list[list[float]], untrained: list[float] | None = None) -> pd.DataFrame:
    rows = [(j, 10 * j, i, 1000, round(1000 * a), 0.0) for j, row in enumerate(matrix) for i, a in enumerate(row)]
    rows += [(-1, 0, i, 1000, round(1000 * a), 0.0) for i, a in enumerate(untrained or [])]
    return pd.DataFrame(rows, columns=COLUMNS)


CASE = json.loads((Path(__file__).parent.parent / "golden" / "two_tasks.json").read_text())
GOLDEN = table(list(CASE["traces"].values()), CASE["starts"], length=8)
"""The case worked by hand in the file: four iterations on task 1, four on task 2."""


def test_golden_case(monkeypatch):
    monkeypatch.setattr(metrics, "WINDOWS", (2, 10))
    summary = metrics.summarise(GOLDEN, GOLDEN[GOLDEN.iteration.isin([4, 8])], every=1)
    for name, value in CASE["expected"].items():
        assert summary[name] == (None if value is None else pytest.approx(value)), name


def consolidated_case() -> tuple[dict, pd.DataFrame, pd.DataFrame]:
    """A case worked by hand in which the hooks at task ends change predictions: the file, its curve and its task table."""
    case = json.loads((Path(__file__).parent.parent / "golden" / "three_tasks_consolidated.json").read_text())
    rows = []
    for task, (trace, n) in enumerate(zip(case["traces"].values(), case["sizes"], strict=True)):
        for moment, accuracy in trace.items():
            iteration = int(moment.split()[0])
            learning = sum(end < iteration for end in case["ends"])
            rows.append((learning, iteration, task, n, round(accuracy * n), 0.0, "after" in moment))
    curve = pd.DataFrame(rows, columns=CURVE_COLUMNS)
    return case, curve, curve.loc[curve.consolidated, COLUMNS]


@pytest.mark.parametrize("order", ["as written", "shuffled"])
def test_golden_case_with_consolidation(order, monkeypatch):
    monkeypatch.setattr(metrics, "WINDOWS", (2, 10))
    case, curve, tasks = consolidated_case()
    if order == "shuffled":
        curve = curve.sample(frac=1, random_state=0)
    summary = metrics.summarise(curve, tasks, every=1)
    for name, value in case["expected"].items():
        assert summary[name] == (None if value is None else pytest.approx(value)), name
    assert summary["undefined"].keys() == {"FWT", "LCA_10"}
    adaptive = metrics.summarise(curve, tasks, every=1, adaptive=True)  # every iteration was evaluated: nothing to fill
    for name, value in case["expected"].items():
        assert adaptive[name] == (None if value is None else pytest.approx(value)), name
    assert adaptive["min_ACC_unresolved"] == 0


def zero_shot_case() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Two tasks of 12 steps; accuracies in hundredths. The second task's tasks and curve differ in the number of samples."""
    first, second = [10 * b for b in range(1, 8)] + [80] * 17, [30 + 2 * b for b in range(12)]
    curve = table([[a / 100 for a in first], [a / 100 for a in second]], starts=[1, 13], length=24)
    return curve, task_table([[0.8, 0.25], [0.8, 0.6]], untrained=[0.06, 0.11])


def test_learning_curve_area_by_hand():
    """Σ_{b=0..10} of task 1: 6 + (10 + … + 70) + 3 · 80 = 526; of task 2: 25 + (30 + 32 + … + 48) = 415, in hundredths."""
    curve, tasks = zero_shot_case()
    summary = metrics.summarise(curve, tasks, every=1)
    assert summary["LCA_10"] == pytest.approx((5.26 / 11 + 4.15 / 11) / 2)
    assert summary["LCA"] == pytest.approx((5.20 / 10 + 3.90 / 10) / 2)
    assert "LCA_10" not in summary["undefined"]


@pytest.mark.parametrize(
    "without",
    [
        lambda curve, tasks: (curve[curve.iteration != 15], tasks),  # a step of the second task
        lambda curve, tasks: (curve[(curve.iteration <= 9) | (curve.iteration >= 13)], tasks),  # shorter than ten steps
        lambda curve, tasks: (curve, tasks[tasks.task_learning >= 0]),  # the first task's zero-shot accuracy
        lambda curve, tasks: (curve, tasks[(tasks.task_learning != 0) | (tasks.task_eval == 0)]),  # the second's
    ],
)
def test_learning_curve_area_takes_all_eleven_points_of_every_task(without):
    summary = metrics.summarise(*without(*zero_shot_case()), every=1)
    assert summary["LCA_10"] is None
    assert summary["undefined"]["LCA_10"] == metrics.NO_ZERO_SHOT
    assert summary["LCA"] is not None


def test_a_network_that_is_trained_once_has_two_metrics():
    curve, tasks = zero_shot_case()
    summary = metrics.summarise(curve, tasks, every=1, trains_once=True)
    assert summary["ACC"] == pytest.approx(0.7)
    numbers = {"ACC", "ACC_pooled", "switches", "tasks_learned", "every"}
    assert {name for name, value in summary.items() if value is not None} == numbers | {"undefined"}
    assert set(summary["undefined"].values()) == {"the network is trained once, on all tasks together"}


def test_learning_at_task_ends_leaves_no_meaning_to_learning_within_them():
    _, curve, tasks = consolidated_case()
    usual = metrics.summarise(curve, tasks, every=1)
    at_ends = metrics.summarise(curve, tasks, every=1, learns_at_task_end=True)
    without = {"LCA", "LCA_10", "WP10", "WP100", "recovery_iterations", "gap_area"}
    assert at_ends["undefined"].keys() - usual["undefined"].keys() == without - {"WP100", "LCA_10"}
    assert {at_ends["undefined"][name] for name in without} == {
        "the method learns nothing of a task before the task is over"
    }
    for name, value in usual.items():
        if name not in (*without, "undefined", "switches_recovered"):
            assert at_ends[name] == value, name
    assert at_ends["switches_recovered"] is None


def test_a_window_longer_than_every_task_says_nothing_of_its_own():
    """Ten evaluations of a task: the largest drop within 100 is that within 10. With eleven it may be another."""
    for length, defined in ((10, False), (11, True)):
        curve = table([[0.9] * (length - 1) + [0.5]], starts=[1], length=length)
        summary = metrics.summarise(curve, curve[curve.iteration == length], every=1)
        assert (summary["WF100"] is not None) == (summary["WP100"] is not None) == defined
        assert summary["WF10"] == pytest.approx(0.4)
        if not defined:
            assert "more than 10 evaluations" in summary["undefined"]["WF100"]


def test_every_undefined_metric_has_its_reason():
    def reasons(curve, tasks, adaptive=False):
        return metrics.summarise(curve, tasks, every=1, adaptive=adaptive)["undefined"]

    one = table([[0.5] * 20], starts=[1], length=20)
    after_one = reasons(one, one[one.iteration == 20], adaptive=True)
    assert after_one.pop("LA_slope") == "a slope takes three tasks"
    assert after_one.pop("LCA_10").startswith("it takes the accuracy on every task before it is learned")
    assert set(after_one.values()) == {"no task is followed by another"}
    assert {"FORG", "BWT", "FWT", "min_ACC", "gap_depth", "min_ACC_unresolved"} <= after_one.keys()
    lost = table([[0.9] * 12 + [0.0] * 12, [0.5] * 12], starts=[1, 13], length=24)
    after_two = reasons(lost, lost[lost.iteration.isin([12, 24])])
    assert after_two["recovery_iterations"] == "what is lost at a switch stays lost"
    assert after_two["FWT"].startswith("outputs grow")
    assert after_two.keys() == {"recovery_iterations", "FWT", "LA_slope", "LCA_10"}
    broken_off = reasons(one, one[:0])
    assert broken_off["ACC"] == broken_off["FWT"] == "no task was learned to its end"
    assert reasons(one[:0], one[:0])["min_ACC"] == "nothing was evaluated"


def test_window_that_a_shortcut_gets_wrong():
    """[.5, .2, .9] rises by .7; the reference implementation's pruning reports .4."""
    assert metrics.windowed_plasticity([np.array([0.5, 0.2, 0.9])], 10) == pytest.approx(0.7)


@pytest.mark.parametrize(
    ("matrix", "untrained", "expected"),
    [
        (
            [[0.9]],
            None,
            {"ACC": 0.9, "FORG": None, "forgetting_max": None, "BWT": None, "FWT": None, "average_incremental_macro": 0.9,
             "LA": 0.9, "LA_slope": None},
        ),
        (
            [[0.9], [0.5, 0.8]],
            None,
            {"ACC": 0.65, "FORG": 0.4, "forgetting_max": 0.4, "BWT": -0.4, "FWT": None, "average_incremental_macro": 0.775,
             "LA": 0.85, "LA_slope": None},
        ),
        (
            # task 1: .8 → .9 → .6, task 2: .7 → .5; before learning: .3 on task 2, .2 on task 3; at initialisation: .1
            [[0.8, 0.3, 0.1], [0.9, 0.7, 0.2], [0.6, 0.5, 0.4]],
            [0.1, 0.1, 0.1],
            {"ACC": 0.5, "FORG": 0.2, "forgetting_max": 0.25, "BWT": -0.2, "FWT": 0.15, "average_incremental_macro": 2.1 / 3,
             "LA": 1.9 / 3, "LA_slope": -0.3},
        ),
    ],
)  # fmt: skip
def test_matrices_worked_by_hand(matrix, untrained, expected):
    """One, two and three tasks; the last task never enters forgetting, and the denominators are k − 1."""
    tasks = task_table(matrix, untrained)
    curve = tasks[(tasks.task_learning >= 0) & (tasks.task_eval <= tasks.task_learning)]
    summary = metrics.summarise(curve, tasks, every=1)
    for name, value in expected.items():
        assert summary[name] == (None if value is None else pytest.approx(value)), name


def test_a_large_first_task_weighs_more_where_samples_are_pooled(small_trainer):
    """Six classes, then two, then two, of which only the last are kept: their mean is a third, their share a fifth."""
    trainer = small_trainer("scenario.base=6", "scenario.increment=2", "strategy=finetune", "trainer.lr=0.1",
                            "trainer.max_steps_per_task=80", "evaluator.every=0")  # fmt: skip
    trainer.fit()
    summary, final = metrics.summarise(trainer.curve, trainer.tasks, every=0), trainer.tasks.tail(3)
    assert summary["ACC"] == pytest.approx((final.correct / final.n).mean())
    assert summary["ACC_pooled"] == pytest.approx(final.correct.sum() / final.n.sum())
    assert summary["ACC"] - summary["ACC_pooled"] > 0.1
    assert summary["average_incremental_macro"] - summary["average_incremental_pooled"] > 0.1


def test_one_task_has_no_worst_case_but_an_accuracy():
    curve = table([[0.2, 0.6, 0.9]], starts=[1], length=3)
    summary = metrics.summarise(curve, curve[curve.iteration == 3], every=1)
    assert summary["min_ACC"] is summary["recovery_iterations"] is summary["gap_area"] is None
    assert summary["WC_ACC"] == pytest.approx(0.9)


def test_nothing_measured_is_nothing_claimed():
    empty = pd.DataFrame(columns=COLUMNS)
    summary = metrics.summarise(empty, empty, every=1)
    counts = {"every": 1, "switches": 0, "switches_recovered": 0, "tasks_learned": 0}
    undefined = summary.pop("undefined")
    assert {name: value for name, value in summary.items() if value is not None} == counts
    assert undefined.keys() == {name for name, value in summary.items() if value is None} - {"smallest_subset"}
    json.dumps(summary, allow_nan=False)


def test_recovery_depth_and_area_of_a_drawn_gap():
    """Task 1 stands at .9, falls to .4 and is back at its plateau of .8 four iterations after the switch."""
    curve = table(
        [[0.9] * 10 + [0.4, 0.5, 0.6, 0.8, 0.8, 0.8, 0.8, 0.8, 0.8, 0.8], [0.5] * 10], starts=[1, 11], length=20
    )
    assert metrics.gap_depth(curve) == pytest.approx(0.5)
    assert metrics.recovery_iterations(curve) == 4
    assert metrics.gap_area(curve) == pytest.approx(0.4 + 0.3 + 0.2)


def test_what_never_comes_back_has_no_recovery_time():
    gone = table([[0.9] * 4 + [0.0] * 4, [0.5] * 4], starts=[1, 5], length=8)
    kept = table([[0.9] * 4 + [0.9] * 4, [0.5] * 4], starts=[1, 5], length=8)
    assert math.isnan(metrics.recovery_iterations(gone))
    assert metrics.recovery_iterations(kept) == 0


def test_gaps_are_those_of_the_next_task_only():
    """Three tasks; what happens to task 1 while task 3 is learned is not part of its gap."""
    curve = table([[0.9, 0.9, 0.6, 0.9, 0.0, 0.0], [0.8, 0.8, 0.7, 0.8], [0.5, 0.5]], starts=[1, 3, 5], length=6)
    assert metrics.gap_depth(curve) == pytest.approx((0.3 + 0.1) / 2)


def test_a_few_samples_that_come_and_go_are_no_recovery():
    """Task 1 is forgotten but for one sample in a thousand; a plateau of .1 % is not something to have recovered to."""
    curve = table([[0.9] * 4 + [0.0, 0.001] * 10, [0.5] * 20], starts=[1, 5], length=24)
    summary = metrics.summarise(curve, curve, every=1)
    assert summary["recovery_iterations"] is None
    assert (summary["switches"], summary["switches_recovered"]) == (1, 0)


def test_recovery_is_averaged_over_the_switches_that_have_one():
    """Task 1 is lost for good; task 2 is back after two iterations."""
    lost, back = [0.8] * 2 + [0.0] * 8, [0.8] * 4 + [0.4, 0.8, 0.8, 0.8]
    summary = metrics.summarise(curve := table([lost, back, [0.8] * 4], [1, 3, 7], length=10), curve, every=1)
    assert summary["recovery_iterations"] == 2
    assert (summary["switches"], summary["switches_recovered"]) == (2, 1)


def test_learning_curve_starts_after_the_first_step():
    """The untrained network was evaluated on the first task alone; counting it would treat the tasks differently."""
    curve = table([[0.0, 0.5, 0.7], [0.5, 0.7]], starts=[0, 3], length=4).query("task_learning == task_eval")
    assert metrics.learning_curve_area(curve) == pytest.approx(0.6)


def test_small_subsets_are_pointed_out():
    curve = table([[0.5] * 4, [0.5] * 2], starts=[1, 3], length=4, n=100)
    summary = metrics.summarise(curve, curve.assign(n=2000), every=1)
    assert "100 samples" in summary["warning"]
    assert "evaluator.subset can be raised" in summary["warning"]
    assert summary["min_ACC_stderr"] == pytest.approx(math.sqrt(0.25 / 100))
    assert "all there are" in metrics.summarise(curve, curve, every=1)["warning"]
    assert "warning" not in metrics.summarise(GOLDEN, GOLDEN, every=1)


def test_standard_error_of_a_mean_of_minima():
    """Minima .5 of 100 samples and .2 of 400: √(.25/100 + .16/400) / 2."""
    small = table([[0.9, 0.5, 0.6]], [1], length=3, n=100).assign(task_learning=[0, 1, 2])
    large = table([[0.9, 0.2]], [2], length=3, n=400).assign(task_eval=1, task_learning=[1, 2])
    minimum, stderr = metrics.minimum_accuracy(pd.concat([small, large]))
    assert minimum == pytest.approx(0.35)
    assert stderr == pytest.approx(math.sqrt(0.25 / 100 + 0.16 / 400) / 2)


def test_a_run_that_diverged_says_how_many_tasks_its_accuracy_covers():
    """It broke off while the second of its tasks was learned: there are full test sets of the first only."""
    summary = metrics.summarise(GOLDEN[GOLDEN.iteration < 8], GOLDEN[GOLDEN.iteration == 4], every=1)
    assert summary["tasks_learned"] == 1
    assert summary["ACC"] == pytest.approx(0.9)
    assert summary["FORG"] is None


# ---- curves recorded adaptively --------------------------------------------------------------------------------------------


def test_gaps_are_filled_between_evaluations_of_the_same_task():
    """Evaluated at iterations 1, 3 and 4 of the first task and 5, 6, 9 of the second; nothing is drawn across the switch."""
    curve = table([[0.1, 0.0, 0.5, 0.9, 0.6, 0.2, 0.0, 0.0, 0.8], [0.0, 0.3, 0.0, 0.0, 0.9]], starts=[1, 5], length=9)
    curve["loss"] = curve.correct / 10
    sparse = curve[curve.iteration.isin([1, 3, 4, 5, 6, 9])]
    full = metrics.filled(sparse.sample(frac=1, random_state=0))
    expected = [[0.1, 0.3, 0.5, 0.9, 0.6, 0.2, 0.4, 0.6, 0.8], [0.0, 0.3, 0.5, 0.7, 0.9]]
    for task, accuracy in enumerate(expected):
        rows = full[full.task_eval == task]
        assert rows.iteration.tolist() == list(range(10 - len(accuracy), 10))
        assert rows.task_learning.tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 1][-len(accuracy) :]
        np.testing.assert_allclose(rows.correct / rows.n, accuracy)
        np.testing.assert_allclose(rows.loss, 100 * np.array(accuracy))
    summary = metrics.summarise(sparse, curve, every=1, adaptive=True)
    assert summary["evaluations"] == 6
    assert summary["AAA"] == pytest.approx((0.1 + 0.3 + 0.5 + 0.9 + 0.3 + 0.25 + 0.45 + 0.65 + 0.85) / 9)
    assert summary["min_ACC"] == pytest.approx(0.2)
    assert summary["gap_depth"] == pytest.approx(0.7)
    assert "AAA" in summary["interpolated"]
    assert {"min_ACC", "WC_ACC", "gap_depth", "ACC"}.isdisjoint(summary["interpolated"])


def test_a_minimum_between_the_evaluations_is_warned_of():
    """The curve bends at its lowest evaluation and nobody looked beside it; evaluated densely it hides nothing."""
    fall = [*np.linspace(0.9, 0.5, 41), *np.linspace(0.51, 0.9, 39)]
    curve = table([[0.9] * 10 + fall, [0.5] * 80], starts=[1, 11], length=90)
    sparse = curve[(curve.iteration < 12) | (curve.iteration % 8 == 3)]
    summary = metrics.summarise(sparse, curve, every=1, adaptive=True)
    assert 0.002 < summary["min_ACC_unresolved"] < 0.2
    assert summary["min_ACC_resolved"] is False
    assert "evaluate every iteration" in summary["warning"]
    dense = metrics.summarise(curve, curve, every=1, adaptive=True)
    assert dense["min_ACC_unresolved"] == 0
    assert dense["min_ACC_resolved"] is True
    assert "warning" not in dense


@pytest.mark.parametrize("first_task", [10, 1000])
def test_what_nobody_looked_at_is_not_resolved(first_task):
    """A curve that shows nothing at steps 1, 4, 16, 64 and 100 may have fallen between them, the sooner after the switch the
    likelier; how long the stream was before does not matter."""
    length = first_task + 100
    curve = table([[0.9] * length, [0.5] * 100], starts=[1, first_task + 1], length=length)
    step = curve.iteration - first_task

    def stated(steps: list[int]) -> float:
        return metrics.unresolved_minimum(curve[(step <= 0) | step.isin(steps)])

    assert stated([1, 4, 16, 64, 100]) > 0.1
    # P(above m) = 1 − exp(−2 (0.9 − m)² / v), v = (s · 36/100)², and the flat switch has halved s²
    alone = stated([*range(1, 65), 100])
    deviation = math.sqrt(SUSPECTED**2 / 2) * 36 / 100
    assert alone == pytest.approx(deviation * math.sqrt(-math.log(1 - CONFIDENCE) / 2), rel=1e-6)
    assert stated(list(range(1, 101))) == 0


def test_the_bound_covers_every_switch_and_the_state_after_the_hooks():
    """A gap at the second switch is as open as one at the first; the lowest level may be that after the hooks."""
    traces = [[0.9] * 40, [0.9] * 25, [0.5] * 10]
    curve = table(traces, starts=[1, 16, 31], length=40).assign(consolidated=False)
    gap = curve[~curve.iteration.between(32, 39)]
    assert metrics.unresolved_minimum(curve) == 0
    assert metrics.unresolved_minimum(gap) > 0.01
    after = curve[curve.iteration == 40].assign(consolidated=True)
    assert metrics.unresolved_minimum(pd.concat([gap, after])) == metrics.unresolved_minimum(gap)
    lower = after.assign(correct=100)
    assert metrics.unresolved_minimum(pd.concat([gap, lower])) == 0  # 10 % is far below what the gap may hide


def test_nothing_recorded_adaptively_is_nothing_claimed():
    empty = pd.DataFrame(columns=COLUMNS)
    summary = metrics.summarise(empty, empty, every=1, adaptive=True)
    assert summary["evaluations"] == 0
    assert summary["min_ACC"] is summary["AAA"] is summary["min_ACC_unresolved"] is None
    assert summary["min_ACC_resolved"] is True
    json.dumps(summary, allow_nan=False)


# ---- brute force ----------------------------------------------------------------------------------------------------------


@st.composite
def random_curves(draw, longest_period: int = 3) -> pd.DataFrame:
    """A random stream: up to four tasks of up to 25 evaluations, different n per task, rows shuffled.

    Some have evaluations after the hooks at task ends, and some of the others no column that says so.
    """
    n_tasks = draw(st.integers(1, 4))
    lengths = [draw(st.integers(1, draw(st.sampled_from([8, 25])))) for _ in range(n_tasks)]
    period = draw(st.integers(1, longest_period))
    sizes = [draw(st.sampled_from([5, 10, 20])) for _ in range(n_tasks)]
    rows, iteration = [], 0
    if draw(st.booleans()):
        rows.append((0, 0, 0, sizes[0], draw(st.integers(0, sizes[0])), 0.0, False))
    consolidates = draw(st.booleans())
    for learning, length in enumerate(lengths):
        for _ in range(length):
            iteration += period
            rows += [
                (learning, iteration, i, sizes[i], draw(st.integers(0, sizes[i])), 0.0, False)
                for i in range(learning + 1)
            ]
        if consolidates:
            rows += [
                (learning, iteration, i, sizes[i], draw(st.integers(0, sizes[i])), 0.0, True)
                for i in range(learning + 1)
            ]
    curve = pd.DataFrame(draw(st.permutations(rows)), columns=CURVE_COLUMNS)
    return curve if consolidates or draw(st.booleans()) else curve[COLUMNS]


Moment = tuple[int, bool]
"""An iteration, and whether after the hooks at a task's end."""


def accuracies(curve: pd.DataFrame) -> dict[tuple[int, Moment], float]:
    return {(row.task_eval, moment(row)): row.correct / row.n for row in curve.itertuples()}


def moment(row) -> Moment:
    return row.iteration, getattr(row, "consolidated", False)


def slow_recovery(trace: list[tuple[int, float]], plateau: float, before: float) -> float:
    """The first time from which on accuracy is always at 95 % of the plateau, from the definition."""
    lowest = min(accuracy for _, accuracy in trace)
    good = [all(a >= 0.95 * plateau for _, a in trace[start:]) for start in range(len(trace))]
    if good[0]:
        return 0 if plateau >= 0.95 * before else math.nan
    if plateau - lowest < 0.05 * (before - lowest) or not any(good):
        return math.nan
    return trace[good.index(True)][0]


@settings(deadline=None, max_examples=30)
@given(random_curves())
def test_equal_to_their_definitions(curve):
    A = accuracies(curve)
    learning = {moment(row): row.task_learning for row in curve.itertuples()}
    times, k = sorted(learning), max(learning.values()) + 1
    end = {task: max(t for t in times if learning[t] == task) for task in range(k)}
    last = [t for t in times if (t[0], True) not in times or t[1]]  # of every iteration
    traces = metrics.accuracy_traces(curve)

    if k > 1:
        minimum = np.mean([min(A[i, t] for t in times if t > end[i]) for i in range(k - 1)])
        assert metrics.minimum_accuracy(curve)[0] == pytest.approx(minimum)
        expected = A[k - 1, times[-1]] / k + (1 - 1 / k) * minimum
        assert metrics.worst_case_accuracy(curve) == pytest.approx(expected)
        depth = [A[i, end[i]] - min(A[i, t] for t in times if learning[t] == i + 1) for i in range(k - 1)]
        assert metrics.gap_depth(curve) == pytest.approx(np.mean(depth))
        area, recovery = [], []
        for i in range(k - 1):
            during = [t for t in last if learning[t] == i + 1]
            last_tenth = during[-math.ceil(len(during) / 10) :]
            plateau = sum(A[i, t] for t in last_tenth) / len(last_tenth)
            previous = [end[i], *during[:-1]]
            area.append(sum(max(0, plateau - A[i, t]) * (t[0] - p[0]) for t, p in zip(during, previous, strict=True)))
            recovery.append(slow_recovery([(t[0] - end[i][0], A[i, t]) for t in during], plateau, A[i, end[i]]))
        assert metrics.gap_area(curve) == pytest.approx(np.mean(area))
        np.testing.assert_array_equal(metrics.recovery_per_switch(curve), recovery)

    seen = [np.mean([A[i, t] for i in range(learning[t] + 1)]) for t in last]
    assert metrics.average_anytime_accuracy(curve) == pytest.approx(np.mean(seen))

    first = [[A[i, t] for t in last if learning[t] == i and t[0] > 0][: metrics.LCA_LENGTH] for i in range(k)]
    assert metrics.learning_curve_area(curve) == pytest.approx(np.mean([np.mean(a) for a in first]))

    for window in (2, 3, 10):
        drops, rises = [], []
        for i in range(k):
            a = [A[i, t] for t in last if (i, t) in A]
            pairs = [(a[m], a[n]) for n in range(len(a)) for m in range(n) if n - m < window]
            drops.append(max([0.0, *(m - n for m, n in pairs)]))
            rises.append(max([0.0, *(n - m for m, n in pairs)]))
        assert metrics.windowed_forgetting(traces, window) == pytest.approx(np.mean(drops))
        assert metrics.windowed_plasticity(traces, window) == pytest.approx(np.mean(rises))


@settings(deadline=None, max_examples=30)
@given(random_curves(longest_period=1))
def test_a_full_curve_is_filled_already(curve):
    ordered = metrics.in_order(curve).reset_index(drop=True)
    pd.testing.assert_frame_equal(metrics.filled(curve), ordered, check_dtype=False)
    plain, adaptive = (metrics.summarise(curve, curve, every=1, adaptive=adaptive) for adaptive in (False, True))
    assert adaptive.pop("undefined").items() - plain.pop("undefined").items() <= {
        ("min_ACC_unresolved", "no task is followed by another")
    }
    for name, value in plain.items():
        assert adaptive[name] == (pytest.approx(value, rel=1e-12) if isinstance(value, float) else value), name
    assert adaptive.keys() - plain.keys() == {"evaluations", "interpolated", "min_ACC_unresolved", "min_ACC_resolved"}


@settings(deadline=None, max_examples=30)
@given(random_curves(longest_period=1), st.integers(0, 2**32 - 1))
def test_filling_adds_rows_and_keeps_the_minima(curve, seed):
    curve = metrics.in_order(curve)
    by_task = curve.groupby("task_learning").iteration
    ends = (curve.iteration == by_task.transform("min")) | (curve.iteration == by_task.transform("max"))
    some = np.random.default_rng(seed).random(curve.iteration.max() + 1) < 0.3
    sparse = curve[ends | some[curve.iteration]]
    full = metrics.filled(sparse)
    key = ["task_learning", "iteration", "task_eval", "consolidated"]
    assert set(full[key].itertuples(index=False)) == set(curve[key].itertuples(index=False))
    both = full.merge(sparse, on=key, suffixes=("", "_evaluated"))
    assert len(both) == len(sparse)
    for column in ("n", "correct", "loss"):
        np.testing.assert_array_equal(both[column], both[f"{column}_evaluated"])
    np.testing.assert_array_equal(metrics.minimum_accuracy(full)[0], metrics.minimum_accuracy(sparse)[0])
    pd.testing.assert_frame_equal(metrics.filled(full), full)


@settings(deadline=None, max_examples=30)
@given(
    st.integers(1, 5).flatmap(
        lambda k: st.lists(st.lists(st.integers(0, 20), min_size=k, max_size=k), min_size=k, max_size=k)
    )
)
def test_matrix_metrics_equal_their_definitions(counts):
    R, k = np.array(counts) / 20, len(counts)
    sizes = [20 * (i % 3 + 1) for i in range(k)]  # the tasks differ in size, and R does not know
    tasks = pd.DataFrame(
        [(j, j, i, sizes[i], i % 3 * counts[j][i] + counts[j][i], 0.0) for j in range(k) for i in range(k)],
        columns=COLUMNS,
    ).sample(frac=1, random_state=0)
    matrix = metrics.accuracy_matrix(tasks)
    assert metrics.final_accuracy(matrix) == pytest.approx(sum(R[k - 1, i] for i in range(k)) / k)
    incremental = sum(sum(R[j, i] for i in range(j + 1)) / (j + 1) for j in range(k)) / k
    assert metrics.average_incremental(matrix) == pytest.approx(incremental)
    shares = [sum(R[j, i] * sizes[i] for i in range(j + 1)) / sum(sizes[: j + 1]) for j in range(k)]
    assert metrics.pooled_accuracies(tasks) == pytest.approx(shares)
    summary = metrics.summarise(tasks[:0], tasks, every=1)
    assert summary["ACC_pooled"] == pytest.approx(shares[-1])
    assert summary["average_incremental_pooled"] == pytest.approx(sum(shares) / k)
    assert summary["average_incremental_macro"] == pytest.approx(incremental)
    assert metrics.learning_accuracy(matrix) == pytest.approx(sum(R[i, i] for i in range(k)) / k)
    if k > 2:
        slope = np.polyfit(range(2, k + 1), [R[i, i] for i in range(1, k)], 1)[0]
        assert metrics.learning_accuracy_slope(matrix) == pytest.approx(slope, abs=1e-12)
    if k > 1:
        assert metrics.forgetting(matrix) == pytest.approx(sum(R[i, i] - R[k - 1, i] for i in range(k - 1)) / (k - 1))
        best = [max(R[j, i] for j in range(i, k - 1)) - R[k - 1, i] for i in range(k - 1)]
        assert metrics.forgetting_max(matrix) == pytest.approx(sum(best) / (k - 1))
        assert metrics.backward_transfer(matrix) == -metrics.forgetting(matrix)
        b = np.arange(k) / 10
        forward = sum(R[i - 1, i] - b[i] for i in range(1, k)) / (k - 1)
        assert metrics.forward_transfer(matrix, b) == pytest.approx(forward)


@pytest.mark.parametrize(("every", "strategy"), [(0, "finetune"), (3, "ewc")])
def test_coarser_curve_is_the_one_a_coarser_run_records(every, strategy, small_trainer):
    options = [f"strategy={strategy}", "trainer.max_steps_per_task=7"]
    dense, sparse = small_trainer(*options), small_trainer(*options, f"evaluator.every={every}", checkpoint="sparse")
    dense.fit()
    sparse.fit()
    pd.testing.assert_frame_equal(metrics.coarsened(dense.curve, every).reset_index(drop=True), sparse.curve)


def test_large_curves_are_summarised_quickly():
    import time

    iteration = np.arange(1, 20_001)
    learning = (iteration - 1) // 1000
    curve = pd.concat(
        pd.DataFrame({"task_learning": learning[learning >= i], "iteration": iteration[learning >= i], "task_eval": i,
                      "n": 1000, "correct": 500, "loss": 0.0}) for i in range(20)
    )  # fmt: skip
    started = time.process_time()
    metrics.summarise(curve, curve[curve.iteration % 1000 == 0], every=1)
    assert time.process_time() - started < 2
