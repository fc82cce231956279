"""Streams whose tasks show the same images under other labels.

They are made to see whether a network can still learn, and not what it keeps: what a task teaches contradicts what the tasks
before it have taught, so that forgetting is part of the stream. Read the accuracies on tasks that were just learned (LA and
LA_slope, :mod:`clbench.evaluation.metrics`). As in :mod:`clbench.scenarios.domain_incremental`, the labels are shared by all
tasks unless ``setting`` says otherwise.
"""

import dataclasses
import hashlib
from dataclasses import dataclass
from functools import partial

import numpy as np

from clbench.data.images import SourceData
from clbench.options import option
from clbench.registry import SCENARIOS
from clbench.scenarios.build import Part, StreamPlan
from clbench.scenarios.class_incremental import used_classes
from clbench.scenarios.domain_incremental import DomainIncrementalConfig, shared_labels
from clbench.seeding import numpy_generator


@dataclass
class RandomLabelConfig(DomainIncrementalConfig):
    """Options of ``kind: random_label``."""

    n_tasks: int = option(help="number of tasks", at_least=1)
    label_seed: int | None = option(
        None, help="seed of the labels; null: the run's seed, so that every seed has other tasks", at_least=0
    )


@SCENARIOS.register("random_label")
class RandomLabel:
    """The same images in every task, their labels permuted among them (random-label MNIST, Kumar et al. 2023, arXiv:2308.11958).

    Every class keeps its number of images, so that guessing is equally good in all tasks. Labels that say nothing about the
    image can only be memorised: a task is evaluated on its own training samples, under the labels it has trained with. So the
    test split is the training split, and so is the validation split, of which ``scenario.validation`` then holds nothing out; a
    tuning protocol differs from the evaluation in the seed, and thereby in the labels. Task t's labels come from the stream
    (seed, "random_labels", t), so that they do not depend on the number of tasks.
    """

    config = RandomLabelConfig

    @staticmethod
    def plan(config: RandomLabelConfig, data: SourceData, seed: int) -> StreamPlan:
        """One random labelling of the images per task."""
        label_seed = seed if config.label_seed is None else config.label_seed
        pool = used_classes(config.classes, len(data.class_names))
        labels = {source_class: label for label, source_class in enumerate(pool)}
        tasks = range(config.n_tasks)
        plan = shared_labels(
            config,
            [data.class_names[c] for c in pool],
            [f"labelling {task}" for task in tasks],
            [Part(labels, relabel=partial(_permuted, label_seed, task)) for task in tasks],
            {},
        )
        return dataclasses.replace(plan, judged_on_training=True)


def _permuted(seed: int, task: int, labels: np.ndarray) -> np.ndarray:
    """The labels (n,) in an order of the task's own."""
    return numpy_generator(seed, "random_labels", task).permutation(labels)


@dataclass
class LabelPermutationConfig(DomainIncrementalConfig):
    """Options of ``kind: label_permutation``."""

    n_tasks: int = option(help="number of tasks", at_least=1)
    identity_first: bool = option(help="in the first task every class has its own label")
    label_seed: int | None = option(
        None, help="seed of the permutations; null: the run's seed, so that every seed has other tasks", at_least=0
    )


@SCENARIOS.register("label_permutation")
class LabelPermutation:
    """All classes in every task, class k under the label π_t(k) of the task's own bijection π_t (Lewandowski et al. 2024).

    The images of a class stay together, so that there is something to generalise: test images are relabelled likewise. A label
    bears the name of the class whose label it is without a permutation. π_t comes from the stream (seed, "label_permutation", t),
    so that it does not depend on the number of tasks.
    """

    config = LabelPermutationConfig

    @staticmethod
    def plan(config: LabelPermutationConfig, data: SourceData, seed: int) -> StreamPlan:
        """One random bijection from classes to labels per task."""
        label_seed = seed if config.label_seed is None else config.label_seed
        pool = used_classes(config.classes, len(data.class_names))
        parts, names, digests = [], [], []
        for task in range(config.n_tasks):
            labels, name, digest = np.arange(len(pool)), "identity", "identity"
            if task > 0 or not config.identity_first:
                labels = numpy_generator(label_seed, "label_permutation", task).permutation(len(pool))
                name = f"labels {task}"
                digest = hashlib.blake2b(labels.astype("<i8").tobytes(), digest_size=16).hexdigest()
            parts.append(Part(dict(zip(pool, labels.tolist(), strict=True))))
            names.append(name)
            digests.append(digest)
        return shared_labels(config, [data.class_names[c] for c in pool], names, parts, {"label_permutations": digests})
