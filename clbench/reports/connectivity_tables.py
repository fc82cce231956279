"""What reports show of mode connectivity (``connectivity.parquet``): barriers, and accuracy on the way between two states.

What the way is, :mod:`clbench.evaluation.connectivity` says.
"""

from collections.abc import Iterable

import numpy as np
import pandas as pd

from clbench.reports.figure_data import across_seeds
from clbench.reports.measurement_tables import quantity_heading, unit_and_digits
from clbench.reports.tables import SUBSETS, Cell, Column, Table, mean_cell

LINE_COLUMNS = ["task_learning", "lam", "tasks", "accuracy", "loss"]
"""What :func:`along_lines` gives of a run."""

TASKS = {"current": "current task", "earlier": "earlier tasks"}
"""What is evaluated on the way to the state after a task → how it is called."""

SPACE = (
    "Everything of network and method that is a floating-point tensor is interpolated, tensor by tensor (of low-rank adapters A "
    "and B each by itself, BatchNorm's statistics too); all else, also which classes have been seen, is that after the later task"
)


def along_lines(recorded: pd.DataFrame) -> pd.DataFrame:
    """Accuracy and mean cross-entropy at every point of every line of one run.

    Args:
        recorded: ``connectivity.parquet``, see :data:`clbench.evaluation.connectivity.COLUMNS`.

    Returns:
        Columns :data:`LINE_COLUMNS`: ``tasks`` is ``current``, or ``earlier`` for the mean over the tasks before it.
    """
    per_task = recorded.assign(
        accuracy=recorded.correct / recorded.n,
        loss=recorded.loss / recorded.n,
        tasks=np.where(recorded.task_eval == recorded.task_learning, "current", "earlier"),
    )
    keys = ["task_learning", "lam", "tasks"]
    return per_task.groupby(keys, sort=False)[["accuracy", "loss"]].mean().reset_index()[LINE_COLUMNS]


def barrier(lam: np.ndarray, loss: np.ndarray) -> float:
    """max_λ [L(λ) − ((1 − λ) L(0) + λ L(1))], at least 0; NaN where a loss is not finite.

    Args:
        lam: (P,) ascending from 0 to 1.
        loss: (P,) L.
    """
    if not np.isfinite(loss).all():
        return float("nan")
    return float(max(0.0, (loss - ((1 - lam) * loss[0] + lam * loss[-1])).max()))


def barriers(lines: pd.DataFrame) -> pd.DataFrame:
    """The barriers of every run, mean over its pairs of tasks; NaN where that of a pair is.

    Args:
        lines: see :attr:`clbench.reports.comparison.Comparison.connectivity`.

    Returns:
        A row per run (index ``folder``), the columns :data:`TASKS`.
    """
    of_pairs = [
        (folder, tasks, barrier(rows.lam.to_numpy(), rows.loss.to_numpy()))
        for (folder, tasks, _), rows in lines.sort_values("lam").groupby(
            ["folder", "tasks", "task_learning"], sort=False
        )
    ]
    table = pd.DataFrame(of_pairs, columns=["folder", "tasks", "barrier"])
    means = table.groupby(["folder", "tasks"], sort=False).barrier.agg(lambda values: values.mean(skipna=False))
    return means.unstack("tasks").reindex(columns=list(TASKS))


def connectivity_table(lines: pd.DataFrame, rows: pd.DataFrame, methods: Iterable[str]) -> Table:
    """How high the barriers between the states after successive tasks are: a row per method of one scenario.

    Args:
        lines: those of the scenario, see :attr:`clbench.reports.comparison.Comparison.connectivity`.
        rows: the finished runs of the scenario.
        methods: labels, in the order of the rows.
    """
    scenario = str(rows.scenario.iloc[0])
    found = barriers(lines).reindex(rows.folder)
    where = f"{SUBSETS}, {', '.join(rows.split.dropna().unique())} split"
    shown = {tasks: unit_and_digits(found[tasks]) for tasks in TASKS}
    columns = [Column("method")]
    columns += [
        Column(f"{quantity_heading(f'barrier on the {name}', shown[tasks][0])} ↓", where, True)
        for tasks, name in TASKS.items()
    ]
    body = []
    for method in methods:
        own = found.reindex(rows.folder[rows.method == method])
        cells = [mean_cell(own[tasks] / unit, digits) for tasks, (unit, digits) in shown.items()]
        body.append([Cell(method, method), *cells])
    caption = (
        "On the straight line from the state after one task (λ = 0) to that after the next (λ = 1), the barrier is how far the "
        "mean cross-entropy (nats) rises at most above the straight line between its own two ends: on the task that was learned "
        "between the two, and on the tasks before it (mean of theirs). Mean over all tasks but the first, then mean ± half the "
        f"width of the 95 % t-interval over seeds. {SPACE}. clbench/evaluation/connectivity.py has the formulas."
    )
    return Table(f"{scenario}: mode connectivity", caption, columns, body, scenario)


def accuracy_lines(lines: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Accuracy on the way, mean over the pairs of tasks of a run.

    Args:
        lines: those of one scenario, see :attr:`clbench.reports.comparison.Comparison.connectivity`.

    Returns:
        Name (of :data:`TASKS`) → columns ``method, x, mean, low, high``: x is λ, the others are over seeds.
    """
    panels = {}
    for tasks, name in TASKS.items():
        found = []
        for method, own in lines[lines.tasks == tasks].groupby("method", sort=False):
            seeds = [run.groupby("lam").accuracy.mean() for _, run in own.groupby("folder")]
            found.append(across_seeds(seeds).assign(method=method))
        if found:
            panels[name] = pd.concat(found, ignore_index=True)
    return panels
