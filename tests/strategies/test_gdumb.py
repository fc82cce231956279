"""GDumb: what its memory holds, and that the network comes of the memory alone."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from clbench.learning.parts.memory import EMPTY, greedy_balanced_step
from clbench.testing.stepping import finish_task

GDUMB = [
    "strategy=gdumb",
    "strategy.memory_size=23",
    "trainer.epochs=20",
    "trainer.max_steps_per_task=null",
    "trainer.lr=0.1",
]


def memory_of(trainer) -> list[int]:
    ids = trainer.learner.strategies[0].memory
    return ids[ids != EMPTY].tolist()


def weights_of(trainer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.learner.model.state_dict().items()}


# ---- the sampler ------------------------------------------------------------------------------------------------------


def written_out(arriving, size, choose_group, choose_member):
    """The paper's algorithm, with a counter of its own."""
    stored, counts = [], Counter()
    for sample, group in arriving:
        if group not in counts or counts[group] < size / len(counts):
            if sum(counts.values()) >= size:
                most = max(counts.values())
                victim = choose_group([g for g in counts if counts[g] == most])
                members = [pair for pair in stored if pair[1] == victim]
                stored.remove(members[choose_member(len(members))])
                counts[victim] -= 1
            stored.append((sample, group))
            counts[group] += 1
    return stored


@given(groups=st.lists(st.integers(0, 4), max_size=60), size=st.integers(5, 20), seed=st.integers(0, 100))
def test_the_sampler_is_that_of_the_paper(groups, size, seed):
    arriving = list(enumerate(groups))
    memory: dict[int, list[int]] = {}
    greedy_balanced_step(memory, size, arriving, np.random.default_rng(seed))
    rng = np.random.default_rng(seed)
    expected = written_out(arriving, size, rng.choice, lambda n: rng.integers(n))
    assert sorted(expected) == sorted((sample, group) for group, ids in memory.items() for sample in ids)


@given(n_groups=st.integers(1, 6), size=st.integers(6, 20))
def test_groups_that_come_one_after_another_differ_by_one_at_most(n_groups, size):
    memory: dict[int, list[int]] = {}
    arriving = [(100 * group + i, group) for group in range(n_groups) for i in range(30)]
    greedy_balanced_step(memory, size, arriving, np.random.default_rng(0))
    counts = [len(ids) for ids in memory.values()]
    assert len(counts) == n_groups
    assert sum(counts) == size
    assert max(counts) - min(counts) <= 1


def test_whatever_of_the_largest_group_may_go():
    rng, gone = np.random.default_rng(0), np.zeros(10)
    for _ in range(3000):
        memory = {0: list(range(10))}
        greedy_balanced_step(memory, 10, [(99, 1)], rng)
        gone[list(set(range(10)) - set(memory[0]))] += 1
        assert memory[1] == [99]
    assert chisquare(gone).pvalue > 0.001


# ---- the learner ------------------------------------------------------------------------------------------------------


def test_it_is_trained_on_the_memory_alone(small_trainer):
    """Passes over what the memory holds after the task, as many of every class as its samples and the classes allow."""
    trainer = small_trainer(*GDUMB)
    split = trainer.scenario.train
    for task in range(3):
        before = set(memory_of(trainer))
        trainer.begin_task()
        trained_on = torch.cat([step.ids for step in trainer.steps])
        finish_task(trainer)
        memory = memory_of(trainer)
        assert Counter(trained_on.tolist()) == dict.fromkeys(memory, 20)
        assert set(memory) - set(split.ids(task).tolist()) <= before
        counts = np.bincount(split.labels_of(torch.tensor(memory)), minlength=10)
        assert counts.sum() == 23
        assert counts[: 2 * task + 2].max() - counts[: 2 * task + 2].min() <= 1


def test_every_task_begins_with_the_initial_weights(small_trainer_with_batch_norm):
    trainer = small_trainer_with_batch_norm("strategy=gdumb", "strategy.memory_size=23")
    initial = weights_of(trainer)
    trainer.begin()
    for task in range(3):
        trainer.begin_task()
        now = weights_of(trainer)
        assert now.pop("answer.current_task") == task
        assert all(torch.equal(tensor, initial[name]) for name, tensor in now.items())
        finish_task(trainer)
        assert not torch.equal(trainer.learner.model.head.weight, initial["head.weight"])


@pytest.fixture
def both(small_trainer):
    """Finished runs by ``when``, and of each the weights after every task."""
    runs = {}
    for when in ("every_task", "last_task"):
        trainer = small_trainer(
            *GDUMB, f"strategy.when={when}", "scenario.tasks=3", "scenario.frozen=null", checkpoint=when
        )
        states = [weights_of(trainer)]
        trainer.on_task_end = lambda task, t=trainer, s=states: s.append(weights_of(t))
        trainer.fit()
        runs[when] = trainer, states
    return runs


def test_what_was_learned_before_does_not_matter(both):
    """Trained after every task or after the last alone, the network is the same to the bit, and so is the memory."""
    (every, of_every), (last, of_last) = both["every_task"], both["last_task"]
    assert memory_of(every) == memory_of(last)
    assert all(torch.equal(tensor, of_last[3][name]) for name, tensor in of_every[3].items())


def test_there_is_an_accuracy_after_every_task(both):
    """In other code a network is trained after the last task alone, and what is measured before is one that knows nothing."""
    trainer, states = both["every_task"]
    at_ends = trainer.tasks[trainer.tasks.task_learning == trainer.tasks.task_eval]
    assert (at_ends.correct / at_ends.n).min() > 0.6
    assert not torch.equal(states[1]["head.weight"], states[0]["head.weight"])


def test_until_the_last_task_nothing_is_trained(both):
    trainer, states = both["last_task"]
    for state in states[1:3]:
        assert all(torch.equal(t, states[0][n]) for n, t in state.items() if n.startswith("backbone"))
    assert trainer.iteration == 20 * 3  # passes over 23 samples
    assert trainer.learner.trains_once
    assert "trained once, in the last task" in trainer.learner.notes()[0]


def test_domains_do_not_crowd_each_other_out(small_trainer, learn_tasks):
    """Of every class in every domain there is as much: by class alone, a full memory would refuse all later domains."""
    trainer = small_trainer(
        "strategy=gdumb", "strategy.memory_size=60", "scenario=permuted_mnist", "scenario.source=digits",
        "scenario.frozen=null", "scenario.n_tasks=3", "model.hidden=[16]", "trainer.epochs=1", "trainer.max_steps_per_task=null",
    )  # fmt: skip
    learn_tasks(trainer, 3)
    ids, split = torch.tensor(memory_of(trainer)), trainer.scenario.train
    counts = np.zeros((3, 10), int)
    np.add.at(counts, (split.tasks[ids], split.labels_of(ids)), 1)
    assert (counts == 2).all()
