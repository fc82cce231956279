"""In which precision a step computes: ``trainer.precision``, ``trainer.tf32``."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Precision:
    """Autocast in bf16 or fp16, and the loss scaling that fp16 needs; weights and optimizer state stay in float32.

    fp16 gradients underflow, so the loss is scaled up before it is differentiated and a step whose gradients overflow is
    left out (Micikevicius et al. 2018, arXiv:1710.03740), by torch's GradScaler, which never looks at a value on the host where
    the optimizer takes ``found_inf``, as all of :func:`clbench.training.optimizers.make_optimizer` do.

    A step that is left out is a step of the task all the same: schedules, hooks and evaluations go on as after any other.
    Strategies see its gradient as 0, see :meth:`finite`.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        self.dtype = HALF.get(name)
        self._device = device.type
        self._scaler = torch.amp.GradScaler(device.type) if name == "fp16" else None

    def autocast(self) -> AbstractContextManager:
        """The context of a forward pass; training and evaluation share it."""
        return nullcontext() if self.dtype is None else torch.autocast(self._device, self.dtype)

    def backward(self, loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
        """Differentiate ``loss``; gradients come out unscaled."""
        self.scaled(loss).backward()
        self.unscale(optimizer)

    def scaled(self, loss: Tensor) -> Tensor:
        """What to differentiate in place of ``loss``."""
        return loss if self._scaler is None else self._scaler.scale(loss)

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Make of the gradients of what is :meth:`scaled` those of the loss."""
        if self._scaler is not None:
            self._scaler.unscale_(optimizer)

    def finite(self, gradient: Tensor) -> Tensor:
        """``gradient`` (P,), or zeros where it has overflowed, so that nothing infinite gets into what a strategy remembers."""
        return gradient if self._scaler is None else torch.where(gradient.isfinite().all(), gradient, 0)

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Step the optimizer."""
        if self._scaler is None:
            optimizer.step()
            return
        self._scaler.step(optimizer)
        self._scaler.update()

    def state_dict(self) -> dict[str, Any]:
        """The loss scale; empty where nothing is scaled."""
        return {} if self._scaler is None else self._scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue with the loss scale of a checkpoint."""
        if self._scaler is not None:
            self._scaler.load_state_dict(state)


def allow_tf32(allowed: bool) -> None:
    """Let float32 matrix products and convolutions on NVIDIA GPUs round their inputs to 10 bits of mantissa, or not.

    PyTorch's own defaults differ between the two (convolutions do, products do not), so that both are always set.
    """
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed
