"""Blurry streams: classes arrive early, and return (i-Blurry, Koh et al. 2022, arXiv:2110.10031).

The classes are dealt out over tasks as in a class-incremental stream. A share N of every task's classes is disjoint: all of their
samples arrive while their own task is learned. Of every other class a share M of the training samples arrives in the course of
other tasks, equally many in each. The paper calls this i-Blurry-N-M, N and M in per cent.

A task is then the group of samples that are evaluated together, and what arrives is another matter. Validation and test samples
belong to the task of their class. Methods are not told where a task begins, unless ``told`` asks for it.
"""

from dataclasses import dataclass

import numpy as np

from clbench.data.images import SourceData
from clbench.options import option
from clbench.registry import SCENARIOS
from clbench.scenarios.build import StreamPlan
from clbench.scenarios.class_incremental import ClassIncremental, ClassIncrementalConfig
from clbench.seeding import numpy_generator


@dataclass
class BlurryConfig(ClassIncrementalConfig):
    """Options of ``kind: blurry``."""

    disjoint: float = option(
        0.5, help="share N of a task's classes that arrive in no other task", at_least=0, at_most=1
    )
    blur: float = option(
        0.1, help="share M of the other classes' training samples that arrive in other tasks", at_least=0, at_most=1
    )
    told: bool = option(False, help="whether methods are told where a task begins")


@SCENARIOS.register("blurry")
class Blurry(ClassIncremental):
    """Classes arrive in groups whose borders are blurred."""

    config = BlurryConfig

    @classmethod
    def plan(cls, config: BlurryConfig, data: SourceData, seed: int) -> StreamPlan:  # type: ignore[override]
        """Deal the classes out over tasks, and say which samples arrive when."""
        plan = super().plan(config, data, seed)
        blurred = {"disjoint": config.disjoint, "blur": config.blur, "told": config.told}
        plan.recipe.update(blurred)

        def arrival(labels: np.ndarray, tasks: np.ndarray) -> list[np.ndarray]:
            return segments(labels, tasks, config.disjoint, config.blur, numpy_generator(seed, "arrival"))

        return StreamPlan(**{**vars(plan), "arrival": arrival, "boundaries": config.told})


def segments(
    labels: np.ndarray, tasks: np.ndarray, disjoint: float, blur: float, rng: np.random.Generator
) -> list[np.ndarray]:
    """The sample ids that arrive while each task is learned, ascending.

    Args:
        labels: int64 (N,), the label of every training sample.
        tasks: int64 (N,), the task of its class, 0 … T − 1.
        disjoint: share of every task's classes, rounded, that arrive in no other task: the first ones.
        blur: share of every other class's samples, rounded, that arrive in the other tasks.
        rng: draws which samples these are, and in which task each arrives.
    """
    n_tasks = int(tasks.max()) + 1
    arrives = tasks.copy()
    for task in range(n_tasks if n_tasks > 1 else 0):
        classes = np.unique(labels[tasks == task])
        others = np.delete(np.arange(n_tasks), task)
        for label in classes[round(disjoint * len(classes)) :]:
            ids = rng.permutation(np.flatnonzero(labels == label))
            leaving = ids[: round(blur * len(ids))]
            start = rng.integers(len(others))  # so that what does not divide does not always go to the first tasks
            arrives[leaving] = np.roll(others, -start)[np.arange(len(leaving)) % len(others)]
    return [np.flatnonzero(arrives == task) for task in range(n_tasks)]
