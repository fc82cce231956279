"""L2 Init against its formula, with the initial weights of heads that begin later."""

import pytest
import torch


def move(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Change all weights; what they were."""
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p))
    return before


@pytest.mark.parametrize(
    ("options", "renewed"),
    [
        (["scenario=split_digits"], [2, 3]),
        (["scenario=split_digits_task"], [2, 3]),
        (["scenario=split_digits", "scenario.logit_scope=all"], []),
        (["scenario=split_digits", "trainer.zero_head=true"], range(10)),
        (["scenario=permuted_mnist", "scenario.source=digits", "scenario.frozen=null", "scenario.n_tasks=2"], []),
    ],
)
def test_value_and_gradient(options, renewed, small_setup, task_of):
    """In the second task: the initial weights, but of head rows the values that they began the task with."""
    setup = small_setup("strategy=l2_init", "strategy.lam=0.3", *options)
    learner, model = setup.learner, setup.learner.model
    strategy = learner.strategies[0]
    learner.begin_task(task_of(setup, 0))
    assert strategy.penalty(None, None) == 0
    initial = move(model)
    learner.begin_task(task_of(setup, 1))
    at_start = move(model)
    for name in ("head.weight", "head.bias"):
        initial[name][list(renewed)] = at_start[name][list(renewed)]
    differences = {name: p - initial[name] for name, p in model.named_parameters()}
    term = strategy.penalty(None, None)
    torch.testing.assert_close(term, 0.3 * sum(d.square().sum() for d in differences.values()))
    gradients = torch.autograd.grad(term, list(model.parameters()))
    torch.testing.assert_close(gradients, tuple(2 * 0.3 * d.detach() for d in differences.values()))
