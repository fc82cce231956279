"""Which tensors of a network a mask is put on, what its other parameters are, and what a forward pass through them costs."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from clbench.models.continual import ContinualModel

NORM_LAYERS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)


class Layer(NamedTuple):
    """A masked weight tensor.

    Attributes:
        name: of the parameter in the model.
        part: its place in the flat weights (P,).
        shape: (n_out, n_in, ...).
    """

    name: str
    part: slice
    shape: torch.Size


def masked_layers(shapes: dict[str, torch.Size]) -> list[Layer]:
    """The tensors of more than one dimension: all but biases and the parameters of normalisation layers."""
    layers, start = [], 0
    for name, shape in shapes.items():
        if len(shape) > 1:
            layers.append(Layer(name, slice(start, start + shape.numel()), shape))
        start += shape.numel()
    return layers


def fix_norm_layers(model: nn.Module) -> None:
    """Scale 1 and shift 0 in all normalisation layers, not trained."""
    for module in model.modules():
        if isinstance(module, NORM_LAYERS):
            for parameter, value in ((module.weight, 1.0), (module.bias, 0.0)):
                if parameter is not None:
                    nn.init.constant_(parameter.requires_grad_(False), value)


def flops_by_layer(model: ContinualModel, blank: Tensor, layers: list[Layer]) -> tuple[list[int], int]:
    """Floating-point operations of the forward pass of one input (1, …): by each layer when dense, and by all else."""
    from torch.utils.flop_counter import FlopCounterMode  # imports triton where that is installed

    was_training = model.training
    model.eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(blank)
    model.train(was_training)
    of_modules = counter.get_flop_counts()
    modules = dict(model.named_modules())
    flops = []
    for layer in layers:
        name = layer.name.rpartition(".")[0]
        is_leaf = not any(True for _ in modules[name].children())  # a parameter beside layers (a position) takes none
        of_module = of_modules.get(f"{type(model).__name__}.{name}", {})
        flops.append(sum(of_module.values()) if is_leaf else 0)
    return flops, counter.get_total_flops() - sum(flops)
