"""The picture of one run: accuracy on every task after every evaluation, with the task boundaries."""

from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.patheffects import Normal, Stroke

from clbench.evaluation.metrics import in_order

OKABE_ITO = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8C6D1F"]
"""Colours that colour-blind readers can tell apart (Okabe & Ito 2008), without yellow and black, which lines cannot use."""

MOST_LABELLED = 12


def draw_curves(curve: pd.DataFrame, tasks: pd.DataFrame, path: Path, title: str, task_names: list[str]) -> None:
    """Draw a run's per-iteration accuracies.

    Args:
        curve: the per-iteration table (columns: task_learning, iteration, task_eval, n, correct, loss, consolidated).
        tasks: the table on all samples at task ends; drawn as squares.
        path: PNG file to write.
        title: heading.
        task_names: name of every task, for the legend.
    """
    figure = Figure(figsize=(9, 4.2), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    table = in_order(curve.assign(accuracy=100 * curve.correct / curve.n)).reset_index(drop=True)
    colours = _colours(len(task_names))
    few = len(task_names) <= MOST_LABELLED
    boundaries = table.groupby("task_learning").iteration.max()
    for boundary in boundaries.iloc[:-1]:
        axes.axvline(boundary, color="0.75", linewidth=0.8, linestyle=(0, (4, 2)), zorder=0)
    for task, rows in table.groupby("task_eval"):
        index = int(str(task))
        axes.plot(
            rows.iteration, rows.accuracy, color=colours[index], linewidth=1.1 if few else 0.6,
            label=_label(index, task_names) if few else None,
        )  # fmt: skip
        after = rows[rows.task_learning > index]
        if len(after):
            worst = after.loc[after.accuracy.idxmin()]
            axes.plot(
                worst.iteration, worst.accuracy, marker="v", markersize=7 if few else 4.5, color=colours[index],
                markeredgecolor="black", markeredgewidth=0.6, zorder=5, clip_on=False,
            )  # fmt: skip
    # Where the hooks at a task's end change predictions, the lines jump there.
    mean = table.groupby(["iteration", "consolidated"]).accuracy.mean().droplevel("consolidated")
    outline = [] if few else [Stroke(linewidth=3.2, foreground="white"), Normal()]  # on top of what it summarises
    axes.plot(
        mean.index, mean, color="black", linewidth=2.0 if few else 1.6, alpha=0.8 if few else 1.0,
        zorder=1.5 if few else 4.5, path_effects=outline, label="mean of seen tasks",
    )  # fmt: skip
    ends = tasks[(tasks.task_learning >= 0) & (tasks.task_eval <= tasks.task_learning)]
    axes.plot([], [], marker="v", color="0.4", linestyle="", markersize=5, label="minimum after learning")
    if len(ends):
        axes.scatter(
            ends.iteration, 100 * ends.correct / ends.n, marker="s", s=14 if few else 6, facecolor="none",
            linewidth=0.8 if few else 0.5, edgecolor=[colours[task] for task in ends.task_eval], zorder=4, clip_on=False,
        )  # fmt: skip
        axes.plot(
            [], [], marker="s", color="0.4", markerfacecolor="none", linestyle="", markersize=4,
            label="all samples, task end",
        )  # fmt: skip
    axes.set(xlabel="iteration (optimizer steps)", ylabel="accuracy (%)", ylim=(-2, 102))
    axes.set_title(title, loc="left", fontsize=11, pad=16)
    if len(table):
        axes.set_xlim(0, max(1, table.iteration.max()))
        _name_tasks(axes, boundaries)
    axes.spines[["top", "right"]].set_visible(False)
    if few:
        figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    else:  # a colour scale replaces a legend nobody would read
        scale = ScalarMappable(
            BoundaryNorm(np.arange(len(task_names) + 1) + 0.5, len(task_names)), ListedColormap(colours)
        )
        ticks = np.arange(1, len(task_names) + 1, -(-len(task_names) // 20))
        figure.colorbar(scale, ax=axes, label="task", pad=0.015, aspect=30, ticks=ticks).ax.tick_params(
            length=0, labelsize=7
        )
        figure.legend(loc="outside lower right", ncols=3, fontsize=8, frameon=False)
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


def _name_tasks(axes: Axes, boundaries: pd.Series) -> None:
    """Write the number of each task above its stretch of the curve, as far as there is room."""
    step = -(-len(boundaries) // 20)
    starts = [0, *boundaries.iloc[:-1]]
    for number, (start, stop) in enumerate(zip(starts, boundaries, strict=True), start=1):
        if (number - 1) % step == 0:
            text = f"learning {number}" if number == 1 and len(boundaries) <= MOST_LABELLED else f"{number}"
            middle = ((start + stop) / 2, 1.0)
            axes.annotate(
                text, middle, xycoords=("data", "axes fraction"), ha="center", va="bottom", fontsize=7, color="0.35"
            )
