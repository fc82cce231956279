"""Adam whose bias correction counts the steps of every weight by itself.

    m ← β₁ m + (1 − β₁) g;  v ← β₂ v + (1 − β₂) g²;  t ← t + 1;  θ ← θ − η (m / (1 − β₁ᵗ)) / (√(v / (1 − β₂ᵗ)) + ε)

For methods that draw single weights anew while training (continual backpropagation, Dohare et al. 2024, whose code has such
an optimizer too). A weight whose m, v and t are set to 0 then starts as all did. With one t for all, as in
``torch.optim.Adam``, its first steps would be 3 to 7 times as long as the learning rate.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from clbench.training.eager_optimizers import EagerOptimizer

BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8


class ElementwiseAdam(EagerOptimizer):
    """Adam or AdamW; the same as torch's as long as nothing is set to 0.

    Args:
        parameters: what is updated.
        lr: learning rate η.
        weight_decay: added to the gradient, λθ, or with ``decoupled`` taken off the weights, ηλθ.
        decoupled: AdamW.

    Under a loss scale it follows torch's contract with fused optimizers: ``torch.amp.GradScaler`` hands it ``grad_scale`` (what
    gradients are still to be divided by, or None) and ``found_inf`` (not 0 where the step is to be left out) as tensors, so that
    nothing is read on the host.
    """

    _step_supports_amp_scaling = True

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float, weight_decay: float, decoupled: bool) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay, "decoupled": decoupled})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        scale, overflow = getattr(self, "grad_scale", None), getattr(self, "found_inf", None)
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                gradient, state = parameter.grad, self.state[parameter]
                if not state:
                    state.update({name: torch.zeros_like(parameter) for name in ("step", "exp_avg", "exp_avg_sq")})
                if scale is not None:
                    gradient = gradient / scale
                changed = [parameter, *state.values()]
                before = [] if overflow is None else [tensor.clone() for tensor in changed]
                if group["decoupled"]:
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                elif group["weight_decay"]:
                    gradient = gradient + group["weight_decay"] * parameter
                taken = state["step"].add_(1)
                first = state["exp_avg"].lerp_(gradient, 1 - BETA_1)
                second = state["exp_avg_sq"].mul_(BETA_2).addcmul_(gradient, gradient, value=1 - BETA_2)
                size = (second / missing(BETA_2, taken)).sqrt_().add_(EPSILON)
                parameter.sub_(group["lr"] / missing(BETA_1, taken) * first / size)
                if overflow is not None:
                    for tensor, old in zip(changed, before, strict=True):
                        tensor.copy_(torch.where(overflow > 0, old, tensor))


def missing(beta: float, taken: Tensor) -> Tensor:
    """1 − βᵗ for numbers t of steps: what a running mean that started from 0 is short of, as a factor."""
    return -torch.expm1(math.log(beta) * taken)  # quicker than a power for every weight
