"""Answers that are drawn from the network: its softmax over the classes a sample may see, taken for a policy.

One answer is one class, so that a rollout is one draw and its reward is whether the class is right.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from clbench.models.answers import ClassLabels
from clbench.scenarios.scenario import Samples


def log_policy(answer: ClassLabels, logits: Tensor, samples: Samples) -> Tensor:
    """log π (B, n_classes) of the classes for every sample, −∞ for those it may not see, from logits (B, n_classes)."""
    return F.log_softmax(answer.restrict(logits, samples.task), dim=1)


def drawn(log_policy: Tensor, uniforms: Tensor) -> Tensor:
    """Classes int64 (B, n), drawn from a policy (B, n_classes) by inverting its distribution function; pure.

    A class whose probability is 0 is never drawn.

    Args:
        log_policy: see :func:`log_policy`.
        uniforms: float64 (B, n) in [0, 1), one for every draw.
    """
    # In double precision the largest uniform number times the sum stays below it, so that no draw lies beyond the last class.
    cumulated = log_policy.detach().double().exp().cumsum(1)
    return torch.searchsorted(cumulated, uniforms * cumulated[:, -1:], right=True)
