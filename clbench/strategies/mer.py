"""MER: meta-experience replay (Riemer et al. 2019, arXiv:1810.11910), algorithm 1.

Every new sample is learned together with s draws of k samples from a reservoir. The optimizer takes a step for each single
sample; what the steps of a draw have changed, and then what all draws have, is taken back in part (Reptile):

    θ_A ← θ;  for each of s draws:   θ_W ← θ
                                     θ ← SGD on the new sample, then on the k replayed ones, one after another
                                     θ ← θ_W + β (θ − θ_W)                                         within a draw
    θ ← θ_A + γ (θ − θ_A)                                                                          across draws

Such interpolations favour weights at which the samples' gradients agree. Then the new sample is offered to the reservoir.

Each of these steps is a step of the trainer, with its own point in the curve: ``trainer.max_steps_per_task`` counts them, and
the learning rate and schedule are theirs. A new sample takes s (k + 1) of them, whatever ``trainer.batch_size``. Where the budget
ends amid a sample, both interpolations follow its last step. The authors use SGD without momentum.

Their algorithm 6 (one interpolation, per draw) is ``gamma=1`` with β for its γ; there the new sample comes last. Mammoth's
``mer`` takes one step on the mean loss of all k + 1 samples, so that β and γ only scale its learning rate, which becomes β γ lr:
that is ER. A released reservoir draws from 0 to n, both included, for the n-th sample; here it is from 0 to n − 1.

Stores M sample ids and two copies of the trained weights.
"""

from dataclasses import dataclass
from itertools import accumulate

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
class MERConfig(StrategyConfig):
    """Options of ``strategy=mer``."""

    memory_size: int = option(help="samples in the memory, over all classes", at_least=1)
    replay_batch_size: int = option(help="replayed samples k of a draw", at_least=1)
    draws: int = option(help="draws s for every new sample", at_least=1)
    beta: float = option(help="β: how much of a draw's change is kept", above=0, at_most=1)
    gamma: float = option(help="γ: how much of all draws' change is kept", above=0, at_most=1)


@STRATEGIES.register("mer")
class MER(Strategy):
    """Replay sample by sample, with interpolated weights."""

    config = MERConfig
    needs = Needs(memory=True, boundaries=False, traits=frozenset({"reads weights", "takes steps back"}))
    options: MERConfig
    beta: Tensor
    gamma: Tensor
    before_draw: Tensor
    before_sample: Tensor

    def __init__(self, config: MERConfig, model: ContinualModel, scenario: Scenario) -> None:
        super().__init__(config, model, scenario)
        check_memory_size(config.memory_size, scenario)
        self.memory = SlotMemory(config.memory_size, self.name)
        self._notes = notes_of_room(config.memory_size, scenario)
        self.register_buffer("before_draw", self.flat_parameters().detach().clone())
        self.register_buffer("before_sample", self.before_draw.clone())

    @torch.no_grad()
    def weights_renewed(self, renewed: Tensor) -> None:
        """Begin with the new values: there is nothing to take back of them."""
        for before in (self.before_draw, self.before_sample):
            before.copy_(torch.where(renewed, self.flat_parameters(), before))

    def plan(self, task: Task, plan: Plan) -> Plan:
        """Single samples, one a step: every new one with its draws."""
        limit = task.budget.max_steps_per_task
        singles = list(torch.cat(plan.new)[:limit].split(1))
        replay = self._replay(task, singles)
        if limit is not None:  # only those samples arrive whose steps begin within the budget
            lengths = [self.options.draws + len(replayed) for replayed in replay]
            n_begun = sum(end - length < limit for length, end in zip(lengths, accumulate(lengths), strict=True))
            replay = self._replay(task, singles[:n_begun])
        nothing = torch.empty(0, dtype=torch.int64)
        new: list[Tensor] = []
        old: list[Tensor] = []
        ends_draw: list[bool] = []
        ends_sample: list[bool] = []
        for sample, replayed in zip(singles, replay, strict=False):
            for draw in replayed.tensor_split(self.options.draws):
                new += [sample] + [nothing] * len(draw)
                old += [nothing] + [draw[i : i + 1] for i in range(len(draw))]
                ends_draw += [False] * len(draw) + [True]
                ends_sample += [False] * (len(draw) + 1)
            ends_sample[-1] = True
        new, old, ends_draw, ends_sample = new[:limit], old[:limit], ends_draw[:limit], ends_sample[:limit]
        ends_draw[-1] = ends_sample[-1] = True
        columns = {
            "mer.ends_draw": [torch.tensor(ends) for ends in ends_draw],
            "mer.ends_sample": [torch.tensor(ends) for ends in ends_sample],
        }
        return plan._replace(new=new, replay=old).with_columns(**columns)

    def _replay(self, task: Task, samples: list[Tensor]) -> list[Tensor]:
        """For every new sample what it is learned with, draw after draw, from the memory as it is then."""
        plan = self.memory.plan(task, Plan(new=samples), self.options.draws, self.options.replay_batch_size)
        assert plan.replay is not None
        return plan.replay

    def data_loss(self, batch: Batch, outputs: Outputs) -> dict[str, Tensor]:
        loss = self.cross_entropy(outputs.logits, batch.samples).mean()
        return {"new" if batch.n_new else "replay": loss}

    @property
    def fewest_looked_at(self) -> int:
        return 1

    def after_step(self, step: int, batch: Batch) -> None:
        """Take back a part of the change, where a draw or the sample ends."""
        ends_draw, ends_sample = batch.columns["mer.ends_draw"], batch.columns["mer.ends_sample"]
        theta = self.flat_parameters()
        theta = torch.where(ends_draw, self.before_draw + self.beta * (theta - self.before_draw), theta)
        theta = torch.where(ends_sample, self.before_sample + self.gamma * (theta - self.before_sample), theta)
        self.before_draw.copy_(torch.where(ends_draw, theta, self.before_draw))
        self.before_sample.copy_(torch.where(ends_sample, theta, self.before_sample))
        trained = self.model.trained().values()
        for parameter, value in zip(trained, theta.split([p.numel() for p in trained]), strict=True):
            parameter.copy_(value.view(parameter.shape))

    def end_task(self, task: Task) -> None:
        self.memory.end_task()

    def notes(self) -> list[str]:
        return self._notes
