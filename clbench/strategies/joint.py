"""Incremental joint training: every task trains on all data so far (an upper bound; perfect replay).

    L = mean CE over a batch drawn from the union of the current and all earlier tasks

Hess, Tuytelaars & van de Ven 2023 (arXiv:2311.04898) show that the stability gap appears even here, because the network
still has to move from the optimum for k − 1 tasks to the one for k. The batch grows with the number of tasks so far
(B · k, as in the authors' demonstration) with ``batch_per_task``, so that every task keeps B samples a step on average.
``from_scratch`` starts each task from the initial weights instead (joint rather than cumulative training; no gap to see), and
from the initial statistics of BatchNorm. The initial values of prompts that are drawn when their task begins are that draw.

``when=last_task`` trains once, in the last task, on the data of all N: with batches of B for the steps of all tasks together,
which are N times ``max_steps_per_task``, or ``epochs`` passes over the union. That is the upper bound of tables with one number
per method (van de Ven & Tolias 2019, arXiv:1904.07734; "multi-task" of A-GEM, Chaudhry et al. 2019; "offline" of Hsu et al. 2018,
arXiv:1810.12488). Until the last task there are no steps: the curve shows the untrained network there, evaluated once a task.
Of the metrics, ACC and ACC_pooled alone have a meaning, and the summary leaves out the others.
"""

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from clbench.config import StrategyConfig
from clbench.errors import ConfigError
from clbench.learning.base import Batch, Needs, Outputs, Plan, Strategy
from clbench.learning.parts.initial_weights import FromInitialWeights
from clbench.models.continual import ContinualModel
from clbench.options import option
from clbench.registry import STRATEGIES
from clbench.scenarios.scenario import Scenario
from clbench.scenarios.task import Task


@dataclass
class JointConfig(StrategyConfig):
    """Options of ``strategy=joint``."""

    batch_per_task: bool = option(help="batch of batch_size × tasks so far, instead of batch_size")
    from_scratch: bool = option(help="start every task from the run's initial weights")
    when: str = option(
        "every_task",
        help="every_task: train in every task, on all data so far; last_task: once, in the last one, for the steps of all tasks",
        choices=("every_task", "last_task"),
    )


@STRATEGIES.register("joint")
class Joint(FromInitialWeights):
    """Trains on the data of all tasks so far."""

    config = JointConfig
    needs = Needs(all_data=True, cost_grows=True)
    options: JointConfig

    @classmethod
    def traits(cls, options: JointConfig) -> frozenset[str]:
        traits = {"starts from scratch": options.from_scratch, "trains once": options.when == "last_task"}
        return cls.needs.traits | {trait for trait, holds in traits.items() if holds}

    def __init__(self, config: JointConfig, model: ContinualModel, scenario: Scenario) -> None:
        super().__init__(config, model, scenario)
        if config.when == "last_task":
            _refuse_what_is_of_every_task(config)

    @property
    def goes_back(self) -> bool:
        return self.options.from_scratch

    def begin_task(self, task: Task) -> Tensor | None:
        """Go back to the initial weights, which all strategies are told."""
        return self.go_back() if self.goes_back else None

    def plan(self, task: Task, plan: Plan) -> Plan:
        """Shuffle the union of all tasks so far; with ``when=last_task`` no step before the last."""
        if self.options.when == "last_task":
            if task.index < task.n_tasks - 1:
                return plan._replace(new=[])
            limit = task.budget.max_steps_per_task
            whole = dataclasses.replace(task.budget, max_steps_per_task=None if limit is None else limit * task.n_tasks)
            task = dataclasses.replace(task, budget=whole)
        seen = torch.cat([task.ids_of(earlier) for earlier in range(task.index + 1)])
        scale = task.index + 1 if self.options.batch_per_task else 1
        return plan._replace(new=task.shuffled_batches(seen, task.budget.batch_size * scale))

    def data_loss(self, batch: Batch, outputs: Outputs) -> dict[str, Tensor]:
        return new_and_earlier(self, batch, outputs)

    def notes(self) -> list[str]:
        if self.options.when == "every_task":
            return []
        return [
            "trained once, in the last task, on the data of all tasks: what was evaluated before is the untrained network"
        ]


def new_and_earlier(strategy: Strategy, batch: Batch, outputs: Outputs) -> dict[str, Tensor]:
    """The mean cross-entropy on a batch that mixes tasks, as the shares of the current task's samples and of all others."""
    losses = strategy.cross_entropy(outputs.logits, batch.samples)
    is_new = batch.samples.task == strategy.model.answer.current_task
    if strategy.tasks_learned == 0:
        return {"new": losses.mean()}
    zero = torch.zeros_like(losses)
    return {
        "new": torch.where(is_new, losses, zero).sum() / len(losses),
        "earlier": torch.where(is_new, zero, losses).sum() / len(losses),
    }


def _refuse_what_is_of_every_task(config: JointConfig) -> None:
    """Refuse options that say how one task goes on from another."""
    if config.batch_per_task:
        raise ConfigError(
            "strategy.batch_per_task=true takes the samples of N tasks in a step, and strategy.when=last_task the steps of N "
            "tasks: set strategy.batch_per_task=false"
        )
    if config.from_scratch:
        raise ConfigError(
            "strategy.from_scratch=true starts every task from the initial weights, and with strategy.when=last_task only one is "
            "trained: set strategy.from_scratch=false"
        )
