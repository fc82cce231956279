"""A reservoir whose slots also hold something that the network made of the sample: its logits, its features.

The content of a reservoir depends on ids and draws alone, so the whole task is walked through before its first step. The walk
leaves two columns in the plan: which slots a step reads, and which slot each of its new samples is written to. With those, a
hook finds its tensors without knowing an id, and without a value read on the host.
"""

import numpy as np
import torch
from torch import Tensor, nn

from clbench.learning.base import Plan
from clbench.learning.parts.memory import EMPTY, places_offered
from clbench.scenarios.task import Task


class SlotMemory(nn.Module):
    """Reservoir sampling (Vitter 1985, algorithm R) over numbered slots.

    A sample counts when it is seen first, not once per epoch. Tensors that are kept beside the ids have ``size + 1`` rows:
    what is not stored is written to the last one.

    Args:
        size: number of slots.
        name: of the strategy; its columns are ``<name>.read`` and ``<name>.write``.
    """

    ids: Tensor
    n_seen: Tensor

    def __init__(self, size: int, name: str) -> None:
        super().__init__()
        self.size, self.read, self.write = size, f"{name}.read", f"{name}.write"
        self.register_buffer("ids", torch.full((size,), EMPTY))
        self.register_buffer("n_seen", torch.zeros((), dtype=torch.int64))
        self._after_task: tuple[np.ndarray, int] | None = None  # made by plan, and again when a run resumes

    def plan(self, task: Task, plan: Plan, n_draws: int, size: int | None) -> Plan:
        """Replay from the memory as it is before every step, then offer it the step's new samples.

        Args:
            task: the task that begins, or is gone on with.
            plan: its new samples.
            n_draws: independent draws a step, which follow one another among the replayed samples; the first is ``read``.
            size: samples of a draw; None for as many as new ones. Fewer while the memory holds fewer.
        """
        rng = task.numpy_generator("replay")
        ids, n_seen = self.ids.cpu().numpy().copy(), int(self.n_seen)
        replay, read, write = [], [], []
        for new, offered in zip(plan.new, places_offered(plan.new, task.ids), strict=True):
            filled = min(n_seen, self.size)
            n = min(size or len(new), filled)
            slots = [rng.choice(filled, n, replace=False) if n else np.empty(0, np.int64) for _ in range(n_draws)]
            replay.append(torch.from_numpy(ids[np.concatenate(slots)]))
            read.append(torch.from_numpy(slots[0]))
            written = np.full(len(new), self.size)
            for position in offered:
                slot = n_seen if n_seen < self.size else int(rng.integers(0, n_seen + 1))
                n_seen += 1
                if slot < self.size:
                    written[written == slot] = self.size  # the later sample evicts the earlier one
                    written[position], ids[slot] = slot, int(new[position])
            write.append(torch.from_numpy(written))
        self._after_task = ids, n_seen
        return plan._replace(replay=replay).with_columns(**{self.read: read, self.write: write})

    def end_task(self) -> None:
        """Hold what the task has left."""
        assert self._after_task is not None
        ids, n_seen = self._after_task
        self.ids.copy_(torch.from_numpy(ids))
        self.n_seen.fill_(n_seen)
