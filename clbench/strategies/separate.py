"""Separate networks: one for every task (van de Ven, Tuytelaars & Tolias 2022, Nature Machine Intelligence 4, 1185–1197).

    L = CE(f_t(x), y)        θ_t of task t from the initial weights, by the samples of task t alone
    z(x) = f_t(x)            where the task t is given

Nothing is shared, so that nothing is forgotten and nothing is transferred: what a method that shares weights has to be better
than, at T times the memory. The authors give it smaller networks (Split MNIST: layers of 100 units in place of 400;
``model.hidden=[100,100]``), so that all together are about as large as the one network of other methods.

Every network begins as the run's network does before the first task: pretrained, or random. The authors draw each network's
initial weights for itself. Stages that ``model.frozen`` freezes are shared. Running statistics of BatchNorm belong to the
networks, too. Optimizers begin anew with every network.

A task that has not begun is predicted by its initial network. Stores all networks, T times the trained weights.
"""

import torch
from torch import Tensor

from clbench.config import StrategyConfig
from clbench.learning.base import Measurement, Needs, Strategy
from clbench.learning.parts.task_statistics import TaskStatistics, norm_statistics
from clbench.models.continual import ContinualModel
from clbench.registry import STRATEGIES
from clbench.scenarios.scenario import Scenario
from clbench.scenarios.task import Task


@STRATEGIES.register("separate")
class Separate(Strategy):
    """A network for each task, trained alone."""

    needs = Needs(settings=("task",), traits=frozenset({"makes networks", "starts from scratch"}))
    networks: Tensor

    def __init__(self, config: StrategyConfig, model: ContinualModel, scenario: Scenario) -> None:
        super().__init__(config, model, scenario)
        self.n_tasks = scenario.n_tasks
        # Of every task: its initial network until the task is over.
        self.register_buffer("networks", self.flat_parameters().detach().repeat(self.n_tasks, 1))
        self.statistics = TaskStatistics(model, self.n_tasks)
        for task in range(self.n_tasks):
            self.statistics.store(model, task)

    @torch.no_grad()
    def begin_task(self, task: Task) -> Tensor:
        """Put the task's network in place of the last one, and tell all strategies that its weights are new."""
        network = self._network(task.index)
        for name, tensor in (*self.model.trained().items(), *norm_statistics(self.model).items()):
            if name in network:
                tensor.copy_(network[name])
            else:
                tensor.zero_()  # the number of batches that BatchNorm has averaged over
        return torch.ones_like(self.networks[0], dtype=torch.bool)

    @torch.no_grad()
    def end_task(self, task: Task) -> None:
        self.networks[task.index] = self.flat_parameters()
        self.statistics.store(self.model, task.index)

    def predict(self, x: Tensor, task: Tensor | None) -> Tensor:
        """By the network of each sample's task: every network sees all samples."""
        assert task is not None, "the scenario gives each sample's task"
        logits = self.predict_task(x, 0)
        for other in range(1, self.n_tasks):
            logits = torch.where((task == other)[:, None], self.predict_task(x, other), logits)
        return logits

    def predict_task(self, x: Tensor, task: int) -> Tensor:
        being_learned = self.tasks_learned <= task < self.tasks_seen
        logits = self.model(x) if being_learned else self.model.with_weights(self._network(task), x)[1]
        return self.model.answer.restrict(logits, torch.full((len(x),), task, device=x.device), predicting=True)

    def _network(self, task: int) -> dict[str, Tensor]:
        """Weights and statistics that are kept of the task, by name."""
        shapes = {name: parameter.shape for name, parameter in self.model.trained().items()}
        pieces = self.networks[task].split([shape.numel() for shape in shapes.values()])
        weights = {name: piece.view(shape) for piece, (name, shape) in zip(pieces, shapes.items(), strict=True)}
        return weights | self.statistics.of(task)

    def measurements(self) -> list[Measurement]:
        """How many weights all networks have together."""
        return [Measurement("weights_of_all_networks", "", self.networks.numel())]
