"""Frozen weights in bf16, half of their memory (``model.frozen_dtype=bf16``).

Held in bf16 are the weights of linear layers, convolutions and embeddings that nothing trains: nearly all there is of a
pretrained network. Biases, normalisation and tokens stay in fp32, and so does all that is trained. A layer computes in the
precision of its input, or under autocast in that of ``trainer.precision``, so that the one thing that changes is that the frozen
weights are rounded to 8 bits of mantissa.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class HalfLinear(nn.Linear):
    """A linear layer whose weight is held in bf16."""

    def forward(self, x: Tensor) -> Tensor:
        """(…, n_out) for x (…, n_in)."""
        return F.linear(x, _for(x, self.weight), self.bias)


class HalfConv2d(nn.Conv2d):
    """A convolution whose weight is held in bf16."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, n_out, H, W) for x (B, n_in, H, W)."""
        return self._conv_forward(x, _for(x, self.weight), self.bias)


class HalfEmbedding(nn.Embedding):
    """An embedding that is held in bf16."""

    def forward(self, ids: Tensor) -> Tensor:
        """float32 (…, width) for ids (…)."""
        return super().forward(ids).float()


HALF: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: HalfLinear,
    nn.Conv2d: HalfConv2d,
    nn.Embedding: HalfEmbedding,
}


@torch.no_grad()
def hold_frozen_in_half(network: nn.Module) -> int:
    """Round the weights of the network's frozen layers to bf16; returns the number of weights.

    A layer stays the object that it is, with its place, names and hooks. Only layers of exactly the types in :data:`HALF` are
    looked at: others may use their weights in a way of their own.
    """
    n = 0
    for layer in network.modules():
        half = HALF.get(type(layer))
        if half is None or layer.get_parameter("weight").requires_grad:
            continue
        layer.__class__ = half
        weight = layer.get_parameter("weight")
        weight.data = weight.to(torch.bfloat16)
        n += weight.numel()
    return n


def _for(x: Tensor, weight: Tensor) -> Tensor:
    """The weight in the precision that it meets x in."""
    return weight if torch.is_autocast_enabled(x.device.type) else weight.to(x.dtype)
