"""The figures for paper: read back from matplotlib's artists, and written as files."""

import numpy as np
import pandas as pd
import pytest
from made_comparison import METHODS, Shape, made_comparison, made_curve
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from clbench.reports.figure_data import curves
from clbench.reports.figures import figures_of
from clbench.reports.palette import looks
from clbench.reports.print_figures import (
    DRAW,
    WIDTH,
    accuracy_curves,
    accuracy_matrices,
    critical_difference,
    draw_all,
    just_learned,
    optimism_gaps,
    quantities,
    rank_changes,
    sensitivity,
    stability_plasticity,
)
from clbench.reports.print_figures import (
    quantity_maps as draw_maps,
)
from clbench.reports.quantity_data import plasticity_lines, quantity_lines, quantity_maps
from clbench.reports.tables import METRICS

LOOKS = looks(METHODS)


def lines_of(axes: Axes, method: str) -> list[np.ndarray]:
    """The (n, 2) points of every line in the method's colour."""
    return [line.get_xydata() for line in axes.lines if line.get_color() == LOOKS[method].colour]


def test_files_and_captions(tmp_path):
    comparison = made_comparison(scenarios=("one",))
    written = draw_all(comparison, tmp_path / "new" / "figures")
    assert [name for name, _ in written] == [f"{figure.name}.png" for figure in figures_of(comparison)]
    assert {path.name for path in (tmp_path / "new" / "figures").iterdir()} == {name for name, _ in written}
    for name, caption in written:
        with Image.open(tmp_path / "new" / "figures" / name) as picture:
            assert picture.width == WIDTH * 200
            assert picture.info["dpi"] == pytest.approx((200, 200), abs=0.1)
            assert np.asarray(picture.convert("L")).std() > 1  # not blank
        assert caption.endswith(".")


def test_curve_lines_and_gaps():
    shown = curves({"er": [made_curve(Shape(0.3, 0.0), shift=shift) for shift in (-0.02, 0.0, 0.02)]})
    figure = accuracy_curves(shown, LOOKS)
    assert [axes.get_title(loc="left") for axes in figure.axes] == [panel.title for panel in shown.panels]
    (line,) = lines_of(figure.axes[0], "er")
    assert line[line[:, 0] == 105, 1] == pytest.approx(60)
    hatched = [patch for patch in figure.axes[0].collections if patch.get_hatch()]
    assert len(hatched) == 3
    extent = hatched[0].get_paths()[0].get_extents()
    assert (extent.x0, extent.x1, extent.y0, extent.y1) == pytest.approx((100, 118, 60, 90))
    band = next(patch for patch in figure.axes[0].collections if not patch.get_hatch())
    assert (band.get_paths()[0].get_extents().y0, band.get_paths()[0].get_extents().y1) == pytest.approx((58, 92))


def test_lines_that_lie_on_each_other_have_markers_at_other_places():
    table = made_curve(Shape(0.3, 0.0))
    figure = accuracy_curves(curves({"er": [table], "ewc": [table]}), LOOKS)
    offsets = [line.get_markevery()[0] for line in figure.axes[0].lines if len(line.get_xdata()) > 2]
    assert len(offsets) == len(set(offsets)) == 2


@pytest.mark.parametrize(("n_tasks", "written"), [(10, 55), (11, 0)])
def test_values_stand_in_matrices_of_up_to_ten_tasks(n_tasks, written):
    matrix = np.where(np.tri(n_tasks) > 0, 0.5, np.nan)
    figure = accuracy_matrices({"er": matrix}, LOOKS)
    assert [text.get_text() for text in figure.axes[0].texts] == ["50"] * written


def test_plane_and_its_lines():
    points = pd.DataFrame({"method": ["er", "er", "ewc"], "plasticity": [0.8, 0.9, 0.95], "stability": [1.0, 0.9, 0.5]})
    (axes,) = stability_plasticity(points, 4, LOOKS).axes
    assert [found.tolist() for found in lines_of(axes, "er")] == [[[80, 100], [90, 90]], [[85, 95]]]
    dotted = [line.get_xydata() for line in axes.lines if line.get_linestyle() == ":"]
    assert dotted
    for line, text in zip(dotted, axes.texts, strict=True):
        np.testing.assert_allclose(line[:, 0] - 0.75 * (100 - line[:, 1]), float(text.get_text()))


def test_critical_difference_diagram_fits_its_picture():
    names = [f"a method with a very long name {i}" for i in range(9)]
    ranks = pd.Series(np.arange(1.0, 10), names)
    figure = critical_difference(ranks, 3.0, [names[:3], names[2:5]], looks(names))
    figure.canvas.draw()
    width, height = figure.get_size_inches() * figure.dpi
    for text in figure.findobj(Text):
        box = text.get_window_extent()
        assert box.x0 >= 0
        assert box.x1 <= width
        assert box.y0 >= 0
        assert box.y1 <= height
    bars = [line.get_xdata() for line in figure.axes[0].lines if line.get_linewidth() == 3]
    assert [(low < first and last < high) for (low, high), first, last in zip(bars, (1, 3), (3, 5), strict=True)]


def test_ranks_cross_where_the_order_changes():
    results = made_comparison().protocols[0].results
    two_phase, conventional = rank_changes(results, ["two_phase", "conventional"], LOOKS).axes
    assert lines_of(two_phase, "er")[0][:, 1].tolist() == [1, 2]
    assert lines_of(two_phase, "ewc")[0][:, 1].tolist() == [2, 1]
    assert lines_of(conventional, "er")[0][:, 1].tolist() == [1, 1]
    assert two_phase.yaxis_inverted()


def test_optimism_gaps_have_intervals_only_where_defined():
    gaps = pd.DataFrame({"method": ["er", "ewc"], "gap": [0.02, 0.01], "low": [0.005, np.nan], "high": [0.03, np.nan]})
    (axes,) = optimism_gaps(gaps, METRICS["ACC"], LOOKS).axes
    interval, dot = lines_of(axes, "er")
    assert interval[:, 0].tolist() == pytest.approx([0.5, 3])
    assert dot[0, 0] == pytest.approx(2)
    assert len(lines_of(axes, "ewc")) == 1


def test_sensitivity_has_a_panel_per_parameter_and_importances():
    found = made_comparison().sensitivity[0]
    lr, lam, importance = sensitivity(found.scores, found.importance, METRICS["ACC"], LOOKS).axes
    assert (lr.get_xlabel(), lam.get_xlabel()) == ("trainer.lr", "strategy.lam")
    medians = next(line for line in lr.lines if line.get_marker() == "_")
    assert medians.get_ydata().tolist() == pytest.approx([69, 89])
    assert [bar.get_width() for bar in importance.patches] == [10, 90]
    assert len(sensitivity(found.scores, None, METRICS["ACC"], LOOKS).axes) == 2


def test_text_is_at_least_eight_points():
    for figure in figures_of(made_comparison(scenarios=("one", "two", "three"))):
        drawn: Figure = DRAW[figure.kind](looks=LOOKS, **figure.data)
        assert drawn.get_figwidth() == WIDTH
        sizes = [text.get_fontsize() for text in drawn.findobj(Text) if text.get_text() and text.get_visible()]
        assert min(sizes) >= 8, figure.kind


def test_dollars_in_names_are_no_formula():
    names = ["a$b_c$d", "er"]
    comparison = made_comparison(names, ("one",))
    for figure in figures_of(comparison):
        DRAW[figure.kind](looks=looks(names), **figure.data).canvas.draw()
    figure = accuracy_curves(curves({"a$b_c$d": [made_curve(Shape(0.3, 0.0))]}), looks(names))
    assert figure.legends[0].get_texts()[0].get_text() == r"a\$b_c\$d"


def test_what_methods_report_against_the_tasks_learned():
    measurements = made_comparison(scenarios=("one",), reporting=("er", "ewc")).measurements
    free, flops = quantities(quantity_lines(measurements), LOOKS).axes
    assert (free.get_title(loc="left"), flops.get_title(loc="left")) == ("free share", "flops")
    (line,) = lines_of(free, "ewc")
    np.testing.assert_allclose(line, [(task, 0.8**task + 0.11) for task in range(1, 5)])
    (line,) = lines_of(flops, "er")
    np.testing.assert_allclose(line[:, 1], [1e6, 2e6, 3e6, 4e6])


def test_plasticity_in_small_multiples_over_the_tasks(tmp_path):
    lines = plasticity_lines(made_comparison(scenarios=("one",), plasticity=("er", "ewc")).plasticity)
    figure = quantities(lines, LOOKS, columns=3, logarithmic=["gradient norm"])
    figure.savefig(tmp_path / "drawn.png")  # lays it out
    assert [axes.get_title(loc="left") for axes in figure.axes] == list(lines)
    assert [axes.get_yscale() for axes in figure.axes] == ["linear", "linear", "log", "linear"]
    assert [bool(axes.get_xlabel()) for axes in figure.axes] == [False, True, True, True]
    (line,) = lines_of(figure.axes[2], "ewc")
    np.testing.assert_allclose(line, [(task, 10.0 ** (1 - task)) for task in range(1, 5)])
    legend = figure.legends[0].get_window_extent()
    assert legend.y1 <= min(axes.get_tightbbox().y0 for axes in figure.axes)


def test_accuracy_on_tasks_just_learned_in_percent():
    lines = pd.DataFrame({"method": "er", "x": [1, 2], "mean": [0.9, 0.7], "low": 0.6, "high": 1.0})
    (axes,) = just_learned(lines, LOOKS).axes
    (line,) = lines_of(axes, "er")
    np.testing.assert_allclose(line, [(1, 90), (2, 70)])
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("task", "accuracy (%)")


def test_heat_maps_of_what_methods_report_share_their_colours():
    measurements = made_comparison(scenarios=("one",), reporting=("er", "ewc")).measurements
    layers, tasks = (draw_maps(shown, LOOKS) for shown in quantity_maps(measurements))
    er, ewc, scale = layers.axes
    assert (er.get_title(loc="left"), ewc.get_title(loc="left")) == ("er", "ewc")
    assert [text.get_text() for text in er.get_yticklabels()] == ["backbone.conv1", "backbone.conv2", "head"]
    assert er.images[0].get_clim() == ewc.images[0].get_clim() == (0, pytest.approx(0.8 + 0.11))
    assert scale.get_ylabel() == "free share"
    np.testing.assert_allclose(er.images[0].get_array()[2], [0.8**task - 0.02 + 0.01 for task in range(1, 5)])
    written = [text.get_text() for text in tasks.axes[0].texts if text.get_text()]
    assert written == ["0.11", "0.21", "0.11", "0.31", "0.21", "0.11"]


def test_what_methods_report_is_written_in_at_least_eight_points(tmp_path):
    comparison = made_comparison(["er", "a method with a long name", "ewc"], ("one",), reporting=("er", "ewc"))
    for figure in figures_of(comparison):
        if figure.section == "reported":
            drawn: Figure = DRAW[figure.kind](looks=looks(comparison.methods), **figure.data)
            drawn.savefig(tmp_path / "drawn.png")  # lays it out
            assert drawn.get_figwidth() == WIDTH
            assert min(text.get_fontsize() for text in drawn.findobj(Text) if text.get_text()) >= 8, figure.kind
