"""What has been forgotten of knowledge, and what of form, where a language model says its answers.

From the last evaluation of every task that was learned (``curve`` and ``answers``, on subsets), with o_i the share of task i's
samples whose right answer is the likeliest of those that may be given, x_i the share in which it is the likeliest of all tokens,
and v_i the share in which some answer of the task is:

* exact_ACC = (1/k) Σ_i x_i: what greedy generation gets right
* valid = (1/k) Σ_i v_i: how often it gives one of the task's answers at all
* superficial = (1/k) Σ_i (o_i − x_i): known, and not said
* essential = (1/(k−1)) Σ_{i<k} (o_i when just learned − o_i in the end): what is not known any more

The two kinds of forgetting are those of SEFE (Chen et al. 2025, arXiv:2505.02486), which tells them apart by fine-tuning answers'
form again; that they can be read off one forward pass, since the answers are few, is ours.
"""

import math

import pandas as pd

SPOKEN = ("exact_ACC", "valid", "superficial", "essential")
"""The names of these metrics."""


def summarise_answers(answers: pd.DataFrame, curve: pd.DataFrame) -> dict[str, float | None]:
    """The metrics of the module docstring; None where there is nothing to compute them from.

    Args:
        answers: columns task_learning, iteration, task_eval, n, exact, valid, consolidated.
        curve: the same evaluations, with ``correct``.
    """
    both = answers.assign(correct=curve.correct.to_numpy())
    shares = both.assign(**{name: both[name] / both.n for name in ("correct", "exact", "valid")})
    # Rows are in the order of the evaluations: the last one of each task while it, or the last task, was learned.
    last = shares[shares.task_learning == shares.task_learning.max()].groupby("task_eval").last()
    learned = shares[shares.task_learning == shares.task_eval].groupby("task_eval").last()
    lost = (learned.correct - last.correct).iloc[:-1]
    found = {
        "exact_ACC": last.exact.mean(),
        "valid": last.valid.mean(),
        "superficial": (last.correct - last.exact).mean(),
        "essential": lost.mean(),
    }
    return {name: None if math.isnan(value) else float(value) for name, value in found.items()}
