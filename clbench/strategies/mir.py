"""MIR: maximally interfered retrieval (Aljundi et al. 2019, arXiv:1908.04742), as ER-MIR.

Of c random samples of a reservoir, those R are replayed whose loss the step for the new samples alone would raise most:

    θ' = θ + the optimizer's step for ∇L_new(θ),    s(x) = ℓ(f_θ'(x), y) − ℓ(f_θ(x), y)
    L  = mean CE(new) + mean CE( the R candidates of largest s )

θ' is where the optimizer would really go, with its momentum, moments and weight decay; the authors take θ − lr ∇L_new, which is
the same for plain SGD. While the memory holds no more than R samples all of them are replayed.

Scores are taken in evaluation mode, so that no candidate's score depends on the others, and neither they nor the replayed samples
move BatchNorm's running statistics. (In other code candidates pass in training mode and do.) The authors replay from the second
task on, and then samples of earlier tasks alone; here the whole memory is asked from the second step on, as in the paper's
algorithm, which knows of no tasks. Also left out is their ``compare_to_old_logits``, the smallest loss that a sample has had in
place of its present one. The memory is updated after every step, and not at a task's end.

Stores M sample ids. A step takes two forward passes of the candidates, and one gradient of those that are chosen.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from clbench.config import StrategyConfig
from clbench.errors import ConfigError
from clbench.learning.base import Batch, Needs, Plan, Strategy
from clbench.learning.parts.memory import check_memory_size, notes_of_room
from clbench.learning.parts.slot_memory import SlotMemory
from clbench.models.continual import ContinualModel
from clbench.options import option
from clbench.registry import STRATEGIES
from clbench.scenarios.scenario import Samples, Scenario
from clbench.scenarios.task import Task


@dataclass
class MIRConfig(StrategyConfig):
    """Options of ``strategy=mir``."""

    memory_size: int = option(help="samples in the memory, over all classes", at_least=1)
    candidates: int = option(help="random samples c of the memory that are looked at in every step", at_least=1)
    replay_batch_size: int | None = option(
        None, help="of these, the samples R that are replayed; null: as many as new ones", at_least=1
    )


@STRATEGIES.register("mir")
class MIR(Strategy):
    """Replay of the samples that the next step would harm most."""

    config = MIRConfig
    needs = Needs(memory=True, boundaries=False, traits=frozenset({"looks at stored samples", "reads logits"}))
    options: MIRConfig

    def __init__(self, config: MIRConfig, model: ContinualModel, scenario: Scenario) -> None:
        super().__init__(config, model, scenario)
        check_memory_size(config.memory_size, scenario)
        if config.replay_batch_size is not None and config.candidates < config.replay_batch_size:
            raise ConfigError(
                f"strategy.candidates={config.candidates} is too few to choose the "
                f"strategy.replay_batch_size={config.replay_batch_size} samples among: it has to be at least as many"
            )
        self.memory = SlotMemory(config.memory_size, self.name)
        self._notes = notes_of_room(config.memory_size, scenario)

    def plan(self, task: Task, plan: Plan) -> Plan:
        """The candidates of every step, from the memory as it is then."""
        return plan._replace(reference=self.memory.plan(task, plan, 1, self.options.candidates).replay)

    @property
    def looks_ahead(self) -> bool:
        """Candidates are judged by the optimizer's step."""
        return True

    @property
    def fewest_looked_at(self) -> int | None:
        return self.options.replay_batch_size

    def edit_gradients(self, gradient: Tensor, batch: Batch) -> Tensor:
        candidates, n = batch.reference, self.options.replay_batch_size or batch.n_new
        if candidates is None or not len(candidates.y):  # a stage after the task's plan, or the stream's first step
            return gradient
        assert batch.update is not None
        if len(candidates.y) > n:
            chosen = self.interference(candidates, batch.update).topk(n).indices
            candidates = Samples(*(tensor[chosen] for tensor in candidates))
        return gradient + self.flat_gradient(candidates)

    @torch.no_grad()
    def interference(self, samples: Samples, update: Tensor) -> Tensor:
        """How much the ``update`` (P,) of the trained weights would raise every sample's loss, (n,)."""
        trained = self.model.trained()
        changes = update.split([parameter.numel() for parameter in trained.values()])
        moved = {name: p + change.view_as(p) for (name, p), change in zip(trained.items(), changes, strict=True)}
        with self.model.in_evaluation_mode():
            now = self.cross_entropy(self.model(samples.x), samples)
            then = self.cross_entropy(self.model.with_weights(moved, samples.x)[1], samples)
        return then - now

    def end_task(self, task: Task) -> None:
        self.memory.end_task()

    def notes(self) -> list[str]:
        return self._notes
