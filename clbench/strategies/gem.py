"""GEM: gradient episodic memory (Lopez-Paz & Ranzato 2017, arXiv:1706.08840).

The memory holds m samples of every earlier task t. With g the gradient of the new samples' loss and the rows of G the
gradients g_t of the loss on each task's memory, the step taken is the g̃ closest to g that raises no memory's loss:

    min ½ ‖g̃ − g‖²   subject to   ⟨g̃, g_t⟩ ≥ 0 for all t

solved in its dual  min_v ½ vᵀ(GGᵀ + εI)v + (Gg)ᵀv,  v ≥ γ,  by  g̃ = Gᵀv + g.  The margin γ > 0 pushes g̃ further than the
constraint asks, which favours backward transfer. Where no constraint is violated g̃ = g (so γ acts only beside a violation,
as in the authors' code). With ε the constraints hold up to −ε v_t; the authors' ε = 1e-3, made to keep the problem well
posed, is felt where memory gradients are small (‖g_t‖² near ε): a smaller ``ridge`` then protects more than theirs does.

Stores memory_size / (number of tasks) sample ids per task, or all of a smaller task, drawn at random at the task's end.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from clbench.config import StrategyConfig
from clbench.learning.base import Batch, Needs, Plan, Strategy
from clbench.learning.parts.memory import TaskMemory
from clbench.models.continual import ContinualModel
from clbench.options import option
from clbench.registry import STRATEGIES
from clbench.scenarios.scenario import Samples, Scenario
from clbench.scenarios.task import Task

COLUMNS_AT_ONCE = 2**15
"""Parameters whose memory gradients are turned to double precision at a time: about what a processor caches."""


@dataclass
class GEMConfig(StrategyConfig):
    """Options of ``strategy=gem``."""

    memory_size: int = option(help="samples in the memory, shared equally by all tasks of the stream", at_least=1)
    gamma: float = option(help="margin γ of the dual variables ('memory strength')", at_least=0)
    ridge: float = option(help="ε added to the diagonal of the memory gradients' Gram matrix", above=0)


@STRATEGIES.register("gem")
class GEM(Strategy):
    """Projects the gradient so that no earlier task's memory loss rises."""

    config = GEMConfig
    needs = Needs(memory=True, cost_grows=True, traits=frozenset({"looks at stored samples", "reads logits"}))
    options: GEMConfig
    gamma: Tensor
    ridge: Tensor

    def __init__(self, config: GEMConfig, model: ContinualModel, scenario: Scenario) -> None:
        super().__init__(config, model, scenario)
        self.memory = TaskMemory(config.memory_size, scenario)

    def plan(self, task: Task, plan: Plan) -> Plan:
        """Every step looks at the whole memory."""
        if task.index == 0:
            return plan
        stored = self.memory.stored(task.index)
        everything = torch.cat(stored)
        sizes = tuple(len(ids) for ids in stored)  # tasks may have less than their share
        return plan._replace(reference=[everything] * len(plan.new), reference_sizes=sizes)

    def edit_gradients(self, gradient: Tensor, batch: Batch) -> Tensor:
        if batch.reference is None:
            return gradient
        memories = zip(*(part.split(list(batch.reference_sizes)) for part in batch.reference), strict=True)
        G = torch.stack([self.flat_gradient(Samples(*memory)) for memory in memories])
        return project(gradient, G, self.gamma, self.ridge)

    @property
    def fewest_looked_at(self) -> int:
        return min(self.memory.sizes)

    def end_task(self, task: Task) -> None:
        self.memory.store(task)

    def notes(self) -> list[str]:
        return self.memory.notes()


def project(gradient: Tensor, G: Tensor, gamma: Tensor | float, ridge: Tensor | float) -> Tensor:
    """g̃ of the module docstring for a gradient (P,) and memory gradients (k, P)."""
    products = G @ gradient
    # In double precision: rounding in a single-precision Gram matrix can outweigh ε.
    parts = (part.double() for part in G.split(COLUMNS_AT_ONCE, dim=1))
    gram = sum((part @ part.T for part in parts), ridge * torch.eye(len(G), dtype=torch.float64, device=G.device))
    # Substituting v = γ + u turns the bound v ≥ γ into u ≥ 0.
    margin = torch.as_tensor(gamma, dtype=torch.float64, device=G.device).expand(len(G))
    v = margin + nonnegative_minimum(gram, products.double() + gram @ margin)
    return torch.where((products < 0).any(), v.to(G.dtype) @ G + gradient, gradient)


def nonnegative_minimum(A: Tensor, b: Tensor, rounds: int = 25) -> Tensor:
    """argmin ½ uᵀAu + bᵀu over u ≥ 0, for a symmetric positive definite A (k, k), without reading a value on the host.

    Mehrotra's predictor-corrector interior-point method (SIAM J. Optimization 2, 1992) for the optimality conditions
    w = Au + b, u ≥ 0, w ≥ 0, u∘w = 0. A round is a Newton step, cut so that u and w stay positive; every round takes the same
    operations, and unlike those of pivoting methods the number of rounds hardly depends on k. Twenty-five leave a relative
    error below 1e-9 in all but the worst conditioned problems (1e-5 at a condition number of 1e15).
    """
    tiny = torch.finfo(A.dtype).tiny
    scale = A.diagonal().rsqrt()  # of the unknowns, so that A gets a unit diagonal and b entries up to 1
    A, b = A * scale * scale[:, None], b * scale
    size = b.abs().max().clamp(min=tiny)
    b = b / size
    uw = torch.ones(2, len(b), dtype=A.dtype, device=A.device)
    for _ in range(rounds):
        u, w = uw
        gradient = A @ u + b
        factor = torch.linalg.cholesky_ex(A + torch.diag_embed(w / u)).L  # _ex: no look at whether it succeeded
        predictor = _newton_step(uw, gradient, factor, torch.zeros_like(b))
        gap = (u * w).mean()
        gap_ahead = (uw + _step_length(uw, predictor) * predictor).prod(dim=0).mean()
        corrector = gap * (gap_ahead / gap) ** 3 - predictor[0] * predictor[1]
        step = _newton_step(uw, gradient, factor, corrector / u)
        uw = uw + 0.995 * _step_length(uw, step) * step
    return uw[0] * scale * size


def _newton_step(uw: Tensor, gradient: Tensor, factor: Tensor, corrector: Tensor) -> Tensor:
    """Changes (2, k) of u and w that make w = Au + b, and u∘w = u · ``corrector`` to first order."""
    u, w = uw
    du = torch.cholesky_solve((corrector - gradient)[:, None], factor)[:, 0]
    return torch.stack([du, corrector - w - w / u * du])


def _step_length(uw: Tensor, step: Tensor) -> Tensor:
    """The largest part of ``step``, up to 1, that keeps ``uw`` non-negative."""
    return 1 / (-step / uw).max().clamp(min=1)
