"""What the figures of quantities over tasks show, against closed forms and brute force."""

import numpy as np
import pandas as pd
import pytest
from made_comparison import LAYERS, made_comparison

from clbench.reports.quantity_data import (
    QuantityMap,
    plasticity_lines,
    quantity_lines,
    quantity_maps,
    shortened_parts,
    spans_decades,
)


def reported(**options) -> pd.DataFrame:
    """Measurements of one scenario, see :func:`made_comparison.made_measurements`; seed s is shifted by 0.01 · s."""
    return made_comparison(scenarios=("one",), reporting=("er", "ewc"), **options).measurements


def test_lines_are_mean_lowest_and_highest_seed_of_the_whole_network():
    lines = quantity_lines(reported())
    assert list(lines) == ["free_share", "flops"]
    for method, shift in (("er", 0.0), ("ewc", 0.1)):
        line = lines["free_share"][lines["free_share"].method == method].set_index("x")
        expected = {task + 1: 0.8 ** (task + 1) + shift for task in range(4)}
        assert line["mean"].to_dict() == pytest.approx({x: value + 0.01 for x, value in expected.items()})
        assert line.low.to_dict() == pytest.approx(expected)
        assert line.high.to_dict() == pytest.approx({x: value + 0.02 for x, value in expected.items()})


def test_measures_of_plasticity_over_tasks():
    lines = plasticity_lines(made_comparison(scenarios=("one",), plasticity=("er", "ewc")).plasticity)
    assert list(lines) == ["training accuracy (%)", "dead units (%)", "gradient norm", "largest singular value"]
    ewc = {heading: line[line.method == "ewc"].set_index("x") for heading, line in lines.items()}
    accuracy = ewc["training accuracy (%)"]
    assert accuracy["mean"].to_dict() == pytest.approx({task: 100 - 10 * task - 11 for task in (1, 2, 3, 4)})
    assert accuracy.low.to_dict() == pytest.approx({task: 100 - 10 * task - 12 for task in (1, 2, 3, 4)})
    assert accuracy.high.to_dict() == pytest.approx({task: 100 - 10 * task - 10 for task in (1, 2, 3, 4)})
    assert ewc["dead units (%)"]["mean"].tolist() == pytest.approx([0, 10, 20, 30])  # of the last layer
    assert ewc["largest singular value"]["mean"].tolist() == pytest.approx([5, 5, 5, 5.11])  # of the largest
    assert [heading for heading, line in lines.items() if spans_decades(line)] == ["gradient norm"]


def test_a_quantity_that_differs_between_seeds_only_is_no_line():
    table = reported()
    table.loc[table.quantity == "density", "value"] += 0.1 * table.seed
    assert "density" not in quantity_lines(table)


def test_maps_of_layers_and_of_earlier_tasks():
    layers, tasks = quantity_maps(reported())
    assert (layers.quantity, tasks.quantity) == ("free_share", "overlap")
    assert list(layers.maps) == list(tasks.maps) == ["er", "ewc"]
    expected = [[0.8**task - 0.01 * place + 0.1 + 0.01 for task in range(1, 5)] for place in range(3)]
    assert list(layers.maps["ewc"].index) == LAYERS
    assert list(layers.maps["ewc"].columns) == [1, 2, 3, 4]
    np.testing.assert_allclose(layers.maps["ewc"], expected)
    overlap = tasks.maps["er"]
    assert (list(overlap.index), list(overlap.columns)) == ([2, 3, 4], [1, 2, 3])
    np.testing.assert_allclose(overlap, [[0.11, np.nan, np.nan], [0.21, 0.11, np.nan], [0.31, 0.21, 0.11]])
    assert tasks.range == (0, pytest.approx(0.3 + 0.1 + 0.01))
    assert tasks.texts["er"].tolist() == [["0.11", "", ""], ["0.21", "0.11", ""], ["0.31", "0.21", "0.11"]]


@pytest.mark.parametrize(
    ("largest", "text"),
    [(0.0014, "0.0014"), (0.05, "0.050"), (0.5, "0.50"), (5, "5.00"), (50, "50.0"), (500, "500"), (5000, None)],
)
def test_values_are_written_as_far_as_there_is_room(largest, text):
    shown = QuantityMap("q", False, {"er": pd.DataFrame([[largest, np.nan]], ["a"], [1, 2])})
    assert shown.texts is None if text is None else shown.texts["er"].tolist() == [[text, ""]]


def test_parts_that_only_begin_like_a_task_are_pieces_of_the_network():
    table = reported()
    table["part"] = table.part.replace({"task 0": "task 0 head", "task 1": "tasks 1", "task 2": "subtask 2"})
    found = quantity_maps(table)
    assert [one.of_tasks for one in found] == [False, False]
    assert list(found[1].maps["er"].index) == ["task 0 head", "tasks 1", "subtask 2"]


def test_eleven_tasks_come_in_their_order_and_have_no_room_for_values():
    _, tasks = quantity_maps(reported(n_tasks=12))
    assert list(tasks.maps["er"].columns) == list(range(1, 12))
    assert tasks.texts is None


def test_methods_with_other_layers_share_the_rows_of_a_map():
    table = reported()
    table = table[~((table.method == "er") & (table.part == LAYERS[1]))]
    maps = quantity_maps(table)[0].maps
    assert set(maps["er"].index) == set(maps["ewc"].index) == set(LAYERS)
    assert maps["er"].loc[LAYERS[1]].isna().all()


def test_a_quantity_with_one_value_has_no_map():
    table = reported()
    table.loc[table.part.isin(LAYERS), "value"] = 0.2
    assert [one.quantity for one in quantity_maps(table)] == ["overlap"]


def test_parts_lose_a_last_word_that_all_have():
    assert shortened_parts(LAYERS) == ["backbone.conv1", "backbone.conv2", "head"]
    assert shortened_parts(["a.weight", "b.bias"]) == ["a.weight", "b.bias"]
    assert shortened_parts(["weight", "a.weight"]) == ["weight", "a.weight"]
