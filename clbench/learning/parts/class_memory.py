"""A reservoir for every class, which share the memory equally.

What a memory holds at every step depends on ids, labels and draws only, so that a whole task is walked through before its first
step. Nobody has to be told of tasks: a class gets its share when its first sample comes, and the others give theirs up.
"""

import numpy as np
import torch
from torch import Tensor, nn

from clbench.learning.base import Plan
from clbench.learning.parts.memory import EMPTY, draw_balanced
from clbench.scenarios.task import Task


class ClassMemory(nn.Module):
    """``size // classes seen`` samples of every class, each a uniform draw of all that have come of the class.

    A sample counts when it is seen first, not once per epoch.

    Args:
        size: samples in all.
        n_classes: of the stream.
    """

    ids: Tensor
    n_seen: Tensor

    def __init__(self, size: int, n_classes: int) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("ids", torch.full((size,), EMPTY))
        self.register_buffer("n_seen", torch.zeros(n_classes, dtype=torch.int64))
        self._after_task: tuple[dict[int, list[int]], np.ndarray] | None = None  # made by plan, and again on resuming

    def plan(self, task: Task, plan: Plan, size: int | None) -> Plan:
        """Replay of all classes equally from the memory as it is before every step, which is then offered its new samples.

        Args:
            task: the task that begins, or is gone on with.
            plan: its new samples.
            size: replayed samples of a step; None for as many as new ones. Fewer while the memory holds fewer.
        """
        rng = task.numpy_generator("replay")
        of_classes, n_seen = self.of_classes(task), self.n_seen.cpu().numpy().copy()
        not_seen_yet, replay = set(task.ids.tolist()), []
        for new in plan.new:
            groups = [np.array(ids, np.int64) for _, ids in sorted(of_classes.items())]
            replay.append(torch.from_numpy(draw_balanced(groups, size or len(new), rng)))
            for sample, label in zip(new.tolist(), task.labels_of(new).tolist(), strict=True):
                if sample in not_seen_yet:
                    not_seen_yet.remove(sample)
                    self._offer(of_classes, n_seen, sample, label, rng)
        self._after_task = of_classes, n_seen
        return plan._replace(replay=replay)

    def _offer(
        self, of_classes: dict[int, list[int]], n_seen: np.ndarray, sample: int, label: int, rng: np.random.Generator
    ) -> None:
        if label not in of_classes:
            of_classes[label] = []
            share = self.size // len(of_classes)
            for c, ids in of_classes.items():
                if len(ids) > share:
                    of_classes[c] = rng.permutation(ids)[:share].tolist()
        ids, share = of_classes[label], self.size // len(of_classes)
        if len(ids) < share:
            ids.append(sample)
        else:
            slot = int(rng.integers(0, n_seen[label] + 1))  # Vitter 1985, algorithm R
            if slot < share:
                ids[slot] = sample
        n_seen[label] += 1

    def of_classes(self, task: Task) -> dict[int, list[int]]:
        """The ids that are held of every class."""
        ids = self.ids.cpu()
        ids = ids[ids != EMPTY]
        labels, held = task.labels_of(ids), {}
        for sample, label in zip(ids.tolist(), labels.tolist(), strict=True):
            held.setdefault(label, []).append(sample)
        return held

    def end_task(self) -> None:
        """Hold what the task has left."""
        assert self._after_task is not None
        of_classes, n_seen = self._after_task
        ids = [sample for _, of_class in sorted(of_classes.items()) for sample in of_class]
        self.ids.fill_(EMPTY)
        self.ids[: len(ids)] = torch.tensor(ids, dtype=torch.int64, device=self.ids.device)
        self.n_seen.copy_(torch.from_numpy(n_seen))
