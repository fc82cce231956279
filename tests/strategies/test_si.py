"""SI: the path integral against the loss's decrease, and the whole method against a loop over steps."""

import pytest
import torch

from clbench.strategies.si import SI
from clbench.testing.small_runs import in_double_precision
from clbench.testing.stepping import finish_task

OPTIONS = [
    "strategy=si",
    "scenario.tasks=3",
    "scenario.frozen=null",
    "trainer.lr=0.3",
    "trainer.momentum=0.9",
    "trainer.max_steps_per_task=20",
]


def flat(trainer):
    return torch.cat([p.detach().reshape(-1) for p in trainer.learner.model.parameters()]).clone()


@pytest.mark.parametrize(("gradient", "clamp"), [("data", "relu"), ("total", "relu"), ("data", "none")])
def test_written_out(gradient, clamp, small_trainer, monkeypatch):
    trainer = in_double_precision(
        small_trainer(
            *OPTIONS, f"strategy.gradient={gradient}", f"strategy.clamp={clamp}", "strategy.c=3.0", "strategy.xi=0.125"
        )
    )
    strategy, model = trainer.learner.strategies[0], trainer.learner.model
    seen = []
    loss = trainer.learner.loss_and_outputs

    def remember(batch):
        terms, outputs = loss(batch)
        chosen = terms["new"] if gradient == "data" else sum(terms.values())
        parts = torch.autograd.grad(chosen, list(model.parameters()), retain_graph=True)
        seen.append((flat(trainer), torch.cat([g.reshape(-1) for g in parts])))
        return terms, outputs

    monkeypatch.setattr(trainer.learner, "loss_and_outputs", remember)
    importance, anchor, n_new, n_negative = torch.zeros_like(flat(trainer)), flat(trainer), 0, 0
    for task in range(3):
        seen.clear()
        before_task = flat(trainer)
        trainer.begin_task()
        drawn = flat(trainer) != before_task  # rows of new classes
        n_new += int(drawn.sum())
        importance = torch.where(drawn, 0.0, importance)
        anchor = torch.where(drawn, flat(trainer), anchor)
        finish_task(trainer)
        path = [theta for theta, _ in seen] + [flat(trainer)]
        omega = sum(-g * (path[i + 1] - path[i]) for i, (_, g) in enumerate(seen))
        n_negative += int((omega < 0).sum())
        omega = omega.clamp(min=0) if clamp == "relu" else omega
        importance = importance + omega / ((flat(trainer) - anchor) ** 2 + 0.125)
        anchor = flat(trainer)
        torch.testing.assert_close(strategy.importance, importance, rtol=1e-8, atol=1e-12)
        assert torch.equal(strategy.anchor, anchor)
        terms = trainer.training[trainer.training.task_learning == task].term
        assert ("si" in set(terms)) == (task > 0)
    assert n_new > 0
    assert n_negative > 0 or gradient == "total"  # that are cut off, or kept


def test_the_path_integral_is_the_decrease_of_the_loss(small_trainer):
    """With small steps along the gradient of one and the same batch."""
    trainer = in_double_precision(
        small_trainer(
            "strategy=si",
            "trainer.lr=1e-3",
            "trainer.momentum=0",
            "trainer.batch_size=500",
            "trainer.max_steps_per_task=50",
        )
    )
    trainer.begin_task()
    while trainer.step < len(trainer.steps):
        trainer.advance()
    losses = trainer.training.loss
    assert float(trainer.learner.strategies[0].omega.sum()) == pytest.approx(losses.iloc[0] - losses.iloc[-1], rel=0.05)


def test_a_weight_without_contribution_is_free(small_trainer, monkeypatch):
    monkeypatch.setattr(SI, "after_step", lambda self, step, batch: None)
    trainer = small_trainer(*OPTIONS)
    trainer.begin_task()
    finish_task(trainer)
    assert not trainer.learner.strategies[0].importance.any()
