"""Handing a checked command line to Hydra: one run, a sweep, a study, and going on with one of them."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from clbench.command_line.arguments import Arguments, taken_apart
from clbench.command_line.folders import NewFolder, folder_of
from clbench.compose import load_run_config, store_schemas
from clbench.conf_files import add_config_dirs, conf_dir
from clbench.errors import ConfigError, Interrupted, RunFailed
from clbench.options import override_value
from clbench.records.summary import Summary

DIVERGED = 3
"""Exit status of a single run that has diverged."""

FULL_ERRORS = "HYDRA_FULL_ERROR"
"""Hydra's environment variable, with which it passes exceptions on instead of printing them."""


def launch(words: list[str], commands: list[str]) -> int:
    """Run what the command line asks for; returns the exit status.

    Raises:
        ClbenchError: it cannot be run; then no folder is left behind.
    """
    from clbench.command_line.checks import checked

    arguments = _arguments(words, commands)
    if arguments.is_hydras:
        _call_hydra(arguments, arguments.overrides, train)
        return 0
    overrides, composed = checked(arguments)
    if arguments.only_shows:
        _call_hydra(arguments, overrides, train)
        return 0
    if arguments.is_sweep:
        from clbench.reports.after_sweep import conclude_sweep

        try:
            failures, status = _sweep(arguments, overrides, composed)
        finally:
            conclude_sweep()
        for failure in failures:
            print(f"clbench: {failure}", file=sys.stderr)
        return status
    return _single(arguments, overrides, composed)


def sweep(words: list[str], commands: list[str]) -> list[str]:
    """Make the runs of a sweep, as ``launch`` does, without comparing them; returns a line for each that has failed.

    Raises:
        ClbenchError: none of it can be run.
    """
    from clbench.command_line.checks import checked

    arguments = _arguments(words, commands)
    failures, _ = _sweep(arguments, *checked(arguments))
    return failures


def _arguments(words: list[str], commands: list[str]) -> Arguments:
    """The command line taken apart, with all that its overrides may name at hand."""
    arguments = taken_apart(words, commands)
    add_config_dirs(arguments.config_dirs)
    store_schemas()
    return arguments


def _single(arguments: Arguments, overrides: list[str], composed: DictConfig) -> int:
    """One run in a folder of its own, which is not left behind where the run is refused."""
    from clbench.command_line.single_run import run_alone
    from clbench.records.run_folder import RunFolder

    folder = NewFolder(folder_of(composed, "run"))
    if RunFolder(folder.path).status == "finished":
        raise ConfigError(f"{folder.path} already holds a finished run: choose another hydra.run.dir")
    result: dict[str, Any] = {}

    def once(config: DictConfig) -> None:
        try:
            result["summary"] = run_one(config, folder.path.absolute(), list(HydraConfig.get().overrides.task))
        except Exception as error:  # raised again below: Hydra would print the exception in its own way
            result["error"] = error

    with folder.removed_if_refused():
        try:
            if composed.hydra.verbose:  # Hydra's entry point lists what it has found and composed
                _call_hydra(arguments, [*overrides, *folder.override("hydra.run.dir")], once)
            else:
                run_alone(composed, folder, once)
        except KeyboardInterrupt as error:
            raise Interrupted(str(folder.path), getattr(error, "signal", None)) from error
        if "error" in result:
            raise result["error"]
    return DIVERGED if result["summary"]["status"] == "diverged" else 0


def _sweep(arguments: Arguments, overrides: list[str], composed: DictConfig) -> tuple[list[str], int]:
    """A sweep or a study; returns a line for each failure, and 1 where a run has failed, 2 where none could take a step."""
    folder = NewFolder(folder_of(composed, "sweep"))
    failures: list[str] = []
    status = 0
    with folder.removed_if_refused():
        try:
            _call_hydra(arguments, [*overrides, *folder.override("hydra.sweep.dir")], train)
        except RunFailed as error:
            failures, status = str(error).splitlines(), 2 if error.all_refused else 1
            if error.all_refused:
                folder.remove()
        except KeyboardInterrupt as error:
            raise Interrupted(str(folder.path), getattr(error, "signal", None)) from error
    return failures, status


def _call_hydra(arguments: Arguments, overrides: list[str], task: Callable[[DictConfig], Any]) -> None:
    words, before, known = sys.argv, os.environ.get(FULL_ERRORS), HydraConfig.instance().cfg
    sys.argv = [sys.argv[0], *arguments.flags, *overrides]
    os.environ[FULL_ERRORS] = "1"
    try:
        hydra.main(config_path=str(conf_dir()), config_name="config", version_base="1.3")(task)()
    finally:
        sys.argv = words  # what a program records of itself afterwards
        HydraConfig.instance().cfg = (
            known  # or later runs of this process would take this one's working directory for theirs
        )
        if before is None:
            del os.environ[FULL_ERRORS]


def train(composed: DictConfig) -> float | None:
    """A job of a sweep, in the folder that Hydra made for it; returns ACC, which a sweeper may maximise, or None if it diverged.

    A job whose folder holds the finished run already, since the sweep is repeated, takes that.
    """
    hydra_config = HydraConfig.get()
    folder = Path(hydra_config.runtime.output_dir)
    in_sweep = hydra_config.mode == RunMode.MULTIRUN
    summary = run_one(composed, folder, list(hydra_config.overrides.task), in_sweep)
    return summary["metrics"]["ACC"] if summary["status"] == "finished" else None


def run_one(composed: DictConfig, folder: Path, overrides: list[str], in_sweep: bool = False) -> Summary:
    """Train, and show what came of it: all of it for a run alone, a line in a sweep, nothing in a study.

    Returns:
        The content of ``summary.json``.
    """
    from rich.console import Console

    from clbench.protocol.tuned_values import with_tuned_values
    from clbench.records.run_folder import RunFolder
    from clbench.reports.end_of_run import end_of_run, line_of_run
    from clbench.run import run

    composed, sentence = with_tuned_values(composed, overrides)
    if sentence:
        print(sentence)
    summary = run(composed, folder, reuse=in_sweep)
    if composed.study.phase is not None:  # a study says itself what came of its many runs
        return summary
    if in_sweep:
        Console().print(line_of_run(summary, folder))
    else:
        Console().print(end_of_run(summary, RunFolder(folder).read_table("tasks.parquet"), folder))
    return summary


def resume(name: str, commands: list[str]) -> int:
    """Continue the run in the folder ``name`` from its last checkpoint, or the sweep or study there; returns the exit status.

    Raises:
        ConfigError: there is nothing that could be continued.
    """
    from clbench.records.run_folder import RunFolder

    folder = Path(name)
    if (folder / "multirun.yaml").is_file():
        return launch(_command_of_sweep(folder), commands)
    if not (folder / "config.yaml").is_file():
        raise ConfigError(
            f"{name} is neither a run folder, which has a config.yaml, nor that of a sweep or a study, which has a multirun.yaml"
        )
    status = RunFolder(folder).status
    if status in ("finished", "diverged"):
        raise ConfigError(f"the run in {name} is finished; nothing to resume" if status == "finished" else
                          f"the run in {name} has diverged; nothing to resume")  # fmt: skip
    summary = run_one(load_run_config(folder / "config.yaml"), folder, [])
    return DIVERGED if summary["status"] == "diverged" else 0


def _command_of_sweep(folder: Path) -> list[str]:
    """The command line of a sweep or a study, from the ``multirun.yaml`` that Hydra wrote."""
    saved = OmegaConf.load(folder / "multirun.yaml").hydra
    own = [o for o in saved.overrides.hydra if not o.startswith(("hydra.sweep.dir=", "hydra.mode="))]
    added = [
        word
        for source in saved.runtime.config_sources
        if source.provider == "command line or plug-in" and Path(source.path).is_dir()
        for word in ("--config-dir", source.path)
    ]
    return ["-m", *added, *own, *saved.overrides.task, f"hydra.sweep.dir={override_value(str(folder))}"]
