"""Tuning protocols compared: what was tuned on which stream, what it was worth on the evaluation stream.

A study tunes every method under one or several protocols and evaluates what each selected on one evaluation stream with
seeds of its own (Cha & Cho 2025, arXiv:2403.09066). What is computed from it:

* Kendall's τ over methods between tuning score and evaluation, per protocol: does tuning rank methods as evaluation does?
* Kendall's τ between the evaluation results of two protocols: does it matter how the methods were tuned?
* The optimism gap, per method: (tuned conventionally) − (tuned by two_phase), both on the evaluation stream, paired over its
  seeds. Tuning score minus evaluation is not that gap, since one stream can be harder than the other.
"""

import itertools
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from clbench.evaluation.chance import chance_level
from clbench.reports.labels import short_names
from clbench.reports.loading import Runs, Study
from clbench.reports.statistics import kendall_tau, t_interval
from clbench.reports.tables import METRICS, Cell, Column, Metric, Table, number_cell

FEWEST_TRIALS = 10
"""Complete trials below which the importance of hyperparameters is not computed: a forest would fit noise."""


@dataclass(frozen=True)
class ProtocolReport:
    """One scenario of one study."""

    study: str
    """The study folder."""

    scenario: str

    metric: str
    """The study's metric: both of tuning scores and of evaluation."""

    kinds: list[str]
    """Protocol kinds in the study's order."""

    results: pd.DataFrame
    """A row per method and kind: ``method``, ``kind``, ``tuning_score`` (of the selected trial, validation split of the tuning
    stream), ``tuning_rank``, ``evaluation`` (mean over seeds on the evaluation stream), ``half_width`` (95 %),
    ``evaluation_rank`` (1 is best; NaN where seeds are missing that other methods have), ``seeds`` (finished and diverged),
    ``selected`` (text of the values), ``trials``, ``complete_trials``, ``failed_runs``, ``diverged_runs``, ``tuning_runs``,
    ``tuning_hours``, ``evaluation_hours``."""

    tuning_tau: dict[str, float]
    """Kind → Kendall's τ over methods between tuning score and evaluation; NaN where undefined."""

    kind_tau: pd.DataFrame
    """Kendall's τ over methods between the evaluation results of two kinds: ``kind``, ``other``, ``tau``, ``methods``."""

    optimism: pd.DataFrame
    """A row per method: ``method``, ``gap`` (conventional − two_phase, both on the evaluation stream, mean over shared seeds),
    ``low``, ``high`` (95 % t-interval), ``pairs``. Empty unless the study has both kinds."""

    notes: list[str]
    """Full sentences: unequal budgets, missing seeds, undefined figures."""

    tables: list[Table]
    """The results, taus, optimism gaps and streams, ready to show."""


@dataclass(frozen=True)
class Sensitivity:
    """How the tuning score of one method depends on its hyperparameters."""

    study: str
    scenario: str
    method: str
    kind: str

    scores: pd.DataFrame
    """A row per complete trial and searched parameter: ``parameter``, ``value``, ``trial``, ``score``."""

    importance: pd.Series | None
    """Parameter → share of the score's variance (fANOVA), descending, adding up to 1; None where undefined."""

    note: str
    """How the importance was computed, or why it is undefined; a full sentence."""


def protocol_reports(runs: Runs) -> list[ProtocolReport]:
    """A report per study and scenario, in the order of ``study.json``."""
    table = runs.table.assign(folder=runs.resolved_folders).set_index("folder") if runs.studies else runs.table
    reports = []
    for study in runs.studies:
        for scenario in dict.fromkeys(method["scenario"] for method in study.content["methods"]):
            reports.append(_report(study, scenario, table))
    return reports


def _report(study: Study, scenario: str, table: pd.DataFrame) -> ProtocolReport:
    content = study.content
    metric = METRICS[content["protocol"]["metric"]]
    methods = [method for method in content["methods"] if method["scenario"] == scenario]
    kinds = [kind for kind in content["protocol"]["kinds"] if any(kind in method["protocols"] for method in methods)]
    rows, evaluations = [], {}
    for method, kind in itertools.product(methods, kinds):
        if kind in method["protocols"]:
            values = evaluations[method["method"], kind] = _evaluation(
                study, method["protocols"][kind], table, metric.name
            )
            rows.append(_result(study, method, kind, table, values))
    results = _ranked(pd.DataFrame(rows), metric)
    ranked = results.assign(evaluation=results.evaluation.where(results.evaluation_rank.notna()))
    tuning_tau = {kind: _tau(rows.tuning_score, rows.evaluation) for kind, rows in ranked.groupby("kind", sort=False)}
    kind_tau = _kind_tau(ranked, kinds)
    optimism = _optimism(evaluations, [method["method"] for method in methods])
    notes = _notes(content, results)
    tables = [_results_table(results, kinds, metric, scenario), _budget_table(results, scenario)]
    if optimism is not None:
        tables.append(_optimism_table(optimism, metric, scenario))
    tables += [_tau_table(tuning_tau, kind_tau, results, scenario), *_stream_tables(content, scenario)]
    empty = pd.DataFrame(columns=["method", "gap", "low", "high", "pairs"])
    return ProtocolReport(
        str(study.folder), scenario, metric.name, kinds, results, tuning_tau, kind_tau,
        empty if optimism is None else optimism, notes, tables,
    )  # fmt: skip


def _evaluation(study: Study, protocol: dict[str, Any], table: pd.DataFrame, metric: str) -> pd.Series:
    """Seed → the metric on the evaluation stream; of a diverged run chance level, as while tuning."""
    values = {}
    for seed, run in (protocol.get("evaluation") or {}).items():
        folder = str(study.path(run))
        status = table.status[folder] if folder in table.index else "missing"
        if status == "finished":
            values[int(seed)] = float(table.at[folder, metric])
        elif status == "diverged":
            stream = json.loads((Path(folder) / "scenario.json").read_text(encoding="utf-8"))
            values[int(seed)] = chance_level(stream, metric)
    return pd.Series(values, dtype=float)


def _result(study: Study, method: dict[str, Any], kind: str, table: pd.DataFrame, values: pd.Series) -> dict[str, Any]:
    """A row of :attr:`ProtocolReport.results`, without ranks."""
    protocol = method["protocols"][kind]
    trials, selected = protocol["trials"], protocol.get("selected")
    tuning_runs = [run for trial in trials for run in trial["runs"].values()]
    evaluation_folders = [str(study.path(run)) for run in (protocol.get("evaluation") or {}).values()]
    evaluated = table.loc[[folder for folder in evaluation_folders if folder in table.index]]
    mean, half = t_interval(values.to_numpy())
    score = selected["score"] if selected else None
    return {
        "method": method["method"],
        "kind": kind,
        "tuning_score": math.nan if score is None else float(score),
        "evaluation": mean,
        "half_width": half,
        "seeds": len(values),
        "selected": _values_text(selected["values"]) if selected else "not selected yet",
        "trials": len(trials),
        "complete_trials": sum(trial["state"] == "complete" for trial in trials),
        "failed_runs": sum(run["status"] == "failed" for run in tuning_runs)
        + int((evaluated.status == "failed").sum()),
        "diverged_runs": sum(run["status"] == "diverged" for run in tuning_runs)
        + int((evaluated.status == "diverged").sum()),
        "tuning_runs": len(tuning_runs),
        "tuning_hours": sum(run.get("seconds") or 0.0 for run in tuning_runs) / 3600,
        "evaluation_hours": float(evaluated.seconds.sum()) / 3600,
    }


def _values_text(values: dict[str, Any]) -> str:
    return ", ".join(f"{short}={values[name]}" for name, short in short_names(values).items()) or "nothing to tune"


def _ranked(results: pd.DataFrame, metric: Metric) -> pd.DataFrame:
    """With ranks; a method that lacks evaluation seeds which others have has none, since those may be the harder ones."""
    ascending = not metric.higher_is_better
    complete = results.evaluation.where(results.seeds == results.groupby("kind", sort=False).seeds.transform("max"))
    return results.assign(
        tuning_rank=results.groupby("kind", sort=False).tuning_score.rank(ascending=ascending),
        evaluation_rank=complete.groupby(results.kind, sort=False).rank(ascending=ascending),
    )


def _tau(a: pd.Series, b: pd.Series) -> float:
    """Kendall's τ over the methods that have both."""
    both = a.notna().to_numpy() & b.notna().to_numpy()
    return kendall_tau(a.to_numpy()[both], b.to_numpy()[both])


def _kind_tau(results: pd.DataFrame, kinds: list[str]) -> pd.DataFrame:
    evaluation = results.pivot(index="method", columns="kind", values="evaluation")
    rows = [
        (
            kind,
            other,
            _tau(evaluation[kind], evaluation[other]),
            int(evaluation[[kind, other]].notna().all(axis=1).sum()),
        )
        for kind, other in itertools.combinations(kinds, 2)
    ]
    return pd.DataFrame(rows, columns=["kind", "other", "tau", "methods"])


def _optimism(evaluations: dict[tuple[str, str], pd.Series], methods: list[str]) -> pd.DataFrame | None:
    """See the module docstring; None unless a method was tuned both ways."""
    rows = []
    for method in methods:
        conventional, two_phase = (evaluations.get((method, kind)) for kind in ("conventional", "two_phase"))
        if conventional is not None and two_phase is not None:
            gaps = (conventional - two_phase).dropna().to_numpy()  # aligned on the seed
            mean, half = t_interval(gaps)
            rows.append((method, mean, mean - half, mean + half, len(gaps)))
    return pd.DataFrame(rows, columns=["method", "gap", "low", "high", "pairs"]) if rows else None


def _notes(content: dict[str, Any], results: pd.DataFrame) -> list[str]:
    notes = []
    if content["status"] != "finished":
        notes.append("The study is not finished: trials or evaluation runs are still to come.")
    for kind, rows in results.groupby("kind", sort=False):
        for column, words in (("trials", "trials"), ("tuning_runs", "tuning runs")):
            if rows[column].nunique() > 1:
                counts = ", ".join(f"{row.method} {getattr(row, column)}" for row in rows.itertuples())
                notes.append(f"Under {kind} the methods did not get the same number of {words}: {counts}.")
        planned = len(content["protocol"]["evaluation_seeds"])
        notes += [
            f"Under {kind}, {row.method} rests on {row.seeds} of {planned} evaluation seeds"
            + (" and has no rank: the others have more." if row.seeds < rows.seeds.max() else ".")
            for row in rows.itertuples()
            if row.seeds < planned
        ]
        notes += [
            f"Under {kind}, {row.method} had {row.diverged_runs} diverged and {row.failed_runs} failed runs"
            + ("; a diverged one counts at chance level." if row.diverged_runs else ".")
            for row in rows.itertuples()
            if row.diverged_runs or row.failed_runs
        ]
    return notes


# ---- tables ---------------------------------------------------------------------------------------------------------


def _results_table(results: pd.DataFrame, kinds: list[str], metric: Metric, scenario: str) -> Table:
    columns = [
        Column("method"),
        Column("protocol"),
        Column("tuning score", "validation split, tuning stream", True),
        Column("rank while tuning", is_number=True),
        Column(f"evaluation: {metric.heading_with_arrow}", "evaluation stream", True),
        Column("rank", is_number=True),
        Column("seeds", is_number=True),
        Column("selected values"),
    ]
    body = [
        [
            Cell(row.method, row.method),
            Cell(row.kind, row.kind),
            number_cell(row.tuning_score * metric.scale, metric.digits),
            number_cell(row.tuning_rank, 0 if float(row.tuning_rank).is_integer() else 1),
            _plus_minus(row.evaluation, row.half_width, metric),
            number_cell(row.evaluation_rank, 0 if float(row.evaluation_rank).is_integer() else 1),
            Cell(str(row.seeds), float(row.seeds)),
            Cell(row.selected),
        ]
        for row in results.itertuples()
    ]
    caption = (
        f"What each protocol ({', '.join(kinds)}) selected and what it is worth on the evaluation stream, mean ± half the width "
        "of the 95 % t-interval over the evaluation seeds. Tuning scores come from other streams or splits and are not to be "
        "subtracted from evaluation results: one stream can be harder than the other. Only ranks compare between the two."
    )
    return Table(f"{scenario}: tuning protocols", caption, columns, body, scenario)


def _plus_minus(mean: float, half: float, metric: Metric) -> Cell:
    if math.isnan(mean):
        return Cell("–")
    text = f"{mean * metric.scale:.{metric.digits}f}"
    return Cell(text if math.isnan(half) else f"{text} ± {half * metric.scale:.{metric.digits}f}", mean * metric.scale)


def _budget_table(results: pd.DataFrame, scenario: str) -> Table:
    columns = [Column("method"), Column("protocol")]
    columns += [
        Column(heading, note, True)
        for heading, note in (
            ("trials", ""), ("complete", ""), ("tuning runs", ""), ("tuning (h)", "sum over runs"),
            ("evaluation (h)", "sum over runs"), ("diverged", "runs, both phases"), ("failed", "runs, both phases"),
        )
    ]  # fmt: skip
    body = [
        [
            Cell(row.method, row.method),
            Cell(row.kind, row.kind),
            *(Cell(str(n), float(n)) for n in (row.trials, row.complete_trials, row.tuning_runs)),
            *(Cell(f"{hours:.3g}", hours) for hours in (row.tuning_hours, row.evaluation_hours)),
            *(Cell(str(n), float(n)) for n in (row.diverged_runs, row.failed_runs)),
        ]
        for row in results.itertuples()
    ]
    caption = (
        "What tuning and evaluation cost. Two protocols that select the same values share their evaluation runs, whose hours "
        "then stand in both rows."
    )
    return Table(f"{scenario}: budgets of tuning", caption, columns, body, scenario)


def _optimism_table(optimism: pd.DataFrame, metric: Metric, scenario: str) -> Table:
    columns = [
        Column("method"),
        Column(f"optimism gap in {metric.heading}", "conventional − two_phase", True),
        Column("95 % interval", "paired t"),
        Column("pairs", "evaluation seeds", True),
    ]
    body = []
    for row in optimism.itertuples():
        low, high = row.low * metric.scale, row.high * metric.scale
        interval = "–" if math.isnan(low) else f"{low:.{metric.digits}f} to {high:.{metric.digits}f}"
        gap = number_cell(row.gap * metric.scale, metric.digits)
        body.append([Cell(row.method, row.method), gap, Cell(interval), Cell(str(row.pairs), float(row.pairs))])
    caption = (
        "What a method gains by being tuned on the evaluation stream itself (on its validation split): both sides are measured "
        "on the evaluation stream, with the same seeds. 0 where both protocols selected the same values. It is not the tuning "
        "score minus the evaluation result, since streams differ in difficulty."
    )
    return Table(f"{scenario}: optimism gap", caption, columns, body, scenario)


def _tau_table(tuning_tau: dict[str, float], kind_tau: pd.DataFrame, results: pd.DataFrame, scenario: str) -> Table:
    body = []
    for kind, tau in tuning_tau.items():
        rows = results[(results.kind == kind) & results.tuning_score.notna() & results.evaluation_rank.notna()]
        body.append(
            [Cell(f"{kind}: tuning score and evaluation"), number_cell(tau, 2), Cell(str(len(rows)), float(len(rows)))]
        )
    for row in kind_tau.itertuples():
        methods = Cell(str(row.methods), float(row.methods))
        body.append([Cell(f"evaluation after {row.kind} and after {row.other}"), number_cell(row.tau, 2), methods])
    caption = (
        "Kendall's τ over methods: 1 where both rankings agree in every pair of methods, −1 where in none. Dashes: fewer than "
        "two methods, or all tied."
    )
    columns = [Column("rankings compared"), Column("τ", is_number=True), Column("methods", is_number=True)]
    return Table(f"{scenario}: agreement of rankings", caption, columns, body, scenario)


def _stream_tables(content: dict[str, Any], scenario: str) -> list[Table]:
    """What the tuning and evaluation streams have in common, with their hashes."""
    tables = []
    for stream in content["streams"]:
        if stream["scenario"] != scenario:
            continue
        facts = {
            "evaluation stream": _hashes(stream["evaluation"]),
            **{f"tuning stream of {kind}": _hashes(hashes) for kind, hashes in stream["tuning"].items()},
            "note": stream["note"],
        }
        if "classes" in stream:  # known once the streams have been held against each other
            facts |= {
                "classes while tuning": ", ".join(map(str, stream["classes"]["tuning"])),
                "classes evaluated": ", ".join(map(str, stream["classes"]["evaluation"])),
                "samples in common": str(stream["common_samples"]),
                "classes in common": ", ".join(map(str, stream["common_classes"])) or "none",
            }
        body = [[Cell(name), Cell(value)] for name, value in facts.items() if value]
        caption = (
            "Hashes of the streams by seed, and what the tuning stream of two_phase shares with the evaluation stream."
        )
        tables.append(Table(f"{scenario}: streams", caption, [Column("what"), Column("value")], body, scenario))
    return tables


def _hashes(by_seed: dict[str, str]) -> str:
    if not by_seed:
        return "not built yet"
    if len(set(by_seed.values())) == 1:
        return f"{next(iter(by_seed.values()))} (seeds {', '.join(by_seed)})"
    return ", ".join(f"seed {seed}: {digest}" for seed, digest in by_seed.items())


# ---- hyperparameters ------------------------------------------------------------------------------------------------


def sensitivities(runs: Runs) -> list[Sensitivity]:
    """Score by hyperparameter value for every method and protocol of every study that searched something."""
    return [
        _sensitivity(str(study.folder), method, kind, protocol["trials"])
        for study in runs.studies
        for method in study.content["methods"]
        if method["search"]
        for kind, protocol in method["protocols"].items()
    ]


def _sensitivity(study: str, method: dict[str, Any], kind: str, trials: list[dict[str, Any]]) -> Sensitivity:
    complete = [trial for trial in trials if trial["state"] == "complete" and trial["score"] is not None]
    rows = [
        (parameter, value, trial["trial"], float(trial["score"]))
        for trial in complete
        for parameter, value in trial["values"].items()
    ]
    scores = pd.DataFrame(rows, columns=["parameter", "value", "trial", "score"])
    importance, note = _importance(method["search"], complete)
    return Sensitivity(study, method["scenario"], method["method"], kind, scores, importance, note)


def _importance(search: dict[str, Any], complete: list[dict[str, Any]]) -> tuple[pd.Series | None, str]:
    """fANOVA (Hutter et al. 2014) over the complete trials, by Optuna, and a sentence on it.

    Values drawn from a list are categories, also where they are numbers.
    """
    scores = np.array([trial["score"] for trial in complete], float)
    varied = [name for name in search if len({str(trial["values"][name]) for trial in complete}) > 1]
    if len(complete) < FEWEST_TRIALS:
        return None, f"Importance is not computed from {len(complete)} complete trials; it takes {FEWEST_TRIALS}."
    if not varied:
        return None, "Importance is undefined: all trials have the same values."
    if np.ptp(scores) == 0:
        return None, "Importance is undefined: all trials have the same score."
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space = {name: _distribution(search[name]) for name in varied}
    table = optuna.create_study(direction="maximize")
    for trial in complete:
        values = {name: trial["values"][name] for name in varied}
        values = {name: str(value) if isinstance(search[name], list) else value for name, value in values.items()}
        table.add_trial(optuna.trial.create_trial(params=values, distributions=space, value=float(trial["score"])))
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    shares = pd.Series(optuna.importance.get_param_importances(table, evaluator=evaluator), dtype=float)
    note = f"fANOVA (Hutter et al. 2014) over {len(complete)} complete trials: the share of the score's variance due to each."
    return shares.sort_values(ascending=False), note


def _distribution(tried: Any) -> Any:
    """Optuna's form of what study.json says is tried: a list of choices, or ``{low, high, log}``."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    if isinstance(tried, list):
        return CategoricalDistribution(list(dict.fromkeys(map(str, tried))))
    return FloatDistribution(float(tried["low"]), float(tried["high"]), log=bool(tried["log"]))
