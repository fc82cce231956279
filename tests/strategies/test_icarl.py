"""iCaRL and EEIL: what is chosen, compared, distilled and fine-tuned."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from clbench.learning.parts.exemplars import herding
from clbench.learning.parts.memory import EMPTY

ICARL = ["strategy=icarl", "strategy.memory_size=40"]
EEIL = ["strategy=eeil", "strategy.memory_size=40", "strategy.tuning_epochs=2"]


def herded_by_hand(features, n):
    """Algorithm 4 of the paper, one sum at a time."""
    mean = features.mean(axis=0)
    taken = []
    for k in range(1, n + 1):
        best = min(
            (i for i in range(len(features)) if i not in taken),
            key=lambda i: np.linalg.norm(mean - (features[i] + sum(features[j] for j in taken)) / k),
        )
        taken.append(best)
    return taken


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 8), st.integers(1, 5), st.integers(0, 10**6))
def test_herding_is_the_greedy_loop_and_shorter_lists_are_beginnings_of_longer_ones(n, d, seed):
    features = np.random.default_rng(seed).normal(size=(8, d))
    taken = herding(torch.from_numpy(features), n).tolist()
    assert taken == herded_by_hand(features, n)
    assert herding(torch.from_numpy(features), 20).tolist()[:n] == taken


@pytest.mark.parametrize("options", [ICARL, EEIL])
def test_every_class_has_its_share_and_the_first_of_those_it_had(options, small_trainer):
    trainer = small_trainer(*options)
    memory, before = trainer.learner.strategies[0].memory, {}
    for task in range(5):
        trainer.fit_task()
        of_classes = memory.of_classes()
        quota = 40 // (2 * task + 2)
        assert sorted(of_classes) == list(range(2 * task + 2))
        for c, ids in of_classes.items():
            assert len(ids) == quota == len(set(ids.tolist()))
            assert (trainer.scenario.train.labels_of(ids) == c).all()
            if c in before:
                assert before[c][:quota].tolist() == ids.tolist()
        stored = memory.ids != EMPTY
        images, labels, _ = trainer.scenario.train.take(memory.ids[stored])
        assert torch.equal(memory.images[stored], images)
        assert torch.equal(memory.labels[stored], labels)
        before = of_classes


def test_exemplars_are_chosen_by_the_network_at_the_end_of_the_task(small_trainer):
    trainer = small_trainer(*ICARL)
    trainer.fit_task()
    learner, split = trainer.learner.eval(), trainer.scenario.train
    ids = split.ids(0)
    ids = ids[split.labels_of(ids) == 1]
    with torch.no_grad():
        features = F.normalize(learner.model.features(trainer.inputs.plain(split, ids).x).double()).numpy()
    assert learner.strategies[0].memory.of_classes()[1].tolist() == ids[herded_by_hand(features, 20)].tolist()


def test_with_all_data_as_exemplars_it_is_the_nearest_class_mean(small_trainer):
    trainer = small_trainer("strategy=icarl", "strategy.memory_size=4000")
    trainer.fit_task()
    trainer.fit_task()
    learner, train, test = trainer.learner.eval(), trainer.scenario.train, trainer.scenario.test
    ids, x = torch.cat([train.ids(0), train.ids(1)]), trainer.inputs.plain(test, test.ids(1)).x
    with torch.no_grad():
        phi = F.normalize(learner.model.features(trainer.inputs.plain(train, ids).x))
        labels = train.labels_of(ids)
        means = torch.stack([F.normalize(phi[labels == c].mean(0), dim=0) for c in range(4)])
        query = F.normalize(learner.model.features(x))
        expected = -torch.tensor([[float((q - m).square().sum()) for m in means] for q in query])
        learner.prepare_for_eval()
        logits = learner.predict(x, None)
    torch.testing.assert_close(logits[:, :4], expected, rtol=1e-4, atol=1e-5)
    assert logits[:, 4:].isneginf().all()


def test_a_class_is_predicted_while_it_is_learned(small_trainer):
    """From its first step on, by a random draw of its samples: as many as its share will be."""
    trainer = small_trainer(*ICARL, "evaluator.every=1")
    trainer.fit_task()
    trainer.task = 1
    trainer.begin_task()
    counts = torch.bincount(trainer.learner.strategies[0].memory.labels.clamp(min=-1) + 1, minlength=11)[1:]
    assert counts[:4].tolist() == [20, 20, 10, 10]
    trainer.advance()
    latest = trainer.curve[trainer.curve.iteration == trainer.iteration]
    assert latest.correct.sum() > 0


def bce(z, target):
    return -(target * np.log(1 / (1 + np.exp(-z))) + (1 - target) * np.log(1 - 1 / (1 + np.exp(-z))))


@pytest.mark.parametrize(("loss", "divisor"), [("bce_sum", 1), ("bce_mean", 4)])
def test_the_loss_is_that_of_algorithm_3(loss, divisor, small_trainer, batch_of):
    trainer = small_trainer(*ICARL, f"strategy.loss={loss}")
    trainer.fit_task()
    trainer.task = 1
    trainer.begin_task()
    strategy, model = trainer.learner.strategies[0], trainer.learner.model
    with torch.no_grad():
        model.head.weight.add_(0.3 * torch.randn_like(model.head.weight))
    split = trainer.scenario.train
    batch = batch_of(trainer, torch.cat([split.ids(1)[:3], split.ids(0)[:2]]))
    z, teacher = model(batch.samples.x).tolist(), strategy.teacher(batch.samples.x).tolist()
    y = batch.samples.y.tolist()
    new = np.mean([sum(bce(z[i][c], float(y[i] == c)) for c in (2, 3)) for i in range(5)]) / divisor
    old = np.mean([sum(bce(z[i][c], 1 / (1 + np.exp(-teacher[i][c]))) for c in (0, 1)) for i in range(5)]) / divisor
    terms = trainer.learner.loss(batch)
    assert {name: term.item() for name, term in terms.items()} == pytest.approx(
        {"new": new, "distillation": old}, rel=1e-5
    )


def test_batches_are_of_new_samples_and_exemplars_together(small_trainer):
    trainer = small_trainer(*ICARL, "trainer.epochs=1", "trainer.max_steps_per_task=null")
    trainer.fit_task()
    exemplars = set(trainer.learner.strategies[0].memory.of_earlier(trainer._task).tolist())
    assert not exemplars
    kept = trainer.learner.strategies[0].memory.ids
    trainer.task = 1
    expected = sorted([*trainer.scenario.train.ids(1).tolist(), *kept[kept != EMPTY].tolist()])
    trainer.begin_task()
    seen = torch.cat([step.ids for step in trainer.steps])
    assert sorted(seen.tolist()) == expected
    assert all(step.n_new == len(step.ids) for step in trainer.steps)


def test_no_pull_to_the_teacher_before_the_first_step(small_trainer, record_terms):
    trainer = small_trainer(*EEIL)
    rows = record_terms(trainer)
    trainer.fit_task()
    trainer.fit_task()
    gradients = [terms["distillation"] for task, step, terms in rows if (task, step) == (1, 0)]
    assert not gradients[0].any()


def test_the_second_stage_is_balanced_and_changes_all_weights(small_trainer):
    """From the second task on: two passes over equally many exemplars of every class, new ones included."""
    trainer = small_trainer(*EEIL, "trainer.max_steps_per_task=50", "trainer.epochs=1")
    trainer.fit_task()
    assert trainer.iteration == -(-len(trainer.scenario.train.ids(0)) // 8)  # no second stage
    trainer.begin_task()
    while trainer.step < len(trainer.steps):
        trainer.advance()
    before = [p.detach().clone() for p in trainer.parameters]
    assert trainer.begin_stage()
    memory = trainer.learner.strategies[0].memory
    assert {c: len(ids) for c, ids in memory.of_classes().items()} == dict.fromkeys(range(4), 10)
    seen = torch.cat([step.ids for step in trainer.steps])
    assert sorted(seen.tolist()) == sorted(2 * memory.ids[memory.ids != EMPTY].tolist())
    assert trainer.learning_rates[0] == pytest.approx(0.01)
    while trainer.step < len(trainer.steps):
        trainer.advance()
    assert not any(torch.equal(was, p) for was, p in zip(before, trainer.parameters, strict=True))
    assert not trainer.begin_stage()


def test_distillation_is_over_every_earlier_tasks_outputs(small_trainer, batch_of):
    trainer = small_trainer(*EEIL, "strategy.lam=0.7", "strategy.temperature=3.0")
    for _ in range(2):
        trainer.fit_task()
    trainer.begin_task()
    strategy, model = trainer.learner.strategies[0], trainer.learner.model
    with torch.no_grad():
        model.head.weight.add_(0.3 * torch.randn_like(model.head.weight))
    batch = batch_of(trainer, trainer.scenario.train.ids(2)[:5])
    z, teacher = model(batch.samples.x) / 3, strategy.teacher(batch.samples.x) / 3
    expected = sum(
        F.kl_div(z[:, part].log_softmax(1), teacher[:, part].softmax(1), reduction="batchmean")
        for part in (slice(0, 2), slice(2, 4))
    )
    torch.testing.assert_close(trainer.learner.loss(batch)["distillation"], 0.7 * expected)
