"""Backbone and head as one network.

The head is always one linear layer with an output for every class of the stream, so that tensor shapes never change.
What differs between scenarios is which outputs a sample sees (:meth:`ContinualModel.restrict`):

* class-incremental: those of all classes seen so far, which is a growing head; in training only those of the sample's own
  task (``logit_scope=current``); or of all classes of the stream from the start (``logit_scope=all``);
* task-incremental: those of the sample's own task, which is one head per task;
* domain-incremental: all of them.

An output that no sample sees gets no gradient, and its weights are drawn anew when its task begins. So the fixed layer
computes exactly what a growing layer would, given an optimizer that starts anew with every task (trainer.reset_optimizer).
Unlike a separate layer per task, it lets weight decay shrink the heads of earlier tasks too.
"""

import math

import torch
from torch import Tensor, nn


class ContinualModel(nn.Module):
    """``forward(x)`` gives the logits of all classes, ``restrict`` leaves those a sample may see.

    Args:
        backbone: module with an attribute ``n_features``, (B, C, H, W) → (B, n_features).
        task_classes: labels of every task.
        setting: ``class``, ``task`` or ``domain``.
        logit_scope: class-incremental only: ``all``, ``seen`` or ``current``.
    """

    class_task: Tensor
    current_task: Tensor

    def __init__(
        self, backbone: nn.Module, task_classes: list[list[int]], setting: str, logit_scope: str = "seen"
    ) -> None:
        super().__init__()
        n_classes = 1 + max(label for labels in task_classes for label in labels)
        self.backbone = backbone
        self.head = nn.Linear(int(backbone.n_features), n_classes)  # type: ignore[arg-type]
        self.setting = setting
        self.logit_scope = logit_scope
        class_task = torch.zeros(n_classes, dtype=torch.int64)
        if setting != "domain":
            for task, labels in enumerate(task_classes):
                class_task[labels] = task
        self.register_buffer("class_task", class_task)
        self.register_buffer("current_task", torch.zeros((), dtype=torch.int64))

    def features(self, x: Tensor) -> Tensor:
        """Penultimate features (B, n_features) of normalised images (B, C, H, W)."""
        return self.backbone(x)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, n_classes) of all classes of the stream; see :meth:`restrict`."""
        return self.head(self.backbone(x))

    def begin_task(self, task: int, generator: torch.Generator) -> None:
        """Let the classes of ``task`` be seen, and draw their head weights (``torch.nn.Linear``'s initialisation)."""
        self.current_task.fill_(task)
        if task == 0 or self._head_is_fixed:
            return
        new = self.class_task == task
        bound = 1 / math.sqrt(self.head.in_features)
        with torch.no_grad():
            for tensor in (self.head.weight, self.head.bias):
                drawn = torch.empty(tensor.shape).uniform_(-bound, bound, generator=generator)
                tensor[new] = drawn.to(tensor)[new]

    def restrict(self, logits: Tensor, task: Tensor | None, predicting: bool = False) -> Tensor:
        """The logits (B, n_classes) with −inf where a sample may not look.

        Args:
            logits: (B, n_classes) from :meth:`forward`.
            task: int64 (B,), each sample's task; may be None where the scenario hides it at prediction.
            predicting: at prediction the scope ``current`` becomes ``seen``, since the task is hidden.
        """
        visible = self.visible(task, predicting)
        return logits if visible is None else logits.masked_fill(~visible, -math.inf)

    def visible(self, task: Tensor | None, predicting: bool = False) -> Tensor | None:
        """Boolean (B, n_classes) or (n_classes,): the outputs a sample may see; None for all."""
        if self._head_is_fixed:
            return None
        if self.setting == "task" or (self.logit_scope == "current" and not predicting):
            assert task is not None, "the scenario gives each sample's task"
            return self.class_task == task.unsqueeze(-1)
        return self.class_task <= self.current_task

    @property
    def _head_is_fixed(self) -> bool:
        """Whether every sample sees every output from the start, so that nothing grows."""
        return self.setting == "domain" or (self.setting == "class" and self.logit_scope == "all")

    def learned_before(self) -> Tensor:
        """Boolean (n_classes,): the outputs of tasks before the current one (all of them in domain-incremental)."""
        if self.setting == "domain":
            return torch.ones_like(self.class_task, dtype=torch.bool)
        return self.class_task < self.current_task
