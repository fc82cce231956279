"""What enters a mean, and who may be called best: no method gains by runs that diverged, are missing or are not known.

A diverged run counts at chance level in accuracies, exactly as while tuning (:mod:`clbench.evaluation.chance`). Its forgetting,
plasticity, gaps and costs are not known: means of these are over finished runs, and the method cannot be best in them.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np
import pandas as pd

from clbench.evaluation.chance import ACCURACIES, chance_level
from clbench.reports.loading import Runs
from clbench.reports.tables import COST_COLUMNS, METRICS, Table

BOUNDS = {"min_ACC": "≤", "WC_ACC": "≤", "gap_depth": "≥"}
"""Metrics of which an adaptive evaluation that did not resolve the curve's minima knows only a bound, and its sign."""


def counted_runs(candidates: pd.DataFrame, runs: Runs) -> pd.DataFrame:
    """The runs that means are over: finished ones as they are, diverged ones with what they count as.

    Args:
        candidates: see :attr:`clbench.reports.checks.Selection.candidates`.
        runs: gives the streams of the diverged runs.

    Returns:
        The rows of finished and diverged runs; in those of diverged ones accuracies are chance level, all other metrics and
        costs NaN. Metrics that have no meaning for a finished run (``undefined`` in ``summary.json``) are NaN too.
    """
    counted = candidates[candidates.status.isin(["finished", "diverged"])].reset_index(drop=True)
    measured = [name for name in dict.fromkeys([*METRICS, *COST_COLUMNS]) if name in counted]
    counted[measured] = counted[measured].astype(float)
    for index in counted.index[counted.status == "diverged"]:
        stream = runs.stream(counted.folder[index])
        levels = [chance_level(stream, name) if name in ACCURACIES else np.nan for name in measured]
        counted.loc[index, measured] = levels
    if "undefined" in counted:
        for index, reasons in counted.undefined.items():
            # What a diverged run had not come to be measured for is not without meaning.
            if (
                isinstance(reasons, dict) and counted.status[index] == "finished"
            ):  # no dict: from before runs said which metrics have no meaning for them
                counted.loc[index, [name for name in reasons if name in measured]] = np.nan
    return counted


def is_bound(rows: pd.DataFrame, metric: str) -> bool:
    """Whether the metric's mean over these runs is only a bound, see :data:`BOUNDS`."""
    # Read from JSON: True, False, or None and NaN where there is no such entry.
    return metric in BOUNDS and "min_ACC_resolved" in rows and any(value is False for value in rows.min_ACC_resolved)


def reasons_not_best(counted: pd.DataFrame, methods: Iterable[str], n_seeds: int, metric: str) -> dict[str, str]:
    """Methods that cannot be called best in a metric → why, as a clause.

    Args:
        counted: the runs of one scenario, see :func:`counted_runs`.
        methods: labels.
        n_seeds: how many seeds are expected of every method.
        metric: name of the metric.
    """
    reasons = {}
    for method in methods:
        own = counted[counted.method == method]
        unknown = int(own[metric].isna().sum())
        diverged = int((own.status == "diverged").sum())
        if len(own) < n_seeds:
            reasons[method] = f"{n_seeds - len(own)} of {n_seeds} seeds missing"
        elif diverged and metric not in ACCURACIES:
            reasons[method] = f"{METRICS[metric].heading} of {diverged} diverged {_runs(diverged)} not known"
        elif unknown:
            reasons[method] = f"{METRICS[metric].heading} undefined in {unknown} {_runs(unknown)}"
        elif is_bound(own, metric):
            reasons[method] = f"{METRICS[metric].heading} known only as a bound"
    return reasons


def finished_text(n_finished: int, n_seeds: int, failures: pd.DataFrame) -> str:
    """How many runs of a method finished and what became of the others: ``3 of 4 (1 diverged)``."""
    others = ", ".join(f"{n} {status}" for status, n in failures.status.value_counts().items())
    return f"{n_finished} of {n_seeds}" + (f" ({others})" if others else "")


def only_finished(finished: Mapping[str, str]) -> str:
    """A sentence for whatever shows finished runs only; empty where all runs finished.

    Args:
        finished: the methods of which not all runs finished → how many did, see :func:`finished_text`.
    """
    if not finished:
        return ""
    listed = ", ".join(f"{method} {text.partition(' (')[0]}" for method, text in finished.items())
    return f"Finished runs only: {listed}."


def with_sentence(table: Table, sentence: str) -> Table:
    """The table with a sentence at the end of its caption."""
    return replace(table, caption=f"{table.caption} {sentence}".strip()) if sentence else table


def _runs(n: int) -> str:
    return "run" if n == 1 else "runs"
