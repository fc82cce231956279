"""FeatKD: stay near the features of the previous network (Smith et al. 2023, arXiv:2203.17269).

    L = loss(new) + λ · mean (h − h̄)²          over the batch and the entries of the features

h are the penultimate features of the task's own samples and h̄ those of the network before the task. Before the first task that
is the initial network, so that the first task is tied to the initialisation; ``from_start=false`` leaves it free.

Read in the authors' code (shaunak27/data-free-continual-learning at 5388102, learners/kd.py and experiments/): the mean, the
teacher of the first task, and λ, there μ = 5. Second-hand, from notes on the paper: ‖h − h̄‖², a sum where the code has a mean.
With ``strategy=predkd strategy.plus=[featkd]`` it is the paper's PredKD + FeatKD, and with ``strategy.loss=bce_local`` there
its FeatKD (BCE); alone it is FeatKD (softmax).

Stores the teacher. Its gradient is exactly 0 at a task's first step, where student and teacher are equal.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from clbench.config import StrategyConfig
from clbench.learning.base import Batch, Needs, Outputs
from clbench.learning.parts.teacher import Teacher, WithTeacher
from clbench.models.continual import ContinualModel
from clbench.options import option
from clbench.registry import STRATEGIES
from clbench.scenarios.scenario import Scenario


@dataclass
class FeatKDConfig(StrategyConfig):
    """Options of ``strategy=featkd``."""

    lam: float = option(help="weight λ of the mean squared difference of features", at_least=0)
    from_start: bool = option(help="hold the first task to the initial network's features")


@STRATEGIES.register("featkd")
class FeatKD(WithTeacher):
    """Squared distance to the features of the network before the task, on the current samples."""

    config = FeatKDConfig
    needs = Needs(traits=frozenset({"remembers outputs"}))
    options: FeatKDConfig
    lam: Tensor
    teacher: Teacher

    def __init__(self, config: FeatKDConfig, model: ContinualModel, scenario: Scenario) -> None:
        super().__init__(config, model, scenario)
        self.flat_parameters("backbone")  # refuses a network whose features nothing changes

    def penalty(self, batch: Batch, outputs: Outputs) -> Tensor | None:
        if (self.tasks_learned == 0 and not self.options.from_start) or not batch.n_new:
            return None
        with torch.no_grad():
            target = self.teacher.features(batch.samples.x[: batch.n_new])
        return self.lam * F.mse_loss(outputs.features[: batch.n_new], target)
