"""Runs in double precision, so that rounding does not grow from step to step until two right computations differ."""

from clbench.training.trainer import Trainer


def in_double_precision(trainer: Trainer) -> Trainer:
    """The trainer, not begun, with weights, inputs and optimizer in float64."""
    trainer.learner.double()
    trainer.inputs._scale, trainer.inputs._shift = trainer.inputs._scale.double(), trainer.inputs._shift.double()
    trainer.evaluator._images = trainer.evaluator._images.double()
    for state in trainer.optimizer.state.values():
        state.update({name: value.double() for name, value in state.items()})
    return trainer
