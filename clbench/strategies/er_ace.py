"""ER-ACE: experience replay with asymmetric cross-entropy (Caccia et al. 2022, arXiv:2104.05025).

Every step trains on new samples x and on a draw x' from a reservoir. New samples compete with one another alone, so that what
they bring in does not push the representations of earlier classes aside; replayed ones with all classes seen:

    L = CE( z(x) over the classes present among the new samples, y )  +  CE( z(x') over all classes seen, y' )

``present=task`` takes all classes that arrive with the task in place of those of the batch, ``combine=mean`` half of the sum
(Avalanche). Nothing is replayed while the memory is empty. Differences to other code: Mammoth lets new samples see the classes to
come, too, and masks from the second task on; a mask up to the largest label seen assumes that labels come in order, as here they
need not.

Stores M sample ids.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from clbench.config import StrategyConfig
from clbench.errors import ConfigError
from clbench.learning.base import Batch, Needs, Outputs, Plan, Strategy
from clbench.learning.parts.memory import check_memory_size, notes_of_room
from clbench.learning.parts.slot_memory import SlotMemory
from clbench.models.continual import ContinualModel
from clbench.options import option
from clbench.registry import STRATEGIES
from clbench.scenarios.scenario import Scenario
from clbench.scenarios.task import Task


@dataclass
class ERACEConfig(StrategyConfig):
    """Options of ``strategy=er_ace``."""

    memory_size: int = option(help="samples in the memory, over all classes", at_least=1)
    replay_batch_size: int | None = option(
        None, help="replayed samples per step; null: as many as new ones", at_least=1
    )
    present: str = option(help="classes that new samples see: of the batch, or of the task", choices=("batch", "task"))
    combine: str = option(help="how the two losses are put together", choices=("sum", "mean"))


@STRATEGIES.register("er_ace")
class ERACE(Strategy):
    """Replay in which new samples do not compete with earlier classes."""

    config = ERACEConfig
    needs = Needs(memory=True, boundaries=False)
    options: ERACEConfig
    arriving: Tensor

    def __init__(self, config: ERACEConfig, model: ContinualModel, scenario: Scenario) -> None:
        super().__init__(config, model, scenario)
        check_memory_size(config.memory_size, scenario)
        if config.present == "task" and not scenario.boundaries:
            raise ConfigError(
                f"strategy.present=task needs to know which classes arrive with a task, which {scenario.name} does not tell: set "
                "strategy.present=batch"
            )
        self.memory = SlotMemory(config.memory_size, self.name)
        self._notes = notes_of_room(config.memory_size, scenario)
        self.register_buffer("arriving", torch.zeros(model.head.out_features, dtype=torch.bool))

    def begin_task(self, task: Task) -> None:
        self.arriving.zero_()
        self.arriving[task.classes] = True

    def plan(self, task: Task, plan: Plan) -> Plan:
        return self.memory.plan(task, plan, 1, self.options.replay_batch_size)

    def data_loss(self, batch: Batch, outputs: Outputs) -> dict[str, Tensor]:
        n, samples = batch.n_new, batch.samples
        labels = torch.arange(outputs.logits.shape[1], device=samples.y.device)
        in_batch = (samples.y[:n, None] == labels).any(0)
        present = in_batch if self.options.present == "batch" else self.arriving
        logits = self.model.answer.restrict(outputs.logits, samples.task)
        new = F.cross_entropy(logits[:n].masked_fill(~present, -torch.inf), samples.y[:n])
        if len(samples.y) == n:
            return {"new": new}
        replayed = F.cross_entropy(logits[n:], samples.y[n:])
        half = 0.5 if self.options.combine == "mean" else 1.0
        return {"new": half * new, "replay": half * replayed}

    def end_task(self, task: Task) -> None:
        self.memory.end_task()

    def notes(self) -> list[str]:
        return self._notes
