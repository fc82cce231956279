"""Shrink and perturb against its formula."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from resets_by_hand import batch_of, begun, disturb, network
from scipy.stats import ks_2samp, kstest

from clbench.models.continual import ContinualModel
from clbench.strategies.shrink_perturb import ShrinkPerturb, ShrinkPerturbConfig


def strategy_for(model: ContinualModel, shrink=0.3, sigma=0.5, every="step", noise="initialiser") -> ShrinkPerturb:
    return ShrinkPerturb(ShrinkPerturbConfig("shrink_perturb", [], {}, shrink, sigma, every, noise), model, None)


def parameters_of(model: ContinualModel) -> dict[str, np.ndarray]:
    return {name: p.detach().numpy().copy() for name, p in model.named_parameters()}


def noise_of_a_step(strategy: ShrinkPerturb, step=1) -> dict[str, np.ndarray]:
    """ε by parameter, from a step's change: (θ' − (1 − p) θ) / σ."""
    model = strategy.model
    before = parameters_of(model)
    with torch.no_grad():
        strategy.after_step(step, batch_of())
    kept, sigma = 1 - float(strategy.shrink), float(strategy.sigma)
    return {name: (p - kept * before[name]) / sigma for name, p in parameters_of(model).items()}


@pytest.mark.parametrize("name", ["mlp_norm", "resnet"])
def test_noise_of_the_initialiser(name):
    """Every weight, bias, scale and shift gets an initial value of its own tensor."""
    model = network(name)
    initial = parameters_of(model)
    strategy = begun(strategy_for(model).double())
    disturb(model)
    for parameter, noise in noise_of_a_step(strategy).items():
        values = np.sort(initial[parameter].reshape(-1))
        above = np.searchsorted(values, noise.reshape(-1)).clip(1, len(values) - 1)
        distance = np.minimum(abs(values[above] - noise.reshape(-1)), abs(values[above - 1] - noise.reshape(-1)))
        assert distance.max() < 1e-13, parameter


def test_picks_are_independent_and_uniform():
    model = network("mlp")
    initial = parameters_of(model)["backbone.layers.1.weight"].reshape(-1)
    strategy = begun(strategy_for(model))
    first, second = (noise_of_a_step(strategy, step)["backbone.layers.1.weight"].reshape(-1) for step in (1, 2))
    assert ks_2samp(first, initial).pvalue > 0.01
    assert first.mean() == pytest.approx(initial.mean(), abs=4 * initial.std() / np.sqrt(len(initial)))
    assert first.std() == pytest.approx(initial.std(), rel=0.05)
    distinct = len(np.unique(first.round(12))) / len(initial)
    assert distinct == pytest.approx(1 - np.exp(-1), abs=0.04)  # of n picks out of n, with replacement
    for one, other in ((first, second), (first, initial), (first[1:], first[:-1])):
        assert abs(np.corrcoef(one, other)[0, 1]) < 0.12


def test_gaussian_noise():
    model = network("mlp")
    noise = noise_of_a_step(begun(strategy_for(model, noise="gaussian")))
    together = np.concatenate([part.reshape(-1) for part in noise.values()])
    assert kstest(together, "norm").pvalue > 0.01
    assert abs(np.corrcoef(together[1:], together[:-1])[0, 1]) < 0.1


@pytest.mark.parametrize("noise", ["initialiser", "gaussian"])
def test_draws_are_keyed_by_seed_task_and_step_and_leave_torchs_generator_alone(noise):
    torch.manual_seed(0)
    expected = torch.rand(3)

    def drawn(step=1, task=0, seed=3) -> np.ndarray:
        strategy = strategy_for(model, noise=noise)
        return noise_of_a_step(begun(strategy, task, seed), step)["backbone.layers.1.weight"]

    model = network("mlp")
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    draws = []
    torch.manual_seed(0)
    for arguments in ({}, {}, {"step": 2}, {"task": 1}, {"seed": 4}):
        model.load_state_dict(state)
        draws.append(drawn(**arguments))
    assert torch.equal(torch.rand(3), expected)
    np.testing.assert_allclose(draws[0], draws[1], rtol=0, atol=0)
    assert all((abs(draws[0] - other) > 1e-9).mean() > 0.9 for other in draws[2:])


def test_at_the_start_of_every_task_but_the_first():
    """Never after a step; the strategy's hook comes when the model has grown (Learner.begin_task)."""
    model = network("mlp")
    strategy = strategy_for(model, every="task").double()
    for task in range(3):
        before = parameters_of(model)
        strategy.begin_task(SimpleNamespace(seed=3, index=task))
        changed = [not np.array_equal(p, before[name]) for name, p in parameters_of(model).items()]
        assert all(changed) if task else not any(changed)
        before = parameters_of(model)
        strategy.after_step(1, batch_of())
        assert all(np.array_equal(p, before[name]) for name, p in parameters_of(model).items())


def test_all_of_the_old_network_can_be_taken_off():
    """p = 1 and σ = 1 is a new network."""
    model = network("mlp")
    initial = parameters_of(model)
    strategy = begun(strategy_for(model, shrink=1.0, sigma=1.0))
    disturb(model)
    with torch.no_grad():
        strategy.after_step(1, batch_of())
    assert all(np.isin(p, initial[name]).all() for name, p in parameters_of(model).items())


def test_frozen_weights_are_left_alone():
    model = network("mlp", frozen=1)
    before = parameters_of(model)
    noise_of_a_step(begun(strategy_for(model)))
    changed = {name: not np.array_equal(p, before[name]) for name, p in parameters_of(model).items()}
    assert changed == {name: not name.startswith("backbone.layers.1.") for name in before}


@pytest.mark.parametrize("noise", ["initialiser", "gaussian"])
def test_without_shrinking_and_noise_it_is_finetuning(noise, small_trainer):
    """Bit for bit: nothing that is drawn shifts what training draws."""
    nothing = ["strategy=shrink_perturb", "strategy.shrink=0", "strategy.sigma=0", f"strategy.noise={noise}"]
    states = []
    for options in (["strategy=finetune"], nothing):
        trainer = small_trainer(*options, "trainer.lr=0.05", checkpoint=options[0])
        trainer.fit()
        states.append(trainer.learner.model.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(states[0].values(), states[1].values(), strict=True))
