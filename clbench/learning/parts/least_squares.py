"""Ridge regression in closed form and one batch at a time: the engine of methods whose classifier is linear least squares.

Features H (B, D) and targets Y (B, C) of all samples seen determine the weights that minimise ‖H W − Y‖² + λ‖W‖²::

    W = (G + λI)⁻¹ Q          G = Hᵀ H (D, D), Q = Hᵀ Y (D, C): sums over the samples, in any order

The same W comes from updates with one batch after the other, which never form G. They start from R = I/λ, W = 0 and keep
R = (G + λI)⁻¹ (recursive least squares; Zhuang et al., ACIL, arXiv:2205.14922)::

    R ← R − R Hᵀ (I + H R Hᵀ)⁻¹ H R
    W ← W + R Hᵀ (Y − H W)          with the new R

A class that has not occurred has a column of zeros in Y, and so in W: a new class is a new column of zeros.

Orthogonal weight modification (Zeng et al., arXiv:1810.01256) keeps P = I − Hᵀ (H Hᵀ + αI)⁻¹ H, by the same update with α in
place of 1. It is the same matrix: P = α R for λ = α.

Everything here is pure and in the precision of its arguments, which has to be float64: G's condition number is squared. No
value is read on the host, so that all of it runs under ``torch.vmap``.
"""

import math

import torch
from torch import Tensor


def downdate(P: Tensor, H: Tensor, alpha: Tensor | float = 1.0) -> Tensor:
    """P − P Hᵀ (αI + H P Hᵀ)⁻¹ H P: what P becomes when the samples of a batch are taken in.

    Cost: O(B D² + B² D + B³) for a batch of B, so batches should be smaller than D.

    Args:
        P: (D, D), symmetric and positive definite.
        H: (B, D) features, a row per sample.
        alpha: positive.

    Returns:
        (D, D), symmetric up to rounding, after thousands of updates too. What is taken away is computed as AᵀA with
        A = L⁻¹ H P for the Cholesky factor L of the small matrix: a symmetric product, so that nothing amplifies the
        difference between P and its transpose, and averaging the two, which costs up to half of an update, is not needed. The
        product P Hᵀ (…)⁻¹ H P as it is written is not symmetric in floating point, and loses three more digits in W.
    """
    HP = H @ P
    eye = torch.eye(len(H), dtype=H.dtype, device=H.device)
    # H P Hᵀ is positive semi-definite, so that the sum has a Cholesky factor.
    L = torch.linalg.cholesky_ex(alpha * eye + HP @ H.T).L
    A = torch.linalg.solve_triangular(L, HP, upper=False)
    return torch.addmm(P, A.T, A, alpha=-1)


def update_ridge(R: Tensor, W: Tensor, H: Tensor, Y: Tensor) -> tuple[Tensor, Tensor]:
    """Ridge regression on one batch more.

    Args:
        R: (D, D), the inverse of G + λI over the samples so far; I/λ before the first.
        W: (D, C), the weights so far; zeros before the first.
        H: (B, D) features of the batch.
        Y: (B, C) its targets.

    Returns:
        R and W with the batch.
    """
    R = downdate(R, H)
    return R, W + R @ (H.T @ (Y - H @ W))


def ridge(G: Tensor, Q: Tensor, lam: Tensor | float) -> Tensor:
    """(G + λI)⁻¹ Q, the weights (D, C) of ridge regression.

    Args:
        G: (D, D), the sum of hᵀ h over all samples.
        Q: (D, C), the sum of hᵀ y.
        lam: λ, positive.

    Returns:
        (D, C); NaN where rounding leaves G + λI not positive definite, which takes a λ of less than about 10⁻¹⁶ times the
        largest eigenvalue of G.
    """
    eye = torch.eye(len(G), dtype=G.dtype, device=G.device)
    L, info = torch.linalg.cholesky_ex(G + lam * eye)
    return torch.where(info == 0, torch.cholesky_solve(Q, L), math.nan)
