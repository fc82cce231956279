"""Separate networks: each is the network of a run on its task alone."""

import pytest
import torch

from clbench.errors import ConfigError
from clbench.testing.stepping import finish_task

STREAM = ["scenario=split_digits_task", "scenario.tasks=3", "scenario.frozen=null", "trainer.momentum=0.9",
          "trainer.weight_decay=0.01", "trainer.lr=0.05"]  # fmt: skip
NETWORKS = [["model=mlp", "model.hidden=[16]"], ["model=slim_resnet18", "model.width=2"]]


def logits_of(trainer, task):
    split = trainer.scenario.test
    x = trainer.inputs.plain(split, split.ids(task)).x
    with torch.no_grad():
        return trainer.learner.eval().predict_task(x, task)


@pytest.fixture
def after_three_tasks(small_trainer):
    """A function: overrides → a trainer that has learned three tasks with separate networks."""

    def make(*overrides):
        trainer = small_trainer("strategy=separate", *STREAM, *overrides, checkpoint="stream")
        trainer.begin()
        for _ in range(3):
            trainer.fit_task()
        return trainer

    return make


@pytest.mark.parametrize("network", NETWORKS)
def test_each_is_the_network_of_a_run_on_its_task_alone(network, after_three_tasks, small_trainer):
    """Finetuning from the initial weights and statistics, with the task's own batches: equal to the bit."""
    trainer = after_three_tasks(*network)
    for task in range(3):
        alone = small_trainer("strategy=finetune", *STREAM, *network, checkpoint=f"alone{task}")
        alone.task = task
        initial = {name: tensor.clone() for name, tensor in alone.learner.model.named_parameters()}
        alone.begin_task()
        with torch.no_grad():  # all begin with the same rows of the head, where the model draws a later task's rows
            for name, parameter in alone.learner.model.named_parameters():
                parameter.copy_(initial[name])
        finish_task(alone)
        assert torch.equal(logits_of(trainer, task), logits_of(alone, task))
        assert torch.equal(trainer.learner.strategies[0].networks[task], alone.learner.strategies[0].flat_parameters())


@pytest.mark.parametrize("network", [NETWORKS[0], pytest.param(NETWORKS[1], marks=pytest.mark.slow)])
def test_a_network_does_not_depend_on_the_tasks_before_it(network, after_three_tasks, small_trainer):
    trainer = after_three_tasks(*network)
    only = small_trainer("strategy=separate", *STREAM, *network, checkpoint="only")
    only.begin()
    only.task = 2
    only.fit_task()
    assert torch.equal(trainer.learner.strategies[0].networks[2], only.learner.strategies[0].networks[2])
    assert torch.equal(logits_of(trainer, 2), logits_of(only, 2))


@pytest.mark.parametrize("network", NETWORKS)
def test_tasks_to_come_are_predicted_by_the_initial_network(network, small_trainer):
    """Before, while and after another task is learned."""
    trainer = small_trainer("strategy=separate", *STREAM, *network)
    trainer.begin()
    initial = logits_of(trainer, 2)
    own = initial[:, trainer.learner.model.answer.class_task == 2]
    assert own.isfinite().all()
    trainer.begin_task()
    finish_task(trainer)
    assert torch.equal(logits_of(trainer, 2), initial)
    trainer.begin_task()
    trainer.advance()
    learning = logits_of(trainer, 1)
    assert torch.equal(logits_of(trainer, 2), initial)
    trainer.train_mode()
    trainer.advance()
    assert not torch.equal(logits_of(trainer, 1), learning)  # while it is learned, its network is the model


def test_mixed_samples_each_get_their_tasks_network(after_three_tasks):
    trainer = after_three_tasks()
    split = trainer.scenario.test
    ids = torch.cat([split.ids(task)[:5] for task in (2, 0, 1)])
    samples = trainer.inputs.plain(split, ids)
    with torch.no_grad():
        mixed = trainer.learner.eval().predict(samples.x, samples.task)
    for task in range(3):
        torch.testing.assert_close(mixed[samples.task == task], logits_of(trainer, task)[:5])


def test_an_optimizer_that_remembers_another_network_is_refused(small_setup):
    with pytest.raises(ConfigError, match=r"trainer\.reset_optimizer=false.*separate"):
        small_setup("strategy=separate", *STREAM, "trainer.reset_optimizer=false")
    joint = ["strategy=joint", "strategy.from_scratch=true", "trainer.reset_optimizer=false"]
    with pytest.raises(ConfigError, match=r"trainer\.reset_optimizer=false.*joint"):
        small_setup(*joint)
    small_setup(*joint, "strategy.from_scratch=false")
