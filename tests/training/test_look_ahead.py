"""The optimizer's next update, asked for without taking it: alone and in a fleet."""

import pytest
import torch

from clbench.config import TrainerConfig
from clbench.training.optimizers import make_optimizer, next_update
from clbench.training.stacked_optimizer import StackedOptimizer

KINDS = {
    "sgd": {"optimizer": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.01},
    "sgd without momentum": {"optimizer": "sgd", "lr": 0.1, "momentum": 0.0},
    "adam": {"optimizer": "adam", "lr": 0.01, "weight_decay": 0.1},
    "adamw": {"optimizer": "adamw", "lr": 0.01, "weight_decay": 0.1},
    "adagrad": {"optimizer": "adagrad", "lr": 0.01, "weight_decay": 0.1},
}


def flat(tensors):
    return torch.cat([t.detach().flatten() for t in tensors])


def some_steps(config, seed, n=3):
    """Parameters and their optimizer after n steps along random gradients, and one more gradient (P,)."""
    generator = torch.Generator().manual_seed(seed)
    parameters = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((3, 2), (4,))]
    optimizer = make_optimizer(config, parameters)
    for _ in range(n):
        for p in parameters:
            p.grad = torch.randn(p.shape, generator=generator)
        optimizer.step()
    return parameters, optimizer, torch.randn(10, generator=generator)


@pytest.mark.parametrize("n", [0, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_step_that_is_taken_then(kind, n):
    config = TrainerConfig(**KINDS[kind])
    parameters, optimizer, gradient = some_steps(config, 0, n)
    before = flat(parameters).clone()
    update = next_update(optimizer, gradient)
    assert torch.equal(flat(parameters), before)
    again = next_update(optimizer, gradient)
    assert torch.equal(update, again)  # no state has moved
    parameters[0].grad, parameters[1].grad = gradient[:6].view(3, 2), gradient[6:]
    optimizer.step()
    assert torch.equal(update, flat(parameters) - before)
    assert update.any()


@pytest.mark.parametrize("rows", [None, [2, 0]])
@pytest.mark.parametrize("kind", KINDS)
def test_in_a_fleet(kind, rows):
    configs = [TrainerConfig(**{**KINDS[kind], "lr": lr}) for lr in (0.1, 0.02, 0.05)]
    members = [some_steps(config, seed) for seed, config in enumerate(configs)]
    rates = torch.tensor([[config.lr for config in configs]] * 5, dtype=torch.float64)
    stacked = StackedOptimizer(configs, rates, [m[0] for m in members], [m[1] for m in members])
    weights, gradients = torch.stack([flat(m[0]) for m in members]), torch.stack([m[2] for m in members])
    chosen = range(3) if rows is None else rows
    index = None if rows is None else torch.tensor(rows)
    arguments = (weights[list(chosen)].clone(), gradients[list(chosen)], 4, index)
    updates = stacked.next_update(*arguments)
    assert torch.equal(updates, stacked.next_update(*arguments))
    for row, member in enumerate(chosen):
        _, optimizer, gradient = members[member]
        torch.testing.assert_close(updates[row], next_update(optimizer, gradient), rtol=1e-4, atol=1e-6)
    moved = arguments[0].clone()
    stacked.step(moved, arguments[1], 4, index)
    torch.testing.assert_close(moved - arguments[0], updates)
