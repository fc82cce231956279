"""DER and DER++: which logits are stored where, and what they are compared with."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from clbench.errors import ConfigError
from clbench.learning.base import Plan

DER = ["strategy=der", "strategy.memory_size=12"]
DERPP = ["strategy=derpp", "strategy.memory_size=12"]


@pytest.fixture
def strategy_of():
    return lambda trainer: trainer.learner.strategies[0]


@pytest.mark.parametrize(("name", "n_draws", "size"), [("der", 1, "3"), ("derpp", 2, "null"), ("derpp", 2, "3")])
def test_the_memory_is_that_of_a_loop_over_samples(name, n_draws, size, small_trainer, strategy_of, monkeypatch):
    """A table slot → (id, logits, task) that is kept sample by sample, from what every step has seen and what it gave."""
    trainer = small_trainer(
        f"strategy={name}",
        "strategy.memory_size=12",
        "trainer.epochs=2",
        "trainer.max_steps_per_task=null",
        f"strategy.replay_batch_size={size}",
        "trainer.batch_size=16",
    )
    strategy, learner = strategy_of(trainer), trainer.learner
    table, seen = {}, set()
    after_step = learner.after_step

    def watched(step, batch):
        drawn = batch.ids[batch.n_new :].tolist()
        slots = batch.columns[f"{name}.read"].tolist()
        assert len(set(slots)) == len(slots) == min(batch.n_new if size == "null" else int(size), len(table))
        assert [table[slot][0] for slot in slots] == drawn[: len(slots)]
        assert len(drawn) == n_draws * len(slots)
        assert set(drawn) <= {i for i, *_ in table.values()}
        for sample, slot, logits in zip(
            batch.ids[: batch.n_new].tolist(),
            batch.columns[f"{name}.write"].tolist(),
            batch.outputs.logits,
            strict=False,
        ):
            if slot < 12:
                assert sample not in seen
                table[slot] = sample, logits.clone(), trainer.task
            seen.add(sample)
        result = after_step(step, batch)
        for slot, (_, logits, task) in table.items():
            assert torch.equal(strategy.logits[slot], logits)
            assert strategy.stored_in[slot] == task
        return result

    monkeypatch.setattr(learner, "after_step", watched)
    trainer.fit()
    assert strategy.memory.ids.tolist() == [table[slot][0] for slot in range(12)]
    assert strategy.memory.n_seen == len(seen)


def test_a_later_sample_of_the_batch_evicts_an_earlier_one(small_trainer, strategy_of):
    """A slot is written once a step, by the sample that the memory holds afterwards."""
    trainer = small_trainer(*DERPP, "trainer.batch_size=60", "trainer.max_steps_per_task=1")
    trainer.begin()
    trainer.begin_task()
    (step,) = trainer.steps
    written = step.columns["derpp.write"]
    kept = written < 12
    assert sorted(written[kept].tolist()) == list(range(12))
    strategy_of(trainer).memory.end_task()
    assert strategy_of(trainer).memory.ids[written[kept]].tolist() == step.ids[:60][kept].tolist()


def test_every_sample_is_kept_equally_often(small_trainer, strategy_of, task_of):
    trainer = small_trainer(*DERPP)
    first, memory = task_of(trainer, 0), strategy_of(trainer).memory
    counts = torch.zeros(60)
    for seed in range(300):
        task = dataclasses.replace(first, seed=seed)
        memory.plan(task, Plan(new=list(task.ids[:60].split(10))), 1, None)
        ids, n_seen = memory._after_task
        counts += torch.isin(first.ids[:60], torch.from_numpy(ids))
        assert n_seen == 60
    assert counts.sum() == 300 * 12
    assert ((counts / 300 - 12 / 60).abs() < 5 * (0.2 * 0.8 / 300) ** 0.5).all()


@pytest.mark.parametrize(("scope", "seen"), [("all", 10), ("seen", 2)])
def test_the_loss_is_that_of_the_paper(scope, seen, small_trainer, strategy_of, batch_of):
    """α times the mean square over samples and outputs, plus β times the cross-entropy of the other draw."""
    trainer = small_trainer(
        *DERPP, "strategy.alpha=0.3", "strategy.beta=0.7", f"scenario.logit_scope={scope}", "trainer.epochs=1"
    )
    trainer.fit_task()
    trainer.task = 1
    trainer.begin_task()
    strategy, model = strategy_of(trainer), trainer.learner.model
    new, first, second = (torch.tensor(ids) for ids in ([200, 201], [3, 4, 5], [6, 7, 8]))
    slots = torch.tensor([5, 0, 2])
    batch = batch_of(trainer, new, torch.cat([first, second]), columns={"derpp.read": slots})
    terms = trainer.learner.loss(batch)
    z = model(batch.samples.x)
    square = sum(
        (z[2 + i, c] - strategy.logits[slot, c]) ** 2 for i, slot in enumerate(slots.tolist()) for c in range(seen)
    )
    torch.testing.assert_close(terms["logits"], 0.3 * square / (3 * seen))
    restricted = model.answer.restrict(z, batch.samples.task)
    torch.testing.assert_close(terms["labels"], 0.7 * F.cross_entropy(restricted[5:], batch.samples.y[5:]))
    torch.testing.assert_close(terms["new"], F.cross_entropy(restricted[:2], batch.samples.y[:2]))


def test_no_distance_to_logits_just_stored(small_trainer, strategy_of, batch_of):
    trainer = small_trainer(*DERPP, "trainer.lr=1e-30", "trainer.max_steps_per_task=3")
    trainer.fit_task()
    strategy = strategy_of(trainer)
    filled = torch.arange(12)
    batch = batch_of(trainer, torch.tensor([0]), strategy.memory.ids.repeat(2), columns={"derpp.read": filled})
    assert trainer.learner.loss(batch)["logits"].item() == pytest.approx(0, abs=1e-10)


def test_without_weights_it_is_finetuning(small_trainer):
    options = (
        ["strategy=finetune"],
        [*DERPP, "strategy.alpha=0.0", "strategy.beta=0.0"],
        [*DER, "strategy.alpha=0.0", "scenario.logit_scope=seen"],
    )
    runs = [small_trainer(*chosen, checkpoint=str(index)) for index, chosen in enumerate(options)]
    for trainer in runs:
        trainer.fit()
    for other in runs[1:]:
        for mine, its in zip(runs[0].learner.model.parameters(), other.learner.model.parameters(), strict=True):
            torch.testing.assert_close(mine, its, rtol=1e-4, atol=1e-5)
        assert (runs[0].tasks.correct == other.tasks.correct).all()


def test_der_is_that_without_labels(small_trainer, strategy_of, batch_of):
    """One draw, and the distance of DER++: with its first draw and its memory, the two terms are the same."""
    common = ["strategy.alpha=0.3", "scenario.logit_scope=seen"]
    trainers = [small_trainer(*options, *common, checkpoint=options[0]) for options in (DER, DERPP)]
    trainers[0].fit()
    assert set(trainers[0].training.term) == {"new", "logits"}
    strategy_of(trainers[1]).load_state_dict(strategy_of(trainers[0]).state_dict(), strict=False)
    trainers[1].learner.model.load_state_dict(trainers[0].learner.model.state_dict())
    slots, drawn, labels = torch.tensor([5, 0, 2]), torch.tensor([3, 4, 5]), torch.tensor([6, 7, 8])
    of_der, of_derpp = (
        trainer.learner.loss(batch_of(trainer, torch.tensor([200, 201]), replayed, columns={f"{name}.read": slots}))
        for trainer, name, replayed in zip(trainers, ("der", "derpp"), (drawn, torch.cat([drawn, labels])), strict=True)
    )
    assert set(of_derpp) - set(of_der) == {"labels"}
    for name, term in of_der.items():
        torch.testing.assert_close(of_derpp[name], term)


def test_der_sees_all_outputs_from_the_start(small_setup):
    """Else stored logits say nothing of later classes, and these win: on digits it is no better than finetuning."""
    assert small_setup(*DER).learner.model.answer.sees_all
    assert not small_setup(*DERPP).learner.model.answer.sees_all


@pytest.mark.parametrize("name", ["der", "derpp"])
def test_a_memory_too_small_is_refused(name, small_setup):
    with pytest.raises(ConfigError, match="memory_size=9 is too small"):
        small_setup(f"strategy={name}", "strategy.memory_size=9")
