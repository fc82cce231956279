"""CLS-ER: complementary learning systems with experience replay (Arani, Sarfraz & Zonooz 2022, arXiv:2201.12604).

Beside the trained network there are two that follow it, a plastic one p quickly, a stable one s slowly. The outputs on replayed
samples x' are held near those of whichever of the two is the more certain of the label y':

    L  = mean CE(z; new and replayed samples) + λ · mean (z(x') − z*(x'))²
    z* = z_s where softmax(z_s)[y'] > softmax(z_p)[y'], else z_p
    after a step, with probability r_k:  θ_k ← a θ_k + (1 − a) θ,  a = min(1 − 1/(n + 1), α_k),   k in {p, s}

n counts all steps of the stream. The mean of squares is over samples and the outputs that are seen, with
``scenario.logit_scope=all``, as in the authors' code, over all of the stream. The stable network predicts
(``evaluated=stable``). Nothing is replayed while the memory is empty.

As in the authors' code both copies are in training mode where they answer for replayed samples: BatchNorm normalises with these.
Of the weights alone there are averages. When the stable network predicts, BatchNorm's running statistics are those of the trained
network; the authors' copies have gathered theirs from replayed batches alone. The rows of a task's new classes enter both copies
as they are drawn. A sample is offered to the reservoir once, and not once per epoch.

Stores M sample ids and two copies of the trained weights. A step takes two more forward passes of the replayed samples.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from clbench.config import StrategyConfig
from clbench.learning.base import Batch, Needs, Outputs, Plan, Strategy
from clbench.learning.parts.memory import check_memory_size, notes_of_room
from clbench.learning.parts.shadow_weights import ShadowWeights
from clbench.learning.parts.slot_memory import SlotMemory
from clbench.models.continual import ContinualModel
from clbench.options import option
from clbench.registry import STRATEGIES
from clbench.scenarios.scenario import Samples, Scenario
from clbench.scenarios.task import Task


@dataclass
class CLSERConfig(StrategyConfig):
    """Options of ``strategy=cls_er``."""

    memory_size: int = option(help="samples in the memory, over all classes", at_least=1)
    replay_batch_size: int | None = option(
        None, help="replayed samples per step; null: as many as new ones", at_least=1
    )
    lam: float = option(help="weight λ of the distance to the copies' outputs", at_least=0)
    plastic_rate: float = option(
        help="probability r with which the plastic copy moves after a step", at_least=0, at_most=1
    )
    stable_rate: float = option(help="the same of the stable copy", at_least=0, at_most=1)
    plastic_alpha: float = option(help="α: largest weight of the plastic copy's old value", at_least=0, at_most=1)
    stable_alpha: float = option(help="the same of the stable copy", at_least=0, at_most=1)
    evaluated: str = option(help="the network that predicts", choices=("stable", "plastic", "trained"))


@STRATEGIES.register("cls_er")
class CLSER(Strategy):
    """Replay towards two slower copies of the network."""

    config = CLSERConfig
    needs = Needs(memory=True, boundaries=False, traits=frozenset({"reads weights", "remembers weights"}))
    options: CLSERConfig
    lam: Tensor
    plastic_rate: Tensor
    stable_rate: Tensor
    plastic_alpha: Tensor
    stable_alpha: Tensor
    n_steps: Tensor

    def __init__(self, config: CLSERConfig, model: ContinualModel, scenario: Scenario) -> None:
        super().__init__(config, model, scenario)
        check_memory_size(config.memory_size, scenario)
        self.flat_parameters()  # raises where nothing is trained that could be followed
        self.memory = SlotMemory(config.memory_size, self.name)
        self._notes = notes_of_room(config.memory_size, scenario)
        self.plastic, self.stable = ShadowWeights(model), ShadowWeights(model)
        self.register_buffer("n_steps", torch.zeros((), dtype=torch.int64))

    def weights_renewed(self, renewed: Tensor) -> None:
        """Let both copies begin from the same values: the rows of a task's classes."""
        self.plastic.renew(self.model, renewed)
        self.stable.renew(self.model, renewed)

    def plan(self, task: Task, plan: Plan) -> Plan:
        """Replay from the reservoir; and the draws by which the copies move or stay."""
        rng = task.numpy_generator("copies")
        draws = [torch.from_numpy(rng.random(2, "float32")) for _ in plan.new]
        plan = self.memory.plan(task, plan, 1, self.options.replay_batch_size)
        return plan.with_columns(**{"cls_er.draws": draws})

    def data_loss(self, batch: Batch, outputs: Outputs) -> dict[str, Tensor]:
        losses, n = self.cross_entropy(outputs.logits, batch.samples), batch.n_new
        terms = {"new": losses[:n].sum() / len(losses)}
        if len(losses) > n:
            replayed = Samples(*(tensor[n:] for tensor in batch.samples))
            terms["replay"] = losses[n:].sum() / len(losses)
            terms["consistency"] = self.lam * self._distance(outputs.logits[n:], replayed)
        return terms

    @property
    def fewest_looked_at(self) -> int | None:
        return self.options.replay_batch_size

    def _distance(self, logits: Tensor, replayed: Samples) -> Tensor:
        """The mean square (scalar) of the logits' (R, n_classes) difference to those of the better copy."""
        squares = (logits - self._more_certain(replayed)).square()
        visible = self.model.answer.visible(replayed.task)
        if visible is None:
            return squares.mean()
        seen = visible.expand_as(squares)
        return (squares * seen).sum() / seen.sum()

    @torch.no_grad()
    def _more_certain(self, samples: Samples) -> Tensor:
        """The logits (R, n_classes) of the copy that gives each sample's label the higher probability."""
        plastic, stable = (copy.logits(self.model, samples.x) for copy in (self.plastic, self.stable))
        stable_is_better = self.cross_entropy(stable, samples) < self.cross_entropy(plastic, samples)
        return torch.where(stable_is_better[:, None], stable, plastic)

    def after_step(self, step: int, batch: Batch) -> None:
        """Move the copies, each where its draw says so."""
        self.n_steps.add_(1)
        draws, most = batch.columns["cls_er.draws"], 1 - 1 / (self.n_steps + 1)
        for copy, alpha, rate, draw in (
            (self.plastic, self.plastic_alpha, self.plastic_rate, draws[0]),
            (self.stable, self.stable_alpha, self.stable_rate, draws[1]),
        ):
            copy.follow(self.model, torch.where(draw < rate, torch.minimum(alpha, most), 1.0))

    def end_task(self, task: Task) -> None:
        self.memory.end_task()

    def predict(self, x: Tensor, task: Tensor | None) -> Tensor:
        if self.options.evaluated == "trained":
            return super().predict(x, task)
        copy = self.stable if self.options.evaluated == "stable" else self.plastic
        return self.model.answer.restrict(copy.logits(self.model, x), task, predicting=True)

    def notes(self) -> list[str]:
        return self._notes
