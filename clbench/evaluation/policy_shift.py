"""Optional: how far the network's answers are from those at the start of the run, or after its first tasks, for any method.

π is the network's softmax over the classes that a sample may see at the end of the task, which is the policy that reinforcement
fine-tuning trains. After every task, on the evaluation subset of every task seen so far, in nats and as means over samples:

========================  ==========================================================================================
``kl_start_to_trained``   KL(π₀ ‖ π) = Σ π₀ (log π₀ − log π)
``kl_trained_to_start``   KL(π ‖ π₀), what GRPO's penalty with ``reference=start`` means to bound
========================  ==========================================================================================

π₀ is the network when ``evaluator.kl_from`` tasks have ended, before the first step of the next: 0 for the start of the run, 1
after a first task in which all that is compared is trained alike. ``part`` is the task, empty for the mean over the tasks seen.
Methods can so be compared at equal distance from the start, and
not at equal learning rate alone: a rate of one loss is not that of another, and the smaller change forgets less, whatever made
it (Shenfeld et al. 2025, arXiv:2509.04259, find the first of the two, on the new task, to go with forgetting).

In a class-incremental stream π₀ of a class that was to come has the weights that the head had for it at the time. They are drawn
anew when their task begins, so that there is a distance before the first step; with ``scenario.logit_scope=all`` and in
the other settings there is none. Nothing here moves training.
"""

import time
from collections.abc import Iterable

import torch
from torch import Tensor

from clbench.config import StrategyConfig
from clbench.errors import ConfigError
from clbench.evaluation.evaluator import ContinualEvaluator
from clbench.learning.base import Measurement
from clbench.learning.learner import Learner
from clbench.learning.traits import traits_of
from clbench.registry import STRATEGIES

REPORTED_BY = "evaluator"
"""Whose measurements they are in ``method.parquet``."""

WITHOUT_POLICY = {
    "makes networks": "makes a network for every task",
    "learns without gradients": "learns a classifier of its own in place of the network's head",
    "trains no head": "leaves the network's head untrained",
}
"""Traits of methods whose answers are not the network's softmax, and why."""


class PolicyShift:
    """Measures the KL divergences of the module docstring.

    Args:
        learner: what is looked at.
        evaluator: holds the subsets and knows how to look without leaving a trace.
        after: how many tasks have been learned by the network that it is compared with; None: nothing is measured.
    """

    def __init__(self, learner: Learner, evaluator: ContinualEvaluator, after: int | None) -> None:
        self.learner, self.evaluator, self.after = learner, evaluator, after
        self._start: list[Tensor] = []  # logits (n, n_classes) of that network on every task's subset

    def begin_task(self, task: int) -> None:
        """Note the answers of the network as it is now, before the first step of ``task``, where it is the one."""
        if task == self.after:
            self._start = [self._logits(task) for task in range(len(self.evaluator.subset_ids))]

    def look(self, task: int) -> list[Measurement]:
        """The divergences on all tasks up to ``task``; none before there is what to compare with."""
        if not self._start:
            return []
        found = {
            name: torch.stack([self._of_task(seen, reverse) for seen in range(task + 1)]).tolist()
            for name, reverse in (("kl_start_to_trained", False), ("kl_trained_to_start", True))
        }
        return [
            measurement
            for name, values in found.items()
            for measurement in (
                Measurement(name, "", sum(values) / len(values)),
                *(Measurement(name, f"task {seen}", value) for seen, value in enumerate(values)),
            )
        ]

    def state_dict(self) -> dict[str, list[Tensor]]:
        """The answers that others are compared with."""
        return {"start": self._start}

    def load_state_dict(self, state: dict[str, list[Tensor]]) -> None:
        """Continue from a checkpoint."""
        self._start = list(state["start"])

    def _of_task(self, task: int, reverse: bool) -> Tensor:
        split = self.evaluator.split
        tasks = split.tasks[self.evaluator.subset_ids[task]].to(self._start[task].device)
        answer = self.learner.model.answer
        policies = [
            answer.restrict(logits.double(), tasks, predicting=True).log_softmax(1)
            for logits in (self._start[task], self._logits(task))
        ]
        return kl_divergence(*(reversed(policies) if reverse else policies)).mean()

    def _logits(self, task: int) -> Tensor:
        """Logits (n, n_classes) of a task's subset, of all classes of the stream."""
        started = time.perf_counter()
        evaluator, model = self.evaluator, self.learner.model
        ids = evaluator.subset_ids[task]

        def compute() -> list[Tensor]:
            parts = evaluator.parts(len(ids))
            return [model(evaluator.inputs.plain(evaluator.split, ids[part]).x).float() for part in parts]

        with evaluator.undisturbed(), evaluator.precision.autocast():
            logits = torch.cat(evaluator.fitting(compute))
        evaluator.seconds += time.perf_counter() - started
        return logits.clone()  # outside of inference mode: it goes into checkpoints


def kl_divergence(p: Tensor, q: Tensor) -> Tensor:
    """KL (B,) of distributions from their logarithms (B, C), in nats; classes that p rules out count nothing."""
    return torch.where(p > -torch.inf, p.exp() * (p - q), 0.0).sum(1)


def refuse_without_policy(chosen: Iterable[StrategyConfig]) -> None:
    """Refuse methods whose answers are not the network's softmax.

    Raises:
        ConfigError: with the method, and why.
    """
    for options in chosen:
        traits = traits_of(STRATEGIES[options.name], options)
        for trait, what in WITHOUT_POLICY.items():
            if trait in traits:
                raise ConfigError(
                    f"evaluator.kl_from looks at the softmax of the network, and {options.name} {what}: set "
                    "evaluator.kl_from=null"
                )
