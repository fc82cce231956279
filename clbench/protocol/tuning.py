"""Tuning one method in one way: which runs are due, and which configuration is best.

What is known is in the run folders. Everything here is worked out from them anew whenever it is asked for, so that a study
that was stopped continues where it was, and a run that has come to its end is never made again.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from clbench.evaluation.chance import chance_level
from clbench.protocol.journal import FINAL, TrialLog
from clbench.protocol.options import ProtocolConfig
from clbench.protocol.search_space import SearchSpace, Values, as_overrides, n_trials, next_values
from clbench.records.run_folder import RunFolder

ENDED = ("finished", "diverged")


@dataclass(frozen=True)
class RunRequest:
    """A run that is due.

    Attributes:
        overrides: its configuration, as on the command line.
        folder: the run folder, relative to the study's.
    """

    overrides: list[str]
    folder: str


@dataclass(frozen=True)
class TrialResult:
    """What is known of one configuration.

    Attributes:
        number: of the trial.
        values: option → value.
        state: complete, pruned, failed or running.
        score: mean over the seeds so far, or None where there is none.
        runs: seed → what study.json says about the run.
    """

    number: int
    values: Values
    state: str
    score: float | None
    runs: dict[int, dict[str, Any]]

    @property
    def iterations(self) -> float:
        """Optimizer steps of its runs, on average."""
        return sum(run["iterations"] or 0 for run in self.runs.values()) / max(1, len(self.runs))

    @property
    def diverged_seeds(self) -> list[int]:
        """Seeds with which training diverged."""
        return [seed for seed, run in self.runs.items() if run["status"] == "diverged"]


class Tuning:
    """The search for the best configuration of one method.

    Args:
        method: the method's name.
        folder: of the study.
        place: folder of this search's runs, relative to ``folder``.
        overrides: the method on the tuning stream.
        space: what is tried.
        options: of the protocol.
        log: of the trials.
        given_up: whether a run has been launched as often as it may be without coming to its end.
    """

    def __init__(
        self,
        method: str,
        folder: Path,
        place: str,
        overrides: list[str],
        space: SearchSpace,
        options: ProtocolConfig,
        log: TrialLog,
        given_up: Callable[[str], bool],
    ) -> None:
        self.method, self.space, self.options = method, space, options
        self._folder, self._place, self._overrides, self._log, self._given_up = folder, place, overrides, log, given_up
        self._n_trials = n_trials(space, options)

    def due(self) -> list[RunRequest]:
        """The runs to be made next, all of which may be made at the same time; none when tuning is over."""
        for batch in self._batches():
            self._draw(batch.stop)
            trials = self._log.trials[batch.start : batch.stop]
            requests = [] if all(trial.state in FINAL for trial in trials) else self._settle(trials)
            if requests:
                return requests
        return []

    def n_runs(self) -> int:
        """How many runs the search takes; with pruning, where none of them fails."""
        total, alive, before = 0, self._n_trials, 0
        for seeds in self._rungs():
            total, before = total + alive * (len(seeds) - before), len(seeds)
            alive = math.ceil(alive / self.options.reduction)
        return total

    def results(self) -> list[TrialResult]:
        """All trials so far."""
        return [self._result(trial) for trial in self._log.trials]

    def best(self) -> TrialResult | None:
        """The selected configuration, or None where no trial is complete.

        The highest score; among equals fewer diverged runs, then fewer steps, then the earlier trial.
        """
        complete = [result for result in self.results() if result.state == "complete"]
        return min(
            complete,
            key=lambda r: (-(r.score or 0.0), len(r.diverged_seeds), r.iterations, r.number),
            default=None,
        )

    def _batches(self) -> Iterator[range]:
        """Trials that are drawn without knowing each other's results."""
        size = self.options.batch if self.options.sampler == "tpe" else self._n_trials
        for start in range(0, self._n_trials, size):
            yield range(start, min(start + size, self._n_trials))

    def _draw(self, n: int) -> None:
        for _ in range(n - len(self._log.trials)):
            self._log.add(next_values(self._log.trials, self.method, self.space, self.options))

    def _settle(self, trials: list[FrozenTrial]) -> list[RunRequest]:
        """The runs that a batch of trials still needs; where there are none, the trials are closed."""
        alive = [trial.number for trial in trials]
        for seeds in self._rungs():
            requests = [
                self._request(number, seed) for number in alive for seed in seeds if not self._is_settled(number, seed)
            ]
            if requests:
                return requests
            scores = {number: self._score(number, seeds) for number in alive}
            if len(seeds) == len(self.options.tuning_seeds):
                for number, score in scores.items():
                    self._log.close(number, TrialState.FAIL if score is None else TrialState.COMPLETE, score)
                return []
            ranked = sorted(alive, key=lambda number: (-_or_worst(scores[number]), number))
            kept = ranked[: math.ceil(len(alive) / self.options.reduction)]
            for number in set(alive) - set(kept):
                score = scores[number]
                self._log.close(number, TrialState.FAIL if score is None else TrialState.PRUNED, score)
            alive = sorted(kept)
        raise AssertionError("the last rung has all seeds")

    def _rungs(self) -> Iterator[list[int]]:
        """The seeds that a trial has been trained with when it is compared with the others."""
        seeds, n = self.options.tuning_seeds, 1
        while self.options.pruner == "successive_halving" and n < len(seeds):
            yield seeds[:n]
            n *= self.options.reduction
        yield seeds

    def _run_folder(self, number: int, seed: int) -> str:
        return f"{self._place}/trial_{number:03d}/seed_{seed}"

    def _request(self, number: int, seed: int) -> RunRequest:
        values = self._log.trials[number].params
        own = [f"seed={seed}", f"study.trial={number}"]
        return RunRequest([*self._overrides, *as_overrides(values), *own], self._run_folder(number, seed))

    def _is_settled(self, number: int, seed: int) -> bool:
        folder = self._run_folder(number, seed)
        return RunFolder(self._folder / folder).status in ENDED or self._given_up(folder)

    def _score(self, number: int, seeds: list[int]) -> float | None:
        """Mean over ``seeds``; None where one of the runs failed."""
        scores = [self._record(number, seed)["score"] for seed in seeds]
        return None if None in scores else sum(scores) / len(scores)

    def _record(self, number: int, seed: int) -> dict[str, Any]:
        folder = self._run_folder(number, seed)
        return run_record(self._folder, folder) | {"score": score(self._folder / folder, self.options.metric)}

    def _result(self, trial: FrozenTrial) -> TrialResult:
        seeds = [
            s for s in self.options.tuning_seeds if RunFolder(self._folder / self._run_folder(trial.number, s)).status
        ]
        runs = {seed: self._record(trial.number, seed) for seed in seeds}
        known = [run["score"] for run in runs.values() if run["score"] is not None]
        state = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}
        mean = sum(known) / len(known) if known and trial.state in FINAL else None
        return TrialResult(trial.number, dict(trial.params), state.get(trial.state, "running"), mean, runs)


def run_record(study: Path, folder: str) -> dict[str, Any]:
    """What study.json says about a run."""
    summary = RunFolder(study / folder).read_summary()
    costs = {} if summary is None else summary.get("costs", {})
    return {
        "folder": folder,
        "status": "missing" if summary is None else summary["status"],
        "reason": "it never began" if summary is None else summary.get("reason"),
        "seconds": costs.get("seconds"),
        "iterations": costs.get("iterations"),
    }


def score(folder: Path, metric: str) -> float | None:
    """A run's score: the metric, chance level where training diverged, None where the run has not come to its end."""
    files = RunFolder(folder)
    summary = files.read_summary()
    if summary is None or summary["status"] not in ENDED:
        return None
    if summary["status"] == "diverged":
        return chance_level(files.read_json("scenario.json"), metric)
    return summary["metrics"][metric]


def _or_worst(value: float | None) -> float:
    return -math.inf if value is None else value
