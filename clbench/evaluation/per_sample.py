"""A run is refused whose predictions for an image depend on the other images of its batch.

Statistics of a batch that comes from one task tell the task, although no task identity is passed: published code that
normalises every task's test images by themselves reports class-incremental accuracies far above what its classifier can do.
So the harness asks for the same images in three ways before it believes a method: mixed over tasks, task by task, and one at a
time.
"""

import math

import torch
from torch import Tensor

from clbench.errors import BatchDependence
from clbench.evaluation.evaluator import ContinualEvaluator
from clbench.learning.learner import Learner

IMAGES_PER_TASK = 6
ALONE = 4
"""Images that are also predicted one at a time."""

TOLERANCE = 0.05
"""Largest difference between two scores of one image, as a share of the range of all scores; rounding in bfloat16 makes 0.01."""


def refuse_batch_dependence(evaluator: ContinualEvaluator, task_learning: int) -> None:
    """Compare predictions for a few evaluation images of every seen task in three kinds of batches.

    Not where the task is given and a method has a network for every task: its batches are of one task, and only their size
    is varied.

    Raises:
        BatchDependence: they differ.
    """
    learner = evaluator.learner
    tasks = range(task_learning + 1)
    with evaluator.undisturbed(), evaluator.precision.autocast():
        of_tasks = [evaluator.first_images(task, IMAGES_PER_TASK) for task in tasks]
        if learner.separates_tasks:
            together = [learner.predict_task(s.x, task) for task, s in enumerate(of_tasks)]
            apart = [learner.predict_task(image[None], task) for task, s in enumerate(of_tasks) for image in s.x]
            _compare(learner, torch.cat(together), torch.cat(apart), "one at a time")
            return
        x = torch.cat([s.x for s in of_tasks])
        task = torch.cat([s.task for s in of_tasks])
        mixed = learner.predict(x.flip(0), task.flip(0)).flip(0)
        by_task = torch.cat([learner.predict(s.x, s.task) for s in of_tasks])
        _compare(learner, mixed, by_task, "task by task")
        alone = torch.cat([learner.predict(x[i : i + 1], task[i : i + 1]) for i in range(min(ALONE, len(x)))])
        _compare(learner, mixed[: len(alone)], alone, "one at a time")


def _compare(learner: Learner, mixed: Tensor, otherwise: Tensor, how: str) -> None:
    if not ((mixed < math.inf) & (otherwise < math.inf)).all():
        return  # NaN or infinite: the run has diverged, and its loss will say so
    visible = mixed.isfinite()
    same_classes = torch.equal(visible, otherwise.isfinite())
    scores, others = _centred(mixed), _centred(otherwise)
    difference = (scores - others)[visible].abs().max()
    if not same_classes or difference > TOLERANCE * (scores[visible].max() - scores[visible].min()):
        raise BatchDependence(
            f"{'+'.join(s.name for s in learner)} predicts otherwise for the same images {how} than in a batch of all tasks "
            f"(scores differ by up to {float(difference):.3g}): a prediction may depend on its own image alone, since the other "
            "images of a test batch tell the task"
        )


def _centred(scores: Tensor) -> Tensor:
    """Scores (B, C) with mean 0 over the classes that an image may have: what they have in common decides nothing."""
    visible = scores.isfinite()
    return scores - scores.masked_fill(~visible, 0).sum(1, keepdim=True) / visible.sum(1, keepdim=True)
