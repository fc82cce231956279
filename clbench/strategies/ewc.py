"""EWC: elastic weight consolidation (Kirkpatrick et al. 2017, arXiv:1612.00796).

    L = CE(new) + λ/2 · Σ_i Σ_j F_ij (θ_j − θ*_ij)²        over earlier tasks i       (mode=separate, the paper)
    L = CE(new) + λ/2 · Σ_j F_j (θ_j − θ*_j)²,  F ← γ F + F_new,  θ* the last weights   (mode=online; Schwarz et al. 2018)
    the same with F the mean of the F_i                                                  (mode=average; De Lange et al. 2023)

θ*_i are the weights after task i and F_i the diagonal of its Fisher information, on n samples of its training data:

    exact      mean_x Σ_c p(c|x) (∂ log p(c|x) / ∂θ)²        expectation over the model's own labels
    sample     mean_x (∂ log p(ŷ|x) / ∂θ)²,  ŷ ~ p(·|x)      one label drawn per sample
    empirical  mean_x (∂ log p(y|x) / ∂θ)²                   the true labels; squares of per-sample gradients
    batched    mean_b (∂ mean_{x∈b} log p(y|x) / ∂θ)²        squares of batch means: about 1/|b| of empirical

(names: van de Ven 2025, arXiv:2502.11756). They differ by orders of magnitude, so a λ belongs to one of them; the size of the
estimate is logged at level INFO after every task. Without the factor ½ of the penalty (Avalanche, Mammoth, De Lange et al.)
a λ corresponds to 2λ here.

The sum of the separate mode over tasks is kept in O(1) memory: Σ_i F_i (θ − θ*_i)² = A (θ − m)² + r with A = Σ_i F_i,
m = Σ_i F_i θ*_i / A and r constant. Stores A, m (one value per parameter) and r. Weights that are drawn anew (units that another
strategy resets, the head with ``trainer.zero_head``) are let go: their F becomes 0.

Nothing holds the first task. Smith et al. 2023 (arXiv:2203.17269) hold it to pretrained weights by L2, which is
``strategy.plus=[l2] +plus.l2.tasks=first``, and penalise of a vision transformer its attention alone, ``where=attention``.
"""

import logging
import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import functional_call, grad

from clbench.config import StrategyConfig
from clbench.learning.base import Batch, Needs, Outputs, Strategy
from clbench.learning.parts.sample_gradients import gradients_of_each, samples_at_once
from clbench.models.continual import ContinualModel
from clbench.options import option
from clbench.registry import STRATEGIES
from clbench.scenarios.scenario import Samples, Scenario
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
        help="estimator of the Fisher information", choices=("exact", "sample", "empirical", "batched")
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
class EWC(Strategy):
    """Quadratic penalty weighted by the Fisher information of earlier tasks."""

    config = EWCConfig
    needs = Needs(traits=frozenset({"reads weights", "remembers weights"}))
    options: EWCConfig
    lam: Tensor
    decay: Tensor
    importance: Tensor
    anchor: Tensor
    remainder: Tensor

    def __init__(self, config: EWCConfig, model: ContinualModel, scenario: Scenario) -> None:
        super().__init__(config, model, scenario)
        if config.where == "attention":
            model.train_only_attention("where=attention of ewc")
        theta = self.flat_parameters(config.where).detach()
        self.register_buffer("importance", torch.zeros_like(theta))
        self.register_buffer("anchor", torch.zeros_like(theta))
        self.register_buffer("remainder", torch.zeros(()))

    @torch.no_grad()
    def weights_renewed(self, renewed: Tensor) -> None:
        """Let go of them: what was important has been the old weights."""
        kept = ~renewed[: len(self.importance)]  # the backbone's parameters come first
        self.importance.copy_(torch.where(kept, self.importance, 0.0))

    def penalty(self, batch: Batch, outputs: Outputs) -> Tensor | None:
        if self.tasks_learned == 0:
            return None
        drift = self.flat_parameters(self.options.where) - self.anchor
        return self.lam / 2 * ((self.importance * drift.square()).sum() + self.remainder)

    @torch.no_grad()
    def end_task(self, task: Task) -> None:
        theta = self.flat_parameters(self.options.where)
        fisher = fisher_diagonal(self, task)[: len(theta)]  # the backbone's parameters come first
        log.info(
            "Fisher information (%s) after task %d: mean %.3g, largest %.3g, %.1f %% exactly zero",
            self.options.fisher, task.index, fisher.mean(), fisher.max(), 100 * (fisher == 0).float().mean(),
        )  # fmt: skip
        if self.options.normalise == "max":
            fisher = fisher / fisher.max().clamp(min=torch.finfo(fisher.dtype).tiny)
        if self.options.mode == "separate":
            self._add_anchor(fisher, theta)
            return
        self.anchor.copy_(theta)
        if self.options.mode == "online":
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


def fisher_diagonal(strategy: EWC, task: Task) -> Tensor:
    """Diagonal of the Fisher information (P,) by the estimator of ``strategy.options.fisher``, in evaluation mode."""
    options, model = strategy.options, strategy.model
    parameters = {name: p.detach() for name, p in model.trained().items()}
    generator = task.torch_generator("fisher")
    ids = task.ids[torch.randperm(len(task.ids), generator=generator)][: options.fisher_samples]

    def loss(values: dict[str, Tensor], x: Tensor, y: Tensor, t: Tensor) -> Tensor:
        return strategy.cross_entropy(functional_call(model, values, (x,)), Samples(x, y, t)).mean()

    if options.fisher == "batched":
        total = torch.zeros((), device=strategy.importance.device)
        for samples in task.batches(ids, options.fisher_batch_size):
            total = total + torch.cat([g.reshape(-1) for g in grad(loss)(parameters, *samples).values()]).square()
        return total / math.ceil(len(ids) / options.fisher_batch_size)

    def of_one(logits: Tensor, sample: Samples) -> Tensor:
        return strategy.cross_entropy(logits, sample).mean()

    def weighted_squares(samples: Samples, labels: Tensor, weights: Tensor) -> Tensor:
        """Σ_x weight · (∂ log p(label|x) / ∂θ)², (P,)."""
        gradients = gradients_of_each(model, of_one, samples._replace(y=labels))
        return torch.cat([weights @ g.reshape(len(weights), -1).square() for g in gradients.values()])

    device = strategy.importance.device
    total = torch.zeros((), device=device)
    for samples in task.batches(ids, samples_at_once(parameters)):
        one = strategy.importance.new_ones(len(samples.y))
        if options.fisher == "empirical":
            total = total + weighted_squares(samples, samples.y, one)
            continue
        probabilities = model.answer.restrict(model(samples.x), samples.task).softmax(dim=1)
        if options.fisher == "sample":
            drawn = torch.multinomial(probabilities.cpu(), 1, generator=generator)[:, 0].to(samples.y.device)
            total = total + weighted_squares(samples, drawn, one)
            continue
        for label in range(probabilities.shape[1]):
            weights = probabilities[:, label]
            if weights.any():  # else a class that no sample of this task may see, whose log p is −∞
                total = total + weighted_squares(samples, torch.full_like(samples.y, label), weights)
    return total / len(ids)
