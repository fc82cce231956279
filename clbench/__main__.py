"""``python -m clbench``: train one configuration or a sweep, or run a sub-command.

python -m clbench strategy=ewc scenario=cifar100       one run
python -m clbench -m strategy=ewc,l2 seed=0,1,2        a sweep (Hydra's multirun)
python -m clbench list                                 every scenario, strategy, model, experiment
python -m clbench describe ewc                         equation, options, defaults and source of one
python -m clbench -m protocol=two_phase strategy=ewc,l2   tune on one stream, evaluate on another
python -m clbench pretrain data=cifar100 classes=0-49     train a backbone for streams of the other classes
python -m clbench resume <folder>                      continue a run or a study that was stopped
python -m clbench report <folders>                     comparison report (HTML, Markdown, LaTeX, CSV)
python -m clbench runs <folders>                       the runs as a table
"""

import os
import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from clbench import config as configuration
from clbench.errors import ClbenchError, ConfigError, choose_from
from clbench.records.run_folder import COMMAND_VARIABLE, command_line

CONFIG_ERROR = 2
"""Exit status for an error of the user's."""


def train(composed: DictConfig) -> float | None:
    """One run in the folder that Hydra made for it; returns ACC, which a sweeper may maximise, or None if it diverged.

    A job of a sweep whose folder holds the finished run already, since the sweep is repeated, takes that.
    """
    hydra_config = HydraConfig.get()
    in_sweep = hydra_config.mode == RunMode.MULTIRUN
    try:
        return _run(composed, Path(hydra_config.runtime.output_dir), list(hydra_config.overrides.task), reuse=in_sweep)
    except ClbenchError as error:
        if in_sweep:
            raise  # Hydra marks this job failed and goes on with the others
        sys.exit(_complain(error))


def _run(composed: DictConfig, folder: Path, overrides: list[str], reuse: bool = False) -> float | None:
    from rich.console import Console

    from clbench.protocol.tuned_values import with_tuned_values
    from clbench.records.run_folder import RunFolder
    from clbench.reports.end_of_run import end_of_run
    from clbench.run import run

    composed, sentence = with_tuned_values(composed, overrides)
    if sentence:
        print(sentence)
    summary = run(composed, folder, reuse)
    if composed.study.phase is None:  # a study says itself what came of its many runs
        Console().print(end_of_run(summary, RunFolder(folder).read_table("tasks.parquet"), folder))
    return summary["metrics"]["ACC"] if summary["status"] == "finished" else None


def resume(folder: str) -> None:
    """Continue the run in ``folder`` from its last checkpoint (from its beginning where there is none), or the study there."""
    path = Path(folder)
    if (path / "study.json").is_file():
        from omegaconf import OmegaConf

        saved = OmegaConf.load(path / "multirun.yaml").hydra.overrides
        own = [override for override in saved.hydra if not override.startswith(("hydra.sweep.dir=", "hydra.mode="))]
        _launch(["-m", *own, *saved.task, f"hydra.sweep.dir={configuration.override_value(str(path))}"])
        return
    if not (path / "config.yaml").is_file():
        raise ConfigError(
            f"{folder} is neither a run folder, which has a config.yaml, nor a study, which has a study.json"
        )
    _run(configuration.load_run_config(path / "config.yaml"), path, [])


def report(*arguments: str) -> None:
    """Compare runs."""
    from clbench.reports.command import report as write

    write(list(arguments))


def runs(*arguments: str) -> None:
    """List runs."""
    from clbench.reports.command import runs as show

    show(list(arguments))


def pretrain(*arguments: str) -> None:
    """Train a backbone."""
    from clbench.pretraining import pretrain as train_backbone

    train_backbone(list(arguments))


def show_list() -> None:
    """Print every scenario, strategy, model and experiment."""
    from clbench.listing import list_everything

    list_everything()


def describe(name: str) -> None:
    """Print what one of them is."""
    from clbench.listing import describe as describe_one

    describe_one(name)


COMMANDS = {
    "list": (show_list, ""),
    "describe": (describe, " NAME"),
    "pretrain": (pretrain, " …"),
    "resume": (resume, " FOLDER"),
    "report": (report, " …"),
    "runs": (runs, " …"),
}
"""Sub-command → function and arguments; after ``…`` come options that the command reads itself."""


def main() -> None:
    """Entry point."""
    arguments = sys.argv[1:]
    os.environ[COMMAND_VARIABLE] = command_line()
    try:
        if arguments and arguments[0] in COMMANDS:
            command, words = COMMANDS[arguments[0]]
            if "…" not in words and len(arguments) - 1 != len(words.split()):
                raise ConfigError(f"usage: python -m clbench {arguments[0]}{words}")
            command(*arguments[1:])
            return
        _launch(arguments)
    except ClbenchError as error:
        sys.exit(_complain(error))


def _launch(arguments: list[str]) -> None:
    """Hand the command line to Hydra, after its errors have been looked for."""
    check_group_choices(arguments)
    configuration.store_schemas()
    is_sweep = "-m" in arguments or "--multirun" in arguments
    if not is_sweep:
        configuration.check_overrides(
            [argument for argument in arguments if "=" in argument and not argument.startswith("hydra")]
        )
        if any(argument.startswith("protocol=") and argument != "protocol=null" for argument in arguments):
            raise ConfigError("a protocol makes many runs: python -m clbench -m " + " ".join(arguments))
    sys.argv = [sys.argv[0], *arguments]
    try:
        hydra.main(config_path=str(configuration.conf_dir()), config_name="config", version_base="1.3")(train)()
    finally:
        if is_sweep:
            report_of_sweep()


def report_of_sweep() -> None:
    """Write the report of the sweep that Hydra has launched, whether or not some of its runs failed."""
    from clbench.reports.after_sweep import write_report_of_sweep

    write_report_of_sweep()


def check_group_choices(arguments: list[str]) -> None:
    """Answer a misspelt ``strategy=``, ``scenario=``, ``model=`` … before Hydra does, and more briefly.

    Raises:
        ConfigError: with the nearest match and all choices; also for a word that is neither an override nor a command.
    """
    for argument in arguments:
        group, equals, values = argument.partition("=")
        if not equals and not argument.startswith(("-", "~")) and not _is_value_of_flag(arguments, argument):
            raise ConfigError(choose_from("command", argument, COMMANDS) + ", or key=value overrides")
        if (
            group
            not in ("strategy", "scenario", "model", "evaluator", "experiment", "debug", "protocol", "search_space")
            or not values.replace(",", "").isidentifier()
        ):
            continue  # another key, or a sweep expression such as glob(*): Hydra's to judge
        for value in values.split(","):
            if value and value != "null":
                configuration.require_choice(group, value)


def _is_value_of_flag(arguments: list[str], argument: str) -> bool:
    position = arguments.index(argument)
    return (
        position > 0 and arguments[position - 1].startswith("-") and arguments[position - 1] not in ("-m", "--multirun")
    )


def _complain(error: ClbenchError) -> int:
    print(f"clbench: {error}", file=sys.stderr)
    return CONFIG_ERROR


if __name__ == "__main__":
    main()
