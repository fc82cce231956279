"""CoPE against its loss in two loops, its prototypes and its memory written out."""

import math

import pytest
import torch
import torch.nn.functional as F

from clbench.strategies.cope import CoPE, proxy_losses
from clbench.testing.small_runs import in_double_precision
from clbench.testing.stepping import finish_task

COPE = ["strategy=cope", "strategy.memory_size=20", "strategy.embedding=6", "trainer.lr=0.1"]


def by_loops(f, y, prototypes, seen, T: float) -> list[float]:
    """The loss of every sample, term by term."""
    f = f.detach()

    def P(v, sample, c):
        own = math.exp(float(v @ sample) / T)
        others = sum(math.exp(float(prototypes[k] @ sample) / T) for k in range(len(seen)) if seen[k] and k != c)
        return own / (own + others)

    losses = []
    for i in range(len(y)):
        c = int(y[i])
        batch = [j for j in range(len(y)) if y[j] == c and j != i]
        attracted = [P(prototypes[c], f[i], c), *(P(f[j], f[i], c) for j in batch)]
        loss = -math.log(sum(attracted) / len(attracted))
        for j in range(len(y)):
            if y[j] != c:
                loss -= math.log(1 - (P(f[i], f[j], c) + P(prototypes[c], f[j], c)) / 2)
        losses.append(loss)
    return losses


def embedded(n: int, n_classes: int, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    f = F.normalize(torch.randn(n, 5, generator=generator, dtype=torch.float64)).requires_grad_()
    prototypes = F.normalize(torch.rand(n_classes, 5, generator=generator, dtype=torch.float64))
    return f, torch.randint(0, n_classes, (n,), generator=generator), prototypes


@pytest.mark.parametrize("T", [0.1, 1.0])
def test_the_loss_in_two_loops(T):
    """Class 3 is seen and not in the batch; class 4 is not seen and takes no part."""
    f, y, prototypes = embedded(9, 5)
    y = y % 3
    seen = torch.tensor([True, True, True, True, False])
    losses = proxy_losses(f, y, prototypes, seen, T)
    torch.testing.assert_close(losses, torch.tensor(by_loops(f, y, prototypes, seen, T)).double())
    everything = proxy_losses(f, y, prototypes, torch.ones(5, dtype=torch.bool), T)
    assert not torch.allclose(losses, everything)


def test_the_others_embeddings_are_held_constant_where_they_attract():
    """All of one class, beside another's prototype: the gradient is that of the loops with the other embeddings detached."""
    f, _, prototypes = embedded(3, 2)
    y, seen = torch.zeros(3, dtype=torch.int64), torch.ones(2, dtype=torch.bool)
    (gradient,) = torch.autograd.grad(proxy_losses(f, y, prototypes, seen, 0.5).sum(), f)
    expected = torch.zeros_like(f)
    for i in range(3):
        own = f[i].detach().requires_grad_()
        others = torch.exp(own @ prototypes[1] / 0.5)
        terms = [torch.exp(own @ v / 0.5) for v in (prototypes[0], *(f[j].detach() for j in range(3) if j != i))]
        loss = -torch.stack([t / (t + others) for t in terms]).mean().log()
        (expected[i],) = torch.autograd.grad(loss, own)
    torch.testing.assert_close(gradient, expected)


def test_a_single_class_gives_neither_loss_nor_nan():
    f, _, prototypes = embedded(4, 3)
    y, seen = torch.ones(4, dtype=torch.int64), torch.tensor([False, True, False])
    losses = proxy_losses(f, y, prototypes, seen, 0.1)
    assert losses.tolist() == [0.0] * 4
    losses.sum().backward()
    assert f.grad.tolist() == [[0.0] * 5] * 4


def test_where_a_stranger_is_taken_for_ones_own_the_loss_is_large_and_finite():
    """The authors' log(1 − P) becomes −∞ there, in single precision, and their training ends."""
    f = torch.eye(3)[[0, 0]].requires_grad_()
    y, prototypes = torch.tensor([0, 1]), torch.eye(3)[[0, 2]]
    seen = torch.ones(2, dtype=torch.bool)
    losses = proxy_losses(f, y, prototypes, seen, 0.01)
    assert float(losses[0]) == pytest.approx(100.0, rel=1e-3)
    assert losses.isfinite().all()
    losses.sum().backward()
    assert f.grad.isfinite().all()


@pytest.mark.parametrize(
    ("alpha", "replayed"), [(0.7, 8), (0.0, 1)]
)  # with few replayed, classes are absent from batches
def test_prototypes_follow_the_embeddings_of_the_forward_pass(alpha, replayed, small_trainer, monkeypatch):
    """α p + (1 − α) mean, normalised; with the embeddings before the optimizer's step, though the hook comes after it."""
    options = [f"strategy.momentum={alpha}", f"strategy.replay_batch_size={replayed}"]
    trainer = in_double_precision(small_trainer(*COPE, *options))
    strategy = trainer.learner.strategies[0]
    data_loss, found = CoPE.data_loss, {}

    def remembered(self, batch, outputs):
        found.update(f=F.normalize(self.embedding(outputs.features)).detach(), y=batch.samples.y)
        return data_loss(self, batch, outputs)

    monkeypatch.setattr(CoPE, "data_loss", remembered)
    seen: set[int] = set()
    for _ in range(2):
        trainer.begin_task()
        while trainer.step < len(trainer.steps):
            before = strategy.prototypes.clone()
            trainer.advance()
            seen |= set(found["y"].tolist())
            for c in range(10):
                of_class = found["f"][found["y"] == c]
                expected = before[c]
                if len(of_class):
                    expected = alpha * before[c] + (1 - alpha) * of_class.mean(0)
                    expected = expected / expected.norm()
                torch.testing.assert_close(strategy.prototypes[c], expected, rtol=1e-6, atol=1e-8)
            assert strategy.seen.nonzero().flatten().tolist() == sorted(seen)
        trainer.end_task()


def test_terms_add_up_to_the_mean_over_the_batch(small_trainer, batch_of):
    trainer = small_trainer(*COPE)
    trainer.fit_task()
    trainer.begin_task()
    strategy, split = trainer.learner.strategies[0], trainer.scenario.train
    batch = batch_of(trainer, split.ids(1)[:4], split.ids(0)[:3])
    terms = trainer.learner.loss(batch)
    with torch.no_grad():
        f = F.normalize(strategy.embedding(trainer.learner.model.features(batch.samples.x))).double()
    seen = torch.arange(10) < 4  # those of the batch are seen from now on
    losses = by_loops(f, batch.samples.y, strategy.prototypes.double(), seen, 0.1)
    assert terms["new"].item() == pytest.approx(sum(losses[:4]) / 7, rel=1e-4)
    assert terms["replay"].item() == pytest.approx(sum(losses[4:]) / 7, rel=1e-4)


def test_prediction_is_by_the_nearest_prototype_of_a_class_seen(small_trainer):
    trainer = small_trainer(*COPE)
    trainer.fit_task()
    learner, test = trainer.learner.eval(), trainer.scenario.test
    strategy = learner.strategies[0]
    x = trainer.inputs.plain(test, test.ids(0)).x
    with torch.no_grad():
        f = F.normalize(strategy.embedding(learner.model.features(x)))
        logits = learner.predict(x, None)
        torch.testing.assert_close(logits[:, :2], 10 * f @ strategy.prototypes[:2].T)
        strategy.seen[0] = False
        assert (learner.predict(x, None)[:, :2].argmax(1) == 1).all()


def test_the_memory_has_an_equal_share_of_every_class_seen(small_trainer):
    trainer = small_trainer(*COPE, "trainer.epochs=1", "trainer.max_steps_per_task=null")
    strategy, split = trainer.learner.strategies[0], trainer.scenario.train
    for task in range(3):
        trainer.fit_task()
        held = strategy.memory[strategy.memory >= 0]
        assert torch.bincount(split.labels_of(held)).tolist() == [20 // (2 * task + 2)] * (2 * task + 2)
        assert len(set(held.tolist())) == len(held)


def test_it_learns_without_boundaries(small_trainer):
    trainer = small_trainer(*COPE, "scenario=blurry_digits", "trainer.reset_optimizer=false")
    trainer.fit()
    assert trainer.learner.strategies[0].seen.sum() > 4


def test_replay_begins_when_there_is_something_to_replay(small_trainer):
    trainer = small_trainer(*COPE)
    trainer.begin_task()
    assert [len(step.ids) - step.n_new for step in trainer.steps] == [0, 8, 8, 8]
    finish_task(trainer)
    trainer.begin_task()
    assert [len(step.ids) - step.n_new for step in trainer.steps] == [8, 8, 8, 8]
