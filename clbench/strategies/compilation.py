"""``trainer.compile``: the learner's loss and predictions through ``torch.compile``.

off    everything runs eagerly
auto   compiled on a GPU; eager on a processor, where compiling takes longer than most runs
max    compiled anywhere with ``mode="max-autotune"``: kernels are timed against each other, and on a GPU a step's kernels are
       launched as one CUDA graph

On two cores ``max`` takes the step of slim ResNet-18 (batch 128) from 302 to 228 ms and that of the MLP 2×400 from 2.3 to 2.1 ms,
after seconds of compiling that every further shape of a batch costs again.

Compiled are the loss terms with their backward pass, of a run alone or of a stack of runs, and the predictions of an evaluation.
Hooks at task boundaries, gradient edits and the optimizer (a fused kernel) run eagerly.
"""

import logging
from collections.abc import Callable
from typing import Any

import torch
import torch._dynamo
from torch import Tensor

from clbench.errors import ConfigError

log = logging.getLogger(__name__)

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

    @property
    def done(self) -> str:
        """What is really done, for the record."""
        return "eager" if not self.active else f"torch.compile, mode {self._mode or 'default'}"

    def run(self, name: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """``function(*arguments)``; ``name`` stands for the function, the first one given under it is compiled.

        Raises:
            ConfigError: compiling fails under ``max``.
        """
        if not self.active:
            return function(*arguments)
        if name not in self._compiled:
            # Whole numbers that a strategy counts (tasks learned) shall not be compiled in anew for every task.
            torch._dynamo.config.allow_unspec_int_on_nn_module = True
            torch._dynamo.config.recompile_limit = LARGEST_RECOMPILES
            self._compiled[name] = torch.compile(function, mode=self._mode)
        if self.graphs:
            torch.compiler.cudagraph_mark_step_begin()
        try:
            return self._compiled[name](*arguments)
        except torch._dynamo.exc.TorchDynamoException as error:
            reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
            if self.setting == "max":
                raise ConfigError(
                    f"trainer.compile=max is not possible here ({reason}): choose trainer.compile=off or auto"
                ) from error
            log.warning("torch.compile fails, training goes on without it (%s)", reason)
            self.active = self.graphs = False
            return function(*arguments)

    def kept(self, tensor: Tensor) -> Tensor:
        """``tensor``, detached, fit to outlive the step: the next replay of a CUDA graph overwrites what the last one gave."""
        return tensor.detach().clone() if self.graphs else tensor.detach()
