"""Factors of the learning rate: a step is that of parameter groups with learning rates of their own, alone and in a fleet."""

import pytest
import torch

from clbench.config import TrainerConfig
from clbench.strategies.agem import AGEM
from clbench.strategies.finetune import Finetune
from clbench.testing.small_runs import in_double_precision
from clbench.training.fleet import Fleet
from clbench.training.held import Slowed, flat
from clbench.training.optimizers import make_optimizer

OPTIMIZERS = {
    "sgd": {"optimizer": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.01},
    "adam": {"optimizer": "adam", "lr": 0.01, "weight_decay": 0.1},
    "adamw": {"optimizer": "adamw", "lr": 0.01, "weight_decay": 0.1},
    "adagrad": {"optimizer": "adagrad", "lr": 0.01, "weight_decay": 0.1},
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_it_is_a_parameter_group_with_its_own_learning_rate(kind):
    config = TrainerConfig(**OPTIMIZERS[kind])
    torch.manual_seed(0)
    ours = [torch.nn.Parameter(torch.randn(shape, dtype=torch.float64)) for shape in ((3, 2), (4,))]
    theirs = [torch.nn.Parameter(parameter.detach().clone()) for parameter in ours]
    optimizer, groups = make_optimizer(config, ours), make_optimizer(config, theirs)
    groups.param_groups[0]["params"] = theirs[:1]
    groups.add_param_group({"params": theirs[1:], "lr": 0.25 * config.lr})
    factors = torch.cat([torch.ones(6, dtype=torch.float64), torch.full((4,), 0.25, dtype=torch.float64)])
    slowed = Slowed(ours, factors)
    for _ in range(5):
        for one, other in zip(ours, theirs, strict=True):
            one.grad = torch.randn_like(one)
            other.grad = one.grad.clone()
        slowed.before_step()
        optimizer.step()
        slowed.after_step()
        groups.step()
    torch.testing.assert_close(flat(ours), flat(theirs), rtol=0, atol=1e-13)


COMMON = ["trainer.weight_decay=0.01", "scenario.tasks=2", "scenario.frozen=null"]


def test_of_the_backbone(small_trainer):
    """With plain SGD a step with the factor 0.01 is a hundredth of the step, and that of the head is whole."""
    trainers = [small_trainer(*COMMON, "trainer.momentum=0", f"trainer.backbone_rate={rate}") for rate in (1.0, 0.01)]
    steps = []
    for trainer in trainers:
        trainer.begin()
        trainer.begin_task()
        before = {name: p.detach().clone() for name, p in trainer.learner.trainable().items()}
        trainer.advance()
        steps.append({name: p.detach() - before[name] for name, p in trainer.learner.trainable().items()})
    for name, whole in steps[0].items():
        factor = 1 if name.startswith("head.") else 0.01
        torch.testing.assert_close(steps[1][name], factor * whole, rtol=1e-3, atol=1e-8)
        assert whole.any()


@pytest.fixture
def with_factors(monkeypatch):
    """Finetuning in which one tensor of the backbone is held and another is slow."""
    factors = {"backbone.layers.1.weight": 0.0, "backbone.layers.1.bias": 0.5}
    monkeypatch.setattr(Finetune, "rate_factor", lambda self, name: factors.get(name, 1.0))


def test_factors_of_a_strategy_multiply_with_the_backbones_and_with_others(small_trainer, with_factors):
    trainer = small_trainer("strategy=finetune", "strategy.plus=[l2]", "trainer.backbone_rate=0.1", *COMMON)
    names, got = list(trainer.learner.trainable()), trainer.learner.rate_factors(0.1)
    sizes = [parameter.numel() for parameter in trainer.parameters]
    expected = {"backbone.layers.1.weight": 0.0, "backbone.layers.1.bias": 0.05, "head.weight": 1.0, "head.bias": 1.0}
    for name, part in zip(names, got.split(sizes), strict=True):
        assert torch.equal(part, torch.full_like(part, expected[name])), name
    start = trainer.parameters[0].detach().clone()
    trainer.fit()
    assert torch.equal(trainer.parameters[0], start)  # momentum and weight decay included


def test_members_of_a_fleet_with_factors_of_their_own(small_trainer):
    def members(name):
        for rate in (1.0, 0.1, 0.01):
            options = [*COMMON, "trainer.momentum=0.9", f"trainer.backbone_rate={rate}"]
            yield in_double_precision(small_trainer(*options, checkpoint=f"{name} {rate}"))

    alone, together = list(members("alone")), list(members("fleet"))
    for trainer in alone:
        trainer.fit()
    Fleet(together).fit()
    for one, other in zip(alone, together, strict=True):
        torch.testing.assert_close(flat(one.parameters), flat(other.parameters), rtol=0, atol=1e-10)
    assert not torch.equal(flat(alone[0].parameters), flat(alone[1].parameters))


def test_what_looks_ahead_is_told_the_step_that_is_taken(small_trainer, monkeypatch):
    monkeypatch.setattr(AGEM, "looks_ahead", True)
    trainer = small_trainer("strategy=agem", "trainer.backbone_rate=0.1", "trainer.momentum=0.9", *COMMON)
    told = []
    monkeypatch.setattr(AGEM, "edit_gradients", lambda self, gradient, batch: told.append(batch.update) or gradient)
    trainer.begin()
    trainer.begin_task()
    for _ in range(3):
        before = flat(trainer.parameters)
        trainer.advance()
        torch.testing.assert_close(flat(trainer.parameters) - before, told[-1], rtol=1e-4, atol=1e-7)
