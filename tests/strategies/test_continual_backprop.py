"""Continual backpropagation against its rule, unit by unit."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from resets_by_hand import (
    SHAPE,
    activations_of,
    assert_state,
    batch_of,
    begun,
    disturb,
    flat,
    layers_of,
    network,
    nothing_renewed,
    outgoing_columns,
    reset_by_hand,
    state_of,
)
from scipy.stats import kstest
from torch import nn

from clbench.errors import ConfigError
from clbench.models.continual import ContinualModel
from clbench.models.mlp import MLP, MLPConfig
from clbench.strategies.continual_backprop import ContinualBackprop, ContinualBackpropConfig


def strategy_for(model: ContinualModel, rate=0.1, maturity=2, utility="contribution") -> ContinualBackprop:
    config = ContinualBackpropConfig("continual_backprop", [], {}, rate, maturity, utility)
    return begun(ContinualBackprop(config, model, None))


class ByHand:
    """The rule for one layer, with a loop over its units."""

    def __init__(self, model: ContinualModel, layer, rate: float, maturity: int, utility: str) -> None:
        self.model, self.layer, self.rate, self.maturity, self.kind = model, layer, rate, maturity, utility
        self.n = len(model.get_submodule(layer.incoming).weight)
        self.age, self.mean, self.utility, self.owed = [0] * self.n, [0.0] * self.n, [0.0] * self.n, 0.0

    def corrected(self, averages: list[float], unit: int) -> float:
        return averages[unit] / (1 - 0.99 ** self.age[unit])

    def chosen(self, h: np.ndarray, state: dict[str, np.ndarray]) -> list[int]:
        """Take in activations (B, U, …); the units to replace."""
        behind_flattening = h.ndim == 4 and isinstance(self.model.get_submodule(self.layer.outgoing), nn.Linear)
        for unit in range(self.n):
            self.age[unit] += 1
            of_unit = h[:, unit].reshape(len(h), -1)
            self.mean[unit] = 0.99 * self.mean[unit] + 0.01 * of_unit.mean()
            centre = self.corrected(self.mean, unit) if self.kind == "adaptable_contribution" else 0
            outgoing = outgoing_columns(state, self.layer, unit, self.n)
            if behind_flattening:
                pixels = range(outgoing.shape[1])
                use = np.mean([np.abs(of_unit[:, p] - centre).mean() * np.abs(outgoing[:, p]).mean() for p in pixels])
            else:
                use = np.abs(of_unit - centre).mean() * np.abs(outgoing).mean()
            if self.kind == "adaptable_contribution":
                use /= np.abs(state[f"{self.layer.incoming}.weight"][unit]).mean()
            self.utility[unit] = 0.99 * self.utility[unit] + 0.01 * use
        eligible = [unit for unit in range(self.n) if self.age[unit] > self.maturity]
        self.owed += self.rate * len(eligible)
        n = math.floor(self.owed)
        self.owed -= n
        return sorted(eligible, key=lambda unit: self.corrected(self.utility, unit))[:n]

    def correct_bias(self, unit: int, state: dict[str, np.ndarray]) -> None:
        bias = state.get(f"{self.layer.outgoing}.bias")
        if bias is not None:
            bias += outgoing_columns(state, self.layer, unit, self.n).sum(1) * self.corrected(self.mean, unit)

    def forget(self, unit: int) -> None:
        self.age[unit], self.mean[unit], self.utility[unit] = 0, 0.0, 0.0


@pytest.mark.parametrize("utility", ["contribution", "adaptable_contribution"])
@pytest.mark.parametrize("name", ["mlp", "mlp_norm", "cnn", "resnet"])
def test_steps_equal_the_rule_written_out(name, utility):
    """Which units are replaced and when, and all weights, biases, statistics and running means after each of ten steps."""
    model = network(name)
    rate = float(torch.tensor(0.1))  # as the buffer holds it
    strategy = strategy_for(model, utility=utility)
    by_hand = [ByHand(model, layer, rate, 2, utility) for layer in layers_of(model)]
    n_replaced = [0] * len(by_hand)
    for step in range(1, 11):
        disturb(model)
        batch = batch_of(seed=step)
        activations, expected, renewed = activations_of(model, batch), state_of(model), nothing_renewed(model)
        with torch.no_grad():
            mask = strategy.after_step(step, batch)
        after = state_of(model)
        chosen = [rule.chosen(activations[rule.layer.name], expected) for rule in by_hand]
        for index, (rule, units) in enumerate(zip(by_hand, chosen, strict=True)):  # layer by layer, as the authors do
            for unit in units:
                rule.correct_bias(unit, expected)
                row = after[f"{rule.layer.incoming}.weight"][unit]
                reset_by_hand(expected, renewed, rule.layer, unit, row, 0.0)
                rule.forget(unit)
            n_replaced[index] += len(units)
        assert_state(model, expected)
        np.testing.assert_array_equal(mask.numpy(), flat(renewed))
        np.testing.assert_array_equal(strategy.age.numpy(), np.concatenate([rule.age for rule in by_hand]))
        for name_of_state in ("mean", "utility"):
            by_rule = np.concatenate([getattr(rule, name_of_state) for rule in by_hand])
            np.testing.assert_allclose(getattr(strategy, name_of_state).numpy(), by_rule, rtol=1e-9, atol=1e-15)
    assert all(n_replaced)
    assert strategy.n_reset.tolist() == n_replaced


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_units_that_always_compute_the_same_are_replaced_without_changing_outputs(name):
    """What they contributed is in the bias of the next layer. A constant image, so that all pixels of a channel are equal too."""
    model, batch = network(name), batch_of(1)
    batch.samples.x.fill_(0.7)
    before = model(batch.samples.x)
    strategy = strategy_for(model)
    for step in range(1, 15):
        with torch.no_grad():
            strategy.after_step(step, batch)
        torch.testing.assert_close(model(batch.samples.x), before, rtol=0, atol=1e-10)
    assert (strategy.n_reset >= 4).all()


def test_a_unit_is_safe_until_it_is_mature_and_again_after_its_replacement():
    model = network("mlp")
    strategy, replaced_at = strategy_for(model, maturity=5), {}
    for step in range(1, 40):
        before = strategy.age.clone()
        with torch.no_grad():
            strategy.after_step(step, batch_of(seed=step))
        for unit in ((strategy.age == 0) & (before > 0)).nonzero()[:, 0].tolist():
            replaced_at.setdefault(unit, [0]).append(step)
    gaps = [b - a for steps in replaced_at.values() for a, b in pairwise(steps)]
    assert min(gaps) == 6
    assert len(gaps) > 10


def test_how_many_are_replaced():
    """In all ρ times the eligible units of all steps, rounded down."""
    model = network("mlp")
    strategy, eligible = strategy_for(model, rate=0.03, maturity=4), np.zeros(2)
    for step in range(1, 60):
        eligible += [(strategy.age[part] + 1 > 4).sum().item() for part in strategy._parts]
        with torch.no_grad():
            strategy.after_step(step, batch_of(seed=step))
        np.testing.assert_array_equal(strategy.n_reset.numpy(), np.floor(float(strategy.replacement_rate) * eligible))


@pytest.mark.parametrize("norm", [False, True])
def test_weights_are_drawn_from_kaimings_distribution(norm):
    """Of variance 2 / fan_in: uniform, and normal in layers with BatchNorm. In a new draw for every step, layer and seed."""
    model = (
        network("resnet")
        if norm
        else ContinualModel(MLP(MLPConfig("mlp", "mlp", hidden=[400, 300]), SHAPE), [[0]], "domain")
    )
    strategy = strategy_for(model.double())
    layer = strategy.layers[-1 if norm else 0]
    fan_in = model.get_submodule(layer.incoming).weight[0].numel()
    with torch.no_grad():
        first = strategy._drawn(1, layer)
        assert torch.equal(first, strategy._drawn(1, layer))
        others = [strategy._drawn(2, layer), begun(strategy, seed=4)._drawn(1, layer)]
    assert first.shape == (1 + len(model.get_submodule(layer.incoming).weight) // 10, fan_in)
    bound, std = math.sqrt(6 / fan_in), math.sqrt(2 / fan_in)
    distribution = ("norm", (0, std)) if norm else ("uniform", (-bound, 2 * bound))
    assert kstest(first.flatten().numpy(), distribution[0], args=distribution[1]).pvalue > 0.01
    for other in others:
        assert abs(np.corrcoef(first.flatten(), other.flatten())[0, 1]) < 0.1
    assert len({tuple(row.tolist()) for row in first}) == len(first)


def test_as_many_rows_are_drawn_as_may_be_replaced_at_once():
    """At the largest rate, units of one step get different weights."""
    model = ContinualModel(MLP(MLPConfig("mlp", "mlp", hidden=[50]), SHAPE), [[0, 1]], "domain").double()
    strategy = strategy_for(model, maturity=0)
    with torch.no_grad():
        strategy.owed.fill_(1 - 1e-6)
        strategy.after_step(1, batch_of())
    replaced = strategy.age == 0
    assert int(replaced.sum()) == 5 == int(strategy.n_reset)
    rows = model.backbone.layers[1].weight[replaced]
    assert len({tuple(row.tolist()) for row in rows}) == 5


def test_larger_rates_are_refused(small_setup):
    with pytest.raises(ConfigError, match=r"strategy\.replacement_rate=0\.2 is out of range"):
        small_setup("strategy=continual_backprop", "strategy.replacement_rate=0.2")
