"""L2: stay near the weights of the previous task (the rehearsal-free baseline of Smith et al. 2023, arXiv:2203.17269).

    L = CE(new) + λ Σ_j (θ_j − θ*_j)²          no factor ½

θ* are the weights at the start of the task, so the penalty's gradient is exactly 0 at a task's first step; those that another
strategy draws anew within the task are held to what they became. This is EWC with the Fisher information replaced by the
identity. With ``from_start`` the first task is held to the initial weights too, as in the authors' code; ``where=backbone``
leaves the classifier free, as there. ``where=attention`` is their method for pretrained vision transformers: the penalised
weights are the projections to queries, keys and values, and all else but the head is frozen (``model.trained=attention`` trains
the same weights with any other method).

``tasks=first`` leaves later tasks alone: with ``strategy=ewc strategy.plus=[l2] +plus.l2.tasks=first`` it is their "EWC w/ L2
start", which holds the first task to the initial weights and the later ones by EWC.

``towards=zero`` is another method, the plain weight penalty λ ‖θ‖² that the literature on loss of plasticity calls L2 (Kumar et
al. 2023, arXiv:2308.11958): θ* is 0, from the first task on.

Stores one copy of the penalised weights, or none with ``towards=zero``.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from clbench.config import StrategyConfig
from clbench.errors import ConfigError
from clbench.learning.base import Batch, Needs, Outputs, Strategy
from clbench.models.continual import ContinualModel
from clbench.options import option
from clbench.registry import STRATEGIES
from clbench.scenarios.scenario import Scenario
from clbench.scenarios.task import Task


@dataclass
class L2Config(StrategyConfig):
    """Options of ``strategy=l2``."""

    lam: float = option(help="weight λ of the penalty", at_least=0)
    where: str = option(
        help="which parameters are penalised; attention: those of a vision transformer that make queries, keys and values, all "
        "else but the head is then frozen",
        choices=("all", "backbone", "attention"),
    )
    from_start: bool = option(help="towards=previous: hold the first task to the initial weights")
    towards: str = option(
        "previous", help="θ*: the weights at the start of the task, or 0", choices=("previous", "zero")
    )
    tasks: str = option("all", help="tasks in which the penalty acts", choices=("all", "first"))


@STRATEGIES.register("l2")
class L2(Strategy):
    """Squared distance to the weights at the start of the task, or to 0."""

    config = L2Config
    needs = Needs(weights_only=True, traits=frozenset({"reads weights"}))
    options: L2Config
    lam: Tensor
    anchor: Tensor

    @classmethod
    def traits(cls, options: L2Config) -> frozenset[str]:
        return cls.needs.traits | (frozenset() if acts_in_first_task(options) else {"acts from second task"})

    def __init__(self, config: L2Config, model: ContinualModel, scenario: Scenario) -> None:
        super().__init__(config, model, scenario)
        self._in_first_task = acts_in_first_task(config)
        if config.tasks == "first" and not self._in_first_task:
            raise ConfigError(
                "tasks=first and from_start=false of l2 leave no task in which it acts: set from_start=true"
            )
        if config.where == "attention":
            model.train_only_attention("where=attention of l2")
        theta = self.flat_parameters(config.where).detach()
        self.register_buffer("anchor", theta.clone() if config.towards == "previous" else theta.new_zeros(()))

    def begin_task(self, task: Task) -> None:
        if self.options.towards == "previous":
            with torch.no_grad():
                self.anchor.copy_(self.flat_parameters(self.options.where))

    @torch.no_grad()
    def weights_renewed(self, renewed: Tensor) -> None:
        """Stay near what they have become."""
        if self.options.towards == "previous":
            theta = self.flat_parameters(self.options.where)
            self.anchor.copy_(torch.where(renewed[: len(theta)], theta, self.anchor))  # the backbone's come first

    def penalty(self, batch: Batch, outputs: Outputs) -> Tensor | None:
        acts = self._in_first_task if self.tasks_learned == 0 else self.options.tasks == "all"
        if not acts:
            return None
        return self.lam * (self.flat_parameters(self.options.where) - self.anchor).square().sum()


def acts_in_first_task(options: L2Config) -> bool:
    """Whether the penalty acts in the first task."""
    return options.from_start or options.towards == "zero"
