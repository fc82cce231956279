"""InfLoRA's directions against GPM and DualGPM written out on the inputs themselves, and what they protect in a network."""

import math

import numpy as np
import pytest
import torch

from clbench.models.lora import adapted_layers
from clbench.strategies.inflora import directions, protected
from clbench.testing.small_runs import small_network

INFLORA = ["strategy=inflora", "strategy.rank=2", "strategy.alpha=2", "strategy.targets=[k,v,proj]",
           *small_network("inflora"), "trainer.optimizer=adam", "trainer.lr=0.01", "evaluator.every=0"]  # fmt: skip


def streams(n_in=12, n_tasks=4):
    """Inputs (n, n_in) of some tasks, each of rank 3 and some noise."""
    rng = np.random.default_rng(0)
    return [
        rng.normal(size=(40, 3)) @ rng.normal(size=(3, n_in)) + 0.05 * rng.normal(size=(40, n_in))
        for _ in range(n_tasks)
    ]


def gpm(inputs, shares):
    """The published rule, on inputs and by their singular values: a basis of what is protected."""
    M = np.zeros((inputs[0].shape[1], 0))
    for X, share in zip(inputs, shares, strict=True):
        rest = X - X @ M @ M.T
        _, s, Vt = np.linalg.svd(rest, full_matrices=False)
        covered, n = (X**2).sum() - (rest**2).sum(), 0
        while covered < share * (X**2).sum():
            covered += s[n] ** 2
            n += 1
        M = np.concatenate([M, Vt[:n].T], axis=1)
        yield M


def dual_gpm(inputs, shares):
    """The authors' other half, from the first task on: a basis of what is free, out of which directions are taken."""
    F = np.eye(inputs[0].shape[1])
    for X, share in zip(inputs, shares, strict=True):
        _, s, Vt = np.linalg.svd(X @ F @ F.T, full_matrices=False)
        left, n = (s**2).sum(), 0
        while left > (1 - share) * (X**2).sum():
            left -= s[n] ** 2
            n += 1
        U, s, _ = np.linalg.svd(F - Vt[:n].T @ Vt[:n] @ F)
        F = U[:, : F.shape[1] - n]
        yield F


SHARES = [0.9 + 0.1 * task / 4 for task in range(4)]


def test_what_is_protected_is_gpms_and_what_is_free_dual_gpms():
    inputs, free = streams(), torch.eye(12, dtype=torch.float64)
    numbers = []
    for X, M, F in zip(inputs, gpm(inputs, SHARES), dual_gpm(inputs, SHARES), strict=True):
        G = torch.from_numpy(X.T @ X / len(X))
        free = protected(G, free, SHARES[len(numbers)], "eigen")
        numbers.append(M.shape[1])
        torch.testing.assert_close(free, torch.from_numpy(np.eye(12) - M @ M.T), rtol=0, atol=1e-10)
        torch.testing.assert_close(free, torch.from_numpy(F @ F.T), rtol=0, atol=1e-10)
    assert numbers[0] < 6 < numbers[-1] < 12  # in the course of which DualGPM would change from one basis to the other


@pytest.mark.parametrize(("energy", "n"), [("eigen", 4), ("eigen_squared", 2)])
def test_squared_eigenvalues_keep_fewer_directions(energy, n):
    """Of 8 as 4 + 2 + 1 + 1 nine tenths are all four; of 22 as 16 + 4 + 1 + 1 they are two."""
    G = torch.diag(torch.tensor([1.0, 4.0, 1.0, 2.0], dtype=torch.float64))
    free = protected(G, torch.eye(4, dtype=torch.float64), 0.9, energy)
    assert 4 - free.trace() == pytest.approx(n)
    assert (free[1, 1], free[3, 3]) == (0, 0)


@pytest.mark.parametrize("energy", ["eigen", "eigen_squared"])
def test_directions_are_free_whatever_the_inputs_are(energy):
    """Also where the task has less of them than its adapter has rows: none is made up."""
    inputs, free = streams(), torch.eye(12, dtype=torch.float64)
    for X, share in zip(inputs, SHARES, strict=True):
        G = torch.from_numpy(X.T @ X)
        U, energies = directions(G, free, energy)
        assert U.shape[1] == round(free.trace().item()) == len(energies)
        torch.testing.assert_close(U.T @ U, torch.eye(U.shape[1], dtype=torch.float64))
        torch.testing.assert_close(free @ U, U)
        if energy == "eigen_squared":  # the code's: the left singular vectors of P G, and its singular values
            left, s, _ = np.linalg.svd((free @ G).numpy())
            np.testing.assert_allclose(energies[:3], s[:3] ** 2)
            np.testing.assert_allclose(np.abs(left[:, :3].T @ U[:, :3].numpy()), np.eye(3), atol=1e-7)
        free = protected(G, free, share, energy)


def inputs_of(trainer, task) -> dict[str, torch.Tensor]:
    """Everything that the adapted layers are given for the task's training images, (n, n_in)."""
    found, layers = {}, adapted_layers(trainer.learner.model.backbone)
    hooks = [
        layer.register_forward_pre_hook(lambda _, x, name=name: found.update({name: x[0].flatten(0, -2).double()}))
        for name, layer in layers.items()
    ]
    split = trainer.scenario.train
    with torch.no_grad():
        trainer.learner.model.eval()(trainer.inputs.plain(split, split.ids(task)).x)
    for hook in hooks:
        hook.remove()
    return found


def test_first_rows_are_the_leading_directions_of_the_layers_own_inputs(small_trainer):
    trainer = small_trainer(*INFLORA)
    before = inputs_of(trainer, 0)
    trained = trainer.learner.trainable().keys()  # the optimizer is made of these before the first task begins
    assert not any(name.endswith(".A") for name in trained)
    trainer.begin_task()
    assert trainer.learner.trainable().keys() == trained
    for name, layer in adapted_layers(trainer.learner.model.backbone).items():
        _, _, Vt = np.linalg.svd(before[name].numpy(), full_matrices=False)
        for adapter in layer.adapters.values():  # keys and values have one input
            torch.testing.assert_close(adapter.A @ adapter.A.T, torch.eye(2) / 3)
            cosines = np.abs(Vt[:2] @ adapter.A.double().numpy().T) * math.sqrt(3)
            np.testing.assert_allclose(cosines, np.eye(2), atol=1e-3)


def test_later_updates_do_nothing_to_protected_inputs(small_trainer, learn_tasks):
    trainer = small_trainer(*INFLORA, "strategy.retained=0.9", "strategy.energy=eigen")
    learn_tasks(trainer, 1)
    strategy = trainer.learner.strategies[0]
    inputs = inputs_of(trainer, 0)
    free, weights = {}, {}
    for name, layer in adapted_layers(trainer.learner.model.backbone).items():
        free[name] = strategy.get_buffer("free_" + name.replace(".", "_")).clone()
        X = inputs[name]
        assert (X @ free[name]).square().sum() <= 0.1 * X.square().sum() * (1 + 1e-6)
        weights[name] = layer.base.weight.clone()
    learn_tasks(trainer, 2)
    for name, layer in adapted_layers(trainer.learner.model.backbone).items():
        change = (layer.base.weight - weights[name]).double()
        held = torch.eye(len(free[name])) - free[name]
        assert change.abs().max() > 0.01
        assert (change @ held).abs().max() < 1e-6
        rows = trainer.method[(trainer.method.quantity == "free_share") & (trainer.method.part == name)].value.tolist()
        assert rows[0] == pytest.approx(free[name].trace().item() / len(free[name]))
        assert rows == sorted(rows, reverse=True)


def test_share_grows_by_equal_steps_towards_one(small_trainer, learn_tasks, monkeypatch):
    shares = []
    monkeypatch.setattr(
        "clbench.strategies.inflora.protected", lambda G, free, share, energy: shares.append(share) or free
    )
    trainer = small_trainer(*INFLORA, "strategy.retained=0.9", "strategy.targets=[k]")
    learn_tasks(trainer, 3)
    assert shares[::2] == shares[1::2] == pytest.approx([0.9, 0.92, 0.94])  # of two layers, and five tasks


def test_where_all_directions_are_taken_the_head_alone_learns(small_trainer, learn_tasks):
    trainer = small_trainer(*INFLORA, "strategy.retained=1.0", "strategy.targets=[proj]")
    learn_tasks(trainer, 1)
    weights = [layer.base.weight.clone() for layer in adapted_layers(trainer.learner.model.backbone).values()]
    learn_tasks(trainer, 1)
    layers = adapted_layers(trainer.learner.model.backbone).values()
    assert all(not adapter.A.any() for layer in layers for adapter in layer.adapters.values())
    assert all(torch.equal(layer.base.weight, before) for layer, before in zip(layers, weights, strict=True))
