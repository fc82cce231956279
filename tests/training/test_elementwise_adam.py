"""Adam with a count of steps for every weight, and optimizers that forget: alone, and stacked."""

import copy

import pandas as pd
import pytest
import torch
from torch import nn

from clbench.config import TrainerConfig
from clbench.testing.stepping import fit_until
from clbench.training.elementwise_adam import ElementwiseAdam
from clbench.training.fleet import Fleet
from clbench.training.optimizers import assign_gradients, forget, make_optimizer
from clbench.training.stacked_optimizer import StackedOptimizer

SHAPES = [(4, 3), (4,), (2, 4)]
P = 24
RENEWED = torch.arange(P) % 3 == 0
CONFIGS = {
    "sgd": TrainerConfig(optimizer="sgd", lr=0.1, momentum=0.9, weight_decay=0.01),
    "sgd without momentum": TrainerConfig(optimizer="sgd", lr=0.1, momentum=0.0),
    "adam": TrainerConfig(optimizer="adam", lr=0.01, weight_decay=0.1),
    "adamw": TrainerConfig(optimizer="adamw", lr=0.01, weight_decay=0.1),
    "adagrad": TrainerConfig(optimizer="adagrad", lr=0.01, weight_decay=0.1),
}


def weights(seed: int = 0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, dtype=torch.float64, generator=generator)) for shape in SHAPES]


def gradient(step: int) -> torch.Tensor:
    return torch.randn(P, dtype=torch.float64, generator=torch.Generator().manual_seed(100 + step))


def flat(parameters: list[nn.Parameter]) -> torch.Tensor:
    return torch.cat([parameter.detach().reshape(-1) for parameter in parameters])


def step(parameters: list[nn.Parameter], optimizer: torch.optim.Optimizer, number: int) -> None:
    assign_gradients(parameters, gradient(number))
    optimizer.step()


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize(("decoupled", "of_torch"), [(False, torch.optim.Adam), (True, torch.optim.AdamW)])
def test_it_is_torchs_as_long_as_nothing_is_forgotten(decoupled, of_torch, weight_decay):
    mine, its = weights(), weights()
    optimizer = ElementwiseAdam(mine, 0.01, weight_decay, decoupled)
    reference = of_torch(its, lr=0.01, weight_decay=weight_decay)
    for number in range(30):
        for chosen in (optimizer, reference):
            chosen.param_groups[0]["lr"] = 0.01 / (1 + number)  # as a schedule does
        step(mine, optimizer, number)
        step(its, reference, number)
        torch.testing.assert_close(flat(mine), flat(its), rtol=0, atol=1e-12)


def test_it_is_torchs_in_single_precision():
    mine, its = ([nn.Parameter(p.detach().float()) for p in weights()] for _ in range(2))
    optimizer, reference = ElementwiseAdam(mine, 0.01, 0.0, False), torch.optim.Adam(its, lr=0.01)
    for number in range(30):
        for parameters, chosen in ((mine, optimizer), (its, reference)):
            assign_gradients(parameters, gradient(number).float())
            chosen.step()
    torch.testing.assert_close(flat(mine), flat(its), rtol=0, atol=1e-6)


def test_a_parameter_without_gradient_stays():
    parameters = weights()
    before = flat(parameters)
    ElementwiseAdam(parameters, 0.1, 0.1, True).step()
    assert torch.equal(flat(parameters), before)


@pytest.mark.parametrize("name", CONFIGS)
def test_forgotten_weights_move_like_fresh_ones_and_the_others_as_if_nothing_had_happened(name):
    config = CONFIGS[name]
    parameters = weights()
    optimizer = make_optimizer(config, parameters, renewed=True)
    for number in range(7):
        step(parameters, optimizer, number)
    fresh, untouched = copy.deepcopy(parameters), copy.deepcopy(parameters)
    of_fresh = make_optimizer(config, fresh, renewed=True)
    of_untouched = make_optimizer(config, untouched, renewed=True)
    of_untouched.load_state_dict(copy.deepcopy(optimizer.state_dict()))  # what a checkpoint keeps
    forget(optimizer, RENEWED)
    before = flat(parameters)
    for number in range(7, 12):
        for chosen, its in ((parameters, optimizer), (fresh, of_fresh), (untouched, of_untouched)):
            step(chosen, its, number)
        expected = torch.where(RENEWED, flat(fresh), flat(untouched))
        torch.testing.assert_close(flat(parameters), expected, rtol=0, atol=1e-13)
        if name == "adam" and number == 7:  # a first step of Adam is as long as the learning rate
            moved = (flat(parameters) - before).abs()
            torch.testing.assert_close(moved[RENEWED], torch.full_like(moved[RENEWED], 0.01), rtol=1e-4, atol=0)
    if config.momentum or config.optimizer != "sgd":
        assert not torch.allclose(flat(fresh), flat(untouched))


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("rows", [None, [0, 2]])
def test_stacked_runs_forget_each_for_itself(name, rows):
    """As each of them would alone, whether all of them or only some take the step; and their states are handed back."""
    config, n = CONFIGS[name], 3
    alone = [weights(seed) for seed in range(n)]
    stacked = [weights(seed) for seed in range(n)]
    of_alone = [make_optimizer(config, parameters, renewed=True) for parameters in alone]
    of_stacked = [make_optimizer(config, parameters, renewed=True) for parameters in stacked]
    for parameters, optimizer in [*zip(alone, of_alone, strict=True), *zip(stacked, of_stacked, strict=True)]:
        step(parameters, optimizer, 0)  # so that there is a state to take over
    together = torch.stack([flat(parameters) for parameters in stacked])
    rates = torch.full((6, n), config.lr, dtype=torch.float64)
    optimizer = StackedOptimizer([config] * n, rates, stacked, of_stacked)
    acting = list(range(n)) if rows is None else rows
    index = None if rows is None else torch.tensor(rows)
    masks = torch.stack([(torch.arange(P) + row) % 3 == 0 for row in acting])
    for number in range(1, 6):
        chosen = together if index is None else together[index]
        optimizer.step(chosen, torch.stack([gradient(number)] * len(acting)), number, index)
        if index is not None:
            together[index] = chosen
        if number == 3:
            optimizer.forget(masks, index)
        for place, row in enumerate(acting):
            step(alone[row], of_alone[row], number)
            if number == 3:
                forget(of_alone[row], masks[place])
    torch.testing.assert_close(together, torch.stack([flat(parameters) for parameters in alone]), rtol=0, atol=1e-12)
    optimizer.export()
    for mine, its, parameters, theirs in zip(of_stacked, of_alone, stacked, alone, strict=True):
        for parameter, other in zip(parameters, theirs, strict=True):
            for key, value in its.state[other].items():
                torch.testing.assert_close(mine.state[parameter][key], value, rtol=0, atol=1e-12, check_dtype=False)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_the_trainer_forgets_what_a_strategy_has_drawn_anew(optimizer, small_trainer, monkeypatch):
    trainer = small_trainer(
        "strategy=redo",
        "strategy.period_unit=steps",
        "strategy.period=3",
        "strategy.threshold=0.5",
        f"trainer.optimizer={optimizer}",
    )
    seen = []
    after_step = trainer.learner.after_step

    def spy(number, batch):
        renewed = after_step(number, batch)
        seen.append(renewed)
        return renewed

    monkeypatch.setattr(trainer.learner, "after_step", spy)
    trainer.begin_task()
    for number in range(1, 4):
        trainer.advance()
        state = trainer.optimizer.state
        names = ["momentum_buffer"] if optimizer == "sgd" else ["exp_avg", "exp_avg_sq", "step"]
        moments = {name: torch.cat([state[p][name].reshape(-1) for p in trainer.parameters]) for name in names}
        renewed = seen[-1]
        assert (renewed is None) == (number < 3)
        if renewed is not None:
            assert renewed.any()
            assert all(not moment[renewed].any() for moment in moments.values())
        if optimizer == "adam":
            kept = torch.ones_like(moments["step"], dtype=torch.bool) if renewed is None else ~renewed
            assert (moments["step"][kept] == number).all()


HEADS = [
    "scenario=split_digits_task", "scenario.tasks=3", "scenario.frozen=null", "strategy=finetune", "trainer.optimizer=adam",
    "trainer.lr=0.01", "trainer.reset_optimizer=false", "trainer.max_steps_per_task=25",
]  # fmt: skip


def test_with_steps_of_their_own_heads_are_trained_as_modules_of_their_own(small_trainer):
    """Torch's Adam over a backbone and a linear layer for each task, whose steps it counts from the task's first one on."""
    trainer = small_trainer(*HEADS, "trainer.adam_steps=own")
    trainer.begin()
    model, reference, heads, optimizer = trainer.learner.model, copy.deepcopy(trainer.learner.model.backbone), [], None
    for task in range(3):
        trainer.begin_task()
        rows = slice(2 * task, 2 * task + 2)
        heads.append(nn.Linear(model.head.in_features, 2))
        with torch.no_grad():
            heads[-1].weight.copy_(model.head.weight[rows])
            heads[-1].bias.copy_(model.head.bias[rows])
        optimizer = optimizer or torch.optim.Adam(reference.parameters(), lr=0.01)
        optimizer.add_param_group({"params": heads[-1].parameters()})
        for step in trainer.steps:
            samples = trainer.inputs.training(trainer.scenario.train, step.ids, task, 0)
            optimizer.zero_grad(set_to_none=False)  # earlier heads have gradients of 0, and go on by their momentum
            nn.functional.cross_entropy(heads[-1](reference(samples.x)), samples.y - 2 * task).backward()
            optimizer.step()
            trainer.advance()
        torch.testing.assert_close(model.head.weight[rows], heads[-1].weight, rtol=1e-3, atol=1e-5)
        trainer.end_task()
    for mine, its in zip(model.backbone.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-3, atol=1e-5)
    for task, head in enumerate(heads):
        torch.testing.assert_close(model.head.weight[2 * task : 2 * task + 2], head.weight, rtol=1e-3, atol=1e-5)


def test_with_the_optimizers_steps_a_new_head_starts_with_longer_ones(small_trainer):
    """By (1 − β₁) / √(1 − β₂) = 3.2, where the optimizer has taken many steps."""
    lengths = {}
    for counted in ("all", "own"):
        trainer = small_trainer(*HEADS, "trainer.max_steps_per_task=1000", f"trainer.adam_steps={counted}")
        trainer.fit_task()
        trainer.begin_task()
        before = trainer.learner.model.head.weight[2:4].detach().clone()
        trainer.advance()
        lengths[counted] = (trainer.learner.model.head.weight[2:4] - before).abs().max().item()
    assert lengths["own"] == pytest.approx(0.01, rel=1e-3)
    assert lengths["all"] == pytest.approx(0.01 * 0.1 / 0.001**0.5 * (1 - 0.999**1001) ** 0.5, rel=1e-2)


def test_steps_of_their_own_in_a_fleet_and_after_a_kill(small_trainer):
    whole = small_trainer(*HEADS, "trainer.adam_steps=own", checkpoint="whole")
    whole.fit()
    fit_until(small_trainer(*HEADS, "trainer.adam_steps=own", checkpoint="killed"), 30)
    resumed = small_trainer(*HEADS, "trainer.adam_steps=own", checkpoint="killed")
    resumed.fit()
    pd.testing.assert_frame_equal(whole.curve, resumed.curve)
    members = [
        small_trainer(*HEADS, "trainer.adam_steps=own", f"seed={seed}", checkpoint=f"f{seed}") for seed in (0, 1)
    ]
    Fleet(members).fit()
    pd.testing.assert_frame_equal(whole.curve, members[0].curve, atol=0.051, rtol=1e-3)
