"""``trainer.compile``: the learner's loss and predictions through ``torch.compile``.

off    everything runs eagerly
auto   compiled on a GPU; eager on a processor, where compiling takes longer than most runs
max    compiled anywhere with ``mode="max-autotune"``: kernels are timed against each other, and on a GPU a step's kernels are
       launched as one CUDA graph

On two cores ``max`` takes the step of slim ResNet-18 (batch 128) from 302 to 228 ms and that of the MLP 2×400 from 2.3 to 2.1 ms,
after seconds of compiling that every further shape of a batch costs again.

Compiled are the loss terms with their backward pass, of a run alone or of a stack of runs, and the predictions of an evaluation.
Hooks at task boundaries, gradient edits and the fused optimizer run eagerly. So do stacks of vision transformers: torch
cannot trace, under ``vmap``, the tensors that their hooks and queries keep.
"""

import logging
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from clbench.errors import ConfigError

log = logging.getLogger(__name__)

T = TypeVar("T")

LARGEST_RECOMPILES = 64
"""Versions of one function before torch gives up and runs it eagerly: batch sizes and the first tasks make a few."""


class Compilation:
    """Runs functions compiled, or as they are.

    Args:
        setting: ``trainer.compile``.
        device: the training device.
    """

    def __init__(self, setting: str, device: torch.device) -> None:
        self.setting = setting
        self.active = setting == "max" or (setting == "auto" and device.type == "cuda")
        """Whether functions are compiled; becomes False where compiling fails under ``auto``."""
        self.graphs = self.active and setting == "max" and device.type == "cuda"
        self._mode = None if setting == "auto" else "max-autotune" if self.graphs else "max-autotune-no-cudagraphs"
        self._compiled: dict[str, Callable[..., Any]] = {}
        self.left_out = ""
        """What of it is not compiled although the rest is, for the record."""

    @property
    def done(self) -> str:
        """What is really done, for the record."""
        if not self.active:
            return "eager"
        return f"torch.compile, mode {self._mode or 'default'}" + (f", {self.left_out} eager" if self.left_out else "")

    def leave_out(self, what: str) -> None:
        """Take note, and say once, that ``what`` is not compiled."""
        if self.active and not self.left_out:
            self.left_out = what
            log.warning("trainer.compile=%s: %s are not compiled", self.setting, what)

    def run(self, name: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """``function(*arguments)``; ``name`` stands for the function, the first one given under it is compiled.

        To be called within :meth:`guarded`.
        """
        if not self.active:
            return function(*arguments)
        import torch._dynamo  # takes as long as torch itself to import, and most runs compile nothing

        if name not in self._compiled:
            # Whole numbers that a strategy counts (tasks learned) shall not be compiled in anew for every task.
            torch._dynamo.config.allow_unspec_int_on_nn_module = True
            torch._dynamo.config.recompile_limit = LARGEST_RECOMPILES
            self._compiled[name] = torch.compile(function, mode=self._mode)
        if self.graphs:
            torch.compiler.cudagraph_mark_step_begin()
        return self._compiled[name](*arguments)

    def guarded(self, step: Callable[[], T]) -> T:
        """``step()``, which calls :meth:`run` and may go on to the backward pass, or the same eagerly where that fails compiled.

        Failures are of many kinds: of tracing, of a kernel's compilation (the backward pass is compiled when it is first run) or
        launch, or for want of memory while kernels are tuned. What fails eagerly too is the step's own error, and is raised as it
        is. ``step`` may be run twice, so that it has to start from the same state.

        Raises:
            ConfigError: only compiled it fails, under ``max``.
        """
        if not self.active:
            return step()
        try:
            return step()
        except Exception as error:  # whatever compilers and their kernels raise has no common base
            failure = error.with_traceback(None)  # which would keep all tensors of the attempt
        graphs, self.active, self.graphs = self.graphs, False, False
        try:
            result = step()
        except Exception:
            self.active, self.graphs = True, graphs
            raise
        reason = f"{type(failure).__name__}: {(str(failure).splitlines() or [''])[0]}"
        if self.setting == "max":
            raise ConfigError(
                f"trainer.compile=max is not possible here ({reason}): choose trainer.compile=off or auto"
            ) from failure
        log.warning("torch.compile fails, training goes on without it (%s)", reason)
        return result

    def kept(self, tensor: Tensor) -> Tensor:
        """``tensor``, detached, fit to outlive the step: the next replay of a CUDA graph overwrites what the last one gave."""
        return tensor.detach().clone() if self.graphs else tensor.detach()
