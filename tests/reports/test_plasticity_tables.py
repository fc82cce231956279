"""What reports show of measures of plasticity, against numbers computed by hand."""

import numpy as np
import pandas as pd
import pytest
from made_runs import write_run
from scipy import stats

from clbench.reports.comparison import Comparison, compare
from clbench.reports.measurement_tables import quantity_heading, unit_and_digits
from clbench.reports.text_formats import latex, markdown, plasticity_numbers

N_TASKS = 20


def recorded(seed: int) -> list[tuple[int, int, str, str, str, float]]:
    """A run's rows for 20 tasks of 10 steps: 99 wherever a table or a figure would be wrong to look."""
    rows = []
    for task in range(N_TASKS):
        for step in (0, 4, 10):
            at = task, 10 * task + step
            end = step == 10
            rows += [
                (*at, "current", "train_accuracy", "", 0.9 - 0.01 * task - 0.1 * seed if end else 99),
                (*at, "current", "dead_frac_exact", "in", 99),
                (*at, "current", "dead_frac_exact", "out", 0.01 * task if end else 99),
                (*at, "current", "stable_rank", "in", 99),
                (*at, "current", "stable_rank", "out", 4.0 + seed if end else 99),
                (*at, "", "weight_rms", "", 0.004 if end else 99),
                (*at, "", "sigma_max", "in", 3.0 + seed if end else 99),
                (*at, "", "sigma_max", "out", 1.0),
                (*at, "", "condition", "in", np.inf if seed == 1 else 7.0),
            ]
            if task:
                rows.append((*at, "earlier", "train_accuracy", "", 0.25))
    return rows


def learned(seed: int) -> list[float]:
    """R[i, i]: 0.5 on the first task, which has no part in the slope, then 0.9 less a hundredth per task and seed."""
    return [0.5, *(0.9 - 0.01 * task - 0.01 * seed for task in range(1, N_TASKS))]


@pytest.fixture(scope="module")
def comparison(tmp_path_factory) -> Comparison:
    """Two seeds of er with measures of plasticity, two of ewc without."""
    folder = tmp_path_factory.mktemp("runs")
    for seed in range(2):
        write_run(folder / f"a{seed}", "er", seed, plasticity=recorded(seed), learned=learned(seed))
        write_run(folder / f"b{seed}", "ewc", seed, learned=learned(seed))
    return compare([folder])


def half_width(values: list[float]) -> float:
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    return (high - low) / 2


def test_table_of_learning_accuracy_and_of_the_network_after_the_last_task(comparison):
    [table] = comparison.plasticity_tables
    er, ewc = ({column.heading: cell for column, cell in zip(table.columns, row, strict=True)} for row in table.rows)
    la = [100 * np.mean(learned(seed)) for seed in range(2)]
    assert er["LA ↑"].text == f"{np.mean(la):.1f} ± {half_width(la):.1f}"
    assert er["LA slope (points per task) ↑"].text == "-1.00 ± 0.00"
    assert er["LA of the first tenth ↑"].value == pytest.approx(
        (50 + 89 + 50 + 88) / 4
    )  # two of twenty tasks, two seeds
    assert er["LA of the last tenth ↑"].value == pytest.approx((72 + 71 + 71 + 70) / 4)
    shown = {name: cell.text for name, cell in list(er.items())[5:]}
    assert shown == {
        "training accuracy (%)": f"66.0 ± {half_width([71, 61]):.1f}",
        "dead units (%)": "19.0 ± 0.0",
        "stable rank": "4 ± 6",
        "weight magnitude (RMS) (10⁻³)": "4.00 ± 0.00",
        "largest singular value": "4 ± 6",
    }
    assert [cell.text for cell in list(ewc.values())[1:5]] == [cell.text for cell in list(er.values())[1:5]]
    assert {cell.text for cell in list(ewc.values())[5:]} == {"–"}
    assert "dead_frac_exact = dead units (%)" in table.caption
    assert "erank_entropy" not in table.caption  # not measured here


def test_a_single_task_is_its_own_first_and_last_tenth(tmp_path):
    write_run(tmp_path / "a", "er", learned=[0.75], plasticity=[(0, 10, "", "weight_rms", "", 0.5)])
    [table] = compare([tmp_path]).plasticity_tables
    assert [cell.text for cell in table.rows[0]] == ["er", "75.0", "–", "75.0", "75.0", "0.500"]


def test_numbers_of_every_task_end(comparison):
    table = plasticity_numbers(comparison)
    keys = ["method", "task_learning", "probe", "quantity", "part"]
    assert not table.duplicated(keys).any()
    assert len(table) == 9 * N_TASKS + N_TASKS - 1
    found = table.set_index(keys)
    accuracy = found.loc["er", 19, "current", "train_accuracy", ""]
    assert (accuracy["mean"], accuracy.runs) == (pytest.approx(0.66), 2)
    assert accuracy.half_width == pytest.approx(half_width([0.71, 0.61]))
    assert found.loc["er", 3, "earlier", "train_accuracy", ""]["mean"] == 0.25
    assert found.loc["er", 3, "current", "dead_frac_exact", "in"]["mean"] == 99
    condition = found.loc["er", 0, "", "condition", "in"]
    assert (condition["mean"], condition.runs) == (7, 1)  # infinite in the other seed
    assert np.isnan(condition.half_width)


def test_markdown_and_latex_have_the_table(comparison):
    assert "## Plasticity\n\n### stream: plasticity" in markdown(comparison, [])
    text = latex(comparison)
    assert r"weight magnitude (RMS) (10$^-$$^3$)" in text
    assert text.isascii()


def test_without_measures_there_is_no_table(tmp_path):
    write_run(tmp_path / "a", "er", learned=learned(0))
    comparison = compare([tmp_path])
    assert comparison.plasticity_tables == []
    assert comparison.plasticity.empty
    assert "Plasticity" not in markdown(comparison, [])


def test_small_values_are_shown_in_a_power_of_ten_where_that_is_asked_for():
    small = pd.Series([2e-5, 3e-5, 4e-5])
    assert unit_and_digits(small) == (1, 4)
    unit, digits = unit_and_digits(small, small_too=True)
    assert (unit, digits) == (pytest.approx(1e-6), 1)
    assert quantity_heading("gradient norm", unit) == "gradient norm (10⁻⁶)"
    assert unit_and_digits(pd.Series([0.005, 0.02]), small_too=True) == (1, 4)
