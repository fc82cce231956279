"""EWC: elastic weight consolidation (Kirkpatrick et al. 2017, arXiv:1612.00796).

    L = CE(new) + λ/2 · Σ_i Σ_j F_ij (θ_j − θ*_ij)²        over earlier tasks i       (mode=separate, the paper)
    L = CE(new) + λ/2 · Σ_j F_j (θ_j − θ*_j)²,  F ← γ F + F_new,  θ* the last weights   (mode=online; Schwarz et al. 2018)
    the same with F the mean of the F_i                                                  (mode=average; De Lange et al. 2023)

θ*_i are the weights after task i and F_i the diagonal of its Fisher information, on n samples of its training data, by one of
the estimators of :mod:`clbench.learning.parts.fisher`. They differ by orders of magnitude, so a λ belongs to one of them; the
size of the estimate is logged at level INFO after every task. Without the factor ½ of the penalty (Avalanche, Mammoth, De Lange
et al., Hsu et al.) a λ corresponds to 2λ here. Hsu et al. 2018 (arXiv:1810.12488) take ``fisher=predicted``: of every sample of
the task by itself on Split-MNIST, of batches with their size as a factor on CIFAR-100, which is another estimate and not one
of ours. Their online form is ``mode=online decay=1``.

The sum of the separate mode over tasks is kept in O(1) memory: Σ_i F_i (θ − θ*_i)² = A (θ − m)² + r with A = Σ_i F_i,
m = Σ_i F_i θ*_i / A and r constant. Stores A, m (one value per parameter) and r. Weights that are drawn anew (units that another
strategy resets, the head with ``trainer.zero_head``) are let go: their F becomes 0.

Nothing holds the first task. Smith et al. 2023 (arXiv:2203.17269) hold it to pretrained weights by L2, which is
``strategy.plus=[l2] +plus.l2.tasks=first``, and penalise of a vision transformer its attention alone, ``where=attention``.
"""

import logging
from dataclasses import dataclass

import torch
from torch import Tensor

from clbench.config import StrategyConfig
from clbench.learning.base import Needs
from clbench.learning.parts.fisher import ESTIMATORS, fisher_diagonal
from clbench.learning.parts.importance import ImportancePenalty
from clbench.models.continual import ContinualModel
from clbench.options import option
from clbench.registry import STRATEGIES
from clbench.scenarios.scenario import Scenario
from clbench.scenarios.task import Task

log = logging.getLogger(__name__)


@dataclass
class EWCConfig(StrategyConfig):
    """Options of ``strategy=ewc``."""

    lam: float = option(help="weight λ of the penalty λ/2 Σ F (θ − θ*)²", at_least=0)
    mode: str = option(
        help="one anchor per task; or the last weights as the only one, with a decayed sum or the mean of the Fisher "
        "information",
        choices=("separate", "online", "average"),
    )
    decay: float = option(help="mode=online: factor γ of the old Fisher information", at_least=0, at_most=1)
    fisher: str = option(
        help="estimator of the Fisher information: gradients at all labels weighted by the model's probabilities; at one label "
        "drawn from these for every sample; at the label that it predicts for every sample (Hsu et al. on Split-MNIST); at the "
        "true labels; or at these, of means over batches",
        choices=ESTIMATORS,
    )
    fisher_samples: int | None = option(help="training samples used for it; null: all of the task", at_least=1)
    fisher_batch_size: int = option(help="fisher=batched: samples per batch", at_least=1)
    normalise: str = option(
        help="scale each task's Fisher information: not, or to a largest entry of 1", choices=("none", "max")
    )
    where: str = option(
        help="which parameters are penalised; attention: those of a vision transformer that make queries, keys and values, all "
        "else but the head is then frozen",
        choices=("all", "backbone", "attention"),
    )


@STRATEGIES.register("ewc")
class EWC(ImportancePenalty):
    """Quadratic penalty weighted by the Fisher information of earlier tasks."""

    config = EWCConfig
    needs = Needs(traits=frozenset({"reads weights", "remembers weights"}))
    options: EWCConfig
    lam: Tensor
    decay: Tensor
    remainder: Tensor

    def __init__(self, config: EWCConfig, model: ContinualModel, scenario: Scenario) -> None:
        if config.where == "attention":
            model.train_only_attention("where=attention of ewc")
        super().__init__(config, model, scenario)
        self.register_buffer("remainder", torch.zeros(()))

    @property
    def strength(self) -> Tensor:
        return self.lam / 2

    def protected(self) -> Tensor:
        return self.flat_parameters(self.options.where)

    def distance(self) -> Tensor:
        return super().distance() + self.remainder

    @torch.no_grad()
    def end_task(self, task: Task) -> None:
        theta, options = self.protected(), self.options
        estimate = fisher_diagonal(self, task, options.fisher, options.fisher_samples, options.fisher_batch_size)
        fisher = estimate[: len(theta)]  # the backbone's parameters come first
        log.info(
            "Fisher information (%s) after task %d: mean %.3g, largest %.3g, %.1f %% exactly zero",
            options.fisher, task.index, fisher.mean(), fisher.max(), 100 * (fisher == 0).float().mean(),
        )  # fmt: skip
        if options.normalise == "max":
            fisher = fisher / fisher.max().clamp(min=torch.finfo(fisher.dtype).tiny)
        if options.mode == "separate":
            self._add_anchor(fisher, theta)
            return
        self.anchor.copy_(theta)
        if options.mode == "online":
            self.importance.mul_(self.decay).add_(fisher)
        else:
            self.importance.lerp_(fisher, 1 / (task.index + 1))

    def _add_anchor(self, fisher: Tensor, theta: Tensor) -> None:
        """Add F (θ − θ*)² of one more task to A (θ − m)² + r."""
        total = self.importance + fisher
        share = torch.where(total > 0, fisher / total, 1.0)  # of the new task, in the mean of the anchors
        if self.tasks_learned:
            drift = theta - self.anchor
            self.remainder.add_((self.importance * share * drift.square()).sum())
            self.anchor.lerp_(theta, share)  # exactly θ where the new task has all the share
        else:
            self.anchor.copy_(theta)
        self.importance.copy_(total)
