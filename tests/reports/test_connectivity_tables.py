"""What reports show of mode connectivity, against numbers computed by hand."""

import math

import numpy as np
import pandas as pd
import pytest
from made_comparison import METHODS, made_comparison
from made_runs import write_run
from scipy import stats

from clbench.reports import interactive_figures, print_figures
from clbench.reports.comparison import Comparison, compare
from clbench.reports.connectivity_tables import accuracy_lines, along_lines, barrier, barriers
from clbench.reports.figures import figures_of
from clbench.reports.palette import looks
from clbench.reports.text_formats import connectivity_numbers, latex, markdown

LAM = (0.0, 0.5, 1.0)
CURRENT = (2.0, 1.5, 1.0)
"""Mean loss on the current task: without a barrier."""


def recorded(seed: int) -> list[tuple[int, float, int, int, int, float]]:
    """Two lines of three points, with 10 samples a task.

    On the earlier tasks the mean loss in the middle is 0.25 + seed above that of the ends on the first line (task 0 has all of
    it) and on the second (of tasks 0 and 1 one has twice as much, the other none).
    """
    rows = []
    for task in (1, 2):
        for lam, current in zip(LAM, CURRENT, strict=True):
            rise = (0.25 + seed) * (lam == 0.5)
            of_earlier = [1 + rise] if task == 1 else [1 + 2 * rise, 3.0]
            rows += [(task, lam, seen, 10, 5, 10 * loss) for seen, loss in enumerate(of_earlier)]
            rows.append((task, lam, task, 10, round(10 * lam), 10 * current))
    return rows


@pytest.fixture(scope="module")
def comparison(tmp_path_factory) -> Comparison:
    """Two seeds of er with lines, two of ewc without."""
    folder = tmp_path_factory.mktemp("runs")
    for seed in range(2):
        write_run(folder / f"a{seed}", "er", seed, connectivity=recorded(seed))
        write_run(folder / f"b{seed}", "ewc", seed)
    return compare([folder])


def test_barrier_is_the_rise_above_the_line_between_the_ends():
    lam = np.linspace(0, 1, 5)
    assert barrier(lam, 4 - 3 * lam) == 0
    assert barrier(lam, np.array([0, 1, 9, 1, 4.0])) == 7  # above 2, in the middle of 0 and 4
    assert barrier(lam, np.array([2, 0, 0, 0, 2.0])) == 0  # a valley
    assert math.isnan(barrier(lam, np.array([0, np.inf, 9, 1, 4])))


def test_table_of_barriers(comparison):
    [table] = comparison.connectivity_tables
    assert [column.heading for column in table.columns] == [
        "method",
        "barrier on the current task ↓",
        "barrier on the earlier tasks ↓",
    ]
    er, ewc = table.rows
    low, high = stats.ttest_1samp([0.25, 1.25], 0).confidence_interval(0.95)
    assert [cell.text for cell in er] == ["er", "0 ± 0", f"0.750 ± {(high - low) / 2:.3f}"]
    assert [cell.text for cell in ewc] == ["ewc", "–", "–"]
    assert "A and B each by itself" in table.caption
    assert "## Mode connectivity\n\n### stream: mode connectivity" in markdown(comparison, [])
    assert latex(comparison).isascii()
    assert "stream: mode connectivity" in latex(comparison)


def test_a_barrier_is_undefined_where_a_loss_is_infinite():
    rows = [(*row[:5], math.inf if row[:3] == (2, 0.5, 0) else row[5]) for row in recorded(0)]
    lines = along_lines(pd.DataFrame(rows, columns=["task_learning", "lam", "task_eval", "n", "correct", "loss"]))
    found = barriers(lines.assign(folder="run")).loc["run"]
    assert found.current == 0
    assert math.isnan(found.earlier)


def test_numbers_of_every_point(comparison):
    table = connectivity_numbers(comparison).set_index(["method", "task_learning", "tasks", "lam"])
    assert len(table) == 2 * 2 * 3
    middle = table.loc["er", 2, "earlier", 0.5]
    assert (middle.accuracy, middle.loss, middle.runs) == (0.5, pytest.approx(2 + 0.75), 2)
    low, high = stats.ttest_1samp([0.25, 1.25], 0).confidence_interval(0.95)
    assert middle.loss_half_width == pytest.approx((high - low) / 2)
    assert table.loc["er", 1, "current", 1.0].accuracy == 1


def test_without_lines_there_is_nothing(tmp_path):
    write_run(tmp_path / "a", "er", connectivity=[])  # a stream of one task
    comparison = compare([tmp_path])
    assert comparison.connectivity_tables == []
    assert "connectivity" not in markdown(comparison, [])
    assert not any(figure.kind == "connectivity" for figure in figures_of(comparison))


def test_accuracy_on_the_way_is_drawn_for_current_and_earlier_tasks(tmp_path):
    """Mean over tasks 1 to 3 and seeds 0 to 2: 0.2 + 0.4 λ + 0.01 on the current task, and a tenth more for each next method."""
    comparison = made_comparison(scenarios=("one", "two"), connectivity=("er", "ewc"))
    lines = accuracy_lines(comparison.connectivity[comparison.connectivity.scenario == "two"])
    assert list(lines) == ["current task", "earlier tasks"]
    ewc = lines["current task"][lines["current task"].method == "ewc"]
    np.testing.assert_allclose(ewc.x, [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(ewc["mean"], 0.31 + 0.4 * ewc.x)
    np.testing.assert_allclose(ewc[["low", "high"]], [[0.3 + 0.4 * x, 0.32 + 0.4 * x] for x in ewc.x])
    figure = next(figure for figure in figures_of(comparison) if figure.name == "connectivity-two")
    assert figure.section == "connectivity"
    assert "3 seeds" in figure.caption
    printed = print_figures.DRAW[figure.kind](looks=looks(METHODS), **figure.data)
    printed.savefig(tmp_path / "drawn.png")  # lays it out
    assert [axes.get_title(loc="left") for axes in printed.axes] == list(lines)
    [shown] = [line for line in printed.axes[1].lines if line.get_color() == looks(METHODS)["ewc"].colour]
    np.testing.assert_allclose(shown.get_ydata(), 100 * (0.61 - 0.2 * ewc.x))
    [drawn] = interactive_figures.draw(figure, looks(METHODS)).values()
    assert {trace.meta for trace in drawn.data} == {"er", "ewc"}
    [shown] = [t for t in drawn.data if t.meta == "ewc" and t.xaxis == "x2" and t.fill is None]
    np.testing.assert_allclose(shown.y, 100 * (0.61 - 0.2 * ewc.x), rtol=1e-6)
    assert [trace.name for trace in drawn.data if trace.showlegend] == ["er", "ewc"]
