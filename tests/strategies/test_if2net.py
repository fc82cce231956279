"""IF2Net: the random representation against its equations, the output weights against closed forms, and no leak."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clbench.errors import BatchDependence
from clbench.learning.parts.least_squares import ridge
from clbench.learning.parts.random_representation import RandomRepresentation, lasso, standardised
from clbench.strategies.if2net import IF2Net

SMALL = [
    "strategy=if2net", "strategy.n_windows=3", "strategy.window=4", "strategy.n_expand=20", "strategy.n_out=25",
    "strategy.shrink=3", "trainer.max_steps_per_task=null", "trainer.epochs=1", "trainer.batch_size=50", "evaluator.every=0",
]  # fmt: skip


def strategy_of(trainer) -> IF2Net:
    return trainer.learner.strategies[0]


def training_data(trainer, task: int):
    """Inputs of the representation (n, d) and one-hot labels (n, C) of a task's training samples."""
    split = trainer.scenario.train
    samples = trainer.inputs.plain(split, split.ids(task))
    return strategy_of(trainer).features(samples.x), F.one_hot(samples.y, trainer.scenario.n_classes).double()


@pytest.fixture
def representation() -> RandomRepresentation:
    torch.manual_seed(0)
    return RandomRepresentation(n_inputs=9, n_windows=2, window=3, n_expand=12, n_out=5, alpha=0.5)


DATA = torch.randn(40, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def fitted(representation: RandomRepresentation, data: torch.Tensor, batch_size: int = 40):
    return representation.fit(lambda: iter(data.split(batch_size)), lam=0.01, iterations=50, shrink=3.0)


# ---- the representation -----------------------------------------------------------------------------------------------


def test_the_map_follows_its_equations(representation):
    """One sample and one window after the other, in numpy."""
    fit = fitted(representation, DATA)
    X = np.stack([np.append((u - u.mean()) / u.std(), 0.1) for u in DATA.numpy()])
    columns = []
    for i, W in enumerate(representation.windows.numpy()):
        low, high = (X @ W).min(0), (X @ W).max(0)
        FX = (X @ W - low) / (high - low)
        V = lasso(torch.from_numpy(FX.T @ FX), torch.from_numpy(FX.T @ X), 0.01, 50).numpy()
        np.testing.assert_allclose(fit.V[i], V, rtol=1e-9, atol=1e-12)
        Z = X @ V.T
        columns.append((Z - Z.min(0)) / (Z.max(0) - Z.min(0)))
    Z = np.concatenate(columns, axis=1)
    before = np.concatenate([Z, np.full((len(Z), 1), 0.1)], axis=1) @ representation.expansion.numpy()
    H = np.tanh(3.0 * before / before.max())
    G = np.maximum(np.concatenate([Z, H], axis=1) @ representation.weight.numpy() + representation.bias.numpy(), 0)
    np.testing.assert_allclose(representation(DATA, fit), G, rtol=1e-9, atol=1e-12)
    assert Z.min() == 0
    assert Z.max() == 1


def test_random_weights_have_their_distributions():
    torch.manual_seed(0)
    representation = RandomRepresentation(n_inputs=400, n_windows=10, window=5, n_expand=120, n_out=200, alpha=0.7)
    assert representation.windows.shape == (10, 401, 5)
    assert float(representation.windows.mean()) == pytest.approx(-1, abs=0.1)
    assert float(representation.windows.std()) == pytest.approx(2, abs=0.1)
    rows = representation.expansion @ representation.expansion.T
    torch.testing.assert_close(rows, torch.eye(51, dtype=torch.float64))
    for drawn in (representation.weight, representation.bias):
        assert 0.69 <= float(drawn.abs().max()) <= 0.7
        assert abs(float(drawn.mean())) < 0.1


def test_fitting_in_batches_is_fitting_at_once(representation):
    once, in_parts = fitted(representation, DATA), fitted(representation, DATA, batch_size=7)
    for name, tensor in once._asdict().items():
        torch.testing.assert_close(getattr(in_parts, name), tensor, rtol=1e-9, atol=1e-12)


def test_equal_inputs_and_columns_without_range_divide_by_one(representation):
    """A blank image, and data that are all the same: what published code divides by 0 for."""
    data = torch.ones(5, 9, dtype=torch.float64)
    assert torch.equal(standardised(data), torch.tensor([[0.0] * 9 + [0.1]] * 5, dtype=torch.float64))
    G = representation(DATA, fitted(representation, data))
    assert G.isfinite().all()


@pytest.mark.parametrize("lam", [0.0, 0.01, 5.0])
def test_the_tweak_solves_the_lasso(lam):
    """At the minimum Fᵀ(X − FV) = λ sign(V) where V is not 0, and lies within ±λ where it is."""
    generator = torch.Generator().manual_seed(0)
    features = torch.rand(30, 4, dtype=torch.float64, generator=generator)
    X = torch.randn(30, 6, dtype=torch.float64, generator=generator) + 1
    V = lasso(features.T @ features, features.T @ X, lam, 5000)
    slope = features.T @ (X - features @ V)
    zero = V == 0
    torch.testing.assert_close(slope[~zero], lam * V[~zero].sign(), rtol=0, atol=1e-9)
    assert (slope[zero].abs() <= lam + 1e-9).all()
    assert bool(zero.any()) == (lam == 5.0)
    assert not zero.all()


# ---- output weights -----------------------------------------------------------------------------------------------


def test_recursive_least_squares_is_joint_ridge_regression(small_trainer):
    """After all tasks β is the ridge solution on all training samples, with the features that prediction uses."""
    trainer = small_trainer(*SMALL)
    trainer.fit()
    strategy = strategy_of(trainer)
    parts = [training_data(trainer, task) for task in range(trainer.scenario.n_tasks)]
    X, Y = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    G = strategy.representation(X, strategy._fit_for(0))
    expected = ridge(G.T @ G, G.T @ Y, 0.1)
    torch.testing.assert_close(strategy.beta, expected, rtol=1e-8, atol=1e-8)
    assert trainer.iteration == sum(math.ceil(len(trainer.scenario.train.ids(t)) / 50) for t in range(5))  # one pass


def test_task_order_does_not_matter(small_trainer):
    trainer = small_trainer(*SMALL, "scenario.tasks=3")
    trainer.fit()
    strategy = strategy_of(trainer)
    beta = strategy.beta.clone()
    strategy.beta.zero_()
    strategy.R.copy_(torch.eye(25, dtype=torch.float64) / 0.1)
    for task in (2, 0, 1):
        features, Y = training_data(trainer, task)
        for part in torch.randperm(len(Y), generator=torch.Generator().manual_seed(task)).split(17):
            strategy.absorb(features[part], Y[part].argmax(1))
    torch.testing.assert_close(strategy.beta, beta, rtol=1e-8, atol=1e-8)


def test_projected_least_squares(small_trainer, learn_tasks):
    """β changes by Π argmin ‖G (β + ΠB) − Y‖² + reg ‖B‖², and U follows the singular value decomposition."""
    trainer = small_trainer(*SMALL, "strategy.output_update=nullspace", "strategy.energy=0.999", "strategy.reg=0.5")
    strategy = strategy_of(trainer)
    kept = np.zeros((25, 0))
    for task in range(3):
        beta, free = strategy.beta.clone(), strategy.free.clone()
        learn_tasks(trainer, 1)
        X, Y = training_data(trainer, task)
        G = strategy.representation(X, strategy._fit_for(0))
        seen = G @ free
        B = torch.linalg.solve(seen.T @ seen + 0.5 * torch.eye(25), seen.T @ (Y - G @ beta))
        torch.testing.assert_close(strategy.beta, beta + free @ B, rtol=1e-8, atol=1e-8)
        U, s, _ = np.linalg.svd(np.concatenate([kept, G.numpy().T], axis=1), full_matrices=False)
        k = 1 + int(np.searchsorted((s**2).cumsum(), 0.999 * (s**2).sum()))
        kept = U[:, :k] * s[:k]
        np.testing.assert_allclose(strategy.free, np.eye(25) - U[:, :k] @ U[:, :k].T, atol=1e-8)
        reported = {m.quantity: m.value for m in strategy.measurements()}
        assert reported["free_rank"] == 25 - k
    assert 1 < k < 25


def test_old_outputs_stay_where_all_their_directions_are_protected(small_trainer):
    """With less samples in a task than random features, and all of their energy protected."""
    trainer = small_trainer(*SMALL, "strategy.n_out=400", "strategy.n_expand=500", "strategy.shrink=300",
                            "strategy.output_update=nullspace", "strategy.energy=1", "scenario.tasks=2",
                            "trainer.max_steps_per_task=2")  # fmt: skip
    trainer.fit_task()
    strategy = strategy_of(trainer)
    seen = torch.cat([step.ids for step in trainer.steps])
    x = trainer.inputs.plain(trainer.scenario.train, seen).x
    before = strategy.scores(strategy.features(x))[:, :2]
    trainer.fit_task()
    torch.testing.assert_close(strategy.scores(strategy.features(x))[:, :2], before, rtol=0, atol=1e-6)
    learned = trainer.tasks[trainer.tasks.task_learning == 1].set_index("task_eval")
    assert (learned.correct / learned.n)[1] > 0.8
    assert {m.quantity: m.value for m in strategy.measurements()}["free_rank"] == 400 - 200


# ---- several fits ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inference", ["avg", "max", "recon"])
def test_inference_decides_for_every_image_alone(inference, small_trainer):
    trainer = small_trainer(
        *SMALL, "strategy.representation=per_task", f"strategy.inference={inference}", "scenario.tasks=3"
    )
    trainer.fit()
    strategy = strategy_of(trainer)
    split = trainer.scenario.test
    images = trainer.inputs.plain(split, torch.cat([split.ids(t)[:5] for t in range(3)]))
    expected, chosen = [], []
    for x in images.x:
        u = strategy.features(x[None])
        scores = [strategy.representation(u, strategy._fit_for(t))[0] @ strategy.beta for t in range(3)]
        if inference == "avg":
            expected.append(sum(scores) / 3)
            continue
        if inference == "max":
            best = [max(s[c] for c in trainer.scenario.task_classes[t]) for t, s in enumerate(scores)]
        else:
            z = standardised(u)
            best = []
            for t in range(3):
                fit = strategy._fit_for(t)
                windows = zip(strategy.representation.windows, fit.V, fit.f_low, fit.f_range, strict=True)
                best.append(-sum(((z @ W - low) / width @ V - z).square().sum() for W, V, low, width in windows))
        chosen.append(int(np.argmax([float(b) for b in best])))
        expected.append(scores[chosen[-1]])
    found = strategy.scores(strategy.features(images.x))
    torch.testing.assert_close(found[:, :6], torch.stack(expected)[:, :6], rtol=1e-9, atol=1e-9)
    assert inference == "avg" or len(set(chosen)) > 1
    fits = [strategy._fit_for(t) for t in range(3)]
    assert not torch.equal(fits[0].V, fits[1].V)
    per_fit = sum(tensor.numel() for tensor in fits[0])
    assert trainer.method[trainer.method.quantity == "fit_numbers"].value.tolist() == [
        per_fit,
        2 * per_fit,
        3 * per_fit,
    ]


def test_a_given_task_chooses_its_fit(small_trainer):
    trainer = small_trainer(
        *SMALL, "strategy.representation=per_task", "scenario=split_digits_task", "scenario.tasks=3"
    )
    trainer.fit()
    strategy = strategy_of(trainer)
    images = trainer.inputs.plain(trainer.scenario.test, trainer.scenario.test.ids(1)[:5])
    expected = strategy.representation(strategy.features(images.x), strategy._fit_for(1)) @ strategy.beta
    found = strategy.predict(images.x, images.task)
    own = trainer.scenario.task_classes[1]
    torch.testing.assert_close(found[:, own], expected[:, own].float())
    assert found[:, [c for c in range(6) if c not in own]].isneginf().all()


def test_random_weights_stay_and_come_back(small_trainer, learn_tasks):
    """The same for every task, after a checkpoint, and in another run of the seed; others with another seed."""
    trainer = small_trainer(*SMALL, "strategy.representation=per_task", checkpoint="a")
    random = ("windows", "expansion", "weight", "bias")
    first = {name: strategy_of(trainer).representation.get_buffer(name).clone() for name in random}
    learn_tasks(trainer, 2)
    again, resumed = (
        small_trainer(*SMALL, checkpoint="b"),
        small_trainer(*SMALL, "strategy.representation=per_task", checkpoint="a"),
    )
    resumed.begin()
    assert resumed.task == 2
    other = small_trainer(*SMALL, "seed=1", checkpoint="c")
    for name, tensor in first.items():
        for same in (trainer, again, resumed):
            assert torch.equal(strategy_of(same).representation.get_buffer(name), tensor)
        assert not torch.equal(strategy_of(other).representation.get_buffer(name), tensor)
    for mine, its in zip(strategy_of(trainer)._fit_for(1), strategy_of(resumed)._fit_for(1), strict=True):
        assert torch.equal(mine, its)


def test_a_fit_to_test_images_is_refused(small_trainer, monkeypatch):
    """What published code of the family does: ranges, V and the scale from the test images of one task."""

    def scores(self, features, task):
        fit = self.representation.fit(lambda: iter([features]), 0.001, 10, 3.0)
        return self.representation(features, fit) @ self.beta

    monkeypatch.setattr(IF2Net, "scores", scores)
    with pytest.raises(BatchDependence, match="if2net predicts otherwise for the same images"):
        small_trainer(*SMALL).fit()


# ---- extractors -----------------------------------------------------------------------------------------------------


def test_on_features_of_a_network_trained_on_the_first_task(small_trainer, learn_tasks):
    """The first task by gradient, then its features once; later tasks move neither network nor fit."""
    trainer = small_trainer(*SMALL, "strategy.extractor=first_task", "trainer.epochs=2")
    strategy, model = strategy_of(trainer), trainer.learner.model
    start = model.backbone.layers[1].weight.clone()
    learn_tasks(trainer, 1)
    trained, fit = model.backbone.layers[1].weight.clone(), [t.clone() for t in strategy._fit_for(0)]
    assert not torch.equal(start, trained)
    features, Y = training_data(trainer, 0)
    assert features.shape[1] == 16
    G = strategy.representation(features, strategy._fit_for(0))
    torch.testing.assert_close(strategy.beta, ridge(G.T @ G, G.T @ Y, 0.1), rtol=1e-8, atol=1e-8)
    learn_tasks(trainer, 1)
    assert torch.equal(model.backbone.layers[1].weight, trained)
    assert all(torch.equal(a, b) for a, b in zip(fit, strategy._fit_for(0), strict=True))


def test_the_loss_is_that_before_the_update(small_trainer, batch_of):
    trainer = small_trainer(*SMALL)
    trainer.begin_task()
    batch = batch_of(trainer, trainer.scenario.train.ids(0)[:10])
    assert float(trainer.learner.learn(batch._replace(n_new=10))["new"]) == pytest.approx(1)  # β = 0
    assert float(trainer.learner.learn(batch._replace(n_new=10))["new"]) < 0.1
    assert "reconstruction: abstract + same-author code" in strategy_of(trainer).notes()[0]
