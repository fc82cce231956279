"""ER-ACE against its two losses written out, and what the mask is for."""

import math

import pytest
import torch

from clbench.errors import ConfigError
from clbench.testing.stepping import finish_task

ACE = ["strategy=er_ace", "strategy.memory_size=12", "trainer.lr=0.05"]
NEW, REPLAYED = torch.tensor([300, 301, 302]), torch.tensor([3, 4, 5, 6])


@pytest.fixture
def in_second_task(small_trainer):
    """A function: overrides → a trainer in the second task of split_digits, whose first two classes have been learned."""

    def make(*overrides: str):
        trainer = small_trainer(*ACE, *overrides)
        trainer.fit_task()
        trainer.begin_task()
        return trainer

    return make


def cross_entropy(logits, label: int, classes) -> float:
    """−log of the softmax over ``classes``."""
    return -float(logits[label]) + math.log(sum(math.exp(float(logits[c])) for c in classes))


@pytest.mark.parametrize(("present", "combine"), [("batch", "sum"), ("batch", "mean"), ("task", "sum")])
def test_the_losses_written_out(present, combine, in_second_task, batch_of):
    trainer = in_second_task(f"strategy.present={present}", f"strategy.combine={combine}")
    batch = batch_of(trainer, NEW, REPLAYED)
    labels = batch.samples.y.tolist()
    assert set(labels[:3]) <= {2, 3}
    assert set(labels[3:]) <= {0, 1}
    logits = trainer.learner.model(batch.samples.x).detach().double()
    mine = set(labels[:3]) if present == "batch" else {2, 3}
    half = 0.5 if combine == "mean" else 1
    new = half * sum(cross_entropy(logits[i], labels[i], mine) for i in range(3)) / 3
    replay = half * sum(cross_entropy(logits[i], labels[i], range(4)) for i in range(3, 7)) / 4
    terms = trainer.learner.loss(batch)
    assert terms["new"].item() == pytest.approx(new, rel=1e-5)
    assert terms["replay"].item() == pytest.approx(replay, rel=1e-5)


def test_new_samples_leave_the_rows_of_absent_classes_alone(in_second_task, batch_of):
    trainer = in_second_task()
    batch = batch_of(trainer, NEW, REPLAYED)
    head = trainer.learner.model.head.weight
    (gradient,) = torch.autograd.grad(trainer.learner.loss(batch)["new"], head)
    touched = gradient.abs().sum(1) > 0
    assert touched.nonzero().flatten().tolist() == sorted(set(batch.samples.y[:3].tolist()))
    (gradient,) = torch.autograd.grad(trainer.learner.loss(batch)["replay"], head)
    assert (gradient.abs().sum(1) > 0).nonzero().flatten().tolist() == [0, 1, 2, 3]


def test_without_a_memory_there_is_no_second_loss(small_trainer):
    trainer = small_trainer(*ACE)
    trainer.begin()
    trainer.begin_task()
    trainer.advance()
    assert set(trainer.training.term) == {"new"}
    finish_task(trainer)
    assert set(trainer.training.term) == {"new", "replay"}


def test_classes_of_a_task_are_not_known_where_tasks_are_not_told(small_setup):
    stream = ["scenario=blurry_digits", "trainer.reset_optimizer=false"]
    with pytest.raises(ConfigError, match=r"strategy\.present=batch"):
        small_setup(*ACE, *stream, "strategy.present=task")
    small_setup(*ACE, *stream)
