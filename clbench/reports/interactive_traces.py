"""What the figures for a browser are made of: panels, lines with bands, points, and texts that are no markup."""

from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from clbench.reports.figure_data import thin_out
from clbench.reports.palette import Look

MOST_POINTS = 2000
"""Points of one trace; longer curves are thinned out with their minima and maxima kept."""


def make_panels(titles: Sequence[str], columns: int, row_height: int) -> tuple[go.Figure, list[tuple[int, int]]]:
    """A figure with a panel per title, at most ``columns`` beside each other, and the (row, column) of each from 1."""
    columns = min(columns, len(titles))
    rows = -(-len(titles) // columns)
    cells = [(place // columns + 1, place % columns + 1) for place in range(len(titles))]
    figure = make_subplots(
        rows, columns, subplot_titles=titles if any(titles) else None, horizontal_spacing=0.09,
        vertical_spacing=min(0.3, 70 / (row_height * rows)), specs=[
            [{} if row * columns + column < len(titles) else None for column in range(columns)] for row in range(rows)
        ],
    )  # fmt: skip
    for number, title in enumerate(
        figure.layout.annotations, start=1
    ):  # at the left, where the mode bar does not cover them
        left = figure.layout[f"xaxis{'' if number == 1 else number}"].domain[0]
        title.update(x=left, xanchor="left", font_size=13)
    figure.update_layout(
        template="plotly_white", height=rows * row_height + 40, margin={"l": 60, "r": 15, "t": 30, "b": 50},
        font={"family": "system-ui, sans-serif", "size": 13, "color": "#222"}, hoverlabel={"namelength": -1},
        legend={"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom", "xref": "paper", "x": 0},
    )  # fmt: skip
    axis = {"showline": True, "linecolor": "#444", "ticks": "outside", "gridcolor": "#eee", "zeroline": False}
    figure.update_xaxes(**axis, title_font_size=13)
    figure.update_yaxes(**axis, title_font_size=13, title_standoff=8)
    return figure, cells


def named(method: str) -> dict[str, Any]:
    """Name and group of a trace in the legend, and ``meta``, by which the page finds it."""
    return {"name": cut(method, 40), "legendgroup": method, "meta": method}


def line_trace(
    method: str,
    line: pd.DataFrame,
    look: Look,
    switches: np.ndarray | None = None,
    legend: bool = True,
    scale: float = 100,
) -> go.Scatter:
    """The mean over seeds, times ``scale``; its extremes and the points at the ``switches`` survive thinning."""
    x, y = line.x.to_numpy(), line["mean"].to_numpy()
    kept = thin_out(x, y, MOST_POINTS - 2 * (0 if switches is None else len(switches)), switches)
    return go.Scatter(
        x=compact(x[kept]), y=compact(scale * y[kept]), mode="lines", **named(method), showlegend=legend,
        line={"color": look.colour, "dash": look.plotly_dash, "width": 1.8},
        hovertemplate=f"{literal(method)}: %{{y:.1f}} % at %{{x}}<extra></extra>",
    )  # fmt: skip


def band_trace(
    method: str, line: pd.DataFrame, look: Look, switches: np.ndarray | None = None, scale: float = 100
) -> go.Scatter:
    """Lowest to highest seed as one closed shape: along the upper edge and back along the lower."""
    x = line.x.to_numpy()
    most = MOST_POINTS // 2 - 2 * (0 if switches is None else len(switches))
    edges = []
    for edge in (line.high.to_numpy(), line.low.to_numpy()):
        kept = thin_out(x, edge, most, switches)
        edges.append((x[kept], scale * edge[kept]))
    (upper_x, upper), (lower_x, lower) = edges
    return go.Scatter(
        x=compact(np.concatenate([upper_x, lower_x[::-1]])), y=compact(np.concatenate([upper, lower[::-1]])),
        mode="lines", fill="toself", fillcolor=look.faint(0.15), line={"width": 0}, hoverinfo="skip",
        **named(method), showlegend=False,
    )  # fmt: skip


def gap_trace(method: str, line: pd.DataFrame, gaps: pd.DataFrame, look: Look) -> go.Scatter:
    """The stability gaps as closed shapes: along the accuracy at the switch and back along the curve."""
    x: list[float | None] = []
    y: list[float | None] = []
    most = max(10, MOST_POINTS // len(gaps) - 4)
    for gap in gaps.itertuples():
        within = line[line.x.between(gap.start, gap.stop)]
        below = np.minimum(within["mean"].to_numpy(), gap.level)
        kept = thin_out(within.x.to_numpy(), below, most)
        x += [gap.start, gap.stop, *within.x.to_numpy()[kept][::-1], None]
        y += [100 * gap.level, 100 * gap.level, *(100 * below[kept][::-1]), None]
    return go.Scatter(
        x=x[:-1], y=y[:-1], mode="lines", fill="toself", line={"width": 0}, hoverinfo="skip",
        fillpattern={"shape": "/", "fgcolor": look.colour, "bgcolor": look.faint(0.25), "size": 6, "solidity": 0.25},
        **named(method), showlegend=False,
    )  # fmt: skip


def add_points(figure: go.Figure, method: str, x: pd.Series, y: pd.Series, look: Look) -> None:
    """Seeds faint, their mean large."""
    marker = {"color": look.colour, "symbol": look.plotly_marker}
    hover = f"{literal(method)}: %{{x:.3~g}}, %{{y:.1f}} %<extra>seed</extra>"
    seeds = go.Scatter(x=x, y=y, mode="markers", marker=marker | {"size": 6, "opacity": 0.35}, hovertemplate=hover)
    mean = go.Scatter(
        x=[x.mean()], y=[y.mean()], mode="markers", hovertemplate=hover.replace("seed", "mean"),
        marker=marker | {"size": 13, "line": {"color": "white", "width": 1}},
    )  # fmt: skip
    figure.add_traces([seeds.update(**named(method), showlegend=False), mean.update(**named(method))])


def compact(values: np.ndarray) -> np.ndarray:
    """Four bytes a number: more than a screen can show, and half the page."""
    return values.astype(np.float32)


def cut(text: str, most: int) -> str:
    """Text for a place with room for so many characters."""
    return literal(text if len(text) <= most else text[: most - 1] + "…")


def literal(text: str) -> str:
    """Text that plotly draws as it is: a few HTML tags would be markup, and $…$ a formula."""
    return escape(text).replace("$", "&#36;")
