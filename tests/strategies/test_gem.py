"""GEM's projection against solvers that share nothing with it."""

import itertools
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import nnls

from clbench.errors import ConfigError
from clbench.scenarios.scenario import Samples
from clbench.strategies import gem
from clbench.strategies.gem import nonnegative_minimum, project

RIDGE = 1e-3


@st.composite
def problems(draw, largest_k=20, smallest_k=1):
    """A gradient (P,) and memory gradients (k, P): independent, near-collinear, opposed, of mixed size, or zero."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    k, p = draw(st.integers(smallest_k, largest_k)), draw(st.integers(1, 60))
    common, apart = rng.normal(size=(1, p)), draw(st.sampled_from([1.0, 1e-1, 1e-3, 1e-6, 0.0]))
    G = draw(st.sampled_from([0, 1])) * common + apart * rng.normal(size=(k, p))
    if draw(st.booleans()):
        G *= 10.0 ** rng.uniform(-2, 1, size=(k, 1))
    if k > 1 and draw(st.booleans()):
        G[1] = -G[0]
    if draw(st.booleans()):
        G[-1] = 0
    kind = draw(st.sampled_from(["free", "against all", "against one", "along all"]))
    g = {"free": 0, "against all": -G.sum(0), "against one": -G[0], "along all": G.sum(0)}[kind] + 0.1 * rng.normal(
        size=p
    )
    scale = 10.0 ** draw(st.floats(-2, 1))
    return torch.tensor(scale * g), torch.tensor(scale * G), draw(st.sampled_from([0.0, 0.5]))


def solve_by_nnls(g, G, gamma, ridge=RIDGE):
    """The dual as a non-negative least-squares problem: min ‖Lᵀu + L⁻¹b‖ over u ≥ 0, LLᵀ = GGᵀ + εI (Lawson & Hanson)."""
    gram = G @ G.T + ridge * np.eye(len(G))
    L = np.linalg.cholesky(gram)
    b = G @ g + gram @ np.full(len(G), gamma)
    return gamma + nnls(L.T, -np.linalg.solve(L, b), maxiter=10000)[0]


def solve_by_enumeration(A, b):
    """The one set of positive unknowns, out of all 2^k, for which the optimality conditions hold, or are least violated."""
    found = []
    for positive in itertools.product([False, True], repeat=len(b)):
        chosen = np.flatnonzero(positive)
        u = np.zeros(len(b))
        u[chosen] = np.linalg.solve(A[np.ix_(chosen, chosen)], -b[chosen])
        found.append((max(0, -u.min(), -(A @ u + b).min()), u))
    violated, u = min(found, key=lambda pair: pair[0])
    assert violated <= 1e-9 * (1 + np.abs(b).max())
    return u


@settings(max_examples=150, deadline=None)
@given(problems())
def test_equals_a_quadratic_programming_solver(problem):
    g, G, gamma = problem
    projected = project(g, G, gamma, RIDGE)
    if (G @ g >= 0).all():
        assert torch.equal(projected, g)
        return
    expected = G.numpy().T @ solve_by_nnls(g.numpy(), G.numpy(), gamma) + g.numpy()
    np.testing.assert_allclose(
        projected.numpy(), expected, atol=1e-7 * max(1, float(G.abs().max()), float(g.abs().max()))
    )


@settings(max_examples=60, deadline=None)
@given(problems(largest_k=6))
def test_minimum_equals_enumeration_of_all_active_sets(problem):
    g, G, _ = problem
    A, b = (G @ G.T).numpy() + RIDGE * np.eye(len(G)), (G @ g).numpy()
    u = nonnegative_minimum(torch.tensor(A), torch.tensor(b)).numpy()
    np.testing.assert_allclose(u, solve_by_enumeration(A, b), atol=1e-6 * (1 + np.abs(u).max()))


@settings(max_examples=150, deadline=None)
@given(problems())
def test_optimality_conditions(problem):
    """v ≥ γ, w = (GGᵀ + εI) v + Gg ≥ 0 and (v − γ) w = 0; so the constraints ⟨g̃, g_t⟩ ≥ 0 hold up to ε v."""
    g, G, gamma = problem
    gram = G @ G.T + RIDGE * torch.eye(len(G), dtype=G.dtype)
    v = gamma + nonnegative_minimum(gram, G @ g + gram @ torch.full((len(G),), gamma, dtype=G.dtype))
    w = gram @ v + G @ g
    size = (G @ g).abs().max() + gram.abs().max() + 1
    assert (v >= gamma).all()
    assert (w >= -1e-8 * size).all()
    assert ((v - gamma) * w).abs().max() <= 1e-8 * size * (1 + v.abs().max())
    if (G @ g < 0).any():
        assert (G @ project(g, G, gamma, RIDGE) >= -RIDGE * v - 1e-7 * size).all()


@settings(max_examples=60, deadline=None)
@given(problems())
def test_is_the_nearest_gradient_that_keeps_the_constraints(problem):
    """Where ε is negligible and γ = 0, g̃ is the projection of g onto the cone {x : Gx ≥ 0}."""
    g, G, _ = problem
    norms = G.norm(dim=1, keepdim=True)
    G = 1000 * G / norms.clamp(min=1e-12) * (norms > 0)
    if torch.linalg.cond(G @ G.T + 1e-9 * torch.eye(len(G), dtype=G.dtype)) > 1e9 or not G.any():
        return
    v, distance = nnls(G.numpy().T, -g.numpy(), maxiter=10000)
    nearest = G.numpy().T @ v + g.numpy()
    projected = project(g, G, 0.0, RIDGE)
    np.testing.assert_allclose(projected.numpy(), nearest, atol=1e-3 * (1 + float(g.norm())))
    assert (G @ projected >= -1e-3 * g.norm() * 1000).all()
    assert float(projected.norm()) == pytest.approx(distance, abs=1e-3 * (1 + float(g.norm())))


def test_single_precision_gradients_of_a_network_are_enough():
    """Nearly opposed single-precision gradients: a single-precision Gram matrix would be off by more than ε = 1e-3."""
    rng = torch.Generator().manual_seed(0)
    common, apart = 30 * torch.randn(20000, generator=rng), 0.01 * torch.randn(8, 20000, generator=rng)
    signs = torch.tensor([1, -1] * 4)
    G = signs[:, None] * common + apart
    g = -apart.sum(0) - 0.001 * torch.randn(20000, generator=rng)
    projected = project(g, G, 0.0, RIDGE)
    assert projected.dtype == torch.float32
    v = solve_by_nnls(g.double().numpy(), G.double().numpy(), 0.0)
    expected = G.double().numpy().T @ v + g.double().numpy()
    assert np.linalg.norm(projected.numpy() - expected) < 0.02 * np.linalg.norm(g.numpy())


def test_reads_nothing_on_the_host_and_is_batched_by_vmap():
    rng = torch.Generator().manual_seed(0)
    g, G = torch.randn(3, 30, generator=rng), torch.randn(3, 4, 30, generator=rng)
    gamma = torch.tensor([0.0, 0.5, 1.0])
    ridge = torch.tensor([1e-3, 1e-3, 1e-2])
    together = torch.vmap(project)(g, G, gamma, ridge)
    alone = torch.stack([project(*one) for one in zip(g, G, gamma, ridge, strict=True)])
    torch.testing.assert_close(together, alone)


@pytest.mark.parametrize("ridge", [1e-3, 1e-9])
def test_constraints_in_real_training(ridge, small_trainer, learn_tasks, monkeypatch):
    """Every applied gradient satisfies ⟨g̃, g_t⟩ ≥ −ε v_t for the memory of every earlier task; 0 to 1e-3 for a small ε."""
    trainer = small_trainer("strategy=gem", "strategy.memory_size=50", f"strategy.ridge={ridge}", "trainer.lr=0.1",
                            "trainer.max_steps_per_task=8")  # fmt: skip
    seen = []

    def spy(gradient, G, gamma, epsilon):
        edited = project(gradient, G, gamma, epsilon)
        seen.append((gradient, G, edited))
        return edited

    monkeypatch.setattr(gem, "project", spy)
    learn_tasks(trainer, 4)
    assert [len(G) for _, G, _ in seen] == [1] * 8 + [2] * 8 + [3] * 8
    violated = [bool((G @ g < 0).any()) for g, G, _ in seen]
    assert any(violated)
    assert not all(violated)
    for (g, G, edited), projects in zip(seen, violated, strict=True):
        assert not edited.requires_grad
        if not projects:
            assert torch.equal(edited, g)
            continue
        v = solve_by_nnls(g.double().numpy(), G.double().numpy(), 0.5, ridge)
        assert (G @ edited >= -ridge * torch.tensor(v) - 1e-5).all()
        assert ridge > 1e-6 or (G @ edited >= -1e-3).all()


def test_memory_gradients_are_those_of_each_task(small_trainer, learn_tasks, monkeypatch):
    trainer = small_trainer("strategy=gem", "strategy.memory_size=50")
    learn_tasks(trainer, 2)
    strategy, split = trainer.learner.strategies[0], trainer.scenario.train
    captured = []
    monkeypatch.setattr(gem, "project", lambda gradient, G, gamma, ridge: captured.append(G.clone()) or gradient)
    weights = []
    monkeypatch.setattr(trainer.optimizer.__class__, "step", lambda self: weights.append(1))
    trainer.task = 2
    trainer.fit_task()
    for task in range(2):
        ids = strategy.memory.ids[task]
        assert len(set(ids.tolist())) == 10
        assert (split.tasks[ids] == task).all()
        samples: Samples = trainer.inputs.plain(split, ids)
        loss = strategy.cross_entropy(strategy.model(samples.x), samples).mean()
        expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(strategy.model.parameters()))])
        torch.testing.assert_close(captured[0][task], expected)


UNEVEN = ["strategy=gem", "strategy.memory_size=600", "scenario.base=4", "scenario.increment=1", "scenario.tasks=3"]


def test_a_small_task_does_not_bound_the_share_of_the_others(small_trainer, learn_tasks, monkeypatch):
    """Shares of 200: the first task has more, the others have all of their 140 or so, and every gradient is of its own task."""
    trainer = small_trainer(*UNEVEN)
    learn_tasks(trainer, 2)
    strategy, split = trainer.learner.strategies[0], trainer.scenario.train
    sizes = [stop - start for start, stop in split.bounds]
    assert strategy.memory.sizes == [200, *sizes[1:]]
    assert sizes[1] < 200
    assert strategy.notes() == [
        f"the memory keeps {200 + sum(sizes[1:])} samples of memory_size=600, by task: 200, {sizes[1]}, {sizes[2]}"
    ]
    captured = []
    monkeypatch.setattr(gem, "project", lambda gradient, G, gamma, ridge: captured.append(G.clone()) or gradient)
    monkeypatch.setattr(trainer.optimizer.__class__, "step", lambda self: None)
    trainer.fit_task()
    for task, size in enumerate((200, sizes[1])):
        ids = strategy.memory.ids[task, :size]
        assert len(set(ids.tolist())) == size
        assert (split.tasks[ids] == task).all()
        samples: Samples = trainer.inputs.plain(split, ids)
        loss = strategy.cross_entropy(strategy.model(samples.x), samples).mean()
        expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(strategy.model.parameters()))])
        torch.testing.assert_close(captured[0][task], expected)


def test_a_memory_that_is_filled_says_nothing(small_setup):
    assert small_setup("strategy=gem", "strategy.memory_size=50").learner.strategies[0].notes() == []
    [note] = small_setup("strategy=gem", "strategy.memory_size=53").learner.strategies[0].notes()
    assert note == "the memory keeps 50 samples of memory_size=53, by task: 10 each"


def test_memory_too_small_is_refused(small_setup):
    with pytest.raises(ConfigError, match=r"memory_size=9 is too small .* it has to be at least 10"):
        small_setup("strategy=gem", "strategy.memory_size=9")


def test_in_a_fleet_of_transformers_attention_is_what_vmap_batches(small_setup, monkeypatch):
    """Also where the network calls torch's fused kernel, as it does on a GPU."""
    setup = small_setup(
        *["strategy=gem", "strategy.memory_size=40", "model=small_vit", "model.width=8", "model.depth=1"],
        *["model.heads=2", "model.image_size=8"],
    )
    strategy = setup.learner.strategies[0]
    for module in setup.learner.model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = True
    batches = torch.stack([setup.inputs.plain(setup.scenario.train, torch.arange(4) + n).x for n in (0, 8)])
    labels, tasks = torch.zeros(2, 4, dtype=torch.int64), torch.zeros(2, 4, dtype=torch.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # that torch loops over the rows for want of a rule
        together = torch.vmap(lambda x, y, t: strategy.flat_gradient(Samples(x, y, t)))(batches, labels, tasks)
    for row, gradient in enumerate(together):
        torch.testing.assert_close(gradient, strategy.flat_gradient(Samples(batches[row], labels[row], tasks[row])))
