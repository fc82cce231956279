"""Stable SGD: the equation, and what every strategy of clbench has to satisfy."""

import torch

from clbench.testing import Case, StrategyTests


class TestStableSGD(StrategyTests):
    strategy = "stable_sgd"
    options = ("strategy.decay=0.5",)


def test_a_step_is_shorter_by_the_factor_in_every_task():
    """Without momentum a step is the learning rate times the gradient: 0.1, 0.05 and 0.025 of it."""
    case = Case("stable_sgd", "class", ("strategy.decay=0.5", "trainer.lr=0.1", "trainer.momentum=0.0"))
    trainer = case.trainer()
    trainer.begin()
    for rate in (0.1, 0.05, 0.025):
        trainer.begin_task()
        before = [parameter.detach().clone() for parameter in trainer.parameters]
        trainer.advance()
        for parameter, was in zip(trainer.parameters, before, strict=True):
            torch.testing.assert_close(parameter.detach(), was - rate * parameter.grad)
        while trainer.step < len(trainer.steps):
            trainer.advance()
        trainer.end_task()
