"""How many weights of each layer are active, and which: the arithmetic of sparse training, without state.

A layer is a weight tensor of dimensions (n_out, n_in, kernel…) with N_l entries, d_l of which are active. All layers together
have the density d: Σ d_l N_l = d Σ N_l.

    uniform   d_l = d
    er        d_l = ε (n_in + n_out) / (n_in n_out)                Erdős-Rényi (Mocanu et al. 2018, arXiv:1707.04780)
    erk       d_l = ε (Σ dimensions) / (Π dimensions)              the same with the kernel (Evci et al. 2020, arXiv:1911.11134)

ε is solved for; a layer that would exceed 1 becomes dense, and ε is solved for again over the rest.

The functions on tensors never read a value on the host, and select an exact number of entries whatever ties there are.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

INITIALISATIONS = ("uniform", "er", "erk")
GROWTH_RULES = ("random", "unfired", "gradient", "momentum")
SCHEDULES = ("cosine", "constant", "linear")

LAST = torch.iinfo(torch.int32).max
"""A key behind all others."""


def layer_densities(shapes: Sequence[Sequence[int]], density: float, init: str) -> list[float]:
    """d_l of every layer; ``init`` is one of :data:`INITIALISATIONS`."""
    if init == "uniform":
        return [density] * len(shapes)
    sizes = [math.prod(shape) for shape in shapes]
    counted = [shape[:2] if init == "er" else shape for shape in shapes]
    raw = [sum(shape) / math.prod(shape) for shape in counted]
    dense: set[int] = set()
    while len(dense) < len(shapes):
        rest = [layer for layer in range(len(shapes)) if layer not in dense]
        budget = density * sum(sizes) - sum(sizes[layer] for layer in dense)
        epsilon = budget / sum(raw[layer] * sizes[layer] for layer in rest)
        above = {layer for layer in rest if epsilon * raw[layer] > 1}
        if not above:
            return [1.0 if layer in dense else epsilon * raw[layer] for layer in range(len(shapes))]
        dense |= above
    return [1.0] * len(shapes)


def layer_counts(shapes: Sequence[Sequence[int]], density: float, init: str) -> list[int]:
    """Active weights of every layer, in all round(d Σ N_l): d_l N_l rounded by the method of largest remainders."""
    sizes = [math.prod(shape) for shape in shapes]
    wanted = [d * size for d, size in zip(layer_densities(shapes, density, init), sizes, strict=True)]
    counts = [math.floor(count) for count in wanted]
    left = round(density * sum(sizes)) - sum(counts)
    by_remainder = sorted(range(len(shapes)), key=lambda layer: counts[layer] - wanted[layer])
    for layer in by_remainder[:left]:
        counts[layer] += 1
    return counts


def annealed(schedule: str, start: Tensor, end: Tensor, done: Tensor) -> Tensor:
    """ρ, float64 (): from ``start`` to ``end`` as ``done`` goes from 0 to 1, by one of :data:`SCHEDULES`."""
    start, end = start.double(), end.double()
    if schedule == "constant":
        return start
    if schedule == "linear":
        return start + (end - start) * done
    return end + (start - end) * (1 + torch.cos(math.pi * done)) / 2


def smallest(keys: Tensor, n: Tensor) -> Tensor:
    """bool (N,): True at the ``n`` (int64 scalar) smallest keys (N,), exactly n of them; of equal keys the first."""
    # Whole numbers are sorted two to three times as fast as floats on a processor.
    order = keys.argsort(stable=True)
    first = torch.arange(len(keys), device=keys.device) < n
    return torch.zeros_like(keys, dtype=torch.bool).scatter(0, order, first)


def ordered(strength: Tensor, draws: Tensor) -> Tensor:
    """int32 keys (N,) in the order of ``strength`` (N,), which is not negative; zeros come first, in random order.

    Zeros are many (weights just grown, gradients of dead units, weights of earlier tasks), and an order by position would
    prefer one end of a layer. ``draws`` (N,) are random int32, not negative.
    """
    bits = strength.float().view(torch.int32)  # of floats that are not negative, these are in the same order
    return torch.where(bits > 0, bits, -1 - draws)


def growth_priority(rule: str, draws: Tensor, fired: Tensor | None = None, strength: Tensor | None = None) -> Tensor:
    """int32 (N,): where to grow first, the largest first.

    Args:
        rule: one of :data:`GROWTH_RULES`.
        draws: (N,) random int32 in [0, 2³⁰).
        fired: bool (N,), whether a weight has been active in this task; for ``unfired``.
        strength: (N,) not negative; for ``gradient`` and ``momentum``.
    """
    if rule == "random":
        return draws
    if rule == "unfired":
        assert fired is not None
        return draws + (~fired).to(torch.int32) * 2**30
    assert strength is not None
    return ordered(strength, draws)


def update_mask(mask: Tensor, n: Tensor, drop_keys: Tensor, growth: Tensor, growable: Tensor) -> Tensor:
    """The mask, bool (N,), after ``n`` (int64 scalar) active weights were dropped and as many grown.

    Args:
        mask: bool (N,), with at least n active weights.
        drop_keys: int32 (N,), the smallest active ones are dropped.
        growth: int32 (N,), see :func:`growth_priority`.
        growable: bool (N,): weights that may become active. Those just dropped may in any case, so that there are always
            enough.
    """
    kept = mask & ~smallest(torch.where(mask, drop_keys, LAST), n)
    candidates = (growable | mask) & ~kept
    return kept | smallest(torch.where(candidates, -1 - growth, LAST), n)
