"""The picture of one run: accuracy on every task after every evaluation, with the task boundaries."""

from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

OKABE_ITO = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8C6D1F"]
"""Colours that colour-blind readers can tell apart (Okabe & Ito 2008), without yellow and black, which lines cannot use."""

MOST_LABELLED = 12


def draw_curves(curve: pd.DataFrame, tasks: pd.DataFrame, path: Path, title: str, task_names: list[str]) -> None:
    """Draw a run's per-iteration accuracies.

    Args:
        curve: the per-iteration table (columns: task_learning, iteration, task_eval, n, correct, loss).
        tasks: the table on full test sets at task ends; drawn as squares.
        path: PNG file to write.
        title: heading.
        task_names: name of every task, for the legend.
    """
    figure = Figure(figsize=(9, 4.2), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    table = curve.assign(accuracy=100 * curve.correct / curve.n).sort_values("iteration")
    colours = _colours(len(task_names))
    boundaries = table.groupby("task_learning").iteration.max()
    for boundary in boundaries.iloc[:-1]:
        axes.axvline(boundary, color="0.75", linewidth=0.8, linestyle=(0, (4, 2)), zorder=0)
    thin = 1.1 if len(task_names) <= MOST_LABELLED else 0.7
    for task, rows in table.groupby("task_eval"):
        index = int(str(task))
        axes.plot(rows.iteration, rows.accuracy, color=colours[index], linewidth=thin, label=_label(index, task_names))
        after = rows[rows.task_learning > index]
        if len(after):
            worst = after.loc[after.accuracy.idxmin()]
            axes.plot(
                worst.iteration,
                worst.accuracy,
                marker="v",
                markersize=7,
                color=colours[index],
                markeredgecolor="black",
                markeredgewidth=0.6,
                zorder=5,
            )
    on_top = 1.5 if len(task_names) <= MOST_LABELLED else 4.5
    mean = table.groupby("iteration").accuracy.mean()
    axes.plot(mean.index, mean, color="black", linewidth=2.0, alpha=0.8, zorder=on_top, label="mean of seen tasks")
    ends = tasks[(tasks.task_learning >= 0) & (tasks.task_eval <= tasks.task_learning)]
    axes.plot([], [], marker="v", color="0.4", linestyle="", markersize=5, label="minimum after learning")
    if len(ends):
        axes.scatter(
            ends.iteration, 100 * ends.correct / ends.n, marker="s", s=14, facecolor="none", linewidth=0.8,
            edgecolor=[colours[task] for task in ends.task_eval], zorder=4,
        )  # fmt: skip
        axes.plot(
            [], [], marker="s", color="0.4", markerfacecolor="none", linestyle="", markersize=4, label="full test set"
        )
    axes.set(xlabel="iteration (optimizer steps)", ylabel="accuracy (%)", ylim=(-2, 102))
    axes.set_title(title, loc="left", fontsize=11, pad=16)
    if len(table):
        axes.set_xlim(0, max(1, table.iteration.max()))
        _name_tasks(axes, boundaries)
    axes.spines[["top", "right"]].set_visible(False)
    handles, labels = axes.get_legend_handles_labels()
    if len(task_names) > MOST_LABELLED:  # a colour scale replaces a legend nobody would read
        scale = matplotlib.cm.ScalarMappable(
            matplotlib.colors.Normalize(1, len(task_names)), matplotlib.colormaps["viridis"]
        )
        figure.colorbar(scale, ax=axes, label="task", pad=0.01)
        kept = [i for i, label in enumerate(labels) if not label.startswith("task ")]
        handles, labels = [handles[i] for i in kept], [labels[i] for i in kept]
    figure.legend(handles, labels, loc="outside right upper", fontsize=8, frameon=False)
    unfinished = path.with_name(f".{path.name}.unfinished")
    figure.savefig(unfinished, format="png")
    unfinished.replace(path)


def _colours(n_tasks: int) -> list:
    if n_tasks <= len(OKABE_ITO):
        return OKABE_ITO
    return list(matplotlib.colormaps["viridis"](np.linspace(0, 0.95, n_tasks)))


def _label(task: int, names: list[str]) -> str:
    name = names[task] if len(names[task]) <= 24 else names[task][:23] + "…"
    return f"task {task + 1}: {name}"


def _name_tasks(axes, boundaries: pd.Series) -> None:
    """Write the number of each task above its stretch of the curve, as far as there is room."""
    step = -(-len(boundaries) // 20)
    starts = [0, *boundaries.iloc[:-1]]
    for number, (start, stop) in enumerate(zip(starts, boundaries, strict=True), start=1):
        if (number - 1) % step == 0:
            text = f"learning {number}" if number == 1 and len(boundaries) <= MOST_LABELLED else f"{number}"
            place = {"xycoords": ("data", "axes fraction"), "ha": "center", "va": "bottom"}
            axes.annotate(text, ((start + stop) / 2, 1.0), fontsize=7, color="0.35", **place)
