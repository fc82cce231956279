"""The looks of methods: told apart by colour-blind readers and in grey print."""

import itertools

from matplotlib.colors import to_rgb
from matplotlib.lines import Line2D
from plotly.graph_objects import Scatter

from clbench.reports.curve_figure import OKABE_ITO
from clbench.reports.palette import looks


def test_seven_methods_differ_in_colour_dash_and_marker_each():
    found = list(looks([f"m{i}" for i in range(7)]).values())
    for name in ("colour", "plotly_dash", "plotly_marker", "matplotlib_dash", "matplotlib_marker"):
        assert len({getattr(look, name) for look in found}) == 7
    assert {look.colour for look in found} == set(OKABE_ITO)


def test_forty_methods_differ_without_colour():
    found = looks([f"m{i}" for i in range(40)]).values()
    assert len({(look.plotly_dash, look.plotly_marker) for look in found}) == 40
    assert len({(look.matplotlib_dash, look.matplotlib_marker) for look in found}) == 40


def test_a_look_belongs_to_a_place_not_to_the_others():
    assert looks(["er", "ewc"])["ewc"] == looks(["a", "b", "c"])["b"]


def test_both_libraries_know_every_dash_and_marker():
    for look in looks([f"m{i}" for i in range(9)]).values():
        Line2D([], [], linestyle=look.matplotlib_dash, marker=look.matplotlib_marker)
        Scatter(line_dash=look.plotly_dash, marker_symbol=look.plotly_marker)


def test_faint_is_the_same_colour_with_an_opacity():
    look = looks(["er"])["er"]
    red, green, blue = (round(255 * part) for part in to_rgb(look.colour))
    assert look.faint(0.15) == f"rgba({red},{green},{blue},0.15)"


def test_neighbouring_colours_differ_in_hue_for_the_colour_blind():
    """Simulated deuteranopia (Viénot et al. 1999) leaves all pairs of the seven colours apart."""
    to_lms = [[17.8824, 43.5161, 4.11935], [3.45565, 27.1554, 3.86714], [0.0299566, 0.184309, 1.46709]]

    def seen(colour: str) -> tuple[float, float]:
        linear = [part**2.2 for part in to_rgb(colour)]
        lms = [sum(weight * part for weight, part in zip(row, linear, strict=True)) for row in to_lms]
        return lms[0] / 65.5, lms[2] / 1.68  # without the middle cones, two signals are left

    for first, second in itertools.combinations(OKABE_ITO, 2):
        distance = max(abs(a ** (1 / 2.2) - b ** (1 / 2.2)) for a, b in zip(seen(first), seen(second), strict=True))
        assert distance > 0.05, (first, second)
