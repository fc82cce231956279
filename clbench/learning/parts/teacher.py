"""What methods share that compare the network with what it was before the task, the teacher."""

import copy

import torch
from torch import Tensor

from clbench.config import StrategyConfig
from clbench.learning.base import Strategy
from clbench.models.continual import ContinualModel
from clbench.scenarios.scenario import Scenario
from clbench.scenarios.task import Task


class WithTeacher(Strategy):
    """Base of methods that distil: ``teacher`` is the network at the start of the task, always in evaluation mode.

    In the first task it is the initial network. It takes images, and normalises with BatchNorm's running statistics: a student
    that normalises with those of its batch differs from it even with equal weights, unless ``trainer.batch_norm`` freezes them.
    """

    def __init__(self, config: StrategyConfig, model: ContinualModel, scenario: Scenario) -> None:
        super().__init__(config, model, scenario)
        self.teacher: ContinualModel | None = None
        if self.distils:
            self.teacher = copy.deepcopy(model).requires_grad_(False)

    @property
    def distils(self) -> bool:
        """Whether the method has a use for a teacher with the options that it is given."""
        return True

    def begin_task(self, task: Task) -> None:
        if self.teacher is not None:
            self.teacher.load_state_dict(self.model.state_dict())

    def train(self, mode: bool = True) -> "WithTeacher":
        """The teacher stays in evaluation mode."""
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()
        return self


def heads_of_earlier_tasks(model: ContinualModel, n_tasks: int) -> tuple[Tensor, Tensor]:
    """The outputs of every task of the stream, boolean (T, n_classes), and which of the tasks are earlier ones, boolean (T,).

    All tasks are there, so that a step costs the same in each; the rows of those that are no earlier ones are the first task's.
    """
    tasks = torch.arange(n_tasks, device=model.answer.class_task.device)
    is_earlier = tasks < model.answer.current_task
    return model.answer.class_task == torch.where(is_earlier, tasks, 0)[:, None], is_earlier
