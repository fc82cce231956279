"""PackNet: pack task after task into one network by pruning (Mallya & Lazebnik 2018, arXiv:1711.05769).

Every weight of a layer belongs to a task or is free. Task k

1. trains the free weights, while those of earlier tasks take part and stand still;
2. prunes: of every layer's weights that were free, the share ``prune`` with the smallest magnitudes becomes 0 and free again, and
   the others belong to task k from now on;
3. retrains those, a stage of its own with ``retrain_epochs``.

Task j is predicted with the weights of the tasks 1 … j, all others 0, so that its outputs stay what they were, bit for bit. Each
task has its own rows of the head, which are not pruned. Biases, and scales and shifts of normalisation layers, are trained in the
first task alone, as by default in the authors' code; running statistics of BatchNorm are kept for every task.

The masks are exact: what a stage does not train is put back after every step, so that momentum and weight decay do not move it,
which setting gradients to 0 does not achieve.

Stores the number of the task that every weight belongs to.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from clbench.config import StrategyConfig
from clbench.errors import ConfigError
from clbench.learning.base import Measurement, Needs, Strategy
from clbench.learning.parts.masked_layers import masked_layers
from clbench.learning.parts.task_statistics import TaskStatistics
from clbench.learning.stage import Stage
from clbench.models.continual import ContinualModel
from clbench.options import option
from clbench.registry import STRATEGIES
from clbench.scenarios.scenario import Scenario
from clbench.scenarios.task import Task

FREE = 0
"""The owner of a weight that belongs to no task; tasks count from 1 here."""


@dataclass
class PackNetConfig(StrategyConfig):
    """Options of ``strategy=packnet``."""

    prune: float = option(help="share of a layer's free weights that a task gives back", above=0, at_most=1)
    retrain_epochs: int = option(help="passes over the task after pruning", at_least=1)
    retrain_lr: float | None = option(
        help="learning rate after pruning, where it begins; null: trainer.lr once more", above=0
    )


@STRATEGIES.register("packnet")
class PackNet(Strategy):
    """Pruning makes room for the next task."""

    config = PackNetConfig
    needs = Needs(settings=("task",), traits=frozenset({"linear head", "makes networks"}))
    options: PackNetConfig
    owner: Tensor
    retrain_lr: Tensor

    def __init__(self, config: PackNetConfig, model: ContinualModel, scenario: Scenario) -> None:
        super().__init__(config, model, scenario)
        if config.prune == 1:
            raise ConfigError("strategy.prune=1.0 leaves no weight to any task: it has to be below 1, e.g. 0.5")
        shapes = {name: parameter.shape for name, parameter in model.trained().items()}
        self.layers = [layer for layer in masked_layers(shapes) if not layer.name.startswith("head.")]
        self.register_buffer("owner", torch.zeros_like(self.flat_parameters(), dtype=torch.int64))
        self.statistics = TaskStatistics(model, scenario.n_tasks)

    # ---- the stages of a task ---------------------------------------------------------------------------------------

    def stages(self, task: Task, n_steps: int) -> list[Stage]:
        retrained: dict[str, float] = {"epochs": self.options.retrain_epochs}
        if self.options.retrain_lr is not None:
            retrained["lr"] = float(self.retrain_lr)
        return [
            Stage("train", 0, trains="mask", mask=lambda: self._trained_by(FREE)),
            Stage(
                "retrain",
                None,
                trains="mask",
                mask=lambda: self._trained_by(task.index + 1),
                trainer=retrained,
                begin=self._prune,
            ),
        ]

    def _trained_by(self, owner: int) -> Tensor:
        """bool (P,): layers' weights of this owner, the task's rows of the head, and in the first task all that is no layer."""
        rows = self.model.answer.class_task == self.model.answer.current_task
        layers = {layer.name: self.owner[layer.part] == owner for layer in self.layers}
        parts = []
        for name, parameter in self.model.trained().items():
            if name.startswith("head."):
                parts.append(rows.view(-1, *[1] * (parameter.dim() - 1)).expand_as(parameter).reshape(-1))
            else:
                parts.append(layers.get(name, rows.new_full((parameter.numel(),), self.tasks_learned == 0)))
        return torch.cat(parts)

    @torch.no_grad()
    def _prune(self, task: Task) -> None:
        """Keep the largest of every layer's free weights for the task, and set the others to 0."""
        weights = self.model.trained()
        for layer in self.layers:
            theta, owner = weights[layer.name], self.owner[layer.part]
            free = owner == FREE
            n_kept = int(free.sum()) - round(self.options.prune * int(free.sum()))
            size = torch.where(free, theta.abs().view(-1), -1)
            owner[size.argsort(descending=True, stable=True)[:n_kept]] = task.index + 1  # ties: the first
            theta.mul_((owner != FREE).view(layer.shape))

    def end_task(self, task: Task) -> None:
        self.statistics.store(self.model, task.index)

    # ---- prediction -------------------------------------------------------------------------------------------------

    def predict(self, x: Tensor, task: Tensor | None) -> Tensor:
        """By the network of each sample's task: every network sees all samples."""
        assert task is not None, "the scenario gives each sample's task"
        logits = self.model(x)
        for learned in range(self.tasks_learned):
            of_task = self.model.with_weights(self._network(learned), x)[1]
            logits = torch.where((task == learned)[:, None], of_task, logits)
        return self.model.answer.restrict(logits, task, predicting=True)

    def predict_task(self, x: Tensor, task: int) -> Tensor:
        """By the network of the task; one that is not learned yet has that of the task being learned."""
        logits = self.model(x) if task >= self.tasks_learned else self.model.with_weights(self._network(task), x)[1]
        return self.model.answer.restrict(logits, torch.full((len(x),), task, device=x.device), predicting=True)

    def _network(self, task: int) -> dict[str, Tensor]:
        """The network of a task that has been learned."""
        weights = self.model.trained()
        in_use = (self.owner != FREE) & (self.owner <= task + 1)
        for layer in self.layers:
            weights[layer.name] = weights[layer.name] * in_use[layer.part].view(layer.shape)
        return weights | self.statistics.of(task)

    # ---- reports ----------------------------------------------------------------------------------------------------

    def measurements(self) -> list[Measurement]:
        """The share of the layers' weights that no task uses, and that the last task uses."""
        owners = torch.cat([self.owner[layer.part] for layer in self.layers])
        return [
            Measurement("free", "", (owners == FREE).double().mean().item()),
            Measurement("used_by_task", "", (owners == self.tasks_learned).double().mean().item()),
        ]
