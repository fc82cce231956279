"""SGD, Adam, AdamW and Adagrad over the stacked weights of many runs, each with hyperparameters of its own.

The updates are those of ``torch.optim`` (whose optimizers have one learning rate for all they update):

    SGD      g ← g + wd θ;  m ← μ m + g;  θ ← θ − η m
    Adam     g ← g + wd θ;  m ← β₁ m + (1 − β₁) g;  v ← β₂ v + (1 − β₂) g²;  θ ← θ − η m̂ / (√v̂ + ε)
    AdamW    θ ← (1 − η wd) θ, then as Adam without the first step
    Adagrad  g ← g + wd θ;  s ← s + g²;  θ ← θ − η g / (√s + 1e-10)

with m̂ = m / (1 − β₁ᵗ), v̂ = v / (1 − β₂ᵗ), β = (0.9, 0.999), ε = 1e-8. Row r of every matrix belongs to run r.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from clbench.config import TrainerConfig
from clbench.training.elementwise_adam import BETA_1, BETA_2, EPSILON, ElementwiseAdam, missing

REMEMBERED = {
    "sgd": ("momentum_buffer",),
    "adam": ("exp_avg", "exp_avg_sq"),
    "adamw": ("exp_avg", "exp_avg_sq"),
    "adagrad": ("sum",),
}
"""What each optimizer remembers of every weight, by the names that torch gives it."""

ADAGRAD_EPSILON = 1e-10

NUMBERS_AT_ONCE = {"cpu": 2**19, "cuda": 2**62}
"""Weights updated at a time: on a processor as many as its cache holds through an update's passes, on a GPU all."""


class StackedOptimizer:
    """Updates weights (R, P).

    Args:
        configs: of the R runs; the same optimizer in all, any learning rates, momenta and weight decays.
        learning_rates: float (steps, R), of every step of the task.
        parameters: of every run, in the order of the flat weights.
        optimizers: of every run, the state of which is taken over.
    """

    def __init__(
        self,
        configs: Sequence[TrainerConfig],
        learning_rates: Tensor,
        parameters: Sequence[list[nn.Parameter]],
        optimizers: Sequence[torch.optim.Optimizer],
    ) -> None:
        like = parameters[0][0].detach()
        self.kind = configs[0].optimizer
        self.learning_rates = learning_rates.to(like)
        self._weight_decay = like.new_tensor([c.weight_decay for c in configs])
        self._decays = any(c.weight_decay for c in configs)
        self._momentum = like.new_tensor([c.momentum for c in configs])
        self._members = list(zip(parameters, optimizers, strict=True))
        self._moments = {
            name: torch.stack([_flat(p, o, name) for p, o in self._members]) for name in REMEMBERED[self.kind]
        }
        # How many steps Adam has averaged over: (R, 1), or (R, P) where it counts those of every weight by itself. Adagrad
        # only keeps the number.
        self._counts_each = isinstance(optimizers[0], ElementwiseAdam)
        if self._counts_each:
            self._steps_taken = torch.stack([_flat(p, o, "step") for p, o in self._members])
        else:
            counts = [float(o.state[p[0]]["step"]) if "step" in o.state[p[0]] else 0.0 for p, o in self._members]
            self._steps_taken = like.new_tensor(counts)[:, None]

    def step(self, weights: Tensor, gradients: Tensor, step: int, rows: Tensor | None = None) -> None:
        """Update weights (R, P) in place by gradients (R, P), at step ``step`` of the task.

        With ``rows`` (n,) these are the weights and gradients (n, P) of only some runs.
        """
        if rows is not None:
            moments = {name: moment[rows] for name, moment in self._moments.items()}
            self._update(weights, gradients, moments, rows, step)
            for name, moment in moments.items():
                self._moments[name][rows] = moment
            return
        at_once = max(1, NUMBERS_AT_ONCE[weights.device.type] // weights.shape[1])
        for start in range(0, len(weights), at_once):
            part = slice(start, start + at_once)
            moments = {name: moment[part] for name, moment in self._moments.items()}
            self._update(weights[part], gradients[part], moments, part, step)

    def forget(self, renewed: Tensor, rows: Tensor | None = None) -> None:
        """Set to 0 what is remembered of the weights that are True in ``renewed``, boolean (R, P), or (n, P) of some rows."""
        remembered = list(self._moments.values()) + ([self._steps_taken] if self._counts_each else [])
        for moment in remembered:
            if rows is None:
                moment.mul_(~renewed)
            else:
                moment[rows] *= ~renewed

    def next_update(self, weights: Tensor, gradients: Tensor, step: int, rows: Tensor | None = None) -> Tensor:
        """The changes (R, P) that :meth:`step` would make; nothing is changed by asking."""
        chosen = slice(None) if rows is None else rows
        moments = {name: moment[chosen].clone() for name, moment in self._moments.items()}
        steps_taken, self._steps_taken = self._steps_taken, self._steps_taken.clone()
        moved = weights.clone()
        self._update(moved, gradients, moments, chosen, step)
        self._steps_taken = steps_taken
        return moved - weights

    def _update(
        self, weights: Tensor, gradients: Tensor, moments: dict[str, Tensor], rows: Tensor | slice, step: int
    ) -> None:
        # addcmul: one pass over memory each, which is what an update costs.
        lr, decay = self.learning_rates[step, rows, None], self._weight_decay[rows, None]
        if self.kind == "adamw":
            weights.mul_(1 - lr * decay)
        elif self._decays:
            gradients = torch.addcmul(gradients, decay, weights)
        if self.kind == "sgd":
            moment = moments["momentum_buffer"]
            torch.addcmul(gradients, self._momentum[rows, None], moment, out=moment)
            weights.addcmul_(lr, moment, value=-1)
            return
        self._steps_taken[rows] += 1
        if self.kind == "adagrad":
            squares = moments["sum"].addcmul_(gradients, gradients)
            weights.sub_(lr * gradients / squares.sqrt().add_(ADAGRAD_EPSILON))
            return
        taken = self._steps_taken[rows]
        first, second = moments["exp_avg"], moments["exp_avg_sq"]
        first.lerp_(gradients, 1 - BETA_1)
        second.mul_(BETA_2).addcmul_(gradients, gradients, value=1 - BETA_2)
        size = (second / missing(BETA_2, taken)).sqrt_().add_(EPSILON)
        weights.sub_(lr / missing(BETA_1, taken) * first / size)

    def export(self) -> None:
        """Give every run's own optimizer its state, as if it had taken the steps itself."""
        for row, (parameters, optimizer) in enumerate(self._members):
            start = 0
            for parameter in parameters:
                piece = slice(start, start + parameter.numel())
                start += parameter.numel()
                state = {name: m[row, piece].view_as(parameter).clone() for name, m in self._moments.items()}
                if self.kind != "sgd":
                    steps = self._steps_taken[row]
                    state["step"] = steps[piece].view_as(parameter).clone() if self._counts_each else steps[0].clone()
                optimizer.state[parameter] = state


def clip_rows(gradients: Tensor, largest: Tensor) -> Tensor:
    """``gradients`` (R, P), each row scaled down to the L2 norm ``largest`` (R,) where it is longer.

    As ``torch.nn.utils.clip_grad_norm_``, which adds 1e-6 to the norm that it divides by.
    """
    return gradients * (largest / (gradients.norm(dim=1) + 1e-6)).clamp(max=1)[:, None]


def _flat(parameters: list[nn.Parameter], optimizer: torch.optim.Optimizer, name: str) -> Tensor:
    """The moment ``name`` of an optimizer as one vector (P,); zeros where it has taken no step."""
    moments = (optimizer.state[p].get(name) for p in parameters)
    return torch.cat(
        [
            torch.zeros_like(p).view(-1) if moment is None else moment.reshape(-1)
            for p, moment in zip(parameters, moments, strict=True)
        ]
    ).detach()
