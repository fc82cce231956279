"""Random layers, tuned to data without gradients: the representation that IF2Net learns a linear classifier on.

Steps and default sizes are those of code by IF2Net's first author (toil2sweet/CLSNet, whose function ``tweaking`` is the step
that the abstract of IF2Net describes; toil2sweet/CRNet has the same). For an input u of d numbers::

    x    (d + 1)   u, standardised by its own mean and standard deviation, and a constant 0.1
    F_i  (N1)      minmax(x W_i)             i = 1 … N2 windows, W_i = 2 N(0, 1) − 1, drawn once
    V_i            argmin ½ ‖F_i V − X‖² + λ ‖V‖₁ over V (N1, d + 1): the tweak of the random weights, fitted to data X
    Z    (N1 N2)   minmax(x V_iᵀ) of all windows
    H    (N3)      tanh(s [Z, 0.1] W_h / m), W_h random orthonormal, m the largest entry of [Z, 0.1] W_h over the data
    G    (L)       relu([Z, H] W + b), W and b uniform in ±α, drawn once

minmax shifts and scales every column so that it covers [0, 1] on the data. All that data decide (V_i, the ranges of both
minmax, s/m) is a :class:`Fit`, made from training data and kept: a new input passes by itself. The published code fits them
anew on every test set it is given, which tells its classifier the task (:mod:`clbench.evaluation.per_sample` refuses that).
There a column that is constant divides by 0, and here by 1.

Everything is float64. n_in stands for d + 1.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

CONSTANT = 0.1
"""Appended to inputs and to Z, in place of a bias."""


class Fit(NamedTuple):
    """What the data decide.

    Attributes:
        V: (N2, N1, n_in), the tweaked weights.
        f_low, f_range: (N2, N1), smallest value and range of x W_i over the data.
        z_low, z_range: (N1 N2,), of x V_iᵀ.
        scale: (), s/m.
    """

    V: Tensor
    f_low: Tensor
    f_range: Tensor
    z_low: Tensor
    z_range: Tensor
    scale: Tensor


class RandomRepresentation(nn.Module):
    """The random weights, as buffers drawn from torch's generator, and the map they make.

    Args:
        n_inputs: d.
        n_windows: N2.
        window: N1.
        n_expand: N3.
        n_out: L.
        alpha: range α of the last layer.
    """

    windows: Tensor
    expansion: Tensor
    weight: Tensor
    bias: Tensor

    def __init__(self, n_inputs: int, n_windows: int, window: int, n_expand: int, n_out: int, alpha: float) -> None:
        super().__init__()
        n_z = n_windows * window
        double = torch.float64
        self.register_buffer("windows", 2 * torch.randn(n_windows, n_inputs + 1, window, dtype=double) - 1)
        self.register_buffer("expansion", _orthonormal(2 * torch.randn(n_z + 1, n_expand, dtype=double) - 1))
        self.register_buffer("weight", alpha * (2 * torch.rand(n_z + n_expand, n_out, dtype=double) - 1))
        self.register_buffer("bias", alpha * (2 * torch.rand(n_out, dtype=double) - 1))

    @property
    def blank(self) -> Fit:
        """A fit to no data: no tweaked weights, and all ranges 1."""
        n_windows, n_in, window = self.windows.shape
        zeros, ones = self.windows.new_zeros, self.windows.new_ones
        n_z = n_windows * window
        return Fit(
            zeros(n_windows, window, n_in),
            zeros(n_windows, window),
            ones(n_windows, window),
            zeros(n_z),
            ones(n_z),
            ones(()),
        )

    def fit(self, batches: Callable[[], Iterator[Tensor]], lam: float, iterations: int, shrink: float) -> Fit:
        """Fit the map to data, in four passes over them.

        Args:
            batches: gives the data anew at every call: float64 (B, d).
            lam: λ.
            iterations: steps of ADMM.
            shrink: s.
        """
        random = self.windows.movedim(0, 1).flatten(1)  # (n_in, N2 N1)
        low, width = _ranges(standardised(u) @ random for u in batches())
        f_low, f_range = (t.view(self.windows.shape[::2]) for t in (low, width))
        FF, FX = torch.zeros(()), torch.zeros(())
        for u in batches():
            x = standardised(u)
            F = self._windows_of(x, f_low, f_range)
            FF, FX = FF + F.mT @ F, FX + F.mT @ x
        V = lasso(FF, FX, lam, iterations)
        z_low, z_range = _ranges(standardised(u) @ V.flatten(0, 1).T for u in batches())
        fit = Fit(V, f_low, f_range, z_low, z_range, z_low.new_ones(()))
        largest = torch.stack([(self._z(standardised(u), fit)[1] @ self.expansion).max() for u in batches()]).max()
        return fit._replace(scale=shrink / largest)

    def forward(self, u: Tensor, fit: Fit) -> Tensor:
        """G, float64 (B, L), of inputs, float64 (B, d)."""
        z, with_constant = self._z(standardised(u), fit)
        h = torch.tanh(fit.scale * (with_constant @ self.expansion))
        return (torch.cat([z, h], dim=1) @ self.weight + self.bias).relu()

    def reconstruction_error(self, u: Tensor, fit: Fit) -> Tensor:
        """Σ_i ‖F_i V_i − x‖² (B,): how little an input looks like the data of the fit."""
        x = standardised(u)
        return (self._windows_of(x, fit.f_low, fit.f_range) @ fit.V - x).square().sum((0, 2))

    def _windows_of(self, x: Tensor, f_low: Tensor, f_range: Tensor) -> Tensor:
        """F_i of all windows, (N2, B, N1)."""
        return (x @ self.windows - f_low[:, None]) / f_range[:, None]

    def _z(self, x: Tensor, fit: Fit) -> tuple[Tensor, Tensor]:
        """Z (B, N1 N2), and [Z, 0.1]."""
        z = (x @ fit.V.flatten(0, 1).T - fit.z_low) / fit.z_range
        return z, _with_constant(z)


def standardised(u: Tensor) -> Tensor:
    """x (B, d + 1) of inputs (B, d): every row with mean 0 and standard deviation 1, one of equal numbers 0; then 0.1."""
    centred = u - u.mean(1, keepdim=True)
    std = centred.square().mean(1, keepdim=True).sqrt()
    return _with_constant(centred / torch.where(std > 0, std, 1.0))


def lasso(FF: Tensor, FX: Tensor, lam: float, iterations: int) -> Tensor:
    """argmin over V of ½ ‖F V − X‖² + λ ‖V‖₁, by ADMM with ρ = 1 (Boyd et al. 2011, section 6.4).

        c ← (FᵀF + I)⁻¹ (FᵀX + o − w),   o ← soft(c + w, λ),   w ← w + c − o

    Args:
        FF: (..., N, N), FᵀF.
        FX: (..., N, n), FᵀX.
        lam: λ.
        iterations: how many of these steps.

    Returns:
        o, (..., N, n).
    """
    inverse = torch.linalg.inv(FF + torch.eye(FF.shape[-1], dtype=FF.dtype, device=FF.device))
    ridge = inverse @ FX
    o = w = torch.zeros_like(FX)
    for _ in range(iterations):
        c = ridge + inverse @ (o - w)
        o = torch.nn.functional.softshrink(c + w, lam)
        w = w + c - o
    return o


def _with_constant(x: Tensor) -> Tensor:
    return torch.cat([x, torch.full_like(x[:, :1], CONSTANT)], dim=1)


def _ranges(parts: Iterator[Tensor]) -> tuple[Tensor, Tensor]:
    """Smallest value and range (n,) of every column of the parts (B, n), which lie below each other; a range of 0 becomes 1."""
    lows, highs = zip(*((part.amin(0), part.amax(0)) for part in parts), strict=True)
    low, high = torch.stack(lows).amin(0), torch.stack(highs).amax(0)
    return low, torch.where(high > low, high - low, 1.0)


def _orthonormal(random: Tensor) -> Tensor:
    """An orthonormal basis in place of a random matrix (m, n): of its rows' space where m < n, else of its columns'.

    The published code takes 1 off the basis where m ≥ n, which looks like a misplaced bracket and is not done here.
    """
    left, _, right = torch.linalg.svd(random, full_matrices=False)
    return right if random.shape[0] < random.shape[1] else left
