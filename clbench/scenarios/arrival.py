"""When training samples arrive, where that is not task after task: gradual drift, and boundaries that are set or hidden.

What is evaluated stays what it is: validation and test samples belong to their task. Both options go with every kind of stream.
"""

from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from clbench.errors import ConfigError


@dataclass(frozen=True)
class Arrival:
    """Which training samples arrive when.

    Attributes:
        segments: for each task that is learned, the ids (int64) that arrive meanwhile.
        groups_at: for each of them the group of evaluated samples that is recorded as being learned; None: one group each.
        ordered: whether ids are in the order of arrival.
    """

    segments: list[np.ndarray] = field(default_factory=list)
    groups_at: list[int] | None = None
    ordered: bool = False


def drifting(tasks: np.ndarray, drift: float, rng: np.random.Generator) -> Arrival:
    """All samples in one order, in which neighbouring tasks pass into each other.

    Around the place where task k would end, over a stretch of ``drift`` × the smaller of the two tasks, the share of task k + 1
    grows linearly from 0 to 1. Nothing is repeated or left out, and each segment has as many samples as its task.

    Args:
        tasks: int64 (N,), ascending, the task of every training sample.
        drift: 0 < drift ≤ 1.
        rng: draws which of a task's samples come early, and where within equal parts of the task's time they do.
    """
    sizes = np.bincount(tasks)
    ends = np.concatenate([[0], sizes.cumsum()])
    halves = drift * np.minimum(sizes[:-1], sizes[1:]) / 2
    halves = np.concatenate([[0], halves, [0]])  # nothing passes into the first task, and the last into nothing
    ids, times = [], []
    for task, size in enumerate(sizes):
        (start, end), (before, after) = ends[task : task + 2], halves[task : task + 2]
        # The task's density in time is a trapezoid; these are its corners and how many samples have come by then.
        corners = np.array([start - before, start + before, end - after, end + after])
        come = np.array([0, before, size - after, size])
        nth = np.arange(size) + rng.random(size)
        time = np.interp(nth, come, corners)
        rises, falls = nth < before, nth > size - after
        time[rises] = corners[0] + 2 * np.sqrt(before * nth[rises])
        time[falls] = corners[3] - 2 * np.sqrt(after * (size - nth[falls]))
        ids.append(rng.permutation(np.flatnonzero(tasks == task)))
        times.append(time)
    stream = np.concatenate(ids)[np.argsort(np.concatenate(times), kind="stable")]
    return Arrival([stream[a:b] for a, b in pairwise(ends)], ordered=True)


def cut_every(arrival: Arrival, n: int, rng: np.random.Generator) -> Arrival:
    """The same stream with a segment for every ``n`` samples, in place of its own; the last may be smaller.

    A segment is recorded with the group of its last sample's old segment. Within the new segments there is no order.

    Raises:
        ConfigError: fewer than ``n`` samples arrive while a group is recorded, which then might not be recorded at all.
    """
    in_order = arrival.segments if arrival.ordered else [rng.permutation(ids) for ids in arrival.segments]
    stream = np.concatenate(in_order)
    groups_at = arrival.groups_at or range(len(in_order))
    group = np.repeat(groups_at, [len(ids) for ids in in_order])
    smallest = int(np.bincount(group).min())
    if n > smallest:
        raise ConfigError(
            f"scenario.boundaries={n} is more than the {smallest} samples that arrive with one of the tasks"
        )
    starts = range(0, len(stream), n)
    segments = [stream[start : start + n] for start in starts]
    return Arrival(segments, [int(group[min(start + n, len(stream)) - 1]) for start in starts])
