"""Cross-entropies for batches of new and replayed samples, which keep new classes from pushing earlier ones aside.

With z the logits and y the label, −log softmax(z + τ log π)_y over some of the classes that the sample may see:

* ``visible``: all of them;
* ``label_trick``: those that are present among the new samples of the batch, for these, and those present among the replayed
  ones, for these (Zeno et al. 2018, arXiv:1803.10123);
* ``separated``: the classes of earlier tasks for samples of these, those of the current task for its samples (the separated
  softmax of SS-IL, Ahn et al. 2021, arXiv:2003.13947).

τ log π is logit adjustment (Menon et al. 2021, arXiv:2007.07314), in training alone: π is how often each class has been trained
on, so that a rare class has to win by a greater margin.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clbench.errors import ConfigError
from clbench.models.answers import ClassLabels
from clbench.scenarios.scenario import Samples, Scenario

SCOPES = ("visible", "label_trick", "separated")


def check_scope(scope: str, scenario: Scenario) -> None:
    """Refuse to tell the classes of earlier tasks from others where there are none, or where nobody is told of tasks.

    Raises:
        ConfigError: with the valid choices.
    """
    if scope == "separated" and (scenario.setting != "class" or not scenario.boundaries):
        raise ConfigError(
            f"strategy.loss_scope=separated tells the classes of earlier tasks from new ones in one head, which {scenario.name} "
            f"does not. Valid choices: {', '.join(s for s in SCOPES if s != 'separated')}"
        )


def cross_entropies(
    answer: ClassLabels, logits: Tensor, samples: Samples, is_replayed: Tensor, scope: str, offset: Tensor | None = None
) -> Tensor:
    """One per sample, (B,); pure.

    Args:
        answer: which classes a sample may see, and which were learned before.
        logits: (B, n_classes).
        samples: the batch.
        is_replayed: boolean (B,).
        scope: one of ``SCOPES``.
        offset: (n_classes,) τ log π, −∞ for a class that has not been seen.
    """
    if scope == "visible" and offset is None:
        return answer.losses(logits, samples)
    logits = answer.restrict(logits, samples.task)
    if scope == "label_trick":
        of_label = samples.y[:, None] == torch.arange(logits.shape[1], device=logits.device)
        among_new = (of_label & ~is_replayed[:, None]).any(0)
        among_replayed = (of_label & is_replayed[:, None]).any(0)
        logits = logits.masked_fill(~torch.where(is_replayed[:, None], among_replayed, among_new), -torch.inf)
    elif scope == "separated":
        old = answer.learned_before()
        logits = logits.masked_fill(old[samples.y][:, None] != old, -torch.inf)
    return F.cross_entropy(logits if offset is None else logits + offset, samples.y, reduction="none")


class ClassPrior(nn.Module):
    """How often each class has been trained on, π.

    Args:
        n_classes: outputs of the network.
    """

    counts: Tensor

    def __init__(self, n_classes: int) -> None:
        super().__init__()
        self.register_buffer("counts", torch.zeros(n_classes, dtype=torch.int64))

    def log(self, labels: Tensor) -> Tensor:
        """log π (n_classes,), −∞ for a class not seen; ``labels`` (B,) are counted as well, so that their own is finite. Pure."""
        counts = self.counts + self._of(labels)
        return (counts / counts.sum()).log()

    def count(self, labels: Tensor) -> None:
        """Labels (B,) have been trained on; pure."""
        self.counts.add_(self._of(labels))

    def _of(self, labels: Tensor) -> Tensor:
        return (labels[:, None] == torch.arange(len(self.counts), device=labels.device)).sum(0)
