"""Initial weights of linear layers, by the names of ``model.init``.

Weights of a layer with n_in inputs and n_out outputs; biases in brackets:

``default``           PyTorch's: U(−1/√n_in, 1/√n_in) (the same)
``xavier``            U(−a, a) with a = √(6 / (n_in + n_out)) (0), as in the codes of GEM (Lopez-Paz & Ranzato 2017) and Mammoth
``xavier_normal``     N(0, 2 / (n_in + n_out)) (0), as in OWM's code for shuffled MNIST (Zeng et al. 2019), where hidden biases
                      are fixed at numbers from 0 to 0.01 and the head has none
``truncated_normal``  N(0, 0.1²), drawn again beyond two standard deviations as TensorFlow does (0.1), as in A-GEM's code
                      (Chaudhry et al. 2019)

They are of all layers, the head included. Its rows that are drawn when their classes come are drawn in the same way, with n_out
the classes of the whole stream.
"""

import math

import torch
from torch import Tensor, nn

INITS = ("default", "xavier", "xavier_normal", "truncated_normal")

TRUNCATED_STD = 0.1
BIAS = {"xavier": 0.0, "xavier_normal": 0.0, "truncated_normal": 0.1}


def initialise(network: nn.Module, init: str) -> None:
    """Draw the weights of all linear layers of ``network`` anew, from torch's own generator; ``default`` leaves them."""
    if init == "default":
        return
    for layer in network.modules():
        if isinstance(layer, nn.Linear):
            with torch.no_grad():
                layer.weight.copy_(drawn_like(layer.weight, init, layer.in_features))
                layer.bias.copy_(drawn_like(layer.bias, init, layer.in_features))


def drawn_like(parameter: Tensor, init: str, n_in: int, generator: torch.Generator | None = None) -> Tensor:
    """Initial values, on the CPU, of a linear layer's weight (n_out, n_in), or of its bias (n_out,)."""
    values = torch.empty(parameter.shape)
    if init == "default":
        bound = 1 / math.sqrt(n_in)
        return values.uniform_(-bound, bound, generator=generator)
    if parameter.dim() == 1:
        return values.fill_(BIAS[init])
    match init:
        case "xavier":
            return nn.init.xavier_uniform_(values, generator=generator)
        case "xavier_normal":
            return nn.init.xavier_normal_(values, generator=generator)
        case "truncated_normal":
            limit = 2 * TRUNCATED_STD
            return nn.init.trunc_normal_(values, 0.0, TRUNCATED_STD, -limit, limit, generator=generator)
    raise ValueError(f"unknown initialisation {init!r}, none of {', '.join(INITS)}")
