"""O-LoRA: a fresh low-rank adapter a task, orthogonal to those of earlier tasks (Wang et al. 2023, arXiv:2310.14152).

The rows of A_i span what the update of task i looks at in its input. Those of a new A are held orthogonal to the earlier ones:

    y = W x + b + (α / r) · Σ_{i ≤ t} B_i A_i x        A_t, B_t and the head are trained
    L = CE(new) + λ Σ over adapted layers Σ_{i < t} p(A_i A_tᵀ)        from the second task on; in the first, plain LoRA

``form`` says what p makes of the r × r entries of a product:

* ``absolute``  p(O) = Σ |O_jk|, the authors' code (cmnfriend/O-LoRA), for which their λ = 0.5 is;
* ``squared``   p(O) = Σ O_jk², the paper's equation.

Either way it is a sum and no mean, over layers too: λ belongs to a rank, a width, a number of layers and of tasks, and is to be
tuned again with them. It counts the length of a row as well as its direction, so that a small A_t satisfies it. The code's second
penalty, λ₂ on the norms of A_t and B_t, is 0 in all its scripts; here that is ``strategy.plus=[l2]``.

Finished updates are merged, as in :mod:`clbench.strategies.inc_lora`, and the A_i are kept beside them: T · r rows a layer, which
are all there from the start, those of tasks to come as zeros, which add nothing.

Reported after every task: ``adapter_parameters``; from the second on ``overlap``, the mean |cosine| between a row of A_t and one
of an earlier A_i of the same layer.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from clbench.learning.base import Batch, Measurement, Needs, Outputs, buffer_name
from clbench.models.continual import ContinualModel
from clbench.options import option
from clbench.registry import STRATEGIES
from clbench.scenarios.scenario import Scenario
from clbench.scenarios.task import Task
from clbench.strategies.inc_lora import IncLoRA
from clbench.strategies.lora import LoRAConfig


@dataclass
class OLoRAConfig(LoRAConfig):
    """Options of ``strategy=o_lora``."""

    lam: float = option(help="weight λ of the penalty on A_i A_tᵀ", at_least=0)
    form: str = option(
        help="of the entries of A_i A_tᵀ the absolute values are summed, or the squares",
        choices=("absolute", "squared"),
    )


@STRATEGIES.register("o_lora")
class OLoRA(IncLoRA):
    """A fresh adapter a task, whose A is held orthogonal to those of earlier tasks."""

    config = OLoRAConfig
    needs = Needs(transformer=True, weights_only=True, traits=frozenset({"redraws weights", "acts from second task"}))
    options: OLoRAConfig
    lam: Tensor

    def __init__(self, config: OLoRAConfig, model: ContinualModel, scenario: Scenario) -> None:
        super().__init__(config, model, scenario)
        for name, adapter in self.adapters().items():
            rank, n_in = adapter.A.shape
            self.register_buffer(buffer_name("earlier", name), torch.zeros(scenario.n_tasks * rank, n_in))

    def penalty(self, batch: Batch, outputs: Outputs) -> Tensor | None:
        if self.tasks_learned == 0:
            return None
        products = [self._earlier(name) @ adapter.A.T for name, adapter in self.adapters().items()]
        if self.options.form == "squared":
            return self.lam * torch.stack([product.square().sum() for product in products]).sum()
        return self.lam * torch.stack([product.abs().sum() for product in products]).sum()

    @torch.no_grad()
    def end_task(self, task: Task) -> None:
        """Keep the task's A, then merge its updates."""
        for name, adapter in self.adapters().items():
            rank = len(adapter.A)
            self._earlier(name)[task.index * rank : (task.index + 1) * rank] = adapter.A
        super().end_task(task)

    @torch.no_grad()
    def measurements(self) -> list[Measurement]:
        """Also how far the task's directions are from orthogonal to the earlier ones."""
        found = super().measurements()
        if self.tasks_learned < 2:
            return found
        cosines = []
        for name, adapter in self.adapters().items():
            before = self._earlier(name)[: (self.tasks_learned - 1) * len(adapter.A)]
            cosines.append((F.normalize(before) @ F.normalize(adapter.A).T).abs().mean())
        return [*found, Measurement("overlap", "", float(torch.stack(cosines).mean()))]

    def _earlier(self, adapter: str) -> Tensor:
        """(T r, n_in): the A_i of tasks that are over, one below the other, then zeros."""
        return self.get_buffer(buffer_name("earlier", adapter))
