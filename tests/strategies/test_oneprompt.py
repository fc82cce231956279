"""OnePrompt, and what all prompt methods have in common: a frozen network, a head that keeps its rows, refusals."""

import pytest
import torch

from clbench.errors import ConfigError
from clbench.testing.small_runs import small_network, small_options

SMALL = [*small_options("oneprompt"), *small_network("oneprompt")]
METHODS = ["oneprompt", "l2p", "dualprompt", "coda_prompt"]


def options(name: str) -> list[str]:
    return [*small_options(name), *small_network(name)]


def state_of(trainer) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in trainer.learner.model.named_parameters()}


def test_the_loss_is_that_of_the_tasks_own_classes(small_setup, task_of, batch_of):
    """No second term; and among the logits, those of other tasks do not count."""
    setup = small_setup(*SMALL)
    learner = setup.learner
    for task in (0, 1):
        learner.begin_task(task_of(setup, task))
    batch = batch_of(setup, setup.scenario.train.ids(1)[:6])
    terms = learner.loss(batch)
    logits = learner.model(batch.samples.x)[:, 2:4]
    expected = -logits.log_softmax(1)[torch.arange(6), batch.samples.y - 2].mean()
    assert list(terms) == ["new"]
    torch.testing.assert_close(terms["new"], expected)


@pytest.mark.parametrize("name", METHODS)
def test_what_a_task_changes(name, small_trainer, learn_tasks):
    """With Adam anew in every task: prompts and the rows of the task's classes; other rows and the network stay bit for bit."""
    trainer = small_trainer(*options(name))
    learn_tasks(trainer, 1)
    before = state_of(trainer)
    learn_tasks(trainer, 1)
    after = state_of(trainer)
    for part in ("head.weight", "head.bias"):
        assert torch.equal(after[part][:2], before[part][:2])
        assert torch.equal(after[part][4:], before[part][4:])
        assert (after[part][2:4] != before[part][2:4]).all()
    for key in before:
        if key.startswith("backbone.backbone."):
            assert torch.equal(after[key], before[key])
        elif key.startswith("backbone.prompts."):
            assert not torch.equal(after[key], before[key]), key


@pytest.mark.parametrize("spoilt", [["trainer.weight_decay=0.01"], ["trainer.reset_optimizer=false"]])
def test_what_the_frozen_rows_of_the_head_depend_on(spoilt, small_trainer, learn_tasks):
    """With weight decay, or Adam's moments of the task before, the rows of earlier classes move."""
    trainer = small_trainer(*SMALL, *spoilt)
    learn_tasks(trainer, 1)
    before = state_of(trainer)["head.weight"]
    learn_tasks(trainer, 1)
    assert not torch.equal(state_of(trainer)["head.weight"][:2], before[:2])


def test_reports_its_number_of_parameters(small_setup):
    strategy = small_setup(*SMALL).learner.strategies[0]
    assert [(m.quantity, m.value) for m in strategy.measurements()] == [("prompt_parameters", (2 + 4) * 8)]


@pytest.mark.parametrize("name", METHODS)
def test_needs_a_vision_transformer(name, small_setup):
    with pytest.raises(
        ConfigError, match=f"strategy {name} acts within a vision transformer, which this network is not"
    ):
        small_setup(*small_options(name), "model=mlp", "model.hidden=[16]")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["strategy.blocks=[0,2]"], r"strategy oneprompt prompts block 2 of a network that has the blocks 0 to 1"),
        (
            ["strategy.blocks=[0]"],
            r"strategy\.lengths=\[2, 4\] has to hold a length for each of strategy\.blocks=\[0\]",
        ),
        (["strategy.lengths=[2,3]"], r"strategy\.lengths=\[2, 3\] has to hold even numbers"),
        (
            ["model.frozen=2"],
            r"model\.frozen=2 has no meaning with strategy=oneprompt, which freezes the network .* leave it at 0",
        ),
        (["strategy.plus=[l2p]"], r"oneprompt and l2p cannot be combined: each of them freezes the network"),
    ],
)
def test_refusals(wrong, message, small_setup):
    with pytest.raises(ConfigError, match=message):
        small_setup(*SMALL, *wrong)


def test_ewc_protects_prompts_and_head(small_trainer, learn_tasks):
    """strategy=oneprompt strategy.plus=[ewc]: the Fisher information of all that is trained, and a penalty from task 2 on."""
    trainer = small_trainer(*SMALL, "strategy.plus=[ewc]")
    learn_tasks(trainer, 2)
    assert set(trainer.learner.model.trained()) == {
        "backbone.prompts.0.vectors",
        "backbone.prompts.1.vectors",
        "head.weight",
        "head.bias",
    }
    assert trainer.learner.strategies[1].flat_parameters().numel() == 48 + 90
    penalty = trainer.training[trainer.training.term == "ewc"].set_index("iteration").loss
    assert list(penalty.index) == [5, 6, 7, 8]
    assert penalty[5] == 0
    assert penalty[8] > 0
