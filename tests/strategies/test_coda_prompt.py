"""CODA-Prompt over tasks: which components move. The components themselves: tests/models/test_prompts.py."""

import pytest
import torch

from clbench.errors import ConfigError
from clbench.testing.small_runs import small_network, small_options

SMALL = [*small_options("coda_prompt"), *small_network("coda_prompt"), "strategy.pool=10"]


def copies(prompt) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in prompt.named_parameters()}


def test_a_task_trains_its_own_components(small_trainer, learn_tasks):
    """Two for each of five tasks. Those of the task before are bit-identical, those to come still zero; also with μ > 0."""
    trainer = small_trainer(*SMALL, "strategy.mu=0.1")
    assert trainer.scenario.n_tasks == 5
    prompts = trainer.learner.model.backbone.prompts.values()
    learn_tasks(trainer, 1)
    before = [copies(prompt) for prompt in prompts]
    trainer.begin_task()
    drawn = [copies(prompt) for prompt in prompts]
    learn_tasks(trainer, 1)
    for prompt, was, new in zip(prompts, before, drawn, strict=True):
        for name, now in prompt.named_parameters():
            assert torch.equal(now[:2], was[name][:2])
            assert not torch.equal(now[2:4], new[name][2:4])
            assert now[4:].eq(0).all()


def test_the_draws_are_of_the_seed_the_block_and_the_task(small_setup, task_of):
    drawn = {}
    for seed in (0, 0, 1):
        setup = small_setup(*SMALL, f"seed={seed}")
        setup.learner.begin_task(task_of(setup, 0))
        first, second = setup.learner.model.backbone.prompts.values()
        assert not torch.equal(first.keys, second.keys)
        assert torch.equal(drawn.setdefault(seed, first.keys), first.keys)
    assert not torch.equal(drawn[0], drawn[1])


def test_the_penalty_is_a_sum_over_blocks(small_setup, task_of):
    setup = small_setup(*SMALL, "strategy.mu=0.3")
    setup.learner.begin_task(task_of(setup, 0))
    strategy = setup.learner.strategies[0]
    with torch.no_grad():
        for prompt in strategy.network.prompts.values():
            for tensor in prompt.parameters():
                tensor[:2] += torch.linspace(0, 1, tensor[:2].numel()).view_as(tensor[:2])
    first, second = strategy.network.prompts.values()
    expected = 0.3 * (first.orthogonality_loss() + second.orthogonality_loss())
    assert expected > 1
    torch.testing.assert_close(strategy.penalty(None, None), expected)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["strategy.pool=4"], r"strategy\.pool=4 has to be at least 5, a component for every task of split_digits"),
        (["strategy.length=3"], r"strategy\.length=3 has to be even"),
        (["strategy.blocks=[0,2]"], r"strategy coda_prompt prompts block 2 of a network that has the blocks 0 to 1"),
    ],
)
def test_refusals(wrong, message, small_setup):
    with pytest.raises(ConfigError, match=message):
        small_setup(*SMALL, *wrong)
