"""The picture of a run."""

import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.image import imread

from clbench.evaluation.evaluator import COLUMNS
from clbench.reports.curve_figure import draw_curves

PNG = b"\x89PNG"


def curve_of(n_tasks: int, per_task: int = 10) -> pd.DataFrame:
    rows = [
        (t // per_task, t, i, 100, (7 * t + i) % 100, 0.0)
        for t in range(per_task * n_tasks)
        for i in range(t // per_task + 1)
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


@pytest.mark.parametrize("n_tasks", [1, 5, 20])
def test_figure_is_drawn_for_any_number_of_tasks(n_tasks, tmp_path):
    curve = curve_of(n_tasks)
    draw_curves(
        curve, curve[curve.iteration % 10 == 9], tmp_path / "curve.png", "title", [str(i) for i in range(n_tasks)]
    )
    assert (tmp_path / "curve.png").read_bytes().startswith(PNG)
    assert [path.name for path in tmp_path.iterdir()] == ["curve.png"]


def test_figure_of_a_run_that_diverged_at_once(tmp_path):
    empty = pd.DataFrame(columns=COLUMNS).astype(float)
    draw_curves(empty, empty, Path(tmp_path / "curve.png"), "nothing", ["a", "b"])
    assert (tmp_path / "curve.png").exists()


def test_rows_in_any_order_give_the_same_picture(tmp_path):
    curve = curve_of(3)
    ends = curve[curve.iteration % 10 == 9]
    shuffled = pd.concat([curve.sample(frac=1, random_state=0)[::2], curve.sample(frac=1, random_state=0)[1::2]])
    for name, table in (("a", curve), ("b", shuffled.assign(row=0).set_index("row"))):
        draw_curves(table, ends, tmp_path / f"{name}.png", "title", ["x", "y", "z"])
    np.testing.assert_array_equal(imread(tmp_path / "a.png"), imread(tmp_path / "b.png"))


def test_dense_curve_of_twenty_tasks_is_drawn_in_seconds(tmp_path):
    started = time.process_time()  # whatever else the machine does
    draw_curves(curve_of(20, 500), curve_of(20, 1), tmp_path / "curve.png", "title", [str(i) for i in range(20)])
    assert time.process_time() - started < 10
