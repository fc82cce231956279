"""The training loss, term by term, read from the device now and then."""

import math

import pandas as pd
import torch
from torch import Tensor

COLUMNS = ("task_learning", "iteration", "term", "loss")

Row = tuple[int, int, str, float]


class LossRecord:
    """Every step's loss terms. They stay on the device until somebody asks: reading one makes the host wait."""

    def __init__(self) -> None:
        self._waiting: list[tuple[int, int, dict[str, Tensor]]] = []
        self._rows: list[Row] = []
        self._n_checked = 0

    def add(self, task: int, iteration: int, terms: dict[str, Tensor]) -> None:
        """Take note of a step's terms, scalars on the device by name."""
        self._waiting.append((task, iteration, terms))

    def add_value(self, task: int, iteration: int, term: str, loss: float) -> None:
        """Take note of a term that has been read already (in a fleet)."""
        self._rows.append((task, iteration, term, loss))

    def rows(self) -> list[Row]:
        """All rows, in the columns of :data:`COLUMNS`."""
        if self._waiting:
            values = torch.stack([value for _, _, terms in self._waiting for value in terms.values()]).tolist()
            names = [(task, iteration, name) for task, iteration, terms in self._waiting for name in terms]
            self._rows += [(*name, value) for name, value in zip(names, values, strict=True)]
            self._waiting = []
        return list(self._rows)

    def restore(self, rows: list[Row]) -> None:
        """Go on from the rows of a checkpoint."""
        self._rows = [(task, iteration, term, loss) for task, iteration, term, loss in rows]
        self._n_checked = len(rows)

    def first_not_finite(self) -> Row | None:
        """The first row since the last call whose loss is NaN or infinite; all rows of later iterations are then dropped."""
        rows, start = self.rows(), self._n_checked
        self._n_checked = len(rows)
        bad = next((row for row in rows[start:] if not math.isfinite(row[3])), None)
        if bad is not None:
            self._rows = [row for row in rows if row[1] <= bad[1]]
        return bad

    @property
    def table(self) -> pd.DataFrame:
        """The rows as a table."""
        return pd.DataFrame(self.rows(), columns=list(COLUMNS))
