"""Everything a report shows, computed once from run folders: :class:`Comparison`, which every page and file format renders."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from clbench.errors import ConfigError, choose_from
from clbench.reports import tables
from clbench.reports.checks import Selection, select
from clbench.reports.connectivity_tables import LINE_COLUMNS, along_lines, connectivity_table
from clbench.reports.counting import counted_runs, only_finished, reasons_not_best, with_sentence
from clbench.reports.loading import MEASUREMENT_COLUMNS, PLASTICITY_COLUMNS, Runs, load
from clbench.reports.main_table import Results, main_table, undefined_notes
from clbench.reports.measurement_tables import measurement_tables
from clbench.reports.plasticity_tables import plasticity_table, task_ends
from clbench.reports.protocols import ProtocolReport, Sensitivity, protocol_reports, sensitivities
from clbench.reports.statistics import TESTS, AgainstBest, Ranking, against_best, rank_methods
from clbench.reports.tables import METRICS, Table

FEWEST_SCENARIOS = 3
"""Scenarios below which methods are not ranked over scenarios."""

MOST_NAMED = 6
"""Methods up to which the default title names them all."""


@dataclass(frozen=True)
class Comparison:
    """What a report page needs. All metrics are fractions in [0, 1] wherever they are numbers, percent where they are text."""

    title: str
    """Heading of the report."""

    command: str
    """The command line that makes this report again."""

    runs: Runs
    """Every run found: ``runs.table`` (all rows, also failed and tuning runs), ``runs.curve(folder)``, ``runs.tasks(folder)``."""

    included: pd.DataFrame
    """The rows of ``runs.table`` that are compared: finished runs, no tuning runs, checked to be comparable.

    The column ``method`` holds the label by which they are grouped (made from ``by``); with ``scenario`` and ``seed`` it
    identifies a row. ``subset_low`` and ``subset_high`` are the smallest and largest number of samples of a task that its curve
    was evaluated on. Figures draw these rows, in the order of :attr:`methods`.
    """

    counted: pd.DataFrame
    """:attr:`included` and the diverged runs, these with chance level as accuracies: what means of accuracies and tests are over
    (:func:`clbench.reports.counting.counted_runs`)."""

    expected_seeds: dict[str, list[int]]
    """Scenario → the seeds that are expected of every method."""

    unfinished: dict[str, dict[str, str]]
    """Scenario → method → ``3 of 4 (1 diverged)``, for the methods of which not all runs finished."""

    not_best: dict[str, dict[str, str]]
    """Scenario → method → why it cannot be the best in :attr:`metric`, as a clause."""

    methods: list[str]
    """Every method label, in the order in which tables and legends show them; also those without any finished run."""

    by: list[str]
    """Columns or options that make a method, as given with ``--by``; ``["method"]`` by default."""

    metric: str
    """Name of the metric that decides who is best, a column of ``included``."""

    main: list[Table]
    """The main table, one per scenario (``table.scenario``); what has to be known of the methods is in its footnotes."""

    measurements: pd.DataFrame
    """What the compared runs report of themselves (``method.parquet``): ``scenario, method, seed, folder``, then ``task_learning,
    strategy, quantity, part, value``. Without rows where none reports anything."""

    reported: list[Table]
    """:attr:`measurements` of whole networks after the last task, a table per scenario and strategy that reports any."""

    plasticity: pd.DataFrame
    """Measures of plasticity at the end of every task (``plasticity.parquet``): ``scenario, method, seed, folder``, then
    ``task_learning, iteration, probe, quantity, part, value``. Without rows where none were taken."""

    plasticity_tables: list[Table]
    """Accuracy on tasks just learned, and :attr:`plasticity` after the last one, a table per scenario where it was measured."""

    connectivity: pd.DataFrame
    """Accuracy and loss on the lines between the states after successive tasks (``connectivity.parquet``): ``scenario, method,
    seed, folder``, then ``task_learning, lam, tasks, accuracy, loss``. Without rows where none were evaluated."""

    connectivity_tables: list[Table]
    """Barriers on these lines, a table per scenario where there are any."""

    costs: list[Table]
    """Time, memory, parameters and FLOPs, one table per scenario."""

    failures: Table | None
    """Runs that are missing, failed, running, diverged or unreadable, with the reason; None where there are none."""

    provenance: list[Table]
    """What was compared, per scenario (``table.scenario``): stream, hashes, tasks, budget, seeds, versions, devices, commands."""

    hyperparameters: list[Table]
    """Options in which the compared methods differ, one table per scenario."""

    statistics: dict[str, AgainstBest]
    """Scenario → the best method compared with every other; only scenarios with at least two methods with results, one of which
    may be best."""

    tests: list[Table]
    """:attr:`statistics` and :attr:`ranks` as tables."""

    ranks: Ranking | None
    """Average ranks over scenarios and cliques for the critical-difference diagram; None below three scenarios or two methods."""

    protocols: list[ProtocolReport]
    """One entry per study and scenario; empty where no study is among the folders."""

    sensitivity: list[Sensitivity]
    """Score by hyperparameter value, one entry per study, scenario, method and protocol kind."""


def compare(
    paths: Iterable[str | Path],
    by: list[str] | None = None,
    metric: str = "ACC",
    test: str | None = None,
    title: str | None = None,
    command: str = "",
) -> Comparison:
    """Load, check and compute.

    Args:
        paths: folders or glob patterns, see :func:`clbench.reports.loading.load`.
        by: what makes a method, see :func:`clbench.reports.labels.method_labels`; None: ``["method"]``.
        metric: decides who is best; one of :data:`clbench.reports.tables.METRICS`.
        test: ``wilcoxon`` or ``bootstrap``; None: what suits the number of seeds
            (:func:`clbench.reports.statistics.default_test`).
        title: None: the methods and scenarios.
        command: the command line that makes this report, for its record.

    Raises:
        ConfigError: no run, runs that cannot be compared, or an unknown metric, test or column.
    """
    if metric not in METRICS:
        raise ConfigError(choose_from("metric", metric, METRICS))
    if test is not None and test not in TESTS:
        raise ConfigError(choose_from("test", test, TESTS))
    by = by or ["method"]
    runs = load(paths)
    selection = select(runs, by)
    sizes = pd.DataFrame(
        [runs.subset_sizes(folder) for folder in selection.included.folder], columns=["subset_low", "subset_high"]
    )
    included = selection.included.join(sizes)
    counted = counted_runs(selection.candidates, runs).merge(included[["folder", *sizes]], how="left", on="folder")
    counted = counted[counted.scenario.isin(included.scenario)]
    if metric not in counted or counted[metric].isna().all():
        defined = [name for name in METRICS if name in counted and counted[name].notna().any()]
        raise ConfigError(f"none of the runs has the metric {metric}. Valid choices here: {', '.join(defined)}")
    measurements = _of_all_runs(included, runs.measurements, MEASUREMENT_COLUMNS)
    plasticity = _of_all_runs(included, lambda folder: task_ends(runs.plasticity(folder)), PLASTICITY_COLUMNS)
    connectivity = _of_all_runs(included, lambda folder: along_lines(runs.connectivity(folder)), LINE_COLUMNS)
    main, reported, plasticity_tables, connectivity_tables, costs, provenance, hyperparameters, tests = (
        [] for _ in range(8)
    )
    statistics, unfinished, not_best = {}, {}, {}
    for scenario, rows in included.groupby("scenario", sort=False):
        name = str(scenario)
        methods, seeds = _methods_on(selection, name), selection.expected_seeds[name]
        counting = counted[counted.scenario == scenario]
        failures = selection.failures[selection.failures.scenario == scenario]
        not_best[name] = reasons_not_best(counting, methods, len(seeds), metric)
        against = _against_best(counting, metric, test, not_best[name])
        if against is not None:
            statistics[name] = against
            tests.append(tables.tests_table(against, name, not_best[name]))
        results = Results(counting, methods, failures, seeds, metric, against, not_best[name])
        main.append(
            tables.with_footnotes(main_table(results), _notes(selection, name, undefined_notes(counting, metric)))
        )
        unfinished[name] = results.unfinished
        sentence = only_finished(results.unfinished)
        own = measurements[measurements.scenario == scenario]
        reported += [with_sentence(table, sentence) for table in measurement_tables(own, rows, methods)]
        if len(own := plasticity[plasticity.scenario == scenario]):
            plasticity_tables.append(with_sentence(plasticity_table(own, rows, methods, runs), sentence))
        if len(own := connectivity[connectivity.scenario == scenario]):
            connectivity_tables.append(with_sentence(connectivity_table(own, rows, methods), sentence))
        costs.append(with_sentence(tables.costs_table(rows, methods), sentence))
        provenance.append(tables.provenance_table(rows, runs, seeds))
        hyperparameters.append(tables.hyperparameters_table(rows, runs, methods))
    ranks = _ranks(counted, metric, not_best)
    scenarios = ", ".join(map(str, included.scenario.unique()))
    return Comparison(
        title=title or f"{_some(selection.methods)} on {scenarios}",
        command=command,
        runs=runs,
        included=included,
        counted=counted,
        expected_seeds=selection.expected_seeds,
        unfinished=unfinished,
        not_best=not_best,
        methods=selection.methods,
        by=by,
        metric=metric,
        main=main,
        measurements=measurements,
        reported=reported,
        plasticity=plasticity,
        plasticity_tables=plasticity_tables,
        connectivity=connectivity,
        connectivity_tables=connectivity_tables,
        costs=costs,
        failures=tables.failures_table(selection.failures),
        provenance=provenance,
        hyperparameters=hyperparameters,
        statistics=statistics,
        tests=tests if ranks is None else [*tests, tables.ranks_table(ranks)],
        ranks=ranks,
        protocols=protocol_reports(runs),
        sensitivity=sensitivities(runs),
    )


def _some(methods: list[str]) -> str:
    return ", ".join(methods) if len(methods) <= MOST_NAMED else f"{len(methods)} methods"


def _methods_on(selection: Selection, scenario: str) -> list[str]:
    present = set(selection.candidates.method[selection.candidates.scenario == scenario])
    return [method for method in selection.methods if method in present]


def _notes(selection: Selection, scenario: str, undefined: dict[str, list[str]]) -> dict[str, list[str]]:
    """Method → what its runs say a reader has to know, each sentence once; also of runs that diverged.

    Args:
        undefined: method → sentences on metrics that have no meaning for it.
    """
    candidates = selection.candidates
    notes = {method: list(sentences) for method, sentences in undefined.items()}
    if "notes" not in candidates:
        return notes
    noted = candidates[(candidates.scenario == scenario) & candidates.notes.notna()]
    for method, lists in noted.groupby("method", sort=False).notes:
        said = dict.fromkeys(note for listed in lists for note in listed)
        notes[str(method)] = [*said, *notes.get(str(method), [])]
    return notes


def _of_all_runs(included: pd.DataFrame, read: Callable[[str], pd.DataFrame], columns: list[str]) -> pd.DataFrame:
    """The tables that ``read`` gives for the folders of the compared runs, below each other: ``scenario, method, seed, folder``
    and ``columns``. Rows whose ``value`` is not finite, undefined in their run, are left out."""
    of_run = ["scenario", "method", "seed", "folder"]
    tables = [
        table.assign(**{name: row[name] for name in of_run})
        for row in included[of_run].to_dict("records")
        if len(table := read(row["folder"]))
    ]
    if not tables:
        return pd.DataFrame(columns=[*of_run, *columns])
    table = pd.concat(tables, ignore_index=True)[[*of_run, *columns]]
    return table[np.isfinite(table.value)] if "value" in columns else table


def _against_best(counted: pd.DataFrame, metric: str, test: str | None, not_best: dict[str, str]) -> AgainstBest | None:
    """The tests of one scenario; None where there are no two methods to compare, or none that may be best."""
    values = (
        counted.pivot(index="seed", columns="method", values=metric).astype(float).dropna(axis="columns", how="all")
    )
    barred = [method for method in values.columns if method in not_best]
    if values.shape[1] < 2 or len(barred) == values.shape[1]:
        return None
    return against_best(values, metric, METRICS[metric].higher_is_better, test, barred)


def _ranks(counted: pd.DataFrame, metric: str, not_best: dict[str, dict[str, str]]) -> Ranking | None:
    """Over the methods that every scenario has, with all seeds."""
    means = counted.pivot_table(index="scenario", columns="method", values=metric, aggfunc="mean").dropna(
        axis="columns"
    )
    left_out = [method for method in means.columns if any(method in reasons for reasons in not_best.values())]
    means = means.drop(columns=left_out)
    if len(means) < FEWEST_SCENARIOS or means.shape[1] < 2:
        return None
    return replace(rank_methods(means, metric, METRICS[metric].higher_is_better), left_out=tuple(left_out))
