"""CoPE: continual prototype evolution (De Lange & Tuytelaars 2021, arXiv:2009.00919).

The network embeds samples by a linear layer on its features, f(x) of norm 1 (d), and every class seen has a prototype p_c among
them. New samples and as many from a memory with equal shares for all classes make a batch B (n), B_c those of class c, whose
pseudo-prototypical proxy loss attracts to the prototype and to one another's embeddings, and repels the other classes::

    P(v, f | c) = e^{v·f / T} / (e^{v·f / T} + Σ_{k ≠ c} e^{p_k·f / T})

    L = − 1/n Σ_c Σ_{i ∈ B_c} [ log  mean over v ∈ {p_c} ∪ B_c∖i  of P(v, f_i | c)
                                + Σ_{j ∉ B_c} log ( 1 − ½ (P(f_i, f_j | c) + P(p_c, f_j | c)) ) ]

v is held constant in the first line. After the step, with the embeddings before it:

    p_c ← α p_c + (1 − α) mean of f over B_c,  divided by its norm

The class of the nearest prototype is predicted; the logits are f(x)·p_c / T. Classes not seen yet score less than all others. The
network's own head is not trained. Prototypes begin as random points with entries of one sign, as in the authors' code.

The authors sometimes train on a batch five times (CIFAR-100), which is not here. Where P comes near 1 their logarithm of 1 − P
becomes −∞; here 1 − P is computed as it is. Nobody has to tell of tasks.

Stores M sample ids, the prototypes, and one copy of the linear layer.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clbench.config import StrategyConfig
from clbench.learning.base import Batch, Needs, Outputs, Plan, Strategy
from clbench.learning.parts.memory import EMPTY
from clbench.learning.parts.replay_policy import ReplayPolicy
from clbench.models.continual import ContinualModel
from clbench.options import option
from clbench.registry import STRATEGIES
from clbench.scenarios.scenario import Scenario
from clbench.scenarios.task import Task

NOTHING = -1e4
"""log of a sum without terms: finite, so that its gradient is 0 and not NaN."""


@dataclass
class CoPEConfig(StrategyConfig):
    """Options of ``strategy=cope``."""

    memory_size: int = option(help="samples in the memory, shared equally by the classes seen", at_least=1)
    replay_batch_size: int | None = option(
        None, help="replayed samples per step; null: as many as new ones", at_least=1
    )
    embedding: int = option(help="dimensions d of the embedding", at_least=1)
    temperature: float = option(help="temperature T of the loss", above=0)
    momentum: float = option(help="share α of a prototype that stays in a step", at_least=0, at_most=1)


@STRATEGIES.register("cope")
class CoPE(Strategy):
    """Prototypes that follow the embeddings, and the nearest of them."""

    config = CoPEConfig
    needs = Needs(memory=True, boundaries=False, traits=frozenset({"trains no head"}))
    options: CoPEConfig
    temperature: Tensor
    momentum: Tensor
    memory: Tensor
    n_seen: Tensor
    prototypes: Tensor
    seen: Tensor
    weight_before: Tensor
    bias_before: Tensor

    def __init__(self, config: CoPEConfig, model: ContinualModel, scenario: Scenario) -> None:
        super().__init__(config, model, scenario)
        # Of every class seen as many, each a uniform draw of what has come of it (Vitter's reservoirs).
        self._policy = ReplayPolicy(config.memory_size, "class_balanced", "seen", "step", scenario)
        self.register_buffer("memory", torch.full((config.memory_size,), EMPTY))
        self.register_buffer("n_seen", torch.zeros(self._policy.counted, dtype=torch.int64))
        self._after_task: tuple[np.ndarray, np.ndarray] | None = None  # made by plan, and again on resuming
        C = model.head.out_features
        self.embedding = nn.Linear(model.head.in_features, config.embedding)
        self.register_buffer("prototypes", F.normalize(torch.rand(C, config.embedding)))
        self.register_buffer("seen", torch.zeros(C, dtype=torch.bool))
        # The layer as it was in the forward pass of a step, which after_step sees too late.
        self.register_buffer("weight_before", self.embedding.weight.detach().clone())
        self.register_buffer("bias_before", self.embedding.bias.detach().clone())

    @property
    def keeps_outputs(self) -> bool:
        """Prototypes move towards what the step has seen."""
        return True

    def plan(self, task: Task, plan: Plan) -> Plan:
        memory, n_seen = self.memory.cpu().numpy(), self.n_seen.cpu().numpy()
        replay, *after = self._policy.walk(task, plan.new, memory, n_seen, self.options.replay_batch_size)
        self._after_task = after[0], after[1]
        return plan._replace(replay=replay)

    def data_loss(self, batch: Batch, outputs: Outputs) -> dict[str, Tensor]:
        f, y, n = F.normalize(self.embedding(outputs.features)), batch.samples.y, batch.n_new
        seen = self.seen | self._is_class(y).any(0)
        losses = proxy_losses(f, y, self.prototypes.to(f), seen, self.temperature)
        # Gradients of 0 for the head: without any, optimizers leave it out alone, but not in a fleet.
        terms = {"new": losses[:n].sum() / len(y) + 0 * outputs.logits.sum()}
        if len(y) > n:
            terms["replay"] = losses[n:].sum() / len(y)
        return terms

    def after_step(self, step: int, batch: Batch) -> None:
        assert batch.outputs is not None
        f = F.normalize(F.linear(batch.outputs.features.to(self.weight_before), self.weight_before, self.bias_before))
        is_class = self._is_class(batch.samples.y)
        n = is_class.sum(0)[:, None]
        means = (is_class.to(f).T @ f) / n.clamp(min=1)
        moved = F.normalize(self.momentum * self.prototypes + (1 - self.momentum) * means)
        self.prototypes.copy_(torch.where(n > 0, moved, self.prototypes))
        self.seen.copy_(self.seen | is_class.any(0))
        self.weight_before.copy_(self.embedding.weight)
        self.bias_before.copy_(self.embedding.bias)

    def _is_class(self, y: Tensor) -> Tensor:
        """Boolean (n, C) of labels (n,)."""
        return y[:, None] == torch.arange(len(self.seen), device=y.device)

    def end_task(self, task: Task) -> None:
        assert self._after_task is not None
        for buffer, after in zip((self.memory, self.n_seen), self._after_task, strict=True):
            buffer.copy_(torch.from_numpy(after))

    def predict(self, x: Tensor, task: Tensor | None) -> Tensor:
        f = F.normalize(self.embedding(self.model.features(x)))
        scores = f @ self.prototypes.to(f).T / self.temperature
        scores = torch.where(self.seen, scores, scores.amin(1, keepdim=True) - 1)
        return self.model.answer.restrict(scores, task, predicting=True)

    def notes(self) -> list[str]:
        return self._policy.notes


def proxy_losses(f: Tensor, y: Tensor, prototypes: Tensor, seen: Tensor, temperature: Tensor | float) -> Tensor:
    """The bracket of the pseudo-prototypical proxy loss, times −1, for every sample i: (n,).

    Args:
        f: (n, d), embeddings of norm 1.
        y: (n,), labels.
        prototypes: (C, d), of norm 1.
        seen: boolean (C,), classes whose prototypes take part; those of y among them.
        temperature: T.
    """
    own, itself = y[:, None] == y, torch.eye(len(y), dtype=torch.bool, device=y.device)
    to_prototypes = f @ prototypes.T / temperature  # (n, C)
    others = seen & (y[:, None] != torch.arange(len(seen), device=y.device))  # (n, C): of i's class
    # (i, j): log Σ_{k ≠ c} e^{p_k·f_j / T} for the class c of i
    log_others = torch.where(others[:, None], to_prototypes, NOTHING).logsumexp(2)
    to_own_prototype = to_prototypes.T[y]  # (i, j): p_c·f_j / T
    to_others = F.logsigmoid(f @ f.detach().T / temperature - log_others.diagonal()[:, None])
    to_prototype = F.logsigmoid((to_own_prototype - log_others).diagonal())
    attracted = torch.cat([to_others.masked_fill(~own | itself, -torch.inf), to_prototype[:, None]], 1)
    attraction = attracted.logsumexp(1) - own.sum(1).to(f).log()
    # log(1 − P) = logsigmoid(−a) where P = sigmoid(a)
    strange = F.logsigmoid(log_others - f @ f.T / temperature), F.logsigmoid(log_others - to_own_prototype)
    repulsion = torch.where(own, 0.0, torch.logaddexp(*strange) - math.log(2)).sum(1)
    return -attraction - repulsion
