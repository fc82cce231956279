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
    """A run of a sweep that was trained elsewhere has failed; the message says why."""


def choose_from(kind: str, given: object, valid: Iterable[str]) -> str:
    """The sentence for a name that does not exist: what was given, the nearest match, and the choices.

    >>> choose_from("strategy", "ewcc", ["er", "ewc"])
    "unknown strategy 'ewcc': did you mean 'ewc'? Valid choices: er, ewc"
    """
    names = sorted(valid)
    # A name that lacks its last word may mean either of two.
    longer = [name for name in names if name.startswith(f"{given}_")]
    near = longer if len(longer) == 2 else difflib.get_close_matches(str(given), names, n=1)
    hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
    return f"unknown {kind} {given!r}: {hint}Valid choices: {', '.join(names)}"
