"""Which iterations the adaptive evaluator looks at to find min-ACC and WC-ACC, and how much lower they may be than what it found.

The evaluator keeps snapshots of a window of successive iterations and asks, at the window's end, which of them to evaluate.

1. A skeleton, always: the first eight iterations of a task, where a single step may cost everything, then the 16th, 32nd,
   64th …, since what follows a switch is the slower the later it comes; and the last iteration of every window.
2. Then bisection, best first. Between two evaluations of an earlier task the curve is modelled as a Brownian bridge
   (:func:`variances` says how wide). The integral of the probability that it falls below a level, over all levels below the
   task's running minimum, is how far it is expected to undercut it (:func:`expected_undercut`). The mean over the tasks that
   count for min-ACC is the interval's gain. Where it exceeds ``tolerance`` the interval is halved.
3. Where no interval is left that does, those are halved over which any task moved by more than :data:`MOVED`, most first, for
   the sake of the metrics that need the curve's shape.
4. Within a budget: of the steps around step t after a switch the part max(share, min(1, dense / t)) may be evaluated, so all of
   the first ``dense``, then fewer and fewer down to ``share``; of the first task's steps ``share``. What one window leaves is
   there for the next. A part of the budget (:data:`RESERVED`) is not for step 3. The skeleton may overdraw it.

An interval's width has two sources. The bends of the curve around it are what it shows. But a dip that lies wholly between two
evaluations bends nothing, so there is a floor: s·h/t is thought possible in an interval of h steps that ends t steps after the
switch, whatever the curve shows. s starts at :data:`SUSPECTED` and is learned from the dips seen at the run's earlier switches
(:func:`suspected_depth`).

No fraction of the iterations can be chosen to contain the lowest one of a curve where single steps cost points that the next one
gives back (tiny batches, high learning rates). So what is left open is stated: :func:`lowest_plausible` is the level that the
model expects the curve to stay above, and ``min_ACC_unresolved`` follows from it. That is an estimate, and no proof. How often it
held on runs that no constant was fixed on is measured by ``benchmarks/adaptive_error.py``.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

MARKS = frozenset(range(1, 8)) | frozenset(2**e for e in range(3, 31))
"""Steps since the start of a task that belong to the skeleton."""

SUSPECTED = 0.2
"""s before any switch was seen, in accuracy. Fixed on the development families of ``benchmarks/adaptive_families.py``."""

SWITCHES_TO_LEARN = 1
"""How many switches :data:`SUSPECTED` counts for beside those that were seen."""

CONFIDENCE = 0.75
"""Probability, within the model, that a task's curve stays above :func:`lowest_plausible`. Fixed as :data:`SUSPECTED`."""

MOVED = 0.1
"""Accuracy; what moves less between two evaluations is well enough described by a straight line."""

RESERVED = 1 / 4
"""Part of the budget that only the search for minima may use."""

AT_ONCE = 4
"""Intervals that are halved before the gains are computed anew; the evaluator may evaluate as many snapshots together."""


def suspected_depth(seen: Sequence[float]) -> float:
    """s: the root mean square of :data:`SUSPECTED` and of the :func:`overall` roughness of every switch ``seen`` so far."""
    return overall(np.array([SUSPECTED] * SWITCHES_TO_LEARN + list(seen)))


def overall(values: np.ndarray) -> float:
    """The root mean square."""
    return float(np.sqrt(np.mean(np.square(values))))


def roughness(steps: np.ndarray, accuracies: np.ndarray) -> np.ndarray:
    """The s of each task in hindsight: how far its curve left straight lines, relative to how early and to how far apart.

    An evaluation in the middle of an interval of h steps that ends t steps after the switch and off the line between its ends
    by r tells of s = r·t/h. The largest counts.

    Args:
        steps: (P,) evaluated steps since the switch, increasing.
        accuracies: (P, T) of the earlier tasks there.

    Returns:
        (T,), in accuracy.
    """
    if len(steps) < 3:
        return np.zeros(accuracies.shape[1])
    off_line, _ = _bends(steps, accuracies)
    return (off_line * (steps[2:] / (steps[2:] - steps[:-2]))[:, None]).max(0)


def variances(steps: np.ndarray, accuracies: np.ndarray, suspected: float) -> np.ndarray:
    """The variance v of the Brownian bridge between every two evaluations.

    From the bends: an evaluation lies off the straight line between its neighbours, h₁ before and h₂ after it, by r of variance
    σ² h₁h₂ / (h₁ + h₂), and v = σ²h. An interval's σ² is the largest r² (h₁ + h₂) / (h₁h₂) among its ends and the evaluations
    next to them: a steady slope is no reason to look closer, a bend is. At least (s·h/t)².

    Args:
        steps: (P,) evaluated steps since the switch, increasing.
        accuracies: (P, T) of T tasks there.
        suspected: s.

    Returns:
        (P − 1, T); 0 where no iteration lies between two evaluations.
    """
    h = np.diff(steps)[:, None]
    off_line, span = _bends(steps, accuracies)
    rates = np.pad(off_line**2 / span, ((2, 2), (0, 0)))
    bent = h * sliding_window_view(rates, 4, axis=0).max(-1)
    floor = (suspected * h / steps[1:, None]) ** 2
    # σ of a ten-thousandth of a point at least: no division by 0 where nothing moves
    return np.where(h > 1, np.maximum(np.maximum(bent, floor), 1e-12), 0.0)


def _bends(steps: np.ndarray, accuracies: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """|r| (P − 2, T) of the evaluations between others, and their h₁h₂ / (h₁ + h₂) (P − 2, 1)."""
    h = np.diff(steps)[:, None]
    span = h[:-1] * h[1:] / (h[:-1] + h[1:])
    return np.abs(np.diff(np.diff(accuracies, axis=0) / h, axis=0)) * span, span


def expected_undercut(accuracies: np.ndarray, variance: np.ndarray, minimum: np.ndarray) -> np.ndarray:
    """How far each task's curve is expected to fall below ``minimum`` between two evaluations.

    A bridge between accuracies A and B falls below m with probability exp(−2 (A − m)(B − m) / v). So the expected undercut is
    ∫₀^∞ exp(−2 (a + x)(b + x) / v) dx = √(πv/8) exp(−2ab/v) erfcx((a + b) / √(2v)), a and b the heights of the two
    accuracies above the minimum; at most ``minimum`` itself, since there is no accuracy below 0.

    Args:
        accuracies: (P, T) of T tasks at P evaluations.
        variance: (P − 1, T) of the bridges between them, 0 where there is nothing between.
        minimum: (T,) lowest accuracy known of each.

    Returns:
        (P − 1, T), in accuracy.
    """
    above = np.maximum(accuracies - minimum, 0)  # the accuracy at a task's end does not count for its minimum
    a, b, v = above[:-1], above[1:], np.maximum(variance, 1e-12)
    from scipy.special import erfcx  # scipy is slow to import, and most runs do without

    undercut = np.sqrt(np.pi * v / 8) * np.exp(-2 * a * b / v) * erfcx((a + b) / np.sqrt(2 * v))
    return np.where(variance > 0, np.minimum(undercut, minimum), 0.0)


def lowest_plausible(start: np.ndarray, end: np.ndarray, variance: np.ndarray, minimum: float) -> float:
    """The level that a task's curve stays above in all intervals together, with probability :data:`CONFIDENCE`.

    Args:
        start: (J,) accuracies at the beginning of J intervals, bridges as in :func:`expected_undercut`.
        end: (J,) accuracies at their end.
        variance: (J,) of the bridges, 0 where there is nothing between.
        minimum: lowest accuracy known.

    Returns:
        A level between 0 and ``minimum``.
    """
    open_ = variance > 0
    start, end, variance = start[open_], end[open_], variance[open_]

    def stays_above(level: float) -> float:
        heights = np.maximum(start - level, 0) * np.maximum(end - level, 0)
        return float(np.prod(-np.expm1(-2 * heights / variance)))

    if stays_above(minimum) >= CONFIDENCE:
        return minimum
    low, high = 0.0, minimum
    for _ in range(30):  # to a billionth
        middle = (low + high) / 2
        low, high = (middle, high) if stays_above(middle) >= CONFIDENCE else (low, middle)
    return low


def allowance(steps: int, share: float, dense: float) -> float:
    """How many of the first ``steps`` after a switch may be evaluated: the integral of max(share, min(1, dense / t)) over t."""
    if steps <= dense or share >= 1:
        return float(steps)
    if dense == 0:
        return share * steps
    falling = min(steps, dense / share) if share > 0 else steps
    return dense * (1 + math.log(falling / dense)) + share * (steps - falling)


class Refinement:
    """The policy of the module docstring. It sees the past of the stream, never its future.

    The evaluator calls ``ask`` for a window, ``tell`` for every iteration it was given, and ``ask`` again for the same window
    until nothing is left to do. Windows follow each other without gaps and don't cross the end of a task. What is evaluated
    between windows, such as iteration 0 or a task's end after consolidation, is told unasked.

    Args:
        n_tasks: length of the stream.
        share: part of the steps that may be evaluated, long after a switch.
        dense: steps after a switch that may all be evaluated.
        tolerance: gain below which an interval is left alone, in accuracy (0.001: 0.1 points of min-ACC).
    """

    def __init__(self, n_tasks: int, share: float = 1 / 8, dense: int = 24, tolerance: float = 0.001) -> None:
        self.n_tasks, self.share, self.dense, self.tolerance = n_tasks, share, dense, tolerance
        self._known: dict[int, np.ndarray] = {}  # accuracies in this window and at the last two evaluations before
        self._minimum = np.ones(n_tasks)
        self._rough = np.zeros(n_tasks)  # of each task since the present switch, up to this window
        self._seen: list[float] = []  # the same of the switches before, as root mean squares over the tasks
        self._task, self._start, self._last, self._evaluations = -1, 0, 0, 0
        self._before = 0.0  # budget of the tasks before the present one

    def ask(self, task: int, first: int, last: int) -> list[int]:
        """Which iterations of a window to evaluate now; none when done.

        Args:
            task: the task being learned.
            first: first iteration of the window, in optimizer steps since the start of the stream, from 1.
            last: its last iteration, inclusive.
        """
        if last > self._last:
            return self._skeleton(task, first, last)
        steps, accuracies = self._table()
        allowed = self._allowed()
        budget = allowed - self._evaluations
        divisible = (np.diff(steps) > 1) & (steps[1:] + self._start >= first)
        worth = np.zeros(len(divisible))
        threshold = self.tolerance
        if task > 0:
            earlier = accuracies[:, :task]
            variance = variances(steps, earlier, suspected_depth(self._seen))
            undercut = expected_undercut(earlier, variance, self._minimum[:task])
            worth = np.where(divisible, undercut.sum(1) / (self.n_tasks - 1), 0)
        if not (worth > threshold).any():
            worth = np.where(divisible, np.abs(np.diff(accuracies, axis=0)).max(1), 0)
            threshold = MOVED
            budget -= RESERVED * allowed
        best = np.argsort(-worth, kind="stable")[: min(AT_ONCE, max(0, int(budget)))]
        return sorted(self._start + int(steps[j] + steps[j + 1]) // 2 for j in best if worth[j] > threshold)

    def tell(self, iteration: int, correct: np.ndarray, n: np.ndarray) -> None:
        """Take the counts (task + 1,) of an evaluation; the last entry is that of the task being learned."""
        accuracy = correct / n
        earlier = len(accuracy) - 1
        self._minimum[:earlier] = np.minimum(self._minimum[:earlier], accuracy[:earlier])
        # A second evaluation of an iteration, after the hooks of a task's end, is a jump, and no bend of the curve.
        self._known.setdefault(iteration, accuracy)
        self._evaluations += 1

    def state_dict(self) -> dict:
        """Everything that later answers depend on, in plain values."""
        return {
            "known": [[iteration, accuracy.tolist()] for iteration, accuracy in self._known.items()],
            "minimum": self._minimum.tolist(),
            "rough": self._rough.tolist(),
            "seen": list(self._seen),
            "before": self._before,
            "counters": [self._task, self._start, self._last, self._evaluations],
        }

    def load_state(self, state: dict) -> None:
        """Continue where :meth:`state_dict` was taken."""
        self._known = {iteration: np.array(accuracy) for iteration, accuracy in state["known"]}
        self._minimum, self._rough = np.array(state["minimum"]), np.array(state["rough"])
        self._seen, self._before = list(state["seen"]), state["before"]
        self._task, self._start, self._last, self._evaluations = state["counters"]

    def _table(self) -> tuple[np.ndarray, np.ndarray]:
        """Steps since the switch (P,) that were evaluated, and the accuracies (P, tasks) there."""
        iterations = sorted(self._known)
        return np.array(iterations) - self._start, np.array([self._known[i] for i in iterations])

    def _allowed(self) -> float:
        """Evaluations that the stream up to the end of the window may take."""
        steps = self._last - self._start
        return self._before + allowance(steps, self.share, self.dense if self._task > 0 else 0)

    def _skeleton(self, task: int, first: int, last: int) -> list[int]:
        """Close the window before; what to evaluate first of the new one."""
        if self._task > 0:
            steps, accuracies = self._table()
            earlier = accuracies[:, : self._task]
            self._rough[: self._task] = np.maximum(self._rough[: self._task], roughness(steps, earlier))
        self._known = {i: self._known[i] for i in sorted(self._known)[-2:]}
        if task != self._task:
            if self._task >= 0:
                self._before = self._allowed()
            if self._task > 0:
                self._seen.append(overall(self._rough[: self._task]))
            self._task, self._start, self._known = task, first - 1, {}
            self._rough[:] = 0
        self._last = last
        return [i for i in range(first, last + 1) if i == last or i - self._start in MARKS]
