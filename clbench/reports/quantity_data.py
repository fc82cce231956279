"""What the figures of quantities over tasks show: what methods report of themselves, and measures of plasticity.

Numbers in, numbers out, as in :mod:`clbench.reports.figure_data`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from clbench.reports.figure_data import MOST_WRITTEN, across_seeds
from clbench.reports.plasticity_tables import QUANTITIES, shown_values

EARLIER_TASK = r"task \d+"
"""The part of a quantity that is about an earlier task, counted from 0; any other part is a piece of the network."""


def quantity_lines(measurements: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """How quantities of the whole network change while the stream is learned.

    Args:
        measurements: those of one strategy on one scenario, see :attr:`clbench.reports.comparison.Comparison.measurements`.

    Returns:
        Quantity → columns ``method, x, mean, low, high``: x counts the tasks learned, the others are over seeds. Quantities
        that no run sees change are left out.
    """
    lines = {}
    whole = measurements[measurements.part == ""]
    for quantity, rows in whole.groupby("quantity", sort=False):
        if rows.groupby("folder").value.nunique().max() < 2:
            continue
        lines[str(quantity)] = _over_tasks(rows)
    return lines


def plasticity_lines(plasticity: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """How the measures of plasticity that reports show change over the tasks.

    Args:
        plasticity: that of one scenario, see :attr:`clbench.reports.comparison.Comparison.plasticity`.

    Returns:
        Heading (of :data:`clbench.reports.plasticity_tables.QUANTITIES`) → columns ``method, x, mean, low, high`` in the shown
        unit: x counts the tasks learned, the others are over seeds.
    """
    values = shown_values(plasticity)
    lines = {}
    for quantity in QUANTITIES.values():
        rows = values[values.quantity == quantity.name]
        if len(rows):
            lines[quantity.heading] = _over_tasks(rows.assign(value=quantity.scale * rows.value))
    return lines


def spans_decades(lines: pd.DataFrame) -> bool:
    """Whether lines are shown on a logarithmic axis: all values are above 0 and the highest is 100 times the lowest."""
    return bool(0 < 100 * lines.low.min() <= lines.high.max())


def _over_tasks(rows: pd.DataFrame) -> pd.DataFrame:
    """Columns ``method, x, mean, low, high`` from ``method, folder, task_learning, value`` with one row per run and task."""
    found = []
    for method, own in rows.groupby("method", sort=False):
        seeds = [run.set_index("task_learning").value.sort_index() for _, run in own.groupby("folder")]
        found.append(across_seeds(seeds).assign(method=method))
    table = pd.concat(found, ignore_index=True)
    return table.assign(x=table.x + 1)


@dataclass(frozen=True)
class QuantityMap:
    """A quantity with parts, to be drawn as one heat map per method."""

    quantity: str

    of_tasks: bool
    """Whether the parts are earlier tasks. If so: a row per task learned, a column per earlier task. If not: a row per part, a
    column per task learned."""

    maps: dict[str, pd.DataFrame]
    """Method → mean over seeds, NaN where nothing was reported; rows and columns are the same for all, tasks count from 1."""

    @property
    def range(self) -> tuple[float, float]:
        """Lowest and highest value of all maps, and 0: where the colour scale begins and ends."""
        values = np.concatenate([table.to_numpy().ravel() for table in self.maps.values()])
        return min(0.0, float(np.nanmin(values))), max(0.0, float(np.nanmax(values)))

    @property
    def texts(self) -> dict[str, np.ndarray] | None:
        """The values as they are written into the cells, per method; None where there is no room for them."""
        largest = max(map(abs, self.range))
        if max(next(iter(self.maps.values())).shape) > MOST_WRITTEN or largest >= 1000:
            return None
        small = 1 - math.floor(math.log10(largest)) if largest > 0 else 0  # two digits that count
        digits = next((digits for digits, least in enumerate((100, 10, 0.1)) if largest >= least), small)
        return {
            method: table.map(lambda value: "" if np.isnan(value) else f"{value:.{digits}f}").to_numpy()
            for method, table in self.maps.items()
        }


def quantity_maps(measurements: pd.DataFrame) -> list[QuantityMap]:
    """The quantities of one strategy on one scenario that have parts and more than a single value.

    Args:
        measurements: see :func:`quantity_lines`.
    """
    found = []
    parts = measurements[measurements.part != ""]
    is_task = parts.part.str.fullmatch(EARLIER_TASK)
    for of_tasks, of_kind in ((False, parts[~is_task]), (True, parts[is_task])):
        for quantity, rows in of_kind.groupby("quantity", sort=False):
            if rows.value.nunique() > 1:
                found.append(QuantityMap(str(quantity), of_tasks, _maps(rows, of_tasks)))
    return found


def _maps(rows: pd.DataFrame, of_tasks: bool) -> dict[str, pd.DataFrame]:
    """See :attr:`QuantityMap.maps`."""
    learned = rows.task_learning + 1
    if of_tasks:
        placed = rows.assign(row=learned, column=rows.part.str.removeprefix("task ").astype(int) + 1)
        index = sorted(placed.row.unique())
    else:
        placed = rows.assign(row=rows.part, column=learned)
        index = list(dict.fromkeys(placed.row))  # as the strategy names them: from the input to the output
    columns = sorted(placed.column.unique())
    return {
        str(method): own.pivot_table(index="row", columns="column", values="value").reindex(index, columns=columns)
        for method, own in placed.groupby("method", sort=False)
    }


def shortened_parts(parts: Sequence[str]) -> list[str]:
    """The names of parts without the last word, where that is the same in all.

    >>> shortened_parts(["backbone.conv1.weight", "head.weight"])
    ['backbone.conv1', 'head']
    """
    heads, words = zip(*(part.rpartition(".")[::2] for part in parts), strict=True)
    return list(heads) if all(heads) and len(set(words)) == 1 else list(parts)
