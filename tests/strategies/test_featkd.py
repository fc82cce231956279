"""FeatKD against its formula."""

import pytest
import torch

from clbench.errors import ConfigError


def moved(model):
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))


def expected(lam, features, teachers):
    """λ Σ (h − h̄)² / (samples · features), entry by entry."""
    pairs = [
        (a, b) for h, t in zip(features.tolist(), teachers.tolist(), strict=True) for a, b in zip(h, t, strict=True)
    ]
    return lam * sum((a - b) ** 2 for a, b in pairs) / len(pairs)


@pytest.mark.parametrize("task", [0, 1])
def test_term_is_the_mean_squared_difference_to_the_features_before_the_task(task, small_setup, task_of, batch_of):
    """Of the new samples, in the first task (to the initial features) as in later ones."""
    setup = small_setup("strategy=featkd", "strategy.lam=0.7", "model.hidden=[6]")
    learner = setup.learner
    for index in range(task + 1):
        moved(learner.model)  # so that the teacher is not the network of an earlier task
        learner.begin_task(task_of(setup, index))
        if index < task:
            learner.end_task(task_of(setup, index))
    new = task_of(setup, task).ids[:5]
    batch = batch_of(setup, new, task_of(setup, task).ids[5:8])  # the last three are replayed
    teacher = learner.model.features(batch.samples.x[:5]).detach()
    moved(learner.model)
    term = learner.loss(batch)["featkd"]
    student = learner.model.features(batch.samples.x[:5])
    assert term.item() == pytest.approx(expected(0.7, student, teacher), rel=1e-5)
    assert torch.autograd.grad(term, learner.model.head.weight, allow_unused=True)[0] is None  # the head is free


def test_the_first_task_may_be_left_free(small_trainer, learn_tasks, record_terms):
    trainer = small_trainer("strategy=featkd", "strategy.from_start=false")
    rows = record_terms(trainer)
    learn_tasks(trainer, 2)
    assert {task for task, _, terms in rows if "featkd" in terms} == {1}


def test_first_step_pulls_nowhere_from_the_first_task_on(small_trainer, learn_tasks, record_terms):
    trainer = small_trainer("strategy=featkd", "trainer.lr=0.1")
    rows = record_terms(trainer)
    learn_tasks(trainer, 2)
    norms = {(task, step): terms["featkd"].norm().item() for task, step, terms in rows}
    assert norms[0, 0] == norms[1, 0] == 0
    assert min(norm for (_, step), norm in norms.items() if step) > 0


def test_large_weight_keeps_the_features(small_trainer, learn_tasks):
    """λ → ∞ within a step size that gradient descent on the term bears."""
    drift = {}
    for lam in (0, 100):
        trainer = small_trainer("strategy=featkd", f"strategy.lam={lam}", "trainer.lr=1e-3", "trainer.momentum=0",
                                "trainer.max_steps_per_task=100", "evaluator.every=0", checkpoint=str(lam))  # fmt: skip
        x = trainer.inputs.plain(trainer.scenario.train, trainer.scenario.train.ids(0)[:64]).x
        before = trainer.learner.model.features(x).detach()
        learn_tasks(trainer, 1)
        drift[lam] = (trainer.learner.model.features(x) - before).square().mean().item()
    assert drift[100] < drift[0] / 100


def test_refused_where_no_feature_is_trained(small_setup):
    with pytest.raises(ConfigError, match="featkd acts on trained weights of the network, of which there are none"):
        small_setup("strategy=featkd", "model.frozen=1")
