"""Blurry streams: classes arrive early, and return (i-Blurry, Koh et al. 2022, arXiv:2110.10031; Si-Blurry, Moon et al. 2023,
arXiv:2308.09303).

The classes are dealt out over tasks as in a class-incremental stream. A share N of every task's classes is disjoint: all of their
samples arrive while their own task is learned. Of every other class a share M of the training samples arrives in the course of
other tasks, equally many in each. The paper calls this i-Blurry-N-M, N and M in per cent.

In a stochastic stream (Si-Blurry) tasks differ in size. N is the share of all classes; the disjoint ones are dealt out by cuts
at random places, so that a task may have many of them or none, and the others equally. How many samples of every task's blurred
classes change places is drawn by random cuts too, of the share M of all of them; they are shuffled, and each task gets back as
many as it gave.

A task is then the group of samples that are evaluated together, and what arrives is another matter. Validation and test samples
belong to the task of their class. Methods are not told where a task begins, unless ``scenario.boundaries`` asks for it.
"""

import dataclasses
from dataclasses import dataclass

import numpy as np

from clbench.data.images import SourceData
from clbench.errors import ConfigError
from clbench.options import option
from clbench.registry import SCENARIOS
from clbench.scenarios.arrival import Arrival
from clbench.scenarios.build import Part, StreamPlan
from clbench.scenarios.class_incremental import ClassIncremental, ClassIncrementalConfig, range_of_names
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
    stochastic: bool = option(
        False, help="Si-Blurry: how many disjoint classes a task has, and how many samples change places, is drawn"
    )


@SCENARIOS.register("blurry")
class Blurry(ClassIncremental):
    """Classes arrive in groups whose borders are blurred."""

    config = BlurryConfig

    @classmethod
    def plan(cls, config: BlurryConfig, data: SourceData, seed: int) -> StreamPlan:  # type: ignore[override]
        """Deal the classes out over tasks, and say which samples arrive when."""
        plan = super().plan(config, data, seed)
        blurred: dict[str, float | bool] = {"disjoint": config.disjoint, "blur": config.blur}
        if config.stochastic:
            for name in ("tasks", "skip_tasks"):
                if getattr(config, name) is not None:
                    raise ConfigError(
                        f"scenario.{name}={getattr(config, name)} has no meaning with scenario.stochastic=true, where samples "
                        "are dealt out over all tasks together: leave it at null"
                    )
            blurred["stochastic"] = True
            n_tasks = len(plan.task_classes)
            sizes = random_sizes(
                round(config.disjoint * len(plan.class_names)), n_tasks, numpy_generator(seed, "sizes")
            )
            plan = dealt(plan, sizes)
        plan.recipe.update(blurred)

        def arrival(labels: np.ndarray, tasks: np.ndarray) -> Arrival:
            rng = numpy_generator(seed, "arrival")
            if config.stochastic:
                return Arrival(shuffled_share(labels, tasks, sizes, config.blur, rng))
            return Arrival(segments(labels, tasks, config.disjoint, config.blur, rng))

        return dataclasses.replace(plan, arrival=arrival, boundaries=False)


def random_sizes(n: int, n_parts: int, rng: np.random.Generator) -> list[int]:
    """The sizes of ``n_parts`` parts of ``n`` things, cut at random places; a part may be empty."""
    cuts = np.sort(rng.integers(0, n + 1, n_parts - 1))
    return np.diff([0, *cuts, n]).tolist()


def dealt(plan: StreamPlan, n_disjoint: list[int]) -> StreamPlan:
    """The plan with each task's number of disjoint classes as given, and the other classes dealt out equally, after those.

    Labels are numbered anew, in the order of the tasks.

    Raises:
        ConfigError: a task would have no class.
    """
    source_classes = [c for part in plan.parts for c in part.classes]  # in the order of the labels
    disjoint, others = source_classes[: sum(n_disjoint)], source_classes[sum(n_disjoint) :]
    starts, n_tasks = np.concatenate([[0], np.cumsum(n_disjoint)]), len(n_disjoint)
    shares = np.array_split(others, n_tasks)
    groups = [[*disjoint[starts[t] : starts[t + 1]], *map(int, shares[t])] for t in range(n_tasks)]
    if not all(groups):
        raise ConfigError(
            "scenario.stochastic=true leaves a task without a class: lower scenario.disjoint, so that every task has a class "
            "that is not"
        )
    name_of = dict(zip(source_classes, plan.class_names, strict=True))
    label_of = {c: label for label, c in enumerate(c for group in groups for c in group)}
    return dataclasses.replace(
        plan,
        class_names=[name_of[c] for c in label_of],
        task_names=[range_of_names([name_of[c] for c in group]) for group in groups],
        task_classes=[[label_of[c] for c in group] for group in groups],
        parts=[Part(classes={c: label_of[c] for c in group}) for group in groups],
    )


def shuffled_share(
    labels: np.ndarray, tasks: np.ndarray, n_disjoint: list[int], blur: float, rng: np.random.Generator
) -> list[np.ndarray]:
    """The sample ids that arrive while each task is learned, ascending; Si-Blurry.

    ``blur`` × all samples of the blurred classes, rounded, change places: of each task as many as random cuts say, and no more
    than it has. Shuffled, they go back to the tasks in the same numbers.

    Args:
        labels: int64 (N,), the label of every training sample.
        tasks: int64 (N,), the task of its class.
        n_disjoint: how many classes of every task, the first ones, keep their samples.
        blur: the share.
        rng: draws all of it.
    """
    blurred = []
    for task, n in enumerate(n_disjoint):
        classes = np.unique(labels[tasks == task])[n:]
        blurred.append(rng.permutation(np.flatnonzero(np.isin(labels, classes))))
    total = sum(map(len, blurred))
    given = [ids[:n] for ids, n in zip(blurred, random_sizes(round(blur * total), len(blurred), rng), strict=True)]
    arrives = tasks.copy()
    pooled = rng.permutation(np.concatenate(given))
    arrives[pooled] = np.repeat(np.arange(len(given)), [len(ids) for ids in given])
    return [np.flatnonzero(arrives == task) for task in range(len(given))]


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
