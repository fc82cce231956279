"""Streams with repetition: what is in which experience, and what a run makes of more tasks to learn than to evaluate."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clbench.errors import ConfigError
from clbench.scenarios.class_repetition import drawn_samples, occurrences
from clbench.seeding import numpy_generator
from clbench.testing.stepping import finish_stage, fit_until

DIGITS = ["scenario=class_repetition_digits", "trainer.epochs=1", "trainer.max_steps_per_task=null"]


@settings(deadline=None, max_examples=60)
@given(
    n_classes=st.integers(1, 8),
    n_experiences=st.integers(1, 12),
    first=st.one_of(st.none(), st.floats(0.01, 1.0)),
    repetition=st.floats(0, 1),
    size=st.integers(8, 30),
    seed=st.integers(0, 9),
)
def test_every_class_begins_and_experiences_have_equal_shares(n_classes, n_experiences, first, repetition, size, seed):
    rng = numpy_generator(seed, "occurrences")
    occurs = occurrences(n_classes, n_experiences, first, repetition, rng)
    assert occurs.any(0).all()
    assert occurs.any(1).all()
    assert occurs.shape[1] <= n_experiences
    labels = rng.integers(0, n_classes, 200)
    experiences = drawn_samples(labels, occurs, size, rng)
    for present, ids in zip(occurs.T, experiences, strict=True):
        assert len(set(ids.tolist())) == len(ids)
        counts = np.bincount(labels[ids], minlength=n_classes)
        assert not counts[~present].any()
        room = np.bincount(labels, minlength=n_classes)[present]
        low = size // present.sum()
        assert ((counts[present] == np.minimum(room, low)) | (counts[present] == np.minimum(room, low + 1))).all()
        if room.min() > low:
            assert counts.sum() == size


def test_first_occurrences_are_geometric_and_repetitions_as_frequent_as_said():
    occurs = occurrences(20_000, 10, 0.3, 0.2, numpy_generator(0, "occurrences"))
    first = np.bincount(occurs.argmax(1), minlength=10) / 20_000
    likelihood = 0.7 ** np.arange(10)
    assert np.abs(first - likelihood / likelihood.sum()).max() < 0.01
    later = np.arange(10) > occurs.argmax(1)[:, None]
    assert occurs[later].mean() == pytest.approx(0.2, abs=0.01)
    assert not occurs[np.arange(10) < occurs.argmax(1)[:, None]].any()
    even = occurrences(20_000, 10, None, 0.0, numpy_generator(0, "occurrences"))
    assert np.abs(np.bincount(even.argmax(1), minlength=10) / 20_000 - 0.1).max() < 0.01
    assert even.sum() == 20_000


def test_groups_are_the_classes_that_begin_together(small_setup):
    scenario = small_setup(*DIGITS, "strategy=finetune").scenario
    seen: set[int] = set()
    groups = []
    for task in range(scenario.n_tasks):
        new = set(scenario.classes_arriving(task)) - seen
        if new:
            groups.append(sorted(new))
        assert scenario.group_at(task) == len(groups) - 1
        seen |= new
    assert groups == scenario.task_classes
    assert sorted(seen) == list(range(10))
    assert scenario.n_tasks > scenario.n_groups > 1
    for group, labels in enumerate(groups):
        assert set(scenario.test.labels_of(scenario.test.ids(group)).tolist()) == set(labels)


def test_a_run_is_evaluated_by_groups_and_over_the_classes_seen(small_trainer):
    trainer = small_trainer(*DIGITS, "strategy=er", "strategy.memory_size=20")
    scenario, subsets = trainer.scenario, trainer.evaluator.subset_ids
    trainer.begin()
    seen: set[int] = set()
    for task in range(scenario.n_tasks):
        trainer.begin_task()
        finish_stage(trainer)
        trainer.end_task()
        seen |= set(scenario.classes_arriving(task))
        last = trainer.evaluator.seen.iloc[-1]
        labels = np.concatenate([scenario.test.labels_of(ids).numpy() for ids in subsets])
        assert last.classes == len(seen)
        assert last.n == np.isin(labels, list(seen)).sum()
    assert trainer.tasks.groupby("task_learning").task_eval.max().tolist() == list(range(scenario.n_groups))
    curve = trainer.curve[trainer.curve.iteration == trainer.iteration]
    final = curve[curve.consolidated == curve.consolidated.max()]
    assert last.correct == final.correct.sum()
    assert last.n == final.n.sum()


def test_boundaries_that_are_set_keep_its_groups(small_trainer):
    trainer = small_trainer(*DIGITS, "scenario.boundaries=25", "strategy=l2")
    scenario = trainer.scenario
    assert {len(scenario.arriving(task)) for task in range(scenario.n_tasks - 1)} == {25}
    trainer.fit()
    assert trainer.tasks.groupby("task_learning").task_eval.max().tolist() == list(range(scenario.n_groups))


def test_a_reservoir_needs_no_room_for_every_experience(small_setup):
    setup = small_setup(*DIGITS, "strategy=er_ace", "strategy.memory_size=10")
    assert setup.scenario.n_tasks > 10


def test_a_killed_run_goes_on(small_trainer):
    options = [*DIGITS, "strategy=derpp", "strategy.memory_size=20", "trainer.steps_per_batch=2"]
    whole = small_trainer(*options, checkpoint="whole")
    whole.fit()
    fit_until(small_trainer(*options, "record.checkpoint_seconds=0", checkpoint="killed"), 90)
    resumed = small_trainer(*options, checkpoint="killed")
    resumed.fit()
    assert resumed.curve.equals(whole.curve)
    assert resumed.evaluator.seen.equals(whole.evaluator.seen)


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["scenario.samples=2", "scenario.repetition=1.0"], "is too few for an experience with 10 classes"),
        (["scenario.increment=2"], "scenario.increment"),
        (["scenario.tasks=2"], "scenario.tasks"),
        (["scenario.skip_tasks=1"], "scenario.skip_tasks"),
        (["scenario.boundaries=100000"], "samples that arrive with one of the tasks"),
        (["strategy=gem", "strategy.memory_size=15"], "in 18 tasks: it has to be at least 18"),
        (["strategy=icarl"], "in class_repetition_digits classes return"),
    ],
)
def test_what_has_no_meaning_is_refused(options, part, small_setup):
    with pytest.raises(ConfigError) as error:
        small_setup(*DIGITS, *options)
    assert part in str(error.value)
