"""A trainer taken through its task by hand, and killed on the way."""

import pytest

from clbench.training.trainer import Trainer


class Killed(BaseException):
    """Stands for a process that ends between two steps."""


def finish_stage(trainer: Trainer) -> None:
    """Take the steps that are left of the task's plan, or of the stage after it."""
    while trainer.step < len(trainer.steps):
        trainer.advance()


def finish_task(trainer: Trainer) -> None:
    """Take the steps that are left of the task, in all stages, and end it."""
    finish_stage(trainer)
    while trainer.begin_stage():
        finish_stage(trainer)
    trainer.end_task()


def fit_until(trainer: Trainer, iteration: int) -> None:
    """Train, and die before the step after ``iteration``."""
    train_step = trainer._train_step

    def step_or_die(*arguments) -> None:
        if trainer.iteration == iteration:
            raise Killed
        train_step(*arguments)

    trainer._train_step = step_or_die  # type: ignore[method-assign]
    with pytest.raises(Killed):
        trainer.fit()
