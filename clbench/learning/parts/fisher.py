"""The diagonal of the Fisher information of the network's weights, on n samples x of a task's training data with labels y.

    exact      mean_x Σ_c p(c|x) (∂ log p(c|x) / ∂θ)²        expectation over the model's own labels
    sample     mean_x (∂ log p(ŷ|x) / ∂θ)²,  ŷ ~ p(·|x)      one label drawn per sample
    predicted  mean_x (∂ log p(ŷ|x) / ∂θ)²,  ŷ = argmax p    the label that the model predicts
    empirical  mean_x (∂ log p(y|x) / ∂θ)²                   the true labels; squares of per-sample gradients
    batched    mean_b (∂ mean_{x∈b} log p(y|x) / ∂θ)²        squares of batch means: about 1/|b| of empirical

p is over the logits that a sample may see. Names: van de Ven 2025, arXiv:2502.11756. Another estimate comes from training itself,
without a further pass over the data (:class:`RunningFisher`).
"""

import math

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad

from clbench.learning.base import Strategy
from clbench.learning.parts.sample_gradients import gradients_of_each, samples_at_once
from clbench.scenarios.scenario import Samples
from clbench.scenarios.task import Task

ESTIMATORS = ("exact", "sample", "predicted", "empirical", "batched")


def fisher_diagonal(
    strategy: Strategy, task: Task, estimator: str, n_samples: int | None = None, batch_size: int = 128
) -> Tensor:
    """The diagonal (P,), in the order of :meth:`Strategy.flat_parameters`; the network has to be in evaluation mode.

    Args:
        strategy: whose network and loss it is.
        task: whose training samples are looked at.
        estimator: one of ``ESTIMATORS``.
        n_samples: of them so many, drawn at random; None: all.
        batch_size: samples per batch of ``batched``.
    """
    model = strategy.model
    parameters = {name: p.detach() for name, p in model.trained().items()}
    generator = task.torch_generator("fisher")
    ids = task.ids[torch.randperm(len(task.ids), generator=generator)][:n_samples]

    def loss(values: dict[str, Tensor], x: Tensor, y: Tensor, t: Tensor) -> Tensor:
        return strategy.cross_entropy(functional_call(model, values, (x,)), Samples(x, y, t)).mean()

    device = next(iter(parameters.values())).device
    total = torch.zeros((), device=device)
    if estimator == "batched":
        for samples in task.batches(ids, batch_size):
            total = total + torch.cat([g.reshape(-1) for g in grad(loss)(parameters, *samples).values()]).square()
        return total / math.ceil(len(ids) / batch_size)

    def of_one(logits: Tensor, sample: Samples) -> Tensor:
        return strategy.cross_entropy(logits, sample).mean()

    def weighted_squares(samples: Samples, labels: Tensor, weights: Tensor) -> Tensor:
        """Σ_x weight · (∂ log p(label|x) / ∂θ)², (P,)."""
        gradients = gradients_of_each(model, of_one, samples._replace(y=labels))
        return torch.cat([weights @ g.reshape(len(weights), -1).square() for g in gradients.values()])

    for samples in task.batches(ids, samples_at_once(parameters)):
        one = next(iter(parameters.values())).new_ones(len(samples.y))
        if estimator == "empirical":
            total = total + weighted_squares(samples, samples.y, one)
            continue
        probabilities = model.answer.restrict(model(samples.x), samples.task).softmax(dim=1)
        if estimator == "sample":
            drawn = torch.multinomial(probabilities.cpu(), 1, generator=generator)[:, 0].to(samples.y.device)
            total = total + weighted_squares(samples, drawn, one)
        elif estimator == "predicted":
            total = total + weighted_squares(samples, probabilities.argmax(dim=1), one)
        else:
            for label in range(probabilities.shape[1]):
                weights = probabilities[:, label]
                if weights.any():  # else a class that no sample of this task may see, whose log p is −∞
                    total = total + weighted_squares(samples, torch.full_like(samples.y, label), weights)
    return total / len(ids)


class RunningFisher(nn.Module):
    """F ← α · mean of g² over some steps + (1 − α) F, with g the batch's gradient (Chaudhry et al. 2018, arXiv:1801.10112).

    As g is of a batch, it is of the size of ``batched``. It goes on from task to task, so that the last one outweighs the others.

    Args:
        like: (P,), weights.
    """

    value: Tensor
    summed: Tensor
    n_summed: Tensor

    def __init__(self, like: Tensor) -> None:
        super().__init__()
        self.register_buffer("value", torch.zeros_like(like))
        self.register_buffer("summed", torch.zeros_like(like))
        self.register_buffer("n_summed", torch.zeros((), dtype=torch.int64))

    def look_at(self, gradient: Tensor) -> None:
        """Take in the gradient (P,) of a step; pure."""
        self.summed.add_(gradient.square())
        self.n_summed.add_(1)

    def update(self, rate: Tensor) -> None:
        """Let the steps looked at since the last update count with α = ``rate``; pure."""
        self.value.mul_(1 - rate).add_(rate * self.summed / self.n_summed)
        self.summed.zero_()
        self.n_summed.zero_()

    def let_go(self, renewed: Tensor) -> None:
        """Forget what is of weights that have been drawn anew, boolean (P,); pure."""
        self.value.copy_(torch.where(renewed, 0.0, self.value))
        self.summed.copy_(torch.where(renewed, 0.0, self.summed))


def scaled(values: Tensor, how: str) -> Tensor:
    """``values`` (P,): as they are (``none``), with a largest of 1 (``max``), or with a smallest of 0 as well (``min_max``)."""
    if how == "none":
        return values
    values = values - values.min() if how == "min_max" else values
    return values / values.max().clamp(min=torch.finfo(values.dtype).tiny)
