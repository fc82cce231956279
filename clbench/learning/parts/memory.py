"""Replay memories: which training samples are kept. A memory is a tensor of sample ids, never of images.

All functions work on numpy arrays on the host and draw from the generator they are given. What a memory holds at every
step depends on ids and draws only, not on the network, so a whole task's replay is known before the task starts.
"""

from collections.abc import Iterable, Sequence

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


def greedy_balanced_step(
    memory: dict[int, list[int]], size: int, arriving: Iterable[tuple[int, int]], rng: np.random.Generator
) -> None:
    """Offer samples to a memory of ``size`` that keeps its groups equally large, in place (GDumb, Prabhu et al. 2020).

    A sample is kept if its group is new, or smaller than size / (number of groups). Where the memory is full, it takes the place
    of a random sample of the largest group; which of several is drawn.

    Args:
        memory: ids by group, such as a class.
        size: most samples in all.
        arriving: (id, group) of samples, in the order in which they come.
        rng: of the draws.
    """
    for sample, group in arriving:
        if len(memory.get(group, ())) * len(memory) >= size and group in memory:
            continue
        if sum(map(len, memory.values())) >= size:
            largest = max(map(len, memory.values()))
            shrinks = memory[rng.choice([key for key, ids in memory.items() if len(ids) == largest])]
            shrinks.pop(rng.integers(largest))
        memory.setdefault(group, []).append(sample)


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
        by_class: each class of a task gets an equal share of that, or as many samples as it has.

    Raises:
        ConfigError: the memory is smaller than the number of classes, or has no room for one sample of every class of a task.
    """

    ids: Tensor

    def __init__(self, size: int, scenario: Scenario, by_class: bool = False) -> None:
        super().__init__()
        check_memory_size(size, scenario, every_task=True)
        share = size // scenario.n_tasks
        self.size, self.sizes = size, [min(share, len(scenario.arriving(task))) for task in range(scenario.n_tasks)]
        self.of_class: list[int] = []  # samples that each class of a task may have
        if by_class:
            self.of_class = [share // len(scenario.classes_arriving(task)) for task in range(scenario.n_tasks)]
            if min(self.of_class) == 0:
                raise ConfigError(
                    f"strategy.memory_size={size} leaves a task of {scenario.name} {share} samples, too few for one of each of "
                    f"its {max(len(scenario.classes_arriving(task)) for task in range(scenario.n_tasks))} classes"
                )
            labels = [scenario.train.labels_of(scenario.arriving(task)) for task in range(scenario.n_tasks)]
            counts = [of_task.unique(return_counts=True)[1] for of_task in labels]
            self.sizes = [int(n.clamp(max=m).sum()) for n, m in zip(counts, self.of_class, strict=True)]
        self.register_buffer("ids", torch.full((scenario.n_tasks, max(self.sizes)), EMPTY))

    def store(self, task: Task) -> None:
        """Keep a random draw of the task's samples."""
        drawn = task.numpy_generator("memory").choice(task.ids.numpy(), self.sizes[task.index], replace=False)
        self.keep(task, torch.from_numpy(drawn))

    def keep(self, task: Task, ids: Tensor) -> None:
        """Keep these samples of the task."""
        self.ids[task.index, : len(ids)] = ids.to(self.ids.device)

    def last_seen(self, task: Task, steps: list[Tensor]) -> Tensor:
        """The ids (n,) that a ring buffer for every class of the task holds after all ``steps``: those that came last."""
        kept: dict[int, list[int]] = {label: [] for label in task.classes}
        seen = torch.cat(steps)
        seen = seen[torch.isin(seen, task.ids)]  # where others have put earlier samples among them
        latest = dict.fromkeys(reversed(seen.tolist()))  # each sample once, the last ones first
        for sample, label in zip(latest, task.labels_of(torch.tensor([*latest])).tolist(), strict=True):
            if len(kept[label]) < self.of_class[task.index]:
                kept[label].append(sample)
        return torch.tensor([sample for samples in kept.values() for sample in samples])

    def stored(self, n_tasks: int) -> list[Tensor]:
        """The ids kept of each of the first ``n_tasks`` tasks, on the CPU."""
        return [held[held != EMPTY] for held in self.ids[:n_tasks].cpu()]

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


def check_memory_size(size: int, scenario: Scenario, every_task: bool = False) -> None:
    """Raise ConfigError where a memory has no room for one sample of every class, and of every group that is evaluated.

    Args:
        size: of the memory.
        scenario: the stream.
        every_task: whether it has to have room for every task that is learned, of which there may be more.
    """
    n_shares = scenario.n_tasks if every_task else scenario.n_groups
    least = max(scenario.n_classes, n_shares)
    if size < least:
        raise ConfigError(
            f"strategy.memory_size={size} is too small for {scenario.name} with {scenario.n_classes} classes in {n_shares} "
            f"tasks: it has to be at least {least}"
        )
