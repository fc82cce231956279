"""What is asked of the network about a sample, how far an answer is from being right, and which answers are possible at all.

Today that is the sample's class. What differs between scenarios is which classes are possible (:meth:`ClassLabels.visible`):

* class-incremental: all classes seen so far, which is a growing head; in training only those of the sample's own task
  (``logit_scope=current``); or all classes of the stream from the start (``logit_scope=all``);
* task-incremental: those of the sample's own task, which is one head per task;
* domain-incremental: all of them.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clbench.scenarios.scenario import Samples


class ClassLabels(nn.Module):
    """A sample's class, out of those that it may be of.

    Args:
        task_classes: labels of every task.
        setting: ``class``, ``task`` or ``domain``.
        logit_scope: class-incremental only: ``all``, ``seen`` or ``current``.
        first_seen: for every label the task with which its first sample arrives; None: the one task that it belongs to. Where
            methods are not told of tasks, a number beyond the last one, until :meth:`see` has met the label.
    """

    class_task: Tensor
    first_seen: Tensor
    current_task: Tensor

    def __init__(
        self,
        task_classes: list[list[int]],
        setting: str,
        logit_scope: str = "seen",
        first_seen: list[int] | None = None,
    ) -> None:
        super().__init__()
        self.setting, self.logit_scope = setting, logit_scope
        self.n_classes = 1 + max(label for labels in task_classes for label in labels)
        class_task = [0] * self.n_classes
        if setting != "domain":
            for task, labels in enumerate(task_classes):
                for label in labels:
                    class_task[label] = task
        arrives = class_task if first_seen is None or setting == "domain" else first_seen
        self.register_buffer("class_task", torch.tensor(class_task))
        self.register_buffer("first_seen", torch.tensor(arrives))
        self._begins_with_a_class = 0 in arrives  # so that there always is one that has been seen
        self.register_buffer("current_task", torch.zeros((), dtype=torch.int64))

    # ---- which answers are possible -------------------------------------------------------------------------------------

    def see(self, labels: Tensor) -> None:
        """Let the classes of ``labels`` (B,) be seen from now on, as samples of them have arrived."""
        self.first_seen[labels] = torch.minimum(self.first_seen[labels], self.current_task)

    def restrict(self, logits: Tensor, task: Tensor | None, predicting: bool = False) -> Tensor:
        """The logits (B, n_classes) with −inf where a sample may not look.

        Args:
            logits: (B, n_classes) of the network.
            task: int64 (B,), each sample's task; may be None where the scenario hides it at prediction.
            predicting: at prediction the scope ``current`` becomes ``seen``, since the task is hidden.
        """
        visible = self.visible(task, predicting)
        return logits if visible is None else logits.masked_fill(~visible, -math.inf)

    def visible(self, task: Tensor | None, predicting: bool = False) -> Tensor | None:
        """Boolean (B, n_classes) or (n_classes,): the outputs a sample may see; None for all."""
        if self.sees_all:
            return None
        if self.setting == "task" or (self.logit_scope == "current" and not predicting):
            assert task is not None, "the scenario gives each sample's task"
            return self.class_task == task.unsqueeze(-1)
        seen = self.first_seen <= self.current_task
        if self._begins_with_a_class:
            return seen
        return seen | ~seen.any()  # before the first sample of a stream without boundaries every class is as likely

    @property
    def sees_all(self) -> bool:
        """Whether every sample sees every output from the start, so that nothing grows."""
        return self.setting == "domain" or (self.setting == "class" and self.logit_scope == "all")

    def learned_before(self) -> Tensor:
        """Boolean (n_classes,): the outputs of tasks before the current one (all of them in domain-incremental)."""
        if self.setting == "domain":
            return torch.ones_like(self.class_task, dtype=torch.bool)
        return self.first_seen < self.current_task

    # ---- how right an answer is -----------------------------------------------------------------------------------------

    def losses(self, logits: Tensor, samples: Samples) -> Tensor:
        """Cross-entropy (B,) per sample over the logits the sample may see."""
        return F.cross_entropy(self.restrict(logits, samples.task), samples.y, reduction="none")

    def judge(self, logits: Tensor, labels: Tensor) -> Tensor:
        """float32 (B, 2): whether each sample is classified correctly, and its cross-entropy.

        Args:
            logits: (B, n_classes) of a prediction, −inf where a class is ruled out.
            labels: int64 (B,).
        """
        correct = logits.max(1).indices == labels  # half the time of argmax
        # A quarter of the time of F.cross_entropy, which makes all log-probabilities.
        loss = logits.logsumexp(1) - logits.gather(1, labels[:, None])[:, 0]
        return torch.stack([correct.float(), loss], dim=1)
