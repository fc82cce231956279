"""Tables of a report: what every output format renders, and the tables made from run folders."""

import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from clbench.evaluation.metrics import POOLED
from clbench.reports.labels import is_of_the_method, short_names
from clbench.reports.loading import Runs
from clbench.reports.statistics import AgainstBest, Ranking, t_interval


@dataclass(frozen=True)
class Column:
    """A column of a :class:`Table`."""

    heading: str
    """Shown at the top, with an arrow where there is a better direction."""

    note: str = ""
    """What the numbers were measured on; empty for labels."""

    is_number: bool = False
    """Right-aligned, sorted by :attr:`Cell.value`."""

    metric: str = ""
    """The name of the metric that is shown, where one is."""


@dataclass(frozen=True)
class Cell:
    """One entry: what is shown, what it is sorted by, how it is marked."""

    text: str
    value: float | str | None = None
    """For sorting; None goes last."""

    mark: str = ""
    """``best`` (bold), ``tied`` (dagger) or empty. Renderers add the mark; it is not in ``text``."""

    footnotes: tuple[int, ...] = ()
    """Numbers, from 1, of the table's footnotes that belong to it. Renderers add them; they are not in ``text``."""


@dataclass(frozen=True)
class Table:
    """A titled table of text with its numbers."""

    title: str
    caption: str
    """Full sentences: what is shown, on what data, over how many seeds, what the marks mean."""

    columns: list[Column]
    rows: list[list[Cell]]
    """As long as ``columns``, each; the first column is the label (a method where there are methods)."""

    scenario: str = ""
    """The scenario that the table is about; empty where it is about several."""

    footnotes: list[str] = field(default_factory=list)
    """What a reader has to know of single rows, see :func:`with_footnotes`."""

    shows: str = ""
    """What the numbers are, where ± stands between them: :data:`INTERVAL`."""

    @property
    def heading(self) -> str:
        """The title with what the numbers are."""
        return f"{self.title} ({self.shows})" if self.shows else self.title

    @property
    def groups(self) -> list[tuple[str, int]]:
        """Neighbouring columns that were measured on the same: what on (empty: nothing is said), and how many they are."""
        notes = itertools.groupby(self.columns, key=lambda column: column.note)
        return [(note, len(list(columns))) for note, columns in notes]

    @property
    def notes(self) -> str:
        """What the columns were measured on, as one line: ``ACC, FORG: full sets; min-ACC: subsets``."""
        headings: dict[str, list[str]] = {}
        for column in self.columns:
            if column.note:
                headings.setdefault(column.note, []).append(column.heading.rstrip(" ↑↓"))
        return "; ".join(f"{', '.join(names)}: {note}" for note, names in headings.items())


# ---- metrics and costs ----------------------------------------------------------------------------------------------

FULL, SUBSETS, RUN = "full sets, task ends", "subsets", "whole run"


@dataclass(frozen=True)
class Metric:
    """How a column of :attr:`Runs.table` is shown."""

    name: str
    heading: str
    measured_on: str
    higher_is_better: bool
    scale: float = 100.0
    """Factor from the recorded unit to the shown one; fractions are shown in percent."""

    digits: int = 1

    @property
    def heading_with_arrow(self) -> str:
        return f"{self.heading} {'↑' if self.higher_is_better else '↓'}"


METRICS = {
    metric.name: metric
    for metric in [
        Metric("ACC", "ACC", FULL, True),
        Metric("ACC_pooled", "ACC (pooled)", FULL, True),
        Metric("average_incremental_macro", "average incremental", FULL, True),
        Metric("average_incremental_pooled", "average incremental (pooled)", FULL, True),
        Metric("FORG", "FORG", FULL, False),
        Metric("forgetting_max", "FORG (from the best)", FULL, False),
        Metric("BWT", "BWT", FULL, True),
        Metric("FWT", "FWT", FULL, True),
        Metric("LA", "LA", FULL, True),
        Metric("LA_slope", "LA slope (points per task)", FULL, True, digits=2),
        Metric("min_ACC", "min-ACC", SUBSETS, True),
        Metric("WC_ACC", "WC-ACC", SUBSETS, True),
        Metric("WF10", "WF10", SUBSETS, False),
        Metric("WF100", "WF100", SUBSETS, False),
        Metric("WP10", "WP10", SUBSETS, True),
        Metric("WP100", "WP100", SUBSETS, True),
        Metric("LCA", "LCA", SUBSETS, True),
        Metric("LCA_10", "LCA_10 (from zero-shot)", SUBSETS, True),
        Metric("AAA", "AAA", SUBSETS, True),
        Metric("AAUC", "AAUC", SUBSETS, True),
        Metric("gap_depth", "gap depth", SUBSETS, False),
        Metric("exact_ACC", "exact ACC", SUBSETS, True),
        Metric("valid", "valid answers", SUBSETS, True),
        Metric("superficial", "superficial forgetting", SUBSETS, False),
        Metric("essential", "essential forgetting", SUBSETS, False),
        Metric("recovery_iterations", "recovery (iterations)", SUBSETS, False, 1.0),
        Metric("gap_area", "gap area", SUBSETS, False, 1.0, 2),
        Metric("seconds", "time (s)", RUN, False, 1.0),
        Metric("peak_memory_bytes", "peak memory (MiB)", RUN, False, 2.0**-20, 0),
    ]
}
"""Every metric that can decide who is best, and how it is shown. Definitions: :mod:`clbench.evaluation.metrics` and
:mod:`clbench.evaluation.spoken`."""

MAIN = (
    "ACC", "ACC_pooled", "average_incremental_macro", "average_incremental_pooled", "FORG", "min_ACC", "WC_ACC",
    "WF10", "WF100", "WP10", "WP100", "gap_depth", "exact_ACC", "valid", "superficial", "essential",
    "recovery_iterations", "seconds", "peak_memory_bytes",
)  # fmt: skip
"""Columns of the main table; those that no run defines are left out, the deciding metric is added where it is missing."""


def metric_of(name: str, rows: pd.DataFrame) -> Metric:
    """The metric, with a heading that says how tasks are averaged where that makes a difference to these runs."""
    metric = METRICS[name]
    words = dict.fromkeys(POOLED, "task mean") | dict.fromkeys(POOLED.values(), "pooled")
    if name not in words:
        return metric
    heading = metric.heading.removesuffix(" (pooled)")
    return replace(metric, heading=heading if tasks_weigh_the_same(rows) else f"{heading} ({words[name]})")


def tasks_weigh_the_same(rows: pd.DataFrame) -> bool:
    """Whether means over the tasks and shares of all samples are the same in all runs that have both."""
    return all(
        bool(np.isclose(both[mean].astype(float), both[pooled].astype(float), rtol=0, atol=1e-9).all())
        for mean, pooled in POOLED.items()
        if {mean, pooled} <= set(rows) and len(both := rows.dropna(subset=[mean, pooled]))
    )


COSTS: dict[str, tuple[str, Callable[[pd.DataFrame], pd.Series], int]] = {
    "time (s)": (RUN, lambda runs: runs.seconds, 1),
    "of which evaluation (%)": (RUN, lambda runs: 100 * runs.evaluation_seconds / runs.seconds, 0),
    "iterations": (RUN, lambda runs: runs.iterations, 0),
    "peak memory (MiB)": ("the process, or the GPU", lambda runs: runs.peak_memory_bytes / 2**20, 0),
    "parameters (10³)": ("at the end", lambda runs: runs.parameters / 1e3, 1),
    "trained (10³)": ("at the end", lambda runs: runs.trainable_parameters / 1e3, 1),
    "kept beside the model (MiB)": ("buffers of the strategy", lambda runs: runs.strategy_bytes / 2**20, 2),
    "forward pass (MFLOP)": ("one sample", lambda runs: runs.forward_flops_per_sample / 1e6, 2),
}
"""Heading → what it was measured on, how it follows from the rows of :attr:`Runs.table`, digits shown."""

COSTS_OF_STEPS: dict[str, tuple[str, Callable[[pd.DataFrame], pd.Series], int]] = {
    "step (× finetuning)": ("operations, last task", lambda runs: runs.step_cost, 2),
    "computed (10³ steps of finetuning)": (RUN, lambda runs: runs.step_cost * runs.iterations / 1e3, 2),
    "ACC per 10³ steps of finetuning": (RUN, lambda runs: 100 * runs.ACC / (runs.step_cost * runs.iterations / 1e3), 2),
}
"""The same for runs whose operations were counted (``record.step_cost``); evaluation is not among them."""

COST_COLUMNS = (
    "seconds", "evaluation_seconds", "iterations", "peak_memory_bytes", "parameters", "trainable_parameters", "strategy_bytes",
    "forward_flops_per_sample", "step_cost",
)  # fmt: skip
"""Costs in ``summary.json``, columns of :attr:`Runs.table`."""

MEMORY = (
    "Peak memory is that of the process (on a GPU: of torch) from the start of the run to its end, with what the process holds "
    "anyway; runs that were trained together share one peak, and a dash stands where it could not be measured for the run alone."
)
"""What the column of peak memory shows, and the recorded figures of older versions did not."""

INTERVAL = "mean ± 95 % t-interval"
"""What ± is, for the heading of a table."""


# ---- tables per scenario --------------------------------------------------------------------------------------------


def measured_on(name: str, rows: pd.DataFrame) -> str:
    """What a metric of these runs was measured on, for a column's note."""
    metric = METRICS[name]
    split = f"{', '.join(rows.split.dropna().unique())} split"
    if metric.measured_on == FULL:
        return f"{FULL}, {split}"
    if metric.measured_on == RUN:
        return RUN
    interpolated = "interpolated" in rows and any(
        isinstance(names, list) and name in names for names in rows.interpolated
    )
    return f"{SUBSETS}, {how_evaluated(rows)}{', interpolated' if interpolated else ''}"


def how_evaluated(rows: pd.DataFrame) -> str:
    """When curves were evaluated and on how many samples of a task: ``every=1, n=68–72``.

    Args:
        rows: runs with the columns ``evaluation_kind``, ``subset_low`` and ``subset_high``.
    """
    kinds, low, high = distinct(rows.evaluation_kind), rows.subset_low.min(), rows.subset_high.max()
    if math.isnan(low):  # no curve was recorded
        return kinds
    return f"{kinds}, n={low:.0f}" + (f"–{high:.0f}" if low < high else "")


FOOTNOTES_HEADING = "What has to be known of the methods:"


def with_footnotes(table: Table, notes: Mapping[str, list[str]]) -> Table:
    """The table with the notes of its methods below it, each once, and their numbers at the methods' names.

    Args:
        notes: method → what its runs say has to be known of their results, ``strategy: sentence``.
    """
    methods_of = {
        note: [row[0].text for row in table.rows if note in notes.get(row[0].text, [])]
        for row in table.rows
        for note in notes.get(row[0].text, [])
    }
    numbers = {note: number for number, note in enumerate(methods_of, start=1)}
    rows = [
        [replace(row[0], footnotes=tuple(numbers[note] for note in notes.get(row[0].text, []))), *row[1:]]
        for row in table.rows
    ]
    return replace(table, rows=rows, footnotes=[_footnote(note, methods) for note, methods in methods_of.items()])


def _footnote(note: str, methods: list[str]) -> str:
    """The note, after the methods that it applies to where it does not begin with just that name."""
    is_named = methods == [note.partition(": ")[0]]
    return note if is_named else f"{', '.join(methods)} – {note}"


def costs_table(rows: pd.DataFrame, methods: Iterable[str]) -> Table:
    """Time, memory, parameters and FLOPs of the finished runs of one scenario, mean ± 95 % half-width where it varies."""
    scenario = str(rows.scenario.iloc[0])
    shown = COSTS | (COSTS_OF_STEPS if "step_cost" in rows and rows.step_cost.notna().any() else {})
    columns = [Column("method"), *(Column(heading, where, True) for heading, (where, _, _) in shown.items())]
    body = []
    for method in methods:
        own = rows[rows.method == method]
        cells = [mean_cell(value(own).astype(float), digits, True) for _, value, digits in shown.values()]
        body.append([Cell(method, method), *cells, Cell(", ".join(own.device.dropna().unique()))])
    caption = (
        "Mean ± half the width of the 95 % t-interval over seeds. Times compare only on the same device under the same load. "
        + MEMORY
    )
    return Table(
        f"{scenario}: costs",
        caption,
        [*columns, Column("device")],
        body,
        scenario,
        shows=INTERVAL if len(rows) > 1 else "",
    )


def mean_cell(values: pd.Series, digits: int, constants_are_exact: bool = False) -> Cell:
    """Mean ± half-width; the number of runs in brackets where the value is undefined in some of them.

    ``constants_are_exact``: no interval where all values are equal, as for a number of parameters.
    """
    defined = values.dropna().to_numpy()
    if not len(defined):
        return Cell("–")
    mean, half = t_interval(defined)
    text = f"{mean:.{digits}f}"
    # Compared themselves: the half-width of equal values need not be 0, because their mean is rounded.
    is_constant = bool((defined == defined[0]).all())
    if not math.isnan(half) and not (constants_are_exact and is_constant):
        text += f" ± {half:.{digits}f}"
    if len(defined) < len(values):
        text += f" ({len(defined)} runs)" if len(defined) > 1 else " (1 run)"
    return Cell(text, mean)


def failures_table(failures: pd.DataFrame) -> Table | None:
    """Every run that is missing or did not finish; None where there is none."""
    if failures.empty:
        return None
    columns = [Column(name, is_number=name == "seed") for name in failures.columns]
    body = [[_plain(value) for value in row] for row in failures.itertuples(index=False)]
    caption = (
        "Runs that are missing, failed, still running, diverged or could not be read. A diverged run counts at chance level in "
        "accuracies; none of the others enters a mean."
    )
    return Table("Runs that did not finish", caption, columns, body)


def provenance_table(rows: pd.DataFrame, runs: Runs, seeds: list[int]) -> Table:
    """What was compared in one scenario: the stream, the budget, the seeds, and what computed it."""
    scenario = str(rows.scenario.iloc[0])
    stream = runs.stream(rows.folder.iloc[0])
    tasks = stream["tasks"]
    hashes = rows.drop_duplicates(["seed", "scenario_hash"])[["seed", "scenario_hash"]].sort_values("seed")
    one_hash = hashes.scenario_hash.nunique() == 1
    facts = {
        "stream": stream["frozen"] or "not a frozen definition",
        "note": stream["note"],
        "scenario hash": hashes.scenario_hash.iloc[0]
        if one_hash
        else ", ".join(f"seed {seed}: {digest}" for seed, digest in hashes.itertuples(index=False)),
        "tasks": f"{len(tasks)} ({stream['setting']}-incremental): " + "; ".join(task["name"] for task in tasks),
        "seeds": ", ".join(map(str, seeds)),
        "curve": how_evaluated(rows),
        **{
            name: distinct(rows[column])
            for name, column in {
                "evaluated split": "split",
                "model": "model",
                "budget per task": "budget",
                "tuning protocol": "protocol",
                "device": "device",
                "clbench": "clbench",
                "git commit": "git_commit",
                "torch": "torch",
                "commands": "command",
            }.items()
        },
    }
    body = [[Cell(name), Cell(str(value))] for name, value in facts.items() if value]
    caption = "Every run in the tables shares these; where several values stand, the runs differ in them."
    return Table(f"{scenario}: what was compared", caption, [Column("what"), Column("value")], body, scenario)


def hyperparameters_table(rows: pd.DataFrame, runs: Runs, methods: Iterable[str]) -> Table:
    """The options in which the finished runs of one scenario differ; those of the strategies in one column."""
    scenario = str(rows.scenario.iloc[0])
    values: dict[str, dict[str, str]] = {}
    for method in methods:
        leaves = [runs.config(folder) for folder in rows.folder[rows.method == method]]
        names = dict.fromkeys(name for config in leaves for name in config if is_of_the_method(name))
        values[method] = {name: distinct(pd.Series([_text(config.get(name)) for config in leaves])) for name in names}
    every = dict.fromkeys(name for options in values.values() for name in options)
    shared = [
        name
        for name in every
        if not name.startswith(("strategy.", "plus."))
        and len({options.get(name) for options in values.values() if options}) > 1
    ]
    columns = [
        Column("method"),
        *(Column(short) for short in short_names(shared).values()),
        Column("strategy's options"),
    ]
    body = []
    for method, options in values.items():
        own = [
            f"{name.removeprefix('strategy.')}={value}"
            for name, value in options.items()
            if name.startswith(("strategy.", "plus.")) and name != "strategy.name" and value != "[]"
        ]
        body.append(
            [Cell(method, method), *(Cell(options.get(name, "–")) for name in shared), Cell(", ".join(own) or "–")]
        )
    caption = "Options in which the compared runs differ, and all options of the strategies; everything else is equal."
    return Table(f"{scenario}: hyperparameters", caption, columns, body, scenario)


def tests_table(against: AgainstBest, scenario: str, not_best: Mapping[str, str]) -> Table:
    """The comparisons of the best method with every other, a row each; ``not_best`` are the methods that cannot be it."""
    metric = METRICS[against.metric]
    unit = " (points)" if metric.scale == 100 else ""
    columns = [
        Column(f"{against.best} against"),
        Column("pairs", "shared seeds", True),
        Column(f"difference in {metric.heading}{unit}", "best minus other", True),
        Column("95 % interval", "paired t"),
        Column("d_z", "Hedges-corrected", True),
        Column("p", against.test, True),
        Column("p, Holm", f"over {len(against.comparisons)} methods", True),
    ]
    body = []
    for method, row in against.comparisons.iterrows():
        difference, low, high = (row[name] * metric.scale for name in ("difference", "low", "high"))
        body.append(
            [
                Cell(str(method), str(method)),
                Cell(f"{row.pairs:.0f}", row.pairs),
                number_cell(difference, metric.digits),
                Cell("–" if math.isnan(low) else f"{low:.{metric.digits}f} to {high:.{metric.digits}f}"),
                number_cell(row.effect_size, 2),
                number_cell(row.p, 4),
                number_cell(row.p_holm, 4),
            ]
        )
    caption = (
        f"The method with the best mean{' of those with all seeds' if not_best else ''}, {against.best}, against every other, "
        "paired over the seeds that both have. The interval is that of each comparison alone. d_z is the mean difference over "
        "the standard deviation of the differences; it says how regular a difference is, not how large."
    )
    if against.seeds_needed is not None:
        caption += (
            f" No p: n too small, since the test cannot reach 5 % with so few shared seeds whatever the data; it takes "
            f"{against.seeds_needed}."
        )
    elif against.comparisons.p.isna().any():
        caption += " Dashes for p: n too small."
    if against.comparisons.p.notna().any():
        caption += " A large p does not say that two methods are equal, only that these seeds do not tell them apart."
    return Table(f"{scenario}: the best against the others", caption, columns, body, scenario)


def ranks_table(ranking: Ranking) -> Table:
    """Average ranks over scenarios."""
    body = [[Cell(str(method), str(method)), number_cell(rank, 2)] for method, rank in ranking.average_ranks.items()]
    friedman = "undefined here" if math.isnan(ranking.p) else f"p = {ranking.p:.4f}"
    caption = (
        f"Average rank in {METRICS[ranking.metric].heading} over {len(ranking.scenarios)} scenarios "
        f"({', '.join(ranking.scenarios)}); 1 is best. Friedman test: {friedman}. Ranks that lie "
        f"{ranking.critical_difference:.2f} or more apart differ at 5 % (Nemenyi; Demšar 2006). "
        "With few scenarios this test has little power."
    )
    if ranking.left_out:
        caption += f" Not ranked, since seeds are missing or the metric is not known: {', '.join(ranking.left_out)}."
    return Table("Ranks over scenarios", caption, [Column("method"), Column("average rank ↓", is_number=True)], body)


def number_cell(value: float, digits: int) -> Cell:
    """A number, or a dash where it is undefined."""
    return Cell("–") if math.isnan(value) else Cell(f"{value:.{digits}f}", float(value))


def _plain(value: Any) -> Cell:
    is_missing = value is None or (isinstance(value, float) and math.isnan(value))
    if is_missing:
        return Cell("")
    if isinstance(value, float) and value.is_integer():  # a seed in a column with gaps
        value = int(value)
    return Cell(str(value), float(value) if isinstance(value, int) else str(value))


def distinct(values: pd.Series) -> str:
    """The different values, one after the other."""
    return " / ".join(str(value) for value in values.dropna().unique())


def _text(value: Any) -> str:
    return "null" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
