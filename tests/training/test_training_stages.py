"""Stages of a task: what they train, what they hold, and that a run can be killed within each, alone and in a fleet."""

import pandas as pd
import pytest
import torch

from clbench.learning.stage import JointStage, Stage, joined
from clbench.strategies.finetune import Finetune
from clbench.strategies.l2 import L2
from clbench.testing.small_runs import in_double_precision
from clbench.testing.stepping import finish_stage, fit_until
from clbench.training.fleet import Fleet
from clbench.training.held import flat

COMMON = ["trainer.momentum=0.9", "trainer.weight_decay=0.01", "scenario.tasks=3", "scenario.frozen=null"]
TUNING = {"max_steps_per_task": 3, "lr": 0.02, "scheduler": "cosine"}


def half(strategy: Finetune) -> torch.Tensor:
    """Every other weight."""
    return torch.arange(strategy.flat_parameters().numel()) % 2 == 0


@pytest.fixture
def staged(monkeypatch):
    """Finetuning with a stage of half the weights within the plan, and after it one of the head alone and one of everything."""

    def begin(self, task):
        self.begun.add_(1)

    def stages(self, task, n_steps):
        return [
            Stage("half", 2, trains="mask", mask=lambda: half(self), plan=lambda _, plan: plan.with_columns(
                place=[torch.tensor([step]) for step in range(len(plan.new))])),
            Stage("tuning", None, trains="head", trainer=TUNING, begin=lambda task: begin(self, task)),
            Stage("end", None, trainer={"max_steps_per_task": 2, "optimizer": "adam", "lr": 0.001}),
        ]  # fmt: skip

    init = Finetune.__init__

    def with_count(self, *arguments):
        init(self, *arguments)
        self.register_buffer("begun", torch.zeros((), dtype=torch.int64))

    monkeypatch.setattr(Finetune, "__init__", with_count)
    monkeypatch.setattr(Finetune, "stages", stages)


def test_what_a_stage_does_not_train_is_held_exactly(staged, small_trainer):
    trainer = small_trainer("strategy=finetune", *COMMON)
    trainer.begin()
    trainer.begin_task()
    strategy, seen = trainer.learner.strategies[0], []

    def step():
        before = flat(trainer.parameters)
        trainer.advance()
        seen.append((strategy.stage.name, trainer.steps[trainer.step - 1].columns, before != flat(trainer.parameters)))

    while True:
        while trainer.step < len(trainer.steps):
            step()
        if not trainer.begin_stage():
            break
    assert [name for name, _, _ in seen] == ["main"] * 2 + ["half"] * 2 + ["tuning"] * 3 + ["end"] * 2
    assert [columns["place"].item() for name, columns, _ in seen if name == "half"] == [0, 1]
    of_head = torch.cat(
        [torch.full((p.numel(),), n.startswith("head.")) for n, p in trainer.learner.trainable().items()]
    )
    for name, _, moved in seen:
        held = {"half": ~half(strategy), "tuning": ~of_head}.get(name, torch.zeros_like(of_head))
        assert not moved[held].any()
        assert moved[of_head & ~held].any()
    assert trainer.iteration == 9
    assert set(trainer.curve.iteration) >= {4, 7, 9}
    trainer.end_task()
    assert strategy.begun == 1


def test_what_is_held_does_not_count_when_gradients_are_clipped(staged, small_trainer):
    trainer = small_trainer(
        "strategy=finetune", "trainer.momentum=0.0", "trainer.lr=1.0", "trainer.clip_grad_norm=0.001"
    )
    trainer.begin()
    trainer.begin_task()
    for _ in range(3):
        before = flat(trainer.parameters)
        trainer.advance()
        moved = flat(trainer.parameters) - before
        assert moved.norm().item() == pytest.approx(0.001, rel=1e-3)
    assert trainer.learner.strategies[0].stage.name == "half"
    assert not moved[~half(trainer.learner.strategies[0])].any()


def test_a_stage_after_the_plan_has_batches_a_schedule_and_an_optimizer_of_its_own(staged, small_trainer):
    trainer = small_trainer("strategy=finetune", *COMMON, "trainer.batch_size=20")
    trainer.begin()
    trainer.begin_task()
    main = torch.cat([step.ids for step in trainer.steps])
    finish_stage(trainer)
    assert trainer.begin_stage()
    assert [len(step.ids) for step in trainer.steps] == [20] * 3
    assert not torch.equal(torch.cat([step.ids for step in trainer.steps]), main[:60])
    assert trainer.learning_rates == pytest.approx([0.02, 0.015, 0.005])
    assert all(not state["momentum_buffer"].any() for state in trainer.optimizer.state.values())


def test_no_two_steps_of_a_task_draw_the_same_augmentation(staged, small_trainer, monkeypatch):
    trainer = small_trainer("strategy=finetune", *COMMON)
    numbers, training = [], trainer.inputs.training
    monkeypatch.setattr(
        trainer.inputs,
        "training",
        lambda split, ids, task, step: numbers.append(step) or training(split, ids, task, step),
    )
    trainer.fit_task()
    assert numbers == list(range(9))


@pytest.mark.parametrize("evaluator", ["periodic", "adaptive"])
def test_killed_in_every_stage_it_ends_in_the_same_run(evaluator, staged, small_trainer, monkeypatch):
    options = ["strategy=finetune", *COMMON, f"evaluator={evaluator}", "evaluator.subset=20"]
    whole = small_trainer(*options, checkpoint="whole")
    whole.fit()
    assert whole.iteration == 3 * 9
    for kill_at in (1, 3, 5, 7, 8, 11, 13, 15, 17, 26):
        killed = small_trainer(*options, "record.checkpoint_seconds=0", checkpoint="killed")
        fit_until(killed, kill_at)
    last = small_trainer(*options, checkpoint="killed")
    last.fit()
    assert last.learner.strategies[0].begun == 3
    for mine, its in zip(last.learner.state_dict().values(), whole.learner.state_dict().values(), strict=True):
        assert torch.equal(mine, its)
    if evaluator == "periodic":  # a resumed adaptive evaluation may have looked elsewhere
        pd.testing.assert_frame_equal(last.curve, whole.curve)
    pd.testing.assert_frame_equal(last.training, whole.training)


def test_members_of_a_fleet_go_through_their_stages_as_alone(staged, small_trainer):
    """Tasks of different sizes: an epoch more of one member's plan, and other last batches."""
    common = ["strategy=finetune", "trainer.momentum=0.9", "trainer.epochs=1", "trainer.max_steps_per_task=null",
              "trainer.batch_size=64", "evaluator.subset=50", "trainer.clip_grad_norm=0.1", "scenario.tasks=3",
              "scenario.frozen=null"]  # fmt: skip
    members = [[*common, "seed=0"], [*common, "seed=1", "scenario.class_order=shuffled", "trainer.lr=0.01"]]
    together = [in_double_precision(small_trainer(*m, checkpoint=f"fleet{i}")) for i, m in enumerate(members)]
    alone = [in_double_precision(small_trainer(*m, checkpoint=f"alone{i}")) for i, m in enumerate(members)]
    assert not Fleet(together).fit()
    for member, trainer in zip(together, alone, strict=True):
        trainer.fit()
        assert member.iteration == trainer.iteration
        for name in ("curve", "tasks", "training"):
            pd.testing.assert_frame_equal(getattr(member, name), getattr(trainer, name), rtol=1e-6, atol=1e-7)
        for mine, its in zip(member.learner.state_dict().values(), trainer.learner.state_dict().values(), strict=True):
            torch.testing.assert_close(mine, its, rtol=1e-6, atol=1e-7)


def test_strategies_enter_each_others_stages(staged, small_trainer):
    trainer = small_trainer("strategy=l2", "strategy.plus=[finetune]", *COMMON)
    trainer.begin()
    trainer.begin_task()
    l2, finetune = trainer.learner.strategies
    assert isinstance(l2, L2)
    seen = []
    while True:
        while trainer.step < len(trainer.steps):
            trainer.advance()
            seen.append((l2.stage.name, finetune.stage.name))
        if not trainer.begin_stage():
            break
    assert seen == [("main",) * 2] * 2 + [("main", "half")] * 2 + [("tuning",) * 2] * 3 + [("end",) * 2] * 2


def test_stages_of_several_strategies_are_cut_where_one_of_them_begins():
    first = [Stage("a", 3), Stage("b", None)]
    second = [Stage("c", 0), Stage("d", 5), Stage("e", None)]
    main = JointStage(0, (Stage(), Stage()), (True, True))
    within, after = joined([first, second], main)
    assert [(s.start, [p.name for p in s.parts], s.beginning) for s in within] == [
        (0, ["main", "c"], (True, True)),
        (3, ["a", "c"], (True, False)),
        (5, ["a", "d"], (False, True)),
    ]
    assert [([p.name for p in s.parts], s.beginning) for s in after] == [
        (["b", "b"], (True, False)),
        (["e", "e"], (False, True)),
    ]


@pytest.mark.parametrize(
    "wrong", [{"trains": "body"}, {"trains": "mask"}, {"mask": list}, {"start": 2, "trainer": {"lr": 1.0}}]
)
def test_a_stage_that_means_nothing_is_refused(wrong):
    with pytest.raises(ValueError, match="stage"):
        Stage(**wrong)


# ---- stages without gradients -----------------------------------------------------------------------------------------

AFTER_FIRST_TASK = ["strategy.extractor=first_task", "scenario.tasks=2", "scenario.frozen=null"]


@pytest.mark.parametrize("name", ["slda", "acil", "ranpac", "if2net"])
def test_a_classifier_takes_in_the_task_of_its_extractor_in_a_stage_of_its_own(name, small_trainer):
    trainer = small_trainer(f"strategy={name}", *AFTER_FIRST_TASK)
    trainer.fit()
    of_first = trainer.curve.query("task_learning == 0 and task_eval == 0")
    n_samples, size = len(trainer.scenario.train.ids(0)), trainer.config.trainer.batch_size
    assert of_first.iteration.max() == 4 + -(-n_samples // size)  # the plan's four steps, and one pass over the task
    absorbing = of_first[(of_first.iteration >= 4) & ~of_first.consolidated]
    assert len(absorbing) > 30
    assert absorbing.correct.nunique() == 1  # the network, which stands still, predicts until the task is over
    assert of_first.consolidated.any()


@pytest.mark.parametrize("name", ["slda", "ranpac", "if2net"])
def test_killed_while_a_classifier_takes_in_the_first_task(name, small_trainer):
    options = [f"strategy={name}", *AFTER_FIRST_TASK]
    whole = small_trainer(*options, checkpoint="whole")
    whole.fit()
    fit_until(small_trainer(*options, "record.checkpoint_seconds=0", checkpoint="killed"), 9)
    resumed = small_trainer(*options, checkpoint="killed")
    resumed.fit()
    pd.testing.assert_frame_equal(whole.curve, resumed.curve)


def test_a_fleet_in_a_stage_without_gradients(small_trainer):
    options = [["strategy=slda", *AFTER_FIRST_TASK, f"seed={seed}"] for seed in (0, 1)]
    alone = [in_double_precision(small_trainer(*o, checkpoint=f"a{n}")) for n, o in enumerate(options)]
    together = [in_double_precision(small_trainer(*o, checkpoint=f"f{n}")) for n, o in enumerate(options)]
    for trainer in alone:
        trainer.fit()
    Fleet(together).fit()
    for one, other in zip(alone, together, strict=True):
        pd.testing.assert_frame_equal(one.curve, other.curve, atol=1e-6, rtol=0)
