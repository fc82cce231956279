"""SCR against its loss in three loops, and the nearest mean against the stored samples."""

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from clbench.data.augment import _grey
from clbench.errors import ConfigError
from clbench.learning.base import Batch
from clbench.learning.parts.memory import EMPTY
from clbench.strategies.scr import SCR as SCRStrategy
from clbench.strategies.scr import supervised_contrastive
from clbench.testing.pairs import options_of
from clbench.testing.stepping import finish_stage, finish_task

SCR = [
    "strategy=scr",
    "strategy.memory_size=14",
    "strategy.replay_batch_size=6",
    "strategy.projection=8",
    "trainer.lr=0.1",
]


def by_loops(z, y, temperature: float) -> list[float]:
    """−1/|P(i)| Σ_p log of the softmax without i, for every i; 0 without positives."""
    z, losses = z.detach(), []
    for i in range(len(z)):
        total, n = 0.0, 0
        for p in range(len(z)):
            if p == i or y[p] != y[i]:
                continue
            denominator = 0.0
            for a in range(len(z)):
                if a != i:
                    denominator += math.exp(float(z[i] @ z[a]) / temperature)
            total += math.log(math.exp(float(z[i] @ z[p]) / temperature) / denominator)
            n += 1
        losses.append(-total / n if n else 0.0)
    return losses


def views(n: int, n_classes: int, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    z = F.normalize(torch.randn(n, 5, generator=generator, dtype=torch.float64))
    return z.requires_grad_(), torch.randint(0, n_classes, (n,), generator=generator)


@pytest.mark.parametrize("temperature", [0.07, 0.1, 1.0])
def test_the_loss_in_three_loops_without_a_base_temperature(temperature):
    """Avalanche multiplies it by temperature / 0.07."""
    z, y = views(12, 3)
    losses = supervised_contrastive(z, y, temperature)
    torch.testing.assert_close(losses, torch.tensor(by_loops(z, y, temperature)).double())


def test_a_class_with_a_single_view_adds_0_and_no_nan():
    z, y = views(6, 2)
    y = torch.tensor([0, 1, 0, 0, 2, 0])
    losses = supervised_contrastive(z, y, 0.07)
    assert losses[1] == losses[4] == 0
    torch.testing.assert_close(losses, torch.tensor(by_loops(z, y, 0.07)).double())
    losses.sum().backward()
    assert z.grad.isfinite().all()
    alone = torch.ones(1, 1, requires_grad=True)
    supervised_contrastive(alone, torch.tensor([0]), 0.07).sum().backward()
    assert alone.grad.tolist() == [[0.0]]


def test_close_views_do_not_overflow():
    z = torch.eye(4)[[0, 0, 1, 1]]
    assert supervised_contrastive(z, torch.tensor([0, 0, 1, 1]), 0.001).tolist() == [0.0] * 4
    apart = supervised_contrastive(z, torch.tensor([0, 1, 0, 1]), 0.001)
    assert apart.tolist() == pytest.approx([1000.0] * 4)


@pytest.fixture
def in_second_task(small_trainer):
    """A function: overrides → a trainer in the second task of split_digits."""

    def make(*overrides: str):
        trainer = small_trainer(*SCR, *overrides)
        trainer.fit_task()
        trainer.begin_task()
        return trainer

    return make


def planned_batch(trainer, step: int = 0):
    """The batch of a planned step, as the trainer makes it."""
    planned = trainer.steps[step]
    samples = trainer.inputs.training(trainer.scenario.train, planned.ids, trainer.task, step)
    return Batch(samples, planned.ids, planned.n_new, columns=planned.columns)


def test_the_terms_are_of_both_views_of_new_and_replayed_samples(in_second_task):
    trainer = in_second_task()
    strategy, model = trainer.learner.strategies[0], trainer.learner.model
    batch = planned_batch(trainer)
    assert (batch.n_new, len(batch.ids)) == (8, 14)
    terms = trainer.learner.loss(batch)
    both = torch.cat([batch.samples.x, strategy.second_view(batch)])
    with torch.no_grad():
        z = F.normalize(strategy.projection(model.features(both))).double()
    losses = by_loops(z, batch.samples.y.repeat(2), 0.07)
    of_new = [losses[i] for i in range(28) if i % 14 < 8]
    assert terms["new"].item() == pytest.approx(sum(of_new) / 28, rel=1e-4)
    assert terms["new"].item() + terms["replay"].item() == pytest.approx(sum(losses) / 28, rel=1e-4)


def test_the_second_view_is_another_one_for_every_sample_and_step(in_second_task):
    trainer = in_second_task("strategy.crop=null", "strategy.flip=false", "strategy.grey=0.0")
    strategy = trainer.learner.strategies[0]
    jitters = []
    for step in range(2):
        batch = planned_batch(trainer, step)
        x, view = batch.samples.x, strategy.second_view(batch)
        assert view.shape == x.shape
        pixels = [(t - strategy.shift) / strategy.scale for t in (x, view)]
        assert pixels[1].min() >= -1e-3
        assert pixels[1].max() <= 255 + 1e-3
        changed = (pixels[0] - pixels[1]).abs().flatten(1).amax(1) > 0.01
        brightness = batch.columns["scr.view0"]
        assert torch.equal(changed, brightness != 1)
        jitters.append(brightness)
    both = torch.cat(jitters)
    assert 0.5 < (both != 1).float().mean() < 1  # 0.8
    assert len(both[both != 1].unique()) == int((both != 1).sum())
    assert both.min() >= 0.6
    assert both.max() <= 1.4


def test_grey_takes_the_colour_and_nothing_else(small_setup):
    plain = ["strategy.crop=null", "strategy.flip=false", "strategy.grey=1.0", "strategy.jitter=0.001"]
    strategy = small_setup(*SCR, *plain).learner.strategies[0]
    images = 255 * torch.rand(4, 3, 8, 8)
    drawn = strategy._draw(4, torch.Generator().manual_seed(0))
    assert drawn[-1].tolist() == [0.0] * 4
    grey = strategy.augmentation.apply(images, drawn)
    torch.testing.assert_close(grey, _grey(images).expand_as(images), rtol=0.01, atol=1.0)


def test_without_an_augmentation_both_views_are_the_same(in_second_task):
    trainer = in_second_task("strategy.crop=null", "strategy.flip=false", "strategy.jitter=0.0", "strategy.grey=0.0")
    batch = planned_batch(trainer)
    assert trainer.learner.strategies[0].second_view(batch) is batch.samples.x


def test_the_memory_holds_images_and_labels_of_its_ids(small_trainer):
    trainer = small_trainer(*SCR, "trainer.max_steps_per_task=6")
    strategy, train = trainer.learner.strategies[0], trainer.scenario.train
    for _ in range(3):
        trainer.begin_task()
        finish_task(trainer)
        ids = strategy.memory.ids
        held = ids != EMPTY
        images, labels, _ = train.take(ids[held])
        assert torch.equal(strategy.images[:-1][held], images)
        assert torch.equal(strategy.labels[:-1][held], labels)
        assert (strategy.labels[:-1][~held] == EMPTY).all()
    assert held.all()


def test_prediction_is_by_the_nearest_mean_of_the_memory(small_trainer):
    """Within a task, too; and a class of which nothing is stored comes last."""
    trainer = small_trainer(*SCR)
    strategy, model = trainer.learner.strategies[0], trainer.learner.model
    for task in range(2):
        trainer.begin_task()
        while trainer.step < len(trainer.steps):
            trainer.advance()
            if task == 0:
                trainer.learner.eval()
                check_nearest_mean(trainer, strategy, model)
                trainer.train_mode()
        trainer.end_task()
    trainer.learner.eval()
    strategy.labels[strategy.labels == 1] = EMPTY
    logits = check_nearest_mean(trainer, strategy, model)
    assert (logits[:, 1] < logits[:, [0, 2, 3]].amin(1)).all()


def check_nearest_mean(trainer, strategy, model):
    test = trainer.scenario.test
    x = trainer.inputs.plain(test, test.ids(0)).x
    with torch.no_grad():
        strategy.prepare_for_eval()
        logits, phi = strategy.predict(x, None), F.normalize(model.features(x))
        stored = strategy.labels[:-1]
        for c in set(stored.tolist()) - {EMPTY}:
            images = strategy.images[:-1][stored == c]
            own = F.normalize(model.features(trainer.inputs.normalise(images)))
            mean = F.normalize(own.mean(0), dim=0)
            torch.testing.assert_close(logits[:, c], -(phi - mean).square().sum(1), rtol=1e-4, atol=1e-4)
    return logits


def test_before_the_first_step_no_class_is_preferred(small_trainer):
    trainer = small_trainer(*SCR)
    trainer.begin()
    trainer.begin_task()
    learner = trainer.learner.eval()
    learner.prepare_for_eval()
    with torch.no_grad():
        logits = learner.predict(planned_batch(trainer).samples.x, None)
    assert (logits[:, 0] == logits[:, 1]).all()
    finish_stage(trainer)


def test_samples_without_a_second_view_are_refused(small_setup):
    model = small_setup(*SCR).learner.model
    texts = SimpleNamespace(reads="tokens", name="texts", n_classes=2, n_tasks=1, n_groups=1, train=range(100))
    with pytest.raises(ConfigError, match="makes a second view of images, and the samples of texts are tokens"):
        SCRStrategy(options_of("scr"), model, texts)


def test_it_learns_without_boundaries(small_trainer):
    trainer = small_trainer(*SCR, "scenario=blurry_digits", "trainer.reset_optimizer=false")
    trainer.fit()
    assert int(trainer.learner.strategies[0].memory.n_seen) > 14
