"""GDumb: greedy sampler and dumb learner (Prabhu, Torr & Dokania 2020, ECCV).

While a task's samples pass, a memory of M samples is filled greedily, with equally many of every class. Nothing else is done
with them. Then a network is trained from scratch on what lies in the memory, and on nothing else:

    θ = argmin over θ, from the initial weights,  Σ over (x, y) in memory  CE(f_θ(x), y)

A sample is kept if its class is new or has fewer than M / (number of classes) in the memory; where that is full, it takes the
place of a random one of the largest class. Classes then differ by one sample at most, as far as they have as many. In
domain-incremental streams the classes of every task count as classes of their own: by class alone, a memory that the first task
has filled would refuse all later ones.

``trainer.epochs`` are passes over the memory; the stream is passed once. Training begins with the initial weights, and with
BatchNorm's initial statistics:

* ``when=every_task``: at the end of every task, so that there is an accuracy after each;
* ``when=last_task``: after the last task alone, as in the authors' code. The other tasks have no steps: what is measured there is
  the untrained network, and of the metrics ACC alone has a meaning.

The recipe of the authors (``conf/training/gdumb.yaml``) has a learning rate with warm restarts. They also mix images (CutMix),
except on MNIST, which is left out here, and report the best of the test accuracies after every pass, here it is the last one.
Their code takes the first M / C samples of each of the C classes of the whole stream, which is what the sampler is left with
there but for chance.

Stores M sample ids and the initial weights.
"""

from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from clbench.config import StrategyConfig
from clbench.learning.base import Batch, Needs, Outputs, Plan
from clbench.learning.parts.frozen_features import first_pass
from clbench.learning.parts.initial_weights import FromInitialWeights
from clbench.learning.parts.memory import EMPTY, check_memory_size, greedy_balanced_step, notes_of_room
from clbench.models.continual import ContinualModel
from clbench.options import option
from clbench.registry import STRATEGIES
from clbench.scenarios.scenario import Scenario
from clbench.scenarios.task import Task
from clbench.strategies.joint import new_and_earlier


@dataclass
class GDumbConfig(StrategyConfig):
    """Options of ``strategy=gdumb``."""

    memory_size: int = option(help="samples in the memory, over all classes", at_least=1)
    when: str = option(
        help="when a network is trained on the memory: at the end of every task, or of the last one alone",
        choices=("every_task", "last_task"),
    )


@STRATEGIES.register("gdumb")
class GDumb(FromInitialWeights):
    """Training from scratch on a balanced memory."""

    config = GDumbConfig
    needs = Needs(memory=True, traits=frozenset({"starts from scratch", "trains on all data", "trains on its memory"}))
    options: GDumbConfig
    memory: Tensor

    @classmethod
    def traits(cls, options: GDumbConfig) -> frozenset[str]:
        return cls.needs.traits | ({"trains once"} if options.when == "last_task" else frozenset())

    def __init__(self, config: GDumbConfig, model: ContinualModel, scenario: Scenario) -> None:
        super().__init__(config, model, scenario)
        check_memory_size(config.memory_size, scenario)
        self._notes = notes_of_room(config.memory_size, scenario)
        self.register_buffer("memory", torch.full((config.memory_size,), EMPTY))
        self._memory_after_task = torch.empty(0)  # made by plan, and again when a run resumes

    def _trains(self, task: Task) -> bool:
        return self.options.when == "every_task" or task.index == task.n_tasks - 1

    def begin_task(self, task: Task) -> Tensor | None:
        return self.go_back() if self._trains(task) else None

    def plan(self, task: Task, plan: Plan) -> Plan:
        """Offer the samples that pass to the memory; the steps are on what it then holds."""
        passing = torch.cat(first_pass(plan.new, len(task.ids)))
        memory: dict[int, list[int]] = {}
        for sample, group in self._with_groups(task, self.memory[self.memory != EMPTY].cpu()):
            memory.setdefault(group, []).append(sample)
        rng = task.numpy_generator("memory")
        greedy_balanced_step(memory, self.options.memory_size, self._with_groups(task, passing), rng)
        kept = torch.tensor([*chain.from_iterable(memory.values())])
        self._memory_after_task = kept
        return plan._replace(new=task.shuffled_batches(kept) if self._trains(task) else [])

    def _with_groups(self, task: Task, ids: Tensor) -> list[tuple[int, int]]:
        """Every sample with a number of its class and task."""
        labels, tasks = task.labels_of(ids), task.tasks_of(ids)
        return list(zip(ids.tolist(), (labels * task.n_tasks + tasks).tolist(), strict=True))

    def data_loss(self, batch: Batch, outputs: Outputs) -> dict[str, Tensor]:
        return new_and_earlier(self, batch, outputs)

    def end_task(self, task: Task) -> None:
        self.memory.fill_(EMPTY)
        self.memory[: len(self._memory_after_task)] = self._memory_after_task.to(self.memory.device)

    def notes(self) -> list[str]:
        curve = {
            "every_task": "every task begins with the initial weights, so that the curve within a task is of a network trained "
            "anew, and min_ACC tells nothing of forgetting",
            "last_task": "trained once, in the last task: what was evaluated before is the untrained network",
        }
        return [curve[self.options.when], *self._notes]
