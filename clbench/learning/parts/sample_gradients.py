"""Gradients of single samples, all at once: what Fisher information, sensitivities and comparisons of samples are made of."""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor
from torch.func import functional_call, grad
from torch.nn.attention import SDPBackend, sdpa_kernel

from clbench.models.continual import ContinualModel
from clbench.scenarios.scenario import Samples

Values = TypeVar("Values", Tensor, dict[str, Tensor])

NUMBERS_AT_ONCE = {"cpu": 2**23, "cuda": 2**27}
"""Gradients held at a time, samples × weights: what a processor's cache and a GPU's memory bear."""


def gradients_of_each(
    model: ContinualModel, loss: Callable[[Tensor, Samples], Tensor], samples: Samples
) -> dict[str, Tensor]:
    """The gradient of every sample's own loss with respect to the trained parameters, by name: (n, …) for a parameter (…).

    The network is taken in the mode that it is in, which has to be evaluation mode where it has BatchNorm.

    Args:
        model: the network.
        loss: from logits (1, n_classes) and the one sample to a scalar.
        samples: n of them.
    """
    parameters = {name: parameter.detach() for name, parameter in model.trained().items()}

    def of_one(values: dict[str, Tensor], sample: Samples) -> Tensor:
        return loss(functional_call(model, values, (sample.x,)), sample)

    return gradients_at(parameters, of_one, samples)


def gradients_at(values: Values, loss: Callable[[Values, Samples], Tensor], samples: Samples) -> Values:
    """The gradient at ``values`` of every sample's own loss: tensors (n, …) for tensors (…), which need not be parameters.

    Args:
        values: what is differentiated by, a tensor or some by name.
        loss: from values and the one sample, a batch of size 1, to a scalar.
        samples: n of them.
    """

    def of_one(values: Values, x: Tensor, y: Tensor, task: Tensor) -> Tensor:
        return loss(values, Samples(x[None], y[None], task[None]))

    with sdpa_kernel(SDPBackend.MATH):  # the one form of attention that vmap batches
        return torch.vmap(grad(of_one), in_dims=(None, 0, 0, 0), randomness="different")(values, *samples)


def samples_at_once(parameters: dict[str, Tensor]) -> int:
    """How many samples' gradients to hold at a time, for parameters by name."""
    n = sum(parameter.numel() for parameter in parameters.values())
    return max(1, NUMBERS_AT_ONCE[next(iter(parameters.values())).device.type] // n)
