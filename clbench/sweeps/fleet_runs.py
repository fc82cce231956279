"""Trains a group of runs that may be stacked, in the fastest way, each in its own run folder."""

import gc
import logging
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from omegaconf import DictConfig

from clbench.errors import ClbenchError, Diverged
from clbench.learning.stack import share_frozen
from clbench.machine_errors import explanation
from clbench.progress import ProgressDisplay
from clbench.records.log_file import log_files
from clbench.records.run_folder import RunFolder
from clbench.records.summary import Summary
from clbench.run import Run, recorded, run
from clbench.scenarios.build import sources_kept
from clbench.sweeps.grouping import why_alone
from clbench.sweeps.ways import n_processes, pool, seconds_per_iteration
from clbench.training.fleet import Fleet
from clbench.training.interruption import signals_noted

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """A run to be made: its configuration and its folder."""

    config: DictConfig
    path: Path


@dataclass(frozen=True)
class Outcome:
    """What became of a job: the content of its ``summary.json``, or why there is no result."""

    summary: Summary | None = None
    failure: str | None = None


def train_together(jobs: list[Job], way: str = "auto") -> list[Outcome]:
    """Train runs that may be stacked (see :mod:`clbench.sweeps.grouping`), and return what became of each.

    Args:
        jobs: the runs.
        way: one of :data:`clbench.sweeps.ways.WAYS`, or ``auto`` for the one that is fastest here.

    A run that fails is recorded as failed in its folder and does not keep the others from being trained.
    """
    known = [recorded(job.config, job.path) for job in jobs]
    if any(summary is not None for summary in known):  # a sweep that is repeated: only what is missing is trained
        missing = iter(train_together([job for job, summary in zip(jobs, known, strict=True) if summary is None], way))
        return [next(missing) if summary is None else Outcome(summary) for summary in known]
    if not jobs:
        return []
    with sources_kept():
        if len(jobs) == 1:
            reason = why_alone(jobs[0].config)
            if reason:
                _say(f"trained alone, since it cannot be stacked: {reason}")
            return [_alone(jobs[0])]
        if way == "auto":
            way = _fastest(jobs)
        if way == "stacked":
            return _stacked(jobs)
        if way == "processes":
            return _in_processes(jobs)
        return [_alone(job) for job in jobs]


def _fastest(jobs: list[Job]) -> str:
    """The fastest way, said with the timings; ``in_turn`` where the runs turn out not to be stackable."""
    name = f"{len(jobs)} runs of {jobs[0].config.strategy.name} on {jobs[0].config.scenario.name}"
    try:
        seconds = seconds_per_iteration([job.config for job in jobs])
    except ClbenchError:
        return "in_turn"  # a configuration is wrong: its run says so, the others go on
    except torch.OutOfMemoryError:
        return "stacked"  # which halves the group
    except Exception as error:  # whatever a user's strategy does that cannot be vmapped
        log.warning("%s: trained one after another, since stacking them fails (%s)", name, _sentence(error))
        return "in_turn"
    finally:
        _free_memory()
    best = min(seconds, key=seconds.__getitem__)
    timings = ", ".join(f"{way} {1000 * value:.2f} ms" for way, value in seconds.items())
    _say(f"{name}: an iteration of all takes {timings}; chosen: {best}")
    return best


def _stacked(jobs: list[Job]) -> list[Outcome]:
    """One fleet; on lack of memory two of half the size, from where their checkpoints are."""
    if len(jobs) == 1:
        return [_alone(jobs[0])]
    try:
        return _one_fleet(jobs)
    except torch.OutOfMemoryError:
        log.warning("out of memory with %d runs at once: two fleets of half the size", len(jobs))
    except Exception as error:  # whatever a user's strategy does that cannot be vmapped
        log.warning("trained one after another, since stacking %d runs fails (%s)", len(jobs), _sentence(error))
        return [_alone(job) for job in jobs]
    _free_memory()
    half = len(jobs) // 2
    return _stacked(jobs[:half]) + _stacked(jobs[half:])


def _one_fleet(jobs: list[Job]) -> list[Outcome]:
    with ExitStack() as folders:
        for job in jobs:
            folders.enter_context(RunFolder(job.path).owned())
        folders.enter_context(log_files([job.path for job in jobs]))
        return _train_stacked(jobs)


def _train_stacked(jobs: list[Job]) -> list[Outcome]:
    outcomes: dict[int, Outcome] = {}
    runs: dict[int, Run] = {}
    for number, job in enumerate(jobs):
        try:
            known = recorded(job.config, job.path)
            if known is not None:
                outcomes[number] = Outcome(known)
                continue
            made = Run(job.config, job.path)
            with made.recording_failure():
                made.begin(fleet={"runs": len(jobs), "way": "stacked"})
            if runs:  # at once: R copies of a large backbone might not fit
                share_frozen(next(iter(runs.values())).setup.learner, made.setup.learner)
            runs[number] = made
        except ClbenchError as error:
            outcomes[number] = Outcome(failure=str(error))
    members = list(runs.values())
    if members:
        fleet = Fleet([member.trainer for member in members])
        progress = ProgressDisplay(members[0].setup.scenario.n_tasks, jobs[0].config.progress)
        with ExitStack() as recording, signals_noted(), progress as fleet.on_progress:
            for member in members:
                recording.enter_context(member.recording_interruption())
            fleet.fit()
        for position, number in enumerate(runs):
            outcomes[number] = _finished(runs[number], fleet.diverged.get(position))
    return [outcomes[number] for number in range(len(jobs))]


def _finished(made: Run, diverged: Diverged | None) -> Outcome:
    try:
        with made.recording_failure():
            return Outcome(made.finish(diverged))
    except Exception as error:  # a full disk, a picture that cannot be drawn: this run's, not the others'
        return Outcome(failure=_sentence(error))


def _in_processes(jobs: list[Job]) -> list[Outcome]:
    with pool(n_processes(jobs[0].config, len(jobs))) as workers:
        return list(workers.map(_alone, jobs))


def _alone(job: Job) -> Outcome:
    try:
        return Outcome(run(job.config, job.path, reuse=True))
    except Exception as error:  # recorded in the folder by run(), and in the outcome: a sweep outlives it
        if not isinstance(error, ClbenchError):
            log.exception("the run in %s failed", job.path)
        return Outcome(failure=str(error) if isinstance(error, ClbenchError) else _sentence(error))


def _sentence(error: Exception) -> str:
    explained = explanation(error)
    if explained is not None:
        return str(explained)
    first = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {first}"


def _say(what: str) -> None:
    """Tell the user, in the terminal as well: warnings alone go there from a log."""
    log.info("%s", what)
    print(what, file=sys.stderr, flush=True)


def _free_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
