"""DER: dark experience replay (Buzzega et al. 2020, arXiv:2004.07211).

Every step trains on new samples and on a draw from a reservoir, x' with the logits z' that it had when it was stored:

    L = CE(z(x), y) + α · mean (z(x') − z')²

The mean of squares is over samples and outputs. z' are the logits of the training pass in which the sample entered the memory:
augmented, in training mode, before the step. Labels of stored samples are not used; with them it is DER++ (``strategy=derpp``).
Another method has the same letters, Yan et al.'s dynamically expandable representation (``strategy=der_expandable``).

The authors' code lets all outputs of the stream be seen from the start, those of classes to come included:
``scenario.logit_scope=all``, in which the squares are of all outputs too. In the other scopes they are of the outputs that
existed when the sample was stored, since the rows of later classes have been drawn anew. Nothing is replayed while the memory
is empty.

Differences to other code: Mammoth offers a sample to the reservoir once per epoch, here it counts once. Avalanche stores logits
after the task, in evaluation mode, and balances classes; that is another method. Mammoth makes a pass for every part, so that
BatchNorm normalises each by itself; here all samples of a step are one batch.

Stores M sample ids and M × n_classes logits.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from clbench.config import StrategyConfig
from clbench.learning.base import Batch, Needs, Outputs, Plan, Strategy
from clbench.learning.parts.memory import check_memory_size, notes_of_room
from clbench.learning.parts.slot_memory import SlotMemory
from clbench.models.continual import ContinualModel
from clbench.options import option
from clbench.registry import STRATEGIES
from clbench.scenarios.scenario import Scenario
from clbench.scenarios.task import Task


@dataclass
class DERConfig(StrategyConfig):
    """Options of ``strategy=der``."""

    memory_size: int = option(help="samples in the memory, over all classes", at_least=1)
    replay_batch_size: int | None = option(None, help="samples of a draw; null: as many as new ones", at_least=1)
    alpha: float = option(help="weight α of the distance to stored logits", at_least=0)


@STRATEGIES.register("der")
class DER(Strategy):
    """Replay of stored logits."""

    config = DERConfig
    needs = Needs(boundaries=False, memory=True)
    options: DERConfig
    alpha: Tensor
    logits: Tensor
    stored_in: Tensor

    n_draws = 1
    """Draws from the memory in a step, of which the first is compared with its logits."""

    def __init__(self, config: DERConfig, model: ContinualModel, scenario: Scenario) -> None:
        super().__init__(config, model, scenario)
        check_memory_size(config.memory_size, scenario)
        self.memory = SlotMemory(config.memory_size, self.name)
        self._notes = notes_of_room(config.memory_size, scenario)
        self.register_buffer("logits", torch.zeros(config.memory_size + 1, model.head.out_features))
        self.register_buffer("stored_in", torch.zeros(config.memory_size + 1, dtype=torch.int64))  # the task of it

    @property
    def keeps_outputs(self) -> bool:
        """Logits of new samples are stored."""
        return True

    def plan(self, task: Task, plan: Plan) -> Plan:
        return self.memory.plan(task, plan, self.n_draws, self.options.replay_batch_size)

    def data_loss(self, batch: Batch, outputs: Outputs) -> dict[str, Tensor]:
        slots = batch.columns[self.memory.read]
        terms = {"new": self.cross_entropy(outputs.logits, batch.samples)[: batch.n_new].mean()}
        if len(slots):
            drawn = outputs.logits[batch.n_new : batch.n_new + len(slots)]
            terms["logits"] = self.alpha * self._distance(drawn, slots)
        return terms

    def _distance(self, logits: Tensor, slots: Tensor) -> Tensor:
        """The mean square (scalar) of the logits' (B, n_classes) difference to those stored in ``slots`` (B,)."""
        squares = (logits - self.logits[slots]).square()
        if self.model.answer.sees_all:
            return squares.mean()
        existed = self.model.answer.first_seen <= self.stored_in[slots].unsqueeze(1)
        return (squares * existed).sum() / existed.sum()

    def after_step(self, step: int, batch: Batch) -> None:
        """Keep the logits of the new samples that have entered the memory."""
        assert batch.outputs is not None
        slots = batch.columns[self.memory.write]
        self.logits[slots] = batch.outputs.logits[: batch.n_new].to(self.logits)
        self.stored_in[slots] = self.model.answer.current_task.expand(len(slots))

    def end_task(self, task: Task) -> None:
        self.memory.end_task()

    def notes(self) -> list[str]:
        return self._notes
