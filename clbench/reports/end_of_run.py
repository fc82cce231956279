"""What is shown when a run ends: the metrics, the accuracy matrix, the run folder."""

import math
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Group
from rich.table import Table
from rich.text import Text

from clbench.evaluation.metrics import POOLED
from clbench.evaluation.spoken import SPOKEN
from clbench.records.summary import Summary

FULL, SUBSET = "all samples, at task ends", "subsets, at every evaluation"

MOST_COLUMNS = 20
"""Tasks that fit into a terminal as an accuracy matrix; of more, evenly spaced ones are shown, the last among them."""

ROWS: list[tuple[str, str, str]] = [
    ("ACC", "ACC", FULL),
    ("ACC_pooled", "ACC (pooled)", FULL),
    ("FORG", "FORG (just learned − final)", FULL),
    ("BWT", "BWT", FULL),
    ("FWT", "FWT", FULL),
    ("average_incremental_macro", "average incremental", FULL),
    ("average_incremental_pooled", "average incremental (pooled)", FULL),
    ("LA", "LA (when just learned)", FULL),
    ("min_ACC", "min-ACC", SUBSET),
    ("WC_ACC", "WC-ACC", SUBSET),
    ("WF10", "WF10", SUBSET),
    ("WF100", "WF100", SUBSET),
    ("WP10", "WP10", SUBSET),
    ("WP100", "WP100", SUBSET),
    ("AAA", "AAA", SUBSET),
    ("AAUC", "AAUC", SUBSET),
    ("exact_ACC", "exact ACC (said by greedy generation)", SUBSET),
    ("valid", "valid answers", SUBSET),
    ("superficial", "superficial forgetting (known, not said)", SUBSET),
    ("essential", "essential forgetting", SUBSET),
]
"""Metric, what it is called in the table, and what it was measured on. All are shown in percent."""


def end_of_run(summary: Summary, tasks: pd.DataFrame, folder: Path) -> Group:
    """The closing display of a run.

    Args:
        summary: content of ``summary.json``.
        tasks: the table on full test sets, see :mod:`clbench.evaluation.metrics`.
        folder: the run folder.
    """
    parts: list[Any] = [metrics_table(summary, _last_measurements(folder))]
    if (tasks.task_learning >= 0).any():
        heading = f"accuracy (%) on each task (column) after each task (row), all {summary['split']} samples"
        parts += [Text(heading), accuracy_matrix_table(tasks)]
    parts += [Text(note, style="yellow") for note in _notes(summary)]
    if summary["metrics"].get("warning"):
        parts.append(Text(summary["metrics"]["warning"], style="yellow"))
    if summary["status"] != "finished":
        status = f"{summary['status']} (tasks learned: {summary['metrics']['tasks_learned']})"
        parts.append(Text(f"{status}: {summary['reason']}", style="bold red"))
    parts.append(Text(f"run folder: {folder}", overflow="fold"))
    if (folder / "curve.png").exists():
        parts.append(Text(f"picture: {folder / 'curve.png'}", overflow="fold"))
    return Group(*parts)


def line_of_run(summary: Summary, folder: Path) -> Text:
    """What is shown when a run of a sweep ends: one line.

    Args:
        summary: content of ``summary.json``.
        folder: the run folder.
    """
    is_finished = summary["status"] == "finished"
    # A diverged run's metrics are of the tasks that it has finished, the first and easiest: they would look like results.
    said = ", ".join(f"{name} {_percent(summary['metrics'][name])}" for name in ("ACC", "FORG"))
    if not is_finished:
        said = f"{summary['status']} (tasks learned: {summary['metrics']['tasks_learned']}): {summary['reason']}"
    line = f"{folder.name}: {summary['strategy']} on {summary['scenario']}, seed {summary['seed']}: {said}"
    return Text(line, style="" if is_finished else "bold red")


def end_of_sweep(summaries: list[Summary], folders: list[Path], options: list[dict[str, str]] | None = None) -> Table:
    """The closing display of runs that were trained together: a line for each.

    Args:
        summaries: contents of ``summary.json``; of a failed run only ``status`` and ``reason``.
        folders: the run folders.
        options: of every run, the options in which they differ beside the seed, by their short names.
    """
    options = options or [{} for _ in summaries]
    table = Table(box=None, header_style="dim")
    for heading, justify in (
        ("run folder", "left"),
        *((name, "right") for name in options[0]),
        ("seed", "right"),
        ("ACC", "right"),
        ("FORG", "right"),
        ("min-ACC", "right"),
    ):
        table.add_column(heading, justify=justify, overflow="fold")  # type: ignore[arg-type]
    table.columns[0].no_wrap = True
    table.add_column("")
    notes = dict.fromkeys(note for summary in summaries for note in _notes(summary))
    if notes:
        table.caption, table.caption_justify = Text("\n".join(notes), style="yellow"), "left"
    here = Path.cwd()
    for summary, folder, own in zip(summaries, folders, options, strict=True):
        cells = [str(summary.get("seed", "")), "", "", ""]
        if summary["status"] == "finished":
            values = [_percent(summary["metrics"][name]) for name in ("ACC", "FORG", "min_ACC")]
            if _is_bound(summary["metrics"], "min_ACC"):
                values[-1] = f"≤ {values[-1]}"
            cells = [str(summary["seed"]), *values]
        status = "" if summary["status"] == "finished" else f"{summary['status']}: {summary['reason']}"
        shown = folder.relative_to(here) if folder.is_relative_to(here) else folder
        table.add_row(str(shown), *own.values(), *cells, Text(status, style="bold red"))
    return table


def metrics_table(summary: Summary, reported: pd.DataFrame) -> Table:
    """Metrics in percent with what they were measured on, recovery time and costs.

    Args:
        summary: content of ``summary.json``.
        reported: what the method says of itself, the columns ``task_learning, strategy, quantity, value``; may be empty.
    """
    metrics, costs = summary["metrics"], summary["costs"]
    table = Table(title=f"{summary['strategy']} on {summary['scenario']}, seed {summary['seed']}", title_justify="left")
    table.add_column("metric")
    table.add_column("value", justify="right")
    table.add_column("measured on", style="dim")
    where = {
        FULL: f"full {summary['split']} sets, task ends",
        SUBSET: f"subsets n={metrics['smallest_subset']}, {_period(metrics)}",
    }
    tasks_weigh_the_same = all(_percent(metrics[mean]) == _percent(metrics[share]) for mean, share in POOLED.items())
    for name, title, measured in ROWS:
        if (name in POOLED.values() and tasks_weigh_the_same) or (name in SPOKEN and name not in metrics):
            continue
        if name in POOLED and not tasks_weigh_the_same:
            title += " (task mean)"
        value = _percent(metrics[name])
        if metrics[name] is not None and _is_bound(metrics, name):
            value = f"≤ {value}"
        elif name == "min_ACC" and metrics["min_ACC_stderr"] is not None:
            value += f" ± {100 * metrics['min_ACC_stderr']:.1f}"
        table.add_row(title, value, where[measured])
    recovery, back = metrics["recovery_iterations"], metrics["switches_recovered"]
    rests_on = "" if back is None else f"{back} of {metrics['switches']} switches"
    table.add_row("recovery time (ours)", "–" if recovery is None else f"{recovery:.0f} iterations", rests_on)
    table.add_section()
    share = costs["evaluation_seconds"] / costs["seconds"]
    table.add_row("time", f"{costs['seconds']:.1f} s", f"of which evaluation {100 * share:.0f} %")
    peak, whose = costs["peak_memory_bytes"], {"run": "the process, this run", "fleet": "all runs trained together"}
    known = whose.get(str(costs.get("peak_memory_of")), "not known for this run")
    table.add_row("peak memory", "–" if peak is None else f"{peak / 2**20:.0f} MiB", known)
    table.add_row("kept beside the model", f"{costs['strategy_bytes'] / 2**20:.2f} MiB", "buffers of the strategy")
    if len(reported):
        table.add_section()
    for row in reported.itertuples():
        where_from = f"{row.strategy}, after task {row.task_learning + 1}"
        table.add_row(row.quantity.replace("_", " "), _number(row.value), where_from)
    return table


def accuracy_matrix_table(tasks: pd.DataFrame) -> Table:
    """Accuracy in percent on each task (columns) after each task (rows), on all samples."""
    accuracy = tasks.assign(accuracy=100 * tasks.correct / tasks.n)
    matrix = accuracy.pivot(index="task_learning", columns="task_eval", values="accuracy")
    step = -(-len(matrix.columns) // MOST_COLUMNS)
    matrix = matrix.loc[
        [learned for learned in matrix.index if learned == -1 or (matrix.index.max() - learned) % step == 0],
        [task for task in matrix.columns if (matrix.columns.max() - task) % step == 0],
    ]
    roomy = len(matrix.columns) <= 10
    table = Table(box=None, padding=(0, 0, 0, 2 if roomy else 1), header_style="dim")
    table.add_column("", justify="right", no_wrap=True, style="dim")
    for task in matrix.columns:
        table.add_column(f"{task + 1:d}", justify="right", no_wrap=True)
    digits = 1 if roomy else 0
    for learned, row in matrix.iterrows():
        cells = [
            "" if math.isnan(value) else Text(f"{value:.{digits}f}", style="bold" if task == learned else "")
            for task, value in row.items()
        ]
        table.add_row("start" if learned == -1 else f"{int(str(learned)) + 1}", *cells)
    return table


def _last_measurements(folder: Path) -> pd.DataFrame:
    """What the method says of the whole network after the last task that it learned."""
    file = folder / "method.parquet"
    if not file.exists():
        return pd.DataFrame()
    table = pd.read_parquet(file)
    return table[(table.task_learning == table.task_learning.max()) & (table.part == "")]


def _notes(summary: Summary) -> list[str]:
    """What has to be known of the stream and of the method; a failed run says nothing, nor does one of an older version."""
    of_stream = summary.get("scenario_note")
    return [*([f"{summary['scenario']}: {of_stream}"] if of_stream else []), *(summary.get("notes") or [])]


def _is_bound(metrics: dict[str, Any], name: str) -> bool:
    """Whether an adaptive evaluation knows only an upper bound, see :data:`clbench.reports.counting.BOUNDS`."""
    return name in ("min_ACC", "WC_ACC") and metrics.get("min_ACC_resolved") is False


def _number(value: float) -> str:
    return f"{value:.0f}" if float(value).is_integer() else f"{value:.4g}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def _period(metrics: dict[str, Any]) -> str:
    if "evaluations" in metrics:
        return f"{metrics['evaluations']} chosen iterations"
    return f"every={metrics['every']}" if metrics["every"] else "task switches"
