"""Which figures a report has, with what data and what caption; the two drawing modules turn each of them into a picture."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pandas as pd

from clbench.evaluation.chance import ACCURACIES
from clbench.reports.comparison import Comparison
from clbench.reports.connectivity_tables import SPACE, accuracy_lines
from clbench.reports.counting import only_finished, reasons_not_best
from clbench.reports.figure_data import curves, just_learned_lines, mean_matrix, plasticity_and_stability
from clbench.reports.measurement_tables import quantity_heading
from clbench.reports.plasticity_tables import QUANTITIES, recorded_names
from clbench.reports.quantity_data import plasticity_lines, quantity_lines, quantity_maps, spans_decades
from clbench.reports.tables import METRICS, Metric, how_evaluated, metric_of

FEWEST_TASKS = 10
"""Tasks below which accuracies on tasks just learned have no figure of their own, unless plasticity was measured."""


@dataclass(frozen=True)
class ReportFigure:
    """One figure, not yet drawn."""

    name: str
    """File name without its ending: lower case letters, digits, ``-`` and ``_``."""

    section: str
    """Where it belongs in the report: ``figures``, ``plasticity``, ``connectivity``, ``reported``, ``protocols``, ``sensitivity``
    or ``cost``."""

    title: str
    caption: str
    """Full sentences: what is shown, on what data, over how many seeds."""

    kind: str
    """What is drawn: the name of a function in both :mod:`clbench.reports.print_figures` and
    :mod:`clbench.reports.interactive_figures`."""

    data: dict[str, Any]
    """The keyword arguments of that function, apart from the looks of the methods."""

    method: str = ""
    """The method that it is about; empty where it is about several."""


def figures_of(comparison: Comparison) -> Iterator[ReportFigure]:
    """The figures for which there are data, one scenario after the other; curve tables are read when their turn comes."""
    for scenario, rows in comparison.included.groupby("scenario", sort=False):
        yield from _scenario_figures(comparison, str(scenario), rows)
        yield from _plasticity_figures(comparison, str(scenario))
        yield from _connectivity_figures(comparison, str(scenario), rows)
        yield from _measurement_figures(comparison, str(scenario))
    if comparison.ranks is not None:
        yield _critical_difference(comparison)
    yield from _protocol_figures(comparison)
    yield from _sensitivity_figures(comparison)


def methods_of(comparison: Comparison) -> list[str]:
    """Every method that any figure may show, also those that only a study has, in the order of tables and legends."""
    studied = [name for report in comparison.protocols for name in report.results.method]
    tuned = [found.method for found in comparison.sensitivity]
    return list(dict.fromkeys([*comparison.methods, *studied, *tuned]))


def file_name(*parts: str) -> str:
    """Parts joined to a file name that every system takes.

    >>> file_name("curves", "Split digits/5")
    'curves-split_digits_5'
    """
    return "-".join("".join(c if c.isalnum() and c.isascii() else "_" for c in part.lower()) for part in parts)


def _scenario_figures(comparison: Comparison, scenario: str, rows: pd.DataFrame) -> Iterator[ReportFigure]:
    methods = [method for method in comparison.methods if (rows.method == method).any()]
    folders = {method: rows.folder[rows.method == method].tolist() for method in methods}
    data = f"{scenario}, {_listed(rows.split)} split"
    seeds = _seeds(rows)
    finished = _finished(comparison, scenario)
    tables = {method: [comparison.runs.tasks(folder) for folder in folders[method]] for method in methods}

    yield from _curve_figures(comparison, scenario, rows, folders)

    yield ReportFigure(
        name=file_name("matrices", scenario),
        section="figures",
        title=f"Accuracy after every task: {scenario}",
        caption=(
            f"Accuracy (%) on every task (column) after every task (row), on all samples of {data}; mean over {seeds}.{finished}"
        ),
        kind="accuracy_matrices",
        data={"matrices": {method: mean_matrix(tables[method]) for method in methods}},
    )

    learned = just_learned_lines(tables)
    if learned.x.max() >= FEWEST_TASKS or (comparison.plasticity.scenario == scenario).any():
        yield ReportFigure(
            name=file_name("just_learned", scenario),
            section="figures",
            title=f"Accuracy on a task when it was just learned: {scenario}",
            caption=(
                f"Accuracy on every task at the end of that task, on all samples of {data}: where it falls from task to task, "
                f"plasticity is lost. Lines: mean over {seeds}; bands: lowest to highest seed.{finished}"
            ),
            kind="just_learned",
            data={"lines": learned},
        )

    points = pd.DataFrame(
        [(method, *plasticity_and_stability(table)) for method in methods for table in tables[method]],
        columns=["method", "plasticity", "stability"],
    ).dropna()
    if len(points):
        numbers = {int(table.task_learning.max()) + 1 for method in methods for table in tables[method]}
        n_tasks = numbers.pop() if len(numbers) == 1 else None
        yield ReportFigure(
            name=file_name("plane", scenario),
            section="figures",
            title=f"Stability and plasticity: {scenario}",
            caption=(
                "Plasticity is the mean accuracy on each task just after it was learned; stability is 1 − FORG, where FORG is "
                f"the mean loss since then on all tasks but the last. All samples of {data}. Large: mean over {seeds}; faint: a "
                "seed." + (" Dotted: equal ACC." if n_tasks else "") + finished
            ),
            kind="stability_plasticity",
            data={"points": points, "n_tasks": n_tasks},
        )

    # Cost against cost says nothing: where a cost decides who is best, show what it buys.
    is_cost = comparison.metric in ("seconds", "peak_memory_bytes")
    metric = metric_of("ACC" if is_cost else comparison.metric, rows)
    counted = comparison.counted[(comparison.counted.scenario == scenario) & comparison.counted.method.isin(methods)]
    n_seeds = len(comparison.expected_seeds[scenario])
    off_front = reasons_not_best(counted, methods, n_seeds, metric.name)
    yield ReportFigure(
        name=file_name("costs", scenario),
        section="cost",
        title=f"{metric.heading} against cost: {scenario}",
        caption=(
            f"{metric.heading} ({data}) against what a method costs: time without evaluation, peak memory of the process, "
            "what it keeps (parameters at 4 bytes each and the buffers of the strategy) and the operations of one forward pass. "
            f"Large: mean over {seeds}, faint: a seed. The line joins the methods (means) that no other one beats in both."
            + _off_front(metric, counted, off_front)
        ),
        kind="cost_fronts",
        data={"runs": counted, "metric": metric, "off_front": list(off_front)},
    )


def _curve_figures(
    comparison: Comparison, scenario: str, rows: pd.DataFrame, folders: dict[str, list[str]]
) -> Iterator[ReportFigure]:
    tables = {method: [comparison.runs.curve(folder) for folder in folders[method]] for method in folders}
    tables = {method: kept for method, found in tables.items() if (kept := [table for table in found if len(table)])}
    if not tables:
        return
    shown = curves(tables)
    measured = f"{scenario}, {_listed(rows.split)} split, evaluated at {how_evaluated(rows)}"
    seeds = _seeds(rows)
    gaps = (
        " Hatched: the stability gap, from the accuracy at a switch down to the curve, until it is back for good at 95 % of what "
        "the next task leaves; a fall that is not made up is forgetting and not hatched."
        if any(len(panel.gaps) for panel in shown.panels)
        else ""
    )
    yield ReportFigure(
        name=file_name("curves", scenario),
        section="figures",
        title=f"Accuracy while learning: {scenario}",
        caption=(
            f"Accuracy on single tasks and on all tasks seen so far while the stream is learned ({measured}). Lines: mean over "
            f"{seeds}; bands: lowest to highest seed; vertical lines: task switches.{gaps}"
            + _finished(comparison, scenario)
        ),
        kind="accuracy_curves",
        data={"curves": shown},
    )
    if len(shown.after_switch):
        yield ReportFigure(
            name=file_name("switches", scenario),
            section="figures",
            title=f"Right after a task switch: {scenario}",
            caption=(
                f"Accuracy on the task just learned in the first iterations of the next one ({measured}), averaged over all "
                f"switches of a run. Lines: mean over {seeds}; bands: lowest to highest seed; iteration 0 is the switch."
                + _finished(comparison, scenario)
            ),
            kind="switch_zoom",
            data={"lines": shown.after_switch},
        )


def _plasticity_figures(comparison: Comparison, scenario: str) -> Iterator[ReportFigure]:
    rows = comparison.plasticity[comparison.plasticity.scenario == scenario]
    lines = plasticity_lines(rows)
    if not lines:
        return
    logarithmic = [
        quantity.heading
        for quantity in QUANTITIES.values()
        if quantity.heading in lines and quantity.scale == 1 and spans_decades(lines[quantity.heading])
    ]
    yield ReportFigure(
        name=file_name("plasticity", scenario),
        section="plasticity",
        title=f"Measures of plasticity: {scenario}",
        caption=(
            f"At the end of every task of {scenario}: training accuracy and gradient norm on training images of that task, "
            "without augmentation; dead and dormant units and ranks of the last hidden layer on the same images; root mean "
            "squares of all trained weights and of their distance from the initial ones; and the largest singular value of any "
            "weight matrix. Lines: mean over "
            f"{_seeds(rows)}; bands: lowest to highest seed. Names in plasticity.parquet: {recorded_names(lines)}; "
            "clbench/evaluation/plasticity.py has the formulas, plasticity.csv all that was measured at task ends."
            + _finished(comparison, scenario)
        ),
        kind="quantities",
        data={"lines": lines, "columns": 3, "logarithmic": logarithmic},
    )


def _connectivity_figures(comparison: Comparison, scenario: str, rows: pd.DataFrame) -> Iterator[ReportFigure]:
    on_lines = comparison.connectivity[comparison.connectivity.scenario == scenario]
    if on_lines.empty:
        return
    yield ReportFigure(
        name=file_name("connectivity", scenario),
        section="connectivity",
        title=f"Accuracy between the states after successive tasks: {scenario}",
        caption=(
            "Accuracy on the straight line from the state after one task (λ = 0) to that after the next (λ = 1): on the task "
            "that was learned between the two, and the mean on the tasks before it, both averaged over all tasks but the first "
            f"(evaluation subsets of {scenario}, {_listed(rows.split)} split). {SPACE}. Lines: mean over {_seeds(on_lines)}; "
            "bands: lowest to highest seed." + _finished(comparison, scenario)
        ),
        kind="connectivity",
        data={"lines": accuracy_lines(on_lines)},
    )


def _measurement_figures(comparison: Comparison, scenario: str) -> Iterator[ReportFigure]:
    """What the strategies report of themselves; the shape of the data alone decides how a quantity is drawn."""
    of_scenario = comparison.measurements[comparison.measurements.scenario == scenario]
    for strategy, rows in of_scenario.groupby("strategy", sort=False):
        lines = quantity_lines(rows)
        if lines:
            yield ReportFigure(
                name=file_name("quantities", scenario, str(strategy)),
                section="reported",
                title=f"What {strategy} reports of the whole network: {scenario}",
                caption=(
                    f"What {strategy} says of itself after every task of {scenario}, a panel for each quantity that changes; the "
                    f"table has all. Lines: mean over {_seeds(rows)}; bands: lowest to highest seed."
                    + _finished(comparison, scenario)
                ),
                kind="quantities",
                data={"lines": lines},
            )
        for found in quantity_maps(rows):
            heading = quantity_heading(found.quantity)
            if found.of_tasks:
                title = f"{strategy}, {heading} with earlier tasks: {scenario}"
                shown = "of every task (row) with every earlier one (column)"
            else:
                title = f"{strategy}, {heading} by part: {scenario}"
                shown = "of every part of the network (row) after every task (column)"
            own = rows[rows.method.isin(list(found.maps)) & (rows.quantity == found.quantity) & (rows.part != "")]
            yield ReportFigure(
                name=file_name("tasks" if found.of_tasks else "parts", scenario, str(strategy), found.quantity),
                section="reported",
                title=title,
                caption=(
                    f"What {strategy} reports as {heading} {shown} on {scenario}; mean over {_seeds(own)}."
                    + _finished(comparison, scenario)
                ),
                kind="quantity_maps",
                data={"shown": found},
            )


def _critical_difference(comparison: Comparison) -> ReportFigure:
    ranks = comparison.ranks
    assert ranks is not None
    return ReportFigure(
        name="critical_difference",
        section="figures",
        title="Average ranks over scenarios",
        caption=(
            f"Average rank by {METRICS[ranks.metric].heading} (1 is best) over {len(ranks.scenarios)} scenarios "
            f"({', '.join(ranks.scenarios)}), from the mean over seeds in each. Bars join methods that the Nemenyi "
            "test at 5 % cannot tell apart: their ranks differ by less than "
            f"the critical difference of {ranks.critical_difference:.2f} (Demšar 2006)."
            + (f" Not ranked, since seeds are missing: {', '.join(ranks.left_out)}." if ranks.left_out else "")
        ),
        kind="critical_difference",
        data={
            "average_ranks": ranks.average_ranks,
            "difference": ranks.critical_difference,
            "cliques": ranks.cliques,
        },
    )


def _protocol_figures(comparison: Comparison) -> Iterator[ReportFigure]:
    for number, report in enumerate(comparison.protocols, start=1):
        ranked = report.results.dropna(subset=["tuning_rank", "evaluation_rank"])
        seeds = _range(ranked.seeds) if len(ranked) else ""
        if ranked.groupby("kind").method.nunique().max() > 1:
            yield ReportFigure(
                name=file_name("ranks", report.scenario, str(number)),
                section="protocols",
                title=f"Ranks while tuning and on the evaluation stream: {report.scenario}",
                caption=(
                    f"Rank of every method (1 is best) by {METRICS[report.metric].heading}: of its selected trial on the "
                    f"validation split of the tuning stream, and of its mean over {seeds} on the evaluation "
                    f"stream of {report.scenario}. Crossing lines are conclusions that tuning scores alone would have got wrong."
                ),
                kind="rank_changes",
                data={"results": ranked, "kinds": [kind for kind in report.kinds if (ranked.kind == kind).any()]},
            )
        gaps = report.optimism.dropna(subset=["gap"])
        if len(gaps):
            yield ReportFigure(
                name=file_name("optimism", report.scenario, str(number)),
                section="protocols",
                title=f"Optimism gap: {report.scenario}",
                caption=(
                    f"How much a method gains in {METRICS[report.metric].heading} when it is tuned on the evaluation stream "
                    f"itself (conventional) than when it is tuned elsewhere (two_phase), both measured on the evaluation "
                    f"stream of {report.scenario}: mean difference over {_range(gaps.pairs)}, with the 95 % interval where there "
                    "are two or more."
                ),
                kind="optimism_gaps",
                data={"gaps": gaps, "metric": METRICS[report.metric]},
            )


def _sensitivity_figures(comparison: Comparison) -> Iterator[ReportFigure]:
    for number, found in enumerate(comparison.sensitivity, start=1):
        if not len(found.scores):
            continue
        metric = next(
            report.metric
            for report in comparison.protocols
            if (report.study, report.scenario) == (found.study, found.scenario)
        )
        yield ReportFigure(
            name=file_name("sensitivity", found.scenario, found.method, found.kind, str(number)),
            section="sensitivity",
            title=f"{found.method}, {found.kind}: {found.scenario}",
            caption=(
                f"Tuning score ({METRICS[metric].heading}) of every complete trial of {found.method} "
                f"({found.scores.trial.nunique()} trials, protocol {found.kind}, tuning stream of {found.scenario}) by "
                f"hyperparameter value; short lines are medians. {found.note}"
            ),
            kind="sensitivity",
            data={"scores": found.scores, "importance": found.importance, "metric": METRICS[metric]},
            method=found.method,
        )


def _finished(comparison: Comparison, scenario: str) -> str:
    """A sentence, after a space, where some runs did not finish: curves of these are not drawn."""
    sentence = only_finished(comparison.unfinished[scenario])
    return f" {sentence}" if sentence else ""


def _off_front(metric: Metric, counted: pd.DataFrame, reasons: dict[str, str]) -> str:
    """What has to be known of the means, after a space: which are over more than finished runs, and which cannot be best."""
    sentences = []
    if metric.name in ACCURACIES and (counted.status == "diverged").any():
        sentences.append(f"Diverged runs count at chance level in {metric.heading}; costs are those of finished runs.")
    if reasons:
        listed = ", ".join(f"{method} ({reason})" for method, reason in reasons.items())
        sentences.append(f"Not on the line: {listed}.")
    return "".join(f" {sentence}" for sentence in sentences)


def _listed(values: pd.Series) -> str:
    return " or ".join(map(str, values.dropna().unique()))


def _seeds(rows: pd.DataFrame) -> str:
    return _range(rows.groupby("method").seed.nunique())


def _range(numbers: pd.Series) -> str:
    low, high = int(numbers.min()), int(numbers.max())
    return f"{low} to {high} seeds" if low < high else f"{low} seed{'s' if low > 1 else ''}"
