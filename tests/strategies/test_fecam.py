"""FeCAM against covariances and distances computed class by class on all features."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from given_features import clusters, on_given_features, shuffled

from clbench.strategies.fecam import FeCAM, FeCAMConfig


def make(beta=0.5, alpha1=1.0, alpha2=1.0, prototype="transformed_mean") -> FeCAM:
    options = FeCAMConfig("fecam", extractor="frozen", beta=beta, alpha1=alpha1, alpha2=alpha2, prototype=prototype)
    return on_given_features(FeCAM, options, 6, [[0, 1], [2, 3, 4]])


def features(n_per_class: int = 30) -> tuple[torch.Tensor, torch.Tensor]:
    """As after a ReLU: not negative, and sometimes 0."""
    x, y = clusters(n_per_class, 5, 6)
    return (x + 1).relu(), y


def distances(x, y, queries, beta, alpha1, alpha2, prototype) -> np.ndarray:
    """d (n, 5) by the equations, with numpy and a pseudo-inverse."""
    x, queries, found = x.numpy(), queries.numpy(), []
    for c in range(5):
        of_class = x[y.numpy() == c]
        covariance = np.cov((of_class**beta).T)
        for _ in range(2):
            n = len(covariance)
            v = np.mean([covariance[i, i] for i in range(n)])
            u = np.mean([covariance[i, j] for i in range(n) for j in range(n) if i != j])
            added = [[alpha1 * v if i == j else alpha2 * u for j in range(n)] for i in range(n)]
            covariance = covariance + np.array(added)
        sigma = np.sqrt(np.diag(covariance))
        inverse = np.linalg.pinv(covariance / np.outer(sigma, sigma))
        mean = of_class.mean(0) ** beta if prototype == "transformed_mean" else (of_class**beta).mean(0)
        of_class_distances = []
        for query in queries**beta:
            delta = query / max(np.linalg.norm(query), 1e-12) - mean / np.linalg.norm(mean)
            of_class_distances.append(delta @ inverse @ delta)
        found.append(of_class_distances)
    return np.array(found).T


@pytest.mark.parametrize("options", [(0.5, 1.0, 1.0, "transformed_mean"), (0.7, 0.2, 0.1, "mean_of_transformed")])
@pytest.mark.parametrize("batch", [1, 7, 150])
def test_distances_are_those_of_the_equations(options, batch):
    x, y = features()
    strategy, order = make(*options), shuffled(150, 1)
    for ids in order.split(batch):
        strategy.absorb(x[ids], y[ids])
    with torch.inference_mode():
        strategy.prepare_for_eval()
        scores = strategy.scores(x)
    np.testing.assert_allclose(-scores.numpy(), distances(x, y, x, *options), rtol=1e-6)
    assert (scores.argmax(1) == y).float().mean() > 0.8


def test_statistics_do_not_depend_on_the_order_or_on_batches():
    x, y = features()
    states = []
    for order, batch in ((torch.arange(150), 150), (torch.arange(150).flip(0), 4), (shuffled(150, 5), 31)):
        strategy = make()
        for ids in order.split(batch):
            strategy.absorb(x[ids], y[ids])
        states.append(strategy.state_dict())
    for state in states[1:]:
        for name, tensor in state.items():
            torch.testing.assert_close(tensor, states[0][name], rtol=1e-10, atol=1e-10)
    for c in range(5):
        covariance = np.cov((x[y == c] ** 0.5).numpy().T)
        np.testing.assert_allclose(states[0]["scatter"][c].numpy() / 29, covariance, rtol=1e-10, atol=1e-12)


def test_far_from_zero_no_digits_are_lost():
    """A sum of squares less the square of a sum would be off by 10⁻⁴ here."""
    x, y = features()
    strategy = make(beta=1.0)
    for ids in shuffled(150, 2).split(10):
        strategy.absorb(x[ids] + 1e6, y[ids])
    np.testing.assert_allclose(strategy.scatter[2].numpy() / 29, np.cov(x[y == 2].numpy().T), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("prototype", ["transformed_mean", "mean_of_transformed"])
def test_with_the_identity_it_is_the_nearest_mean_by_cosine(prototype):
    """Covariances that are multiples of I, to which shrinkage adds more of the same."""
    x, y = features()
    strategy = make(beta=1.0, prototype=prototype)
    strategy.absorb(x, y)
    strategy.scatter.copy_(torch.arange(1.0, 6.0)[:, None, None] * torch.eye(6))
    strategy.prepare_for_eval()
    means = torch.stack([x[y == c].mean(0) for c in range(5)])
    cosines = F.normalize(x) @ F.normalize(means).T
    expected = 2 - 2 * cosines
    expected[x.norm(dim=1) == 0] = 1.0
    torch.testing.assert_close(-strategy.scores(x), expected, rtol=1e-6, atol=1e-6)


def test_a_class_of_one_sample_is_judged_by_cosine():
    """Its covariance is 0: no division by n − 1 = 0, and no inverse of 0."""
    x, y = features()
    strategy = make()
    strategy.absorb(x[:61], y[:61])
    strategy.prepare_for_eval()
    scores = strategy.scores(x)
    assert scores.isfinite().all()
    torch.testing.assert_close(strategy.whitening[2], torch.eye(6).double(), rtol=1e-8, atol=1e-8)
    query = F.normalize(x**0.5)
    torch.testing.assert_close(
        -scores[:, 2], (query - F.normalize(x[60:61] ** 0.5)).square().sum(1), rtol=1e-6, atol=1e-9
    )
    assert (scores[:, 3:].amax(1) < scores[:, :3].amin(1)).all()  # classes without samples


def test_features_that_are_0_in_all_samples_of_a_class():
    """A unit that is dead for a class: its variance is what shrinkage adds, or R is I there."""
    x, y = features()
    x[:, 3] = 0
    for alpha1 in (1.0, 0.0):
        strategy = make(alpha1=alpha1, alpha2=0.0)
        strategy.absorb(x, y)
        strategy.prepare_for_eval()
        assert strategy.scores(x).isfinite().all()
        R = strategy.correlation(strategy.scatter[0] / 29)
        assert torch.equal(R[3], torch.eye(6).double()[3])


def test_negative_features_keep_their_sign():
    strategy = make(beta=0.5)
    x = torch.tensor([[-4.0, 9.0, 0.0, -0.25, 1.0, 16.0]]).double()
    assert strategy.power(x).tolist() == [[-2.0, 3.0, 0.0, -0.5, 1.0, 4.0]]


def test_evaluation_leaves_statistics_alone():
    x, y = features()
    strategy = make()
    strategy.absorb(x, y)
    kept = {name: tensor.clone() for name, tensor in strategy.state_dict().items()}
    with torch.inference_mode():
        strategy.prepare_for_eval()
    assert kept.keys() == strategy.state_dict().keys()
    assert all(torch.equal(kept[name], tensor) for name, tensor in strategy.state_dict().items())
