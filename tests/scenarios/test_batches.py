"""The batches of a task's budget."""

from collections import Counter
from dataclasses import replace

import pytest
import torch

from clbench.config import TrainerConfig
from clbench.scenarios.task import Task


def task(**budget) -> Task:
    return Task(0, 1, [0], TrainerConfig(**budget), seed=3, split=None, inputs=None)  # type: ignore[arg-type]


@pytest.mark.parametrize(("n", "per_epoch"), [(10, 2), (12, 3), (7, 1), (4, 1)])
def test_with_drop_last_every_batch_is_full(n, per_epoch):
    """The same order of the samples as without, and of every epoch the first full batches."""
    ids = torch.arange(n) + 100
    whole = task(epochs=3, batch_size=4).shuffled_batches(ids)
    kept = task(epochs=3, batch_size=4, drop_last=True).shuffled_batches(ids)
    assert [len(batch) for batch in kept] == [4] * (3 * per_epoch)
    expected = [batch for batch in whole if len(batch) == 4]
    assert len(kept) == len(expected)
    assert all(map(torch.equal, kept, expected))
    for epoch in range(3):
        seen = Counter(torch.cat(kept[epoch * per_epoch : (epoch + 1) * per_epoch]).tolist())
        assert set(seen.values()) == {1}


def test_as_many_steps_as_are_asked_for():
    kept = task(epochs=None, max_steps_per_task=7, batch_size=4, drop_last=True).shuffled_batches(torch.arange(10))
    assert [len(batch) for batch in kept] == [4] * 7


def test_an_epoch_that_is_no_full_batch_stays():
    kept = task(epochs=2, batch_size=4, drop_last=True).shuffled_batches(torch.arange(3))
    assert [sorted(batch.tolist()) for batch in kept] == [[0, 1, 2]] * 2


def test_what_is_left_over_is_dropped_rather_than_joined():
    one_left = replace(task(epochs=1, batch_size=4, drop_last=True), smallest_batch=2)
    assert [len(batch) for batch in one_left.shuffled_batches(torch.arange(9))] == [4, 4]
    joined = replace(task(epochs=1, batch_size=4), smallest_batch=2)
    assert [len(batch) for batch in joined.shuffled_batches(torch.arange(9))] == [4, 5]
