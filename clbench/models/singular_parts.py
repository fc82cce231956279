"""The part of a weight that belongs to its small singular values, as something to train beside the rest.

    W = U_h S_h V_h + U_l S_l V_l        h: the k largest singular values, l: the others
    y = U_h S_h V_h x + P_U U_l S_l V_l P_V x,        P_U = I − U_h U_hᵀ,  P_V = I − V_hᵀ V_h

U_l, S_l and V_l are trained, and the projectors keep what becomes of them orthogonal to what is kept, on the side of inputs as
on that of outputs, whatever the optimizer does.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LowPart(nn.Module):
    """P_U U_l S_l V_l P_V, in the place of an :class:`~clbench.models.lora.Adapter`; 0 until :meth:`split` is called.

    Args:
        n_in: columns of the weight.
        n_out: rows of the weight.
        n_kept: k, less than both.
    """

    U_kept: Tensor
    V_kept: Tensor

    def __init__(self, n_in: int, n_out: int, n_kept: int) -> None:
        super().__init__()
        n_low = min(n_in, n_out) - n_kept
        self.U = nn.Parameter(torch.zeros(n_out, n_low))
        self.S = nn.Parameter(torch.zeros(n_low))
        self.V = nn.Parameter(torch.zeros(n_low, n_in))
        self.register_buffer("U_kept", torch.zeros(n_out, n_kept))
        self.register_buffer("V_kept", torch.zeros(n_kept, n_in))

    def forward(self, x: Tensor) -> Tensor:
        """The part's output (…, n_out) for x (…, n_in)."""
        x = x - F.linear(F.linear(x, self.V_kept), self.V_kept.T)
        y = F.linear(self.S * F.linear(x, self.V), self.U)
        return y - F.linear(F.linear(y, self.U_kept.T), self.U_kept)

    def product(self) -> Tensor:
        """The part itself, (n_out, n_in)."""
        return self(torch.eye(self.V.shape[1], dtype=self.V.dtype, device=self.V.device)).T

    @torch.no_grad()
    def split(self, weight: Tensor) -> Tensor:
        """Be the low part of ``weight`` (n_out, n_in). Returns the kept one, of its shape."""
        U, S, V = torch.linalg.svd(weight.double(), full_matrices=False)
        largest = U.gather(0, U.abs().argmax(0, keepdim=True)).sign()
        U, V = U * largest, V * largest.T  # of two signs the one that rounding does not change
        k = self.U_kept.shape[1]
        for tensor, value in (
            (self.U_kept, U[:, :k]), (self.V_kept, V[:k]), (self.U, U[:, k:]), (self.S, S[k:]), (self.V, V[k:]),
        ):  # fmt: skip
            tensor.copy_(value)
        return (U[:, :k] * S[:k] @ V[:k]).to(weight.dtype)
