"""Low-rank adaptation of a frozen transformer (LoRA; Hu et al. 2022, arXiv:2106.09685).

    y = W x + b + s · B A x,      s = α / r

with A (r, n_in), which starts from U(−1/√n_in, 1/√n_in), and B (n_out, r), which starts from 0, so that the network is
unchanged at first. timm computes queries, keys and values by one layer; each of the three has adapters of its own, in the
rows of W that make it. BERT and Llama have a layer for each, and Llama's MLP has three.
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
"""What can be adapted: the three projections of attention, its output projection, and the layers of the MLP."""

LAYERS: tuple[dict[str, tuple[str, ...]], ...] = (
    {"attn.qkv": ("q", "k", "v"), "attn.proj": ("proj",), "mlp.fc1": ("mlp",), "mlp.fc2": ("mlp",)},
    {
        "layer.self_attn.q_proj": ("q",),
        "layer.self_attn.k_proj": ("k",),
        "layer.self_attn.v_proj": ("v",),
        "layer.self_attn.o_proj": ("proj",),
        "layer.mlp.gate_proj": ("mlp",),
        "layer.mlp.up_proj": ("mlp",),
        "layer.mlp.down_proj": ("mlp",),
    },
    {
        "attention.self.query": ("q",),
        "attention.self.key": ("k",),
        "attention.self.value": ("v",),
        "attention.output.dense": ("proj",),
        "intermediate.dense": ("mlp",),
        "output.dense": ("mlp",),
    },
)
"""The linear layers of a block, and which targets share the rows of each: of timm's vision transformers, of
:mod:`clbench.models.causal_lm`, and of transformers' BERT."""


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
    """Freeze a transformer and give adapters to the ``targets`` of all of its ``blocks`` that are not frozen already.

    Args:
        transformer: a module with ``blocks`` as in :data:`LAYERS`.
        targets: what is adapted, see :data:`TARGETS`.
        rank: r.
        alpha: α.

    Raises:
        ConfigError: a target is unknown, named twice, or there is none; or all blocks are frozen.
    """
    if not targets or len(set(targets)) < len(targets) or not set(targets) <= set(TARGETS):
        raise ConfigError(f"strategy.targets={targets} has to name some of {', '.join(TARGETS)}, each once")
    blocks = [block for block in transformer.blocks if any(p.requires_grad for p in block.parameters())]
    if not blocks:
        raise ConfigError("model.frozen leaves no block of the transformer to put adapters into: set it lower")
    transformer.requires_grad_(False)
    for block in blocks:
        for path, parts in _layers_of(block).items():
            adapted = [part for part in parts if part in targets]
            if adapted:
                place, _, name = path.rpartition(".")
                own = (name,) if parts == ("mlp",) else parts
                adapted = [name] if parts == ("mlp",) else adapted
                layer = AdaptedLinear(block.get_submodule(path), own, adapted, rank, alpha)
                setattr(block.get_submodule(place), name, layer)


def _layers_of(block: nn.Module) -> dict[str, tuple[str, ...]]:
    """The row of :data:`LAYERS` for a block."""
    names = {name for name, _ in block.named_modules()}
    return next(layers for layers in LAYERS if layers.keys() <= names)


def adapted_layers(network: nn.Module) -> dict[str, AdaptedLinear]:
    """The layers with adapters, by name, from the input on."""
    return {name: module for name, module in network.named_modules() if isinstance(module, AdaptedLinear)}


def adapters(network: nn.Module) -> Iterator[tuple[str, Adapter]]:
    """Every adapter with its name, from the input on."""
    for name, module in network.named_modules():
        if isinstance(module, Adapter):
            yield name, module
