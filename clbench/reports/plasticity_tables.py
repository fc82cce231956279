"""What reports show of measures of plasticity (``plasticity.parquet``): at which times, which quantities, and their table."""

from collections.abc import Iterable
from dataclasses import dataclass

import pandas as pd

from clbench.evaluation.metrics import accuracy_matrix, just_learned, learning_accuracy, learning_accuracy_slope
from clbench.reports.loading import Runs
from clbench.reports.measurement_tables import quantity_heading, unit_and_digits
from clbench.reports.tables import METRICS, Cell, Column, Table, mean_cell, measured_on

PROBE = "training images of the last task"
LAST_LAYER = "last hidden layer on these images"
WEIGHTS = "weights"


@dataclass(frozen=True)
class Quantity:
    """How a quantity of :mod:`clbench.evaluation.plasticity` is shown."""

    name: str
    heading: str
    measured_on: str
    scale: float = 1.0
    """Factor from the recorded unit to the shown one; fractions are shown in percent."""


QUANTITIES = {
    quantity.name: quantity
    for quantity in [
        Quantity("train_accuracy", "training accuracy (%)", PROBE, 100),
        Quantity("dead_frac_exact", "dead units (%)", LAST_LAYER, 100),
        Quantity("dormant_frac_redo", "dormant units (%)", LAST_LAYER, 100),
        Quantity("erank_entropy", "effective rank", LAST_LAYER),
        Quantity("stable_rank", "stable rank", LAST_LAYER),
        Quantity("weight_rms", "weight magnitude (RMS)", WEIGHTS),
        Quantity("init_distance_rms", "distance from the start (RMS)", WEIGHTS),
        Quantity("grad_norm_probe", "gradient norm", PROBE),
        Quantity("sigma_max", "largest singular value", WEIGHTS),
    ]
}
"""Recorded name → how it is shown; what else is recorded is in ``plasticity.csv`` only."""


def task_ends(recorded: pd.DataFrame) -> pd.DataFrame:
    """The rows of one run's ``plasticity.parquet`` from the end of each task."""
    return recorded[recorded.iteration == recorded.groupby("task_learning").iteration.transform("max")]


def shown_values(plasticity: pd.DataFrame) -> pd.DataFrame:
    """One value per run, task and quantity of :data:`QUANTITIES`, in the recorded unit.

    They are those of the probe ``current``, of the last hidden layer where there is one value per layer, and of the weight
    matrix with the largest ``sigma_max``.

    Args:
        plasticity: see :attr:`clbench.reports.comparison.Comparison.plasticity`.

    Returns:
        Columns ``method, folder, task_learning, quantity, value``, ordered by folder as they come and by task.
    """
    found = plasticity[plasticity.probe.isin(["", "current"]) & plasticity.quantity.isin(list(QUANTITIES))]
    # A run records its layers from the input to the output. The share of dead units is a number whatever the activations are.
    last_layer = found[found.quantity == "dead_frac_exact"].groupby("folder").part.last()
    of_layers = found.quantity.map(lambda name: QUANTITIES[name].measured_on == LAST_LAYER).astype(bool)
    found = found[~of_layers | (found.part == found.folder.map(last_layer))]
    # Of all but sigma_max there is one value now, which is its own maximum.
    return found.groupby(["method", "folder", "task_learning", "quantity"], sort=False).value.max().reset_index()


def plasticity_table(plasticity: pd.DataFrame, rows: pd.DataFrame, methods: Iterable[str], runs: Runs) -> Table:
    """How well the methods of one scenario learned over the tasks, and what became of their networks: a row per method.

    Args:
        plasticity: that of the scenario, see :attr:`clbench.reports.comparison.Comparison.plasticity`.
        rows: the finished runs of the scenario.
        methods: labels, in the order of the rows.
        runs: gives the accuracies at task ends.
    """
    scenario = str(rows.scenario.iloc[0])
    learned = {folder: _learned(runs.tasks(folder)) for folder in rows.folder}
    accuracies = pd.DataFrame.from_dict(learned, orient="index", columns=["LA", "LA_slope", "first", "last"])
    values = shown_values(plasticity)
    is_last = values.task_learning == values.groupby("folder").task_learning.transform("max")
    at_end = values[is_last].pivot(index="folder", columns="quantity", values="value").reindex(rows.folder)
    names = [name for name in QUANTITIES if name in at_end]
    shown = {name: _unit_and_digits(QUANTITIES[name], at_end[name]) for name in names}

    where = measured_on("LA", rows)
    columns = [
        Column("method"),
        *(Column(METRICS[name].heading_with_arrow, where, True) for name in ("LA", "LA_slope")),
    ]
    columns += [Column(f"LA of the {place} tenth ↑", where, True) for place in ("first", "last")]
    for name in names:
        heading = quantity_heading(QUANTITIES[name].heading, shown[name][0])
        columns.append(Column(heading, QUANTITIES[name].measured_on, True))
    body = []
    for method in methods:
        folders = rows.folder[rows.method == method]
        own = accuracies.reindex(folders)
        cells = [mean_cell(100 * own[name], 2 if name == "LA_slope" else 1) for name in accuracies]
        for name in names:
            unit, digits = shown[name]
            cells.append(mean_cell(QUANTITIES[name].scale * at_end[name].reindex(folders) / unit, digits))
        body.append([Cell(method, method), *cells])
    return Table(f"{scenario}: plasticity", _caption(names), columns, body, scenario)


def recorded_names(headings: Iterable[str]) -> str:
    """Headings of :data:`QUANTITIES` with the names under which ``plasticity.parquet`` holds them.

    >>> recorded_names(["gradient norm", "dead units (%)"])
    'grad_norm_probe = gradient norm, dead_frac_exact = dead units (%)'
    """
    names = {quantity.heading: quantity.name for quantity in QUANTITIES.values()}
    return ", ".join(f"{names[heading]} = {heading}" for heading in headings)


def _learned(tasks: pd.DataFrame) -> tuple[float, float, float, float]:
    """LA, its slope, and the mean of R[i, i] over the first and over the last tenth of the tasks, rounded up."""
    R = accuracy_matrix(tasks)
    accuracy = just_learned(R)
    tenth = -(-len(accuracy) // 10)
    first, last = accuracy[:tenth], accuracy[len(accuracy) - tenth :]
    return learning_accuracy(R), learning_accuracy_slope(R), float(first.mean()), float(last.mean())


def _unit_and_digits(quantity: Quantity, values: pd.Series) -> tuple[float, int]:
    return (1.0, 1) if quantity.scale == 100 else unit_and_digits(values, small_too=True)


def _caption(names: list[str]) -> str:
    headings = [QUANTITIES[name].heading for name in names]
    return (
        "LA is the mean accuracy (%) on a task when it was just learned, its slope is taken over all tasks but the first, and "
        "the tenths are the same mean over the first and over the last tenth of the tasks (rounded up). All other columns were "
        "measured after the last task. Mean ± half the width of the 95 % t-interval over seeds. "
        f"Names in plasticity.parquet: {recorded_names(headings)}; clbench/evaluation/plasticity.py has the formulas."
    )
