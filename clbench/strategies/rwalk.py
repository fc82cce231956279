"""RWalk: Riemannian walk (Chaudhry et al. 2018, arXiv:1801.10112), which puts EWC and the path integral of SI together.

Over windows of Δt steps, with g the gradient of the loss on samples and Δθ the way that a weight goes in the window,

    s_t ← s_t + max(−Σ g · step, 0) / (½ F Δθ² + ξ)      the loss's decrease per distance in the space of predictions
    F   ← α · mean of g² over the window + (1 − α) F

and at the end of a task, with both scaled to [0, 1] over all weights,

    s   ← s_t in the first task, ½ (s + s_t) later
    Ω   ← (F − min F) / (max F − min F)  +  (s − min s) / (max s − min s),   θ* ← θ

    penalty  λ Σ Ω (θ − θ*)²

The F of a window's denominator is that of the window before it, i.e. at its start; in the first window of all there is none
yet, and its own takes the place. F goes on from task to task. Differences to other code: the authors' (facebookresearch/agem) has
no ½, starts with F = 0, adds ½ (s + s_t) to s instead of replacing it, and drops the steps after a task's last whole window.
Avalanche cuts negative contributions off once a task, after windows have cancelled each other. FACIL estimates F once, at the
task's end, and integrates the gradient of a loss over all heads while another one is trained.

Stores seven numbers per trained weight.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from clbench.config import StrategyConfig
from clbench.learning.base import Batch, Needs
from clbench.learning.parts.fisher import RunningFisher, scaled
from clbench.learning.parts.importance import ImportancePenalty
from clbench.models.continual import ContinualModel
from clbench.options import option
from clbench.registry import STRATEGIES
from clbench.scenarios.scenario import Scenario
from clbench.scenarios.task import Task


@dataclass
class RWalkConfig(StrategyConfig):
    """Options of ``strategy=rwalk``."""

    lam: float = option(help="weight λ of the penalty", at_least=0)
    alpha: float = option(help="weight α of the last window in the Fisher information", at_least=0, at_most=1)
    window: int = option(help="steps Δt of a window", at_least=1)
    xi: float = option(help="ξ, which bounds the score of weights that hardly moved", above=0)


@STRATEGIES.register("rwalk")
class RWalk(ImportancePenalty):
    """Weights are held by the Fisher information, and by what they have contributed per distance of predictions."""

    config = RWalkConfig
    needs = Needs(traits=frozenset({"reads weights", "remembers weights", "reads logits"}))
    options: RWalkConfig
    lam: Tensor
    alpha: Tensor
    xi: Tensor
    score: Tensor
    of_task: Tensor
    path: Tensor
    start: Tensor

    def __init__(self, config: RWalkConfig, model: ContinualModel, scenario: Scenario) -> None:
        super().__init__(config, model, scenario)
        self.fisher = RunningFisher(self.anchor)
        for name in ("score", "of_task", "path"):
            self.register_buffer(name, torch.zeros_like(self.anchor))
        self.register_buffer("start", self.anchor.clone())  # of the window

    @property
    def strength(self) -> Tensor:
        return self.lam

    @property
    def follows_gradient(self) -> bool:
        """It is squared, and integrated along the way."""
        return True

    @torch.no_grad()
    def begin_task(self, task: Task) -> None:
        super().begin_task(task)
        self.start.copy_(self.before)

    @torch.no_grad()
    def weights_renewed(self, renewed: Tensor) -> None:
        """Let go of them."""
        super().weights_renewed(renewed)
        self.fisher.let_go(renewed)
        for buffer in (self.score, self.of_task, self.path):
            buffer.copy_(torch.where(renewed, 0.0, buffer))
        self.start.copy_(torch.where(renewed, self.flat_parameters(), self.start))

    def after_step(self, step: int, batch: Batch) -> None:
        theta, gradient = self.flat_parameters(), self.data_gradient(batch)
        self.path.sub_(gradient * (theta - self.before))
        self.before.copy_(theta)
        self.fisher.look_at(gradient)
        if step % self.options.window == 0:
            self._close_window(is_first=self.tasks_learned == 0 and step == self.options.window)

    def _close_window(self, is_first: bool) -> None:
        theta = self.flat_parameters()
        if is_first:
            self.fisher.value.copy_(self.fisher.summed / self.fisher.n_summed)
        distance = 0.5 * self.fisher.value * (theta - self.start).square()
        self.of_task.add_(self.path.clamp(min=0) / (distance + self.xi))
        self.fisher.update(self.alpha)
        self.path.zero_()
        self.start.copy_(theta)

    @torch.no_grad()
    def end_task(self, task: Task) -> None:
        if self.fisher.n_summed:  # steps after the last whole window
            self._close_window(is_first=self.tasks_learned == 0 and not self.fisher.value.any())
        self.score.copy_(self.of_task if self.tasks_learned == 0 else (self.score + self.of_task) / 2)
        self.importance.copy_(scaled(self.fisher.value, "min_max") + scaled(self.score, "min_max"))
        self.anchor.copy_(self.flat_parameters())
        self.of_task.zero_()
