"""Weights that a stage of a task does not train, or trains more slowly than the others."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Held:
    """Holds some weights exactly, whatever an optimizer does: momentum and weight decay move what has no gradient, too.

    Args:
        parameters: all that the optimizer knows, with P weights together.
        trained: boolean (P,), which of them are trained.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], trained: Tensor) -> None:
        self.trained, self.kept = trained, flat(parameters)
        self._parameters = parameters
        self._sizes = [parameter.numel() for parameter in parameters]

    def leave_out(self) -> None:
        """Set their gradients to 0, so that they do not count when gradients are clipped."""
        for parameter, trained in zip(self._parameters, self.trained.split(self._sizes), strict=True):
            if parameter.grad is not None:
                parameter.grad.masked_fill_(~trained.view_as(parameter), 0)

    def put_back(self) -> None:
        """Undo what a step has done to them."""
        pieces = zip(self.trained.split(self._sizes), self.kept.split(self._sizes), strict=True)
        for parameter, (trained, kept) in zip(self._parameters, pieces, strict=True):
            parameter.data.copy_(torch.where(trained.view_as(parameter), parameter.data, kept.view_as(parameter)))


class Slowed:
    """Learning-rate factors s of single weights: a step from θ to θ + Δ becomes one to θ + s Δ.

    What an optimizer makes of a step is proportional to its learning rate, momentum and weight decay included, so that this is
    the step with the learning rate s η. Gradients, and what is clipped of them, stay as they are, as with parameter groups.

    Args:
        parameters: all that the optimizer knows, with P weights together.
        factors: (P,).
    """

    def __init__(self, parameters: Sequence[nn.Parameter], factors: Tensor) -> None:
        self.factors = factors
        self._pieces = list(zip(parameters, factors.split([p.numel() for p in parameters]), strict=True))

    def before_step(self) -> None:
        """Take note of the weights."""
        self._before = [parameter.detach().clone() for parameter, _ in self._pieces]

    def after_step(self) -> None:
        """Take back what the step has done beyond its part."""
        for (parameter, factors), before in zip(self._pieces, self._before, strict=True):
            parameter.data.copy_(slowed(before, parameter.data, factors.view_as(parameter)))


def slowed(before: Tensor, after: Tensor, factors: Tensor) -> Tensor:
    """``before`` + ``factors`` · (``after`` - ``before``), elementwise; exactly ``after`` where the factor is 1."""
    return torch.where(factors == 1, after, before + factors * (after - before))


def flat(parameters: Sequence[nn.Parameter]) -> Tensor:
    """A copy of ``parameters`` as one vector (P,)."""
    return torch.cat([parameter.detach().reshape(-1) for parameter in parameters])
