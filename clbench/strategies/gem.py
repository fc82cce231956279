"""GEM: gradient episodic memory (Lopez-Paz & Ranzato 2017, arXiv:1706.08840).

The memory holds m samples of every earlier task t. With g the gradient of the new samples' loss and the rows of G the
gradients g_t of the loss on each task's memory, the step taken is the g̃ closest to g that raises no memory's loss:

    min ½ ‖g̃ − g‖²   subject to   ⟨g̃, g_t⟩ ≥ 0 for all t

solved in its dual  min_v ½ vᵀ(GGᵀ + εI)v + (Gg)ᵀv,  v ≥ γ,  by  g̃ = Gᵀv + g.  The margin γ > 0 pushes g̃ further than the
constraint asks, which favours backward transfer. Where no constraint is violated g̃ = g (so γ acts only beside a violation,
as in the authors' code). ε = 1e-3 as there.

Stores memory_size / (number of tasks) sample ids per task, drawn at random at the task's end.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from clbench.config import StrategyConfig, option
from clbench.models.continual import ContinualModel
from clbench.registry import STRATEGIES
from clbench.scenarios.scenario import Samples, Scenario
from clbench.scenarios.task import Task
from clbench.strategies.base import Batch, Needs, Plan, Strategy
from clbench.strategies.memory import TaskMemory

RIDGE = 1e-3


@dataclass
class GEMConfig(StrategyConfig):
    """Options of ``strategy=gem``."""

    memory_size: int = option(help="samples in the memory, shared equally by all tasks of the stream", at_least=1)
    gamma: float = option(help="margin γ of the dual variables ('memory strength')", at_least=0)


@STRATEGIES.register("gem")
class GEM(Strategy):
    """Projects the gradient so that no earlier task's memory loss rises."""

    config = GEMConfig
    needs = Needs(memory=True, cost_grows=True)
    options: GEMConfig
    gamma: Tensor

    def __init__(self, config: GEMConfig, model: ContinualModel, scenario: Scenario) -> None:
        super().__init__(config, model, scenario)
        self.memory = TaskMemory(config.memory_size, scenario)

    def plan(self, task: Task, plan: Plan) -> Plan:
        """Every step looks at the whole memory."""
        if task.index == 0:
            return plan
        everything = self.memory.ids[: task.index].flatten().cpu()
        return plan._replace(reference=[everything] * len(plan.new))

    def edit_gradients(self, gradient: Tensor, batch: Batch) -> Tensor:
        if batch.reference is None:
            return gradient
        per_task = len(batch.reference.y) // self.tasks_learned
        memories = zip(*(part.split(per_task) for part in batch.reference), strict=True)
        G = torch.stack([self.flat_gradient(Samples(*memory)) for memory in memories])
        return project(gradient, G, self.gamma)

    def end_task(self, task: Task) -> None:
        self.memory.store(task)


def project(gradient: Tensor, G: Tensor, gamma: Tensor | float) -> Tensor:
    """g̃ of the module docstring for a gradient (P,) and memory gradients (k, P)."""
    products = G @ gradient
    gram = (G @ G.T).double() + RIDGE * torch.eye(len(G), dtype=torch.float64, device=G.device)
    # Substituting v = γ + u turns the bound v ≥ γ into u ≥ 0.
    margin = torch.as_tensor(gamma, dtype=torch.float64, device=G.device).expand(len(G))
    u = nonnegative_minimum(gram, products.double() + gram @ margin)
    projected = ((u + margin).to(G.dtype) @ G) + gradient
    return torch.where((products < 0).any(), projected, gradient)


def nonnegative_minimum(A: Tensor, b: Tensor) -> Tensor:
    """argmin ½ uᵀAu + bᵀu over u ≥ 0, for a symmetric positive definite A (k, k), without reading a value on the host.

    Block principal pivoting (Portugal, Júdice & Vicente 1994; Kim & Park 2011): guess which u are positive, solve for
    them, and exchange every index that violates u ≥ 0 or w = Au + b ≥ 0. If the number of violations stops falling for
    three rounds, only the last violating index is exchanged (Murty's rule), which cannot cycle. The number of rounds is
    fixed; once nothing is violated, a round changes nothing.
    """
    k = len(A)
    eye = torch.eye(k, dtype=A.dtype, device=A.device)
    tolerance = 1e-10 * (1 + b.abs().max())
    index = torch.arange(k, device=A.device)
    positive = torch.zeros(k, dtype=torch.bool, device=A.device)
    fewest = torch.full((), k + 1, device=A.device)
    patience = torch.full((), 3, device=A.device)
    u = torch.zeros_like(b)
    for _ in range(5 * k + 5):
        both = positive[:, None] & positive[None, :]
        u = torch.linalg.solve_ex(torch.where(both, A, eye), torch.where(positive, -b, 0.0)).result  # unlike solve, does not wait for a GPU
        w = torch.where(positive, 0.0, A @ u + b)
        violated = torch.where(positive, u < 0, w < -tolerance)
        n_violated = violated.sum()
        better = n_violated < fewest
        patience = torch.where(better, 3, patience - 1)
        fewest = torch.minimum(fewest, n_violated)
        last = index == torch.where(violated, index, -1).max()
        exchange = torch.where(patience >= 0, violated, last & violated)
        positive = positive ^ exchange
    return u.clamp(min=0)
