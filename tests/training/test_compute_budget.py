"""A budget of computation: what a step costs, which batches are missed, and that measuring changes nothing."""

import pytest
import torch

from clbench.errors import ConfigError
from clbench.scenarios.task import not_missed
from clbench.testing.stepping import fit_until
from clbench.training.compute_budget import relative_cost
from clbench.training.fleet import Fleet

ONCE = ["scenario=split_digits", "trainer.epochs=1", "trainer.max_steps_per_task=null", "trainer.batch_size=10"]


VIT = ["model=small_vit", "model.width=8", "model.depth=1", "model.heads=2", "strategy.blocks=[0]"]


@pytest.fixture
def cost(small_trainer):
    """The relative cost of a step of a method in its second task."""

    def of(*options):
        trainer = small_trainer(*ONCE, *options, checkpoint="-".join(options))
        trainer.begin(), trainer.fit_task(), trainer.begin_task()
        step = trainer._recalled([step for step in trainer.steps if step.n_new == 10][-1])
        return relative_cost(trainer.learner, trainer._batch_of(step, trainer.task))

    return of


@pytest.mark.parametrize(
    ("options", "low", "high"),
    [
        (["strategy=finetune"], 1, 1),
        (["strategy=l2"], 1, 1),  # sums over weights are not counted
        (["strategy=er", "strategy.memory_size=40", "strategy.update=step"], 2, 2),
        (["strategy=er", "strategy.memory_size=40", "strategy.update=step", "strategy.replay_batch_size=30"], 4, 4),
        (["strategy=derpp", "strategy.memory_size=40"], 3, 3),
        (["strategy=lwf"], 1.3, 1.7),  # the teacher's forward pass
        (["strategy=agem", "strategy.memory_size=40", "strategy.reference_size=20"], 1.8, 1.8),  # of 8 samples held
        (["strategy=gss", "strategy.memory_size=40"], 2.5, 20),  # gradients of single samples after the step
        (["strategy=slda", "strategy.extractor=frozen"], 0.2, 3),
        (["strategy=hypernetwork", "scenario=split_digits_task"], 3, 10**5),  # its weights are made by a larger network
        (["strategy=l2p", *VIT], 1, 1.5),  # not all prompts are used
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_cost_of_a_step_in_units_of_finetuning(cost, options, low, high):
    assert low - 1e-9 <= cost(*options) <= high + 1e-9


def test_an_update_is_made_where_the_one_before_is_through():
    batches = [torch.tensor([number]) for number in range(10)]
    for every, expected in [(1, range(10)), (2, [0, 2, 4, 6, 8]), (2.5, [0, 3, 5, 8]),
                            (3, [0, 3, 6, 9]), (1.1, [0, 2, 3, 4, 5, 6, 7, 8, 9]), (99, [0])]:  # fmt: skip
        assert [int(batch) for batch in not_missed(batches, every)] == list(expected)
    assert len(not_missed(batches, 10 / 3)) == 3


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(["strategy=continual_backprop", "strategy.plus=[l2]"], marks=pytest.mark.slow),
        ["strategy=gss", "strategy.memory_size=40"],
        ["strategy=finetune", "model=slim_resnet18", "scenario.tasks=2", "trainer.batch_size=60"],
        pytest.param(["strategy=finetune", "model.dropout=0.5"], marks=pytest.mark.slow),
    ],
    ids=["resets", "memory", "batch norm", "dropout"],
)
def test_measuring_changes_nothing(small_trainer, options):
    plain = small_trainer(*ONCE, *options, checkpoint="plain")
    measured = small_trainer(*ONCE, *options, "trainer.budget=1000", checkpoint="measured")
    plain.fit(), measured.fit()
    assert measured.curve.equals(plain.curve)
    states = plain.learner.state_dict(), measured.learner.state_dict()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_the_cost_of_a_step_is_recorded_where_it_is_asked_for(small_trainer):
    er = [*ONCE, "strategy=er", "strategy.memory_size=40", "strategy.update=step"]
    plain = small_trainer(*er, checkpoint="plain")
    counted = small_trainer(*er, "record.step_cost=true", checkpoint="counted")
    plain.fit(), counted.fit()
    assert (plain.step_cost, counted.step_cost) == (None, pytest.approx(2))
    assert counted.curve.equals(plain.curve)
    assert not counted.batches_per_update
    killed_before_its_summary = small_trainer(*er, "record.step_cost=true", checkpoint="counted")
    killed_before_its_summary.fit()  # nothing is left to do
    assert killed_before_its_summary.step_cost == pytest.approx(2)


def test_a_method_that_costs_more_misses_batches(small_trainer):
    er = [*ONCE, "strategy=er", "strategy.memory_size=40", "strategy.update=step", "strategy.selection=reservoir"]
    trainer = small_trainer(*er, "trainer.budget=1", "trainer.steps_per_batch=2", checkpoint="budget")
    waits = small_trainer(*er, checkpoint="waits")
    for each in (trainer, waits):
        each.begin(), each.begin_task()
    assert trainer.batches_per_update[0] == pytest.approx(4)  # two steps, of which each costs as much as two
    chosen = [step.ids[: step.n_new].tolist() for step in trainer.steps]
    arriving = [step.ids[: step.n_new].tolist() for step in waits.steps]
    assert chosen == [batch for batch in arriving[::4] for _ in range(2)]
    trainer.fit()
    assert any("trainer.budget=1.0: the steps on a batch take as long as 4.00 batches" in n for n in trainer.notes())


def test_a_killed_run_and_a_fleet_miss_the_same_batches(small_trainer):
    options = [*ONCE, "strategy=derpp", "strategy.memory_size=40", "trainer.budget=1"]
    whole = small_trainer(*options, checkpoint="whole")
    whole.fit()
    fit_until(small_trainer(*options, "record.checkpoint_seconds=0", checkpoint="killed"), 17)
    resumed = small_trainer(*options, checkpoint="killed")
    resumed.fit()
    assert resumed.curve.equals(whole.curve)
    assert resumed.notes() == whole.notes()
    members = [small_trainer(*options, f"seed={seed}", checkpoint=f"fleet {seed}") for seed in (0, 1)]
    Fleet(members).fit()
    assert (members[0].curve.correct - whole.curve.correct).abs().max() <= 1


@pytest.mark.parametrize("strategy", ["joint", "gdumb", "icarl", "der_expandable"])
def test_a_method_that_makes_batches_of_its_own_has_no_budget(small_setup, strategy):
    with pytest.raises(ConfigError, match=f"strategy {strategy} trains on batches of its own making"):
        small_setup(*ONCE, f"strategy={strategy}", "trainer.budget=1")


def test_a_budget_is_of_batches_that_arrive_once(small_setup):
    with pytest.raises(ConfigError, match="batches that arrive once"):
        small_setup("scenario=split_digits", "strategy=finetune", "trainer.budget=1", "trainer.max_steps_per_task=5")
