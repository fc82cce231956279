"""IncLoRA: a fresh low-rank adapter a task, beside the frozen ones of earlier tasks (a baseline of Wang et al. 2023, O-LoRA).

    y = W x + b + (α / r) · Σ_{i ≤ t} B_i A_i x        A_t, B_t and the head are trained; A_i and B_i with i < t are not

In task t, B_t starts from 0 and A_t is drawn anew, so that a task begins with the network of the task before. The first task is
plain LoRA. Without anything that holds earlier outputs, a fresh adapter may undo what earlier ones do; it only cannot move them.

A finished update is added to W, which is the same function: neither memory nor the cost of a step grows with the number of tasks.
The code of O-LoRA (arXiv:2310.14152) keeps the factors side by side, as one adapter whose rank grows. There is no
dropout before A.

Reported after every task: ``adapter_parameters``, the number of entries of the present A and B.
"""

import torch
from torch import Tensor

from clbench.learning.base import Needs
from clbench.models.lora import adapted_layers
from clbench.registry import STRATEGIES
from clbench.scenarios.task import Task
from clbench.strategies.lora import LoRA, LoRAConfig


@STRATEGIES.register("inc_lora")
class IncLoRA(LoRA):
    """A fresh adapter a task, which is merged into the frozen weights when the task ends."""

    config = LoRAConfig
    needs = Needs(transformer=True, weights_only=True, traits=frozenset({"redraws weights", "acts from second task"}))

    def begin_task(self, task: Task) -> Tensor | None:
        """Start a fresh adapter; the first task has one already."""
        if task.index == 0:
            return None
        generator = task.torch_generator("adapters")
        renewed = {}
        for name, adapter in self.adapters().items():
            adapter.start_anew(generator)
            for of_adapter, parameter in adapter.named_parameters():
                renewed[f"backbone.{name}.{of_adapter}"] = torch.ones_like(parameter, dtype=torch.bool)
        return self.model.flat_mask(renewed)

    def end_task(self, task: Task) -> None:
        """Merge the task's updates."""
        for layer in adapted_layers(self.model.backbone).values():
            layer.merge()
