"""Means of classes, taken in a batch at a time."""

from torch import Tensor


def means_with(means: Tensor, counts: Tensor, features: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The classes' means and counts with a batch more. Pure.

    Args:
        means: (C, D) of the samples so far; 0 for a class without samples.
        counts: (C,) how many these are.
        features: (B, D) of the batch.
        targets: (B, C), one-hot.
    """
    of_all = counts + targets.sum(0)
    sums = counts[:, None] * means + targets.T @ features
    return sums / of_all.clamp(min=1)[:, None], of_all
