"""Tables of what methods report of themselves (``method.parquet``)."""

import math
from collections.abc import Iterable

import pandas as pd

from clbench.reports.tables import Cell, Column, Table, mean_cell

EXPONENTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")

MOST_DIGITS = 4
"""Digits after the point up to which a small quantity is shown."""


def last_of_whole(measurements: pd.DataFrame) -> pd.DataFrame:
    """The rows about the whole network after the last task of every run.

    Args:
        measurements: see :attr:`clbench.reports.comparison.Comparison.measurements`.
    """
    is_last = measurements.task_learning == measurements.groupby("folder").task_learning.transform("max")
    return measurements[is_last & (measurements.part == "")]


def measurement_tables(measurements: pd.DataFrame, rows: pd.DataFrame, methods: Iterable[str]) -> list[Table]:
    """What the methods of one scenario report of themselves: a table per strategy, a row per method, a column per quantity.

    Args:
        measurements: those of the scenario, see :attr:`clbench.reports.comparison.Comparison.measurements`.
        rows: the finished runs of the scenario.
        methods: labels, in the order of the rows; those that report nothing are left out.
    """
    scenario = str(rows.scenario.iloc[0])
    tables = []
    for strategy, reported in last_of_whole(measurements).groupby("strategy", sort=False):
        quantities = list(dict.fromkeys(reported.quantity))
        values = reported.pivot_table(index="folder", columns="quantity", values="value")
        shown = {name: unit_and_digits(values[name]) for name in quantities}
        columns = [Column(quantity_heading(name, shown[name][0]), is_number=True) for name in quantities]
        body = []
        for method in methods:
            own = values.reindex(rows.folder[rows.method == method])  # NaN where a run reports nothing
            if own.notna().any(axis=None):
                cells = [mean_cell(own[name] / shown[name][0], shown[name][1], True) for name in quantities]
                body.append([Cell(method, method), *cells])
        of_network = strategy == "evaluator"  # see clbench.evaluation.policy_shift, which imports torch
        what = "What was measured of the network" if of_network else f"What {strategy} says of itself"
        where = "clbench/evaluation/policy_shift.py" if of_network else f"python -m clbench describe {strategy}"
        caption = (
            f"{what} after the last task, for the whole network: mean ± half the width of the 95 % t-interval over seeds, no "
            f"interval where all seeds agree. Fractions are between 0 and 1. What each quantity is, {where} says."
        )
        tables.append(
            Table(f"{scenario}: what {strategy} reports", caption, [Column("method"), *columns], body, scenario)
        )
    return tables


def quantity_heading(quantity: str, unit: float = 1.0) -> str:
    """A quantity's name in words, with the power of ten that it is shown in."""
    power = f" (10{str(round(math.log10(unit))).translate(EXPONENTS)})" if unit != 1 else ""
    return quantity.replace("_", " ") + power


def unit_and_digits(values: pd.Series, small_too: bool = False) -> tuple[float, int]:
    """The power of ten that a quantity is shown in, 1 below a million, and how many digits after the point.

    Whole numbers have none; of others, a value of middle size has three digits that count.

    Args:
        values: undefined ones are NaN.
        small_too: whether a quantity whose values are all below a hundredth is shown in a negative power.
    """
    sizes = values.abs()[values.notna() & (values != 0)]
    if sizes.empty:
        return 1.0, 0
    has_power = sizes.max() >= 1e6 or (small_too and sizes.max() < 0.01)
    unit = 1000.0 ** (math.log10(sizes.max()) // 3) if has_power else 1.0
    if unit == 1 and (sizes % 1 == 0).all():
        return unit, 0
    return unit, min(MOST_DIGITS, max(0, 2 - math.floor(math.log10(sizes.median() / unit))))
