"""ER: experience replay (Chaudhry et al. 2019, arXiv:1902.10486).

A memory of M samples; every step trains on B new and B replayed samples in one forward pass:

    L = w · mean CE(new) + (1 − w) · mean CE(replayed)

* ``weighting=fixed``: w = new_weight (De Lange et al. 2023, their Lw_new). As in their code it holds from the first task
  on, where nothing is replayed yet and L = w · mean CE(new).
* ``weighting=tasks``: w = 1/k while learning the k-th task, so that all tasks count equally (van de Ven et al. 2020; Hess et
  al. 2023).
* ``weighting=samples``: w = B_new / (B_new + B_replayed), one mean over all samples (Avalanche, Mammoth).

Stores the ids of the M samples. Variants, which give different results and are not interchangeable:

* ``selection=class_balanced``, ``update=task`` (De Lange et al.): refilled from all classes so far at the end of each task
  with equal counts; replay draws classes equally often, and samples without replacement within a step.
* ``selection=reservoir``, ``update=step`` (Chaudhry et al.; Mammoth): a uniform sample of all samples seen so far, those of
  the current task included. A sample counts when it is seen first, not once per epoch (Mammoth counts every epoch).
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from clbench.config import StrategyConfig
from clbench.errors import ConfigError
from clbench.learning.base import Batch, Needs, Outputs, Plan, Strategy
from clbench.learning.parts.memory import (
    EMPTY,
    check_memory_size,
    draw_balanced,
    draw_uniform,
    notes_of_room,
    places_offered,
    reservoir_step,
)
from clbench.models.continual import ContinualModel
from clbench.options import option
from clbench.registry import STRATEGIES
from clbench.scenarios.scenario import Scenario
from clbench.scenarios.task import Task


@dataclass
class ERConfig(StrategyConfig):
    """Options of ``strategy=er``."""

    memory_size: int = option(help="samples in the memory, over all classes", at_least=1)
    selection: str = option(help="which samples are kept", choices=("reservoir", "class_balanced"))
    update: str = option(
        help="when the memory changes: after every step, or at the end of each task", choices=("step", "task")
    )
    replay_batch_size: int | None = option(
        None, help="replayed samples per step; null: as many as new ones", at_least=1
    )
    weighting: str = option(
        help="weights of the losses on new and replayed samples: new_weight and 1 - new_weight; 1/k and 1 - 1/k in the k-th "
        "task; or one mean over all samples",
        choices=("fixed", "tasks", "samples"),
    )
    new_weight: float = option(help="weighting=fixed: weight of the new samples' loss", at_least=0, at_most=1)


@STRATEGIES.register("er")
class ER(Strategy):
    """Replay of stored samples beside the new ones."""

    config = ERConfig
    needs = Needs(memory=True, boundaries=False)
    options: ERConfig
    new_weight: Tensor
    memory: Tensor
    n_seen: Tensor

    def __init__(self, config: ERConfig, model: ContinualModel, scenario: Scenario) -> None:
        super().__init__(config, model, scenario)
        check_memory_size(config.memory_size, scenario)
        self._notes = notes_of_room(config.memory_size, scenario)
        if not scenario.boundaries and (config.update == "task" or config.weighting == "tasks"):
            raise ConfigError(
                f"strategy.update={config.update} with strategy.weighting={config.weighting} needs to know where a task ends, "
                f"which {scenario.name} does not tell: set strategy.update=step, with selection=reservoir and weighting=samples"
            )
        if config.selection == "class_balanced" and config.update == "step":
            raise ConfigError(
                "strategy.update=step is not defined for strategy.selection=class_balanced. Valid choices: "
                "update=task, or selection=reservoir"
            )
        self.register_buffer("memory", torch.full((config.memory_size,), EMPTY))
        self.register_buffer("n_seen", torch.zeros((), dtype=torch.int64))
        # What end_task puts into the memory; plan() makes it, and makes it again when a run resumes.
        self._memory_after_task: tuple[np.ndarray, int] | None = None

    def plan(self, task: Task, plan: Plan) -> Plan:
        """Walk through the task's steps: draw from the memory as it is, then offer it the new samples."""
        rng = task.numpy_generator("replay")
        memory, n_seen = self.memory.cpu().numpy().copy(), int(self.n_seen)
        by_step = self.options.update == "step"
        balanced = self.options.selection == "class_balanced"
        groups = self._groups(task, memory) if balanced else []
        replay = []
        for ids, offered in zip(plan.new, places_offered(plan.new, task.ids), strict=True):
            size = self.options.replay_batch_size or len(ids)
            drawn = draw_balanced(groups, size, rng) if balanced else draw_uniform(memory[memory != EMPTY], size, rng)
            replay.append(torch.from_numpy(drawn))
            if by_step:
                n_seen = reservoir_step(memory, n_seen, ids[offered].numpy(), rng)
        if not by_step:
            memory, n_seen = self._consolidated(task, memory, n_seen, rng)
        self._memory_after_task = memory, n_seen
        return plan._replace(replay=replay)

    def data_loss(self, batch: Batch, outputs: Outputs) -> dict[str, Tensor]:
        losses = self.cross_entropy(outputs.logits, batch.samples)
        new, replayed = losses[: batch.n_new], losses[batch.n_new :]
        weights: dict[str, Tensor | float] = {
            "fixed": self.new_weight,
            "tasks": 1 / (self.tasks_learned + 1),
            "samples": batch.n_new / len(losses),
        }
        weight = weights[self.options.weighting]
        terms = {"new": weight * new.mean()}
        if len(replayed):
            terms["replay"] = (1 - weight) * replayed.mean()
        return terms

    def end_task(self, task: Task) -> None:
        assert self._memory_after_task is not None
        memory, n_seen = self._memory_after_task
        self.memory.copy_(torch.from_numpy(memory))
        self.n_seen.fill_(n_seen)

    def notes(self) -> list[str]:
        return self._notes

    def _consolidated(
        self, task: Task, memory: np.ndarray, n_seen: int, rng: np.random.Generator
    ) -> tuple[np.ndarray, int]:
        """The memory after the task, for ``update=task``."""
        if self.options.selection == "reservoir":
            return memory, reservoir_step(memory, n_seen, rng.permutation(task.ids.numpy()), rng)
        candidates = np.concatenate([memory[memory != EMPTY], task.ids.numpy()])
        kept = draw_balanced(self._groups(task, candidates), len(memory), rng)
        refilled = np.full_like(memory, EMPTY)
        refilled[: len(kept)] = kept
        return refilled, n_seen + len(task.ids)

    def _groups(self, task: Task, ids: np.ndarray) -> list[np.ndarray]:
        """``ids`` by class; in domain-incremental streams by class and task, so that no domain crowds out another."""
        ids = ids[ids != EMPTY]
        labels = task.labels_of(torch.from_numpy(ids)).numpy()
        tasks = task.tasks_of(torch.from_numpy(ids)).numpy()
        keys = tasks * (labels.max(initial=0) + 1) + labels
        return [ids[keys == key] for key in np.unique(keys)]
