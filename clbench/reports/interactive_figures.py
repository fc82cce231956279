"""The figures of a report for a browser: plotly.

Every trace that belongs to a method carries its name in ``meta``, by which the page hides and shows it.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

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
from clbench.reports.figures import ReportFigure
from clbench.reports.interactive_traces import (
    add_points,
    band_trace,
    cut,
    gap_trace,
    line_trace,
    literal,
    make_panels,
    named,
)
from clbench.reports.measurement_tables import quantity_heading
from clbench.reports.palette import Look
from clbench.reports.quantity_data import QuantityMap, shortened_parts
from clbench.reports.tables import Metric

Looks = Mapping[str, Look]


def draw(figure: ReportFigure, looks: Looks) -> dict[str, go.Figure]:
    """The pictures of a figure: one under the name of its method (empty: several), or for heat maps one per method."""
    drawn = DRAW[figure.kind](looks=looks, **figure.data)
    if isinstance(drawn, dict):
        return drawn
    listed = {trace.name for trace in drawn.data if trace.name and trace.showlegend is not False}
    legend_rows = -(-sum(70 + 7 * len(name) for name in listed) // 900)
    drawn.layout.height += 26 * legend_rows
    return {figure.method: drawn}


def accuracy_curves(curves: Curves, looks: Looks) -> go.Figure:
    """Accuracy in percent against training time, a panel each for single tasks and for the mean over the tasks seen."""
    figure, cells = make_panels([panel.title for panel in curves.panels], 2, 270)
    for (row, column), panel in zip(cells, curves.panels, strict=True):
        where = {"row": row, "col": column}
        for method, line in panel.lines.groupby("method", sort=False):
            look = looks[str(method)]
            figure.add_trace(band_trace(str(method), line, look, curves.switches), **where)
            gaps = panel.gaps[panel.gaps.method == method]
            if len(gaps):
                figure.add_trace(gap_trace(str(method), line, gaps, look), **where)
            figure.add_trace(
                line_trace(str(method), line, look, curves.switches, legend=(row, column) == (1, 1)), **where
            )
        figure.update_yaxes(range=[-3, 103], title_text="accuracy (%)" if column == 1 else None, **where)
        is_lowest = row == cells[-1][0] or (row, column) == cells[len(cells) - 2]
        figure.update_xaxes(range=[0, curves.end], title_text=curves.x_label if is_lowest else None, **where)
    figure.update_layout(
        shapes=[
            {"type": "line", "x0": position, "x1": position, "y0": -3, "y1": 103, "layer": "below"}
            | {"xref": f"x{number}", "yref": f"y{number}", "line": {"color": "#ccc", "width": 1}}
            for number in ["", *range(2, len(cells) + 1)]
            for position in curves.switches
        ]
    )
    return figure


def switch_zoom(lines: pd.DataFrame, looks: Looks) -> go.Figure:
    """Accuracy in percent on the task just learned against iterations since the switch."""
    figure, _ = make_panels([""], 1, 340)
    for method, line in lines.groupby("method", sort=False):
        look = looks[str(method)]
        figure.add_trace(band_trace(str(method), line, look))
        figure.add_trace(line_trace(str(method), line, look, legend=True))
    figure.update_xaxes(title_text="iterations since the task switch")
    figure.update_yaxes(title_text="accuracy (%)")
    return figure


def accuracy_matrices(matrices: Mapping[str, np.ndarray], looks: Looks) -> dict[str, go.Figure]:
    """A heat map per method: accuracy in percent on every task (columns) after every task (rows)."""
    del looks  # every method has a heat map of its own; the argument is there for all figures
    figures = {}
    for method, matrix in matrices.items():
        written = matrix.shape[1] <= MOST_WRITTEN
        figure, _ = make_panels([cut(method, 40)], 1, 330)
        figure.add_trace(
            go.Heatmap(
                x=np.arange(1, matrix.shape[1] + 1), y=np.arange(1, matrix.shape[0] + 1), z=(100 * matrix).round(1),
                zmin=0, zmax=100, colorscale="Blues", texttemplate="%{z:.0f}" if written else None, hoverongaps=False,
                hovertemplate="task %{x} after task %{y}: %{z:.1f} %<extra></extra>",
                showscale=not written, colorbar={"title": {"text": "%"}, "thickness": 10, "outlinewidth": 0}, meta=method,
            )
        )  # fmt: skip
        step = -(-matrix.shape[1] // 10)
        figure.update_xaxes(title_text="task evaluated", dtick=step, tick0=1, showgrid=False)
        figure.update_yaxes(title_text="after learning task", dtick=step, tick0=1, autorange="reversed", showgrid=False)
        figures[method] = figure
    return figures


def just_learned(lines: pd.DataFrame, looks: Looks) -> go.Figure:
    """Accuracy in percent on every task when it was just learned."""
    figure, _ = make_panels([""], 1, 340)
    for method, line in lines.groupby("method", sort=False):
        look = looks[str(method)]
        trace = line_trace(str(method), line, look)
        hover = f"{literal(str(method))}: %{{y:.1f}} % on task %{{x}}<extra></extra>"
        figure.add_trace(band_trace(str(method), line, look))
        figure.add_trace(trace.update(hovertemplate=hover))
    figure.update_xaxes(title_text="task")
    figure.update_yaxes(title_text="accuracy (%)")
    return figure


def connectivity(lines: Mapping[str, pd.DataFrame], looks: Looks) -> go.Figure:
    """Accuracy in percent on the line between the states after two tasks, a panel each for the current and the earlier tasks."""
    figure, cells = make_panels(list(lines), 2, 300)
    for (row, column), line in zip(cells, lines.values(), strict=True):
        where = {"row": row, "col": column}
        for method, own in line.groupby("method", sort=False):
            name, look = str(method), looks[str(method)]
            trace = line_trace(name, own, look, legend=column == 1)
            hover = f"{literal(name)}: %{{y:.1f}} % at λ = %{{x:.3~g}}<extra></extra>"
            figure.add_trace(band_trace(name, own, look), **where)
            figure.add_trace(trace.update(hovertemplate=hover), **where)
        figure.update_xaxes(title_text="λ", **where)
    figure.update_yaxes(title_text="accuracy (%)", row=1, col=1)
    return figure


def quantities(
    lines: Mapping[str, pd.DataFrame], looks: Looks, columns: int = 2, logarithmic: Collection[str] = ()
) -> go.Figure:
    """Quantities of the whole network against the tasks learned, a panel for each, ``columns`` beside each other."""
    figure, cells = make_panels([cut(quantity_heading(quantity), 60) for quantity in lines], columns, 250)
    in_legend: set[str] = set()
    for (row, column), (quantity, line) in zip(cells, lines.items(), strict=True):
        where = {"row": row, "col": column}
        for method, own in line.groupby("method", sort=False):
            name, look = str(method), looks[str(method)]
            trace = line_trace(name, own, look, legend=name not in in_legend, scale=1)
            trace.update(
                mode="lines+markers", marker={"symbol": look.plotly_marker, "size": 6},
                hovertemplate=f"{literal(name)}: %{{y:.4~g}} after task %{{x}}<extra></extra>",
            )  # fmt: skip
            figure.add_trace(band_trace(name, own, look, scale=1), **where)
            figure.add_trace(trace, **where)
            in_legend.add(name)
        if quantity in logarithmic:
            figure.update_yaxes(type="log", **where)
        is_lowest = (row, column) in cells[-columns:]
        ticks = {"tick0": 1, "dtick": -(-int(line.x.max()) // 10)}
        figure.update_xaxes(title_text="tasks learned" if is_lowest else None, **ticks, **where)
    return figure


def quantity_maps(shown: QuantityMap, looks: Looks) -> dict[str, go.Figure]:
    """A heat map per method of a quantity with parts: earlier tasks, or pieces of the network."""
    del looks  # every method has a heat map of its own; the argument is there for all figures
    figures = {}
    lowest, highest = shown.range
    for method, table in shown.maps.items():
        rows = list(table.index) if shown.of_tasks else shortened_parts(list(table.index))
        names = [literal(str(name)) for name in rows]
        figure, _ = make_panels([cut(method, 40)], 1, max(330, 60 + 17 * len(table)))
        between = "with task %{x} after task %{y}" if shown.of_tasks else "of %{y} after task %{x}"
        figure.add_trace(
            go.Heatmap(
                x=[str(task) for task in table.columns], y=names, z=table.to_numpy().astype(np.float32), zmin=lowest,
                zmax=highest, colorscale="Blues", hoverongaps=False, meta=method, colorbar={"thickness": 10, "outlinewidth": 0},
                text=shown.texts[method] if shown.texts else None, texttemplate="%{text}" if shown.texts else None,
                hovertemplate=f"{literal(quantity_heading(shown.quantity))} {between}: %{{z:.4~g}}<extra></extra>",
            )
        )  # fmt: skip
        figure.update_xaxes(
            title_text="earlier task" if shown.of_tasks else "after learning task", type="category", showgrid=False
        )
        figure.update_yaxes(
            title_text="after learning task" if shown.of_tasks else None, type="category", autorange="reversed",
            showgrid=False, automargin=True, tickfont_size=13 if shown.of_tasks else 10,
        )  # fmt: skip
        figures[method] = figure
    return figures


def stability_plasticity(points: pd.DataFrame, n_tasks: int | None, looks: Looks) -> go.Figure:
    """Stability against plasticity in percent: seeds faint, means large, lines of equal ACC where all runs have ``n_tasks``."""
    figure, _ = make_panels([""], 1, 420)
    x_range, y_range = (_padded(100 * points[name]) for name in ("plasticity", "stability"))
    if n_tasks:
        x = np.array(x_range)
        levels = equal_acc_levels((x[0] / 100, x[1] / 100), (y_range[0] / 100, y_range[1] / 100), n_tasks)
        for level in levels:
            y = 100 * stability_at(x / 100, level, n_tasks)
            figure.add_trace(
                go.Scatter(
                    x=x,
                    y=y,
                    mode="lines",
                    line={"color": "#999", "dash": "dot", "width": 1},
                    hoverinfo="skip",
                    showlegend=False,
                )
            )
            # The label stands where the line leaves the picture, at the right or at the top.
            at = np.interp(y_range[1], y, x) if y[1] > y_range[1] else x[1]
            label = {"x": [at], "y": [min(y[1], y_range[1])], "text": [f"ACC {100 * level:.3g}"]}
            figure.add_trace(
                go.Scatter(
                    **label, mode="text", textposition="bottom left", textfont={"color": "#666", "size": 11},
                    hoverinfo="skip", showlegend=False,
                )
            )  # fmt: skip
    for method, rows in points.groupby("method", sort=False):
        add_points(figure, str(method), 100 * rows.plasticity, 100 * rows.stability, looks[str(method)])
    figure.update_xaxes(title_text="plasticity: accuracy just after learning (%)", range=x_range)
    figure.update_yaxes(title_text="stability: 1 − FORG (%)", range=y_range)
    return figure


def cost_fronts(runs: pd.DataFrame, metric: Metric, looks: Looks, off_front: Collection[str] = ()) -> go.Figure:
    """The metric against one cost, chosen by buttons, with the Pareto front of the means of methods not in ``off_front``."""
    table = costs(runs, metric)
    shown = [cost for cost in COSTS if table[cost].notna().any()]
    figure, _ = make_panels([""], 1, 420)
    methods = list(table.method.unique())
    means, may_be_best = mean_costs(table, off_front)

    def coordinates(cost: str) -> tuple[list[Any], list[Any]]:
        """x and y of every trace: the front, then seeds and mean of every method."""
        known = may_be_best.dropna(subset=[cost, "score"])
        front = known.iloc[pareto_front(known[cost].to_numpy(), known.score.to_numpy(), metric.higher_is_better)]
        x, y = [front[cost].tolist()], [front.score.tolist()]
        for method in methods:
            rows = table[table.method == method]
            x += [rows[cost].tolist(), [means[cost][method]]]
            y += [rows.score.tolist(), [means.score[method]]]
        return x, y

    line = {"color": "#888", "width": 1, "shape": "hv"}
    figure.add_trace(go.Scatter(mode="lines", line=line, name="not beaten in both", hoverinfo="skip"))
    for method in methods:
        add_points(
            figure, method, table.score[table.method == method], table.score[table.method == method], looks[method]
        )
    buttons: list[dict[str, Any]] = []
    for cost in shown:
        x, y = coordinates(cost)
        wide = means[cost].min() > 0 and means[cost].max() > 10 * means[cost].min()
        axis = {"xaxis.title.text": COSTS[cost], "xaxis.type": "log" if wide else "linear", "xaxis.autorange": True}
        buttons.append({"label": COSTS[cost], "method": "update", "args": [{"x": x, "y": y}, axis]})
    for trace, x, y in zip(figure.data, *coordinates(shown[0]), strict=True):
        trace.update(x=x, y=y)
    figure.update_xaxes(title_text=COSTS[shown[0]], type=buttons[0]["args"][1]["xaxis.type"])
    figure.update_yaxes(title_text=with_unit(metric))
    figure.update_layout(
        updatemenus=[
            {"type": "dropdown", "buttons": buttons, "x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom"}
        ],
        margin={"t": 50},
    )
    return figure


def critical_difference(
    average_ranks: pd.Series, difference: float, cliques: list[list[str]], looks: Looks
) -> go.Figure:
    """Critical-difference diagram (Demšar 2006, figure 1): best on the left, bars join what cannot be told apart."""
    n = len(average_ranks)
    first_label = 0.45 + 0.25 * len(cliques)
    depth = first_label + 0.45 * (-(-n // 2) - 1) + 0.4
    figure, _ = make_panels([""], 1, int(90 + 42 * depth))
    black = {"color": "black", "width": 1}

    def lines(x: list[Any], y: list[Any], **more: Any) -> None:
        figure.add_trace(go.Scatter(x=x, y=y, mode="lines", line=black | more, showlegend=False, hoverinfo="skip"))

    def texts(x: list[Any], y: list[Any], text: list[str], position: str, **more: Any) -> None:
        style = {"mode": "text", "textposition": position, "showlegend": False, "hoverinfo": "skip"}
        figure.add_trace(go.Scatter(x=x, y=y, text=text, **style, **more))

    ranks = list(range(1, n + 1))
    lines([1, n], [0, 0])
    for tick in ranks:
        lines([tick, tick], [0, 0.12])
    texts(ranks, [0.12] * n, [str(rank) for rank in ranks], "top center")
    lines([1, 1, 1, 1 + difference, 1 + difference, 1 + difference], [0.9, 1.1, 1.0, 1.0, 1.1, 0.9])
    texts([1 + difference / 2], [1.0], [f"critical difference {difference:.2f}"], "top center")
    for row, clique in enumerate(cliques):
        members, overhang = average_ranks[clique], 0.01 * (n - 1)
        lines([members.min() - overhang, members.max() + overhang], [-0.25 - 0.25 * row] * 2, width=4)
    margin = 0.05 * (n - 1)
    for method, rank, side, row in sides(average_ranks):
        look, height = looks[method], -first_label - 0.45 * row
        end = 1 - margin if side == "left" else n + margin
        figure.add_trace(
            go.Scatter(
                x=[rank, rank, end], y=[0, height, height], mode="lines+markers", meta=method, showlegend=False,
                line={"color": look.colour, "width": 1.3}, hoverinfo="skip",
                marker={"symbol": look.plotly_marker, "size": [9, 0, 0], "color": look.colour, "opacity": 1},
            )
        )  # fmt: skip
        name = cut(method, 26)
        text = f"{name}  {rank:.2f}" if side == "left" else f"{rank:.2f}  {name}"
        texts([end], [height], [text], f"middle {side}", meta=method)
    # The labels stand outside the axis: its share of the width, 720 pixels on a narrow screen, is what they leave.
    label = 60 + 7.5 * max(min(len(method), 26) for method in average_ranks.index)
    room = margin + (n - 1) * label / (720 - 2 * label)
    figure.update_xaxes(visible=False, range=[1 - room, max(n, 1 + difference) + room])
    figure.update_yaxes(visible=False, range=[-depth, 1.6])
    return figure


def rank_changes(results: pd.DataFrame, kinds: Sequence[str], looks: Looks) -> go.Figure:
    """Rank of every method while tuning and on the evaluation stream, a panel per protocol kind."""
    n_methods = results.method.nunique()
    figure, cells = make_panels([literal(kind) for kind in kinds], 3, 110 + 30 * n_methods)
    for (row, column), kind in zip(cells, kinds, strict=True):
        for place, found in enumerate(results[results.kind == kind].itertuples()):
            look = looks[found.method]
            figure.add_trace(
                go.Scatter(
                    x=["tuning", "evaluation"], y=[found.tuning_rank, found.evaluation_rank], mode="lines+markers",
                    line={"color": look.colour, "dash": look.plotly_dash, "width": 2},
                    marker={"symbol": look.plotly_marker, "size": 10}, cliponaxis=False, **named(found.method),
                    showlegend=(row, column) == (1, 1), legendrank=place + 1,
                    hovertemplate=f"{literal(found.method)}: rank %{{y:g}}<extra></extra>",
                ),
                row=row, col=column,
            )  # fmt: skip
        figure.update_yaxes(
            range=[n_methods + 0.4, 0.6], dtick=1, tick0=1, title_text="rank" if column == 1 else None,
            row=row, col=column,
        )  # fmt: skip
    figure.update_xaxes(range=[-0.2, 1.2])
    return figure


def optimism_gaps(gaps: pd.DataFrame, metric: Metric, looks: Looks) -> go.Figure:
    """Optimism gap of every method with its interval, in the unit that the metric is shown in."""
    figure, _ = make_panels([""], 1, 110 + 32 * len(gaps))
    figure.add_vline(0, line={"color": "#999", "width": 1}, layer="below")
    for row in gaps.itertuples():
        look = looks[row.method]
        interval = {
            "type": "data", "symmetric": False, "array": [metric.scale * (row.high - row.gap)],
            "arrayminus": [metric.scale * (row.gap - row.low)],
        }  # fmt: skip
        figure.add_trace(
            go.Scatter(
                x=[metric.scale * row.gap], y=[cut(row.method, 40)], mode="markers", **named(row.method),
                marker={"color": look.colour, "symbol": look.plotly_marker, "size": 10},
                error_x=interval if np.isfinite(row.low) else None, showlegend=False,
                hovertemplate="%{x:.2f}<extra></extra>",
            )
        )  # fmt: skip
    figure.update_xaxes(title_text=f"{with_unit(metric)}: conventional − two_phase, on the evaluation stream")
    figure.update_yaxes(autorange="reversed", automargin=True)
    return figure


def sensitivity(scores: pd.DataFrame, importance: pd.Series | None, metric: Metric, looks: Looks) -> go.Figure:
    """Tuning score by value, a panel per hyperparameter, and the importance of each."""
    del looks  # about one method
    parameters = list(scores.parameter.unique())
    figure, cells = make_panels([""] * (len(parameters) + (importance is not None)), 3, 250)
    figure.update_layout(showlegend=False)
    for (row, column), parameter in zip(cells, parameters, strict=False):
        where = {"row": row, "col": column}
        points, are_categories = score_by_value(scores, parameter)
        dots = {"color": "#0072B2", "size": 8, "opacity": 0.6}
        hover = "%{x}: %{y:.1f}<extra></extra>"
        x = points.value.map(literal) if are_categories else points.value
        figure.add_trace(
            go.Scatter(x=x, y=metric.scale * points.score, mode="markers", marker=dots, hovertemplate=hover), **where
        )
        if are_categories:
            medians = metric.scale * points.score.groupby(x, sort=False).median()
            bars = {"symbol": "line-ew", "size": 14, "line": {"width": 2.5, "color": "black"}}
            figure.add_trace(
                go.Scatter(
                    x=medians.index, y=medians, mode="markers", marker=bars, name="median",
                    hovertemplate="median %{y:.1f}<extra></extra>",
                ),
                **where,
            )  # fmt: skip
            figure.update_xaxes(type="category", **where)
        elif points.value.min() > 0 and points.value.max() > 100 * points.value.min():
            figure.update_xaxes(type="log", **where)
        figure.update_xaxes(title_text=literal(parameter), **where)
        figure.update_yaxes(title_text=with_unit(metric) if column == 1 else None, **where)
    if importance is not None:
        where = dict(zip(("row", "col"), cells[-1], strict=True))
        ordered = importance.sort_values()  # names on the bars: beside them there would be no room for the panel
        bar = go.Bar(
            x=100 * ordered, y=[cut(str(name), 36) for name in ordered.index], orientation="h",
            marker={"color": "#ccc"}, hovertemplate="%{y}: %{x:.0f} %<extra></extra>",
        )  # fmt: skip
        figure.add_trace(bar, **where)
        figure.update_xaxes(title_text="importance (% of variance)", **where)
        figure.update_yaxes(ticklabelposition="inside", ticks="", **where)
    return figure


DRAW: dict[str, Callable[..., Any]] = {
    drawing.__name__: drawing
    for drawing in (
        accuracy_curves, switch_zoom, accuracy_matrices, stability_plasticity, cost_fronts, critical_difference,
        rank_changes, optimism_gaps, sensitivity, just_learned, connectivity, quantities, quantity_maps,
    )
}  # fmt: skip
"""Kind of a :class:`~clbench.reports.figures.ReportFigure` → the function that draws it."""


def _padded(values: pd.Series) -> list[float]:
    low, high = float(values.min()), float(values.max())
    room = 0.12 * max(high - low, 1.0)
    return [low - room, high + room]
