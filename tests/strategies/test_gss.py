"""GSS against the algorithm written out sample by sample, with gradients from autograd."""

import pytest
import torch
import torch.nn.functional as F

from clbench.learning.parts.memory import EMPTY
from clbench.strategies.gss import GSS
from clbench.testing.small_runs import in_double_precision
from clbench.testing.stepping import finish_task

OPTIONS = ["strategy=gss", "strategy.memory_size=12", "strategy.compared=3", "trainer.max_steps_per_task=6", "trainer.lr=0.3",
           "scenario.tasks=3", "scenario.frozen=null"]  # fmt: skip


def gradient_of_one(trainer, sample: int) -> torch.Tensor:
    """The gradient (P,) of the sample's cross-entropy over the classes seen."""
    model = trainer.learner.model
    samples = trainer.inputs.plain(trainer.scenario.train, torch.tensor([sample]))
    logits = model(samples.x.double())[:, model.answer.visible(samples.task)]
    parameters = list(model.trained().values())
    return torch.cat([g.reshape(-1) for g in torch.autograd.grad(F.cross_entropy(logits, samples.y), parameters)])


@pytest.fixture
def trainer(small_trainer):
    return in_double_precision(small_trainer(*OPTIONS))


def test_the_memory_is_that_of_the_algorithm(trainer, monkeypatch):
    ids, scores = [], []  # of the memory, written out
    replaced, stored = 0, 0
    after_step = GSS.after_step

    def compare(self, step, batch):
        nonlocal replaced, stored
        x = [gradient_of_one_cached(int(i)) for i in trainer_step_reference]
        for place, draws in zip(
            batch.columns["gss.offered"].tolist(), batch.columns["gss.draws"].tolist(), strict=True
        ):
            sample = int(batch.ids[place])
            g = gradient_of_one_cached(sample)
            c = max((float(F.cosine_similarity(g, other, dim=0)) for other in x), default=-0.9) + 1
            if len(ids) < 12:
                ids.append(sample)
                scores.append(c)
                stored += 1
                continue
            if c >= 1:
                continue
            first, second = draws
            total, slot = sum(scores), 0
            while slot < 11 and sum(scores[: slot + 1]) < first * total:
                slot += 1
            if second < scores[slot] / (scores[slot] + c):
                ids[slot], scores[slot] = sample, c
                replaced += 1
        after_step(self, step, batch)
        assert self.ids[: len(ids)].tolist() == ids
        torch.testing.assert_close(
            self.scores[: len(ids)], torch.tensor(scores, dtype=torch.float64), rtol=1e-9, atol=1e-9
        )

    trainer_step_reference: list[int] = []
    cache: dict[int, torch.Tensor] = {}

    def gradient_of_one_cached(sample):
        if sample not in cache:
            with torch.enable_grad():
                cache[sample] = gradient_of_one(trainer, sample)
        return cache[sample]

    recalled = trainer._recalled

    def remember(step):
        step = recalled(step)
        cache.clear()
        trainer_step_reference[:] = step.reference.tolist()
        return step

    monkeypatch.setattr(trainer, "_recalled", remember)
    monkeypatch.setattr(GSS, "after_step", compare)
    for _ in range(3):
        trainer.begin_task()
        finish_task(trainer)
    assert stored == 12
    assert replaced > 5  # else nothing has been compared


def test_replayed_are_stored_samples_of_that_moment(trainer):
    strategy = trainer.learner.strategies[0]
    for _ in range(2):
        trainer.begin_task()
        while trainer.step < len(trainer.steps):
            stored = set(strategy.ids[:12].tolist()) - {EMPTY}
            step = trainer._recalled(trainer.steps[trainer.step])
            replayed = step.ids[step.n_new :].tolist()
            assert set(replayed) <= stored  # no empty slot is drawn from
            assert len(replayed) == len(set(replayed)) == min(step.n_new, len(stored))
            trainer.advance()
        trainer.end_task()


def test_gradients_that_all_point_one_way_replace_nothing(trainer, monkeypatch):
    monkeypatch.setattr(GSS, "_gradients", lambda self, samples: samples.x.new_ones(len(samples.y), 4))
    trainer.begin_task()
    finish_task(trainer)
    first = trainer.learner.strategies[0].ids[:12].clone()
    trainer.begin_task()
    finish_task(trainer)
    assert torch.equal(trainer.learner.strategies[0].ids[:12], first)


def test_a_sample_is_offered_once(trainer):
    trainer.config.trainer.epochs, trainer.config.trainer.max_steps_per_task = 2, None
    trainer.begin_task()
    strategy = trainer.learner.strategies[0]
    n = len(trainer.scenario.train.ids(0))
    offered = torch.cat([step.ids[step.columns["gss.offered"]] for step in trainer.steps])
    assert torch.equal(offered.sort().values, trainer.scenario.train.ids(0))
    assert sum(s.n_new for s in trainer.steps) == 2 * n
    finish_task(trainer)
    assert int(strategy.n_seen) == n
