"""The errors a user can cause. Each message is one sentence with the offending value and the valid choices."""

import difflib
from collections.abc import Iterable


class ClbenchError(Exception):
    """An error whose message alone tells the user what to change; shown without a traceback."""


class ConfigError(ClbenchError, ValueError):
    """A configuration that cannot be run, found before any training starts."""


class DataError(ClbenchError):
    """Data that are missing, damaged or not what the scenario was defined on."""


class DamagedRecord(DataError, ValueError):
    """A file of a run folder that cannot be read."""


class MachineError(ClbenchError):
    """The machine cannot do what was asked: a full disk, a folder that may not be written, too little memory."""


class TestStreamLocked(ClbenchError, PermissionError):
    """Tuning code asked for test data, which only the evaluation phase may see."""

    __test__ = False  # the name begins with "Test", but pytest should not collect it


class Diverged(ClbenchError, ArithmeticError):
    """The training loss became NaN or infinite."""


class BatchDependence(ClbenchError):
    """A method's prediction for an image depends on the other images of its batch."""


class RunFailed(ClbenchError):
    """Runs of a sweep or a study have failed; the message says why, with a line for each.

    Args:
        message: the lines.
        all_refused: whether none of them could even begin, for a fault of the command.
    """

    def __init__(self, message: str, all_refused: bool = False) -> None:
        super().__init__(message)
        self.all_refused = all_refused


class Interrupted(KeyboardInterrupt):
    """The user (Ctrl-C) or the system (SIGTERM) has stopped a run, which can be resumed.

    Not an :class:`Exception`, so that a sweep stops with its run instead of taking it for one that failed.

    Args:
        folder: what to resume.
        signal: number of the signal; None for Ctrl-C.
    """

    def __init__(self, folder: str, signal: int | None = None) -> None:
        super().__init__(folder, signal)
        self.folder, self.signal = folder, signal


def choose_from(kind: str, given: object, valid: Iterable[str]) -> str:
    """The sentence for a name that does not exist: what was given, the nearest match, and the choices.

    >>> choose_from("strategy", "ewcc", ["er", "ewc"])
    "unknown strategy 'ewcc': did you mean 'ewc'? Valid choices: er, ewc"
    """
    names = sorted(valid)
    # A name that lacks its last word may mean either of two.
    longer = [name for name in names if name.startswith(f"{given}_")]
    near = longer if len(longer) == 2 else nearest(str(given), names)
    hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
    return f"unknown {kind} {given!r}: {hint}Valid choices: {', '.join(names)}"


def nearest(given: str, names: Iterable[str], n: int = 1) -> list[str]:
    """Up to ``n`` of ``names`` that are spelt like ``given``, the nearest first; capital and small letters count as equal."""
    folded = {name.casefold(): name for name in names}
    return [folded[near] for near in difflib.get_close_matches(given.casefold(), folded, n=n)]
