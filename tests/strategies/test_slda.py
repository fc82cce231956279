"""Streaming linear discriminant analysis against the rule for one sample at a time, and against its closed form."""

import pytest
import torch
from given_features import clusters, on_given_features, shuffled

from clbench.strategies.slda import SLDA, SLDAConfig


def make(covariance: str = "exact", shrinkage: float = 0.01) -> SLDA:
    options = SLDAConfig("slda", extractor="frozen", covariance=covariance, shrinkage=shrinkage)
    return on_given_features(SLDA, options, 6, [[0, 1], [2, 3, 4]])


def one_by_one(x: torch.Tensor, y: torch.Tensor, covariance: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Σ, means and counts of five classes by the published rule for single samples."""
    sigma, means, counts = torch.zeros(6, 6).double(), torch.zeros(5, 6).double(), torch.zeros(5).double()
    for n, (features, label) in enumerate(zip(x, y.tolist(), strict=True)):
        delta = features - means[label]
        c = counts[label]
        factor = n / (n + 1) if covariance == "released" else c / (c + 1)
        sigma = (n * sigma + factor * torch.outer(delta, delta)) / (n + 1)
        means[label] += delta / (c + 1)
        counts[label] += 1
    return sigma, means, counts


@pytest.mark.parametrize("covariance", ["exact", "released"])
@pytest.mark.parametrize("batch", [1, 7, 100])
def test_a_batch_is_taken_in_as_single_samples_are(covariance, batch):
    """Batches with several samples of a class, with classes that begin within them, and classes in any order."""
    x, y = clusters(20, 5, 6)
    order = shuffled(100, 2)
    strategy = make(covariance)
    for ids in order.split(batch):
        strategy.absorb(x[ids], y[ids])
    sigma, means, counts = one_by_one(x[order], y[order], covariance)
    torch.testing.assert_close(strategy.scatter / 100, sigma)
    torch.testing.assert_close(strategy.means, means)
    assert torch.equal(strategy.counts, counts)


@pytest.mark.parametrize("order", [torch.arange(250), torch.arange(250).flip(0), shuffled(250, 0)])
def test_exact_is_the_covariance_within_classes_for_every_order(order):
    x, y = clusters(50, 5, 6)
    strategy = make("exact")
    for ids in order.split(16):
        strategy.absorb(x[ids], y[ids])
    means = torch.stack([x[y == label].mean(0) for label in range(5)])
    centred = x - means[y]
    torch.testing.assert_close(strategy.scatter, centred.T @ centred)
    torch.testing.assert_close(strategy.means, means)


def test_released_counts_the_distance_of_classes_from_zero():
    """Its trace is larger by nearly |x|² of the first sample of every class but the first."""
    x, y = clusters(50, 5, 6)
    traces = {}
    for covariance in ("exact", "released"):
        strategy = make(covariance)
        strategy.absorb(x, y)
        traces[covariance] = strategy.scatter.trace()
    firsts = x[50::50].square().sum()  # of the classes that begin after others
    assert traces["released"] - traces["exact"] > 0.9 * firsts
    assert traces["released"] > 1.2 * traces["exact"]


def test_scores_are_those_of_linear_discriminant_analysis():
    x, y = clusters(40, 5, 6)
    strategy = make(shrinkage=0.01)
    strategy.absorb(x, y)
    kept = {name: tensor.clone() for name, tensor in strategy.state_dict().items()}
    with torch.inference_mode():
        strategy.prepare_for_eval()
    assert kept.keys() == strategy.state_dict().keys()
    assert all(torch.equal(kept[name], tensor) for name, tensor in strategy.state_dict().items())
    sigma, means, _ = one_by_one(x, y, "exact")
    precision = torch.linalg.pinv(0.99 * sigma + 0.01 * torch.eye(6))
    expected = x @ precision @ means.T - (means @ precision @ means.T).diagonal() / 2
    torch.testing.assert_close(strategy.scores(x), expected, rtol=1e-6, atol=1e-6)
    # Up to a term that all classes share, they are the log densities of normal distributions.
    distances = ((x[:, None] - means) @ precision * (x[:, None] - means)).sum(2)
    assert torch.equal(strategy.scores(x).argmax(1), distances.argmin(1))
    assert (strategy.scores(x).argmax(1) == y).float().mean() > 0.95


def test_classes_without_samples_score_least():
    x, y = clusters(40, 5, 6)
    strategy = make()
    strategy.prepare_for_eval()
    scores = strategy.scores(x)
    assert (scores == scores[0, 0]).all()
    strategy.absorb(x[:80], y[:80])
    strategy.prepare_for_eval()
    scores = strategy.scores(x)
    assert scores.isfinite().all()
    assert (scores[:, 2:].amax(1) < scores[:, :2].amin(1)).all()


def test_the_extractor_is_read_as_it_is(small_trainer_with_batch_norm):
    """In evaluation mode: BatchNorm's statistics are used and do not move."""
    trainer = small_trainer_with_batch_norm("strategy=slda", "strategy.extractor=frozen", "scenario.tasks=1")
    before = {name: buffer.clone() for name, buffer in trainer.learner.model.backbone.named_buffers()}
    trainer.fit()
    assert all(torch.equal(buffer, before[name]) for name, buffer in trainer.learner.model.backbone.named_buffers())
