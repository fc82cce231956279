"""MER against its algorithm written out, with plain SGD on single samples."""

import copy

import pytest
import torch
import torch.nn.functional as F

from clbench.errors import ConfigError
from clbench.testing.small_runs import in_double_precision
from clbench.testing.stepping import finish_task

MER = ["strategy=mer", "strategy.memory_size=12", "scenario.tasks=2", "scenario.frozen=null", "trainer.lr=0.1",
       "strategy.replay_batch_size=3", "strategy.draws=2", "strategy.beta=0.5", "strategy.gamma=0.75"]  # fmt: skip


def groups_of(steps, n_draws: int) -> list[list[list[int]]]:
    """The plan's samples: for every new sample its draws, of which each begins with it."""
    samples = []
    for step in steps:
        if not samples or (step.n_new and len(samples[-1]) == n_draws):
            samples.append([])
        if step.n_new:
            samples[-1].append([])
        samples[-1][-1].append(int(step.ids))
    return samples


def interpolated(before: list, model, kept: float) -> None:
    with torch.no_grad():
        for old, now in zip(before, model.trained().values(), strict=True):
            now.copy_(old + kept * (now - old))


def test_the_weights_are_those_of_algorithm_1(small_trainer):
    trainer = in_double_precision(small_trainer(*MER, "trainer.max_steps_per_task=60"))
    trainer.begin()
    for _ in range(2):
        trainer.begin_task()
        model = copy.deepcopy(trainer.learner.model)
        for draws in groups_of(trainer.steps, 2):
            before_sample = [p.detach().clone() for p in model.trained().values()]
            for draw in draws:
                before_draw = [p.detach().clone() for p in model.trained().values()]
                for sample in draw:
                    samples = trainer.inputs.plain(trainer.scenario.train, torch.tensor([sample]))
                    logits = model(samples.x.double())[:, model.answer.visible(samples.task)]
                    loss = F.cross_entropy(logits, samples.y)
                    gradients = torch.autograd.grad(loss, list(model.trained().values()))
                    with torch.no_grad():
                        for parameter, gradient in zip(model.trained().values(), gradients, strict=True):
                            parameter -= 0.1 * gradient
                interpolated(before_draw, model, 0.5)
            interpolated(before_sample, model, 0.75)
        finish_task(trainer)
        for mine, its in zip(trainer.learner.model.trained().values(), model.trained().values(), strict=True):
            torch.testing.assert_close(mine, its, rtol=1e-9, atol=1e-11)
    assert trainer.iteration == 120


@pytest.mark.parametrize("limit", [60, 61, 63])
def test_every_sample_is_learned_with_draws_from_what_came_before(limit, small_trainer):
    trainer = small_trainer(*MER, f"trainer.max_steps_per_task={limit}")
    trainer.begin()
    trainer.begin_task()
    seen: list[int] = []
    groups = groups_of(trainer.steps, 2)
    for place, draws in enumerate(groups):
        for number, (new, *replayed) in enumerate(draws):
            assert new == draws[0][0]
            assert set(replayed) <= set(seen)
            whole = min(3, len(seen))
            is_cut = place == len(groups) - 1 and number == len(draws) - 1
            assert len(set(replayed)) == len(replayed) <= whole
            assert len(replayed) == whole or is_cut
        seen.append(draws[0][0])
    assert sum(len(draw) for draws in groups for draw in draws) == limit
    ends = torch.stack([torch.stack([s.columns["mer.ends_draw"], s.columns["mer.ends_sample"]]) for s in trainer.steps])
    assert ends.sum(0).tolist() == [sum(map(len, groups)), len(groups)]
    assert ends[-1].all()
    finish_task(trainer)
    memory = trainer.learner.strategies[0].memory
    assert memory.n_seen == len(seen)  # and none that the budget has cut off
    assert set(memory.ids.tolist()) - {-1} <= set(seen)


def test_the_whole_task_is_seen_once(small_trainer):
    trainer = small_trainer(*MER, "trainer.max_steps_per_task=null", "trainer.epochs=1", "strategy.draws=1")
    trainer.begin()
    trainer.begin_task()
    n = len(trainer.scenario.train.ids(0))
    assert sum(step.n_new for step in trainer.steps) == n
    assert len(trainer.steps) == n + sum(min(3, i) for i in range(n))


def test_with_nothing_taken_back_it_is_sgd_on_single_samples(small_trainer):
    trainer = small_trainer(*MER, "strategy.beta=1.0", "strategy.gamma=1.0", "trainer.momentum=0.9", checkpoint="mer")
    other = small_trainer(*MER, "trainer.momentum=0.9", checkpoint="other")
    other.learner.after_step = lambda step, batch: None
    for each in (trainer, other):
        each.fit_task()
    for mine, its in zip(trainer.parameters, other.parameters, strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-5, atol=1e-6)


def test_a_single_step_is_that_of_a_smaller_learning_rate(small_trainer):
    """β γ lr: what an implementation makes of the whole method that takes one step on the mean loss of a draw."""
    trainer = small_trainer(*MER, "strategy.draws=1", "trainer.max_steps_per_task=1", "trainer.momentum=0.0")
    trainer.begin()
    trainer.begin_task()
    before = trainer.learner.strategies[0].flat_parameters().detach().clone()
    trainer.advance()
    gradient = torch.cat([p.grad.reshape(-1) for p in trainer.parameters])
    change = trainer.learner.strategies[0].flat_parameters().detach() - before
    torch.testing.assert_close(change, -0.1 * 0.5 * 0.75 * gradient, rtol=1e-3, atol=1e-7)


def test_diagnostics_of_steps_without_a_new_sample(small_trainer):
    trainer = small_trainer(*MER, "evaluator.diagnostics_every=1", "trainer.max_steps_per_task=8")
    trainer.fit_task()
    table = trainer.diagnostics.table()
    assert set(table.quantity) >= {"gradient_norm/new", "gradient_norm/replay"}
    assert (table.quantity == "gradient_norm/stability").sum() == 8


def test_batch_norm_cannot_be_trained_on_single_samples(small_trainer_with_batch_norm):
    trainer = small_trainer_with_batch_norm("strategy=mer", "strategy.memory_size=40", "scenario.image_size=8")
    with pytest.raises(ConfigError, match="mer"):
        trainer.begin()
