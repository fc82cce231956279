"""A method whose predictions depend on the batch they come in is refused, whatever accuracy it would have."""

import pytest
import torch

from clbench.errors import BatchDependence, Diverged
from clbench.evaluation.per_sample import IMAGES_PER_TASK, refuse_batch_dependence
from clbench.strategies.finetune import Finetune


def centred_over_the_batch(self, x, task):
    """As published code does that fits its min-max ranges to the test images it is given."""
    logits = self.model(x)
    return self.model.answer.restrict(logits - logits.mean(0), task, predicting=True)


def looks_at_the_first_image(self, x, task):
    return self.model.answer.restrict(self.model(x[:1].expand_as(x)), task, predicting=True)


@pytest.mark.parametrize("predict", [centred_over_the_batch, looks_at_the_first_image])
def test_statistics_of_the_batch_are_refused(predict, small_trainer, monkeypatch):
    monkeypatch.setattr(Finetune, "predict", predict)
    trainer = small_trainer("strategy=finetune")
    with pytest.raises(BatchDependence, match="finetune predicts otherwise for the same images"):
        trainer.fit()
    assert trainer.task == 0  # at once: the first task's results are not even recorded


def votes(self, x, of_batches):
    """Logits in which the most likely class of the whole batch wins everywhere."""
    logits = self.model(x)
    bonus = torch.zeros_like(logits).index_fill(1, logits.mean(0).argmax(), 10.0) * of_batches
    return self.model.answer.restrict(logits + bonus, None, predicting=True)


def test_a_vote_over_the_batch_is_refused(small_trainer, monkeypatch):
    monkeypatch.setattr(Finetune, "predict", lambda self, x, task: votes(self, x, len(x) > 1))
    with pytest.raises(BatchDependence, match="one at a time"):
        small_trainer("strategy=finetune").fit()


def test_what_only_batches_of_one_task_give_away_is_refused(small_trainer, monkeypatch):
    """Single images and batches of many tasks are judged by themselves: it shows as soon as there are two tasks."""
    monkeypatch.setattr(
        Finetune, "predict", lambda self, x, task: votes(self, x, self.tasks_seen > 1 and 1 < len(x) <= IMAGES_PER_TASK)
    )
    trainer = small_trainer("strategy=finetune")
    with pytest.raises(BatchDependence, match="task by task"):
        trainer.fit()
    assert trainer.task == 1


def test_it_disturbs_nothing(small_trainer):
    """The check neither draws a number nor moves a weight."""
    trainer = small_trainer("strategy=finetune", "scenario.tasks=1")
    trainer.fit()
    before = {name: tensor.clone() for name, tensor in trainer.learner.state_dict().items()}
    state = torch.get_rng_state()
    refuse_batch_dependence(trainer.evaluator, 0)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(tensor, before[name]) for name, tensor in trainer.learner.state_dict().items())


@pytest.mark.parametrize("lr", ["1e20", "1e38"])
def test_a_run_whose_weights_have_just_diverged_is_not_taken_for_one_that_leaks(lr, small_trainer):
    """The last step of a task may lead out of the numbers, whose loss is seen only at the next one."""
    trainer = small_trainer("strategy=finetune", f"trainer.lr={lr}", "trainer.max_steps_per_task=1")
    with pytest.raises(Diverged):
        trainer.fit()


def test_what_all_classes_have_in_common_does_not_count(small_trainer, monkeypatch):
    """A constant that differs between batches changes neither the prediction nor its probabilities."""
    monkeypatch.setattr(
        Finetune,
        "predict",
        lambda self, x, task: self.model.answer.restrict(self.model(x) + len(x), task, predicting=True),
    )
    small_trainer("strategy=finetune").fit()
