"""MAS: memory aware synapses (Aljundi et al. 2018, arXiv:1711.09601).

A weight is important by how much the network's outputs z change with it, whatever the labels are. At the end of a task, over its
samples, in evaluation mode:

    Ω_t = mean over x of | ∂ ‖z(x)‖² / ∂θ |          of every sample, then the mean
    Ω   ← Ω + Ω_t                                     accumulate=sum, the paper
    Ω   ← α Ω_t + (1 − α) Ω                           accumulate=average

    penalty  λ Σ Ω (θ − θ*)²

z are the logits that the sample may see. Differences to other code: Avalanche takes the mean over a batch before the absolute
value, which lets samples cancel; FACIL the norm without its square, of the backbone's weights alone; both in training mode.

Stores two numbers per trained weight.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from clbench.config import StrategyConfig
from clbench.learning.base import Needs
from clbench.learning.parts.importance import ImportancePenalty
from clbench.learning.parts.sample_gradients import gradients_of_each, samples_at_once
from clbench.options import option
from clbench.registry import STRATEGIES
from clbench.scenarios.scenario import Samples
from clbench.scenarios.task import Task


@dataclass
class MASConfig(StrategyConfig):
    """Options of ``strategy=mas``."""

    lam: float = option(help="weight λ of the penalty", at_least=0)
    accumulate: str = option(help="how the tasks' importances are put together", choices=("sum", "average"))
    alpha: float = option(help="accumulate=average: weight α of the last task", at_least=0, at_most=1)
    samples: int | None = option(None, help="training samples of a task that are looked at; null: all", at_least=1)


@STRATEGIES.register("mas")
class MAS(ImportancePenalty):
    """Weights are held by how sensitive the outputs are to them."""

    config = MASConfig
    needs = Needs(traits=frozenset({"reads weights", "remembers weights", "reads logits"}))
    options: MASConfig
    lam: Tensor
    alpha: Tensor

    @property
    def strength(self) -> Tensor:
        return self.lam

    @torch.no_grad()
    def end_task(self, task: Task) -> None:
        of_task = self.sensitivity(task)
        if self.options.accumulate == "average" and task.index > 0:
            self.importance.lerp_(of_task, self.alpha)
        else:
            self.importance.add_(of_task)
        self.anchor.copy_(self.flat_parameters())

    def sensitivity(self, task: Task) -> Tensor:
        """Ω_t (P,)."""

        def squared_norm(logits: Tensor, sample: Samples) -> Tensor:
            visible = self.model.answer.visible(sample.task)
            return (logits if visible is None else torch.where(visible, logits, 0.0)).square().sum()

        order = torch.randperm(len(task.ids), generator=task.torch_generator("sensitivity"))
        ids, total = task.ids[order][: self.options.samples], torch.zeros_like(self.anchor)
        for samples in task.batches(ids, samples_at_once(self.model.trained())):
            gradients = gradients_of_each(self.model, squared_norm, samples)
            total += torch.cat([g.abs().sum(0).reshape(-1) for g in gradients.values()])
        return total / len(ids)
