"""What may be compared: runs on the same stream with the same budget; and what is missing."""

import os
from collections.abc import Iterable
from dataclasses import dataclass

import pandas as pd

from clbench.errors import ConfigError
from clbench.reports.labels import differing_options
from clbench.reports.loading import Leaves, Runs

REQUIRED_COLUMNS = {"split": "the split that was evaluated", "evaluation_kind": "how the curve was evaluated"}

REQUIRED_OPTIONS = ("trainer.epochs", "trainer.max_steps_per_task", "trainer.batch_size", "evaluator.subset")

REQUIRED_GROUPS = ("model.", "scenario.")

NOT_REQUIRED = ("scenario.name", "scenario.frozen")

HEADLINE_KIND = "two_phase"
"""The protocol whose evaluation runs enter the main tables; the first of the study where it has no such."""


@dataclass(frozen=True)
class Selection:
    """Runs that are compared, and those that should have been."""

    candidates: pd.DataFrame
    """Every run that belongs into the comparison, whatever became of it. The column ``method`` is the label, ``protocol`` the one
    that the methods were tuned by."""

    included: pd.DataFrame
    """The finished ones among them: one per method, scenario and seed, on the same stream with the same budget."""

    expected_seeds: dict[str, list[int]]
    """Scenario → the seeds that any of its methods has, or that a study set out to run."""

    failures: pd.DataFrame
    """A row per run that is missing, failed, interrupted, running, diverged or unreadable: method, scenario, seed, status,
    reason, folder."""

    @property
    def methods(self) -> list[str]:
        """Labels in their order of appearance; folders of which nothing could be read have none."""
        return list(dict.fromkeys(self.candidates.method[self.candidates.strategy.notna()]))


def select(runs: Runs, by: list[str]) -> Selection:
    """Choose the runs to compare and check that they are comparable.

    Args:
        by: what makes a method, see :func:`clbench.reports.labels.method_labels`. Anything named here may differ.

    Raises:
        ConfigError: two runs differ in what a fair comparison keeps equal, or are the same method and seed; or none is finished.
    """
    table = runs.relabelled(by)
    searched = _searched_options(runs)
    kinds = _headline_kinds(runs)
    candidates = table[(table.phase != "tuning") & table.folder.isin(kinds)]
    candidates = candidates.assign(protocol=candidates.folder.map(kinds))
    done = candidates[candidates.status.isin(["finished", "diverged"])]
    apart = [name for name in by if name not in ("method", "strategy", "scenario")]
    for _, rows in done.groupby("scenario", sort=False):
        _check_same_conditions(rows, runs, apart, searched)
    _check_no_duplicates(done, runs)
    included = done[done.status == "finished"].reset_index(drop=True)
    if included.empty:
        counts = ", ".join(f"{n} {status}" for status, n in table.status.value_counts().items())
        raise ConfigError(
            f"none of the runs to compare has finished (found: {counts}): see them with python -m clbench runs"
        )
    expected = _expected_seeds(candidates, runs)
    return Selection(candidates, included, expected, _failures(candidates, expected, runs))


def _headline_kinds(runs: Runs) -> dict[str, str | None]:
    """Folder → protocol, of a study's evaluation runs under its headline protocol; None for runs that belong to no study.

    Evaluation runs that lie in a study and that its ``study.json`` does not name are left over from another selection.
    """
    resolved = runs.resolved_folders
    shown: dict[str, str | None] = {}
    for study in runs.studies:
        for method in study.content["methods"]:
            kind = _headline(method["protocols"])
            shown |= {
                str(study.path(run)): kind for run in (method["protocols"][kind].get("evaluation") or {}).values()
            }
    studies = tuple(f"{study.folder.resolve()}{os.sep}" for study in runs.studies)
    return {
        folder: shown.get(where)
        for folder, where, phase in zip(runs.table.folder, resolved, runs.table.phase, strict=True)
        if where in shown or not (isinstance(phase, str) and where.startswith(studies))
    }


def _headline(kinds: Iterable[str]) -> str:
    names = list(kinds)
    return HEADLINE_KIND if HEADLINE_KIND in names else names[0]


def _searched_options(runs: Runs) -> dict[str, set[str]]:
    """Method of a study → the options that its tuning chose: a tuned budget may differ from another's."""
    searched: dict[str, set[str]] = {}
    for study in runs.studies:
        for method in study.content["methods"]:
            searched.setdefault(method["method"], set()).update(method["search"])
    return searched


def _check_same_conditions(rows: pd.DataFrame, runs: Runs, apart: list[str], searched: dict[str, set[str]]) -> None:
    """Raise where the runs of a scenario differ in stream, split, model, budget or evaluation."""
    leaves = pd.DataFrame([_conditions(runs.config(folder), searched) for folder in rows.folder], index=rows.index)
    conditions = rows.join(leaves[[name for name in leaves if name not in rows]])
    # What --by names is allowed to differ: runs are held against those that agree with them in it.
    keys = [conditions[name].map(str) for name in ["scenario", *(name for name in apart if name in conditions)]]
    for _, group in conditions.groupby(keys, sort=False):
        for _, of_seed in group.groupby("seed", sort=False):
            _check_equal(of_seed, "scenario_hash", "the stream (scenario hash)")
        for name, words in REQUIRED_COLUMNS.items():
            _check_equal(group, name, words)
        for name in leaves:
            _check_equal(group, name, name)


def _conditions(leaves: Leaves, searched: dict[str, set[str]]) -> dict[str, str]:
    """The options that have to be equal, as text (null is a value too), without those that a study tuned for this method."""
    tuned = searched.get(leaves.get("study.method", ""), set())
    return {
        name: str(value)
        for name, value in leaves.items()
        if (name in REQUIRED_OPTIONS or (name.startswith(REQUIRED_GROUPS) and name not in NOT_REQUIRED))
        and name not in tuned
    }


def _check_equal(rows: pd.DataFrame, name: str, words: str) -> None:
    known = rows[rows[name].notna()]
    texts = known[name]
    if texts.nunique() > 1:
        second = texts.index[texts != texts.iloc[0]][0]
        raise ConfigError(
            f"{known.folder.iloc[0]} and {known.folder[second]} differ in {words}: {texts.iloc[0]} and {texts[second]}; give "
            f"fewer folders, or compare them all the same with --by method,{name}"
        )


def _check_no_duplicates(done: pd.DataFrame, runs: Runs) -> None:
    twice = done[done.duplicated(["method", "scenario", "seed"], keep=False)]
    if twice.empty:
        return
    first = twice.iloc[0]
    second = twice[(twice[["method", "scenario", "seed"]] == first[["method", "scenario", "seed"]]).all(axis=1)].iloc[1]
    options = differing_options([runs.config(first.folder), runs.config(second.folder)])
    if options:
        remedy = f"they differ in {', '.join(options)}: add it with --by strategy,{options[0]}, or give fewer folders"
    else:
        remedy = "with the same options: give one of them"
    raise ConfigError(
        f"{first.folder} and {second.folder} are both {first.method} on {first.scenario} with seed {first.seed}, {remedy}"
    )


def _expected_seeds(candidates: pd.DataFrame, runs: Runs) -> dict[str, list[int]]:
    expected = {
        str(scenario): {int(seed) for seed in seeds.dropna()}
        for scenario, seeds in candidates.groupby("scenario", sort=False).seed
    }
    for study in runs.studies:
        for method in study.content["methods"]:
            if method["scenario"] in expected:
                expected[method["scenario"]].update(study.content["protocol"]["evaluation_seeds"])
    return {scenario: sorted(seeds) for scenario, seeds in expected.items()}


def _failures(candidates: pd.DataFrame, expected: dict[str, list[int]], runs: Runs) -> pd.DataFrame:
    columns = ["method", "scenario", "seed", "status", "reason", "folder"]
    unfinished = candidates[candidates.status != "finished"][columns]
    missing: list[tuple] = []
    for (method, scenario), rows in candidates[candidates.strategy.notna()].groupby(["method", "scenario"], sort=False):
        present = set(rows.seed.dropna().astype(int))
        missing += [
            (method, scenario, seed, "missing", "the other methods, or the plan of the study, have this seed", "")
            for seed in expected[scenario]
            if seed not in present
        ]
    for study in runs.studies:
        missing += [
            (entry["method"], entry["scenario"], None, "missing", f"not evaluated yet under {kind}", str(study.folder))
            for entry in study.content["methods"]
            for kind, protocol in entry["protocols"].items()
            if not protocol.get("evaluation")
        ]
    return pd.concat(
        [unfinished.astype(object), pd.DataFrame(missing, columns=columns, dtype=object)], ignore_index=True
    )
