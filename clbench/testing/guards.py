"""What watches the operations of a training step.

On a GPU, reading a tensor's value makes the host wait for the device. On a processor it costs nothing and goes unnoticed, so that
it is looked for here: among the operations that are dispatched, and the methods of a tensor that hand its values to Python.
"""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode

READING = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "unique_dim", "unique_consecutive"}
"""Operations whose result, or its shape, the host has to know."""

METHODS = ("tolist", "numpy", "__array__", "cpu")
"""Methods of a tensor that hand its values to the host past the dispatcher."""


class HostRead(Exception):
    """A value was read on the host."""


class OperationCount(TorchDispatchMode):
    """Counts tensor operations."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.count += 1
        return func(*args, **(kwargs or {}))


class NoHostReads(OperationCount):
    """Raises :class:`HostRead` where an operation needs a tensor's value on the host; counts the operations."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        name = func.overloadpacket.__name__
        by_mask = name in ("index", "index_put_", "index_put") and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        by_counts = name == "repeat_interleave" and func._overloadname == "Tensor"
        if name in READING or by_mask or by_counts:
            raise HostRead(f"aten::{name}")
        return super().__torch_dispatch__(func, types, args, kwargs)


class Guarded:
    """A function that may not read a tensor's value on the host.

    Args:
        call: the function.
        more: further methods of a tensor that it may not call.

    Attributes:
        counts: how many operations each call took.
    """

    def __init__(self, call: Callable[..., Any], *more: str) -> None:
        self._call, self._methods = call, (*METHODS, *more)
        self.counts: list[int] = []

    def __call__(self, *arguments: Any) -> Any:
        with ExitStack() as stack:
            mode = stack.enter_context(NoHostReads())
            for name in self._methods:
                stack.enter_context(patch.object(torch.Tensor, name, _refusing(name)))
            result = self._call(*arguments)
        self.counts.append(mode.count)
        return result


def _refusing(name: str) -> Callable[..., Any]:
    def method(*_arguments: Any, **_options: Any) -> None:
        raise HostRead(f"Tensor.{name}")

    return method
