"""``trainer.precision=fp16``: what a step does that overflows, above all a task's first, where loss scales are largest."""

import pytest
import torch
from streams import digits_for

from clbench.config import TrainerConfig
from clbench.errors import ConfigError
from clbench.registry import STRATEGIES
from clbench.testing.small_runs import small_network, small_options
from clbench.training.elementwise_adam import ElementwiseAdam
from clbench.training.fleet import Fleet
from clbench.training.optimizers import assign_gradients, make_optimizer

MODERATE, TOO_LARGE = 2.0**4, 2.0**100


def options(name: str, *more: str) -> list[str]:
    return [
        *small_options(name),
        f"scenario={digits_for(name)}",
        *small_network(name),
        "scenario.increment=5",
        "trainer.precision=fp16",
        "trainer.optimizer=sgd",
        "trainer.lr=0.05",
        "trainer.scheduler=constant",
        "trainer.weight_decay=0.0",
        *more,
    ]


def flat(tensors) -> torch.Tensor:
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors]).clone()


class Watched:
    """Lets the loss of each task's first step overflow; keeps the trained weights before and after every optimizer step."""

    def __init__(self, trainer) -> None:
        self.trainer, self.steps = trainer, []
        precision = trainer.precision
        precision._scaler._init_scale = MODERATE
        scale, step = precision._scaler.scale, precision.step

        def scaled(loss):
            return scale(loss) * (TOO_LARGE if trainer.step == trainer.steps_before == 0 else 1)

        def watched(optimizer):
            before, gradient = flat(trainer.parameters), flat(p.grad for p in trainer.parameters if p.grad is not None)
            step(optimizer)
            self.steps.append(
                (trainer.task, trainer.steps_before + trainer.step, before, gradient, flat(trainer.parameters))
            )

        precision._scaler.scale, precision.step = scaled, watched


@pytest.mark.parametrize(
    "name",
    [n if i % 3 == 0 else pytest.param(n, marks=pytest.mark.slow) for i, n in enumerate(STRATEGIES.names())],
)
def test_a_tasks_first_step_overflows(name, small_trainer, monkeypatch):
    """It leaves the weights as they are, and the next one is the first step of SGD that is not fused."""
    trainer = small_trainer(*options(name))
    # What torch.empty returns is NaN, so that whoever reads it before writing it is found out.
    monkeypatch.setattr(torch, "empty_like", lambda like, **how: torch.full_like(like, torch.nan, **how))
    watched = Watched(trainer)
    trainer.fit()
    by_place = {(task, step): rest for task, step, *rest in watched.steps}
    if not by_place:
        pytest.skip(f"{name} does not learn by gradient")
    by_gradient = {task for task, _ in by_place}
    for task in by_gradient:
        before, _, after = by_place[task, 0]
        assert torch.equal(before, after)
        before, gradient, after = by_place[task, 1]
        assert gradient.isfinite().all()
        if len(gradient) == len(before):  # every parameter has one
            weights = torch.nn.Parameter(before.clone())
            weights.grad = gradient
            torch.optim.SGD([weights], lr=0.05, momentum=trainer.config.trainer.momentum, foreach=False).step()
            torch.testing.assert_close(weights.detach(), after, rtol=0, atol=1e-7)
            assert not torch.equal(before, after)
    assert trainer.precision.state_dict()["scale"] == MODERATE / 2 ** len(by_gradient)  # halved once a task
    assert trainer.training.loss.notna().all()
    state = trainer.learner.state_dict() | {str(k): v for k, s in trainer.optimizer.state.items() for v in s.values()}
    for key, tensor in state.items():
        assert tensor.isfinite().all(), key


@pytest.mark.parametrize("growth", ["gradient", "momentum"])
def test_no_infinite_gradient_gets_into_what_grows_weights(growth, small_trainer):
    trainer = small_trainer(*options("dst", f"strategy.growth={growth}", "strategy.update_every=3"))
    Watched(trainer)
    trainer.begin()
    trainer.begin_task()
    for left_out in (True, False):
        trainer.advance()
        assert trainer.learner.strategies[0].dense_gradient.isfinite().all()
        assert (trainer.learner.strategies[0].dense_gradient == 0).all() == left_out


def test_momentum_buffers_change_nothing_in_single_precision():
    """Bit for bit the weights of torch's fused SGD, which makes its buffers in the first step."""
    generator = torch.Generator().manual_seed(0)
    mine, its = ([torch.nn.Parameter(torch.ones(50)), torch.nn.Parameter(torch.ones(5, 4))] for _ in range(2))
    config = TrainerConfig(optimizer="sgd", lr=0.1, momentum=0.9, weight_decay=0.01)
    optimizer = make_optimizer(config, mine)
    reference = torch.optim.SGD(its, lr=0.1, momentum=0.9, weight_decay=0.01, fused=True)
    for _ in range(5):
        gradient = torch.randn(70, generator=generator)
        assign_gradients(mine, gradient)
        assign_gradients(its, gradient.clone())
        optimizer.step()
        reference.step()
        assert torch.equal(flat(mine), flat(its))


def test_without_momentum_there_is_no_buffer():
    assert not make_optimizer(TrainerConfig(momentum=0.0), [torch.nn.Parameter(torch.ones(3))]).state


@pytest.mark.parametrize("decoupled", [False, True])
def test_adam_by_weights_leaves_a_step_out(decoupled):
    """The steps before and after one that overflows are those of a run without it, to the bit."""
    weights = [torch.nn.Parameter(torch.linspace(-1, 1, 6)) for _ in range(2)]
    left_out, never = (ElementwiseAdam([w], 0.1, 0.1, decoupled) for w in weights)
    for gradient, overflows in [(torch.ones(6), 0.0), (torch.full((6,), torch.inf), 1.0), (torch.arange(6.0), 0.0)]:
        for optimizer, weight in zip((left_out, never), weights, strict=True):
            if optimizer is never and overflows:
                continue
            weight.grad = gradient.clone()
            optimizer.found_inf = torch.tensor(overflows)
            optimizer.step()
    assert torch.equal(*weights)
    for name, value in left_out.state[weights[0]].items():
        assert torch.equal(value, never.state[weights[1]][name]), name


def test_adam_by_weights_divides_what_is_still_scaled():
    weights = [torch.nn.Parameter(torch.linspace(-1, 1, 6)) for _ in range(2)]
    for weight, scale in zip(weights, (1.0, 8.0), strict=True):
        optimizer = ElementwiseAdam([weight], 0.1, 0.0, False)
        weight.grad, optimizer.grad_scale = scale * torch.arange(6.0), torch.tensor(scale)
        optimizer.step()
    assert torch.equal(*weights)


def test_fleets_refuse_it(small_trainer):
    with pytest.raises(ConfigError, match=r"trainer\.precision=fp16 is not possible in a fleet.*bf16 or fp32"):
        Fleet([small_trainer(*options("er"), f"seed={seed}", checkpoint=str(seed)) for seed in (0, 1)])
