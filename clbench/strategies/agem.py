"""A-GEM: averaged gradient episodic memory (Chaudhry et al. 2019, arXiv:1812.00420).

With g the gradient of the new samples' loss and r the gradient of the loss on a random batch from the memory of all
earlier tasks:

    g̃ = g − (⟨g, r⟩ / ⟨r, r⟩) r   if ⟨g, r⟩ < 0,   else g

Stores memory_size / (number of tasks) sample ids per task, or all of a smaller task, drawn at random at the task's end. With
``store=ring``, the authors' code (facebookresearch/agem), every class of a task has a ring buffer with an equal share of that,
which is written while the task is learned: at its end it holds the samples that came last. It is not looked at before the next
task. Their buffers have slots of zeros where a class has fewer samples than its share; here they are left out.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from clbench.config import StrategyConfig
from clbench.learning.base import Batch, Needs, Plan, Strategy
from clbench.learning.parts.memory import TaskMemory, draw_uniform
from clbench.models.continual import ContinualModel
from clbench.options import option
from clbench.registry import STRATEGIES
from clbench.scenarios.scenario import Scenario
from clbench.scenarios.task import Task


@dataclass
class AGEMConfig(StrategyConfig):
    """Options of ``strategy=agem``."""

    memory_size: int = option(help="samples in the memory, shared equally by all tasks of the stream", at_least=1)
    reference_size: int = option(
        help="samples drawn from the memory at each step for the reference gradient", at_least=1
    )
    store: str = option(
        "random",
        help="what is kept of a task: a random draw, or of each of its classes the samples that came last",
        choices=("random", "ring"),
    )


@STRATEGIES.register("agem")
class AGEM(Strategy):
    """Projects the gradient so that the average memory loss does not rise."""

    config = AGEMConfig
    needs = Needs(memory=True, traits=frozenset({"looks at stored samples", "reads logits"}))
    options: AGEMConfig

    def __init__(self, config: AGEMConfig, model: ContinualModel, scenario: Scenario) -> None:
        super().__init__(config, model, scenario)
        self.memory = TaskMemory(config.memory_size, scenario, by_class=config.store == "ring")
        self._last_seen: Tensor | None = None  # made by plan, and again when a run resumes

    def plan(self, task: Task, plan: Plan) -> Plan:
        """Every step looks at a fresh draw from the memory."""
        if self.options.store == "ring":
            self._last_seen = self.memory.last_seen(task, plan.new)
        if task.index == 0:
            return plan
        rng = task.numpy_generator("reference")
        stored = torch.cat(self.memory.stored(task.index)).numpy()
        size = self.options.reference_size
        return plan._replace(reference=[torch.from_numpy(draw_uniform(stored, size, rng)) for _ in plan.new])

    def edit_gradients(self, gradient: Tensor, batch: Batch) -> Tensor:
        if batch.reference is None:
            return gradient
        return project(gradient, self.flat_gradient(batch.reference))

    @property
    def fewest_looked_at(self) -> int:
        return min(self.options.reference_size, self.memory.sizes[0])

    def end_task(self, task: Task) -> None:
        if self._last_seen is None:
            self.memory.store(task)
        else:
            self.memory.keep(task, self._last_seen)

    def notes(self) -> list[str]:
        return self.memory.notes()


def project(gradient: Tensor, reference: Tensor) -> Tensor:
    """g̃ of the module docstring, for gradients (P,)."""
    product = gradient @ reference
    smallest = torch.finfo(reference.dtype).tiny  # a zero reference gradient constrains nothing
    correction = product.clamp(max=0) / (reference @ reference).clamp(min=smallest)
    return gradient - correction * reference
