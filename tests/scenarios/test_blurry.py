"""Blurry streams: what arrives when, what is seen when, and who is told."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clbench.errors import ConfigError
from clbench.scenarios.blurry import segments, shuffled_share
from clbench.seeding import numpy_generator
from clbench.testing.stepping import finish_stage, fit_until

BLURRY = ["scenario=blurry_digits", "strategy=er", "strategy.memory_size=30", "strategy.update=step",
          "strategy.selection=reservoir", "trainer.max_steps_per_task=null", "trainer.epochs=1"]  # fmt: skip


@settings(deadline=None, max_examples=60)
@given(
    counts=st.lists(st.lists(st.integers(1, 30), min_size=1, max_size=4), min_size=1, max_size=5),
    disjoint=st.floats(0, 1),
    blur=st.floats(0, 1),
    seed=st.integers(0, 9),
)
def test_every_sample_arrives_once_and_a_share_of_some_classes_elsewhere(counts, disjoint, blur, seed):
    sizes = [(task, n) for task, of_task in enumerate(counts) for n in of_task]
    tasks = np.repeat([task for task, _ in sizes], [n for _, n in sizes])
    labels = np.repeat(np.arange(len(sizes)), [n for _, n in sizes])
    found = segments(labels, tasks, disjoint, blur, numpy_generator(seed, "arrival"))
    assert len(found) == len(counts)
    assert sorted(np.concatenate(found).tolist()) == list(range(len(labels)))
    assert all((np.diff(ids) > 0).all() for ids in found)
    label = 0
    for task, of_task in enumerate(counts):
        n_disjoint = round(disjoint * len(of_task))
        for place, n in enumerate(of_task):
            elsewhere = [int((labels[ids] == label).sum()) for other, ids in enumerate(found) if other != task]
            leaves = place >= n_disjoint and len(counts) > 1
            assert sum(elsewhere) == (round(blur * n) if leaves else 0)
            assert not elsewhere or max(elsewhere) - min(elsewhere) <= 1
            label += 1


def test_without_blur_and_with_boundaries_it_is_the_class_incremental_stream(small_trainer):
    same = ["trainer.reset_optimizer=true", "trainer.batch_size=8", "trainer.lr=0.05"]
    blurry = small_trainer("scenario=blurry_digits", "scenario.blur=0.0", "scenario.boundaries=told", *same)
    plain = small_trainer("scenario=split_digits", *same, checkpoint="plain")
    blurry.fit(), plain.fit()
    assert blurry.curve.equals(plain.curve)


def test_a_class_is_seen_from_its_first_sample_on(small_trainer):
    """Step by step: those of all batches so far are visible; before the first, all are."""
    trainer = small_trainer(*BLURRY)
    trainer.begin()
    model, seen, early = trainer.learner.model, set(), 0
    for task in range(2):
        trainer.begin_task()
        assert model.answer.visible(None, predicting=True).all() or task
        while trainer.step < len(trainer.steps):
            step = trainer.steps[trainer.step]
            trainer.advance()
            seen |= set(trainer.scenario.train.labels_of(step.ids).tolist())
            assert set(model.answer.visible(None, predicting=True).nonzero().flatten().tolist()) == seen
        early += len(seen - {label for classes in trainer.scenario.task_classes[: task + 1] for label in classes})
        trainer.end_task()
    assert early > 0
    assert trainer.curve.loss.notna().all()


def test_what_arrives_is_trained_on_and_what_is_evaluated_is_the_task(small_trainer):
    trainer = small_trainer(*BLURRY)
    trainer.fit()
    scenario = trainer.scenario
    trained = [set(scenario.arriving(task).tolist()) for task in range(scenario.n_tasks)]
    assert set().union(*trained) == set(range(len(scenario.train)))
    assert all(trained[task] != set(scenario.train.ids(task).tolist()) for task in range(scenario.n_tasks))
    last = trainer.tasks[trainer.tasks.task_learning == 4]
    assert last.n.tolist() == [len(scenario.test.ids(task)) for task in range(5)]


def test_rows_of_the_head_are_drawn_where_a_class_first_arrives(small_trainer):
    trainer = small_trainer("scenario=blurry_digits", "scenario.boundaries=told", "scenario.blur=0.5")
    scenario, model = trainer.scenario, trainer.learner.model
    trainer.begin()
    seen = set()
    for task in range(3):
        before = model.head.weight.detach().clone()
        arriving = set(scenario.train.labels_of(scenario.arriving(task)).tolist())
        trainer.begin_task()
        drawn = (model.head.weight != before).any(1).nonzero().flatten().tolist()
        assert set(drawn) == (arriving - seen if task else set())
        seen |= arriving
        assert set(model.answer.visible(None, predicting=True).nonzero().flatten().tolist()) == seen
        finish_stage(trainer)
        trainer.end_task()
    assert len(seen) == 8  # the last two tasks have a disjoint class each


def test_a_killed_run_goes_on_with_what_it_has_seen(small_trainer):
    whole = small_trainer(*BLURRY, checkpoint="whole")
    whole.fit()
    killed = small_trainer(*BLURRY, "record.checkpoint_seconds=0", checkpoint="killed")
    fit_until(killed, 40)
    resumed = small_trainer(*BLURRY, checkpoint="killed")
    resumed.fit()
    assert resumed.curve.equals(whole.curve)
    assert torch.equal(resumed.learner.model.answer.first_seen, whole.learner.model.answer.first_seen)


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["strategy=ewc"], "strategy ewc has to be told where a task begins, which blurry_digits does not tell"),
        (["strategy=finetune", "trainer.reset_optimizer=true"], "trainer.reset_optimizer=false"),
        (["strategy=finetune", "trainer.scheduler=cosine"], "trainer.scheduler=constant"),
        (["strategy=er", "strategy.update=task"], "set strategy.update=step"),
        (["strategy=finetune", "strategy.plus=[lwf]"], "strategy lwf has to be told"),
        (["strategy=icarl", "scenario.boundaries=told"], "in blurry_digits classes return"),
        (["strategy=finetune", "strategy.plus=[outliers]", "scenario.boundaries=told"],
         "strategy outliers takes a class for one"),
    ],
)  # fmt: skip
def test_what_acts_at_boundaries_is_refused_where_they_are_not_told(options, part, small_setup):
    with pytest.raises(ConfigError) as error:
        small_setup("scenario=blurry_digits", *options)
    assert part in str(error.value)


def test_the_stream_depends_on_the_seed_and_is_part_of_its_hash(small_setup):
    hashes = {small_setup("scenario=blurry_digits", "strategy=finetune", *more).scenario.hash
              for more in (["seed=0"], ["seed=1"], ["seed=0", "scenario.blur=0.2"], ["seed=0"])}  # fmt: skip
    assert len(hashes) == 3


def test_joint_training_is_on_what_has_arrived_so_far(small_trainer):
    trainer = small_trainer("scenario=blurry_digits", "scenario.boundaries=told", "strategy=joint", "trainer.epochs=1",
                            "trainer.max_steps_per_task=null")  # fmt: skip
    trainer.fit_task()
    trainer.begin_task()
    trained = set(torch.cat([step.ids for step in trainer.steps]).tolist())
    assert trained == set(torch.cat([trainer.scenario.arriving(task) for task in range(2)]).tolist())
    assert trained != set(torch.cat([trainer.scenario.train.ids(task) for task in range(2)]).tolist())


@settings(deadline=None, max_examples=60)
@given(
    counts=st.lists(st.lists(st.integers(1, 30), min_size=1, max_size=4), min_size=1, max_size=5),
    n_disjoint=st.lists(st.integers(0, 4), min_size=5, max_size=5),
    blur=st.floats(0, 1),
    seed=st.integers(0, 9),
)
def test_in_a_stochastic_stream_a_share_of_all_blurred_samples_changes_places(counts, n_disjoint, blur, seed):
    sizes = [(task, n) for task, of_task in enumerate(counts) for n in of_task]
    tasks = np.repeat([task for task, _ in sizes], [n for _, n in sizes])
    labels = np.repeat(np.arange(len(sizes)), [n for _, n in sizes])
    found = shuffled_share(labels, tasks, n_disjoint[: len(counts)], blur, numpy_generator(seed, "arrival"))
    assert sorted(np.concatenate(found).tolist()) == list(range(len(labels)))
    assert [len(ids) for ids in found] == [sum(of_task) for of_task in counts]  # each gets back as many as it gave
    blurred, label = 0, 0
    for task, of_task in enumerate(counts):
        for place, n in enumerate(of_task):
            if place < n_disjoint[task]:
                assert (labels[found[task]] == label).sum() == n
            else:
                blurred += n
            label += 1
    moved = sum(int((tasks[ids] != task).sum()) for task, ids in enumerate(found))
    assert moved <= round(blur * blurred)


def test_a_stochastic_stream_deals_disjoint_classes_out_at_random_and_the_others_equally(small_setup):
    sizes, hashes = set(), set()
    for seed in range(4):
        scenario = small_setup(
            "scenario=blurry_digits", "scenario.stochastic=true", "strategy=finetune", f"seed={seed}"
        ).scenario
        assert sorted(label for labels in scenario.task_classes for label in labels) == list(range(10))
        assert scenario.task_classes == [sorted(labels) for labels in scenario.task_classes]
        assert min(map(len, scenario.task_classes)) >= 1  # one of the five classes that are not disjoint
        sizes.add(tuple(map(len, scenario.task_classes)))
        hashes.add(scenario.hash)
        for task, labels in enumerate(scenario.task_classes):
            assert set(scenario.test.labels_of(scenario.test.ids(task)).tolist()) == set(labels)
    assert len(sizes) > 1
    assert len(hashes) == 4


@pytest.mark.parametrize("option", ["tasks", "skip_tasks"])
def test_a_stochastic_stream_is_not_cut(small_setup, option):
    with pytest.raises(ConfigError, match=f"scenario.{option}=2 has no meaning with scenario.stochastic=true"):
        small_setup("scenario=blurry_digits", "scenario.stochastic=true", f"scenario.{option}=2", "strategy=finetune")


@pytest.mark.parametrize("options", [["scenario.tasks=2"], ["scenario.skip_tasks=2"], ["scenario.boundaries=40"]])
def test_a_blurry_stream_may_be_cut(small_trainer, options):
    trainer = small_trainer(*BLURRY, *options)
    trainer.fit()
    assert trainer.tasks.task_eval.max() + 1 == trainer.scenario.n_groups
    assert trainer.evaluator.seen.classes.iloc[-1] == trainer.scenario.n_classes


def test_a_stochastic_stream_in_which_a_task_has_no_class_is_refused(small_setup):
    with pytest.raises(ConfigError, match="leaves a task without a class"):
        small_setup("scenario=blurry_digits", "scenario.stochastic=true", "scenario.disjoint=1.0", "strategy=finetune")
