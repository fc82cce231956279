"""``trainer.optimizer=adagrad``: torch's updates, whatever is kept, stacked or resumed."""

import signal

import pytest
import torch

from clbench.config import TrainerConfig
from clbench.errors import Interrupted
from clbench.testing.properties import require_same_run
from clbench.training import trainer as trainer_module
from clbench.training.optimizers import assign_gradients, flatten_gradients, make_optimizer
from clbench.training.stacked_optimizer import StackedOptimizer

ADAGRAD = [
    "strategy=finetune",
    "trainer.optimizer=adagrad",
    "trainer.lr=0.05",
    "scenario.tasks=2",
    "scenario.frozen=null",
]


def flat(parameters) -> torch.Tensor:
    return torch.cat([parameter.detach().reshape(-1) for parameter in parameters]).clone()


def test_two_steps_by_hand():
    """θ₁ = θ₀ − η g/(|g| + ε), whatever the size of the gradient; then each weight's own sum of squares."""
    weights = [torch.nn.Parameter(torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64))]
    optimizer = make_optimizer(TrainerConfig(optimizer="adagrad", lr=0.1), weights)
    assign_gradients(weights, torch.tensor([3.0, -0.004, 0.0], dtype=torch.float64))
    optimizer.step()
    torch.testing.assert_close(flat(weights), torch.tensor([0.9, -1.9, 3.0], dtype=torch.float64), rtol=0, atol=1e-8)
    assign_gradients(weights, torch.tensor([4.0, 0.003, 2.0], dtype=torch.float64))
    optimizer.step()
    expected = torch.tensor([0.9 - 0.1 * 4 / 5, -1.9 - 0.1 * 3 / 5, 2.9], dtype=torch.float64)
    torch.testing.assert_close(flat(weights), expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("reset", [True, False])
def test_a_run_takes_torchs_steps(reset, small_trainer):
    """To the bit, over two tasks, with the sums of squares begun anew in the second or not."""
    trainer = small_trainer(*ADAGRAD, f"trainer.reset_optimizer={reset}", "trainer.weight_decay=0.01")
    its = torch.nn.Parameter(flat(trainer.parameters))
    reference = torch.optim.Adagrad([its], lr=0.05, weight_decay=0.01, fused=True)
    trainer.begin()
    for task in range(2):
        trainer.begin_task()
        with torch.no_grad():
            its.copy_(flat(trainer.parameters))  # the head's new rows are drawn when a task begins
        if task and reset:
            reference = torch.optim.Adagrad([its], lr=0.05, weight_decay=0.01, fused=True)
        for _ in range(len(trainer.steps)):
            trainer.advance()
            its.grad = flatten_gradients(trainer.parameters)
            reference.step()
            assert torch.equal(flat(trainer.parameters), its.detach())
        trainer.end_task()


@pytest.mark.parametrize("n_alone", [0, 3])
def test_stacked_steps_are_those_of_each_alone(n_alone):
    """States are taken over after ``n_alone`` steps, and handed back."""
    configs = [TrainerConfig(optimizer="adagrad", lr=lr, weight_decay=decay) for lr, decay in ((0.1, 0.0), (0.01, 0.3))]
    generator = torch.Generator().manual_seed(0)

    def members():
        torch.manual_seed(1)
        weights = [[torch.nn.Parameter(torch.randn(s, dtype=torch.float64)) for s in ((3, 2), (4,))] for _ in configs]
        return weights, [make_optimizer(c, w) for c, w in zip(configs, weights, strict=True)]

    def step_alone(weights, optimizers, gradients):
        for own, optimizer, gradient in zip(weights, optimizers, gradients, strict=True):
            assign_gradients(own, gradient.clone())
            optimizer.step()

    (alone, of_alone), (stacked, of_stacked) = members(), members()
    gradients = torch.randn(9, 2, 10, dtype=torch.float64, generator=generator)
    for gradient in gradients[:n_alone]:
        step_alone(alone, of_alone, gradient)
        step_alone(stacked, of_stacked, gradient)
    together = torch.stack([flat(weights) for weights in stacked])
    rates = torch.tensor([[config.lr for config in configs]] * 9, dtype=torch.float64)
    optimizer = StackedOptimizer(configs, rates, stacked, of_stacked)
    for number, gradient in enumerate(gradients[n_alone:]):
        step_alone(alone, of_alone, gradient)
        optimizer.step(together, gradient, number)
    torch.testing.assert_close(together, torch.stack([flat(weights) for weights in alone]), rtol=0, atol=1e-13)
    optimizer.export()
    for mine, its, own, other in zip(of_stacked, of_alone, stacked, alone, strict=True):
        for a, b in zip(own, other, strict=True):
            torch.testing.assert_close(mine.state[a]["sum"], its.state[b]["sum"], rtol=0, atol=1e-13)
            assert float(mine.state[a]["step"]) == float(its.state[b]["step"]) == 9


@pytest.mark.parametrize("after", [3, 11])
def test_a_run_that_is_stopped_goes_on(after, small_trainer, monkeypatch):
    """Within the first task, and within the second with what the first has left."""
    options = [*ADAGRAD, "trainer.reset_optimizer=false", "trainer.max_steps_per_task=8"]
    whole = small_trainer(*options, checkpoint="whole")
    whole.fit()
    stopped = small_trainer(*options, checkpoint="stopped")
    monkeypatch.setattr(trainer_module, "noted", lambda: signal.SIGTERM if stopped.iteration == after else None)
    with pytest.raises(Interrupted):
        stopped.fit()
    monkeypatch.undo()
    resumed = small_trainer(*options, checkpoint="stopped")
    resumed.fit()
    require_same_run(resumed, whole, "these runs")
    assert torch.equal(flat(resumed.parameters), flat(whole.parameters))
