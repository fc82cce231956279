"""The loop: batches, schedules, BatchNorm policy, gradient clipping, optimizer state."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from clbench.config import TrainerConfig
from clbench.errors import ConfigError
from clbench.learning.stage import Stage
from clbench.scenarios.task import Task
from clbench.strategies.finetune import Finetune
from clbench.training.fleet import Fleet
from clbench.training.optimizers import learning_rates as learning_rates_of


def task_of(setup, index: int = 0) -> Task:
    scenario = setup.scenario
    return Task(index, scenario.n_tasks, scenario.task_classes[index], setup.config.trainer, setup.config.seed,
                scenario.train, setup.inputs)  # fmt: skip


def test_every_epoch_shows_every_sample_once_in_a_new_order(small_setup):
    task = task_of(small_setup("trainer.epochs=3", "trainer.max_steps_per_task=null", "trainer.batch_size=50"), index=1)
    batches = task.shuffled_batches(task.ids)
    per_epoch = -(-len(task.ids) // 50)
    assert len(batches) == 3 * per_epoch
    epochs = [torch.cat(batches[e * per_epoch : (e + 1) * per_epoch]) for e in range(3)]
    for epoch in epochs:
        assert torch.equal(epoch.sort().values, task.ids)
    assert not torch.equal(epochs[0], epochs[1])


@pytest.mark.parametrize(("epochs", "limit", "steps"), [("2", "3", 3), ("null", "40", 40), ("1", "1000", 10)])
def test_budget(epochs, limit, steps, small_setup):
    setup = small_setup(f"trainer.epochs={epochs}", f"trainer.max_steps_per_task={limit}", "trainer.batch_size=30")
    assert len(task_of(setup).shuffled_batches(task_of(setup).ids)) == steps


def learning_rates(trainer) -> list[float]:
    """The learning rate at every step of the run."""
    rates = []
    step = trainer._train_step

    def recorded(*arguments):
        step(*arguments)
        rates.append(trainer.optimizer.param_groups[0]["lr"])

    trainer._train_step = recorded
    trainer.fit()
    return rates


@pytest.mark.parametrize(
    ("scheduler", "expected"),
    [
        ("constant", [0.1, 0.1, 0.1, 0.1]),
        ("step", [0.1, 0.1, 0.01, 0.001]),
        ("cosine", [0.1, 0.0853553, 0.05, 0.0146447]),
    ],
)
@pytest.mark.parametrize("reset", ["true", "false"])
def test_schedule_starts_again_with_every_task(scheduler, expected, reset, small_trainer):
    rates = learning_rates(
        small_trainer(
            "strategy=finetune", "trainer.lr=0.1", f"trainer.scheduler={scheduler}", f"trainer.reset_optimizer={reset}"
        )
    )
    assert rates == pytest.approx(expected * 5, rel=1e-5)


def test_warm_restarts_are_those_of_torch_after_a_pass_at_a_tenth():
    """As in the loop of GDumb's authors: an epoch at lr / 10, one at lr, and from then on a step of the schedule for each."""
    optimizer = torch.optim.SGD([torch.zeros(())], lr=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, T_0=1, T_mult=2, eta_min=0.0005)
    expected = [0.005, 0.05]
    for _ in range(30):
        schedule.step()
        expected.append(optimizer.param_groups[0]["lr"])
    config = TrainerConfig(scheduler="warm_restarts", lr=0.05, lr_min=0.0005, restarts=5)
    assert learning_rates_of(config, 32) == pytest.approx(expected)
    assert learning_rates_of(config, 96) == pytest.approx([rate for rate in expected for _ in range(3)])


@pytest.mark.parametrize(("reset", "kept"), [("true", False), ("false", True)])
def test_optimizer_state_between_tasks(reset, kept, small_trainer, monkeypatch):
    trainer = small_trainer("strategy=finetune", f"trainer.reset_optimizer={reset}")
    momenta = []
    begin = trainer.train_mode

    def look():
        momenta.append(any(state["momentum_buffer"].any() for state in trainer.optimizer.state.values()))
        begin()

    monkeypatch.setattr(trainer, "train_mode", look)
    trainer.fit()
    assert momenta == [False, *[kept] * (trainer.scenario.n_tasks - 1)]


def test_a_head_of_zeros_begins_every_task_but_the_first(small_trainer, monkeypatch):
    """Before the strategy's hook, so that what it keeps of the weights has it; the optimizer's state stays."""
    trainer = small_trainer("strategy=finetune", "trainer.zero_head=true", "trainer.reset_optimizer=false")
    head, strategy = trainer.learner.model.head, trainer.learner.strategies[0]
    non_zero, momentum = [], []

    def look(_task):
        non_zero.append([bool(p.any()) for p in (head.weight, head.bias)])
        momentum.append([bool(state["momentum_buffer"].any()) for state in trainer.optimizer.state.values()])

    monkeypatch.setattr(strategy, "begin_task", look)
    trainer.fit()
    assert non_zero == [[True, True]] + [[False, False]] * 4
    n = len(trainer.parameters)
    assert momentum == [[False] * n] + [[True] * n] * 4
    assert head.weight.any()  # it has been trained since


def test_a_head_of_zeros_that_nobody_predicts_with_is_refused(small_setup):
    with pytest.raises(
        ConfigError, match=r"trainer\.zero_head=true is for methods that predict with the network's own"
    ):
        small_setup("strategy=hypernetwork", "scenario=split_digits_task", "trainer.zero_head=true")


def test_clipped_gradient(small_trainer, monkeypatch):
    trainer = small_trainer("strategy=finetune", "trainer.clip_grad_norm=0.01")
    norms = []
    step = type(trainer.optimizer).step

    def recorded(optimizer, *arguments):
        norms.append(torch.cat([p.grad.flatten() for p in trainer.parameters]).norm())
        return step(optimizer, *arguments)

    monkeypatch.setattr(type(trainer.optimizer), "step", recorded)
    trainer.fit()
    assert all(norm <= 0.01 + 1e-6 for norm in norms)


class NormalisedBackbone(nn.Module):
    """A backbone with one BatchNorm layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.ReLU())
        self.n_features = 8

    def forward(self, x):
        return self.layers(x)


@pytest.mark.parametrize(
    ("policy", "moves_in_task"),
    [("train", [True, True]), ("freeze_after_first_task", [True, False]), ("frozen", [False, False])],
)
def test_batch_norm_policy(policy, moves_in_task, small_trainer, monkeypatch):
    monkeypatch.setattr("clbench.set_up.MODELS", {"mlp": lambda config, shape: NormalisedBackbone()})
    trainer = small_trainer("strategy=finetune", f"trainer.batch_norm={policy}", "scenario.increment=5")
    means = [trainer.learner.model.backbone.layers[2].running_mean.clone()]
    trainer.on_task_end = lambda _task: means.append(trainer.learner.model.backbone.layers[2].running_mean.clone())
    trainer.fit()
    moved = [not torch.equal(before, after) for before, after in pairwise(means)]
    assert moved == moves_in_task


def test_evaluation_does_not_move_batch_norm(small_trainer, monkeypatch):
    monkeypatch.setattr("clbench.set_up.MODELS", {"mlp": lambda config, shape: NormalisedBackbone()})
    states = []
    for index, every in enumerate(["1", "0"]):
        trainer = small_trainer(
            "strategy=er", "strategy.memory_size=20", f"evaluator.every={every}", checkpoint=str(index)
        )
        trainer.fit()
        states.append(trainer.learner.state_dict())
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]), name


def test_weights_do_not_depend_on_what_used_torchs_generator_before(small_setup):
    torch.manual_seed(1)
    first = small_setup("strategy=finetune").learner.state_dict()
    torch.manual_seed(2)
    second = small_setup("strategy=finetune").learner.state_dict()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name])
    other = small_setup("strategy=finetune", "seed=1").learner.state_dict()
    assert not torch.equal(first["model.head.weight"], other["model.head.weight"])


def test_what_is_learned_without_gradients_is_not_augmented(small_trainer):
    """Exact regression on all data is one on the images themselves; alone and in a fleet."""
    common = ["strategy=acil", "strategy.width=20", "strategy.extractor=frozen"]
    augmented = [*common, "scenario.augment.flip=true", "scenario.augment.crop_padding=2"]
    plain, flipped = small_trainer(*common, checkpoint="plain"), small_trainer(*augmented, checkpoint="flipped")
    fleet = [small_trainer(*augmented, f"seed={seed}", checkpoint=f"fleet{seed}") for seed in (0, 1)]
    plain.fit(), flipped.fit()
    Fleet(fleet).fit()
    expected = plain.learner.strategies[0].W
    assert expected.abs().max() > 0
    assert torch.equal(expected, flipped.learner.strategies[0].W)
    torch.testing.assert_close(expected, fleet[0].learner.strategies[0].W, rtol=1e-5, atol=1e-6)


def test_a_stage_begins_before_its_step_and_leaves_training_as_it_was(small_trainer, monkeypatch):
    trainer = small_trainer("strategy=finetune", "model=slim_resnet18", "model.width=2", "scenario.tasks=1")
    seen = []

    def stages(strategy, task, n_steps):
        return [
            Stage(start=s, begin=lambda _, s=s: seen.append((s, trainer.learner.training))) for s in (0, n_steps - 1)
        ]

    monkeypatch.setattr(Finetune, "stages", stages)
    train_step = trainer._train_step

    def watched(*arguments):
        seen.append(trainer.learner.model.backbone.training)
        train_step(*arguments)

    trainer._train_step = watched
    trainer.fit()
    assert seen == [(0, False), True, True, True, (3, False), True]
