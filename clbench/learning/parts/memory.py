"""Replay memories: which training samples are kept. A memory is a tensor of sample ids, never of images.

All functions work on numpy arrays on the host and draw from the generator they are given. What a memory holds at every
step depends on ids and draws only, not on the network, so a whole task's replay is known before the task starts.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from clbench.errors import ConfigError
from clbench.scenarios.scenario import Scenario
from clbench.scenarios.task import Task

EMPTY = -1


def reservoir_step(memory: np.ndarray, n_seen: int, arriving: np.ndarray, rng: np.random.Generator) -> int:
    """Offer the ``arriving`` ids to the reservoir ``memory`` (in place); returns the new number of ids seen.

    Vitter 1985, algorithm R: the n-th id ever seen (from 1) takes slot n − 1 while there is room, and later the slot
    j ~ U{0..n−1} if j < M. Every id seen is then in the memory with probability M / n.
    """
    size = len(memory)
    order = n_seen + np.arange(len(arriving))
    slots = np.where(order < size, order, rng.integers(0, order + 1))
    for slot, sample in zip(slots, arriving, strict=True):  # in turn: a later sample may evict an earlier one
        if slot < size:
            memory[slot] = sample
    return n_seen + len(arriving)


def places_offered(batches: Sequence[Tensor], ids: Tensor) -> list[list[int]]:
    """For every step the places, within its batch, of the samples that a memory is offered after it.

    Each of the arriving ``ids`` is offered once, not once per epoch: after the last of the successive steps on the batch that it
    first comes with (``trainer.steps_per_batch``).
    """
    not_offered_yet = set(ids.tolist())
    offered: list[list[int]] = []
    for step, batch in enumerate(batches):
        offered.append([])
        if not not_offered_yet or (step + 1 < len(batches) and batches[step + 1] is batch):
            continue
        for place, sample in enumerate(batch.tolist()):
            if sample in not_offered_yet:
                not_offered_yet.remove(sample)
                offered[-1].append(place)
    return offered


def draw_uniform(memory: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """``n`` ids drawn uniformly without replacement, or all of them if there are no more than ``n``."""
    return memory.copy() if len(memory) <= n else rng.choice(memory, n, replace=False)


def draw_balanced(groups: list[np.ndarray], n: int, rng: np.random.Generator) -> np.ndarray:
    """Up to ``n`` ids without replacement, from every group as equally many as the groups' sizes allow.

    A group is a class, or a class of one task. Which groups give one more where ``n`` does not divide is drawn.
    """
    sizes = np.array([len(group) for group in groups], np.int64)
    counts = np.zeros_like(sizes)
    order = rng.permutation(len(groups))
    room = min(n, int(sizes.sum()))
    while room:
        unfinished = order[counts[order] < sizes[order]]
        if room < len(unfinished):
            counts[unfinished[:room]] += 1
            break
        taken = np.minimum(room // len(unfinished), (sizes - counts)[unfinished])
        counts[unfinished] += taken
        room -= int(taken.sum())
    drawn = [rng.permutation(group)[:count] for group, count in zip(groups, counts, strict=True) if count]
    return np.concatenate(drawn) if drawn else np.empty(0, np.int64)


class TaskMemory(nn.Module):
    """An equal share of the memory for every task of the stream (GEM, A-GEM).

    Args:
        size: samples in all; each task gets ``size // n_tasks``, or as many as it has.
        scenario: the stream.

    Raises:
        ConfigError: the memory is smaller than the number of classes.
    """

    ids: Tensor

    def __init__(self, size: int, scenario: Scenario) -> None:
        super().__init__()
        check_memory_size(size, scenario)
        share = size // scenario.n_tasks
        self.size, self.sizes = size, [min(share, len(scenario.arriving(task))) for task in range(scenario.n_tasks)]
        self.register_buffer("ids", torch.full((scenario.n_tasks, max(self.sizes)), EMPTY))

    def store(self, task: Task) -> None:
        """Keep a random draw of the task's samples."""
        size = self.sizes[task.index]
        drawn = task.numpy_generator("memory").choice(task.ids.numpy(), size, replace=False)
        self.ids[task.index, :size] = torch.from_numpy(drawn).to(self.ids.device)

    def stored(self, n_tasks: int) -> list[Tensor]:
        """The ids kept of each of the first ``n_tasks`` tasks, on the CPU."""
        return [self.ids[task, : self.sizes[task]].cpu() for task in range(n_tasks)]

    def notes(self) -> list[str]:
        """What is kept where that is less than was asked for."""
        kept = sum(self.sizes)
        if kept == self.size:
            return []
        shares = ", ".join(map(str, self.sizes)) if min(self.sizes) < max(self.sizes) else f"{self.sizes[0]} each"
        return [f"the memory keeps {kept} samples of memory_size={self.size}, by task: {shares}"]


def notes_of_room(size: int, scenario: Scenario) -> list[str]:
    """What a reader has to know where a memory is larger than the data."""
    n = len(scenario.train)
    return [f"memory_size={size} has room for all {n} training samples: everything is kept"] if size >= n else []


def check_memory_size(size: int, scenario: Scenario) -> None:
    """Raise ConfigError where a memory has no room for one sample of every class, and of every task."""
    least = max(scenario.n_classes, scenario.n_tasks)
    if size < least:
        raise ConfigError(
            f"strategy.memory_size={size} is too small for {scenario.name} with {scenario.n_classes} classes in "
            f"{scenario.n_tasks} tasks: it has to be at least {least}"
        )
