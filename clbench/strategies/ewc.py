"""EWC: elastic weight consolidation (Kirkpatrick et al. 2017, arXiv:1612.00796).

    L = CE(new) + λ/2 · Σ_i Σ_j F_ij (θ_j − θ*_ij)²        over earlier tasks i       (mode=separate, the paper)
    L = CE(new) + λ/2 · Σ_j F_j (θ_j − θ*_j)²,  F ← γ F + F_new,  θ* the last weights   (mode=online; Schwarz et al. 2018)

θ*_i are the weights after task i and F_i the diagonal of its Fisher information, on n samples of its training data:

    exact      mean_x Σ_c p(c|x) (∂ log p(c|x) / ∂θ)²        expectation over the model's own labels
    sample     mean_x (∂ log p(ŷ|x) / ∂θ)²,  ŷ ~ p(·|x)      one label drawn per sample
    empirical  mean_x (∂ log p(y|x) / ∂θ)²                   the true labels; squares of per-sample gradients
    batched    mean_b (∂ mean_{x∈b} log p(y|x) / ∂θ)²        squares of batch means: about 1/|b| of empirical

(names: van de Ven 2025, arXiv:2502.11756). They differ by orders of magnitude, so a λ belongs to one of them.

The sum of the separate mode over tasks is kept in O(1) memory: Σ_i F_i (θ − θ*_i)² = A (θ − m)² + r with A = Σ_i F_i,
m = Σ_i F_i θ*_i / A and r constant. Stores A, m (one value per parameter) and r.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap

from clbench.config import StrategyConfig, option
from clbench.models.continual import ContinualModel
from clbench.registry import STRATEGIES
from clbench.scenarios.scenario import Samples, Scenario
from clbench.scenarios.task import Task
from clbench.strategies.base import Batch, Needs, Outputs, Strategy

NUMBERS_AT_ONCE = 2**25
"""Per-sample gradients are held for so many samples at a time that this many numbers are not exceeded."""


@dataclass
class EWCConfig(StrategyConfig):
    """Options of ``strategy=ewc``."""

    lam: float = option(help="weight λ of the penalty λ/2 Σ F (θ − θ*)²", at_least=0)
    mode: str = option(help="one anchor per task, or one running anchor", choices=("separate", "online"))
    decay: float = option(help="mode=online: factor γ of the old Fisher information", at_least=0, at_most=1)
    fisher: str = option(
        help="estimator of the Fisher information", choices=("exact", "sample", "empirical", "batched")
    )
    fisher_samples: int | None = option(help="training samples used for it; null: all of the task", at_least=1)
    fisher_batch_size: int = option(help="fisher=batched: samples per batch", at_least=1)
    normalise: str = option(
        help="scale each task's Fisher information: not, or to a largest entry of 1", choices=("none", "max")
    )
    where: str = option(help="which parameters are penalised", choices=("all", "backbone"))


@STRATEGIES.register("ewc")
class EWC(Strategy):
    """Quadratic penalty weighted by the Fisher information of earlier tasks."""

    config = EWCConfig
    needs = Needs()
    options: EWCConfig
    lam: Tensor
    decay: Tensor
    importance: Tensor
    anchor: Tensor
    remainder: Tensor

    def __init__(self, config: EWCConfig, model: ContinualModel, scenario: Scenario) -> None:
        super().__init__(config, model, scenario)
        theta = self.flat_parameters(config.where).detach()
        self.register_buffer("importance", torch.zeros_like(theta))
        self.register_buffer("anchor", torch.zeros_like(theta))
        self.register_buffer("remainder", torch.zeros(()))

    def penalty(self, batch: Batch, outputs: Outputs) -> Tensor | None:
        if self.tasks_learned == 0:
            return None
        drift = self.flat_parameters(self.options.where) - self.anchor
        return self.lam / 2 * ((self.importance * drift.square()).sum() + self.remainder)

    @torch.no_grad()
    def end_task(self, task: Task) -> None:
        theta = self.flat_parameters(self.options.where)
        fisher = fisher_diagonal(self, task)[: len(theta)]  # the backbone's parameters come first
        if self.options.normalise == "max":
            fisher = fisher / fisher.max().clamp(min=torch.finfo(fisher.dtype).tiny)
        if self.options.mode == "online":
            self.importance.mul_(self.decay).add_(fisher)
            self.anchor.copy_(theta)
            return
        total = self.importance + fisher
        share = torch.where(total > 0, fisher / total, 1.0)  # of the new task, in the mean of the anchors
        drift = theta - self.anchor
        if self.tasks_learned:
            self.remainder.add_((self.importance * share * drift.square()).sum())
            self.anchor.add_(share * drift)
        else:
            self.anchor.copy_(theta)
        self.importance.copy_(total)


def fisher_diagonal(strategy: EWC, task: Task) -> Tensor:
    """Diagonal of the Fisher information (P,) by the estimator of ``strategy.options.fisher``, in evaluation mode."""
    options, model = strategy.options, strategy.model
    parameters = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    generator = task.torch_generator("fisher")
    ids = task.ids[torch.randperm(len(task.ids), generator=generator)][: options.fisher_samples]
    n_parameters = sum(p.numel() for p in parameters.values())
    chunk = max(1, NUMBERS_AT_ONCE // n_parameters)
    total = torch.zeros(n_parameters, device=strategy.importance.device)

    def loss(values: dict[str, Tensor], x: Tensor, y: Tensor, t: Tensor) -> Tensor:
        return strategy.cross_entropy(functional_call(model, values, (x,)), Samples(x, y, t)).mean()

    def loss_of_one(values: dict[str, Tensor], x: Tensor, y: Tensor, t: Tensor) -> Tensor:
        return loss(values, x[None], y[None], t[None])

    if options.fisher == "batched":
        batches = list(task.batches(ids, options.fisher_batch_size))
        for samples in batches:
            total += _flat(grad(loss)(parameters, *samples), 0).square()
        return total / len(batches)

    squares: Callable = vmap(grad(loss_of_one), in_dims=(None, 0, 0, 0))
    for samples in task.batches(ids, chunk):
        if options.fisher == "empirical":
            total += _flat(squares(parameters, *samples), 1).square().sum(0)
            continue
        probabilities = model.restrict(model(samples.x), samples.task).softmax(dim=1)
        if options.fisher == "sample":
            drawn = torch.multinomial(probabilities.cpu(), 1, generator=generator)[:, 0].to(samples.y.device)
            total += _flat(squares(parameters, samples.x, drawn, samples.task), 1).square().sum(0)
            continue
        for label in range(probabilities.shape[1]):
            weight = probabilities[:, label]
            if weight.any():  # a class that no sample may see has probability 0 and no gradient
                label_for_all = torch.full_like(samples.y, label)
                gradients = _flat(squares(parameters, samples.x, label_for_all, samples.task), 1)
                total += (weight.unsqueeze(1) * _finite(gradients, weight).square()).sum(0)
    return total / len(ids)


def _flat(gradients: dict[str, Tensor], batch_dims: int) -> Tensor:
    return torch.cat([g.flatten(batch_dims) for g in gradients.values()], dim=batch_dims)


def _finite(gradients: Tensor, weight: Tensor) -> Tensor:
    """Zero the gradients (B, P) of labels that a sample may not have (task-incremental: another head's)."""
    return torch.where(weight.unsqueeze(1) > 0, gradients, 0.0)
