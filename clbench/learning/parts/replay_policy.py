"""Which samples a replay memory of ids keeps, and which of them a step replays: for memories that hold ids and nothing else.

* ``selection``: ``reservoir``, a uniform draw of all samples seen; ``class_balanced`` or ``task_balanced``, a share for every
  class or task, and replay that draws these equally often;
* ``share``: the memory is divided among the classes or tasks ``seen`` so far, or among all of the ``stream`` from the start;
* ``update``: the memory changes after every ``step``, or at the end of each ``task``.

Where domains share their classes and the memory is updated by task, a class of every task has a share of its own, so that no
domain crowds out another; updated by step, where nobody need be told of tasks, it is the label that counts.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from clbench.errors import ConfigError
from clbench.learning.parts.memory import (
    EMPTY,
    check_memory_size,
    draw_balanced,
    draw_uniform,
    notes_of_room,
    places_offered,
    reservoir_step,
)
from clbench.scenarios.scenario import Scenario
from clbench.scenarios.task import Task


class ReplayPolicy:
    """How a memory is filled and drawn from. It works on the host, and holds no state: the memory is handed to it.

    Args:
        size: samples in all, M.
        selection, share, update: see above.
        scenario: the stream.

    Raises:
        ConfigError: the options contradict each other, or M is too small.
    """

    def __init__(self, size: int, selection: str, share: str, update: str, scenario: Scenario) -> None:
        check_memory_size(size, scenario)
        if selection == "task_balanced" and update == "step":
            raise ConfigError(
                "strategy.update=step is not defined for strategy.selection=task_balanced. Valid choices: update=task, or "
                "selection=class_balanced or reservoir"
            )
        if selection == "reservoir" and share == "stream":
            raise ConfigError(
                "strategy.share=stream has no meaning with strategy.selection=reservoir, where nobody has a share. Valid "
                "choices: share=seen, or selection=class_balanced or task_balanced"
            )
        self.size, self.notes = size, notes_of_room(size, scenario)
        self.by_step, self.balanced = update == "step", selection != "reservoir"
        self._by = "task" if selection == "task_balanced" else "class"
        self._n_shares: int | None = None  # as many as there are groups so far
        if share == "stream":
            self._n_shares = scenario.n_classes if self.by_step else _groups_in_stream(scenario, self._by)
            if size < self._n_shares:
                raise ConfigError(
                    f"strategy.memory_size={size} is too small for strategy.share=stream: in {scenario.name} there are "
                    f"{self._n_shares} shares, for every class of every domain, and each needs room for a sample"
                )
        self.counted = (scenario.n_classes,) if self.by_step and self.balanced else ()
        """The shape of the number of samples seen, which are counted by class where each has its reservoir."""

    def walk(
        self, task: Task, new: Sequence[Tensor], memory: np.ndarray, n_seen: np.ndarray, n_replayed: int | None
    ) -> tuple[list[Tensor], np.ndarray, np.ndarray]:
        """Go through a task's steps: draw from the memory as it is, then offer it the step's new samples.

        Args:
            task: the task.
            new: ids of the new samples of every step.
            memory, n_seen: int64 (M,) ids and how many samples have been seen, as the task begins; not changed.
            n_replayed: ids to draw for a step; None: as many as new ones. Fewer while the memory holds fewer.

        Returns:
            Replayed ids of every step; ``memory`` and ``n_seen`` after the task.
        """
        rng, memory, replay = task.numpy_generator("replay"), memory.copy(), []
        groups = self._groups(task, memory) if self.balanced and not self.by_step else []
        reservoirs = None
        if self.counted:
            labels = task.labels_of(torch.from_numpy(memory)).numpy()
            reservoirs = ClassReservoirs(memory, labels, n_seen, self._n_shares, rng)
        for ids, offered in zip(new, places_offered(new, task.ids), strict=True):
            n = n_replayed or len(ids)
            groups = reservoirs.groups() if reservoirs else groups
            drawn = draw_balanced(groups, n, rng) if self.balanced else draw_uniform(memory[memory != EMPTY], n, rng)
            replay.append(torch.from_numpy(drawn))
            arriving = ids[offered]
            if reservoirs:
                reservoirs.offer(arriving.tolist(), task.labels_of(arriving).tolist())
            elif self.by_step:
                n_seen = np.array(reservoir_step(memory, int(n_seen), arriving.numpy(), rng))
        if reservoirs:
            return replay, reservoirs.memory(), reservoirs.n_seen
        return replay, *((memory, n_seen) if self.by_step else self.after_task(task, memory, n_seen, rng))

    def after_task(
        self, task: Task, memory: np.ndarray, n_seen: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """``memory`` and ``n_seen`` after a task, for ``update=task``; only the former is changed in place."""
        if not self.balanced:
            return memory, np.array(reservoir_step(memory, int(n_seen), rng.permutation(task.ids.numpy()), rng))
        groups = self._groups(task, np.concatenate([memory[memory != EMPTY], task.ids.numpy()]))
        n_shares = self._n_shares or (len(groups) if self._by == "task" else None)
        if n_shares:
            kept = np.concatenate([rng.permutation(group)[: self.size // n_shares] for group in groups])
        else:  # no slot stays empty
            kept = draw_balanced(groups, self.size, rng)
        return np.concatenate([kept, np.full(self.size - len(kept), EMPTY)]), n_seen + len(task.ids)

    def _groups(self, task: Task, ids: np.ndarray) -> list[np.ndarray]:
        """``ids`` by class or by task."""
        ids = ids[ids != EMPTY]
        labels = task.labels_of(torch.from_numpy(ids)).numpy()
        keys = _keys(labels, task.tasks_of(torch.from_numpy(ids)).numpy(), self._by)
        return [ids[keys == key] for key in np.unique(keys)]


def _groups_in_stream(scenario: Scenario, by: str) -> int:
    split = scenario.train
    return len(np.unique(_keys(split.labels.cpu().numpy(), split.tasks.cpu().numpy(), by)))


def _keys(labels: np.ndarray, tasks: np.ndarray, by: str) -> np.ndarray:
    return tasks if by == "task" else tasks * (labels.max(initial=0) + 1) + labels


class ClassReservoirs:
    """A reservoir (Vitter 1985, algorithm R) for every class, in which each of its samples seen so far is as likely.

    Every class has ``size // n_shares`` slots. With the classes seen so far as shares a class that comes takes room of the
    others, of which a random part is let go; so what is left is still a uniform draw.

    Args:
        memory: int64 (M,), ids that are held; not changed.
        labels: int64 (M,), their labels, of any value where a slot is empty.
        n_seen: int64 (n_classes,), how many samples of every class have been seen; not changed.
        n_shares: into how many shares the memory is divided; None: the number of classes seen.
        rng: the source of draws.
    """

    def __init__(
        self, memory: np.ndarray, labels: np.ndarray, n_seen: np.ndarray, n_shares: int | None, rng: np.random.Generator
    ) -> None:
        self.n_seen, self._size, self._n_shares, self._rng = n_seen.copy(), len(memory), n_shares, rng
        held = memory != EMPTY
        self._of_class = {int(c): memory[held & (labels == c)].tolist() for c in np.flatnonzero(n_seen)}

    @property
    def share(self) -> int:
        """Slots of a class."""
        return self._size // (self._n_shares or max(1, int(np.count_nonzero(self.n_seen))))

    def offer(self, ids: list[int], labels: list[int]) -> None:
        """Let samples arrive, one after another."""
        for sample, label in zip(ids, labels, strict=True):
            kept = self._of_class.setdefault(label, [])
            self.n_seen[label] += 1
            if self.n_seen[label] == 1:
                self._make_room()
            if len(kept) < self.share:  # then all of the class that has been seen is held
                kept.append(sample)
                continue
            slot = int(self._rng.integers(0, self.n_seen[label]))
            if slot < self.share:
                kept[slot] = sample

    def _make_room(self) -> None:
        for label, kept in self._of_class.items():
            if len(kept) > self.share:
                self._of_class[label] = self._rng.choice(kept, self.share, replace=False).tolist()

    def groups(self) -> list[np.ndarray]:
        """The ids held, by class."""
        return [np.array(kept, np.int64) for kept in self._of_class.values()]

    def memory(self) -> np.ndarray:
        """The ids held, int64 (M,)."""
        kept = np.concatenate([np.empty(0, np.int64), *self.groups()])
        return np.concatenate([kept, np.full(self._size - len(kept), EMPTY)])
