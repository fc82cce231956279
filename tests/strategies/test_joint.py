"""Incremental joint training."""

from collections import Counter

import pytest
import torch

JOINT = ["strategy=joint", "trainer.epochs=2", "trainer.max_steps_per_task=null", "trainer.batch_size=32"]


@pytest.mark.parametrize("batch_per_task", [True, False])
def test_every_epoch_covers_all_data_so_far_once(batch_per_task, small_setup, task_of):
    setup = small_setup(*JOINT, f"strategy.batch_per_task={batch_per_task}")
    task = task_of(setup, 2)
    plan = setup.learner.plan(task)
    batch_size = 96 if batch_per_task else 32
    union = torch.cat([setup.scenario.train.ids(t) for t in range(3)])
    assert len(plan.new) == 2 * -(-len(union) // batch_size)
    assert {len(ids) for ids in plan.new} == {batch_size, len(union) % batch_size}
    assert Counter(torch.cat(plan.new).tolist()) == dict.fromkeys(union.tolist(), 2)
    epoch = len(plan.new) // 2
    assert Counter(torch.cat(plan.new[:epoch]).tolist()) == dict.fromkeys(union.tolist(), 1)


def test_terms_are_the_shares_of_one_mean(small_trainer, learn_tasks, task_of, batch_of):
    trainer = small_trainer("strategy=joint")
    learn_tasks(trainer, 1)
    learner = trainer.learner
    learner.begin_task(task_of(trainer, 1))
    batch = batch_of(trainer, torch.cat([task_of(trainer, 1).ids[:3], task_of(trainer, 0).ids[:5]])[torch.randperm(8)])
    terms = learner.loss(batch)
    losses = learner.strategies[0].cross_entropy(learner.model(batch.samples.x), batch.samples)
    torch.testing.assert_close(terms["new"] + terms["earlier"], losses.mean())
    torch.testing.assert_close(terms["new"], losses[batch.samples.task == 1].sum() / 8)


def test_from_scratch_starts_every_task_from_the_initial_weights(small_trainer_with_batch_norm, learn_tasks, task_of):
    trainer = small_trainer_with_batch_norm("strategy=joint", "strategy.from_scratch=true")
    initial = {name: value.clone() for name, value in trainer.learner.model.state_dict().items()}
    learn_tasks(trainer, 2)
    assert not torch.equal(trainer.learner.model.backbone.bn1.running_mean, initial["backbone.bn1.running_mean"])
    trainer.learner.begin_task(task_of(trainer, 2))
    now = trainer.learner.model.state_dict()
    assert all(torch.equal(now[name], value) for name, value in initial.items() if name != "answer.current_task")
    assert now["answer.current_task"] == 2
