"""What a scenario is: three splits, each a table of samples sorted by task.

A *sample* of a stream is a row of its split's table: (row in the Store, label, task). The same image may be several
samples (it appears once per rotation, say). A batch, a replay memory or an evaluation subset is a tensor of sample ids.
"""

import hashlib
import json
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from clbench.data.images import content_hash
from clbench.data.store import Store
from clbench.errors import TestStreamLocked

EXAMPLES = {"class": "split_digits", "task": "split_digits_task", "domain": "rotated_mnist"}
"""A small scenario of every setting, to name where a strategy asks for another."""


class Samples(NamedTuple):
    """Inputs with their labels and tasks.

    Attributes:
        x: float (B, C, H, W), normalised (and augmented, in training).
        y: int64 (B,), labels in 0..classes-1, in the order in which the stream brings the classes.
        task: int64 (B,), the task each sample belongs to.
    """

    x: Tensor
    y: Tensor
    task: Tensor


class Split:
    """One split (train, validation or test) of a stream.

    Args:
        store: the images.
        rows: int64 (N,) row of each sample in the store, samples sorted by task.
        labels: int64 (N,) label of each sample in the model's label space.
        tasks: int64 (N,) task of each sample, ascending.
        digests: uint64 (M, 2) digests of the store's images, see :mod:`clbench.data.images`.
        permutations: int64 (T, C·H·W) or None: the order in which task t shows an image's pixels.
    """

    def __init__(
        self,
        store: Store,
        rows: np.ndarray,
        labels: np.ndarray,
        tasks: np.ndarray,
        digests: np.ndarray,
        n_tasks: int,
        permutations: np.ndarray | None = None,
    ) -> None:
        self.store = store
        self.rows = torch.from_numpy(np.ascontiguousarray(rows, np.int64)).to(store.index_device)
        self.labels = torch.from_numpy(np.ascontiguousarray(labels, np.int64)).to(store.device)
        self.tasks = torch.from_numpy(np.ascontiguousarray(tasks, np.int64)).to(store.device)
        self.permutations = None if permutations is None else torch.from_numpy(permutations).to(store.device)
        bounds = np.searchsorted(tasks, np.arange(n_tasks + 1))
        self.bounds: list[tuple[int, int]] = [(int(a), int(b)) for a, b in pairwise(bounds)]
        self.digests = digests[rows]  # uint64 (N, 2), of every sample's image
        self.hashes = [content_hash(digests[rows[a:b]]) for a, b in self.bounds]

    def __len__(self) -> int:
        return len(self.labels)

    def ids(self, task: int) -> Tensor:
        """int64 (n,), on the CPU: the sample ids of ``task``."""
        return torch.arange(*self.bounds[task])

    def labels_of(self, ids: Tensor) -> Tensor:
        """int64 labels of the samples ``ids``, on the CPU."""
        return self.labels.cpu()[ids.cpu()]

    def take(self, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """uint8 images (B, C, H, W), labels (B,) and tasks (B,) of the samples ``ids`` (B,), on the device."""
        on_device = ids.to(self.labels.device, non_blocking=True)
        # A copy from the device to the host has to be waited for: its result is read at once.
        images = self.store.take(self.rows[ids.to(self.rows.device, non_blocking=self.rows.is_cuda)])
        tasks = self.tasks[on_device]
        if self.permutations is not None:
            images = images.flatten(1).gather(1, self.permutations[tasks]).view_as(images)
        return images, self.labels[on_device], tasks


@dataclass(frozen=True)
class Scenario:
    """A stream of tasks.

    Attributes:
        name: as in ``conf/scenario/``.
        setting: ``class`` (identity hidden, classes grow), ``task`` (identity given) or ``domain`` (identity hidden,
            classes shared by all tasks).
        class_names: names of the classes in label order.
        task_classes: for each group of samples that is evaluated as a task, the labels it contains.
        input_shape: (C, H, W) of images, (L,) of texts.
        mean, std: per-channel normalisation of images; empty for texts.
        train, validation: the splits training and tuning may read; validation is None without a validation fraction.
        recipe: what defines the stream beside its images (rotations, permutations, ...); part of the hash.
        test_locked: whether asking for the test split raises.
        note: what a reader of results has to know about these data, or empty.
        frozen: the definition in the catalogue that the stream was found to equal, e.g. ``split_mnist/v1``, or None.
        segments: for each task that is learned the ids of the training samples that arrive meanwhile; None: those of the task.
            With them the samples of a split that are of one task are no more than a group that is evaluated together; its classes
            may arrive early, or return.
        groups_at: for each segment the group that is recorded as being learned, ascending and without a gap; None: there are as
            many segments as groups, and each is of its own.
        ordered: whether segments are in the order of arrival, so that they may not be shuffled.
        boundaries: whether methods are told where a segment begins.
        answers: for every label the text that says it, which a language model is to write behind the sample's own, or None
            where there are none; part of the hash by way of the recipe.
    """

    name: str
    setting: str
    class_names: list[str]
    task_names: list[str]
    task_classes: list[list[int]]
    input_shape: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    train: Split
    validation: Split | None
    _test: Split = field(repr=False)
    recipe: dict = field(default_factory=dict)
    test_locked: bool = False
    note: str = ""
    frozen: str | None = None
    segments: list[Tensor] | None = None
    groups_at: list[int] | None = None
    ordered: bool = False
    boundaries: bool = True
    answers: tuple[str, ...] | None = None

    @property
    def reads(self) -> str:
        """What a network has to read.

        ``images``, uint8 (C, H, W); ``tokens`` of texts, int32 (L,); or ``features``, float32 of any shape, that the first
        stages of a network have made of either.
        """
        return {torch.uint8: "images", torch.int32: "tokens", torch.float32: "features"}[self.train.store.dtype]

    def blank(self, device: torch.device) -> Tensor:
        """An input (1, …) for a network that says nothing."""
        kind = torch.int32 if self.reads == "tokens" else torch.float32
        return torch.zeros(1, *self.input_shape, dtype=kind, device=device)

    def arriving(self, task: int) -> Tensor:
        """int64 (n,), on the CPU: the training samples that arrive while ``task`` is learned."""
        return self.train.ids(task) if self.segments is None else self.segments[task]

    def classes_arriving(self, task: int) -> list[int]:
        """The labels of those samples, ascending where they are not simply the task's."""
        if self.segments is None:
            return self.task_classes[task]
        return self.train.labels_of(self.segments[task]).unique().tolist()

    def group_at(self, task: int) -> int:
        """The group of evaluated samples that is recorded as being learned while ``task`` is learned."""
        return task if self.groups_at is None else self.groups_at[task]

    @property
    def first_seen(self) -> list[int]:
        """For every label the task with which its first sample arrives, as methods know it before the first step.

        ``n_tasks``, which is later than all of them, where they are not told: then the samples themselves have to tell.
        """
        if not self.boundaries:
            return [self.n_tasks] * self.n_classes
        first = [self.n_tasks] * self.n_classes
        for task in reversed(range(self.n_tasks)):
            for label in self.classes_arriving(task):
                first[label] = task
        return first

    @property
    def n_tasks(self) -> int:
        """Number of tasks that are learned, one after another."""
        return len(self.task_classes) if self.segments is None else len(self.segments)

    @property
    def n_groups(self) -> int:
        """Number of groups of samples that are evaluated as a task; that of the tasks, unless ``groups_at`` says otherwise."""
        return len(self.task_classes)

    @property
    def n_classes(self) -> int:
        """Number of classes (outputs of the head) over the whole stream."""
        return len(self.class_names)

    @property
    def test(self) -> Split:
        """The test split.

        Raises:
            TestStreamLocked: the run is part of a tuning phase, which must not see test data.
        """
        if self.test_locked:
            raise TestStreamLocked(
                f"the test stream of {self.name} is locked while tuning: evaluate on the validation split instead"
            )
        return self._test

    @property
    def content(self) -> dict:
        """The definition as data: classes and content hash of every task and split, and the recipe."""
        splits = {"train": self.train, "validation": self.validation, "test": self._test}
        return {
            "setting": self.setting,
            "tasks": [
                {
                    "name": self.task_names[t],
                    "classes": [self.class_names[c] for c in self.task_classes[t]],
                    **{f"n_{name}": len(s.ids(t)) for name, s in splits.items() if s is not None},
                    **{f"{name}_hash": s.hashes[t] for name, s in splits.items() if s is not None},
                    **self._arrival(t),
                }
                for t in range(self.n_groups)
            ],
            "recipe": self.recipe,
            **({} if self.groups_at is None else {"segments": self._segments_as_data(self.groups_at)}),
        }

    def _segments_as_data(self, groups_at: list[int]) -> list[dict[str, str | int]]:
        return [{"group": group, **self._arrives_in(segment)} for segment, group in enumerate(groups_at)]

    def _arrival(self, task: int) -> dict[str, str | int]:
        """What arrives while ``task`` is learned, where there is a segment for it and that is not the task's own samples."""
        return {} if self.segments is None or self.groups_at is not None else self._arrives_in(task)

    def _arrives_in(self, segment: int) -> dict[str, str | int]:
        ids = self.arriving(segment).numpy().astype("<i8")
        return {"n_arriving": len(ids), "arriving_hash": hashlib.blake2b(ids.tobytes(), digest_size=16).hexdigest()}

    @property
    def hash(self) -> str:
        """32 hexadecimal digits: equal for two runs exactly when they see the same stream."""
        text = json.dumps(self.content, sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
