"""``evaluator=adaptive``: the minima of ``every=1``, or a bound on what was missed, from a fraction of its evaluations.

While training goes on, the weights after each of the last W steps are kept (a window). At a window's end some of them are
evaluated: which, :class:`clbench.evaluation.refinement.Refinement` decides, from what the evaluations before have shown.
Then the window is forgotten. A window never crosses a task switch, and checkpoints are taken between windows.

Where the minima could not be resolved, ``summary.json`` says so: ``min_ACC_resolved`` is false, min-ACC is an upper limit, and
``min_ACC_unresolved`` is an estimate of how much lower it may be.
"""

import time
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clbench.evaluation.evaluator import ContinualEvaluator
from clbench.evaluation.refinement import Refinement
from clbench.evaluation.stacked import Place, StackedEvaluation, share_seconds
from clbench.learning.stack import Stack

LARGEST_WINDOW_BYTES = 2**29
"""Bytes of snapshots a run keeps at most; large networks get shorter windows than ``evaluator.window``."""

STATES_AT_ONCE = {"cpu": 1, "cuda": 16}
"""Snapshots evaluated in one forward pass. On a processor one pass over many samples is as fast alone."""


class AdaptiveEvaluator(ContinualEvaluator):
    """A :class:`ContinualEvaluator` that chooses the iterations itself; see the module docstring."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.policy = Refinement(self.scenario.n_groups, self.config.share, self.config.dense, self.config.tolerance)
        self._stack: Stack | None = None
        self._window: StackedAdaptive | None = None

    def _evaluate(self, task_learning: int, iteration: int, consolidated: bool) -> None:
        """Evaluate at once, and let the policy know."""
        super()._evaluate(task_learning, iteration, consolidated)
        latest = self.flush()[-(task_learning + 1) :]
        self.policy.tell(iteration, latest[:, 4], latest[:, 3])

    def after_step(self, task_learning: int, step: int, n_steps: int, iteration: int) -> None:
        """Keep a snapshot; at the end of a window evaluate those that the policy asks for."""
        if step == 1 or self._stack is None or self._window is None:
            # The learner's tensors become views of the stack's, so that a snapshot is one copy.
            self._stack, self._window = Stack.of([self.learner]), StackedAdaptive([self])
        self._window.after_step(self._stack, [Place(0, task_learning, step, n_steps, iteration)])

    @property
    def settled(self) -> bool:
        """Whether no snapshot waits."""
        return self._window is None or self._window.settled

    def settle(self) -> None:
        """End the window here."""
        if self._window is not None and not self._window.settled:
            self._window.settle()

    def state_dict(self) -> dict[str, Any]:
        """The policy's state."""
        return self.policy.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue with the policy's state of a checkpoint."""
        self.policy.load_state(state)


class StackedAdaptive:
    """Snapshots of R runs in lockstep, of which the runs' policies choose those that are evaluated.

    Args:
        evaluators: of the runs; they hold subsets, policies and tables.
    """

    def __init__(self, evaluators: list[AdaptiveEvaluator]) -> None:
        self._evaluators = evaluators
        self.evaluation = StackedEvaluation(evaluators)
        self._snapshots: Snapshots | None = None
        self._places: list[list[Place]] = []  # of each kept snapshot: the runs that had just taken a step

    @property
    def settled(self) -> bool:
        """Whether no snapshot waits."""
        return not self._places

    def after_step(self, stack: Stack, places: list[Place]) -> None:
        """Keep a snapshot of ``stack``; evaluate where the window is full or the task is over."""
        started = time.perf_counter()
        if self._snapshots is None:
            self._snapshots = Snapshots(stack, self._evaluators[0].config.window)
        self._snapshots.keep(len(self._places), stack)
        self._places.append(places)
        share_seconds(self._evaluators, time.perf_counter() - started)
        if len(self._places) == self._snapshots.capacity or all(place.step == place.n_steps for place in places):
            self.settle()

    def settle(self) -> None:
        """Evaluate what the policies ask for, and forget the window."""
        started = time.perf_counter()
        task = self._places[0][0].task
        slots: dict[int, dict[int, int]] = {}  # run → iteration → slot
        for slot, places in enumerate(self._places):
            for place in places:
                slots.setdefault(place.run, {})[place.iteration] = slot
        found: dict[int, dict[int, Any]] = {run: {} for run in slots}
        with self._evaluators[0].undisturbed():
            while asked := [
                (run, iteration)
                for run, window in slots.items()
                for iteration in self._evaluators[run].policy.ask(task, min(window), max(window))
            ]:
                sums = self._evaluate([(slots[run][iteration], run) for run, iteration in asked], task).cpu().numpy()
                for (run, iteration), result in zip(asked, sums, strict=True):
                    evaluator = self._evaluators[run]
                    evaluator.policy.tell(iteration, result[:, 0], np.array(evaluator.sizes[: task + 1]))
                    found[run][iteration] = result
        for run, results in found.items():
            iterations = sorted(results)
            self._evaluators[run].extend(task, iterations, np.stack([results[iteration] for iteration in iterations]))
        self._places = []
        share_seconds(self._evaluators, time.perf_counter() - started)

    def hand_back(self) -> None:
        """Every run has its rows already."""

    def _evaluate(self, wanted: list[tuple[int, int]], task: int) -> Tensor:
        """Sums (K, tasks, 2) of the snapshots ``wanted``: (slot, run) each."""
        assert self._snapshots is not None
        at_once = STATES_AT_ONCE[self._snapshots.weights.device.type]
        parts = []
        for start in range(0, len(wanted), at_once):
            chosen = wanted[start : start + at_once]
            slots, runs = [slot for slot, _ in chosen], [run for _, run in chosen]
            parts.append(self.evaluation.sums(self._snapshots.select(slots, runs), runs, task))
        return torch.cat(parts)


class Snapshots:
    """What predictions depend on, of R runs at W moments: weights (W, R, P) and buffers (W, R, ...).

    Args:
        stack: the runs; whatever else it holds is taken to stay as it is.
        capacity: W, or less where so many would take more than :data:`LARGEST_WINDOW_BYTES` a run.
    """

    def __init__(self, stack: Stack, capacity: int) -> None:
        by_model = stack.learner.predicts_by_model
        rest = {name: t for name, t in stack.rest.items() if name.startswith("model.") or not by_model}
        bytes_each = sum(t[0].numel() * t.element_size() for t in (stack.weights, *rest.values()))
        self.capacity = max(2, min(capacity, LARGEST_WINDOW_BYTES // bytes_each))
        self._stack = stack
        self.weights = stack.weights.new_empty(self.capacity, *stack.weights.shape)
        self._rest = {name: t.new_empty(self.capacity, *t.shape) for name, t in rest.items()}

    def keep(self, slot: int, stack: Stack) -> None:
        """Copy the state of ``stack`` into ``slot``."""
        self.weights[slot] = stack.weights
        for name, tensor in self._rest.items():
            tensor[slot] = stack.rest[name]

    def select(self, slots: list[int], runs: list[int]) -> Stack:
        """The states of ``runs`` (K,) at ``slots`` (K,), as a stack of K."""
        rest = {name: tensor[slots, runs] for name, tensor in self._rest.items()}
        return Stack(
            self._stack.learner,
            self._stack.shapes,
            self.weights[slots, runs],
            rest,
            self._stack.shared,
            self._stack.tied,
        )
