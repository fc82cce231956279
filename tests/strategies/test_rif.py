"""RIF: what is kept, by hand-made counts and by draws that are known; and the batches that come of it."""

import pytest
import torch

from clbench.errors import ConfigError
from clbench.strategies.rif import RIF
from clbench.training.trainer import Trainer

STREAM = ["scenario.tasks=3", "scenario.frozen=null"]
RIF_ALONE = ["strategy=rif", *STREAM]


def begun(trainer, monkeypatch, right):
    """A trainer in its first task, whose samples got so many right answers, over and over."""

    def counts(self, task, ids):
        return torch.tensor(right * len(ids))[: len(ids)]

    monkeypatch.setattr(RIF, "_right_answers", counts)
    trainer.begin_task()
    return trainer.learner.strategies[-1]


def planned(trainer):
    return set(torch.cat([step.ids[: step.n_new] for step in trainer.steps]).tolist())


@pytest.mark.parametrize(
    ("options", "keeps"),
    [([], [1, 4, 8]), (["strategy.max_correct=7"], [1, 4]), (["strategy.min_correct=4"], [4, 8])],
)
def test_what_is_kept(options, keeps, small_trainer, monkeypatch):
    """Solved at least once; what is always solved too, unless it is ruled out."""
    whole_epoch = ["trainer.epochs=1", "trainer.max_steps_per_task=null"]
    trainer = small_trainer(*RIF_ALONE, *whole_epoch, *options)
    right = [0, 1, 4, 8]
    strategy = begun(trainer, monkeypatch, right)
    ids = trainer._task.ids.tolist()
    assert planned(trainer) == {i for place, i in enumerate(ids) if right[place % 4] in keeps}
    reported = {(m.quantity, m.part): m.value for m in strategy.measurements()}
    assert reported["kept_share", ""] == pytest.approx(len(planned(trainer)) / len(ids))
    n_solved_once = len(range(1, len(ids), 4))
    assert reported["correct_share", "1 of 8"] == pytest.approx(n_solved_once / len(ids))
    assert sum(value for (quantity, _), value in reported.items() if quantity == "correct_share") == pytest.approx(1)
    assert strategy.notes() == []


def test_tasks_at_the_start_may_be_trained_on_in_full(small_trainer):
    """The same batches as without the filter, and nothing that is said of them."""
    options = [
        "strategy.unfiltered_tasks=1",
        "strategy.rollouts=1",
        "trainer.epochs=1",
        "trainer.max_steps_per_task=null",
    ]
    trainer, twin = (
        small_trainer(*RIF_ALONE, *options),
        small_trainer("strategy=finetune", *options[2:], *STREAM, checkpoint="2"),
    )
    for one in (trainer, twin):
        one.begin_task()
    assert [step.ids.tolist() for step in trainer.steps] == [step.ids.tolist() for step in twin.steps]
    assert trainer.learner.strategies[0].measurements() == []
    trainer.fit_task()
    trainer.begin_task()
    assert len(planned(trainer)) < len(trainer._task.ids)
    assert trainer.learner.strategies[0].measurements()[0].value < 1


def test_what_was_kept_of_earlier_tasks_counts_no_more(small_trainer):
    trainer = small_trainer(*RIF_ALONE, "strategy.min_correct=4", "trainer.epochs=1", "trainer.max_steps_per_task=null")
    trainer.fit_task()
    trainer.begin_task()
    share = len(planned(trainer)) / len(trainer._task.ids)
    assert trainer.learner.strategies[0].measurements()[0].value == pytest.approx(share)


def test_what_is_kept_of_a_stream_in_order_stays_in_order(small_trainer):
    stream = ["scenario.drift=0.5", "scenario.boundaries=told", "trainer.epochs=1", "trainer.max_steps_per_task=null"]
    trainer = small_trainer("strategy=rif", "strategy.rollouts=1", *stream)
    trainer.begin_task()
    arriving, kept = trainer._task.ids.tolist(), torch.cat([step.ids for step in trainer.steps]).tolist()
    assert trainer._task.ordered
    assert 0 < len(kept) < len(arriving)
    assert kept == [sample for sample in arriving if sample in set(kept)]


def test_where_nothing_is_kept_all_is(small_trainer, monkeypatch):
    trainer = small_trainer(*RIF_ALONE, "trainer.epochs=1", "trainer.max_steps_per_task=null")
    strategy = begun(trainer, monkeypatch, [0])
    assert planned(trainer) == set(trainer._task.ids.tolist())
    assert strategy.notes() == [
        "no sample of task 1 had between 1 and 8 right answers of 8: all of its samples were trained on"
    ]


def test_answers_are_those_of_the_network_at_the_tasks_start(small_trainer, learn_tasks):
    """Counts follow the binomial distribution of the label's probability, over the classes seen, without augmentation."""
    trainer = small_trainer(*RIF_ALONE, "strategy.rollouts=400", "trainer.max_steps_per_task=4")
    learn_tasks(trainer, 1)
    trainer.begin_task()
    strategy, task = trainer.learner.strategies[0], trainer._task
    samples = task.samples(task.ids)
    right = strategy._right_answers(task, task.ids) / 400
    with torch.no_grad():
        probability = trainer.learner.model.eval()(samples.x)[:, :4].softmax(1).gather(1, samples.y[:, None])[:, 0]
    error = (probability * (1 - probability) / 400).sqrt()
    typical = probability > 0.05
    assert typical.sum() > 50
    assert ((right - probability) / error)[typical].square().mean().item() == pytest.approx(1, abs=0.3)
    assert probability.std() > 0.02  # else a constant would do


def test_the_filter_leaves_no_trace_in_the_network(small_trainer_with_batch_norm):
    trainer = small_trainer_with_batch_norm("strategy=rif")
    before = {name: value.clone() for name, value in trainer.learner.model.state_dict().items()}
    trainer.begin_task()
    after = trainer.learner.model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert trainer.learner.model.training


@pytest.mark.parametrize("main", ["grpo", "finetune", "er"])
def test_others_see_the_batches_that_it_leaves(main, small_trainer):
    """Whichever is named first: columns and replayed samples are planned for the batches of what is kept."""
    memory = ["strategy.memory_size=40"] if main == "er" else []
    options = ["strategy.rollouts=4", "strategy.min_correct=3", "trainer.epochs=1", "trainer.max_steps_per_task=null"]
    alone = small_trainer("strategy=rif", *options, *STREAM, checkpoint="alone")
    plus = [option.replace("strategy.", "+plus.rif.") for option in options]
    both = small_trainer(f"strategy={main}", "strategy.plus=[rif]", *memory, *plus, *STREAM, checkpoint="both")
    for trainer in (alone, both):
        trainer.begin_task()
    assert [step.ids[: step.n_new].tolist() for step in both.steps] == [step.ids.tolist() for step in alone.steps]
    assert 0 < len(planned(both)) < len(both._task.ids)
    both.fit_task()


def test_what_keeps_nothing_is_refused(small_setup):
    with pytest.raises(ConfigError, match=r"strategy.min_correct=3 and strategy.max_correct=2 of strategy.rollouts=8"):
        small_setup("strategy=rif", "strategy.min_correct=3", "strategy.max_correct=2")
    with pytest.raises(ConfigError, match="more than are drawn"):
        small_setup("strategy=rif", "strategy.max_correct=9")
    with pytest.raises(ConfigError, match=r"strategy.unfiltered_tasks=5 leaves none of the 5 tasks of split_digits"):
        small_setup("strategy=rif", "strategy.unfiltered_tasks=5")


def test_a_budget_of_computation_is_refused(small_setup):
    with pytest.raises(ConfigError, match="strategy rif trains on batches of its own"):
        small_setup("strategy=rif", "trainer.budget=1.0", "trainer.epochs=1", "trainer.max_steps_per_task=null")


def test_a_language_models_answers_are_its_classes_alone(small_setup, tmp_path):
    """What it says beside them is neither drawn nor part of the policy: rewards, filter and KL are those of its answers."""
    pytest.importorskip("transformers")
    spoken = [
        "scenario=small_requests",
        "model.head=verbaliser",
        "strategy.kl=0.1",
        "evaluator.kl_from=0",
        "trainer.lr=0.01",
    ]
    plus = ["strategy.plus=[rif]", "+plus.rif.rollouts=300", "+plus.rif.max_correct=300"]
    setup = small_setup("strategy=grpo", *plus, *spoken, "model=causal_lm", "trainer.max_steps_per_task=3")
    trainer = Trainer(
        *(getattr(setup, n) for n in ("config", "scenario", "learner", "inputs", "evaluator")), tmp_path / "s"
    )
    trainer.begin_task()
    filter_ = trainer.learner.strategies[1]
    samples = trainer._task.samples(trainer._task.ids)
    with torch.no_grad(), trainer.learner.model.in_evaluation_mode():
        logits = trainer.learner.model(samples.x)
    probability = logits[:, :2].softmax(1).gather(1, samples.y[:, None])[:, 0]
    counts = filter_.counts @ torch.arange(301) / 300 / len(samples.y)
    assert counts.item() == pytest.approx(probability.mean().item(), abs=0.03)
    trainer.fit_task()
    kl = trainer.method[trainer.method.strategy == "evaluator"].value
    assert len(kl) == 4
    assert kl.between(1e-6, 10).all()
