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

``fisher=running`` looks at no data after the task, but averages the squared gradients of the training loss as it goes, over
``running_every`` steps with weight α = ``running_rate``:

    F ← α g² + (1 − α) F              every step: EWC++ (Chaudhry et al. 2018, arXiv:1801.10112), mode=online decay=0
    F̂ = (F − min F) / (max F − min F)  the EWC of the A-GEM paper, running_every=10 normalise=min_max beside that

The penalty of Schwarz et al. is of γ F (``decayed_penalty``), which others leave out. ``prior_variance`` σ² adds a Gaussian prior
with mean 0 to what is learned, as Henning et al. 2021 (arXiv:2103.01133) do: with n samples and p = 1/(σ² n) the loss of a
task has p/2 · ‖θ‖² over the weights that no task has learned yet (in the first one all, later those of new outputs), and their
F is greater by p from then on. Theirs is n times this loss.

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
from clbench.errors import ConfigError
from clbench.learning.base import Batch, Needs, Outputs
from clbench.learning.parts.fisher import ESTIMATORS, RunningFisher, fisher_diagonal, scaled
from clbench.learning.parts.importance import GaussianPrior, ImportancePenalty
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
        "true labels; at these, of means over batches; or those of the training loss, averaged as training goes on",
        choices=(*ESTIMATORS, "running"),
    )
    fisher_samples: int | None = option(help="training samples used for it; null: all of the task", at_least=1)
    fisher_batch_size: int = option(help="fisher=batched: samples per batch", at_least=1)
    running_rate: float = option(0.9, help="fisher=running: weight α of the new gradients", at_least=0, at_most=1)
    running_every: int = option(
        1, help="fisher=running: steps over which squared gradients are averaged first", at_least=1
    )
    normalise: str = option(
        help="scale each task's Fisher information: not, to a largest entry of 1, or to a smallest of 0 as well",
        choices=("none", "max", "min_max"),
    )
    decayed_penalty: bool = option(
        False, help="mode=online: the penalty is of the decayed γ F, as Schwarz et al. write it"
    )
    prior_variance: float | None = option(
        None, help="variance σ² of a Gaussian prior of weights that no task has learned yet; null: no prior", above=0
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
    needs = Needs(traits=frozenset({"reads weights", "remembers weights", "reads logits"}))
    options: EWCConfig
    lam: Tensor
    decay: Tensor
    running_rate: Tensor
    remainder: Tensor
    prior_variance: Tensor

    def __init__(self, config: EWCConfig, model: ContinualModel, scenario: Scenario) -> None:
        if config.where == "attention":
            model.train_only_attention("where=attention of ewc")
        super().__init__(config, model, scenario)
        _check(config)
        self.register_buffer("remainder", torch.zeros(()))
        if self.follows_gradient:
            self.running = RunningFisher(self.importance)
        self.prior = None if config.prior_variance is None else GaussianPrior(self.importance)

    @property
    def strength(self) -> Tensor:
        return self.lam / 2 * self.decay if self.options.decayed_penalty else self.lam / 2

    @property
    def follows_gradient(self) -> bool:
        """Squares of it are averaged."""
        return self.options.fisher == "running"

    @property
    def penalises(self) -> bool:
        # Not super().penalises: torch.compile would not notice that it changes with tasks_learned.
        return self.tasks_learned > 0 or self.prior is not None

    @torch.no_grad()
    def begin_task(self, task: Task) -> None:
        super().begin_task(task)
        if self.prior is not None:
            self.prior.begin_task(self.prior_variance, len(task.ids))

    @torch.no_grad()
    def weights_renewed(self, renewed: Tensor) -> None:
        """Let go of them; they come from the prior again."""
        super().weights_renewed(renewed)
        renewed = renewed[: len(self.importance)]
        if self.follows_gradient:
            self.running.let_go(renewed)
        if self.prior is not None:
            self.prior.renew(renewed)

    def protected(self) -> Tensor:
        return self.flat_parameters(self.options.where)

    def distance(self) -> Tensor:
        return super().distance() + self.remainder

    def penalty(self, batch: Batch, outputs: Outputs) -> Tensor | None:
        penalty = super().penalty(batch, outputs)
        return penalty if penalty is None or self.prior is None else penalty + self.prior.loss(self.protected())

    def penalty_gradient(self) -> Tensor:
        gradient = super().penalty_gradient()
        return gradient if self.prior is None else gradient + self.prior.gradient(self.before)

    def after_step(self, step: int, batch: Batch) -> None:
        if not self.follows_gradient:
            return
        self.running.look_at(self.data_gradient(batch))
        self.before.copy_(self.protected())
        if step % self.options.running_every == 0:
            self.running.update(self.running_rate)

    @torch.no_grad()
    def end_task(self, task: Task) -> None:
        theta, options = self.protected(), self.options
        fisher = self._fisher(task)[: len(theta)]  # the backbone's parameters come first
        log.info(
            "Fisher information (%s) after task %d: mean %.3g, largest %.3g, %.1f %% exactly zero",
            options.fisher, task.index, fisher.mean(), fisher.max(), 100 * (fisher == 0).float().mean(),
        )  # fmt: skip
        fisher = scaled(fisher, options.normalise)
        if self.prior is not None:
            fisher = fisher + self.prior.learned()
        if options.mode == "separate":
            self._add_anchor(fisher, theta)
            return
        self.anchor.copy_(theta)
        if options.mode == "online":
            self.importance.mul_(self.decay).add_(fisher)
        else:
            self.importance.lerp_(fisher, 1 / (task.index + 1))

    def _fisher(self, task: Task) -> Tensor:
        options = self.options
        if not self.follows_gradient:
            return fisher_diagonal(self, task, options.fisher, options.fisher_samples, options.fisher_batch_size)
        if self.running.n_summed:
            self.running.update(self.running_rate)
        return self.running.value.clone()

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


def _check(config: EWCConfig) -> None:
    """Refuse options that contradict each other."""
    if config.decayed_penalty and config.mode != "online":
        raise ConfigError(
            f"strategy.decayed_penalty=true has no meaning with strategy.mode={config.mode}: set mode=online"
        )
    if config.prior_variance is not None and config.mode == "average":
        raise ConfigError(
            "strategy.prior_variance has no meaning with strategy.mode=average, where the prior would count less with every "
            "task. Valid choices: prior_variance=null, or mode=separate or online"
        )
