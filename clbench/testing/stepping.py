"""A trainer taken through its task by hand, and killed on the way."""

from clbench.training.trainer import Trainer


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


class Killed(BaseException):
    """Stands for a process that ends between two steps."""


def fit_until(trainer: Trainer, iteration: int) -> None:
    """Train, and die before the step after ``iteration``.

    Raises:
        AssertionError: the run is over before.
    """
    advance = trainer.advance

    def advance_or_die() -> None:
        if trainer.iteration == iteration:
            raise Killed
        advance()

    trainer.advance = advance_or_die  # type: ignore[method-assign]
    try:
        trainer.fit()
    except Killed:
        return
    raise AssertionError(f"the run is over after {trainer.iteration} steps, and was to be killed after {iteration}")
