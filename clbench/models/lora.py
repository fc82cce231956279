"""Low-rank adaptation of a frozen vision transformer (LoRA; Hu et al. 2022, arXiv:2106.09685).

    y = W x + b + s · B A x,      s = α / r

with A (r, n_in), which starts from U(−1/√n_in, 1/√n_in), and B (n_out, r), which starts from 0, so that the network is
unchanged at first. timm computes queries, keys and values by one layer; each of the three has adapters of its own, in the
rows of W that make it.
"""

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clbench.errors import ConfigError

TARGETS = ("q", "k", "v", "proj", "mlp")
"""What can be adapted: the three projections of attention, its output projection, and both layers of the MLP."""


class Adapter(nn.Module):
    """The low-rank update s · B A of one projection.

    Args:
        n_in: columns of the weight.
        n_out: rows of the weight.
        rank: r.
        alpha: α.
    """

    scale: Tensor

    def __init__(self, n_in: int, n_out: int, rank: int, alpha: float) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.empty(rank, n_in))
        self.B = nn.Parameter(torch.empty(n_out, rank))
        self.register_buffer("scale", torch.tensor(alpha / rank))
        self.start_anew()

    @torch.no_grad()
    def start_anew(self, generator: torch.Generator | None = None) -> None:
        """Draw A and set B to 0."""
        bound = 1 / math.sqrt(self.A.shape[1])
        self.A.copy_(torch.empty(self.A.shape).uniform_(-bound, bound, generator=generator))
        self.B.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """The update's output (…, n_out) for x (…, n_in)."""
        return self.scale * F.linear(F.linear(x, self.A), self.B)

    def product(self) -> Tensor:
        """B A (n_out, n_in), without the factor s."""
        return self.B @ self.A


class AdaptedLinear(nn.Module):
    """A frozen linear layer with adapters for some of its parts.

    Args:
        base: the layer.
        parts: names of the projections that share its rows, in their order and of equal size.
        adapted: those of them that get an adapter.
        rank: r.
        alpha: α.
    """

    def __init__(self, base: nn.Linear, parts: tuple[str, ...], adapted: list[str], rank: int, alpha: float) -> None:
        super().__init__()
        self.base, self.parts = base, parts
        n_out = base.out_features // len(parts)
        self.adapters = nn.ModuleDict({part: Adapter(base.in_features, n_out, rank, alpha) for part in adapted})

    def forward(self, x: Tensor) -> Tensor:
        """(…, n_out) for x (…, n_in)."""
        outputs = self.base(x).chunk(len(self.parts), -1)
        outputs = [
            y + self.adapters[part](x) if part in self.adapters else y
            for part, y in zip(self.parts, outputs, strict=True)
        ]
        return torch.cat(outputs, -1) if len(outputs) > 1 else outputs[0]

    @torch.no_grad()
    def merge(self) -> None:
        """Add the updates to the layer's weight and set every B to 0: the outputs stay the same, but for rounding.

        The weight becomes a tensor of its own: members of a fleet may have shared the one before.
        """
        n_out = self.base.out_features // len(self.parts)
        weight = self.base.weight.clone()
        for (start, stop), part in zip(pairwise(range(0, len(weight) + 1, n_out)), self.parts, strict=True):
            if part in self.adapters:
                adapter = cast(Adapter, self.adapters[part])
                weight[start:stop] += adapter.scale * adapter.product()
                adapter.B.zero_()
        self.base.weight = nn.Parameter(weight, requires_grad=False)


def add_adapters(transformer: Any, targets: list[str], rank: int, alpha: float) -> None:
    """Freeze timm's transformer and give adapters to the ``targets`` of all of its blocks.

    Raises:
        ConfigError: a target is unknown, named twice, or there is none.
    """
    if not targets or len(set(targets)) < len(targets) or not set(targets) <= set(TARGETS):
        raise ConfigError(f"strategy.targets={targets} has to name some of {', '.join(TARGETS)}, each once")
    transformer.requires_grad_(False)
    for block in transformer.blocks:
        of_attention: list[str] = [target for target in ("q", "k", "v") if target in targets]
        if of_attention:
            block.attn.qkv = AdaptedLinear(block.attn.qkv, ("q", "k", "v"), of_attention, rank, alpha)
        if "proj" in targets:
            block.attn.proj = AdaptedLinear(block.attn.proj, ("proj",), ["proj"], rank, alpha)
        if "mlp" in targets:
            block.mlp.fc1 = AdaptedLinear(block.mlp.fc1, ("fc1",), ["fc1"], rank, alpha)
            block.mlp.fc2 = AdaptedLinear(block.mlp.fc2, ("fc2",), ["fc2"], rank, alpha)


def adapted_layers(network: nn.Module) -> dict[str, AdaptedLinear]:
    """The layers with adapters, by name, from the input on."""
    return {name: module for name, module in network.named_modules() if isinstance(module, AdaptedLinear)}


def adapters(network: nn.Module) -> Iterator[tuple[str, Adapter]]:
    """Every adapter with its name, from the input on."""
    for name, module in network.named_modules():
        if isinstance(module, Adapter):
            yield name, module
