"""IGMN against the mixture written out with covariances, batch covariances, and conditional normal distributions."""

import math

import numpy as np
import pytest
import torch
from given_features import clusters, on_given_features, shuffled
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2, multivariate_normal

from clbench.errors import ConfigError
from clbench.strategies.igmn import IGMN, IGMNConfig

N_FEATURES, N_CLASSES = 4, 3
D = N_FEATURES + N_CLASSES


def make(components=12, beta=0.001, delta=0.5, covariance="exact", prune=False) -> IGMN:
    options = IGMNConfig("igmn", extractor="frozen", projection=None, components=components, beta=beta, delta=delta,
                         covariance=covariance, prune=prune)  # fmt: skip
    return on_given_features(IGMN, options, N_FEATURES, [[0], [1, 2]])


def samples(n_per_class: int = 30, seed: int = 0):
    """Inputs (n, 4) of mean square 1, and labels, in random order."""
    x, y = clusters(n_per_class, N_CLASSES, N_FEATURES, seed)
    order = shuffled(len(y), seed)
    return (x / x.square().mean(1, keepdim=True).sqrt())[order], y[order]


def joined(x, y) -> np.ndarray:
    return np.concatenate([x.numpy(), np.eye(N_CLASSES)[y.numpy()]], 1)


def mixture(z: np.ndarray, beta: float, delta: float, most: int):
    """The algorithm with covariances: lists of means, covariances and sp, and −log p of every sample before it is learned."""
    means, covariances, sp, losses = [], [], [], []
    gate = chi2.ppf(1 - beta, D)
    for sample in z:
        weighted = [s * multivariate_normal.pdf(sample, m, C) for m, C, s in zip(means, covariances, sp, strict=True)]
        losses.append(-math.log(sum(weighted) / sum(sp)) if sp else 0.0)
        squared = [(sample - m) @ np.linalg.inv(C) @ (sample - m) for m, C in zip(means, covariances, strict=True)]
        if len(means) < most and all(q >= gate for q in squared):
            means.append(sample.copy())
            covariances.append(delta**2 * np.eye(D))
            sp.append(1.0)
            continue
        for j, weight in enumerate(weighted):
            p = weight / sum(weighted)
            sp[j] += p
            omega, e = p / sp[j], sample - means[j]
            means[j] = means[j] + omega * e
            covariances[j] = (1 - omega) * (covariances[j] + omega * np.outer(e, e))
    return np.array(means), np.array(covariances), np.array(sp), losses


@pytest.mark.parametrize(("beta", "most"), [(0.001, 12), (0.3, 40), (0.3, 4)])
def test_the_mixture_is_that_of_the_algorithm(beta, most):
    """With few components, with many, and where there is no room for as many as are asked for."""
    x, y = samples()
    strategy = make(components=most, beta=beta)
    losses = [float(strategy.absorb(x[i : i + 1], y[i : i + 1])) for i in range(len(y))]
    means, covariances, sp, expected = mixture(joined(x, y), beta, 0.5, most)
    n = int(strategy.active.sum())
    assert n == len(sp) > 1
    assert n == most or not strategy.active[n:].any()
    np.testing.assert_allclose(strategy.means[:n].numpy(), means, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(np.linalg.inv(strategy.precisions[:n].numpy()), covariances, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(strategy.log_dets[:n].numpy(), np.linalg.slogdet(covariances)[1], rtol=1e-8)
    np.testing.assert_allclose(strategy.sp[:n].numpy(), sp, rtol=1e-8)
    np.testing.assert_allclose(losses, expected, rtol=1e-6, atol=1e-9)


def test_one_component_has_the_covariance_of_all_samples():
    """Exactly: sp C = δ² I + scatter around the mean, for every number of samples."""
    x, y = samples()
    strategy, z = make(components=1), joined(x, y)
    for n in range(1, len(y) + 1):
        strategy.absorb(x[n - 1 : n], y[n - 1 : n])
        centred = z[:n] - z[:n].mean(0)
        covariance = (0.25 * np.eye(D) + centred.T @ centred) / n
        np.testing.assert_allclose(strategy.means[0].numpy(), z[:n].mean(0), rtol=0, atol=1e-12)
        np.testing.assert_allclose(np.linalg.inv(strategy.precisions[0].numpy()), covariance, rtol=0, atol=1e-12)
        assert float(strategy.log_dets[0]) == pytest.approx(np.linalg.slogdet(covariance)[1], abs=1e-12)
        assert float(strategy.sp[0]) == n


def test_a_batch_is_taken_in_as_single_samples_are():
    x, y = samples()
    one, many = make(beta=0.1), make(beta=0.1)
    for ids in torch.arange(len(y)).split(1):
        one.absorb(x[ids], y[ids])
    for ids in torch.arange(len(y)).split(17):
        many.absorb(x[ids], y[ids])
    assert int(one.active.sum()) > 2
    for name, tensor in one.state_dict().items():
        torch.testing.assert_close(many.state_dict()[name], tensor, rtol=1e-12, atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.05, 3.0), st.floats(1e-6, 0.9), st.integers(1, 5), st.floats(0.1, 10.0))
def test_covariances_are_positive_definite_whatever_comes(seed, delta, beta, most, spread):
    generator = torch.Generator().manual_seed(seed)
    x = spread * torch.randn(25, N_FEATURES, generator=generator, dtype=torch.float64)
    y = torch.randint(0, N_CLASSES, (25,), generator=generator)
    strategy = make(components=most, beta=beta, delta=delta)
    strategy.absorb(x, y)
    for precision, log_det in zip(
        strategy.precisions[strategy.active], strategy.log_dets[strategy.active], strict=True
    ):
        assert torch.linalg.eigvalsh(precision).min() > 0
        assert float(-torch.linalg.slogdet(precision).logabsdet) == pytest.approx(float(log_det), rel=1e-6, abs=1e-6)


def second_sample(covariance: str, distance: float) -> IGMN:
    """A component with one sample, and another at ``distance`` of its standard deviations that it takes for its own."""
    strategy = make(covariance=covariance)
    x = torch.zeros(2, N_FEATURES).double()
    x[1, 0] = distance * 0.5
    strategy.absorb(x[:1], torch.tensor([0]))
    strategy.absorb(x[1:], torch.tensor([0]))
    assert strategy.active.tolist() == [True] + [False] * 11
    return strategy


def test_the_published_step_loses_its_definiteness_at_a_components_second_sample():
    """Where eᵀΛe > 4, which is well within the gate (24 here)."""
    assert chi2.ppf(0.999, D) > 3**2 > 4
    published = second_sample("released", distance=3.0)
    assert torch.linalg.eigvalsh(published.precisions[0]).min() < 0
    assert published.log_dets[0].isnan()
    assert [m.value for m in published.measurements()] == [1.0, 1.0]
    exact = second_sample("exact", distance=3.0)
    assert torch.linalg.eigvalsh(exact.precisions[0]).min() > 0
    assert [m.value for m in exact.measurements()] == [1.0, 0.0]
    assert torch.linalg.eigvalsh(second_sample("released", distance=1.9).precisions[0]).min() > 0


def test_released_is_the_step_as_it_is_published():
    strategy = second_sample("released", distance=1.5)
    e = np.zeros(D)
    e[0] = 0.75
    omega, before = 0.5, 0.25 * np.eye(D)
    shift = omega * e
    rest = e - shift  # e*: from the mean after the step
    published = (1 - omega) * before + omega * np.outer(rest, rest) - np.outer(shift, shift)
    np.testing.assert_allclose(np.linalg.inv(strategy.precisions[0].numpy()), published, rtol=1e-12, atol=1e-14)
    assert float(strategy.log_dets[0]) == pytest.approx(np.linalg.slogdet(published)[1], abs=1e-12)


def test_a_component_that_has_lost_its_definiteness_answers_no_more():
    strategy = second_sample("released", distance=3.0)
    strategy.prepare_for_eval()
    x = torch.zeros(1, N_FEATURES).double()
    assert strategy.scores(x).tolist() == [[0.0, 0.0, 0.0]]
    strategy.absorb(x, torch.tensor([1]))  # so that another begins
    assert strategy.active.sum() == 2
    strategy.prepare_for_eval()
    torch.testing.assert_close(strategy.scores(x), torch.tensor([[0.0, 1.0, 0.0]]).double())


def test_where_the_published_step_has_no_inverse_the_others_answer_and_learn_on():
    """eᵀΛe = 4 exactly: the precision becomes infinite, or NaN."""
    strategy = second_sample("released", distance=2.0)
    assert not strategy.precisions[0].isfinite().all()
    x = torch.ones(3, N_FEATURES).double()
    strategy.absorb(x, torch.tensor([1, 1, 2]))
    strategy.prepare_for_eval()
    scores = strategy.scores(x[:1])
    assert scores.isfinite().all()
    assert scores.argmax() == 1
    assert [m.value for m in strategy.measurements()] == [2.0, 1.0]


def test_predictions_are_conditional_means_of_the_mixture():
    x, y = samples()
    strategy = make(beta=0.1)
    strategy.absorb(x, y)
    kept = {name: tensor.clone() for name, tensor in strategy.state_dict().items()}
    with torch.inference_mode():
        strategy.prepare_for_eval()
        scores = strategy.scores(x)
    assert kept.keys() == strategy.state_dict().keys()
    assert all(torch.equal(kept[name], tensor) for name, tensor in strategy.state_dict().items())
    means, covariances, sp, _ = mixture(joined(x, y), 0.1, 0.5, 12)
    assert len(sp) > 2
    a, b = slice(0, N_FEATURES), slice(N_FEATURES, D)
    for u, score in zip(x.numpy(), scores.numpy(), strict=True):
        weights = [
            s * multivariate_normal.pdf(u, m[a], C[a, a]) for m, C, s in zip(means, covariances, sp, strict=True)
        ]
        said = [m[b] + C[b, a] @ np.linalg.inv(C[a, a]) @ (u - m[a]) for m, C in zip(means, covariances, strict=True)]
        expected = sum(w / sum(weights) * s for w, s in zip(weights, said, strict=True))
        np.testing.assert_allclose(score, expected, rtol=1e-6, atol=1e-8)
    assert (scores.argmax(1) == y).float().mean() > 0.9


def test_without_a_component_all_classes_are_as_likely():
    strategy = make()
    strategy.prepare_for_eval()
    assert strategy.scores(torch.zeros(2, N_FEATURES).double()).tolist() == [[0.0] * 3] * 2


def test_pruning_removes_what_has_had_few_samples_for_its_age_and_its_place_is_taken_again():
    x, y = samples(40)
    strategy = make(prune=True)
    strange = torch.full((1, N_FEATURES), 30.0).double()
    strategy.absorb(x[:1], y[:1])
    strategy.absorb(strange, y[:1])
    assert strategy.active[:2].tolist() == [True, True]
    near = x[:1].repeat(2 * D, 1)
    strategy.absorb(near[: 2 * D - 1], y[:1].repeat(2 * D - 1))
    assert strategy.active[1]  # aged 2 D, not above
    strategy.absorb(near[:1], y[:1])
    assert strategy.active[:2].tolist() == [True, False]
    assert float(strategy.sp[1]) == 0.0
    strategy.absorb(-strange, y[:1])
    assert strategy.active[:3].tolist() == [True, True, False]
    assert torch.equal(strategy.means[1, :N_FEATURES], -strange[0])
    assert float(strategy.sp[1]) == float(strategy.age[1]) == 1.0


@pytest.mark.parametrize(("sp", "stays"), [(D + 0.5, False), (D + 1.0, True)])
def test_pruning_asks_for_more_than_a_sample_for_every_number_of_one(sp, stays):
    x, y = samples(1)
    strategy = make(prune=True)
    strategy.absorb(x[:1], y[:1])
    strategy.absorb(x[:1] + 30, y[:1])
    strategy.age[1], strategy.sp[1] = 3 * D, sp
    strategy.absorb(x[:1], y[:1])
    assert bool(strategy.active[1]) == stays


def test_inputs_are_random_directions_of_mean_square_1(small_setup):
    setup = small_setup("strategy=igmn", "strategy.projection=20", "strategy.components=3")
    strategy = setup.learner.strategies[0]
    torch.testing.assert_close(strategy.directions.T @ strategy.directions, torch.eye(20).double())
    samples = setup.inputs.plain(setup.scenario.train, torch.arange(6))
    u = strategy.features(samples.x)
    seen = samples.x.flatten(1).double() @ strategy.directions
    torch.testing.assert_close(u, seen / seen.square().mean(1, keepdim=True).sqrt())
    assert strategy.features(torch.zeros_like(samples.x)).abs().sum() == 0
    whole = small_setup("strategy=igmn", "strategy.components=3").learner.strategies[0]
    assert torch.equal(whole.directions, torch.eye(64).double())  # 64 pixels are fewer than 100


def test_too_many_inputs_are_refused(small_setup):
    with pytest.raises(ConfigError, match=r"leaves 400 inputs to strategy igmn, which takes 200 at most"):
        small_setup("strategy=igmn", "strategy.extractor=frozen", "strategy.projection=null", "model.hidden=[400]")


def test_it_needs_no_boundaries_unless_the_first_task_is_to_train_the_network(small_setup, small_trainer):
    stream = ["scenario=blurry_digits", "trainer.reset_optimizer=false", "strategy=igmn", "strategy.components=8"]
    with pytest.raises(ConfigError, match=r"strategy\.extractor=first_task has no end in blurry_digits"):
        small_setup(*stream, "strategy.extractor=first_task")
    trainer = small_trainer(*stream)
    trainer.fit()
    assert int(trainer.learner.strategies[0].active.sum()) > 1
