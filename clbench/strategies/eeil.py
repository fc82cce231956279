"""EEIL: end-to-end incremental learning (Castro et al. 2018, arXiv:1807.09536).

Every batch is drawn from the task's samples and the exemplars of earlier classes together. z are the logits, z̄ those of the
network before the task:

    L = CE(z, y) + λ Σ_{s < t} KD_T( z̄, z ; classes of task s )

where KD_T is the divergence of softmaxes at temperature T over the outputs of one earlier task. From the second task on a second
stage follows: exemplars are chosen among the new classes, too, and the whole network is fine-tuned on all exemplars, of which
there are equally many of every class, with a smaller learning rate. Then exemplars are chosen anew, by the network as it then is.

Exemplars are chosen by herding on features divided by their norm, see :mod:`clbench.learning.parts.exemplars`. The paper augments
by contrast, brightness, crops and mirrors (``scenario.augment``), adds noise to gradients, which is left out here, and distils
the new classes, too, while it fine-tunes, from the network before that stage; here the teacher is that before the task, as in
FACIL.

Stores M exemplars (ids, labels and images) with room for M more, and the previous network.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from clbench.config import StrategyConfig
from clbench.learning.base import Batch, Needs, Outputs, Plan
from clbench.learning.parts.exemplars import ExemplarMemory
from clbench.learning.parts.teacher import Teacher, WithTeacher, heads_of_earlier_tasks
from clbench.learning.stage import Stage
from clbench.models.continual import ContinualModel
from clbench.options import option
from clbench.registry import STRATEGIES
from clbench.scenarios.scenario import Scenario
from clbench.scenarios.task import Task
from clbench.strategies.lwf import distillation


@dataclass
class EEILConfig(StrategyConfig):
    """Options of ``strategy=eeil``."""

    memory_size: int = option(help="exemplars in all, shared equally by the classes seen", at_least=1)
    lam: float = option(help="weight λ of the distillation", at_least=0)
    temperature: float = option(help="temperature T of both softmax", above=0)
    tuning_epochs: int = option(help="passes over the balanced exemplars in the second stage", at_least=1)
    tuning_lr: float = option(help="learning rate of the second stage, where it begins", above=0)


@STRATEGIES.register("eeil")
class EEIL(WithTeacher):
    """Distillation per earlier task, and balanced fine-tuning."""

    config = EEILConfig
    needs = Needs(
        memory=True,
        settings=("class", "task"),
        traits=frozenset({"remembers outputs", "one task a class", "mixes exemplars"}),
    )
    options: EEILConfig
    lam: Tensor
    temperature: Tensor
    tuning_lr: Tensor
    teacher: Teacher

    def __init__(self, config: EEILConfig, model: ContinualModel, scenario: Scenario) -> None:
        super().__init__(config, model, scenario)
        self.memory = ExemplarMemory(config.memory_size, scenario)
        self.n_tasks = scenario.n_tasks

    def plan(self, task: Task, plan: Plan) -> Plan:
        """Batches of the task's samples and the earlier classes' exemplars together."""
        return self.memory.mixed(task, plan)

    def stages(self, task: Task, n_steps: int) -> list[Stage]:
        """Balanced fine-tuning, from the second task on."""
        if task.index == 0:
            return []
        tuning = {"epochs": self.options.tuning_epochs, "lr": float(self.tuning_lr)}
        return [Stage("balanced", None, trainer=tuning, begin=self._choose, plan=self.memory.balanced)]

    def _choose(self, task: Task) -> None:
        self.memory.choose(task, self.model)

    def data_loss(self, batch: Batch, outputs: Outputs) -> dict[str, Tensor]:
        terms = {"new": self.cross_entropy(outputs.logits, batch.samples).mean()}
        if self.tasks_learned > 0:
            with torch.no_grad():
                teacher = self.teacher(batch.samples.x)
            terms["distillation"] = self.lam * self._distillation(outputs.logits, teacher)
        return terms

    def _distillation(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The sum over earlier tasks."""
        heads, is_earlier = heads_of_earlier_tasks(self.model, self.n_tasks)
        of_head = torch.vmap(distillation, in_dims=(None, None, 0, None))
        return (of_head(student, teacher, heads, self.temperature) * is_earlier).sum()

    def end_task(self, task: Task) -> None:
        self._choose(task)
