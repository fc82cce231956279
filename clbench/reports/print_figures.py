"""The figures of a report for paper and Markdown: matplotlib, PNG."""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from clbench.reports.comparison import Comparison
from clbench.reports.figure_data import (
    COSTS,
    MOST_WRITTEN,
    Curves,
    costs,
    equal_acc_levels,
    mean_costs,
    pareto_front,
    score_by_value,
    sides,
    stability_at,
    with_unit,
)
from clbench.reports.figures import figures_of, methods_of
from clbench.reports.measurement_tables import quantity_heading
from clbench.reports.palette import Look, looks
from clbench.reports.quantity_data import QuantityMap, shortened_parts
from clbench.reports.tables import Metric

WIDTH = 7.5
"""Width of a figure in inches, about that of the text on a page, so that 8 pt are 8 pt."""

DPI = 200
MOST_PARTS = 40
"""Parts of a network that have their names written beside a heat map; of more, evenly spaced ones."""

STYLE: dict[str, Any] = {"fontsize": 9}

Looks = Mapping[str, Look]


def draw_all(comparison: Comparison, folder: Path) -> list[tuple[str, str]]:
    """Draw every figure for which there are data as a PNG in ``folder``, which is made where it does not exist.

    Returns:
        (file name, caption) in the order of the report.
    """
    folder.mkdir(parents=True, exist_ok=True)
    method_looks = looks(methods_of(comparison))
    written = []
    for figure in figures_of(comparison):
        drawn = DRAW[figure.kind](looks=method_looks, **figure.data)
        drawn.savefig(folder / f"{figure.name}.png", dpi=DPI)
        written.append((f"{figure.name}.png", f"{figure.title}. {figure.caption}"))
    return written


def accuracy_curves(curves: Curves, looks: Looks) -> Figure:
    """Accuracy in percent against training time, a panel each for single tasks and for the mean over the tasks seen."""
    figure, grid = _panels(len(curves.panels), 2, 2.3)
    for axes, panel in zip(grid, curves.panels, strict=True):
        for position in curves.switches:
            axes.axvline(position, color="0.8", linewidth=0.7, zorder=0)
        _lines_with_bands(axes, panel.lines, looks)
        for gap in panel.gaps.itertuples():
            line = panel.lines[(panel.lines.method == gap.method) & panel.lines.x.between(gap.start, gap.stop)]
            below = np.minimum(line["mean"], gap.level)
            axes.fill_between(
                line.x, 100 * gap.level, 100 * below, facecolor=to_rgba(looks[gap.method].colour, 0.25),
                edgecolor=looks[gap.method].colour, hatch="////", linewidth=0,
            )  # fmt: skip
        axes.set_title(panel.title, loc="left", **STYLE)
        axes.set(xlim=(0, curves.end), ylim=(-3, 103))
    for axes in grid[::2]:
        axes.set_ylabel("accuracy (%)", **STYLE)
    for axes in grid[-2:]:
        axes.set_xlabel(curves.x_label, **STYLE)
    _legend(figure, curves.panels[-1].lines.method.unique(), looks, lines=True)
    return figure


def switch_zoom(lines: pd.DataFrame, looks: Looks) -> Figure:
    """Accuracy in percent on the task just learned against iterations since the switch."""
    figure, (axes,) = _panels(1, 1, 2.7)
    _lines_with_bands(axes, lines, looks)
    axes.set_xlabel("iterations since the task switch", **STYLE)
    axes.set_ylabel("accuracy (%)", **STYLE)
    _legend(figure, lines.method.unique(), looks, lines=True)
    return figure


def accuracy_matrices(matrices: Mapping[str, np.ndarray], looks: Looks) -> Figure:
    """A heat map per method: accuracy in percent on every task (columns) after every task (rows)."""
    del looks  # every method has a heat map of its own; the argument is there for all figures
    n_tasks = max(matrix.shape[1] for matrix in matrices.values())
    columns = 2 if 5 < n_tasks <= MOST_WRITTEN else 3  # two where values need the room
    figure, grid = _panels(len(matrices), columns, 0.8 * WIDTH / columns)
    for axes, (method, matrix) in zip(grid, matrices.items(), strict=True):
        axes.imshow(100 * matrix, vmin=0, vmax=100, cmap="Blues")
        axes.set_title(_shortened(method, 60 // columns), loc="left", **STYLE)
        for ticks, count in ((axes.set_xticks, matrix.shape[1]), (axes.set_yticks, matrix.shape[0])):
            shown = range(0, count, -(-count // (10 if columns == 2 else 6)))
            ticks(shown, [str(task + 1) for task in shown])
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
        if n_tasks <= MOST_WRITTEN:
            for (row, column), value in np.ndenumerate(100 * matrix):
                if np.isfinite(value):
                    colour = "white" if value > 60 else "black"
                    axes.text(column, row, f"{value:.0f}", ha="center", va="center", color=colour, fontsize=8)
    figure.supxlabel("task evaluated", **STYLE)
    figure.supylabel("after learning task", **STYLE)
    figure.colorbar(grid[0].images[0], ax=grid, label="accuracy (%)", fraction=0.04, aspect=30, pad=0.02)
    return figure


def stability_plasticity(points: pd.DataFrame, n_tasks: int | None, looks: Looks) -> Figure:
    """Stability against plasticity in percent: seeds faint, means large, lines of equal ACC where all runs have ``n_tasks``."""
    figure, (axes,) = _panels(1, 1, 3.6)
    for method, rows in points.groupby("method", sort=False):
        _points(axes, 100 * rows.plasticity, 100 * rows.stability, looks[str(method)])
    if n_tasks:
        limits_x, limits_y = axes.get_xlim(), axes.get_ylim()
        x = np.array(limits_x)
        for level in equal_acc_levels((x[0] / 100, x[1] / 100), (limits_y[0] / 100, limits_y[1] / 100), n_tasks):
            y = 100 * stability_at(x / 100, level, n_tasks)
            axes.plot(x, y, color="0.6", linewidth=0.8, linestyle=":", zorder=0)
            at = np.interp(limits_y[1], y, x) if y[1] > limits_y[1] else x[1]
            height = min(y[1], limits_y[1])
            axes.annotate(
                f"{100 * level:.3g}", (at, height), xytext=(2, 1), textcoords="offset points", color="0.35", fontsize=8
            )
        axes.set_xlim(limits_x)
        axes.set_ylim(limits_y)
    axes.set_xlabel("plasticity: accuracy just after learning (%)", **STYLE)
    axes.set_ylabel("stability: 1 − FORG (%)", **STYLE)
    _legend(figure, points.method.unique(), looks)
    return figure


def just_learned(lines: pd.DataFrame, looks: Looks) -> Figure:
    """Accuracy in percent on every task when it was just learned."""
    figure, (axes,) = _panels(1, 1, 3.2)
    _lines_with_bands(axes, lines, looks)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("task", **STYLE)
    axes.set_ylabel("accuracy (%)", **STYLE)
    _legend(figure, lines.method.unique(), looks, lines=True, below=True)
    return figure


def connectivity(lines: Mapping[str, pd.DataFrame], looks: Looks) -> Figure:
    """Accuracy in percent on the line between the states after two tasks, a panel each for the current and the earlier tasks."""
    figure, grid = _panels(len(lines), 2, 2.5)
    for axes, (tasks, line) in zip(grid, lines.items(), strict=True):
        _lines_with_bands(axes, line, looks)
        axes.set_title(tasks, loc="left", **STYLE)
        axes.set_xlabel("λ", **STYLE)
    grid[0].set_ylabel("accuracy (%)", **STYLE)
    _legend(figure, pd.concat(lines.values()).method.unique(), looks, lines=True)
    return figure


def quantities(
    lines: Mapping[str, pd.DataFrame], looks: Looks, columns: int = 2, logarithmic: Collection[str] = ()
) -> Figure:
    """Quantities of the whole network against the tasks learned, a panel for each, ``columns`` beside each other."""
    figure, grid = _panels(len(lines), columns, 2.1 if columns == 2 else 1.7)
    for axes, (quantity, line) in zip(grid, lines.items(), strict=True):
        _lines_with_bands(axes, line, looks, scale=1)
        axes.set_title(_shortened(quantity_heading(quantity), 50), loc="left", **STYLE)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.yaxis.get_offset_text().set_fontsize(8)
        if quantity in logarithmic:
            axes.set_yscale("log")
    for axes in grid[-columns:]:
        axes.set_xlabel("tasks learned", **STYLE)
    _legend(figure, pd.concat(lines.values()).method.unique(), looks, lines=True, below=columns > 2)
    return figure


def quantity_maps(shown: QuantityMap, looks: Looks) -> Figure:
    """A heat map per method of a quantity with parts: earlier tasks, or pieces of the network."""
    del looks  # every method has a heat map of its own; the argument is there for all figures
    first = next(iter(shown.maps.values()))
    height = 2.6 if shown.of_tasks else max(2.0, 0.5 + 0.15 * min(len(first), MOST_PARTS))
    figure, grid = _panels(len(shown.maps), 2, height)
    lowest, highest = shown.range
    for place, (axes, (method, table)) in enumerate(zip(grid, shown.maps.items(), strict=True)):
        axes.imshow(table, vmin=lowest, vmax=highest, cmap="Blues", aspect="auto", interpolation="nearest")
        axes.set_title(_shortened(method, 40), loc="left", **STYLE)
        rows = list(table.index) if shown.of_tasks else shortened_parts(list(table.index))
        most_rows = 10 if shown.of_tasks else MOST_PARTS
        for ticks, names, most in ((axes.set_xticks, list(table.columns), 6), (axes.set_yticks, rows, most_rows)):
            at = range(0, len(names), -(-len(names) // most))
            ticks(at, [_shortened(str(names[i]), 30) for i in at])
        if place % 2 and not shown.of_tasks:
            axes.tick_params(labelleft=False)  # the same parts as beside it, and their names are long
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
        if shown.texts:
            for (row, column), text in np.ndenumerate(shown.texts[method]):
                is_dark = table.iat[row, column] > lowest + 0.6 * (highest - lowest)
                colour = "white" if is_dark else "black"
                axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=8)
    figure.supxlabel("earlier task" if shown.of_tasks else "after learning task", **STYLE)
    if shown.of_tasks:
        figure.supylabel("after learning task", **STYLE)
    figure.colorbar(
        grid[0].images[0],
        ax=grid,
        label=_shortened(quantity_heading(shown.quantity), 40),
        fraction=0.04,
        aspect=30,
        pad=0.02,
    )
    return figure


def cost_fronts(runs: pd.DataFrame, metric: Metric, looks: Looks, off_front: Collection[str] = ()) -> Figure:
    """The metric against each cost, a panel for each, with the Pareto front of the means of methods not in ``off_front``."""
    table = costs(runs, metric)
    shown = [cost for cost in COSTS if table[cost].notna().any()]
    figure, grid = _panels(len(shown), 2, 2.4)
    means, may_be_best = mean_costs(table, off_front)
    for axes, cost in zip(grid, shown, strict=True):
        known = may_be_best.dropna(subset=[cost, "score"])
        front = known.iloc[pareto_front(known[cost].to_numpy(), known.score.to_numpy(), metric.higher_is_better)]
        axes.plot(front[cost], front.score, color="0.5", linewidth=1, drawstyle="steps-post", zorder=0)
        for method, rows in table.groupby("method", sort=False):
            _points(axes, rows[cost], rows.score, looks[str(method)])
        if means[cost].min() > 0 and means[cost].max() > 10 * means[cost].min():
            axes.set_xscale("log")
        axes.set_xlabel(COSTS[cost], **STYLE)
    for axes in grid[::2]:
        axes.set_ylabel(with_unit(metric), **STYLE)
    _legend(figure, runs.method.unique(), looks)
    return figure


def critical_difference(average_ranks: pd.Series, difference: float, cliques: list[list[str]], looks: Looks) -> Figure:
    """Critical-difference diagram (Demšar 2006, figure 1): best on the left, bars join what cannot be told apart."""
    labels = sides(average_ranks)
    n = len(average_ranks)
    first_label = 0.45 + 0.25 * len(cliques)
    depth = first_label + 0.45 * (-(-n // 2) - 1) + 0.3
    figure = Figure(figsize=(WIDTH, 0.4 * depth + 1.0), layout="constrained")
    axes = figure.add_subplot()
    margin = 0.05 * (n - 1)
    for tick in range(1, n + 1):
        axes.plot([tick, tick], [0, 0.12], color="black", linewidth=1)
        axes.text(tick, 0.2, str(tick), ha="center", va="bottom", fontsize=9)
    axes.plot([1, n], [0, 0], color="black", linewidth=1)
    for method, rank, side, row in labels:
        height = -first_label - 0.45 * row
        end = 1 - margin if side == "left" else n + margin
        look = looks[method]
        axes.plot([rank, rank, end], [0, height, height], color=look.colour, linewidth=1)
        axes.plot(rank, 0, marker=look.matplotlib_marker, color=look.colour, markersize=6, zorder=4)
        name = _shortened(method, 26)
        text = f"{name}  {rank:.2f} " if side == "left" else f" {rank:.2f}  {name}"
        axes.text(end, height, text, ha="right" if side == "left" else "left", va="center", fontsize=9)
    for row, clique in enumerate(cliques):
        members = average_ranks[clique]
        overhang = 0.01 * (n - 1)
        height = -0.25 - 0.25 * row
        axes.plot([members.min() - overhang, members.max() + overhang], [height] * 2, color="black", linewidth=3)
    axes.plot([1, 1 + difference], [0.9, 0.9], color="black", linewidth=1, marker="|", markersize=6)
    axes.text(1 + difference / 2, 1.0, f"critical difference {difference:.2f}", ha="center", va="bottom", fontsize=9)
    # The labels stand outside the axis: its share of the width is what they leave.
    label = 0.6 + 0.075 * max(len(_shortened(method, 26)) for method in average_ranks.index)
    room = margin + (n - 1) * label / (WIDTH - 2 * label)
    axes.set(xlim=(1 - room, max(n, 1 + difference) + room), ylim=(-depth, 1.6))
    axes.axis("off")
    return figure


def rank_changes(results: pd.DataFrame, kinds: list[str], looks: Looks) -> Figure:
    """Rank of every method while tuning and on the evaluation stream, a panel per protocol kind."""
    n_methods = results.method.nunique()
    figure, grid = _panels(len(kinds), 3, 0.9 + 0.3 * n_methods)
    for axes, kind in zip(grid, kinds, strict=True):
        for row in results[results.kind == kind].itertuples():
            look = looks[row.method]
            axes.plot(
                [0, 1], [row.tuning_rank, row.evaluation_rank], color=look.colour, linestyle=look.matplotlib_dash,
                marker=look.matplotlib_marker, markersize=7, linewidth=1.6, clip_on=False,
            )  # fmt: skip
        axes.set_title(kind, loc="left", **STYLE)
        axes.set_xticks([0, 1], ["tuning", "evaluation"], **STYLE)
        axes.set_yticks(range(1, n_methods + 1))
        axes.set(xlim=(-0.15, 1.15), ylim=(n_methods + 0.4, 0.6))
    for axes in grid[::3]:
        axes.set_ylabel("rank", **STYLE)
    _legend(figure, results.method.unique(), looks, lines=True)
    return figure


def optimism_gaps(gaps: pd.DataFrame, metric: Metric, looks: Looks) -> Figure:
    """Optimism gap of every method with its interval, in the unit that the metric is shown in."""
    figure, (axes,) = _panels(1, 1, 0.4 + 0.3 * len(gaps))
    axes.axvline(0, color="0.6", linewidth=1, zorder=0)
    for place, row in enumerate(gaps.itertuples()):
        look = looks[row.method]
        if np.isfinite(row.low):
            axes.plot(
                [metric.scale * row.low, metric.scale * row.high], [place, place], color=look.colour, linewidth=1.6
            )
        axes.plot(metric.scale * row.gap, place, color=look.colour, marker=look.matplotlib_marker, markersize=7)
    axes.set_yticks(range(len(gaps)), [_shortened(method, 30) for method in gaps.method], **STYLE)
    axes.set_ylim(len(gaps) - 0.5, -0.5)
    axes.set_xlabel(f"{with_unit(metric)}: conventional − two_phase, on the evaluation stream", **STYLE)
    return figure


def sensitivity(scores: pd.DataFrame, importance: pd.Series | None, metric: Metric, looks: Looks) -> Figure:
    """Tuning score by value, a panel per hyperparameter, and the importance of each."""
    del looks  # about one method
    parameters = list(scores.parameter.unique())
    figure, grid = _panels(len(parameters) + (importance is not None), 3, 2.1)
    for axes, parameter in zip(grid, parameters, strict=False):
        points, are_categories = score_by_value(scores, parameter)
        x = pd.Series(pd.factorize(points.value)[0]) if are_categories else points.value
        axes.plot(x, metric.scale * points.score, "o", color="#0072B2", alpha=0.6, markersize=5, markeredgewidth=0)
        if are_categories:
            medians = metric.scale * points.score.groupby(x).median()
            axes.plot(medians.index, medians, "_", color="black", markersize=16, markeredgewidth=1.6)
            axes.margins(x=0.12)
            values = [_shortened(value, 16) for value in points.value.unique()]
            axes.set_xticks(range(len(values)), values, rotation=30 if len("".join(values)) > 24 else 0)
        elif points.value.min() > 0 and points.value.max() > 100 * points.value.min():
            axes.set_xscale("log")
        axes.set_xlabel(parameter, **STYLE)
    for axes in grid[: len(parameters) : 3]:
        axes.set_ylabel(with_unit(metric), **STYLE)
    if importance is not None:
        _importance_bars(grid[-1], importance)
    return figure


DRAW: dict[str, Callable[..., Figure]] = {
    draw.__name__: draw
    for draw in (
        accuracy_curves, switch_zoom, accuracy_matrices, stability_plasticity, cost_fronts, critical_difference,
        rank_changes, optimism_gaps, sensitivity, just_learned, connectivity, quantities, quantity_maps,
    )
}  # fmt: skip
"""Kind of a :class:`~clbench.reports.figures.ReportFigure` → the function that draws it."""


def _panels(count: int, columns: int, row_height: float) -> tuple[Figure, list[Axes]]:
    """A figure of ``count`` panels, at most ``columns`` beside each other."""
    columns = min(columns, count)
    rows = -(-count // columns)
    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08)
    figure = Figure(figsize=(WIDTH, rows * row_height + 0.2), layout=layout)
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in grid[count:]:
        axes.remove()
    for axes in grid[:count]:
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    return figure, grid[:count]


def _importance_bars(axes: Axes, importance: pd.Series) -> None:
    """A bar per hyperparameter in percent, its name on the bar: beside it there would be no room for the panel."""
    ordered = importance.sort_values()
    axes.barh(range(len(ordered)), 100 * ordered, color="0.8", height=0.7)
    for place, name in enumerate(ordered.index):
        axes.text(0, place, f" {_shortened(str(name), 28)}", va="center", fontsize=8)
    axes.set_yticks([])
    axes.set_xlabel("importance (% of variance)", **STYLE)


def _lines_with_bands(axes: Axes, lines: pd.DataFrame, looks: Looks, scale: float = 100) -> None:
    """Means and the range over seeds, times ``scale``: fractions are shown in percent."""
    n_methods = lines.method.nunique()
    for place, (method, line) in enumerate(lines.groupby("method", sort=False)):
        look = looks[str(method)]
        # Few markers, at other places for every method: lines that lie on each other are still seen.
        between = max(n_methods, len(line) // 6)
        axes.fill_between(line.x, scale * line.low, scale * line.high, color=look.colour, alpha=0.15, linewidth=0)
        axes.plot(
            line.x, scale * line["mean"], color=look.colour, linestyle=look.matplotlib_dash, linewidth=1.2,
            marker=look.matplotlib_marker, markersize=4, markevery=(place * between // n_methods, between),
        )  # fmt: skip


def _points(axes: Axes, x: pd.Series, y: pd.Series, look: Look) -> None:
    """Seeds faint, their mean large."""
    marker = look.matplotlib_marker
    axes.plot(x, y, marker, color=look.colour, alpha=0.35, markersize=4, markeredgewidth=0)
    axes.plot(x.mean(), y.mean(), marker, color=look.colour, markersize=9, markeredgecolor="white", zorder=4)


def _legend(figure: Figure, methods: np.ndarray, looks: Looks, lines: bool = False, below: bool = False) -> None:
    handles = [
        Line2D(
            [], [], color=looks[method].colour, label=_shortened(method, 40),
            linestyle=looks[method].matplotlib_dash if lines else "none",
            marker=looks[method].matplotlib_marker, markersize=5,
        )
        for method in methods
    ]  # fmt: skip
    longest = max(len(str(handle.get_label())) for handle in handles)
    columns = max(1, min(len(handles), 110 // (longest + 10)))
    figure.set_figheight(figure.get_figheight() + 0.18 * -(-len(handles) // columns))
    figure.legend(
        handles=handles, loc="outside lower left" if below else "outside upper left", ncols=columns, fontsize=8.5, frameon=False,
        handlelength=3.2 if lines else 1.5,
    )  # fmt: skip


def _shortened(text: str, most: int) -> str:
    shown = text if len(text) <= most else text[: most - 1] + "…"
    return shown.replace("$", r"\$")  # a pair of them would be set as a formula
