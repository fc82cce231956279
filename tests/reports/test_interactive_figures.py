"""The plotly figures, read back from their traces."""

import dataclasses

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from made_comparison import METHODS, Shape, made_comparison, made_curve

from clbench.reports.figure_data import curves
from clbench.reports.figures import figures_of
from clbench.reports.interactive_figures import (
    accuracy_curves,
    accuracy_matrices,
    cost_fronts,
    critical_difference,
    draw,
    just_learned,
    optimism_gaps,
    quantities,
    rank_changes,
    sensitivity,
    stability_plasticity,
)
from clbench.reports.interactive_figures import (
    quantity_maps as draw_maps,
)
from clbench.reports.interactive_traces import MOST_POINTS
from clbench.reports.palette import looks
from clbench.reports.quantity_data import plasticity_lines, quantity_lines, quantity_maps
from clbench.reports.tables import METRICS

LOOKS = looks(METHODS)


def traces(figure: go.Figure, **properties) -> list[go.Scatter]:
    """The traces with these properties."""
    return [trace for trace in figure.data if all(trace[name] == value for name, value in properties.items())]


def test_every_trace_of_a_method_carries_its_name():
    for figure in figures_of(made_comparison(scenarios=("one", "two", "three"))):
        if figure.kind == "sensitivity":
            continue  # hidden as a whole
        drawn = draw(figure, LOOKS)
        for picture in drawn.values():
            for trace in picture.data:
                colours = {trace.line.color, trace.marker.color} if trace.type == "scatter" else set()
                is_a_methods = colours & {look.colour for look in LOOKS.values()}
                assert not is_a_methods or trace.meta in METHODS
                assert trace.legendgroup in (None, trace.meta)
        assert {trace.meta for picture in drawn.values() for trace in picture.data} >= set(METHODS), figure.kind


def test_curve_lines_bands_gaps_and_switches():
    shown = curves({"er": [made_curve(Shape(0.3, 0.0), shift=shift) for shift in (-0.02, 0.0, 0.02)]})
    figure = accuracy_curves(shown, LOOKS)
    first_panel = [trace for trace in figure.data if trace.xaxis == "x"]
    band, gap, line = first_panel
    assert dict(zip(line.x.tolist(), line.y.round(3).tolist(), strict=True))[105] == 60
    assert (band.y.min().round(3), band.y.max().round(3)) == (58, 92)
    assert (band.fill, gap.fill) == ("toself", "toself")
    first_gap = gap.x.index(None) if isinstance(gap.x, list) else next(i for i, x in enumerate(gap.x) if x is None)
    assert set(gap.x[:first_gap]) == set(range(100, 119))
    assert max(gap.y[:first_gap]) == pytest.approx(90)
    assert min(gap.y[:first_gap]) == pytest.approx(60)
    assert sorted({shape.x0 for shape in figure.layout.shapes}) == [100, 200, 300]
    assert len(figure.layout.shapes) == 3 * len(shown.panels)
    assert len(traces(figure, showlegend=True)) == 1


def test_long_curves_are_thinned_and_their_minima_stay_true():
    table = made_curve(Shape(0.3, 0.0), n_tasks=3, per_task=5000)
    table.loc[(table.iteration == 7777) & (table.task_eval == 0), "correct"] = 123
    figure = accuracy_curves(curves({"er": [table]}), LOOKS)
    for trace in figure.data:
        assert len(trace.x) <= MOST_POINTS
    line = next(trace for trace in figure.data if trace.xaxis == "x" and trace.showlegend)
    assert line.y.min() == np.float32(12.3)
    assert line.x[line.y.argmin()] == 7777
    assert {5000, 5001, 10000, 10001} <= set(line.x.tolist())


def test_matrix_has_a_picture_per_method_with_values_up_to_ten_tasks():
    matrices = {"er": np.array([[0.9, np.nan], [0.8, 0.7]]), "ewc": np.full((11, 11), 0.5)}
    drawn = accuracy_matrices(matrices, LOOKS)
    assert list(drawn) == ["er", "ewc"]
    small, large = (drawn[method].data[0] for method in matrices)
    np.testing.assert_array_equal(small.z, [[90, np.nan], [80, 70]])
    assert small.texttemplate == "%{z:.0f}"
    assert large.texttemplate is None
    assert drawn["er"].layout.yaxis.autorange == "reversed"


def test_plane_shows_seeds_and_means():
    points = pd.DataFrame({"method": ["er", "er", "ewc"], "plasticity": [0.8, 0.9, 0.95], "stability": [1.0, 0.9, 0.5]})
    figure = stability_plasticity(points, 4, LOOKS)
    seeds, mean = traces(figure, meta="er")
    assert (list(seeds.x), list(seeds.y)) == ([80, 90], [100, 90])
    assert (mean.x[0], mean.y[0]) == pytest.approx((85, 95))
    lines = [trace for trace in figure.data if trace.line.dash == "dot"]
    assert lines
    labels = [trace.text[0] for trace in figure.data if trace.mode == "text"]
    for line, label in zip(lines, labels, strict=True):
        acc = np.array(line.x) - 0.75 * (100 - np.array(line.y))
        np.testing.assert_allclose(acc, float(label.removeprefix("ACC ")), atol=1e-9)
    assert not any(trace.line.dash == "dot" for trace in stability_plasticity(points, None, LOOKS).data)


def test_cost_buttons_change_every_trace_and_the_front():
    runs = made_comparison(scenarios=("one",)).included
    runs = runs.assign(peak_memory_bytes=runs.method.map({"er": 8 * 2**20, "ewc": 4 * 2**20, "finetune": 2 * 2**20}))
    figure = cost_fronts(runs, METRICS["ACC"], LOOKS)
    buttons = {button.label: button.args for button in figure.layout.updatemenus[0].buttons}
    assert len(buttons) == 4
    data, axis = buttons["peak memory (MiB)"]
    assert len(data["x"]) == len(data["y"]) == len(figure.data)
    assert data["x"][0] == [2, 4, 8]  # cheapest first, each more accurate than the one before
    assert np.all(np.diff(data["y"][0]) > 0)
    assert axis["xaxis.title.text"] == "peak memory (MiB)"
    assert list(figure.data[0].x) == [11.0]  # by time er beats the others in both
    er = [place for place, trace in enumerate(figure.data) if trace.meta == "er"]
    assert data["x"][er[0]] == [8, 8, 8]
    assert data["x"][er[1]] == [8]


def test_critical_difference_diagram():
    ranks = pd.Series({"er": 1.3, "ewc": 2.0, "finetune": 2.7})
    figure = critical_difference(ranks, 0.9, [["er", "ewc"], ["ewc", "finetune"]], LOOKS)
    for method, rank in ranks.items():
        leader, label = traces(figure, meta=method)
        assert leader.x[0] == rank
        assert f"{rank:.2f}" in label.text[0]
        assert method in label.text[0]
    bars = [trace for trace in figure.data if trace.line.width == 4]
    assert [(bar.x[0] < low < high < bar.x[1]) for bar, (low, high) in zip(bars, [(1.3, 2), (2, 2.7)], strict=True)]
    assert bars[0].y[0] != bars[1].y[0]
    assert any(trace.text and "0.90" in trace.text[0] for trace in figure.data)


def test_ranks_cross_where_the_order_changes():
    results = made_comparison().protocols[0].results
    figure = rank_changes(results, ["two_phase", "conventional"], LOOKS)
    found = {(trace.meta, trace.xaxis): tuple(trace.y) for trace in figure.data}
    assert found["er", "x"] == (1, 2)
    assert found["ewc", "x"] == (2, 1)
    assert found["er", "x2"] == (1, 1)
    assert figure.layout.yaxis.range[0] > figure.layout.yaxis.range[1]  # rank 1 on top


def test_optimism_gap_is_in_points_with_its_interval():
    gaps = pd.DataFrame({"method": ["er", "ewc"], "gap": [0.02, 0.01], "low": [0.005, np.nan], "high": [0.03, np.nan]})
    figure = optimism_gaps(gaps, METRICS["ACC"], LOOKS)
    er, ewc = figure.data
    assert er.x[0] == pytest.approx(2)
    assert (er.x[0] + er.error_x.array[0], er.x[0] - er.error_x.arrayminus[0]) == pytest.approx((3, 0.5))
    assert ewc.error_x.array is None


def test_sensitivity_shows_trials_medians_and_importance():
    found = made_comparison().sensitivity[0]
    figure = sensitivity(found.scores, found.importance, METRICS["ACC"], LOOKS)
    lr, lr_medians, lam, _, importance = figure.data
    assert set(lr.x) == {"0.01", "0.1"}
    assert len(lr.x) == len(lam.x) == 12
    assert dict(zip(lr_medians.x, lr_medians.y, strict=True)) == pytest.approx({"0.01": 69, "0.1": 89})
    assert dict(zip(importance.y, importance.x, strict=True)) == {"trainer.lr": 90, "strategy.lam": 10}
    without = sensitivity(found.scores, None, METRICS["ACC"], LOOKS)
    assert not any(trace.type == "bar" for trace in without.data)


def test_names_are_shown_literally():
    name = "<b>a</b> $x$ & co"
    comparison = dataclasses.replace(made_comparison([name, "er"], ("one",)))
    for figure in figures_of(comparison):
        for picture in draw(figure, looks([name, "er"])).values():
            texts = [trace.name for trace in picture.data if trace.name]
            assert not any("<b>" in text or "$" in text for text in texts)


def test_room_for_the_legend_grows_with_it():
    def height(methods: list[str]) -> int:
        figure = next(figures_of(made_comparison(methods, ("one",))))
        return draw(figure, looks(methods))[""].layout.height

    assert height([f"a method with a long name {i}" for i in range(8)]) > height(["a", "b"]) + 26


def test_what_methods_report_against_the_tasks_learned():
    measurements = made_comparison(scenarios=("one",), reporting=("er", "ewc")).measurements
    figure = quantities(quantity_lines(measurements), LOOKS)
    (line,) = traces(figure, meta="ewc", mode="lines+markers", xaxis="x")
    assert list(line.x) == [1, 2, 3, 4]
    np.testing.assert_allclose(line.y, [0.8**task + 0.11 for task in range(1, 5)], rtol=1e-6)
    (band,) = traces(figure, meta="ewc", fill="toself", xaxis="x")
    assert (band.y.min(), band.y.max()) == pytest.approx((0.8**4 + 0.1, 0.8 + 0.12))
    assert {trace.meta for trace in traces(figure, showlegend=True)} == {"er", "ewc"}
    assert len(traces(figure, showlegend=True)) == 2
    assert {trace.xaxis for trace in figure.data} == {"x", "x2"}


def test_plasticity_in_small_multiples_over_the_tasks():
    lines = plasticity_lines(made_comparison(scenarios=("one",), plasticity=("er", "ewc")).plasticity)
    figure = quantities(lines, LOOKS, columns=3, logarithmic=["gradient norm"])
    assert [title.text for title in figure.layout.annotations] == list(lines)
    layout = figure.layout
    assert [axis.type for axis in (layout.yaxis, layout.yaxis2, layout.yaxis3, layout.yaxis4)] == [
        None,
        None,
        "log",
        None,
    ]
    (line,) = traces(figure, meta="ewc", mode="lines+markers", xaxis="x3")
    np.testing.assert_allclose(line.y, [1, 0.1, 0.01, 0.001], rtol=1e-6)
    assert [layout.xaxis.title.text, layout.xaxis2.title.text, layout.xaxis4.title.text] == [
        None,
        *["tasks learned"] * 2,
    ]


def test_accuracy_on_tasks_just_learned_in_percent():
    lines = pd.DataFrame({"method": "er", "x": [1, 2], "mean": [0.9, 0.7], "low": 0.6, "high": 1.0})
    figure = just_learned(lines, LOOKS)
    (line,) = traces(figure, meta="er", showlegend=True)
    np.testing.assert_allclose([line.x, line.y], [[1, 2], [90, 70]])
    (band,) = traces(figure, meta="er", fill="toself")
    assert (band.y.min(), band.y.max()) == (60, 100)


def test_heat_maps_of_what_methods_report():
    measurements = made_comparison(scenarios=("one",), reporting=("er", "ewc")).measurements
    layers, tasks = (draw_maps(shown, LOOKS) for shown in quantity_maps(measurements))
    assert list(layers) == list(tasks) == ["er", "ewc"]
    er, ewc = (layers[method].data[0] for method in ("er", "ewc"))
    assert list(er.y) == ["backbone.conv1", "backbone.conv2", "head"]
    assert list(er.x) == ["1", "2", "3", "4"]
    assert (er.zmin, er.zmax) == (ewc.zmin, ewc.zmax) == (0, pytest.approx(0.8 + 0.11))
    np.testing.assert_allclose(er.z[2], [0.8**task - 0.02 + 0.01 for task in range(1, 5)], rtol=1e-6)
    overlap = tasks["er"].data[0]
    assert (list(overlap.y), list(overlap.x)) == (["2", "3", "4"], ["1", "2", "3"])
    assert np.isnan(overlap.z[0][1])
    assert tasks["er"].layout.yaxis.autorange == "reversed"


def test_every_trace_of_a_reporting_method_carries_its_name():
    comparison = made_comparison(scenarios=("one",), reporting=("er", "ewc"), plasticity=("er", "ewc"))
    for figure in figures_of(comparison):
        if figure.section in ("reported", "plasticity"):
            assert {trace.meta for picture in draw(figure, LOOKS).values() for trace in picture.data} == {"er", "ewc"}
