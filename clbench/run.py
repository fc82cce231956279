"""One run: from a configuration to a complete run folder."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from signal import SIGTERM
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from clbench.compose import load_run_config
from clbench.errors import ConfigError, Diverged, Interrupted
from clbench.machine_errors import explanation, in_sentences
from clbench.progress import ProgressDisplay
from clbench.recording import machine_record, own_record, stream_record, summary_record, write_tables
from clbench.records.continuity import (
    refuse_other_stream,
    refuse_other_weights,
    surroundings_before,
    with_absolute_paths,
)
from clbench.records.log_file import log_files
from clbench.records.peak_memory import PeakMemory
from clbench.records.run_folder import RunFolder
from clbench.records.summary import Summary
from clbench.records.wandb_log import WandbLog
from clbench.set_up import device_of, set_up
from clbench.training.interruption import signals_noted
from clbench.training.trainer import Trainer

log = logging.getLogger(__name__)


def run(composed: DictConfig, path: Path, reuse: bool = False) -> Summary:
    """Train and evaluate, writing everything to the folder ``path``; continues from a checkpoint found there.

    Args:
        composed: the configuration.
        path: the run folder.
        reuse: take the result that is there where this very configuration has been run, as sweeps do that are repeated.

    Returns:
        The content of ``summary.json``.

    Raises:
        ClbenchError: the run cannot start. A run that diverges does not raise; its summary says so.
    """
    with in_sentences(), RunFolder(path).owned():
        known = recorded(composed, path) if reuse else None
        if known is not None:
            return known
        job = Run(composed, path)
        with log_files([path]):
            return _run(job)


def _run(job: "Run") -> Summary:
    with job.recording_failure():
        try:
            job.train()
        except Diverged as error:
            return job.finish(error)
        return job.finish()


def recorded(composed: DictConfig, path: Path) -> Summary | None:
    """The content of ``summary.json`` where ``path`` holds a run of this very configuration that came to its end."""
    folder = RunFolder(path)
    if folder.status not in ("finished", "diverged"):
        return None
    same = _recorded_configuration(path) == with_absolute_paths(composed, _working_directory())
    return folder.read_summary() if same else None


def _recorded_configuration(path: Path) -> DictConfig | None:
    """The configuration in a run folder, or None where there is none."""
    file = path / "config.yaml"
    if not file.exists():
        return None
    return with_absolute_paths(load_run_config(file), _working_directory())


def _working_directory() -> Path:
    """What relative paths of the command line are relative to, also for a job that is run elsewhere."""
    return Path(HydraConfig.get().runtime.cwd) if HydraConfig.initialized() else Path.cwd()


class Run:
    """A configuration and the folder that its run is recorded in.

    Args:
        composed: the configuration.
        path: the run folder.

    Raises:
        ConfigError: the folder holds a finished run, or an unfinished one of another configuration.
    """

    def __init__(self, composed: DictConfig, path: Path) -> None:
        self.composed, self.folder = with_absolute_paths(composed, _working_directory()), RunFolder(path)
        if self.folder.status == "finished":
            raise ConfigError(f"{path} already holds a finished run: choose another hydra.run.dir")
        self._goes_on = self._recorded_is_this_run()
        self._wandb_log: WandbLog | None = None

    def begin(self, live: bool = False, fleet: dict[str, Any] | None = None) -> Trainer:
        """Set everything up and write what is known before the first step.

        Args:
            live: send results to wandb while training, and not only at the end; one run of a process can.
            fleet: how many runs train together with this one and in which way, for the record.
        """
        # From here on, but for what the system counts in: of runs in one process each has its own.
        self._memory, self._memory_is_shared = PeakMemory(device_of(self.composed.device)), fleet is not None
        folder = self.folder
        if not self._goes_on:  # what an earlier run left that never got to its first checkpoint
            (folder.path / "scenario.json").unlink(missing_ok=True)
        folder.write_text("config.yaml", OmegaConf.to_yaml(self.composed, resolve=True))  # now: resume starts from it
        setup = self.setup = set_up(self.composed)
        stream, now = stream_record(setup), machine_record(setup)
        earlier: list[dict[str, Any]] = []
        if self._goes_on:
            refuse_other_stream(folder.path, folder.read_json("scenario.json"), stream)
            recorded_environment = folder.read_json("environment.json") if folder.checkpoint.exists() else None
            refuse_other_weights(folder.path, recorded_environment, setup.pretrained)
            earlier = surroundings_before(folder.path, recorded_environment, now)
        folder.write_json("scenario.json", stream)
        folder.write_json("environment.json", now | {"earlier": earlier} | own_record(setup, fleet))
        folder.write_summary({"status": "running"})
        if live and setup.config.wandb.mode != "disabled":
            self._wandb_log = self._open_wandb()
        self.trainer = Trainer(
            setup.config,
            setup.scenario,
            setup.learner,
            setup.inputs,
            setup.evaluator,
            folder.checkpoint,
            on_task_end=self._on_task_end,
        )
        return self.trainer

    def train(self) -> Trainer:
        """Set everything up and train to the end of the stream, with a progress bar.

        Raises:
            Diverged: the training loss became NaN or infinite.
            Interrupted: Ctrl-C or SIGTERM has come.
        """
        trainer = self.begin(live=True)
        progress = ProgressDisplay(trainer.scenario.n_tasks, self.composed.progress)
        with signals_noted(), progress as trainer.on_progress:
            trainer.fit()
        return trainer

    def finish(self, diverged: Diverged | None = None) -> Summary:
        """Write what is known after the last step; returns the content of ``summary.json``."""
        config, scenario, trainer = self.setup.config, self.setup.scenario, self.trainer
        write_tables(self.folder, trainer)
        summary = summary_record(self.setup, trainer, diverged, self._peak_memory())
        compiled = {"compiled": self.setup.learner.compilation.done}
        self.folder.write_json("environment.json", self.folder.read_json("environment.json") | compiled)
        figure = self.folder.path / "curve.png"
        if config.record.figure:
            from clbench.reports.curve_figure import draw_curves  # with matplotlib, which takes a second

            title = f"{summary['strategy']} on {scenario.name}"
            draw_curves(trainer.curve, trainer.tasks, figure, title, scenario.task_names)
        if config.wandb.mode != "disabled":
            log = self._wandb_log or self._open_wandb()
            log.log_curve(trainer.curve)
            log.finish(summary, figure)
        summary = self.folder.write_summary(summary)
        if diverged is None:  # after the record, so that a run that is killed between the two is still finished
            trainer.keep_what_is_asked_for()
        return summary

    def _peak_memory(self) -> tuple[int | None, str | None]:
        """Bytes and whose they are: of this run, of the fleet that it was trained in, or of none that could be measured."""
        peak = self._memory.read()
        whose = None if peak is None else "fleet" if self._memory_is_shared else "run"
        return peak, whose

    @contextmanager
    def recording_failure(self) -> Iterator[None]:
        """Let an error of the run leave its mark in the folder on its way out."""
        try:
            with self.recording_interruption():
                yield
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # recorded, not swallowed
            said = explanation(error) or error
            reason = f"{type(said).__name__}: {said}"
            try:
                self.folder.write_summary({"status": "failed", "reason": reason})
            except OSError as unwritable:  # the disk that made it fail may be full for this as well
                log.error("%s cannot be marked as failed: %s", self.folder.path, unwritable)
            raise

    @contextmanager
    def recording_interruption(self) -> Iterator[None]:
        """Let Ctrl-C or SIGTERM leave its mark in the folder."""
        try:
            yield
        except KeyboardInterrupt as error:
            signal = getattr(error, "signal", None)
            reason = "SIGTERM" if signal == SIGTERM else "Ctrl-C"
            self.folder.write_summary({"status": "interrupted", "reason": reason})
            raise Interrupted(str(self.folder.path), signal) from error

    def _recorded_is_this_run(self) -> bool:
        """Whether the folder holds the record of this configuration, begun and not finished.

        Raises:
            ConfigError: it holds a checkpoint of another one. That may only be continued under the configuration that made it,
                or its record would be of another run.
        """
        same = _recorded_configuration(self.folder.path) == self.composed
        if self.folder.checkpoint.exists() and not same:
            raise ConfigError(
                f"{self.folder.path} holds an unfinished run of another configuration: continue that one with "
                f"python -m clbench resume {self.folder.path}, or choose another hydra.run.dir"
            )
        return same

    def _open_wandb(self) -> WandbLog:
        resolved = OmegaConf.to_container(self.composed, resolve=True)
        return WandbLog(self.setup.config.wandb, resolved, self.folder.path)  # type: ignore[arg-type]

    def _on_task_end(self, _task: int) -> None:
        write_tables(self.folder, self.trainer)
        if self._wandb_log is not None:
            self._wandb_log.log_curve(self.trainer.curve)
