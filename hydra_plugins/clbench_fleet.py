"""``hydra/launcher=fleet``: the jobs of a sweep that may train together do so.

The launcher groups the jobs into fleets and hands each fleet, as one job, to another launcher: Hydra's basic one, or joblib,
ray or submitit, whose workers then train a fleet each (``hydra/launcher=fleet_joblib`` and its like). Hydra finds plugins by
importing every module of this package, so that nothing heavy is imported here before a sweep is launched.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, configure_log, filter_overrides, run_job, setup_globals
from hydra.errors import CompactHydraException
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

log = logging.getLogger(__name__)


@dataclass
class FleetLauncherConfig:
    """Options of ``hydra/launcher=fleet``: ``hydra.launcher.way``, …

    Attributes:
        inner: the launcher that each fleet is a job of; null: Hydra's basic one, which trains them one after another.
        workers: fleets to form at least, where jobs can be split: one for every worker or GPU of the inner launcher.
        largest: runs in a fleet at most.
        way: stacked, in_turn, processes, or auto for the fastest as timed (see clbench.sweeps.ways).
    """

    _target_: str = "hydra_plugins.clbench_fleet.FleetLauncher"
    inner: Any = None
    workers: int = 1
    largest: int = 64
    way: str = "auto"


ConfigStore.instance().store(group="hydra/launcher", name="fleet", node=FleetLauncherConfig, provider="clbench")


class FleetLauncher(Launcher):
    """Launches fleets; see the module docstring."""

    def __init__(self, inner: Launcher | None, workers: int, largest: int, way: str) -> None:
        self.inner = inner or BasicLauncher()
        self.workers, self.largest, self.way = workers, largest, way

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called by Hydra. The task function is not used: it makes one run."""
        from clbench.errors import choose_from
        from clbench.sweeps.ways import WAYS

        if self.way not in ("auto", *WAYS):  # an exception that Hydra shows without a traceback
            raise CompactHydraException(choose_from("value for hydra.launcher.way", self.way, ("auto", *WAYS)))
        for name in ("workers", "largest"):
            if getattr(self, name) < 1:
                raise CompactHydraException(
                    f"hydra.launcher.{name}={getattr(self, name)} is out of range: it has to be at least 1"
                )
        self.hydra_context, self.config = hydra_context, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Train all jobs; the result of each is what its run alone would have returned."""
        from clbench.sweeps.fleet_runs import Job
        from clbench.sweeps.grouping import grouped

        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        composed = [self._compose(overrides, initial_job_idx + i) for i, overrides in enumerate(job_overrides)]
        jobs = [Job(self._tuned(config), _output_folder(config)) for config in composed]
        groups = grouped([job.config for job in jobs], self.largest, self.workers)
        log.info("%d jobs in %d fleets", len(jobs), len(groups))
        for number, group in enumerate(groups):
            for job in group:
                log.info(
                    "\t#%d in fleet %d: %s",
                    initial_job_idx + job,
                    number,
                    " ".join(filter_overrides(job_overrides[job])),
                )
        task = FleetTask([[jobs[job] for job in group] for group in groups], initial_job_idx, self.way)
        self.inner.setup(hydra_context=self.hydra_context, task_function=task, config=self.config)
        # What the inner launcher sees as job is a fleet: its log lies in a folder of its own, beside those of the runs.
        as_jobs = [
            [*job_overrides[group[0]], f"hydra.sweep.subdir=fleets/{initial_job_idx}-{number}"]
            for number, group in enumerate(groups)
        ]
        returned = self.inner.launch(as_jobs, initial_job_idx)
        results: list[JobReturn | None] = [None] * len(jobs)
        for group, fleet in zip(groups, returned, strict=True):
            outcomes = fleet.return_value  # raises what kept the whole fleet from training
            for job, outcome in zip(group, outcomes, strict=True):
                results[job] = self._job_return(composed[job], outcome)
        return results  # type: ignore[return-value]

    def _compose(self, overrides: Sequence[str], number: int) -> DictConfig:
        config = self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
        with open_dict(config):
            config.hydra.job.id = config.hydra.job.num = number
        return config

    @staticmethod
    def _tuned(config: DictConfig) -> DictConfig:
        """The run's own configuration, with tuned values where ``+best=true`` asks for them."""
        from clbench.errors import ClbenchError
        from clbench.protocol.tuned_values import with_tuned_values

        try:
            tuned, sentence = with_tuned_values(_task_config(config), list(config.hydra.overrides.task))
        except ClbenchError as error:
            raise CompactHydraException(str(error)) from error
        if sentence:
            log.info("%s", sentence)
        return tuned

    def _job_return(self, config: DictConfig, outcome: Any) -> JobReturn:
        """Write what Hydra writes for a job (its ``.hydra`` folder), and return what it expects."""

        def result(_config: DictConfig) -> float | None:
            from clbench.errors import RunFailed

            if outcome.summary is None:
                raise RunFailed(outcome.failure)
            return outcome.summary["metrics"]["ACC"] if outcome.summary["status"] == "finished" else None

        return run_job(
            hydra_context=self.hydra_context,
            task_function=result,
            config=config,
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
            configure_logging=False,
        )


class FleetTask:
    """What the inner launcher runs as a job: trains one of the fleets.

    It is sent to the worker (pickled), with the jobs' configurations resolved, since their overrides cannot be composed as one.
    """

    def __init__(self, fleets: list[list[Any]], initial_job_idx: int, way: str) -> None:
        self.fleets, self.initial_job_idx, self.way = fleets, initial_job_idx, way

    def __call__(self, config: DictConfig) -> list[Any]:
        """The outcomes of the jobs of the fleet whose number is Hydra's job number."""
        from rich.console import Console

        from clbench.reports.end_of_run import end_of_sweep
        from clbench.reports.labels import swept_options
        from clbench.sweeps.fleet_runs import train_together

        jobs = self.fleets[HydraConfig.get().job.num - self.initial_job_idx]
        outcomes = train_together(jobs, self.way)
        summaries = [outcome.summary or {"status": "failed", "reason": outcome.failure} for outcome in outcomes]
        options = swept_options([job.config for job in jobs])
        Console().print(end_of_sweep(summaries, [job.path for job in jobs], options))
        return outcomes


def _task_config(config: DictConfig) -> DictConfig:
    """The run's own configuration, resolved, without Hydra's."""
    config = config.copy()
    HydraConfig.instance().set_config(config)
    with open_dict(config):
        del config["hydra"]
    OmegaConf.resolve(config)
    return config


def _output_folder(config: DictConfig) -> Path:
    """The folder that Hydra gives the job."""
    HydraConfig.instance().set_config(config)
    return (Path(str(config.hydra.sweep.dir)) / str(config.hydra.sweep.subdir)).absolute()
