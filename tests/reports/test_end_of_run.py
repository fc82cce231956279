"""What is shown at the end of a run."""

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from clbench.config import compose
from clbench.evaluation.evaluator import COLUMNS
from clbench.reports.curve_figure import draw_curves
from clbench.reports.end_of_run import accuracy_matrix_table, end_of_run
from clbench.run import run

PNG = b"\x89PNG"


def shown(renderable, width: int = 100) -> str:
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115
    console.print(renderable)
    return console.export_text()


def test_tables_of_a_real_run(tmp_path):
    options = ["strategy=er", "strategy.memory_size=20", "trainer.max_steps_per_task=3", "progress=false"]
    summary = run(compose(options), tmp_path)
    text = shown(end_of_run(summary, pd.read_parquet(tmp_path / "tasks.parquet"), tmp_path))
    for word in ("ACC", "FORG", "BWT", "min-ACC", "WC-ACC", "WF10", "WF100", "WP10", "WP100", "AAA", "recovery time",
                 "peak memory", "time", "run folder"):  # fmt: skip
        assert word in text
    assert f"{100 * summary['metrics']['ACC']:.1f} %" in text
    assert str(tmp_path) in text.replace("\n", "")
    assert (tmp_path / "curve.png").read_bytes().startswith(PNG)


def test_matrix_of_twenty_tasks_fits_a_terminal():
    rows = [(j, j, i, 100, 100 - i, 0.0) for j in range(20) for i in range(j + 1)]
    text = shown(accuracy_matrix_table(pd.DataFrame(rows, columns=COLUMNS)))
    assert "100" in text
    assert "…" not in text
    assert "81" in text


@pytest.mark.parametrize("n_tasks", [1, 5, 20])
def test_figure_is_drawn_for_any_number_of_tasks(n_tasks, tmp_path):
    rows = [(t // 10, t, i, 100, (7 * t + i) % 100, 0.0) for t in range(10 * n_tasks) for i in range(t // 10 + 1)]
    curve = pd.DataFrame(rows, columns=COLUMNS)
    draw_curves(
        curve, curve[curve.iteration % 10 == 9], tmp_path / "curve.png", "title", [str(i) for i in range(n_tasks)]
    )
    assert (tmp_path / "curve.png").read_bytes().startswith(PNG)
    assert [path.name for path in tmp_path.iterdir()] == ["curve.png"]


def test_figure_of_a_run_that_diverged_at_once(tmp_path):
    empty = pd.DataFrame(columns=COLUMNS).astype(float)
    draw_curves(empty, empty, Path(tmp_path / "curve.png"), "nothing", ["a", "b"])
    assert (tmp_path / "curve.png").exists()


def test_reports_import_no_torch():
    code = "import sys, clbench.reports.curve_figure, clbench.reports.end_of_run; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
