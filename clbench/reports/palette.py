"""How a method looks in every figure of a report: one colour, dash and marker for each, the same in plotly and matplotlib."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from clbench.reports.curve_figure import OKABE_ITO

DASHES: list[tuple[str, tuple[float, ...]]] = [
    ("solid", ()),
    ("6px,2px", (6, 2)),
    ("2px,2px", (2, 2)),
    ("8px,2px,2px,2px", (8, 2, 2, 2)),
    ("12px,3px", (12, 3)),
    ("4px,2px,1px,2px,1px,2px", (4, 2, 1, 2, 1, 2)),
    ("1px,3px", (1, 3)),
    ("12px,2px,4px,2px", (12, 2, 4, 2)),
]
"""Dash patterns for plotly (pixels) and matplotlib (points); an empty tuple is a solid line."""

MARKERS: list[tuple[str, str]] = [
    ("circle", "o"),
    ("square", "s"),
    ("triangle-up", "^"),
    ("diamond", "D"),
    ("x", "X"),
    ("triangle-down", "v"),
    ("cross", "P"),
    ("star", "*"),
    ("pentagon", "p"),
]
"""Marker names in plotly and matplotlib."""


@dataclass(frozen=True)
class Look:
    """The look of one method. ``colour`` is a hex triplet; the rest is named as plotly and matplotlib name it."""

    colour: str
    plotly_dash: str
    plotly_marker: str
    matplotlib_dash: tuple[float, tuple[float, ...]] | Literal["solid"]
    matplotlib_marker: str

    def faint(self, opacity: float) -> str:
        """The colour as CSS ``rgba(…)`` with an opacity in [0, 1], for bands."""
        red, green, blue = (int(self.colour[start : start + 2], 16) for start in (1, 3, 5))
        return f"rgba({red},{green},{blue},{opacity:g})"


def looks(methods: Sequence[str]) -> dict[str, Look]:
    """A look for every method, in the given order.

    The colours are those of Okabe & Ito (2008). Lines must also be told apart in grey print, so dash and marker change from
    method to method too: up to 7 methods differ in all three. The three lists have 7, 8 and 9 entries, numbers without a common
    factor, so that even 504 methods differ in at least one.
    """
    result = {}
    for index, method in enumerate(methods):
        plotly_dash, lengths = DASHES[index % len(DASHES)]
        plotly_marker, matplotlib_marker = MARKERS[index % len(MARKERS)]
        result[method] = Look(
            colour=OKABE_ITO[index % len(OKABE_ITO)],
            plotly_dash=plotly_dash,
            plotly_marker=plotly_marker,
            matplotlib_dash=(0, lengths) if lengths else "solid",
            matplotlib_marker=matplotlib_marker,
        )
    return result
