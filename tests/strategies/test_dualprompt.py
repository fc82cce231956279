"""DualPrompt over tasks: whose prompts and keys move, and which are used. The prompts: tests/models/test_prompts.py."""

import pytest
import torch

from clbench.errors import ConfigError
from clbench.models.prompt_pools import TaskPrompts
from clbench.models.prompts import Prefix
from clbench.testing.small_runs import small_network, small_options

SMALL = [*small_options("dualprompt"), *small_network("dualprompt")]


def test_a_task_trains_its_own_prompt_and_key(small_trainer, learn_tasks):
    """Those of other tasks are bit-identical; the shared prompt and the task's own have moved."""
    trainer = small_trainer(*SMALL)
    general, expert = trainer.learner.model.backbone.prompts.values()
    assert isinstance(general, Prefix)
    assert isinstance(expert, TaskPrompts)
    assert len(expert.keys) == trainer.scenario.n_tasks
    learn_tasks(trainer, 1)
    before = [tensor.detach().clone() for tensor in (expert.vectors, expert.keys, general.vectors)]
    learn_tasks(trainer, 1)
    others = [0, *range(2, trainer.scenario.n_tasks)]
    for was, now in zip(before, (expert.vectors, expert.keys), strict=False):
        assert torch.equal(now[others], was[others])
        assert not torch.equal(now[1], was[1])
    assert not torch.equal(general.vectors, before[2])
    assert expert.task == 1


def test_the_penalty_is_of_the_tasks_key(small_setup, task_of, batch_of):
    setup = small_setup(*SMALL, "strategy.pull=0.3")
    learner = setup.learner
    learner.begin_task(task_of(setup, 0))
    learner.begin_task(task_of(setup, 1))
    batch = batch_of(setup, setup.scenario.train.ids(1)[:6])
    network = learner.model.backbone
    key = network.prompts["1"].keys[1]
    with torch.no_grad():
        queries = network.backbone.eval()(batch.samples.x)
        expected = 0.3 * torch.stack([1 - q @ key / (q.norm() * key.norm()) for q in queries]).mean()
    torch.testing.assert_close(learner.loss(batch)["dualprompt"], expected)


def test_predictions_do_not_depend_on_tasks_to_come(small_setup, task_of):
    """With the prompts of the tasks after the second overwritten, predictions are the same; with the second's, they are not."""
    setup = small_setup(*SMALL)
    learner = setup.learner
    for task in (0, 1):
        learner.begin_task(task_of(setup, task))
    learner.eval()
    x = setup.inputs.plain(setup.scenario.test, setup.scenario.test.ids(0)[:20]).x
    expert = learner.model.backbone.prompts["1"]
    with torch.no_grad():
        before = learner.predict(x, None)
        expert.keys[2:], expert.vectors[2:] = learner.model.backbone.query[0], 5.0
        assert torch.equal(learner.predict(x, None), before)
        expert.vectors[:2] = 5.0
        assert not torch.equal(learner.predict(x, None), before)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            ["strategy.expert_blocks=[0,1]"],
            r"general_blocks=\[0\] and strategy\.expert_blocks=\[0, 1\] both name block 0",
        ),
        (["strategy.expert_length=5"], r"strategy\.expert_length=5 has to be even"),
        (["strategy.general_length=3"], r"strategy\.general_length=3 has to be even"),
        (["strategy.expert_blocks=[]"], r"strategy\.expert_blocks=\[\] has to name at least one block"),
        (
            ["strategy.expert_blocks=[2]"],
            r"strategy dualprompt prompts block 2 of a network that has the blocks 0 to 1",
        ),
    ],
)
def test_refusals(wrong, message, small_setup):
    with pytest.raises(ConfigError, match=message):
        small_setup(*SMALL, *wrong)
