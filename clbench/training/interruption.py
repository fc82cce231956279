"""Ctrl-C and SIGTERM: training notes them, and stops after the step at which a checkpoint resumes to the same run."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNAL_STATUS: dict[int | None, int] = {signal.SIGINT: 130, signal.SIGTERM: 143}
"""Signal → exit status of a process that it has stopped."""

_DEFAULT: dict[signal.Signals, Any] = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}

_noted: list[signal.Signals] = []


def noted() -> signal.Signals | None:
    """The signal that has come since training began, or None."""
    return _noted[0] if _noted else None


@contextmanager
def signals_noted() -> Iterator[None]:
    """Within this context, the first Ctrl-C or SIGTERM is noted, and a second one stops at once.

    A handler that somebody else has set, as cluster launchers do for preemption, is left in place, and threads cannot set any.
    """
    mine = []
    if threading.current_thread() is threading.main_thread():
        mine = [number for number, default in _DEFAULT.items() if signal.getsignal(number) is default]
    for number in mine:
        signal.signal(number, _note)
    try:
        yield
    finally:
        for number in mine:
            signal.signal(number, _DEFAULT[number])
        _noted.clear()


def _note(number: int, _frame: FrameType | None) -> None:
    if _noted:
        raise KeyboardInterrupt
    _noted.append(signal.Signals(number))
