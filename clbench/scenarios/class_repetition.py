"""Streams in which classes come back (class-incremental learning with repetition, CIR; Hemati et al. 2023, arXiv:2301.11396).

The sampling-based generator of the paper's section 4.2 and of its code: each class first occurs in an experience that is drawn
from the distribution of first occurrences, and in every later one with the probability of repetition. An experience has a given
number of samples, of its classes in equal shares, which are drawn anew from all samples of the class: so a sample may come back
as well. Experiences without a class are left out.

Differences from the released code: where a class has fewer samples than its share, all of them are in the experience, which is
then smaller. Draws come from the stream's own generators.

Evaluated are groups of classes: those that first occur in the same experience. Validation and test samples are all of a class.
"""

from dataclasses import dataclass

import numpy as np

from clbench.data.images import SourceData
from clbench.errors import ConfigError
from clbench.options import option
from clbench.registry import SCENARIOS
from clbench.scenarios.arrival import Arrival
from clbench.scenarios.build import Part, StreamPlan
from clbench.scenarios.class_incremental import ClassIncremental, ClassIncrementalConfig, class_order, range_of_names
from clbench.seeding import numpy_generator


@dataclass
class ClassRepetitionConfig(ClassIncrementalConfig):
    """Options of ``kind: class_repetition``."""

    increment: int | None = option(None, help="null: which classes are new is drawn", choices=(None,))
    base: int | None = option(None, help="null: which classes are in the first experience is drawn", choices=(None,))
    superclasses: list[str] | None = option(None, help="null: classes begin one by one", choices=(None,))
    tasks: int | None = option(None, help="null: experiences says how many there are", choices=(None,))
    skip_tasks: int | None = option(None, help="null: experiences belong together", choices=(None,))
    experiences: int = option(help="number of experiences N, before empty ones are left out", at_least=1)
    samples: int = option(help="training samples of an experience S, in equal shares of its classes", at_least=1)
    first_occurrence: float | None = option(
        help="p of the geometric distribution over the experiences, cut off at the last one, from which each class's first "
        "occurrence is drawn; null: all experiences are equally likely",
        above=0,
        at_most=1,
    )
    repetition: float = option(
        help="probability that a class is in an experience after its first occurrence", at_least=0, at_most=1
    )


@SCENARIOS.register("class_repetition")
class ClassRepetition(ClassIncremental):
    """Classes arrive in the course of the stream, and return."""

    config = ClassRepetitionConfig

    @classmethod
    def plan(cls, config: ClassRepetitionConfig, data: SourceData, seed: int) -> StreamPlan:  # type: ignore[override]
        """Draw which classes are in which experience; groups of classes are those that begin together.

        Raises:
            ConfigError: the class order names a class twice or one that does not exist, or an experience has more classes than
                samples.
        """
        order = class_order(config, len(data.class_names), seed)
        occurs = occurrences(
            len(order),
            config.experiences,
            config.first_occurrence,
            config.repetition,
            numpy_generator(seed, "occurrences"),
        )
        most = int(occurs.sum(0).max())
        if config.samples < most:
            raise ConfigError(
                f"scenario.samples={config.samples} is too few for an experience with {most} classes, as there is one: it has to "
                f"be at least {most}"
            )
        first = occurs.argmax(1)
        by_first = np.argsort(first, kind="stable")  # labels are numbered in the order in which classes begin
        order, occurs, first = [order[c] for c in by_first], occurs[by_first], first[by_first]
        groups = [np.flatnonzero(first == start).tolist() for start in np.unique(first)]
        names = [data.class_names[c] for c in order]
        groups_at = (np.searchsorted(np.unique(first), np.arange(occurs.shape[1]), side="right") - 1).tolist()

        def arrival(labels: np.ndarray, tasks: np.ndarray) -> Arrival:
            rng = numpy_generator(seed, "samples")
            return Arrival(drawn_samples(labels, occurs, config.samples, rng), groups_at)

        return StreamPlan(
            setting=cls.setting,
            class_names=names,
            task_names=[range_of_names([names[label] for label in group]) for group in groups],
            task_classes=groups,
            parts=[Part(classes={order[label]: label for label in group}) for group in groups],
            recipe={name: getattr(config, name) for name in ("samples", "first_occurrence", "repetition")},
            arrival=arrival,
        )


def occurrences(
    n_classes: int, n_experiences: int, first_occurrence: float | None, repetition: float, rng: np.random.Generator
) -> np.ndarray:
    """Which class is in which experience, boolean (n_classes, experiences that are not empty)."""
    experience = np.arange(n_experiences)
    likelihood = (1 - (first_occurrence or 0.0)) ** experience  # equal for null
    first = rng.choice(n_experiences, n_classes, p=likelihood / likelihood.sum())
    repeats = rng.random((n_classes, n_experiences)) < repetition
    occurs = (experience == first[:, None]) | (repeats & (experience > first[:, None]))
    return occurs[:, occurs.any(0)]


def drawn_samples(labels: np.ndarray, occurs: np.ndarray, size: int, rng: np.random.Generator) -> list[np.ndarray]:
    """The ids (int64, ascending) of every experience's samples: ``size`` of them, of its classes in equal shares.

    What does not divide is given to classes that are drawn. No sample is in an experience twice.

    Args:
        labels: int64 (N,), the label of every training sample.
        occurs: boolean (n_classes, E).
        size: samples of an experience.
        rng: draws the samples.
    """
    of_class = [np.flatnonzero(labels == label) for label in range(len(occurs))]
    experiences = []
    for present in occurs.T:
        classes = rng.permutation(np.flatnonzero(present))
        shares = [len(part) for part in np.array_split(np.arange(size), len(classes))]
        drawn = [rng.permutation(of_class[label])[:n] for label, n in zip(classes, shares, strict=True)]
        experiences.append(np.sort(np.concatenate(drawn)))
    return experiences
