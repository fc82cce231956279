"""What is shown at the end of a run."""

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from clbench.compose import compose
from clbench.evaluation.evaluator import COLUMNS
from clbench.evaluation.metrics import summarise
from clbench.reports.end_of_run import accuracy_matrix_table, end_of_run, end_of_sweep, line_of_run
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


def some_run(n_tasks: int, status: str = "finished", reason: str | None = None) -> tuple[dict, pd.DataFrame]:
    """A summary and a task table in which task i is at (100 − i) % from its end on."""
    rows = [(j, j, i, 100, 100 - i, 0.0) for j in range(n_tasks) for i in range(j + 1)]
    tasks = pd.DataFrame(rows, columns=COLUMNS)
    costs = {"seconds": 2.0, "evaluation_seconds": 1.0, "peak_memory_bytes": 2**20, "strategy_bytes": 0}
    names = {"strategy": "er", "scenario": "stream", "seed": 3, "split": "validation"}
    summary = {"status": status, "reason": reason, **names, "metrics": summarise(tasks, tasks, every=7), "costs": costs}
    return summary, tasks


@pytest.mark.parametrize("width", [80, 100])
@pytest.mark.parametrize("n_tasks", [10, 11, 20])
def test_matrix_of_many_tasks_fits_a_terminal(n_tasks, width):
    lines = shown(accuracy_matrix_table(some_run(n_tasks)[1]), width).splitlines()
    assert lines[0].split() == [str(task) for task in range(1, n_tasks + 1)]
    digits = 1 if n_tasks <= 10 else 0
    assert lines[-1].split() == [str(n_tasks), *(f"{100 - task:.{digits}f}" for task in range(n_tasks))]


def test_matrix_of_more_tasks_shows_some_of_them_and_the_last():
    lines = shown(accuracy_matrix_table(some_run(50)[1]), 80).splitlines()
    assert lines[0].split() == [str(task) for task in range(2, 51, 3)]
    assert [line.split()[0] for line in lines[1:]] == lines[0].split()
    assert lines[-1].split()[-1] == "51"


def test_accuracy_before_learning_is_shown_where_it_was_measured():
    rows = [(-1, 0, 0, 100, 10, 0.0), (-1, 0, 1, 100, 11, 0.0), (0, 5, 0, 100, 90, 0.0), (0, 5, 1, 100, 12, 0.0)]
    lines = shown(accuracy_matrix_table(pd.DataFrame(rows, columns=COLUMNS))).splitlines()
    assert [line.split() for line in lines] == [["1", "2"], ["start", "10.0", "11.0"], ["1", "90.0", "12.0"]]


def test_every_number_says_what_it_was_measured_on():
    text = shown(end_of_run(*some_run(3), Path("somewhere")), width=80)
    row = {line.split("│")[1].strip(): line for line in text.splitlines() if line.count("│") == 4}
    assert "99.0 %" in row["ACC"]
    assert "full validation sets" in row["ACC"]
    assert "n=100, every=7" in row["min-ACC"]
    assert "– │" in row["FWT"]
    assert "2 of 2 switches" in row["recovery time (ours)"]
    assert "somewhere" in text


def test_unresolved_minima_are_upper_limits():
    summary, tasks = some_run(3)
    summary["metrics"] |= {"min_ACC": 0.817, "WC_ACC": 0.843, "min_ACC_stderr": 0.022, "min_ACC_resolved": False}
    text = shown(end_of_run(summary, tasks, Path("somewhere")), width=80)
    row = {line.split("│")[1].strip(): line.split("│")[2].strip() for line in text.splitlines() if line.count("│") == 4}
    assert (row["min-ACC"], row["WC-ACC"]) == ("≤ 81.7 %", "≤ 84.3 %")
    assert "≤ 81.7 %" in shown(end_of_sweep([summary], [Path("a")]))
    summary["metrics"]["min_ACC_resolved"] = True
    text = shown(end_of_run(summary, tasks, Path("somewhere")), width=80)
    assert "≤" not in text
    assert "81.7 % ± 2.2" in text


@pytest.mark.parametrize(
    ("peak", "whose", "text"), [(None, None, "– │ not known for this run"), (2**20, "fleet", "1 MiB │ all")]
)
def test_peak_memory_says_whose_it_is(peak, whose, text):
    summary, tasks = some_run(2)
    summary["costs"] |= {"peak_memory_bytes": peak, "peak_memory_of": whose}
    assert text in shown(end_of_run(summary, tasks, Path("somewhere")), width=80)


def test_a_note_on_the_stream_is_shown():
    summary, tasks = some_run(2)
    text = shown(
        end_of_run(summary | {"scenario_note": "not the frozen stream x/v1: increment=5"}, tasks, Path("somewhere"))
    )
    assert "stream: not the frozen stream x/v1: increment=5" in text.splitlines()


def test_diverged_run_says_so():
    text = shown(end_of_run(*some_run(1, "diverged", "the loss became nan"), Path("somewhere")))
    assert "diverged (tasks learned: 1): the loss became nan" in text


def test_a_diverged_run_of_a_sweep_shows_no_accuracy_of_the_tasks_before():
    summary, _ = some_run(1, "diverged", "the loss became nan")
    line = shown(line_of_run(summary, Path("somewhere")))
    table = shown(end_of_sweep([summary], [Path("somewhere")]))
    assert "diverged (tasks learned: 1): the loss became nan" in line
    assert "diverged: the loss became nan" in table
    assert "%" not in line + table
    assert shown(line_of_run(some_run(2, "finished", None)[0], Path("somewhere"))).count("%") == 2


def test_run_that_diverged_at_once():
    summary, tasks = some_run(1, "diverged", "the loss became nan")
    empty = tasks[:0]
    summary["metrics"] = summarise(empty, empty, every=1)
    assert "tasks learned: 0" in shown(end_of_run(summary, empty, Path("somewhere")))


def test_reports_import_no_torch():
    code = "import sys, clbench.reports.curve_figure, clbench.reports.end_of_run; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


def test_what_the_method_says_of_itself(tmp_path):
    rows = [
        (0, "dst", "density", "", 0.5), (1, "dst", "density", "", 0.2), (1, "dst", "density", "head.weight", 0.9),
        (1, "dst", "dense_flops_per_sample", "", 123456789.0), (1, "ewc", "reuse", "task 0", 0.7),
    ]  # fmt: skip
    table = pd.DataFrame(rows, columns=["task_learning", "strategy", "quantity", "part", "value"])
    table.to_parquet(tmp_path / "method.parquet")
    summary, tasks = some_run(2)
    text = shown(end_of_run(summary | {"notes": ["dst: [ours]"]}, tasks, tmp_path), width=80)
    row = {line.split("│")[1].strip(): line for line in text.splitlines() if line.count("│") == 4}
    assert "0.2 │ dst, after task 2" in row["density"]
    assert "123456789 │" in row["dense flops per sample"]
    assert "reuse" not in row
    assert "dst: [ours]" in text.splitlines()


def test_run_of_a_method_that_says_nothing(tmp_path):
    summary, tasks = some_run(2)
    text = shown(end_of_run(summary, tasks, tmp_path))
    assert shown(end_of_run(summary | {"notes": []}, tasks, tmp_path)) == text
    assert "after task" not in text


def test_notes_of_a_sweep_are_shown_once():
    summary, _ = some_run(2)
    failed = {"status": "failed", "reason": "why"}
    noted = [summary | {"notes": ["dst: ours", "dst: [a] guess"]}, summary | {"notes": ["dst: ours"]}, summary, failed]
    lines = [line.strip() for line in shown(end_of_sweep(noted, [Path(name) for name in "abcd"])).splitlines()]
    assert lines[-2:] == ["dst: ours", "dst: [a] guess"]
    assert "ours" not in shown(end_of_sweep([summary, failed], [Path("a"), Path("b")]))
