"""The main table of a report: every metric of every method on one scenario."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import pandas as pd

from clbench.evaluation.metrics import POOLED
from clbench.reports.counting import BOUNDS, finished_text, is_bound
from clbench.reports.statistics import AgainstBest
from clbench.reports.tables import (
    INTERVAL,
    MAIN,
    MEMORY,
    METRICS,
    Cell,
    Column,
    Table,
    distinct,
    mean_cell,
    measured_on,
    metric_of,
    tasks_weigh_the_same,
)

DUPLICATES = {"WF100": "WF10", "WP100": "WP10"}
"""Metrics over windows that are left out where they equal the one of the shorter window in every run: no task is longer."""


@dataclass(frozen=True)
class Results:
    """What the main table of one scenario is made from."""

    rows: pd.DataFrame
    """The runs that count, see :func:`clbench.reports.counting.counted_runs`."""

    methods: list[str]
    """Labels, in the order of the rows; a method without any run that counts has dashes."""

    failures: pd.DataFrame
    """The runs of the scenario that are missing or did not finish."""

    seeds: list[int]
    """Those that are expected of every method."""

    metric: str
    """The deciding metric, the only one whose column is marked."""

    against: AgainstBest | None
    """The comparisons of the best with the others; None where there are none."""

    not_best: Mapping[str, str]
    """Method → why it cannot be the best, see :func:`clbench.reports.counting.reasons_not_best`."""

    def finished(self, method: str) -> tuple[int, str]:
        """How many runs of a method finished, and the same in words with what became of the others."""
        own = self.rows[self.rows.method == method]
        n_finished = int((own.status == "finished").sum())
        return n_finished, finished_text(n_finished, len(self.seeds), self.failures[self.failures.method == method])

    @property
    def unfinished(self) -> dict[str, str]:
        """The methods of which not all runs finished, and how many did."""
        found = {method: self.finished(method) for method in self.methods}
        return {method: text for method, (n, text) in found.items() if n < len(self.seeds)}


def main_table(results: Results) -> Table:
    """Mean ± 95 % half-width over seeds of every metric, a row per method; metrics that no run defines are left out."""
    rows, metric, against = results.rows, results.metric, results.against
    scenario = str(rows.scenario.iloc[0])
    names = shown_metrics(rows, metric)
    columns = [Column("method"), Column("finished", is_number=True)]
    columns += [
        Column(metric_of(name, rows).heading_with_arrow, measured_on(name, rows), is_number=True, metric=name)
        for name in names
    ]
    body = []
    for method in results.methods:
        own = rows[rows.method == method]
        n_finished, text = results.finished(method)
        cells = [Cell(method, method), Cell(text, float(n_finished))]
        for name in names:
            cell = metric_cell(own, name)
            is_marked = name == metric and against is not None
            cells.append(replace(cell, mark=against.marks.get(method, "")) if is_marked and against else cell)
        body.append(cells)
    shows = INTERVAL if len(results.seeds) > 1 else ""
    return Table(f"{scenario}: results", _caption(results, names), columns, body, scenario, shows=shows)


def metric_cell(own: pd.DataFrame, name: str) -> Cell:
    """The mean of a metric over the runs of one method, with the interval; where it is only a bound, with its sign."""
    shown = METRICS[name]
    cell = mean_cell(own[name].astype(float) * shown.scale, shown.digits)
    if is_bound(own, name) and cell.value is not None:
        return replace(cell, text=f"{BOUNDS[name]} {cell.value:.{shown.digits}f}")
    return cell


def shown_metrics(rows: pd.DataFrame, metric: str) -> list[str]:
    """The metrics of the main table for these runs, the deciding one among them.

    Where tasks are equally large, a mean over the tasks and a share of all samples are the same number: it is shown once.
    """
    names = dict.fromkeys(MAIN if metric in MAIN else (metric, *MAIN))
    for mean, pooled in POOLED.items():
        if tasks_weigh_the_same(rows):
            names.pop(mean if metric == pooled else pooled)
    defined = [name for name in names if name in rows and rows[name].notna().any()]  # older runs have no pooled ones
    return [name for name in defined if (name == metric or not _is_duplicate(rows, name))]


def undefined_metrics(rows: pd.DataFrame) -> dict[str, dict[str, str]]:
    """Method → metric → why none of its runs has it, as they say themselves (``undefined`` in ``summary.json``)."""
    if "undefined" not in rows:
        return {}
    found: dict[str, dict[str, str]] = {}
    for method, own in rows[rows.status == "finished"].groupby("method", sort=False):
        said = [reasons if isinstance(reasons, dict) else {} for reasons in own.undefined]
        found[str(method)] = {name: reason for name, reason in said[0].items() if all(name in one for one in said)}
    return found


def undefined_notes(rows: pd.DataFrame, metric: str) -> dict[str, list[str]]:
    """Method → the reasons of :func:`undefined_metrics` as footnotes, metrics with the same reason together.

    A metric that no method defines has no column, and no footnote either.
    """
    columns = shown_metrics(rows, metric)
    notes: dict[str, list[str]] = {}
    for method, reasons in undefined_metrics(rows).items():
        headings: dict[str, list[str]] = {}
        for name, reason in reasons.items():
            if name in columns:
                headings.setdefault(reason, []).append(metric_of(name, rows).heading)
        if headings:
            notes[method] = [f"no {', '.join(names)}: {reason}." for reason, names in headings.items()]
    return notes


def _is_duplicate(rows: pd.DataFrame, name: str) -> bool:
    """Whether a metric equals the one it may repeat in every run."""
    other = DUPLICATES.get(name)
    if other is None:
        return False
    finished = rows[rows.status == "finished"]
    return bool((finished[name].astype(float) == finished[other].astype(float)).all())


def _caption(results: Results, names: list[str]) -> str:
    rows, seeds = results.rows, results.seeds
    listed = ", ".join(map(str, seeds))
    sentences = [
        f"Mean ± half the width of the 95 % t-interval over {len(seeds)} seed{'s' if len(seeds) > 1 else ''} ({listed}), "
        "metrics in percent; no interval with one seed.",
        "ACC, average incremental accuracy and forgetting rest on all samples at task ends, worst-case metrics and the gap on "
        "the subsets that are evaluated during training.",
    ]
    if "scenario_note" in rows and (notes := distinct(rows.scenario_note[rows.scenario_note != ""])):
        sentences.append(f"The stream: {notes}.")
    if "ACC" in names or "ACC_pooled" in names:
        sentences.append(_how_averaged(rows))
    if rows.protocol.notna().any():
        sentences.append(f"Every method was tuned before, by the protocol {distinct(rows.protocol)}.")
    if (rows.status == "diverged").any():
        counts = rows[rows.status == "diverged"].method.value_counts(sort=False)
        listed_runs = ", ".join(f"{n} of {len(seeds)} of {method}" for method, n in counts.items())
        sentences.append(
            f"Diverged runs ({listed_runs}) are counted at chance level in accuracies, as while tuning, and 0 in min-ACC and "
            "WC-ACC; forgetting, windows, the gap and costs are means over finished runs."
        )
    if any(status != "diverged" for status in results.failures.status):
        sentences.append("Runs that are missing, failed or still running are counted, not averaged.")
    sentences += _left_out(rows, names)
    if any(is_bound(rows, name) for name in names):
        sentences.append(
            "≤ and ≥: bounds, since the adaptive evaluation did not resolve the minima of the curve; evaluator=periodic "
            "measures them."
        )
    if "peak_memory_bytes" in names:
        sentences.append(MEMORY)
    sentences += _marks(results)
    return " ".join(sentences)


def _how_averaged(rows: pd.DataFrame) -> str:
    if "ACC_pooled" not in rows:  # runs from before it was recorded
        return "ACC and average incremental accuracy are means over the tasks."
    if tasks_weigh_the_same(rows):
        return "ACC is the mean over the tasks and, since they have equally many samples, also the share of all their samples."
    return "Task mean: every task has the same weight; pooled: every sample, as iCaRL and PyCIL report it."


def _left_out(rows: pd.DataFrame, names: list[str]) -> list[str]:
    """Which columns are left out although runs were measured, and why."""
    reasons = {name: reason for said in undefined_metrics(rows).values() for name, reason in said.items()}
    sentences = []
    for name in MAIN:
        if name in names or name not in rows:
            continue
        if rows[name].notna().any() and _is_duplicate(rows, name):
            sentences.append(
                f"{METRICS[name].heading} equals {METRICS[DUPLICATES[name]].heading} in every run: left out."
            )
        elif name in reasons:
            sentences.append(f"No {METRICS[name].heading}: {reasons[name]}.")
    return sentences


def _marks(results: Results) -> list[str]:
    """What the marks mean, why there are none, and who cannot have one."""
    heading, against = metric_of(results.metric, results.rows).heading, results.against
    sentences = []
    if results.not_best and len(results.methods) > 1:
        listed = ", ".join(f"{method} ({reason})" for method, reason in results.not_best.items())
        sentences.append(f"Cannot be best in {heading}: {listed}.")
    if against is None:
        return sentences
    test = {"wilcoxon": "Wilcoxon's signed-rank test", "bootstrap": "a studentised bootstrap"}[against.test]
    others = " of the others" if results.not_best else ""
    if against.seeds_needed is not None:
        sentences.append(
            f"Nothing is marked: with so few shared seeds {test} cannot reach 5 % in {heading} whatever the data; it "
            f"takes at least {against.seeds_needed} for {len(against.comparisons) + 1} methods."
        )
    elif "best" in against.marks.values():
        untested = [str(method) for method in against.comparisons.index[against.comparisons.p.isna()]]
        sentences.append(
            f"Bold: better than every other method in {heading} at 5 % (paired over seeds, {test}, Holm's correction)"
            + (f"; too few seeds to test: {', '.join(untested)}." if untested else ".")
        )
    else:
        sentences.append(
            f"†: cannot be told from the best mean{others} in {heading} at 5 % (paired over seeds, {test}, Holm's correction); "
            "no method beats all others."
        )
    return sentences
