"""When samples arrive: gradual drift, boundaries that are set or hidden, and several steps on a batch."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clbench.errors import ConfigError
from clbench.evaluation.metrics import summarise
from clbench.learning.parts.memory import places_offered
from clbench.scenarios.arrival import Arrival, cut_every, drifting
from clbench.seeding import numpy_generator
from clbench.testing.stepping import fit_until
from clbench.training.fleet import Fleet

ONCE = ["trainer.epochs=1", "trainer.max_steps_per_task=null"]
SAME = ["scenario=split_digits", "trainer.batch_size=16"]


def share_of_next(position: float, end: float, half: float) -> float:
    """The share of the next task's samples at a place near the end of a task, as the docstring of drifting says."""
    return float(np.clip((position - (end - half)) / (2 * half), 0, 1))


@settings(deadline=None, max_examples=40)
@given(sizes=st.lists(st.integers(5, 120), min_size=1, max_size=5), drift=st.floats(0.05, 1.0), seed=st.integers(0, 5))
def test_neighbouring_tasks_pass_linearly_into_each_other(sizes, drift, seed):
    tasks = np.repeat(np.arange(len(sizes)), sizes)
    arrival = drifting(tasks, drift, numpy_generator(seed, "drift"))
    assert arrival.ordered
    assert arrival.groups_at is None
    assert [len(ids) for ids in arrival.segments] == sizes
    stream = np.concatenate(arrival.segments)
    assert sorted(stream.tolist()) == list(range(len(tasks)))
    ends = np.cumsum(sizes)
    expected = np.zeros((len(sizes), len(tasks)))  # each task's share at every place
    for place in range(len(tasks)):
        shares = [share_of_next(place + 0.5, ends[k], drift * min(sizes[k : k + 2]) / 2) for k in range(len(sizes) - 1)]
        for task in range(len(sizes)):
            begun = shares[task - 1] if task else 1.0
            left = shares[task] if task + 1 < len(sizes) else 0.0
            expected[task, place] = begun - left
    found = np.stack([(tasks[stream] == task).cumsum() for task in range(len(sizes))])
    assert np.abs(found - expected.cumsum(1)).max() < 3


def test_which_samples_come_early_is_drawn():
    tasks = np.repeat([0, 1], 50)
    one, two = (drifting(tasks, 0.5, numpy_generator(seed, "drift")).segments[0] for seed in (0, 1))
    assert not np.array_equal(one, two)
    early = one[tasks[one] == 1]
    assert 3 <= len(early) <= 10
    assert not np.array_equal(early, np.sort(early))


@settings(deadline=None, max_examples=60)
@given(sizes=st.lists(st.integers(4, 40), min_size=1, max_size=5), n=st.integers(1, 4), ordered=st.booleans())
def test_boundaries_after_every_n_samples(sizes, n, ordered):
    ids = np.arange(sum(sizes))
    segments = np.split(ids, np.cumsum(sizes)[:-1])
    cut = cut_every(Arrival(list(segments), ordered=ordered), n, numpy_generator(0, "cuts"))
    assert cut.groups_at is not None
    assert not cut.ordered
    assert [len(part) for part in cut.segments[:-1]] == [n] * (len(cut.segments) - 1)
    stream = np.concatenate(cut.segments)
    assert sorted(stream.tolist()) == ids.tolist()
    if ordered:
        assert stream.tolist() == ids.tolist()
    of_segment = np.repeat(np.arange(len(sizes)), sizes)
    ends = np.cumsum([len(part) for part in cut.segments])
    assert cut.groups_at == [int(of_segment[end - 1]) for end in ends]
    assert sorted(set(cut.groups_at)) == list(range(len(sizes)))


@pytest.mark.parametrize("boundaries", ["told", "hidden"])
def test_boundaries_alone_do_not_change_what_arrives(small_trainer, boundaries):
    """All outputs are seen from the start here, so that nothing depends on when a class is first seen."""
    same = [*SAME, "scenario.logit_scope=all", "strategy=finetune", "trainer.reset_optimizer=false"]
    plain = small_trainer(*same, checkpoint="plain")
    other = small_trainer(*same, f"scenario.boundaries={boundaries}", checkpoint="other")
    plain.fit(), other.fit()
    assert other.curve.equals(plain.curve)
    assert other.tasks.equals(plain.tasks)


def test_accuracy_over_the_classes_seen_is_that_over_the_tasks_seen_where_each_class_has_a_task(small_trainer):
    trainer = small_trainer(*SAME, "scenario.boundaries=told", "strategy=er", "strategy.memory_size=20")
    trainer.fit()
    seen, curve = trainer.evaluator.seen, trainer.curve
    by_task = curve[~curve.consolidated].groupby("iteration", as_index=False)[["n", "correct"]].sum()
    rows = seen.drop_duplicates("iteration", keep="first")
    assert rows.classes.tolist() == (2 * (rows.task_learning + 1)).tolist()
    assert rows.correct.tolist() == by_task.correct.tolist()
    assert rows.n.tolist() == by_task.n.tolist()


def test_samples_of_a_drift_are_trained_on_in_their_order(small_trainer):
    trainer = small_trainer(*SAME, *ONCE, "scenario.drift=0.5", "strategy=finetune")
    trainer.begin(), trainer.begin_task()
    trained = torch.cat([step.ids for step in trainer.steps])
    assert trained.tolist() == trainer.scenario.arriving(0).tolist()
    tasks = trainer.scenario.train.tasks[trained]
    assert tasks[: len(tasks) // 2].sum() == 0
    assert tasks.sum() > 0
    assert trainer._task.classes == [0, 1, 2, 3]  # some of the next task's samples arrive already


@pytest.fixture
def cut(small_trainer):
    def make(*options, checkpoint="checkpoint"):
        return small_trainer(*SAME, *ONCE, "scenario.boundaries=100", "strategy=ewc", *options, checkpoint=checkpoint)

    return make


def test_a_method_that_needs_boundaries_runs_between_boundaries_that_are_set(cut):
    trainer = cut()
    scenario = trainer.scenario
    n = len(scenario.train)
    assert scenario.n_tasks == -(-n // 100)
    assert scenario.n_groups == 5
    trainer.fit()
    assert all(strategy.tasks_learned == scenario.n_tasks for strategy in trainer.learner)
    tasks = trainer.tasks
    assert tasks.groupby("task_learning").task_eval.max().tolist() == [0, 1, 2, 3, 4]
    assert not tasks.duplicated(["task_learning", "task_eval"]).any()
    groups = trainer.curve.groupby("task_learning").iteration.agg(["min", "max"])
    assert groups["max"].iloc[-1] == trainer.iteration
    assert (groups["min"].iloc[1:].to_numpy() == groups["max"].iloc[:-1].to_numpy() + 1).all()


def test_a_killed_run_between_set_boundaries_goes_on(cut):
    whole = cut(checkpoint="whole")
    whole.fit()
    killed = cut("record.checkpoint_seconds=0", checkpoint="killed")
    fit_until(killed, 40)
    resumed = cut(checkpoint="killed")
    resumed.fit()
    assert resumed.curve.equals(whole.curve)
    assert resumed.tasks.equals(whole.tasks)
    assert resumed.evaluator.seen.equals(whole.evaluator.seen)


def test_the_stream_is_part_of_the_hash(small_setup):
    options = ([], ["scenario.drift=0.5", *ONCE], ["scenario.drift=0.6", *ONCE], ["scenario.boundaries=100"],
               ["scenario.boundaries=50"], ["scenario.boundaries=hidden", "trainer.reset_optimizer=false"])  # fmt: skip
    hashes = {small_setup("scenario=split_digits", "strategy=finetune", *more).scenario.hash for more in options}
    assert len(hashes) == len(options)


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["scenario.boundaries=sometimes"], "Valid choices: told, hidden, null, or a number of samples from 1"),
        (["scenario.boundaries=0"], "scenario.boundaries=0 is unknown"),
        (["scenario.boundaries=true"], "scenario.boundaries=True is unknown"),
        (["scenario.boundaries=100000"], "is more than the"),
        (["scenario=split_digits_task", "scenario.drift=0.5"], "where the task of every sample is given"),
        (["scenario=split_digits_task", "scenario.boundaries=hidden"], "where the task of every sample is given"),
        (["scenario=blurry_digits", "scenario.drift=0.5"], "scenario.kind=blurry, which says by itself"),
        (["scenario.drift=0.5", "trainer.epochs=2"], "set trainer.epochs=1 trainer.max_steps_per_task=null"),
        (["scenario.drift=0.5", "strategy=hypernetwork"], "takes a class for one that arrives with a single task"),
        (["scenario=rotated_mnist", "scenario.source=digits", "scenario.frozen=null", "scenario.drift=0.5", "strategy=dst"],
         "samples of several arrive together"),
        (["scenario.boundaries=100", "evaluator.plasticity_every=5"], "set evaluator.plasticity_every=0"),
        (["scenario.boundaries=hidden", "strategy=lwf", "trainer.reset_optimizer=false"], "strategy lwf has to be told"),
    ],
)  # fmt: skip
def test_what_has_no_meaning_is_refused_in_a_sentence(options, part, small_setup):
    with pytest.raises(ConfigError) as error:
        small_setup(*([] if options[0].startswith("scenario=") else ["scenario=split_digits"]), "trainer.epochs=1",
                    "trainer.max_steps_per_task=null", *options)  # fmt: skip
    assert part in str(error.value)


def test_every_batch_comes_several_times_in_a_row(small_trainer):
    trainer = small_trainer(*SAME, *ONCE, "trainer.steps_per_batch=3", "strategy=finetune")
    once = small_trainer(*SAME, *ONCE, "strategy=finetune", checkpoint="once")
    for each in (trainer, once):
        each.begin(), each.begin_task()
    expected = [step.ids.tolist() for step in once.steps for _ in range(3)]
    assert [step.ids.tolist() for step in trainer.steps] == expected
    budget = replace(trainer._task.budget, epochs=None, max_steps_per_task=7)
    assert len(replace(trainer._task, budget=budget).arriving_batches()) == 7


@settings(deadline=None, max_examples=40)
@given(st.lists(st.lists(st.integers(0, 9), max_size=5), max_size=6), st.integers(1, 3))
def test_a_memory_is_offered_every_sample_once_after_the_last_step_on_its_batch(batches, k):
    repeated = [batch for batch in map(torch.tensor, batches) for _ in range(k)]
    offered = places_offered(repeated, torch.arange(8))
    found, expected = [], []
    for step, (batch, places) in enumerate(zip(repeated, offered, strict=True)):
        assert not places or step % k == k - 1
        found += [int(batch[place]) for place in places]
    for sample in (sample for batch in batches for sample in batch):
        if sample < 8 and sample not in expected:
            expected.append(sample)
    assert found == expected


@pytest.mark.parametrize("strategy", ["slda", "acil"])
def test_a_classifier_on_frozen_features_takes_every_sample_in_once(small_trainer, strategy):
    same = [*SAME, *ONCE, f"strategy={strategy}", "strategy.extractor=frozen"]
    plain = small_trainer(*same, checkpoint="plain")
    hidden = small_trainer(*same, "trainer.steps_per_batch=3", "scenario.boundaries=hidden",
                           "trainer.reset_optimizer=false", checkpoint="hidden")  # fmt: skip
    plain.fit(), hidden.fit()
    state, other = plain.learner.state_dict(), hidden.learner.state_dict()
    assert all(torch.equal(state[name], other[name]) for name in state if name.startswith("strategies"))
    with pytest.raises(ConfigError, match="set strategy"):
        small_trainer(*same[:-1], "strategy.extractor=first_task", "scenario.boundaries=hidden",
                      "trainer.reset_optimizer=false")  # fmt: skip


def test_what_is_counted_by_class_is_not_taken_from_the_tasks_by_an_adaptive_evaluation(small_trainer):
    trainer = small_trainer(*SAME, *ONCE, "scenario.drift=0.5", "strategy=finetune", "evaluator=adaptive")
    trainer.fit()
    assert trainer.evaluator.classes_apart
    summary = summarise(trainer.curve, trainer.tasks, 1, adaptive=True, seen=trainer.evaluator.seen)
    assert summary["AAUC"] is None
    assert summary["AAA"] is not None
    assert "over those seen so far" in summary["undefined"]["AAUC"]


@pytest.mark.parametrize("stream", [["scenario.drift=0.5", "strategy=er", "strategy.memory_size=20"],
                                    ["scenario.boundaries=300", "strategy=ewc"]])  # fmt: skip
def test_a_fleet_in_such_a_stream_is_its_runs_alone(small_trainer, stream):
    domains = ["scenario=permuted_mnist", "scenario.source=digits", "scenario.frozen=null", "scenario.n_tasks=3", *ONCE,
               "trainer.batch_size=50"]  # fmt: skip
    alone = [small_trainer(*domains, *stream, f"seed={seed}", checkpoint=f"alone {seed}") for seed in (0, 1)]
    members = [small_trainer(*domains, *stream, f"seed={seed}", checkpoint=f"fleet {seed}") for seed in (0, 1)]
    for trainer in alone:
        trainer.fit()
    Fleet(members).fit()
    for one, member in zip(alone, members, strict=True):
        assert (one.curve.correct - member.curve.correct).abs().max() <= 1
        assert one.curve.drop(columns=["correct", "loss"]).equals(member.curve.drop(columns=["correct", "loss"]))
        assert one.tasks.iteration.tolist() == member.tasks.iteration.tolist()
