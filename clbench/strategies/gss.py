"""GSS: gradient based sample selection (Aljundi et al. 2019, arXiv:1903.08671), the greedy algorithm.

Of every sample in the memory a score C ≥ 0 is kept: how like its gradient was to gradients in the memory when it came. Every new
sample is trained on together with a random draw from the memory, and then offered to it. g(x) is the gradient of the sample's own
loss, and X are n random samples of the memory:

    c = max over x' in X of cos( g(x), g(x') ) + 1

While there is room, the sample is stored with its c. Once the memory is full, a sample with c < 1, whose gradient is at an obtuse
angle to all that it was compared with, may replace one slot i, which is drawn with probability C_i / Σ_j C_j:

    with probability C_i / (C_i + c)   slot i ← the sample,  C_i ← c

The first samples have nothing to be compared with; they get c = 0.1, as in the authors' code. Gradients are those of the network
after the step, in evaluation mode. A sample is offered when it is seen first, not once per epoch. Slots that are empty are never
drawn from (an implementation of others replays them as black images of class 0).

What is stored depends on the network, so that a plan names slots, whose ids are asked for at the step. Stores M ids and M scores.
A step computes gradients of single samples, for all new ones and the n of the memory.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from clbench.config import StrategyConfig
from clbench.learning.base import Batch, Needs, Outputs, Plan, Strategy
from clbench.learning.parts.memory import EMPTY, check_memory_size, notes_of_room, places_offered
from clbench.learning.parts.sample_gradients import gradients_of_each
from clbench.models.continual import ContinualModel
from clbench.options import option
from clbench.registry import STRATEGIES
from clbench.scenarios.scenario import Samples, Scenario
from clbench.scenarios.task import Task

WITHOUT_COMPARISON = 0.1
"""The score of samples that come while the memory is empty."""


@dataclass
class GSSConfig(StrategyConfig):
    """Options of ``strategy=gss``."""

    memory_size: int = option(help="samples in the memory, over all classes", at_least=1)
    replay_batch_size: int | None = option(
        None, help="replayed samples per step; null: as many as new ones", at_least=1
    )
    compared: int = option(help="random samples n of the memory that new ones are compared with", at_least=1)


@STRATEGIES.register("gss")
class GSS(Strategy):
    """Replay from a memory whose gradients point in many directions."""

    config = GSSConfig
    needs = Needs(memory=True, boundaries=False, traits=frozenset({"looks at stored samples"}))
    options: GSSConfig
    ids: Tensor
    scores: Tensor
    n_seen: Tensor

    def __init__(self, config: GSSConfig, model: ContinualModel, scenario: Scenario) -> None:
        super().__init__(config, model, scenario)
        check_memory_size(config.memory_size, scenario)
        self._notes = notes_of_room(config.memory_size, scenario)
        # One slot more than the memory has: what is not stored is written there.
        self.register_buffer("ids", torch.full((config.memory_size + 1,), EMPTY))
        self.register_buffer("scores", torch.zeros(config.memory_size + 1))
        self.register_buffer("n_seen", torch.zeros((), dtype=torch.int64))
        self._n_seen_after = 0  # the task; made by plan, and again when a run resumes

    def plan(self, task: Task, plan: Plan) -> Plan:
        """Slots to replay and to compare with; of new samples that come first, their slots while there is room, and draws."""
        rng, size = task.numpy_generator("replay"), self.options.memory_size
        n_seen = int(self.n_seen)
        replayed, compared, offered, room, draws = [], [], [], [], []
        for new, first in zip(plan.new, places_offered(plan.new, task.ids), strict=True):
            filled = min(n_seen, size)
            n_replayed = min(self.options.replay_batch_size or len(new), filled)
            replayed.append(torch.from_numpy(rng.permutation(filled)[:n_replayed]))
            n_compared = min(self.options.compared, filled) if first else 0
            compared.append(torch.from_numpy(rng.permutation(filled)[:n_compared]))
            offered.append(torch.tensor(first, dtype=torch.int64))
            room.append((n_seen + torch.arange(len(first))).clamp(max=size))
            draws.append(torch.from_numpy(rng.random((len(first), 2), "float32")))
            n_seen += len(first)
        self._n_seen_after = n_seen
        plan = plan.with_columns(**{"gss.offered": offered, "gss.room": room, "gss.draws": draws})
        return plan._replace(replay_slots=replayed, reference_slots=compared)

    def recall(self, slots: Tensor) -> Tensor:
        return self.ids[slots]

    def data_loss(self, batch: Batch, outputs: Outputs) -> dict[str, Tensor]:
        losses = self.cross_entropy(outputs.logits, batch.samples)
        terms = {"new": losses[: batch.n_new].sum() / len(losses)}
        if len(losses) > batch.n_new:
            terms["replay"] = losses[batch.n_new :].sum() / len(losses)
        return terms

    def after_step(self, step: int, batch: Batch) -> None:
        """Offer the new samples that are seen first to the memory, one after another."""
        places, room, draws = (batch.columns[f"gss.{name}"] for name in ("offered", "room", "draws"))
        if not len(places):
            return
        samples, scores = batch.ids[places], self._scores(batch, places)
        size = self.options.memory_size
        for one in (slice(place, place + 1) for place in range(len(places))):
            total = self.scores[:size].cumsum(0)
            slot = (total < draws[one, 0] * total[-1:]).sum(0, keepdim=True).clamp(max=size - 1)
            accepts = draws[one, 1] * (self.scores[slot] + scores[one]) < self.scores[slot]
            slot = torch.where((scores[one] < 1) & accepts, slot, size)
            slot = torch.where(room[one] < size, room[one], slot)
            self.ids[slot], self.scores[slot] = samples[one], scores[one]

    def _scores(self, batch: Batch, places: Tensor) -> Tensor:
        """c (n,) of the new samples in some ``places`` (n,) of the batch."""
        assert batch.reference is not None
        if not len(batch.reference.y):
            return self.scores.new_full((len(places),), WITHOUT_COMPARISON)
        new = Samples(*(tensor[places] for tensor in batch.samples))
        ours, theirs = (F.normalize(self._gradients(samples), dim=1) for samples in (new, batch.reference))
        return ((ours @ theirs.T).amax(1) + 1).to(self.scores)

    def _gradients(self, samples: Samples) -> Tensor:
        """The gradient (n, P) of every sample's own cross-entropy, in evaluation mode."""
        with self.model.in_evaluation_mode():
            gradients = gradients_of_each(self.model, lambda z, sample: self.cross_entropy(z, sample).mean(), samples)
        return torch.cat([g.reshape(len(samples.y), -1) for g in gradients.values()], 1)

    def end_task(self, task: Task) -> None:
        self.n_seen.fill_(self._n_seen_after)

    def notes(self) -> list[str]:
        return self._notes
