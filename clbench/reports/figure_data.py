"""What the figures of a report show, computed once for both libraries that draw it: numbers in, numbers out.

Accuracies are fractions in [0, 1]; the figures show percent. Curve tables have the columns that a run writes (``task_learning,
iteration, task_eval, n, correct, loss, consolidated``; see the README), tables of runs are those of
:mod:`clbench.reports.loading`. Of an iteration that was evaluated before and after the hooks at a task's end, figures show the
latter.
"""

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator

from clbench.evaluation.metrics import accuracy_matrix, just_learned, last_of_iteration, recovery_per_switch
from clbench.reports.tables import Metric

MEAN_PANEL = "mean over the tasks seen so far"

SHORTEST_PLATEAU = 10
"""Evaluations of the next task below which a gap cannot be told: the plateau is the mean of their last tenth."""

MOST_CATEGORIES = 12
"""Different values of a hyperparameter up to which they are shown as categories rather than on a scale."""

MOST_WRITTEN = 10
"""Rows and columns up to which a heat map has its values written in."""

SeedCurves = Mapping[str, Sequence[pd.DataFrame]]
"""Method → the curve table of each of its seeds."""


# ---- curves ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Panel:
    """One of the small multiples of the curve figure."""

    title: str

    lines: pd.DataFrame
    """Columns ``method, x, mean, low, high``: mean, lowest and highest seed at every evaluated position, ordered by x."""

    gaps: pd.DataFrame
    """Columns ``method, start, stop, level``: where the stability gap is shaded, below ``level``. See :func:`stability_gaps`."""


@dataclass(frozen=True)
class Curves:
    """The curve figure of one scenario."""

    panels: list[Panel]
    switches: np.ndarray
    """Positions of the task switches on the x axis (k − 1,)."""
    end: float
    """Where the x axis ends; it begins at 0."""

    x_label: str
    after_switch: pd.DataFrame
    """Columns ``method, x, mean, low, high``: see :func:`after_switches`."""


def curves(by_method: SeedCurves) -> Curves:
    """Accuracy of every method on the first, a middle and the next-to-last task and on all tasks seen, against training time.

    The x axis is the iteration where all curves switch tasks at the same iterations. Where they do not (budgets that were tuned,
    class orders with tasks of different sizes), it is the number of tasks learned, a task's iterations counting as one.

    Args:
        by_method: curve tables, at least one with rows.
    """
    ends = {tuple(table.groupby("task_learning").iteration.max()) for tables in by_method.values() for table in tables}
    same = len(ends) == 1
    n_tasks = max(map(len, ends))
    placed = {
        method: [_placed(table, "iteration" if same else "tasks") for table in tables]
        for method, tables in by_method.items()
    }
    panels = [Panel(f"accuracy on task {task + 1}", *_lines_and_gaps(placed, task)) for task in shown_tasks(n_tasks)]
    panels.append(Panel(MEAN_PANEL, *_lines_and_gaps(placed, None)))
    return Curves(
        panels=panels,
        switches=np.array(next(iter(ends))[:-1] if same else range(1, n_tasks), float),
        end=max(panel.lines.x.max() for panel in panels),
        x_label="iteration (optimizer steps)" if same else "tasks learned",
        after_switch=after_switches(by_method),
    )


def shown_tasks(n_tasks: int) -> list[int]:
    """The first, a middle and the next-to-last of ``n_tasks``, counted from 0, each once."""
    return sorted({0, (n_tasks - 1) // 2, max(0, n_tasks - 2)})


def _placed(table: pd.DataFrame, unit: str) -> pd.DataFrame:
    """The rows of seen tasks with ``x`` (iterations, or tasks learned) and ``accuracy``."""
    seen = last_of_iteration(table[table.task_eval <= table.task_learning])
    if unit == "iteration":
        x = seen.iteration.astype(float)
    else:
        end = table.groupby("task_learning").iteration.max()
        start = end.shift(fill_value=0)
        into = seen.iteration - seen.task_learning.map(start)
        x = seen.task_learning + (into / seen.task_learning.map(end - start)).fillna(1)  # a task without steps is over
    return seen.assign(x=x, accuracy=seen.correct / seen.n)


def _lines_and_gaps(
    placed: Mapping[str, Sequence[pd.DataFrame]], task: int | None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Mean, lowest and highest seed of every method on one task (None: mean over the tasks seen), and its stability gaps."""
    lines, gaps = [], []
    for method, tables in placed.items():
        rows = [table if task is None else table[table.task_eval == task] for table in tables]
        series = [table.groupby("x").accuracy.mean() for table in rows if len(table)]
        if not series:
            continue
        line = across_seeds(series).assign(method=method)
        lines.append(line)
        if task is not None:
            learning = pd.concat(rows).groupby("x").task_learning.max()
            gaps.append(stability_gaps(line.x, line["mean"], learning.loc[line.x], task).assign(method=method))
    empty = pd.DataFrame(columns=["start", "stop", "level", "method"])
    return pd.concat(lines, ignore_index=True), pd.concat(gaps, ignore_index=True) if gaps else empty


def across_seeds(series: Sequence[pd.Series]) -> pd.DataFrame:
    """Mean, minimum and maximum over seeds at every position that any seed evaluated.

    Seeds that were evaluated elsewhere (adaptive evaluation) are interpolated between their own evaluations, never beyond them.

    Args:
        series: accuracy by position, one per seed, positions increasing.

    Returns:
        Columns ``x, mean, low, high``.
    """
    x = np.unique(np.concatenate([one.index.to_numpy(float) for one in series]))
    values = np.stack([np.interp(x, one.index, one, left=np.nan, right=np.nan) for one in series])
    return pd.DataFrame(
        {"x": x, "mean": np.nanmean(values, 0), "low": np.nanmin(values, 0), "high": np.nanmax(values, 0)}
    )


def stability_gaps(x: pd.Series, accuracy: pd.Series, learning: pd.Series, task: int) -> pd.DataFrame:
    """Where accuracy on ``task`` falls after a switch and comes back before the next one.

    The rule is that of ``recovery_iterations`` (:mod:`clbench.evaluation.metrics`), applied to every switch after the task was
    learned: back for good at 95 % of the plateau that the rest of the next task reaches. A fall that is not made up is
    forgetting and no gap.

    Args:
        x, accuracy, learning: position, accuracy on the task and number of the task being learned, in order of x, (n,) each.
        task: the task, counted from 0.

    Returns:
        Columns ``start`` (the switch), ``stop`` (where accuracy is back) and ``level`` (accuracy at the switch).
    """
    table = pd.DataFrame({"iteration": x.to_numpy(), "correct": accuracy.to_numpy(), "n": 1})
    table["task_learning"] = learning.to_numpy()
    ends = table.groupby("task_learning").last()
    # The rule looks at a task while the one after it is learned: call the task, after every switch, by the number of the task
    # that was just learned.
    at_switch = ends.reset_index().assign(task_eval=ends.index)
    after = table[table.task_learning > task]
    after = after[after.groupby("task_learning").n.transform("size") >= SHORTEST_PLATEAU]
    after = after.assign(task_eval=after.task_learning - 1)
    recoveries = recovery_per_switch(pd.concat([at_switch, after]))
    found = [
        (ends.iteration[learned], ends.iteration[learned] + recovery, ends.correct[learned])
        for learned, recovery in zip(sorted(after.task_eval.unique()), recoveries, strict=True)
        if recovery > 0
    ]
    return pd.DataFrame(found, columns=["start", "stop", "level"])


def after_switches(by_method: SeedCurves, length: int = 50) -> pd.DataFrame:
    """Accuracy on the task just learned in the first iterations of the next task, averaged over the switches of a run.

    Args:
        by_method: curve tables.
        length: iterations after the switch that are shown.

    Returns:
        Columns ``method, x, mean, low, high``; x counts iterations from the switch (0: the end of the task), mean, low and
        high are over seeds. Empty where there is no switch, or no more than one evaluation soon after one.
    """
    lines = []
    for method, tables in by_method.items():
        series = [one for one in (_after_switches_of_a_seed(table, length) for table in tables) if len(one) > 2]
        if series:
            lines.append(across_seeds(series).assign(method=method))
    return (
        pd.concat(lines, ignore_index=True) if lines else pd.DataFrame(columns=["x", "mean", "low", "high", "method"])
    )


def _after_switches_of_a_seed(table: pd.DataFrame, length: int) -> pd.Series:
    table = last_of_iteration(table[(table.task_learning - table.task_eval).isin([0, 1])])
    switches = []
    for task, rows in table.groupby("task_eval"):
        accuracy = rows.correct.to_numpy() / rows.n.to_numpy()
        is_after = rows.task_learning.to_numpy() > task
        if is_after.any():
            start = int(is_after.argmax()) - 1  # the last evaluation of the task itself
            iterations = rows.iteration.to_numpy()[start:]
            switches.append(pd.Series(accuracy[start:], iterations - iterations[0]))
    if not switches:
        return pd.Series(dtype=float)
    offsets = np.unique(np.concatenate([trace.index for trace in switches]))
    shown = offsets[offsets <= length]
    # A task shorter than the stretch shown would drop out of the mean midway and make it jump: end where the first one ends.
    shown = shown[shown <= min(trace.index.max() for trace in switches)]
    return pd.Series(np.mean([np.interp(shown, trace.index, trace) for trace in switches], 0), shown)


def thin_out(x: np.ndarray, y: np.ndarray, most: int, keep: np.ndarray | None = None) -> np.ndarray:
    """Indices of at most ``most`` points that look the same when drawn: of every bucket its lowest and its highest.

    Args:
        x, y: (n,), x increasing.
        most: points to return, plus those of ``keep``.
        keep: positions on x, such as task switches; the points there and the next ones are kept in any case.

    Returns:
        Increasing indices, the first and last point among them. The minimum and maximum of y over any bucket, and so over the
        whole, are exact.
    """
    if len(x) <= most:
        return np.arange(len(x))
    edges = np.linspace(0, len(x), max(1, (most - 2) // 2) + 1).astype(int)
    kept = {0, len(x) - 1}
    for start, stop in itertools.pairwise(edges):
        kept |= {start + int(np.argmin(y[start:stop])), start + int(np.argmax(y[start:stop]))}
    if keep is not None:
        at = np.searchsorted(x, keep)
        kept |= set(np.concatenate([at, at + 1]).clip(0, len(x) - 1).tolist())
    return np.array(sorted(kept))


# ---- task ends ------------------------------------------------------------------------------------------------------


def mean_matrix(tasks: Sequence[pd.DataFrame]) -> np.ndarray:
    """R (k, T), mean over seeds: accuracy on task i after task j at [j, i], NaN where no seed measured it.

    Args:
        tasks: the tables on full test sets at task ends, one per seed.
    """
    matrices = [accuracy_matrix(table) for table in tasks]
    shape = np.max([matrix.shape for matrix in matrices], 0)
    padded = np.full((len(matrices), *shape), np.nan)
    for place, matrix in zip(padded, matrices, strict=True):
        place[: matrix.shape[0], : matrix.shape[1]] = matrix
    counted = np.isfinite(padded).sum(0)
    return np.where(counted, np.nansum(padded, 0) / np.maximum(counted, 1), np.nan)


def plasticity_and_stability(tasks: pd.DataFrame) -> tuple[float, float]:
    """Plasticity, the mean of R[i, i], and stability, 1 − FORG, of one run (NaN with fewer than two tasks).

    With these two, ACC = plasticity − (k − 1)/k · (1 − stability) for k tasks: lines of equal ACC are straight.
    """
    R = accuracy_matrix(tasks)
    k = len(R)
    if k < 2:
        return np.nan, np.nan
    learned = np.diag(R)
    return float(learned.mean()), float(1 - (learned[: k - 1] - R[k - 1, : k - 1]).mean())


def stability_at(plasticity: np.ndarray, acc: float, n_tasks: int) -> np.ndarray:
    """The stability at which a run of this plasticity has this ACC; see :func:`plasticity_and_stability`."""
    return 1 - (plasticity - acc) * n_tasks / (n_tasks - 1)


def just_learned_lines(by_method: SeedCurves) -> pd.DataFrame:
    """Accuracy on every task when it was just learned, R[i, i], against the task.

    Args:
        by_method: the tables on full test sets at task ends.

    Returns:
        Columns ``method, x, mean, low, high``; tasks count from 1.
    """
    lines = []
    for method, tables in by_method.items():
        accuracies = [just_learned(accuracy_matrix(table)) for table in tables]
        seeds = [pd.Series(accuracy, np.arange(1, len(accuracy) + 1)) for accuracy in accuracies]
        lines.append(across_seeds(seeds).assign(method=method))
    return pd.concat(lines, ignore_index=True)


# ---- costs and ranks ------------------------------------------------------------------------------------------------


COSTS = {
    "seconds": "time without evaluation (s)",
    "memory": "peak memory (MiB)",
    "kept": "parameters and what is kept (MiB)",
    "flops": "MFLOPs of a forward pass per sample",
}
"""Columns of :func:`costs` and their axis labels."""


def costs(runs: pd.DataFrame, metric: Metric) -> pd.DataFrame:
    """What every run cost, in the units of :data:`COSTS`, with its ``method`` and its ``score`` in the metric's shown unit.

    Args:
        runs: see :attr:`clbench.reports.comparison.Comparison.counted`; what a diverged run cost is NaN.
    """
    return pd.DataFrame(
        {
            "method": runs.method,
            "score": metric.scale * runs[metric.name].astype(float),
            "seconds": runs.seconds - runs.evaluation_seconds,
            "memory": runs.peak_memory_bytes / 2**20,
            "kept": (4 * runs.parameters + runs.strategy_bytes) / 2**20,
            "flops": runs.forward_flops_per_sample / 1e6,
        }
    )


def with_unit(metric: Metric) -> str:
    """The metric's heading for an axis."""
    return f"{metric.heading} (%)" if metric.scale == 100 else metric.heading


def mean_costs(table: pd.DataFrame, off_front: Collection[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Mean score and costs of every method, and of those that may be on a front.

    Args:
        table: see :func:`costs`. A mean score is over all runs that count, a mean cost over finished runs.
        off_front: methods that cannot be best, since seeds are missing or the score of some is not known.
    """
    means = table.groupby("method", sort=False)[["score", *COSTS]].mean()
    return means, means[~means.index.isin(list(off_front))]


def pareto_front(cost: np.ndarray, score: np.ndarray, higher_is_better: bool = True) -> np.ndarray:
    """Indices of the points that no other one beats in cost (lower is better) and score, in order of cost."""
    score = score if higher_is_better else -score
    front: list[int] = []
    for index in np.lexsort((-score, cost)):
        if not front or score[index] > score[front[-1]]:
            front.append(int(index))
    return np.array(front, int)


def sides(average_ranks: pd.Series) -> list[tuple[str, float, str, int]]:
    """Where the labels of a critical-difference diagram stand: the better half left of the axis, the others right of it.

    Args:
        average_ranks: method → average rank, 1 is best.

    Returns:
        (method, average rank, "left" or "right", row from the axis outwards counting from 0); lines from a point on the axis to
        its label do not cross, since the outermost points have the innermost rows.
    """
    ordered = average_ranks.sort_values(kind="stable")
    half = -(-len(ordered) // 2)
    left = [(str(name), float(rank), "left", row) for row, (name, rank) in enumerate(ordered[:half].items())]
    right = [(str(name), float(rank), "right", row) for row, (name, rank) in enumerate(ordered[half:][::-1].items())]
    return left + right


def equal_acc_levels(plasticity: tuple[float, float], stability: tuple[float, float], n_tasks: int) -> np.ndarray:
    """A handful of round values of ACC within a rectangle of the stability-plasticity plane."""
    share = (n_tasks - 1) / n_tasks
    lowest, highest = (p - share * (1 - s) for p, s in zip(plasticity, stability, strict=True))
    levels = np.asarray(MaxNLocator(8, steps=[1, 2, 5, 10]).tick_values(100 * lowest, 100 * highest)) / 100
    return levels[(levels > lowest) & (levels < highest)]


def score_by_value(scores: pd.DataFrame, parameter: str) -> tuple[pd.DataFrame, bool]:
    """The trials of one hyperparameter, ready to draw.

    Args:
        scores: columns ``parameter, value, trial, score``.
        parameter: which.

    Returns:
        Columns ``value, score`` ordered by value, and whether values are text categories: they are unless there are more than
        :data:`MOST_CATEGORIES` different numbers.
    """
    rows = scores.loc[scores.parameter == parameter, ["value", "score"]].reset_index(drop=True)
    numbers = pd.to_numeric(rows.value.map(lambda value: None if isinstance(value, bool) else value), errors="coerce")
    if numbers.notna().all():
        rows = rows.assign(value=numbers.astype(float)).sort_values("value", ignore_index=True)
        if rows.value.nunique() > MOST_CATEGORIES:
            return rows, False
        return rows.assign(value=rows.value.map("{:g}".format)), True
    return rows.assign(value=rows.value.map(str)).sort_values("value", ignore_index=True), True
