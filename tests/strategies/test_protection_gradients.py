"""At a task's first step the protecting terms pull nowhere; afterwards they do. In the real training loop."""

import pytest
import torch

TERMS = {
    "lwf": ["strategy=lwf"],
    "ewc": ["strategy=ewc"],
    "l2": ["strategy=l2", "strategy.from_start=false"],
    "featkd": ["strategy=featkd", "strategy.from_start=false"],
}


@pytest.mark.parametrize("name", TERMS)
def test_exactly_zero_at_the_first_step_of_task_2_then_positive(
    name, setting, small_trainer, learn_tasks, record_terms
):
    trainer = small_trainer(*TERMS[name], *setting, "trainer.lr=0.1")
    rows = record_terms(trainer)
    learn_tasks(trainer, 2)
    norms = {(task, step): terms[name].norm().item() for task, step, terms in rows if name in terms}
    assert set(norms) == {(1, step) for step in range(4)}  # in the first task there is nothing to protect
    assert norms[1, 0] == 0
    assert all(norms[1, step] > 0 for step in (1, 2, 3))


@pytest.mark.parametrize("name", TERMS)
def test_zero_also_where_the_head_covers_all_classes_from_the_start(name, small_trainer, learn_tasks, record_terms):
    """Then no head weights may be drawn anew at a task switch: the penalty would pull them back."""
    trainer = small_trainer(
        *TERMS[name], "scenario.logit_scope=all", "strategy.where=all" if name == "l2" else "seed=0"
    )
    rows = record_terms(trainer)
    learn_tasks(trainer, 2)
    first = next(terms for task, step, terms in rows if (task, step) == (1, 0))
    assert first[name].norm() == 0


@pytest.mark.parametrize("name", TERMS)
def test_zero_in_every_later_task_for_a_single_anchor(name, small_trainer, learn_tasks, record_terms):
    mode = ["strategy.mode=online"] if name == "ewc" else []
    trainer = small_trainer(*TERMS[name], *mode, "trainer.lr=0.1")
    rows = record_terms(trainer)
    learn_tasks(trainer, 4)
    assert [terms[name].norm().item() for task, step, terms in rows if step == 0 and task > 0] == [0, 0, 0]


def test_separate_anchors_pull_at_the_third_task_already(small_trainer, learn_tasks, record_terms):
    """With one anchor per task, the weights after task 2 are off the anchor of task 1."""
    trainer = small_trainer("strategy=ewc", "trainer.lr=0.1")
    rows = record_terms(trainer)
    learn_tasks(trainer, 3)
    assert next(terms for task, step, terms in rows if (task, step) == (2, 0))["ewc"].norm() > 0


def test_replay_protects_from_the_first_step(small_trainer, learn_tasks, record_terms):
    trainer = small_trainer("strategy=er", "strategy.memory_size=40")
    rows = record_terms(trainer)
    learn_tasks(trainer, 2)
    assert all("replay" not in terms for task, _, terms in rows if task == 0)
    assert all(terms["replay"].norm() > 0 for task, _, terms in rows if task == 1)


def test_first_task_with_an_anchor_at_the_initial_weights(small_trainer, learn_tasks, record_terms):
    """strategy=l2 from_start=true (the authors' code) acts in the first task too, from its second step on."""
    trainer = small_trainer("strategy=l2", "trainer.lr=0.1")
    rows = record_terms(trainer)
    learn_tasks(trainer, 1)
    norms = [terms["l2"].norm() for _, _, terms in rows]
    assert norms[0] == 0
    assert torch.stack(norms[1:]).min() > 0
