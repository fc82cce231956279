"""One task as a strategy sees it: the current task's training samples, and named random streams."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from clbench.config import TrainerConfig
from clbench.scenarios.inputs import InputPipeline
from clbench.scenarios.scenario import Samples, Split
from clbench.seeding import numpy_generator, torch_generator


@dataclass(frozen=True)
class Task:
    """What a strategy's hooks get.

    Attributes:
        index: 0 for the first task.
        n_tasks: tasks in the whole stream.
        classes: labels of the samples that arrive.
        budget: epochs, steps and batch size.
        seed: the run's seed.
        segments: for each task the ids of the training samples that arrive while it is learned; None: the task's own.
        ordered: whether these are in the order of arrival.
        smallest_batch: the fewest samples that the network can be trained on at a time.
        batches_per_update: how many batches arrive while all steps on one are taken, see :mod:`clbench.training.compute_budget`.
        stage: 0 in the task's plan, k in the k-th stage after it; the random streams of stages are their own.
    """

    index: int
    n_tasks: int
    classes: list[int]
    budget: TrainerConfig
    seed: int
    split: Split
    inputs: InputPipeline
    segments: list[Tensor] | None = None
    smallest_batch: int = 1
    stage: int = 0
    ordered: bool = False
    batches_per_update: float = 1.0

    @property
    def ids(self) -> Tensor:
        """int64 (n,), on the CPU: the training samples that arrive while this task is learned."""
        return self.ids_of(self.index)

    def ids_of(self, task: int) -> Tensor:
        """int64 (n,): the training samples that arrived with ``task``. For an earlier one, only joint training may ask."""
        return self.split.ids(task) if self.segments is None else self.segments[task]

    def labels_of(self, ids: Tensor) -> Tensor:
        """int64 labels of samples, on the CPU."""
        return self.split.labels_of(ids)

    def tasks_of(self, ids: Tensor) -> Tensor:
        """int64 task of each sample, on the CPU."""
        return self.split.tasks.cpu()[ids.cpu()]

    def samples(self, ids: Tensor) -> Samples:
        """Samples without augmentation, normalised, on the device."""
        return self.inputs.plain(self.split, ids)

    def batches(self, ids: Tensor, batch_size: int) -> Iterator[Samples]:
        """All samples ``ids`` without augmentation, in order."""
        for part in ids.split(batch_size):
            yield self.samples(part)

    def torch_generator(self, purpose: str) -> torch.Generator:
        """The CPU generator of the stream (seed, purpose, this task)."""
        return torch_generator(self.seed, self._of_stage(purpose), self.index)

    def numpy_generator(self, purpose: str) -> np.random.Generator:
        """The numpy generator of the stream (seed, purpose, this task)."""
        return numpy_generator(self.seed, self._of_stage(purpose), self.index)

    def _of_stage(self, purpose: str) -> str:
        return f"{purpose}, stage {self.stage}" if self.stage else purpose

    def arriving_batches(self) -> list[Tensor]:
        """Batches of the samples that arrive, for this task's whole budget: in their order where they have one, else shuffled."""
        batches = self.shuffled_batches(self.ids, in_order=self.ordered)
        if self.batches_per_update <= 1:
            return batches
        repeated = self.budget.steps_per_batch
        return [
            step for batch in not_missed(batches[::repeated], self.batches_per_update) for step in [batch] * repeated
        ]

    def shuffled_batches(self, ids: Tensor, batch_size: int | None = None, in_order: bool = False) -> list[Tensor]:
        """Batches of ``ids`` for this task's whole budget, reshuffled every epoch.

        ``epochs`` passes, cut off at ``max_steps_per_task``; with ``epochs=null`` as many passes as that takes. An epoch's last
        batch may be smaller; with ``drop_last`` it is then left out, unless it is the only one. A last batch that is smaller than
        ``smallest_batch`` joins the one before it. Every batch is there ``steps_per_batch`` times in a row, as the same tensor.
        ``in_order``: nothing is shuffled after all.
        """
        batch_size = self.budget.batch_size if batch_size is None else batch_size
        generator = self.torch_generator("batch_order")
        per_epoch, left_over = divmod(len(ids), batch_size)
        drops = self.budget.drop_last and per_epoch > 0
        joins = 0 < left_over < self.smallest_batch and per_epoch > 0 and not drops
        per_epoch += left_over > 0 and not joins and not drops
        limit = self.budget.max_steps_per_task
        if self.budget.epochs is not None:
            steps = self.budget.epochs * per_epoch * self.budget.steps_per_batch
            steps = steps if limit is None else min(steps, limit)
        else:
            assert limit is not None  # checked when the run was set up
            steps = limit
        batches: list[Tensor] = []
        while len(batches) < steps:
            order = torch.arange(len(ids)) if in_order else torch.randperm(len(ids), generator=generator)
            epoch = list(ids[order].split(batch_size))
            if joins:
                epoch[-2:] = [torch.cat(epoch[-2:])]
            batches += [batch for batch in epoch[:per_epoch] for _ in range(self.budget.steps_per_batch)]
        return batches[:steps]


def not_missed(batches: list[Tensor], every: float) -> list[Tensor]:
    """What is left of the batches that arrive where training on one takes as long as ``every`` of them: number ⌈k · every⌉."""
    numbers = (math.ceil(k * every - 1e-9) for k in range(len(batches)))  # less, so that 3 · (1/3) is no more than 1
    return [batches[number] for number in numbers if number < len(batches)]
