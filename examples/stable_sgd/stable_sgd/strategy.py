"""Stable SGD: smaller and smaller steps, task after task (Mirzadeh et al. 2020, arXiv:2006.06958).

In task t, counted from 1, the learning rate is

    η_t = γ^(t − 1) η_1

so that the minimum of each task is left less far than the one before. The other two parts of the authors' recipe are options of
the network and the loop: dropout, and small batches (``trainer.batch_size=10``). Stores nothing.
"""

from dataclasses import dataclass

from clbench.config import StrategyConfig
from clbench.learning.base import Needs, Strategy
from clbench.options import option
from clbench.registry import STRATEGIES


@dataclass
class StableSGDConfig(StrategyConfig):
    """Options of ``strategy=stable_sgd``."""

    decay: float = option(help="γ, the factor of the learning rate from each task to the next", above=0, at_most=1)


@STRATEGIES.register("stable_sgd")
class StableSGD(Strategy):
    """Lowers the learning rate from task to task."""

    config = StableSGDConfig
    needs = Needs(weights_only=True, traits=frozenset({"acts from second task"}))
    options: StableSGDConfig

    def rate_factor(self, parameter: str) -> float:
        return self.options.decay ** (self.tasks_seen - 1)
