"""A step's gradient from pieces of its batch, for networks whose activations of a whole batch do not fit into memory.

A loss need not be a sum over samples: it may divide by counts that only the whole batch knows, or compare samples with each
other. So the pieces go through the network twice (GradCache; Gao et al. 2021, arXiv:2101.06983):

1. without a graph, which gives the outputs of the whole batch. From these come the loss terms, and their gradients with respect
   to the outputs and, where a term looks at weights, to those;
2. one after another with a graph, through which each piece's part of the outputs' gradient is taken back to the weights.

This is the whole batch's gradient for any loss of the outputs, but for rounding, at the cost of one more forward pass. Random
numbers drawn within the network (dropout) are the same in both passes. What has to be so: what the network makes of a sample
depends on that sample alone, which BatchNorm in training does not fulfil, and losses read nothing of the forward pass but its
outputs. What a strategy sends through a network by itself (to a teacher, reference samples, generated ones) is not cut.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from clbench.errors import ConfigError
from clbench.learning.base import Batch, Outputs


def pieces_of(batch: Batch, size: int, dim: int = 0) -> list[Batch]:
    """The batch's samples in pieces of at most ``size``, without columns and reference samples, which belong to the whole.

    Args:
        batch: its tensors are (B, ...), with ``dim`` 1 (R, B, ...).
        size: samples of a piece at most.
        dim: the dimension that counts samples.
    """

    def piece(start: int) -> Batch:
        n = min(size, batch.ids.shape[dim] - start)
        samples, ids = tree_map(lambda tensor: tensor.narrow(dim, start, n), (batch.samples, batch.ids))
        return Batch(samples, ids, n_new=min(max(batch.n_new - start, 0), n))

    return [piece(start) for start in range(0, batch.ids.shape[dim], size)]


def backward_in_pieces(
    batch: Batch,
    size: int,
    outputs_of: Callable[[Batch], Outputs],
    terms_of: Callable[[Batch, Outputs], dict[str, Tensor]],
    scaled: Callable[[Tensor], Tensor] = lambda total: total,
    dim: int = 0,
) -> tuple[dict[str, Tensor], Outputs]:
    """Add the gradient of the sum of the batch's loss terms to ``grad`` of the weights, as ``backward`` does.

    Args:
        batch, size, dim: as in :func:`pieces_of`.
        outputs_of: sends a piece through the network.
        terms_of: loss terms of the whole batch from its outputs; each a scalar, or (R,).
        scaled: what is differentiated instead of the sum.

    Returns:
        The loss terms, and the outputs of the whole batch, detached.
    """
    device = batch.ids.device
    pieces = pieces_of(batch, size, dim)
    before, found = [], []
    with torch.no_grad():
        for piece in pieces:
            before.append(_random_state(device))
            found.append(outputs_of(piece))
    torch.clear_autocast_cache()  # casts of weights made without a graph would be taken for those with one
    whole = Outputs(*(torch.cat(parts, dim).requires_grad_() for parts in zip(*found, strict=True)))
    del found
    terms = terms_of(batch, whole)
    scaled(torch.stack([term.sum() for term in terms.values()]).sum()).backward()
    after = _random_state(device)
    gradients = [None if tensor.grad is None else tensor.grad.split(size, dim) for tensor in whole]
    for number, (piece, state) in enumerate(zip(pieces, before, strict=True)):
        _set_random_state(state, device)
        pairs = [
            (output, of_output[number])
            for output, of_output in zip(outputs_of(piece), gradients, strict=True)
            if of_output is not None and output.requires_grad
        ]
        if pairs:
            outputs, their_gradients = map(list, zip(*pairs, strict=True))
            torch.autograd.backward(outputs, their_gradients)
    _set_random_state(after, device)
    return terms, Outputs(*(tensor.detach() for tensor in whole))


def refuse_batch_norm(network: nn.Module, size: int) -> None:
    """Refuse pieces of a network that is in training mode where one of its layers looks at the whole batch.

    Raises:
        ConfigError: it has BatchNorm layers that train.
    """
    if any(isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training for module in network.modules()):
        raise ConfigError(
            f"trainer.microbatch={size} sends a batch through the network in pieces, of which BatchNorm layers that train would "
            "take the statistics instead of the batch's: set trainer.batch_norm=frozen, or trainer.microbatch=null"
        )


def _random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    """The state of torch's generators that a forward pass may draw from; the host does not wait for a GPU."""
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def _set_random_state(state: tuple[Tensor, Tensor | None], device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)
