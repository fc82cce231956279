"""Incremental joint training."""

import re
from collections import Counter

import pytest
import torch

from clbench.errors import ConfigError
from clbench.evaluation.metrics import summarise
from clbench.testing.properties import require_same_run
from clbench.testing.small_runs import in_double_precision
from clbench.training.fleet import Fleet

JOINT = ["strategy=joint", "trainer.epochs=2", "trainer.max_steps_per_task=null", "trainer.batch_size=32"]


@pytest.mark.parametrize("batch_per_task", [True, False])
def test_every_epoch_covers_all_data_so_far_once(batch_per_task, small_setup, task_of):
    setup = small_setup(*JOINT, f"strategy.batch_per_task={batch_per_task}")
    task = task_of(setup, 2)
    plan = setup.learner.plan(task)
    batch_size = 96 if batch_per_task else 32
    union = torch.cat([setup.scenario.train.ids(t) for t in range(3)])
    assert len(plan.new) == 2 * -(-len(union) // batch_size)
    assert {len(ids) for ids in plan.new} == {batch_size, len(union) % batch_size}
    assert Counter(torch.cat(plan.new).tolist()) == dict.fromkeys(union.tolist(), 2)
    epoch = len(plan.new) // 2
    assert Counter(torch.cat(plan.new[:epoch]).tolist()) == dict.fromkeys(union.tolist(), 1)


def test_terms_are_the_shares_of_one_mean(small_trainer, learn_tasks, task_of, batch_of):
    trainer = small_trainer("strategy=joint")
    learn_tasks(trainer, 1)
    learner = trainer.learner
    learner.begin_task(task_of(trainer, 1))
    batch = batch_of(trainer, torch.cat([task_of(trainer, 1).ids[:3], task_of(trainer, 0).ids[:5]])[torch.randperm(8)])
    terms = learner.loss(batch)
    losses = learner.strategies[0].cross_entropy(learner.model(batch.samples.x), batch.samples)
    torch.testing.assert_close(terms["new"] + terms["earlier"], losses.mean())
    torch.testing.assert_close(terms["new"], losses[batch.samples.task == 1].sum() / 8)


def test_from_scratch_starts_every_task_from_the_initial_weights(small_trainer_with_batch_norm, learn_tasks, task_of):
    trainer = small_trainer_with_batch_norm("strategy=joint", "strategy.from_scratch=true")
    initial = {name: value.clone() for name, value in trainer.learner.model.state_dict().items()}
    learn_tasks(trainer, 2)
    assert not torch.equal(trainer.learner.model.backbone.bn1.running_mean, initial["backbone.bn1.running_mean"])
    trainer.learner.begin_task(task_of(trainer, 2))
    now = trainer.learner.model.state_dict()
    assert all(torch.equal(now[name], value) for name, value in initial.items() if name != "answer.current_task")
    assert now["answer.current_task"] == 2


LAST = ["strategy=joint", "strategy.when=last_task", "strategy.batch_per_task=false"]


@pytest.mark.parametrize(
    ("budget", "n_steps"),
    [
        (["trainer.epochs=2", "trainer.max_steps_per_task=null"], None),  # two passes over all
        (["trainer.epochs=null", "trainer.max_steps_per_task=4"], 5 * 4),
        (["trainer.epochs=2", "trainer.max_steps_per_task=4"], 5 * 4),
    ],
)
def test_once_it_takes_the_steps_of_all_tasks_in_the_last(budget, n_steps, small_setup, task_of):
    setup = small_setup(*LAST, *budget, "trainer.batch_size=32")
    everything = torch.cat([setup.scenario.train.ids(t) for t in range(5)])
    assert [len(setup.learner.plan(task_of(setup, t)).new) for t in range(4)] == [0] * 4
    plan = setup.learner.plan(task_of(setup, 4)).new
    per_epoch = -(-len(everything) // 32)
    assert len(plan) == (2 * per_epoch if n_steps is None else n_steps)
    assert {len(ids) for ids in plan} <= {32, len(everything) % 32}
    if n_steps is None:
        assert Counter(torch.cat(plan).tolist()) == dict.fromkeys(everything.tolist(), 2)
    assert set(torch.cat(plan).tolist()) <= set(everything.tolist())


@pytest.mark.parametrize("scenario", ["split_digits", "split_digits_task"])
@pytest.mark.parametrize("evaluator", ["periodic", "adaptive"])
def test_once_trained_it_is_one_task_with_all_classes(scenario, evaluator, small_trainer):
    """Weights move in the last task alone, and the metrics that remain are the last row's."""
    trainer = small_trainer(
        *LAST, f"scenario={scenario}", f"evaluator={evaluator}", "trainer.scheduler=cosine", "trainer.lr=0.1"
    )
    before = trainer.learner.model.backbone.layers[1].weight.detach().clone()
    trainer.begin()
    for task in range(5):
        assert torch.equal(trainer.learner.model.backbone.layers[1].weight, before)
        trainer.fit_task()
        assert trainer.iteration == (20 if task == 4 else 0)
    assert not torch.equal(trainer.learner.model.backbone.layers[1].weight, before)
    curve, tasks = trainer.curve, trainer.tasks
    assert set(curve[curve.task_learning < 4].iteration) == {0}
    assert set(curve[curve.task_learning < 4].task_learning) == {0, 1, 2, 3}
    every, adaptive = trainer.config.evaluator.every, evaluator == "adaptive"
    assert trainer.learner.trains_once
    summary = summarise(curve, tasks, every, adaptive, trains_once=True)
    last = tasks[tasks.task_learning == 4]
    assert summary["ACC"] == pytest.approx((last.correct / last.n).mean())
    assert summary["ACC_pooled"] == pytest.approx(last.correct.sum() / last.n.sum())
    undefined = summary["undefined"]
    assert {summary[name] for name in ("FORG", "BWT", "FWT", "LA", "AAA", "LCA", "min_ACC", "WC_ACC", "gap_depth")} == {
        None
    }
    assert set(undefined.values()) == {"the network is trained once, on all tasks together"}
    assert "warning" not in summary


def test_once_trained_a_member_of_a_fleet_is_the_run_alone(small_trainer):
    options = [*LAST, "scenario.tasks=3", "scenario.frozen=null"]

    def make(tag):
        members = ([*options, "seed=0"], [*options, "seed=1", "trainer.lr=0.02"])
        return [in_double_precision(small_trainer(*member, checkpoint=f"{tag}{i}")) for i, member in enumerate(members)]

    together, alone = make("fleet"), make("alone")
    Fleet(together).fit()
    for member, trainer in zip(together, alone, strict=True):
        trainer.fit()
        require_same_run(member, trainer, "these runs")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["strategy.batch_per_task=true"], "strategy.batch_per_task=true takes the samples of N tasks in a step"),
        (["strategy.from_scratch=true"], "strategy.from_scratch=true starts every task from the initial weights"),
        (["trainer.zero_head=true"], "trainer.zero_head is of single tasks, and joint trains once"),
        (["trainer.first_task.epochs=3"], "trainer.first_task is of single tasks, and joint trains once"),
        (["strategy.plus=[ewc]"], "joint trains once, on all tasks together, and ewc acts between tasks"),
        (["strategy.plus=[lwf]"], "joint trains once, on all tasks together, and lwf acts between tasks"),
        (["strategy.plus=[agem]"], "joint trains once, on all tasks together, and agem acts between tasks"),
    ],
)
def test_what_is_of_single_tasks_does_not_go_with_one_training(options, sentence, small_setup):
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        small_setup(*LAST, *options)


def test_a_report_of_it_can_be_made(clb):
    """Beside a method that learns task by task; the progress display has nothing to divide by."""
    small = [
        "model.hidden=[8]",
        "trainer.epochs=null",
        "trainer.max_steps_per_task=2",
        "trainer.batch_size=8",
        "device=cpu",
    ]
    for name, words in {"finetune": ["strategy=finetune"], "joint": LAST}.items():
        status, printed, errors = clb(*words, *small, f"hydra.run.dir=outputs/{name}")
        assert status == 0, errors
    assert "trained once, in the last task" in printed
    status, _, errors = clb("report", "outputs")
    assert status == 0, errors
