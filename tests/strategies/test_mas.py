"""MAS: sensitivities against closed form and against autograd, sample by sample."""

import pytest
import torch

from clbench.testing.small_runs import in_double_precision
from clbench.testing.stepping import finish_task

OPTIONS = ["strategy=mas", "scenario.tasks=2", "scenario.frozen=null", "trainer.lr=0.05"]


def by_hand(trainer, ids):
    """Ω (P,) from one backward pass for every sample."""
    model, total = trainer.learner.model, 0.0
    samples = trainer.inputs.plain(trainer.scenario.train, ids)
    for i in range(len(ids)):
        task = samples.task[i : i + 1]
        visible = model.answer.visible(task)
        z = model(samples.x[i : i + 1].double())
        z = z if visible is None else z[:, visible.view(-1)]
        parts = torch.autograd.grad((z**2).sum(), list(model.parameters()))
        total = total + torch.cat([g.reshape(-1).abs() for g in parts])
    return total / len(ids)


@pytest.mark.parametrize("setting", ["class", "task"])
def test_absolute_values_before_the_mean(setting, small_trainer):
    stream = [] if setting == "class" else ["scenario=split_digits_task"]
    trainer = in_double_precision(small_trainer(*OPTIONS, *stream))
    trainer.begin_task()
    finish_task(trainer)
    expected = by_hand(trainer, trainer.scenario.train.ids(0))
    torch.testing.assert_close(trainer.learner.strategies[0].importance, expected, rtol=1e-9, atol=1e-12)


def test_of_a_linear_network(small_trainer, task_of):
    """z = W f: of W_ci the mean of |2 z_c f_i|."""
    trainer = in_double_precision(small_trainer(*OPTIONS, "model.hidden=[]"))
    strategy, model, task = trainer.learner.strategies[0], trainer.learner.model, task_of(trainer, 0)
    with torch.no_grad():
        f = model.features(task.samples(task.ids).x.double())
        z = model.head(f)[:, :2]
    weight = strategy.sensitivity(task)[: model.head.weight.numel()].view_as(model.head.weight)
    torch.testing.assert_close(weight[:2], (2 * z[:, :, None] * f[:, None]).abs().mean(0))
    assert not weight[2:].any()  # classes to come


@pytest.mark.parametrize("accumulate", ["sum", "average"])
def test_tasks_are_put_together(accumulate, small_trainer):
    trainer = in_double_precision(small_trainer(*OPTIONS, f"strategy.accumulate={accumulate}", "strategy.alpha=0.25"))
    strategy = trainer.learner.strategies[0]
    trainer.begin_task()
    finish_task(trainer)
    first = strategy.importance.clone()
    before = torch.cat([p.detach().reshape(-1) for p in trainer.parameters]).clone()
    trainer.begin_task()
    drawn = torch.cat([p.detach().reshape(-1) for p in trainer.parameters]) != before
    finish_task(trainer)
    kept, second = torch.where(drawn, 0.0, first), by_hand(trainer, trainer.scenario.train.ids(1))
    expected = kept + second if accumulate == "sum" else 0.75 * kept + 0.25 * second
    torch.testing.assert_close(strategy.importance, expected, rtol=1e-8, atol=1e-12)


def test_the_penalty(small_trainer, batch_of):
    trainer = small_trainer(*OPTIONS, "strategy.lam=7.0")
    trainer.begin_task()
    finish_task(trainer)
    trainer.begin_task()
    strategy = trainer.learner.strategies[0]
    with torch.no_grad():
        for parameter in trainer.parameters:
            parameter.add_(0.01)
    term = trainer.learner.loss(batch_of(trainer, trainer.scenario.train.ids(1)[:4]))["mas"]
    assert term.item() == pytest.approx(7 * float(strategy.importance.sum()) * 1e-4, rel=1e-3)
