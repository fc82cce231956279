"""Shrink and perturb: pull weights to 0 and add noise, again and again (Ash & Adams 2020, arXiv:1910.08475).

    θ ← (1 − p) θ + σ ε

``every=task`` does so at the start of every task but the first, as the inventors do when new data come; ``every=step`` after each
step of the optimizer, as in work on loss of plasticity. All trained weights and biases take part. ε is

* ``noise=initialiser``: a newly initialised network (Kumar et al. 2023, arXiv:2308.11958);
* ``noise=gaussian``: N(0, 1) for each weight, whatever the layer (Dohare et al. 2024, Nature 632). They shrink by weight decay:
  p = 0 and ``trainer.weight_decay``.

The newly initialised network is drawn from the initial one: every weight is an independent pick among the initial values of its
own tensor, with replacement. That is the initialiser's distribution as far as one draw of it tells (a bootstrap), for any network
and within the training loop. Pretrained weights count as initial ones. Weights that are drawn only when their task begins
(prompts) are among the initial values from then on; until then they count as 0.

Stores one copy of the initial weights with ``noise=initialiser``, else nothing. The optimizer's state stays as it is.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from clbench.config import StrategyConfig
from clbench.learning.base import Batch, Needs, Strategy
from clbench.models.continual import ContinualModel
from clbench.options import option
from clbench.registry import STRATEGIES
from clbench.scenarios.scenario import Scenario
from clbench.scenarios.task import Task
from clbench.seeding import hashed_normal, hashed_uniform, stream_seed


@dataclass
class ShrinkPerturbConfig(StrategyConfig):
    """Options of ``strategy=shrink_perturb``."""

    shrink: float = option(help="share p of every weight that is taken off", at_least=0, at_most=1)
    sigma: float = option(help="factor σ of the noise", at_least=0)
    every: str = option(
        help="when: after each step, or at the start of each task but the first", choices=("step", "task")
    )
    noise: str = option(
        help="what is added: newly initialised weights, or normally distributed numbers of variance 1",
        choices=("initialiser", "gaussian"),
    )


@STRATEGIES.register("shrink_perturb")
class ShrinkPerturb(Strategy):
    """Keeps weights small and random."""

    config = ShrinkPerturbConfig
    needs = Needs(traits=frozenset({"reads weights", "shrinks weights"}))
    options: ShrinkPerturbConfig
    shrink: Tensor
    sigma: Tensor
    key: Tensor
    initial: Tensor

    @classmethod
    def traits(cls, options: ShrinkPerturbConfig) -> frozenset[str]:
        return cls.needs.traits | {"moves weights" if options.every == "step" else "shrinks between tasks"}

    def __init__(self, config: ShrinkPerturbConfig, model: ContinualModel, scenario: Scenario) -> None:
        super().__init__(config, model, scenario)
        theta = self.flat_parameters().detach()
        self.register_buffer("key", torch.zeros((), dtype=torch.int64))  # of the task's random numbers
        if config.noise == "initialiser":
            self.register_buffer("initial", theta.clone())

    @torch.no_grad()
    def begin_task(self, task: Task) -> None:
        self.key.fill_(stream_seed(task.seed, "shrink_perturb", task.index))
        if self.options.every == "task" and task.index > 0:
            self._perturb(self.key)

    @torch.no_grad()
    def weights_renewed(self, renewed: Tensor) -> None:
        """Take in what has been drawn for the first time."""
        if self.options.noise == "initialiser":
            self.initial.copy_(self.first_drawn(self.initial, renewed))

    def after_step(self, step: int, batch: Batch) -> None:
        if self.options.every == "step":
            self._perturb(self.key ^ stream_seed(step, "shrink_perturb"))

    def _perturb(self, key: Tensor) -> None:
        parameters = self.model.trained()
        sizes = [parameter.numel() for parameter in parameters.values()]
        if self.options.noise == "gaussian":
            noise = hashed_normal(key, sum(sizes)).split(sizes)
        else:
            picks = hashed_uniform(key, sum(sizes)).split(sizes)
            initial = self.initial.split(sizes)
            noise = tuple(values[(pick * n).long()] for values, pick, n in zip(initial, picks, sizes, strict=True))
        for parameter, added in zip(parameters.values(), noise, strict=True):
            parameter.mul_(1 - self.shrink).add_(self.sigma * added.to(parameter.dtype).view(parameter.shape))
