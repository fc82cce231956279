"""How far a run is: a bar on a terminal, else a line a task and a line a minute; both with the time left."""

import logging
import sys
import time
from collections import deque

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

log = logging.getLogger(__name__)

SPEED_WINDOW = 20
"""Iterations per second are measured over this many refreshes."""

LINE_SECONDS = 60.0
"""Time between lines where there is no terminal; the end of a task has a line in any case."""

MOST_ACCURACIES = 6
"""Accuracies that fit beside the bar in 80 columns; of more tasks, the first, the mean and the last ones are shown."""


class ProgressDisplay:
    """A live bar on a terminal, lines on stderr where it is not one.

    Args:
        n_tasks: tasks in the stream; the bar is full when all are learned.
        shown: False makes the display do nothing.
    """

    def __init__(self, n_tasks: int, shown: bool = True) -> None:
        columns = (
            TextColumn("task {task.fields[number]}/{task.total}"),
            BarColumn(bar_width=12),
            TextColumn("{task.fields[step]} {task.fields[speed]} it/s"),
            TextColumn("{task.fields[left]} left"),
            TextColumn("acc {task.fields[accuracies]}"),
        )
        console = Console(stderr=True)
        self._n_tasks, self._shown, self._is_live = n_tasks, shown, shown and console.is_terminal
        self._progress = Progress(*columns, console=console, disable=not self._is_live, transient=True)
        self._bar = self._progress.add_task("", total=n_tasks, number=1, step="0", speed="–", left="–", accuracies="")
        self._seen: deque[tuple[float, int]] = deque(maxlen=SPEED_WINDOW)
        self._done_before = 0  # iterations of earlier tasks
        self._last = (0, 0)
        self._first: tuple[float, float] | None = (
            None  # time and part of the stream at the first call: a resumed run has begun
        )
        self._last_line = time.monotonic()
        self._last_ended = -1  # the task that had its line

    def __enter__(self) -> "ProgressDisplay":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def __call__(self, task: int, step: int, n_steps: int, accuracies: list[float]) -> None:
        """Show that ``step`` of ``n_steps`` of ``task`` is done, with the accuracy on each seen task."""
        now = time.perf_counter()
        if task != self._last[0]:
            self._done_before += self._last[1]
        self._last = task, step
        done = task + (step / n_steps if n_steps else 1)
        if self._first is None:
            self._first = now, done
        left = _left(now - self._first[0], done - self._first[1], self._n_tasks - done)
        self._say(task, step, n_steps, left, accuracies)
        if not self._is_live:
            return
        self._seen.append((now, self._done_before + step))
        (then, fewer), (later, more) = self._seen[0], self._seen[-1]
        speed = f"{(more - fewer) / (later - then):.0f}" if later > then else "–"
        self._progress.update(
            self._bar,
            completed=done,
            number=task + 1,
            step=f"{step}/{n_steps}",
            speed=speed,
            left=left,
            accuracies=short_accuracies(accuracies),
        )

    def _say(self, task: int, step: int, n_steps: int, left: str, accuracies: list[float]) -> None:
        """A line at the end of a task, and one a minute; into the log file in any case."""
        is_end, now = step == n_steps, time.monotonic()
        if task == self._last_ended or (not is_end and now - self._last_line < LINE_SECONDS):
            return
        self._last_line = now
        if is_end:
            self._last_ended = task
        where = f"task {task + 1}/{self._n_tasks}" + ("" if is_end else f", step {step}/{n_steps}")
        to_go = "" if is_end and task + 1 == self._n_tasks else f", {left} left"
        line = f"{where}: accuracy {short_accuracies(accuracies)}{to_go}"
        log.info("%s", line)
        if self._shown and not self._is_live:
            print(line, file=sys.stderr, flush=True)


def short_accuracies(accuracies: list[float]) -> str:
    """Accuracies in percent; of many the first, the mean of all and the last.

    >>> short_accuracies([0.5, 1.0])
    '50 100 %'
    >>> short_accuracies([0.9, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    '90 … 50 60 % (mean 43)'
    """
    shown = [f"{100 * accuracy:.0f}" for accuracy in accuracies]
    if len(shown) <= MOST_ACCURACIES:
        return " ".join(shown) + " %"
    mean = 100 * sum(accuracies) / len(accuracies)
    return f"{shown[0]} … {' '.join(shown[-2:])} % (mean {mean:.0f})"


def in_words(seconds: float) -> str:
    """A length of time: 40 s, 12 min, 3.1 h, 2.5 d."""
    for unit, length, digits in (("d", 86400, 1), ("h", 3600, 1), ("min", 60, 0)):
        if seconds >= (2 * length if unit == "d" else length):
            return f"{seconds / length:.{digits}f} {unit}"
    return f"{seconds:.0f} s"


def _left(seconds: float, done: float, to_do: float) -> str:
    return in_words(seconds / done * to_do) if done > 0 and seconds > 0 else "–"
