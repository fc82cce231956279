"""The Wasserstein regulariser against the optimal assignment of weights to initial weights."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from clbench.models.continual import ContinualModel
from clbench.strategies.wasserstein import Wasserstein, WassersteinConfig


def strategy_for(seed: int, reduction: str = "sum") -> Wasserstein:
    """The regulariser, λ = 0.3, of a network with 6, 2, 4 and 2 weights and biases."""
    torch.manual_seed(seed)
    backbone = nn.Sequential(nn.Linear(3, 2))
    backbone.n_features = 2
    config = WassersteinConfig(name="wasserstein", lam=0.3, reduction=reduction)
    return Wasserstein(config, ContinualModel(backbone, [[0], [1]], "class").double(), scenario=None).double()


def cheapest(weights: Tensor, initial: Tensor) -> Tensor:
    """min over permutations of ‖w − π(w⁰)‖²."""
    costs = (weights.flatten()[:, None] - initial.flatten()) ** 2
    rows, columns = linear_sum_assignment(costs.detach().numpy())
    return costs[rows, columns].sum()


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_value_and_gradient_are_those_of_the_cheapest_assignment(reduction):
    for seed in range(20):
        strategy = strategy_for(seed, reduction)
        parameters = list(strategy.model.parameters())
        initial = [p.detach().clone() for p in parameters]
        with torch.no_grad():
            for p in parameters:
                p.add_(torch.randn_like(p))
        costs = [cheapest(p, p0) / (p.numel() if reduction == "mean" else 1) for p, p0 in zip(parameters, initial,
                                                                                              strict=True)]  # fmt: skip
        expected, computed = 0.3 * sum(costs), strategy.penalty(None, None)
        torch.testing.assert_close(computed, expected)
        torch.testing.assert_close(torch.autograd.grad(computed, parameters), torch.autograd.grad(expected, parameters))


@given(st.integers(0, 2**31), st.data())
@settings(max_examples=30, deadline=None, derandomize=True)
def test_zero_for_any_permutation_within_tensors(seed, data):
    strategy = strategy_for(seed)
    with torch.no_grad():
        for p in strategy.model.parameters():
            order = data.draw(st.permutations(range(p.numel())))
            p.copy_(p.flatten()[order].view_as(p))
    assert strategy.penalty(None, None) == 0


def test_tensors_are_not_mixed():
    """Weights that have changed places between tensors are not those of the initial distributions."""
    strategy = strategy_for(0)
    layer, head = strategy.model.backbone[0], strategy.model.head
    with torch.no_grad():
        weight, bias = layer.bias.clone(), head.bias.clone()
        layer.bias.copy_(bias)
        head.bias.copy_(weight)
    torch.testing.assert_close(
        strategy.penalty(None, None), 0.3 * 2 * (weight.sort().values - bias.sort().values).square().sum()
    )
