"""``python -m clbench``: train one configuration or a sweep, or run a sub-command; ``--help`` says what there is."""

import os
import shlex
import sys

from clbench.errors import ClbenchError, ConfigError, Interrupted, MachineError, RunFailed

FAILED, CONFIG_ERROR, INTERRUPTED = 1, 2, 130
"""Exit statuses: runs of a sweep have failed; an error of the user's; Ctrl-C."""

FIRST_PYTHON_WITHOUT_HYDRA = (3, 14)
"""Hydra 1.3 does not start there: argparse refuses one of its help texts."""


def main() -> None:
    """Entry point."""
    status = status_of(sys.argv[1:])
    if status:
        sys.exit(status)


def status_of(words: list[str]) -> int:
    """Do what the command line says; returns the exit status, an error's sentence printed."""
    try:
        _refuse_platform()
        return _run(words)
    except ClbenchError as error:
        return _complain(str(error), _status(error))
    except KeyboardInterrupt as error:
        return _say_interrupted(error)
    except BrokenPipeError:  # the reader has gone, as in "clbench list | head"
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except Exception as error:
        from clbench.machine_errors import explanation

        explained = explanation(error)
        if explained is None:
            raise
        return _complain(str(explained), _status(explained))


def _status(error: ClbenchError) -> int:
    """The exit status of an error: the machine's are no fault of the command."""
    return FAILED if isinstance(error, RunFailed | MachineError) else CONFIG_ERROR


def _run(words: list[str]) -> int:
    from clbench.command_line.help import COMMANDS, help_of, help_text, version_text

    command, rest = (words[0], words[1:]) if words and words[0] in COMMANDS else (None, words)
    asks = {"--help", "-h"} & set(rest)
    if command == "help":
        command, asks = (rest[0] if rest else None), {"--help"}
        if command is not None and command not in COMMANDS:
            from clbench.errors import choose_from

            raise ConfigError(choose_from("command", command, COMMANDS))
    if asks and command in (None, "list", "describe", "resume", "pretrain", "fetch-lm", "help"):
        print(help_text() if command in (None, "help") else help_of(command))
        return 0
    if command is None and "--version" in words:
        print(version_text())
        return 0
    return _do(command, ["--help"] if asks else rest, list(COMMANDS))


def _do(command: str | None, words: list[str], commands: list[str]) -> int:
    """Run a sub-command, or what the overrides ask for, with the user's command in the records of all its workers."""
    from clbench.records.run_folder import known_command_line

    with known_command_line():
        return _dispatch(command, words, commands)


def _dispatch(command: str | None, words: list[str], commands: list[str]) -> int:
    if command in ("list", "describe", "resume", "reproduce"):
        words = _with_config_dirs(words)
    match command:
        case "list":
            from clbench.listing import list_everything

            _refuse_number(command, words, at_most=1)
            list_everything(*words)
        case "describe":
            from clbench.listing import describe

            _refuse_number(command, words, at_least=1, at_most=3)
            describe(" ".join(words))
        case "resume":
            from clbench.command_line.launch import resume

            _refuse_number(command, words, at_least=1, at_most=1)
            return resume(words[0], commands)
        case "report":
            from clbench.reports.command import report

            report(words)
        case "reproduce":
            from clbench.reproduction import reproduce

            return reproduce(words)
        case "runs":
            from clbench.reports.run_list import runs

            runs(words)
        case "fetch-lm":
            from clbench.language_models import fetch_lm

            fetch_lm(words)
        case "pretrain":
            from clbench.pretraining import pretrain

            pretrain(words)
        case _:
            from clbench.command_line.launch import launch

            return launch(words, commands)
    return 0


def _with_config_dirs(words: list[str]) -> list[str]:
    """The words of a sub-command without ``--config-dir``, which is taken note of."""
    from clbench.command_line.arguments import config_dirs_of
    from clbench.conf_files import add_config_dirs

    left, folders = config_dirs_of(words)
    add_config_dirs(folders)
    return left


def _refuse_number(command: str, words: list[str], at_most: int, at_least: int = 0) -> None:
    from clbench.command_line.help import COMMANDS

    if not at_least <= len(words) <= at_most:
        raise ConfigError(f"usage: python -m clbench {command} {COMMANDS[command][0]}")


def _refuse_platform() -> None:
    if sys.platform == "win32":
        raise ConfigError("clbench needs Linux or macOS; on Windows it runs in WSL, the Windows Subsystem for Linux")
    if sys.version_info >= FIRST_PYTHON_WITHOUT_HYDRA:
        python = ".".join(map(str, sys.version_info[:2]))
        raise ConfigError(
            f"Hydra, which clbench builds on, does not start on Python {python}: use Python 3.11, 3.12 or 3.13"
        )


def _say_interrupted(error: KeyboardInterrupt) -> int:
    """One line, with the command that goes on; the exit status is the signal's."""
    from clbench.training.interruption import SIGNAL_STATUS

    where = shlex.quote(error.folder) if isinstance(error, Interrupted) else ""
    print(
        f"clbench: interrupted{f'; continue with python -m clbench resume {where}' if where else ''}", file=sys.stderr
    )
    return SIGNAL_STATUS.get(getattr(error, "signal", None), INTERRUPTED)


def _complain(message: str, status: int) -> int:
    print(f"clbench: {message}", file=sys.stderr)
    return status


if __name__ == "__main__":
    main()
