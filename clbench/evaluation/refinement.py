"""Which iterations the adaptive evaluator looks at, so that min-ACC and WC-ACC come out as with ``every=1``.

The evaluator keeps snapshots of a window of successive iterations and asks, at the window's end, which of them to evaluate.

1. A skeleton, always: the 1st, 4th, 16th, 64th … iteration of a task, since what follows a switch is the slower the later it
   comes, and the last iteration of every window.
2. Then bisection, best first. Between two evaluations, h iterations apart, with accuracies A and B on an earlier task, the
   curve is modelled as a Brownian bridge of variance v = σ²h, with σ² from how far the evaluations around lie off the
   straight line between their neighbours. Such a bridge falls below m with probability exp(−2 (A − m)(B − m) / v). The
   integral over all levels below the task's running minimum m is how far it is expected to undercut it
   (:func:`expected_undercut`). The mean over the tasks that count for min-ACC is the interval's gain. Where it exceeds
   ``tolerance`` the interval is halved.
3. Where no interval is left that does, those are halved over which any task moved by more than :data:`MOVED`, most first, for
   the sake of the metrics that need the curve's shape.
4. Within a budget: ``share`` of the iterations so far; what one window leaves is there for the next. A part of it
   (:data:`RESERVED`) is not for step 3. The skeleton may overdraw the budget where tasks are very short.

This finds the dips of a curve that moves smoothly from iteration to iteration. Where a single step costs points that the next
one gives back (tiny batches, high learning rates), no eighth of the iterations can be chosen to contain the lowest one; the
summary's ``min_ACC_unresolved`` tells.
"""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from scipy.special import erfcx

MARKS = frozenset(4**e for e in range(16))
"""Steps since the start of a task that belong to the skeleton."""

MOVED = 0.1
"""Accuracy; what moves less between two evaluations is well enough described by a straight line."""

RESERVED = 1 / 4
"""Part of the budget that only the search for minima may use."""

AT_ONCE = 4
"""Intervals that are halved before the gains are computed anew; the evaluator may evaluate as many snapshots together."""


def expected_undercut(iterations: np.ndarray, accuracies: np.ndarray, minimum: np.ndarray) -> np.ndarray:
    """How far each task's curve is expected to fall below ``minimum`` between two evaluations.

    Under the model an evaluation lies off the straight line between its neighbours, h₁ before and h₂ after it, by r of variance
    σ² h₁h₂ / (h₁ + h₂). An interval's σ² is the largest r² (h₁ + h₂) / (h₁h₂) among its ends and the evaluations next to them:
    a steady slope is no reason to look closer, a bend is. The expected undercut is
    ∫₀^∞ exp(−2 (a + x)(b + x) / v) dx = √(πv/8) exp(−2ab/v) erfcx((a + b) / √(2v)), a and b the heights of the two
    accuracies above the minimum; at most ``minimum`` itself, since there is no accuracy below 0.

    Args:
        iterations: (P,) evaluated iterations, increasing.
        accuracies: (P, T) of T tasks there.
        minimum: (T,) lowest accuracy known of each.

    Returns:
        (P − 1, T), in accuracy; 0 where no iteration lies between two evaluations.
    """
    h = np.diff(iterations)[:, None]
    bends = np.diff(np.diff(accuracies, axis=0) / h, axis=0)  # r = bend · h₁h₂ / (h₁ + h₂)
    rates = bends**2 * (h[:-1] * h[1:]) / (h[:-1] + h[1:])
    variance = h * sliding_window_view(np.pad(rates, ((2, 2), (0, 0))), 4, axis=0).max(-1)
    variance = np.maximum(variance, 1e-12)  # σ of a ten-thousandth of a point: no division by 0 where nothing moves
    above = np.maximum(accuracies - minimum, 0)  # the accuracy at a task's end does not count for its minimum
    a, b = above[:-1], above[1:]
    undercut = np.sqrt(np.pi * variance / 8) * np.exp(-2 * a * b / variance) * erfcx((a + b) / np.sqrt(2 * variance))
    return np.where(h > 1, np.minimum(undercut, minimum), 0.0)


class Refinement:
    """The policy of the module docstring. It sees the past of the stream, never its future.

    The evaluator calls ``ask`` for a window, ``tell`` for every iteration it was given, and ``ask`` again for the same window
    until nothing is left to do. Windows follow each other without gaps and don't cross the end of a task. Iteration 0, before
    the first window, is told unasked if it was evaluated.

    Args:
        n_tasks: length of the stream.
        share: of the iterations, how many may be evaluated.
        tolerance: gain below which an interval is left alone, in accuracy (0.001: 0.1 points of min-ACC).
    """

    def __init__(self, n_tasks: int, share: float = 1 / 8, tolerance: float = 0.001) -> None:
        self.n_tasks, self.share, self.tolerance = n_tasks, share, tolerance
        self._known: dict[int, np.ndarray] = {}  # accuracies in this window and at the last two evaluations before
        self._minimum = np.ones(n_tasks)
        self._task, self._start, self._last, self._evaluations = -1, 0, 0, 0

    def ask(self, task: int, first: int, last: int) -> list[int]:
        """Which iterations of a window to evaluate now; none when done.

        Args:
            task: the task being learned.
            first: first iteration of the window, in optimizer steps since the start of the stream, from 1.
            last: its last iteration, inclusive.
        """
        if last > self._last:
            return self._skeleton(task, first, last)
        budget = self.share * last - self._evaluations
        at = np.array(sorted(self._known))
        accuracies = np.array([self._known[i][: task + 1] for i in at])
        divisible = (np.diff(at) > 1) & (at[1:] >= first)
        worth = np.zeros(len(divisible))
        if task > 0:
            undercut = expected_undercut(at, accuracies[:, :task], self._minimum[:task])
            worth = np.where(divisible, undercut.sum(1) / (self.n_tasks - 1), 0)
        threshold = self.tolerance
        if not (worth > threshold).any():
            worth = np.where(divisible, np.abs(np.diff(accuracies, axis=0)).max(1), 0)
            threshold = MOVED
            budget -= RESERVED * self.share * last
        best = np.argsort(-worth, kind="stable")[: min(AT_ONCE, max(0, int(budget)))]
        return sorted(int(at[j] + at[j + 1]) // 2 for j in best if worth[j] > threshold)

    def tell(self, iteration: int, correct: np.ndarray, n: np.ndarray) -> None:
        """Take the counts (task + 1,) of an evaluation; the last entry is that of the task being learned."""
        earlier = len(correct) - 1
        accuracy = np.zeros(self.n_tasks)
        accuracy[: earlier + 1] = correct / n
        self._known[iteration] = accuracy
        self._minimum[:earlier] = np.minimum(self._minimum[:earlier], accuracy[:earlier])
        self._evaluations += 1

    def state_dict(self) -> dict:
        """Everything that later answers depend on, in plain values."""
        return {
            "known": [[iteration, accuracy.tolist()] for iteration, accuracy in self._known.items()],
            "minimum": self._minimum.tolist(),
            "counters": [self._task, self._start, self._last, self._evaluations],
        }

    def load_state(self, state: dict) -> None:
        """Continue where :meth:`state_dict` was taken."""
        self._known = {iteration: np.array(accuracy) for iteration, accuracy in state["known"]}
        self._minimum = np.array(state["minimum"])
        self._task, self._start, self._last, self._evaluations = state["counters"]

    def _skeleton(self, task: int, first: int, last: int) -> list[int]:
        if task != self._task:
            self._task, self._start = task, first - 1
        self._last = last
        self._known = {i: self._known[i] for i in sorted(self._known)[-2:]}
        return [i for i in range(first, last + 1) if i == last or i - self._start in MARKS]
