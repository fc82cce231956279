"""The progress bar: task, step, accuracy on every seen task, iterations per second, time left."""

import time
from collections import deque

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

SPEED_WINDOW = 20
"""Iterations per second are measured over this many refreshes."""


class ProgressDisplay:
    """A live bar on a terminal; silent where the output is not one.

    Args:
        n_tasks: tasks in the stream; the bar is full when all are learned.
        shown: False makes the display do nothing.
    """

    def __init__(self, n_tasks: int, shown: bool = True) -> None:
        columns = (
            TextColumn("task {task.fields[number]}/{task.total}"),
            BarColumn(bar_width=24),
            TextColumn("step {task.fields[step]}  {task.fields[speed]} it/s"),
            TimeRemainingColumn(),
            TextColumn("acc {task.fields[accuracies]}"),
        )
        console = Console(stderr=True)
        self._progress = Progress(
            *columns, console=console, disable=not shown or not console.is_terminal, transient=True
        )
        self._bar = self._progress.add_task("", total=n_tasks, number=1, step="0", speed="–", accuracies="")
        self._seen: deque[tuple[float, int]] = deque(maxlen=SPEED_WINDOW)
        self._done_before = 0  # iterations of earlier tasks
        self._last = (0, 0)

    def __enter__(self) -> "ProgressDisplay":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def __call__(self, task: int, step: int, n_steps: int, accuracies: list[float]) -> None:
        """Show that ``step`` of ``n_steps`` of ``task`` is done, with the accuracy on each seen task."""
        if task != self._last[0]:
            self._done_before += self._last[1]
        self._last = task, step
        self._seen.append((time.perf_counter(), self._done_before + step))
        (then, fewer), (now, more) = self._seen[0], self._seen[-1]
        speed = f"{(more - fewer) / (now - then):.0f}" if now > then else "–"
        self._progress.update(
            self._bar,
            completed=task + step / n_steps,
            number=task + 1,
            step=f"{step}/{n_steps}",
            speed=speed,
            accuracies=" ".join(f"{100 * accuracy:.0f}" for accuracy in accuracies) + " %",
        )
