"""A-GEM against its closed form."""

from collections import deque

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clbench.errors import ConfigError
from clbench.strategies import agem
from clbench.strategies.agem import project


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**20), p=st.integers(1, 50), scale=st.floats(1e-3, 1e3))
def test_closed_form(seed, p, scale):
    generator = torch.Generator().manual_seed(seed)
    g, r = (scale * torch.randn(p, generator=generator, dtype=torch.float64) for _ in range(2))
    projected = project(g, r)
    if g @ r >= 0:
        assert torch.equal(projected, g)
    else:
        torch.testing.assert_close(projected, g - (g @ r) / (r @ r) * r)
        assert abs(projected @ r) <= 1e-9 * g.norm() * r.norm()
        assert projected.norm() <= g.norm()


def test_zero_reference_constrains_nothing():
    g = torch.randn(5)
    assert torch.equal(project(g, torch.zeros(5)), g)


def test_projection_in_real_training(small_trainer, learn_tasks, monkeypatch):
    """The applied gradient never points against the reference; it is orthogonal to it where the raw one does."""
    trainer = small_trainer("strategy=agem", "strategy.memory_size=50", "strategy.reference_size=6", "trainer.lr=0.1",
                            "trainer.max_steps_per_task=8")  # fmt: skip
    seen = []

    def spy(gradient, reference):
        edited = project(gradient, reference)
        seen.append((gradient, reference, edited))
        return edited

    monkeypatch.setattr(agem, "project", spy)
    learn_tasks(trainer, 3)
    assert len(seen) == 16
    assert any(g @ r < 0 for g, r, _ in seen)
    for g, r, edited in seen:
        assert edited @ r >= -1e-5 * g.norm() * r.norm()
        if g @ r < 0:
            assert abs(edited @ r) <= 1e-5 * g.norm() * r.norm()
        else:
            assert torch.equal(edited, g)


def test_reference_samples_are_earlier_ones_drawn_anew(small_trainer, learn_tasks, task_of):
    trainer = small_trainer("strategy=agem", "strategy.memory_size=50", "strategy.reference_size=6")
    learn_tasks(trainer, 2)
    task = task_of(trainer, 2)
    plan = trainer.learner.plan(task)
    stored = set(trainer.learner.strategies[0].memory.ids[:2].flatten().tolist())
    assert len(stored) == 20
    for reference in plan.reference:
        assert len(set(reference.tolist())) == 6
        assert set(reference.tolist()) <= stored
    assert len({tuple(reference.tolist()) for reference in plan.reference}) == len(plan.reference)


def test_a_small_task_does_not_bound_the_share_of_the_others(small_trainer, learn_tasks, task_of):
    trainer = small_trainer("strategy=agem", "strategy.memory_size=600", "strategy.reference_size=1000",
                            "scenario.base=4", "scenario.increment=1", "scenario.tasks=3")  # fmt: skip
    learn_tasks(trainer, 2)
    [_, (start, stop), _] = trainer.scenario.train.bounds
    reference = trainer.learner.plan(task_of(trainer, 2)).reference[0]
    assert sorted(trainer.scenario.train.tasks[reference].tolist()) == [0] * 200 + [1] * (stop - start)
    assert "the memory keeps" in trainer.learner.notes()[0]


def test_memory_too_small_is_refused(small_setup):
    with pytest.raises(ConfigError, match=r"memory_size=9 is too small"):
        small_setup("strategy=agem", "strategy.memory_size=9")


RING = ["strategy=agem", "strategy.store=ring", "strategy.memory_size=50", "strategy.reference_size=6"]


def test_ring_buffers_hold_what_came_last(small_trainer, learn_tasks):
    """Of every class of the task, against buffers that are written step by step."""
    trainer = small_trainer(*RING, "trainer.max_steps_per_task=9", "trainer.batch_size=8")
    memory = trainer.learner.strategies[0].memory
    for index in range(3):
        trainer.task = index
        trainer.fit_task()
        buffers = {label: deque(maxlen=5) for label in (2 * index, 2 * index + 1)}
        for step in trainer._plan.new:
            for sample, label in zip(step.tolist(), trainer.scenario.train.labels_of(step).tolist(), strict=True):
                buffers[label].append(sample)
        assert set(memory.stored(index + 1)[index].tolist()) == {i for buffer in buffers.values() for i in buffer}
        assert len(memory.stored(index + 1)[index]) == 10


def test_rings_that_are_not_full_have_no_empty_slots(small_trainer, learn_tasks, task_of):
    """In the authors' code they hold zeros, which reference gradients are then taken of."""
    trainer = small_trainer(
        *RING,
        "strategy.memory_size=1000",
        "strategy.reference_size=500",
        "trainer.max_steps_per_task=2",
        "trainer.batch_size=8",
    )
    learn_tasks(trainer, 2)
    stored = trainer.learner.strategies[0].memory.stored(2)
    assert [len(ids) for ids in stored] == [16, 16]
    reference = trainer.learner.plan(task_of(trainer, 2)).reference[0]
    assert sorted(reference.tolist()) == sorted(torch.cat(stored).tolist())


def test_rings_go_on_with_what_a_class_brings_again(small_trainer, task_of):
    """A sample that comes twice takes one slot."""
    trainer = small_trainer(*RING, "trainer.max_steps_per_task=100", "trainer.batch_size=60")
    trainer.learner.begin_task(task := task_of(trainer, 0))
    plan = trainer.learner.plan(task)
    last = trainer.learner.strategies[0].memory.last_seen(task, plan.new)
    assert len(set(last.tolist())) == len(last) == 10
    tail = torch.cat(plan.new[-2:])
    assert set(last.tolist()) <= set(tail.tolist())


def test_rings_leave_out_samples_that_others_mix_in(small_trainer, learn_tasks, task_of):
    trainer = small_trainer(*RING, "strategy.plus=[joint]")
    learn_tasks(trainer, 2)
    stored = trainer.learner.strategies[0].memory.stored(2)
    assert all((trainer.scenario.train.tasks[ids] == task).all() for task, ids in enumerate(stored))


def test_rings_need_room_for_every_class_of_a_task(small_setup):
    with pytest.raises(ConfigError, match=r"memory_size=12 leaves a task of .* 1 samples, too few"):
        small_setup("strategy=agem", "strategy.store=ring", "strategy.memory_size=12", "scenario.base=4", "scenario.increment=1",
                    "scenario.tasks=7", "scenario.frozen=null")  # fmt: skip
