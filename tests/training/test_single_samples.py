"""Batches of one sample: BatchNorm that sees one value per channel cannot train on them."""

import pandas as pd
import pytest
import torch
from torch import nn

from clbench.errors import ConfigError
from clbench.testing.small_runs import small_options
from clbench.training.fleet import Fleet
from clbench.training.single_samples import smallest_batch

# Of digits 8×8 nothing of height and width is left in the last stage: one value per channel of one image.
RESNET = ["model=slim_resnet18", "model.width=2", "scenario=split_digits", "scenario.tasks=2", "trainer.max_steps_per_task=null",
          "trainer.epochs=1", "evaluator.every=0"]  # fmt: skip


def one_over(small_setup, *options) -> int:
    """A batch size that leaves a single sample of the first task over."""
    return len(small_setup(*RESNET, *options).scenario.train.ids(0)) - 1


def test_a_sample_that_is_left_over_joins_the_batch_before(small_setup, small_trainer):
    size = one_over(small_setup) // 2
    trainer = small_trainer(*RESNET, f"trainer.batch_size={size}")
    n = len(trainer.scenario.train.ids(0))
    assert n % size == 1
    trainer.begin()
    trainer.begin_task()
    assert [step.n_new for step in trainer.steps] == [size] * (n // size - 1) + [size + 1]
    assert sorted(torch.cat([step.ids for step in trainer.steps]).tolist()) == list(range(n))
    trainer._run_task()
    trainer.end_task()
    assert trainer.notes() == [
        "where an epoch leaves a single sample over, it joins the batch before: BatchNorm cannot train on one sample"
    ]


def test_a_task_after_a_stage_of_the_head_alone_is_laid_out_for_the_whole_network(small_setup, small_trainer):
    """While the head alone is trained, BatchNorm does not mind single samples; the next task begins with all weights."""
    size = len(small_setup(*RESNET).scenario.train.ids(1)) - 1
    trainer = small_trainer(*RESNET, f"trainer.batch_size={size}", *small_options("outliers"), "trainer.epochs=2")
    trainer.begin()
    trainer.fit_task()
    trainer.begin_task()
    assert [step.n_new for step in trainer.steps] == [size + 1] * 2


def test_steps_are_counted_as_they_are(small_setup, small_trainer):
    size = one_over(small_setup)
    for options, steps in ((["trainer.epochs=3"], 3), (["trainer.epochs=null", "trainer.max_steps_per_task=5"], 5)):
        trainer = small_trainer(*RESNET, f"trainer.batch_size={size}", *options)
        trainer.begin_task()
        assert [step.n_new for step in trainer.steps] == [size + 1] * steps


@pytest.mark.parametrize(
    "options",
    [["model=mlp", "model.hidden=[8]"], ["trainer.batch_norm=frozen"]],
    ids=["no BatchNorm", "frozen BatchNorm"],
)
def test_others_train_on_single_samples_as_before(options, small_setup, small_trainer):
    others = [option for option in RESNET if not option.startswith("model") or options[0].startswith("trainer")]
    trainer = small_trainer(*others, *options, f"trainer.batch_size={one_over(small_setup)}")
    trainer.begin_task()
    assert [step.n_new for step in trainer.steps][-1] == 1
    assert trainer.notes() == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["trainer.batch_size=1"], r"trainer\.batch_size=1 is too few for this network"),
        (
            ["strategy=gem", "strategy.memory_size=10", "scenario.increment=1", "scenario.tasks=10"],
            "one sample, which gem",
        ),
        (["strategy=agem", "strategy.memory_size=50", "strategy.reference_size=1"], "one sample, which agem"),
    ],
)
def test_what_would_train_on_one_sample_is_refused_at_the_start(options, message, small_trainer):
    trainer = small_trainer(*RESNET, *options)
    with pytest.raises(ConfigError, match=message) as error:
        trainer.begin()
    assert "Valid choices: at least 2, or trainer.batch_norm=frozen" in str(error.value)
    small_trainer(*RESNET, *options, "trainer.batch_norm=frozen").begin()


def test_a_task_of_one_sample_is_refused_before_the_first_is_trained(small_trainer):
    trainer = small_trainer(*RESNET)
    (first, middle), (_, end) = trainer.scenario.train.bounds
    trainer.scenario.train.bounds = [(first, end - 1), (end - 1, end)]
    with pytest.raises(ConfigError, match="all that task '2, 3' has, is too few"):
        trainer.begin()
    assert middle < end - 1
    later = small_trainer(*RESNET, "trainer.batch_norm=freeze_after_first_task")
    later.scenario.train.bounds = trainer.scenario.train.bounds
    later.begin()


def test_asking_leaves_no_trace(small_trainer):
    trainer = small_trainer(*RESNET)
    trainer.learner.eval()
    before = {name: tensor.clone() for name, tensor in trainer.learner.state_dict().items()}
    random = torch.get_rng_state()
    assert trainer._smallest_batch() == 2
    assert all(torch.equal(before[name], tensor) for name, tensor in trainer.learner.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())
    assert not any(module.training for module in trainer.learner.modules())


def test_where_height_and_width_are_left_one_sample_will_do(small_trainer):
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    assert smallest_batch(model, (1, 5, 5)) == 1
    assert smallest_batch(model, (1, 3, 3)) == 2
    assert smallest_batch(model.eval(), (1, 3, 3)) == 1


def test_a_fleet_joins_them_too(small_setup, small_trainer):
    size = one_over(small_setup) // 2
    options = [[*RESNET, f"trainer.batch_size={size}", f"seed={seed}"] for seed in (0, 1)]
    together, alone = ([small_trainer(*o, checkpoint=f"{tag}{o[-1]}") for o in options] for tag in ("fleet", "alone"))
    Fleet(together).fit()
    for member, trainer in zip(together, alone, strict=True):
        trainer.fit()
        assert member.iteration == trainer.iteration
        pd.testing.assert_frame_equal(member.training, trainer.training, rtol=1e-2, atol=1e-2)
