"""``trainer.first_task``: the first task has options of its own, and the others do not."""

import pandas as pd
import pytest

from clbench.errors import ConfigError
from clbench.testing.stepping import fit_until
from clbench.training.fleet import Fleet

FIRST = {"max_steps_per_task": 7, "batch_size": 16, "lr": 0.05, "weight_decay": 0.1, "scheduler": "cosine"}
OPTIONS = [f"trainer.first_task.{name}={value}" for name, value in FIRST.items()]
COMMON = ["strategy=er", "trainer.weight_decay=0.01", "scenario.tasks=3", "scenario.frozen=null"]


def fitted(trainer):
    trainer.fit()
    return trainer


def test_the_first_task_is_that_of_a_run_with_these_options(small_trainer):
    whole = fitted(small_trainer(*COMMON, *OPTIONS)).curve
    alone = small_trainer(*COMMON, *(f"trainer.{name}={value}" for name, value in FIRST.items()))
    alone.fit_task()
    own = whole.query("task_learning == 0").reset_index(drop=True)
    pd.testing.assert_frame_equal(own, alone.curve.query("task_learning == 0").reset_index(drop=True))
    steps = whole.groupby("task_learning").iteration.agg(lambda i: i.max() - i.min() + 1)
    assert steps.tolist() == [8, 4, 4]  # with the untrained network at 0; the others have the trainer's own four


def test_later_tasks_have_the_trainers_own_optimizer(small_trainer):
    trainer = small_trainer(*COMMON, *OPTIONS, "trainer.first_task.optimizer=adamw")
    trainer.fit_task()
    trainer.begin_task()
    assert type(trainer.optimizer).__name__ == "SGD"
    assert trainer.optimizer.param_groups[0]["weight_decay"] == 0.01
    assert trainer.options.batch_size == 8


@pytest.mark.parametrize("at", [3, 9], ids=["in the first task", "in the second"])
def test_killed_and_resumed(at, small_trainer):
    options = [*COMMON, *OPTIONS, "trainer.first_task.optimizer=adam"]
    whole = fitted(small_trainer(*options, checkpoint="whole"))
    fit_until(small_trainer(*options, checkpoint="killed"), at)
    pd.testing.assert_frame_equal(whole.curve, fitted(small_trainer(*options, checkpoint="killed")).curve)


def test_in_a_fleet(small_trainer):
    options = [[*COMMON, *OPTIONS, f"seed={seed}"] for seed in (0, 1)]
    alone = [fitted(small_trainer(*o, checkpoint=f"alone {n}")) for n, o in enumerate(options)]
    together = [small_trainer(*o, checkpoint=f"fleet {n}") for n, o in enumerate(options)]
    Fleet(together).fit()
    for one, other in zip(alone, together, strict=True):
        pd.testing.assert_frame_equal(one.curve, other.curve, atol=0.051, rtol=1e-3)


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("trainer.first_task.lr=-1", r"trainer\.first_task\.lr=-1\.0 is out of range"),
        ("trainer.first_task.optimizer=adm", "did you mean 'adam'"),
    ],
)
def test_an_option_that_cannot_be_is_refused(option, says, small_setup):
    with pytest.raises(ConfigError, match=says):
        small_setup(*COMMON, option)


def test_an_optimizer_that_goes_on_cannot_differ(small_setup):
    with pytest.raises(ConfigError, match="reset_optimizer=true"):
        small_setup(*COMMON, "trainer.reset_optimizer=false", "trainer.first_task.momentum=0.5")
    small_setup(*COMMON, "trainer.reset_optimizer=false", "trainer.first_task.lr=0.5")


def test_a_stream_without_boundaries_has_no_first_task(small_setup):
    with pytest.raises(ConfigError, match="does not tell where a task ends"):
        small_setup(
            "strategy=er", "scenario=blurry_digits", "trainer.reset_optimizer=false", "trainer.first_task.lr=0.5"
        )
