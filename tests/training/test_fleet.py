"""A member of a fleet is the run it would be alone: same batches, weights, augmentation and curve."""

import pandas as pd
import pytest
import torch
from streams import IN_TURN_FROM_THE_NEXT
from torch import nn

from clbench import testing
from clbench.errors import Diverged
from clbench.testing import Case
from clbench.testing.properties import check_resumes, require_members_equal_solo_runs, require_same_run
from clbench.testing.small_runs import in_double_precision, setting_of
from clbench.training.fleet import Fleet
from clbench.training.steps import Step
from clbench.training.trainer import Trainer


def make(small_trainer, tag, members) -> list[Trainer]:
    return [in_double_precision(small_trainer(*member, checkpoint=f"{tag}{i}")) for i, member in enumerate(members)]


def assert_same_when_alone(small_trainer, members: list[list[str]]) -> None:
    together, alone = make(small_trainer, "fleet", members), make(small_trainer, "alone", members)
    Fleet(together).fit()
    for member, trainer in zip(together, alone, strict=True):
        trainer.fit()
        require_same_run(member, trainer, "these runs")


@pytest.mark.parametrize("case", IN_TURN_FROM_THE_NEXT)
def test_a_member_equals_its_solo_run(case):
    testing.check_fleet_equals_solo(case)


RESNET = ["scenario=split_digits", "model=slim_resnet18", "model.width=2", "scenario.increment=5"]
SETTINGS = {
    "batch_norm": [],
    "batch_norm_frozen_later": ["trainer.batch_norm=freeze_after_first_task"],
    "augmentation": ["scenario.augment.crop_padding=1", "scenario.augment.flip=true", "scenario.augment.contrast=0.3"],
    "adam": ["trainer.optimizer=adam", "trainer.lr=0.001"],
    "adamw": ["trainer.optimizer=adamw", "trainer.lr=0.001", "trainer.weight_decay=0.1"],
    "adagrad": ["trainer.optimizer=adagrad", "trainer.weight_decay=0.1"],
    "adagrad kept": ["trainer.optimizer=adagrad", "trainer.reset_optimizer=false"],
    "schedule": ["trainer.scheduler=cosine", "trainer.reset_optimizer=false"],
    "clipped": ["trainer.clip_grad_norm=0.1"],
    "zero_head": ["trainer.zero_head=true", "trainer.reset_optimizer=false"],
}


@pytest.mark.parametrize(
    "case",
    [c if c not in ("adamw", "adagrad", "schedule") else pytest.param(c, marks=pytest.mark.slow) for c in SETTINGS],
)
def test_with_batch_norm_and(case, small_trainer):
    """Two seeds and two class orders of a ResNet, under every option of the loop."""
    common = ["strategy=er", "strategy.memory_size=40", *RESNET, *SETTINGS[case]]
    members = [[*common, "seed=0"], [*common, "seed=1", "scenario.class_order=shuffled"]]
    assert_same_when_alone(small_trainer, members)


def test_members_that_are_evaluated_on_the_same_samples_with_frozen_stages_of_their_own(small_trainer):
    """Of two seeds: what the first stages make of the samples is each member's."""
    common = ["strategy=finetune", "scenario=split_digits", "model=mlp", "model.hidden=[16,16]", "model.frozen=1"]
    everything = ["evaluator.subset=1000", "scenario.classes=[0,1,2,3]", "scenario.frozen=null"]
    assert_same_when_alone(small_trainer, [[*common, *everything, f"seed={seed}"] for seed in (0, 1)])


def test_members_whose_tasks_differ_in_size(small_trainer):
    """With another class order, tasks have other sizes: other numbers of steps, other last batches."""
    common = ["strategy=ewc", "trainer.epochs=2", "trainer.max_steps_per_task=null", "trainer.batch_size=64", "model.hidden=[16]",
              "evaluator.subset=500"]  # fmt: skip
    members = [[*common, "seed=0"], *([*common, f"seed={seed}", "scenario.class_order=shuffled"] for seed in (1, 2))]
    together, alone = make(small_trainer, "fleet", members), make(small_trainer, "alone", members)
    Fleet(together).fit()
    for trainer in alone:
        trainer.fit()
    assert len({trainer.iteration for trainer in alone}) > 1 or len({str(t.evaluator.sizes) for t in alone}) > 1
    for member, trainer in zip(together, alone, strict=True):
        require_same_run(member, trainer, "these runs")


def test_members_whose_memories_are_divided_otherwise(small_trainer):
    """In the last task both look at as many samples, of which the earlier tasks have other numbers."""
    common = ["strategy=gem", "strategy.memory_size=1000", "scenario.base=2", "scenario.increment=1", "scenario.tasks=4",
              "model.hidden=[16]"]  # fmt: skip
    members = [
        [*common, f"scenario.class_order={order}"] for order in ("[0,1,8,3,9,2,4,5,6,7]", "[0,1,3,8,9,2,4,5,6,7]")
    ]
    sizes = [member.learner.strategies[0].memory.sizes for member in make(small_trainer, "sizes", members)]
    assert sizes[0] != sizes[1]
    assert sum(sizes[0]) == sum(sizes[1])
    assert_same_when_alone(small_trainer, members)


def test_reference_samples_are_those_of_the_step(small_trainer, monkeypatch):
    """Ids that a memory is asked for are freed after the step, and the next ones may stand at the same address; here all do."""
    monkeypatch.setattr("clbench.training.fleet.id", lambda _: 0, raising=False)
    fleet = Fleet(make(small_trainer, "fleet", [["strategy=gss", "seed=0"], ["strategy=gss", "seed=1"]]))
    for member in fleet.members:
        member.begin()
    fleet.begin_task()
    for first in (0, 2):
        steps = [Step(torch.arange(8), 8, reference=torch.arange(first, first + 2) + row) for row in range(2)]
        samples = fleet._reference_samples([0, 1], None, steps, step=0)
        assert samples is not None
        alone = [m.inputs.plain(m.scenario.train, step.reference) for m, step in zip(fleet.members, steps, strict=True)]
        torch.testing.assert_close(samples.x.flatten(), torch.stack([of_one.x for of_one in alone]).flatten())


def test_members_in_different_phases(small_trainer):
    """One holds its features, in evaluation mode and without gradients, while the other still trains them."""
    common = ["strategy=outliers", *RESNET, "trainer.optimizer=adam", "trainer.reset_optimizer=false"]
    assert_same_when_alone(small_trainer, [[*common, "strategy.share=0.25"], [*common, "strategy.share=0.75"]])


VIT = ["model=small_vit", "model.width=8", "model.depth=1", "model.heads=2", "model.image_size=8"]
TOGETHER = {
    "components": [*VIT, "strategy=coda_prompt", "strategy.blocks=[0]", "strategy.pool=5", "strategy.length=2",
                   "strategy.plus=[wasserstein,l2_init]"],
    "joint": [*VIT, "strategy=coda_prompt", "strategy.blocks=[0]", "strategy.pool=5", "strategy.length=2",
              "strategy.plus=[joint]", "+plus.joint.from_scratch=true"],
    "resets": ["strategy=ewc", "strategy.plus=[l2_init,wasserstein,l2,redo]", "+plus.redo.period_unit=steps",
               "+plus.redo.period=1", "+plus.redo.threshold=0.5"],
    "own weights and resets": ["strategy=dgr", "strategy.hidden=[12]", "strategy.latent=3", "strategy.plus=[redo]",
                               "+plus.redo.period_unit=steps", "+plus.redo.period=1", "+plus.redo.threshold=0.5"],
    "own weights and projections": ["strategy=dgr", "strategy.hidden=[12]", "strategy.latent=3", "strategy.plus=[agem]",
                                    "+plus.agem.memory_size=40"],
}  # fmt: skip
"""Strategies that draw weights anew, and others that are told."""


@pytest.mark.parametrize("case", TOGETHER)
def test_members_are_told_of_their_own_weights_that_are_drawn_anew(case, small_trainer):
    common = [
        *TOGETHER[case],
        "trainer.max_steps_per_task=2",
        "scenario=split_digits",
        "scenario.tasks=3",
        "scenario.frozen=null",
    ]
    assert_same_when_alone(small_trainer, [[*common, "seed=0"], [*common, "seed=1", "trainer.lr=0.02"]])


VARIANTS = {
    "agem": {"ring": ["strategy.store=ring", "strategy.reference_size=6"]},
    "er": {
        "reservoirs of classes": [
            "strategy.update=step",
            "strategy.adjustment=1.0",
            "strategy.loss_scope=label_trick",
        ],
        "mixed": ["strategy.mixing=data_set", "strategy.weighting=samples", "strategy.selection=task_balanced"],
    },
    "ewc": {
        "running": [
            "strategy.fisher=running",
            "strategy.running_every=3",
            "strategy.normalise=min_max",
            "strategy.prior_variance=0.1",
        ],
    },
    "lwf": {"weighed": ["strategy.weighting=tasks", "strategy.factor=tasks"]},
    "rwalk": {"short windows": ["strategy.window=3", "strategy.lam=5.0"]},
    "continual_backprop": {"adam": ["strategy.utility=contribution", "trainer.optimizer=adam"]},
    "hypernetwork": {
        "recurrent": ["strategy.kind=recurrent", "strategy.state_size=6", "strategy.targets=online"],
        "growing": ["strategy.kind=recurrent", "strategy.state_size=6", "strategy.growth=true"],
        "some tasks": ["strategy.regularised_tasks=1", "strategy.magnitude_invariant=true", "strategy.lookahead=false"],
        "importance": ["strategy.regulariser=importance", "strategy.importance_samples=10", "trainer.optimizer=adam"],
    },
    "redo": {
        "adam": ["trainer.optimizer=adam"],
        "initial weights": [
            "strategy.reinit=initial",
            "strategy.period_unit=tasks",
            "strategy.period=1",
            "trainer.optimizer=adamw",
            "trainer.reset_optimizer=false",
        ],
    },
    "shrink_perturb": {
        "adam": ["trainer.optimizer=adam"],
        "gaussian": ["strategy.noise=gaussian", "strategy.every=task"],
    },
}
"""Options of a strategy under which it takes other paths."""


in_every_variant = pytest.mark.parametrize(
    ("name", "variant"), [(name, v) for name, variants in VARIANTS.items() for v in variants]
)


@in_every_variant
def test_under_other_options_of_the_strategy(name, variant):
    case = Case(name, setting_of(name, "task"), tuple(VARIANTS[name][variant]))
    require_members_equal_solo_runs(case, [["seed=0", "trainer.lr=0.003"], ["seed=1", "trainer.lr=0.001"]])


@pytest.mark.parametrize(("name", "variant"), [(n, v) for n in ("agem", "er", "ewc", "rwalk") for v in VARIANTS[n]])
def test_resumed_under_other_options_of_the_strategy(name, variant, tmp_path):
    check_resumes(Case(name, setting_of(name, "task"), tuple(VARIANTS[name][variant])), tmp_path, (6,))


def test_a_diverged_member_is_frozen_and_disturbs_nobody(small_trainer, monkeypatch):
    monkeypatch.setattr("clbench.training.fleet.PROGRESS_SECONDS", 0.0)
    common = ["strategy=l2", "model.hidden=[16]"]
    members = [[*common, "seed=0"], [*common, "seed=1", "strategy.lam=1e300"], [*common, "seed=2"]]
    together, alone = make(small_trainer, "fleet", members), make(small_trainer, "alone", members)
    fleet = Fleet(together)
    fleet.fit()
    assert list(fleet.diverged) == [1]
    for index in (0, 2):
        alone[index].fit()
        require_same_run(together[index], alone[index], "these runs")
    with pytest.raises(Diverged) as reason:
        alone[1].fit()
    assert str(fleet.diverged[1]) == str(reason.value)
    pd.testing.assert_frame_equal(together[1].curve, alone[1].curve, rtol=1e-3)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_member_can_be_continued_alone(optimizer, small_trainer):
    """What a killed fleet leaves are checkpoints of runs alone."""
    common = ["strategy=er", "strategy.memory_size=40", f"trainer.optimizer={optimizer}", "trainer.scheduler=cosine",
              "trainer.lr=0.005"]  # fmt: skip
    members = [[*common, f"seed={seed}", "record.checkpoint_seconds=0"] for seed in (0, 1)]
    killed = make(small_trainer, "killed", members)
    fleet = Fleet(killed)
    step = fleet.train_step

    def step_or_die():
        if killed[0].iteration == 10:
            raise KeyboardInterrupt
        step()

    fleet.train_step = step_or_die
    with pytest.raises(KeyboardInterrupt):
        fleet.fit()
    resumed, whole = make(small_trainer, "killed", members), make(small_trainer, "whole", members)
    for member, alone in zip(resumed, whole, strict=True):
        member.fit()
        alone.fit()
        assert member.iteration == 20
        require_same_run(member, alone, "these runs")
    size = [m.checkpoint.stat().st_size for m in (killed[0], whole[0])]
    assert size[0] == pytest.approx(size[1], rel=0.05)  # its own row, not the whole fleet's


class Dropout(nn.Module):
    """A backbone that draws while it trains."""

    n_features = 16

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Dropout(0.5))

    def forward(self, x):
        return self.layers(x)


def test_dropout_draws_for_every_member_by_itself(small_trainer, monkeypatch):
    """Members that are equal in everything drop different units, half of them."""
    monkeypatch.setattr("clbench.set_up.MODELS", {"mlp": lambda config, shape: Dropout()})
    together = make(small_trainer, "fleet", [["strategy=finetune", "trainer.batch_size=64"]] * 2)
    fleet = Fleet(together)
    for member in together:
        member.begin()
    fleet.begin_task()
    fleet.train_step()
    first, second = (member.learner.model.head.weight for member in together)
    assert not torch.equal(first, second)
