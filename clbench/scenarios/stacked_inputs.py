"""Batches for many runs at once, each from its own stream."""

import torch
from torch import Tensor

from clbench.scenarios.inputs import InputPipeline
from clbench.scenarios.scenario import Samples, Split


class StackedInputs:
    """What R runs' :meth:`InputPipeline.training` would give, as one batch (R, B, ...).

    Where the streams are cut from one :class:`Store` (as those of a sweep over seeds are), images are collected,
    augmented and normalised in one go; the augmentation's draws are each run's own.

    Args:
        inputs: of every run; the same augmentation and normalisation.
        splits: the training split of every run.
    """

    def __init__(self, inputs: list[InputPipeline], splits: list[Split]) -> None:
        self._inputs, self._splits = inputs, splits
        self._store = splits[0].store
        self._share_a_store = all(split.store is self._store for split in splits)
        if self._share_a_store:
            self._rows, self._labels, self._tasks = (
                _stacked([getattr(split, name) for split in splits]) for name in ("rows", "labels", "tasks")
            )
            shuffled = splits[0].permutations is not None
            self._permutations = torch.stack([s.permutations for s in splits]) if shuffled else None  # type: ignore[misc]
            self._everyone = torch.arange(len(splits), device=self._store.device)

    def training(self, runs: list[int], index: Tensor | None, ids: list[Tensor], task: int, step: int) -> Samples:
        """The samples ``ids`` (B,) of each of ``runs`` as training sees them at ``step`` of ``task``: x (n, B, C, H, W).

        ``index`` (n,) holds ``runs`` on the device; None stands for all runs.
        """
        return self._samples(runs, index, ids, (task, step))

    def plain(self, runs: list[int], index: Tensor | None, ids: list[Tensor]) -> Samples:
        """The same without augmentation."""
        return self._samples(runs, index, ids, None)

    def _samples(
        self, runs: list[int], index: Tensor | None, ids: list[Tensor], augmented_at: tuple[int, int] | None
    ) -> Samples:
        """``augmented_at``: task and step of the augmentation's draws, or None."""
        images, labels, tasks = self._take(runs, index, ids)
        first = self._inputs[0]
        flat = images.flatten(0, 1)
        if first.augmentation is not None and augmented_at is not None:
            drawn = [self._inputs[run].draw(images.shape[1:], *augmented_at) for run in runs]
            flat = first.augmentation.apply(flat, [torch.cat(of_all) for of_all in zip(*drawn, strict=True)])
        return Samples(first.normalise(flat).view(images.shape), labels, tasks)

    def _take(self, runs: list[int], index: Tensor | None, ids: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """uint8 images (n, B, C, H, W), labels and tasks (n, B)."""
        if not self._share_a_store:
            taken = [self._splits[run].take(part) for run, part in zip(runs, ids, strict=True)]
            images, labels, tasks = (torch.stack(of_all) for of_all in zip(*taken, strict=True))
            return images, labels, tasks
        stacked = torch.stack(ids)  # where the store wants its rows
        on_device = stacked.to(self._labels.device, non_blocking=True)

        def of(table: Tensor, where: Tensor) -> Tensor:
            if index is None:
                return table.gather(1, where)
            # Where the table lies on the host, the numbers are had there, too: those on the device would have to be waited for.
            return table[index if index.device == table.device else torch.tensor(runs)].gather(1, where)

        rows = of(self._rows, stacked)
        labels, tasks = of(self._labels, on_device), of(self._tasks, on_device)
        images = self._store.take(rows.flatten())
        images = images.view(*rows.shape, *images.shape[1:])
        if self._permutations is not None:
            # Row r, task t of the permutations: which pixel run r shows where in task t.
            who = self._everyone if index is None else index
            which = self._permutations[who[:, None], tasks]
            images = images.flatten(2).gather(2, which).view_as(images)
        return images, labels, tasks


def _stacked(tables: list[Tensor]) -> Tensor:
    """Tables (N_r,) as one (R, N), padded with zeros: streams of different class subsets differ in length."""
    return torch.nn.utils.rnn.pad_sequence(tables, batch_first=True)
