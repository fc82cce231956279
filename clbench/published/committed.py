"""The comparisons that are committed, ``reports/published/<table>.csv``: what ``describe`` says of a strategy."""

import csv
from dataclasses import dataclass
from pathlib import Path

from clbench.conf_files import published_dir


@dataclass(frozen=True)
class Committed:
    """A published figure that clbench's runs have been compared with."""

    table: str
    cell: str
    setting: str
    metric: str
    published: str
    clbench: str
    verdict: str


def of_strategy(strategy: str, folder: Path | None = None) -> list[Committed]:
    """The figures of a strategy for which there are runs, alone or with others added to it; weak ones are left out.

    Args:
        strategy: its registered name.
        folder: with the CSV files; None: where they are committed.
    """
    found = []
    for file in sorted((folder or published_dir()).glob("*.csv")):
        with file.open(encoding="utf-8", newline="") as lines:
            for row in csv.DictReader(lines):
                if strategy in row["strategy"].split("+") and row["clbench"] and row["weak"] != "True":
                    found.append(_entry(file.stem, row))
    return found


def _entry(table: str, row: dict[str, str]) -> Committed:
    return Committed(
        table,
        row["cell"],
        row["setting"],
        row["metric"],
        _figure(row["published"], "" if row["spread_kind"] == "reading" else row["published_spread"]),
        _figure(row["clbench"], row["clbench_std"]),
        row["verdict"],
    )


def _figure(mean: str, spread: str) -> str:
    return f"{float(mean):.2f}" + (f" ± {float(spread):.2f}" if spread else "")
