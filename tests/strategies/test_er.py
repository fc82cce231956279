"""Experience replay: what is replayed when, and how it is weighted."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clbench.errors import ConfigError
from clbench.learning.parts.memory import EMPTY

ER = ["strategy=er", "strategy.memory_size=40"]
RESERVOIR = [*ER, "strategy.selection=reservoir"]


def kept(trainer):
    memory = trainer.learner.strategies[0].memory
    return memory[memory != EMPTY]


@pytest.mark.parametrize("n_tasks", [1, 2, 3, 5])
def test_class_balanced_memory_is_refilled_with_equal_counts(n_tasks, small_trainer, learn_tasks):
    trainer = small_trainer(*ER, "strategy.memory_size=43")
    learn_tasks(trainer, n_tasks)
    ids = kept(trainer)
    assert len(set(ids.tolist())) == 43
    counts = np.bincount(trainer.scenario.train.labels_of(ids), minlength=10)
    assert counts[: 2 * n_tasks].min() >= 43 // (2 * n_tasks)
    assert counts[: 2 * n_tasks].max() <= 43 // (2 * n_tasks) + 1
    assert counts[2 * n_tasks :].sum() == 0


def test_later_refills_keep_a_part_of_what_was_kept(small_trainer, learn_tasks):
    """Only the current task's data can be read, so earlier classes shrink to a subset of the memory."""
    trainer = small_trainer(*ER)
    learn_tasks(trainer, 1)
    before = set(kept(trainer).tolist())
    trainer.task = 1
    trainer.fit_task()
    of_first_task = kept(trainer)[trainer.scenario.train.tasks[kept(trainer)] == 0]
    assert set(of_first_task.tolist()) < before


def test_domain_incremental_memory_is_balanced_over_domains_and_classes(small_trainer, learn_tasks):
    trainer = small_trainer(
        "strategy=er", "strategy.memory_size=60", "scenario=permuted_mnist", "scenario.source=digits",
        "scenario.frozen=null", "scenario.n_tasks=3", "model.hidden=[16]",
    )  # fmt: skip
    learn_tasks(trainer, 3)
    ids, split = kept(trainer), trainer.scenario.train
    counts = np.zeros((3, 10), int)
    np.add.at(counts, (split.tasks[ids], split.labels_of(ids)), 1)
    assert (counts == 2).all()


@pytest.mark.parametrize("overrides", [ER, [*RESERVOIR, "strategy.update=task"], [*RESERVOIR, "strategy.update=step"]])
def test_plan_is_the_same_when_made_twice(overrides, small_trainer, learn_tasks, task_of):
    """A run that resumes within a task makes its plan again."""
    trainer = small_trainer(*overrides)
    learn_tasks(trainer, 1)
    strategy, task = trainer.learner.strategies[0], task_of(trainer, 1)
    first = trainer.learner.plan(task)
    after_first = strategy._memory_after_task
    second = trainer.learner.plan(task)
    for ours, again in zip(first.replay, second.replay, strict=True):
        assert torch.equal(ours, again)
    assert (after_first[0] == strategy._memory_after_task[0]).all()
    assert after_first[1] == strategy._memory_after_task[1]


@pytest.mark.parametrize("overrides", [ER, [*RESERVOIR, "strategy.update=task"]])
def test_updated_by_task_only_earlier_tasks_are_replayed(overrides, small_trainer, learn_tasks, task_of):
    trainer = small_trainer(*overrides)
    assert all(len(ids) == 0 for ids in trainer.learner.plan(task_of(trainer, 0)).replay)
    learn_tasks(trainer, 2)
    stored = set(kept(trainer).tolist())
    for new, replayed in zip(*trainer.learner.plan(task_of(trainer, 2))[:2], strict=True):
        assert len(replayed) == len(set(replayed.tolist())) == len(new)
        assert set(replayed.tolist()) <= stored
        assert (trainer.scenario.train.tasks[replayed] < 2).all()


def test_replay_draws_classes_equally_often(small_trainer, learn_tasks, task_of):
    trainer = small_trainer(*ER, "strategy.replay_batch_size=10")
    learn_tasks(trainer, 2)
    for replayed in trainer.learner.plan(task_of(trainer, 2)).replay:
        counts = np.bincount(trainer.scenario.train.labels_of(replayed), minlength=4)
        assert sorted(counts) == [2, 2, 3, 3]


def test_reservoir_updated_by_step_holds_what_has_been_seen(small_trainer, task_of):
    """A step draws from what earlier steps brought, each sample offered once however many epochs there are."""
    trainer = small_trainer(
        *RESERVOIR, "strategy.update=step", "trainer.max_steps_per_task=100", "trainer.batch_size=30"
    )
    trainer.learner.begin_task(task := task_of(trainer, 0))
    plan = trainer.learner.plan(task)
    seen: set[int] = set()
    for new, replayed in zip(plan.new, plan.replay, strict=True):
        assert set(replayed.tolist()) <= seen
        assert len(replayed) == len(set(replayed.tolist())) == min(len(new), len(seen), 40)
        seen |= set(new.tolist())
    trainer.learner.end_task(task)
    assert int(trainer.learner.strategies[0].n_seen) == len(task.ids)
    assert set(kept(trainer).tolist()) <= set(task.ids.tolist())


def losses_of(trainer, batch):
    """Cross-entropy of every sample over the classes seen so far, by slicing."""
    logits = trainer.learner.model(batch.samples.x)[:, : 2 * int(trainer.learner.model.answer.current_task) + 2]
    return F.cross_entropy(logits, batch.samples.y, reduction="none")


@pytest.mark.parametrize(
    ("weighting", "weight"), [("fixed", 0.3), ("tasks", 1 / 3), ("samples", 5 / 12)]
)  # in the third task, with 5 new and 7 replayed samples
def test_weighting(weighting, weight, small_trainer, learn_tasks, task_of, batch_of):
    trainer = small_trainer(*ER, f"strategy.weighting={weighting}", "strategy.new_weight=0.3")
    learn_tasks(trainer, 2)
    trainer.learner.begin_task(task_of(trainer, 2))
    batch = batch_of(trainer, task_of(trainer, 2).ids[:5], task_of(trainer, 0).ids[:7])
    losses = losses_of(trainer, batch)
    terms = trainer.learner.loss(batch)
    assert set(terms) == {"new", "replay"}
    torch.testing.assert_close(terms["new"], weight * losses[:5].mean())
    torch.testing.assert_close(terms["replay"], (1 - weight) * losses[5:].mean())
    if weighting == "samples":
        torch.testing.assert_close(terms["new"] + terms["replay"], losses.mean())


@pytest.mark.parametrize(("weighting", "weight"), [("fixed", 0.3), ("tasks", 1), ("samples", 1)])
def test_weighting_while_nothing_is_replayed(weighting, weight, small_trainer, task_of, batch_of):
    trainer = small_trainer(*ER, f"strategy.weighting={weighting}", "strategy.new_weight=0.3")
    trainer.learner.begin_task(task_of(trainer, 0))
    batch = batch_of(trainer, task_of(trainer, 0).ids[:5])
    terms = trainer.learner.loss(batch)
    assert set(terms) == {"new"}
    torch.testing.assert_close(terms["new"], weight * losses_of(trainer, batch).mean())


def test_class_balanced_by_step_is_refused(small_setup):
    with pytest.raises(ConfigError, match=r"update=step is not defined for strategy\.selection=class_balanced"):
        small_setup(*ER, "strategy.update=step")
