"""RWalk: the whole method against a loop over recorded steps, and what other code does with it."""

import pytest
import torch

from clbench.testing.small_runs import in_double_precision
from clbench.testing.stepping import finish_task

OPTIONS = [
    "strategy=rwalk",
    "strategy.lam=2.0",
    "strategy.alpha=0.75",
    f"strategy.xi={2**-13}",  # exact in single precision, in which options are kept
    "scenario.tasks=3",
    "scenario.frozen=null",
    "trainer.lr=0.3",
    "trainer.momentum=0.9",
]


def flat(trainer):
    return torch.cat([p.detach().reshape(-1) for p in trainer.learner.model.parameters()]).clone()


def unit(values):
    return (values - values.min()) / (values.max() - values.min())


@pytest.mark.parametrize(("window", "n_steps"), [(1, 6), (4, 12), (5, 12), (50, 7)])
def test_written_out(window, n_steps, small_trainer, monkeypatch):
    """Windows, the running Fisher information and scores, from recorded gradients; leftover steps are a shorter window."""
    steps = [f"strategy.window={window}", f"trainer.max_steps_per_task={n_steps}"]
    trainer = in_double_precision(small_trainer(*OPTIONS, *steps))
    strategy, model, seen = trainer.learner.strategies[0], trainer.learner.model, []
    loss = trainer.learner.loss_and_outputs

    def remember(batch):
        terms, outputs = loss(batch)
        parts = torch.autograd.grad(terms["new"], list(model.parameters()), retain_graph=True)
        seen.append((flat(trainer), torch.cat([g.reshape(-1) for g in parts])))
        return terms, outputs

    monkeypatch.setattr(trainer.learner, "loss_and_outputs", remember)
    fisher, score = None, torch.zeros_like(flat(trainer))
    n_negative = 0
    for task in range(3):
        seen.clear()
        before_task = flat(trainer)
        trainer.begin_task()
        drawn = flat(trainer) != before_task  # rows of new classes
        score = torch.where(drawn, 0.0, score)
        fisher = None if fisher is None else torch.where(drawn, 0.0, fisher)
        finish_task(trainer)
        path = [theta for theta, _ in seen] + [flat(trainer)]
        of_task = 0
        for first in range(0, n_steps, window):
            last = min(first + window, n_steps)
            gradients = torch.stack([seen[i][1] for i in range(first, last)])
            gained = -sum(seen[i][1] * (path[i + 1] - path[i]) for i in range(first, last))
            n_negative += int((gained < 0).sum())
            squares = gradients.square().mean(0)
            at_start = squares if fisher is None else fisher
            of_task = of_task + gained.clamp(min=0) / (0.5 * at_start * (path[last] - path[first]) ** 2 + 2**-13)
            fisher = 0.75 * squares + 0.25 * at_start
        score = of_task if task == 0 else (score + of_task) / 2
        torch.testing.assert_close(strategy.score, score, rtol=1e-7, atol=1e-10)
        torch.testing.assert_close(strategy.fisher.value, fisher, rtol=1e-7, atol=1e-12)
        torch.testing.assert_close(strategy.importance, unit(fisher) + unit(score), rtol=1e-7, atol=1e-10)
        assert torch.equal(strategy.anchor, flat(trainer))
        assert 1 <= strategy.importance.max() <= 2
        terms = trainer.training[trainer.training.task_learning == task].term
        assert ("rwalk" in set(terms)) == (task > 0)
    assert n_negative > 0 or window > n_steps  # cut off window by window, not once a task (Avalanche)


def test_the_penalty_is_no_part_of_what_is_integrated(small_trainer, monkeypatch):
    """With a loss that is constant, the walk gains nothing, however strong the penalty is."""
    trainer = in_double_precision(small_trainer(*OPTIONS, "strategy.window=2", "trainer.max_steps_per_task=4"))
    trainer.begin_task()
    finish_task(trainer)
    strategy = trainer.learner.strategies[0]
    monkeypatch.setattr(
        type(strategy), "data_loss", lambda self, batch, outputs: {"new": 0.0 * outputs.logits.square().mean()}
    )
    with torch.no_grad():
        for parameter in trainer.learner.model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    trainer.task = 1
    trainer.begin_task()
    moved = flat(trainer)
    while trainer.step < len(trainer.steps):
        trainer.advance()
    assert (flat(trainer) - moved).norm() > 1e-3  # back towards the anchor
    assert strategy.of_task.abs().max() < 1e-15
    assert strategy.path.abs().max() < 1e-15


def test_scores_of_tasks_are_averaged_and_not_added(small_trainer, monkeypatch):
    """In the authors' code a half of the sum is added to the old score, which so grows by a half with every task."""
    trainer = small_trainer(*OPTIONS, "strategy.window=2", "trainer.max_steps_per_task=2")
    strategy = trainer.learner.strategies[0]

    def score_three(self, step, batch):
        self.of_task.fill_(3.0)

    monkeypatch.setattr(type(strategy), "after_step", score_three)
    for _ in range(3):
        trainer.begin_task()
        strategy.score.fill_(3.0 if strategy.tasks_learned else 0.0)
        finish_task(trainer)
        assert (strategy.score == 3.0).all()
