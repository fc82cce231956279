"""A budget of computation for every batch that arrives, in a stream that does not wait (Ghunaim et al. 2023, arXiv:2302.01047).

    c = floating-point operations of the method's step / those of a step of finetuning on the new samples alone
    of every c · steps_per_batch / budget batches one is trained on, the k-th update being made on batch ⌈k · c · … ⌉

Counted are products of matrices and convolutions, forwards and backwards, as torch counts them, in the last full step of the
task's plan, in which memories hold what they hold at the task's end. Sums over weights, as in penalties, are not counted: they
cost little beside the products. c is measured when a task begins; all state is put back, so that nothing is changed by it.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from clbench.learning.base import Batch
from clbench.learning.learner import Learner
from clbench.scenarios.scenario import Samples


def relative_cost(learner: Learner, batch: Batch) -> float:
    """c of a step on ``batch``; the learner is as it was afterwards."""
    with _unchanged(learner):
        with FlopCounterMode(display=False) as whole:
            _step(learner, batch)
        with _trained_by_finetuning(learner) as own, FlopCounterMode(display=False) as plain, torch.enable_grad():
            new = Samples(*(part[: batch.n_new] for part in batch.samples))
            loss = learner.model.answer.losses(learner.model(new.x), new).mean()
            _gradients(loss, own)
    return whole.get_total_flops() / plain.get_total_flops()


@contextmanager
def _trained_by_finetuning(learner: Learner) -> Iterator[Sequence[Tensor]]:
    """The network's trained parameters; all of them where none is, because another network makes them."""
    model = learner.model
    trained = list(model.trained().values())
    if trained:
        yield trained
        return
    parameters = list(model.parameters())
    for p in parameters:
        p.requires_grad_()
    try:
        yield parameters
    finally:
        for p in parameters:
            p.requires_grad_(False)


def _step(learner: Learner, batch: Batch) -> None:
    """Everything of a step but the optimizer."""
    if not learner.learns_by_gradient:
        with torch.no_grad():
            learner.learn(batch)
        return
    parameters = list(learner.trainable().values())
    terms, outputs = learner.loss_and_outputs(batch)
    found = _gradients(sum(terms.values()), parameters)  # type: ignore[arg-type]
    gradient = torch.cat([part.reshape(-1) for part in found])
    if learner.edits_gradients:
        learner.edit_gradients(gradient, batch._replace(update=gradient if learner.looks_ahead else None))
    if learner.acts_after_steps:
        with torch.no_grad():
            learner.after_step(1, batch._replace(gradient=gradient, outputs=outputs))


def _gradients(loss: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    """The gradient of each parameter, of its shape.

    By backward: in torch.autograd.grad the counter cannot follow networks whose weights another network makes.
    """
    before = [p.grad for p in parameters]
    for p in parameters:
        p.grad = None
    loss.backward(inputs=parameters)
    found = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    for p, gradient in zip(parameters, before, strict=True):
        p.grad = gradient
    return found


@contextmanager
def _unchanged(learner: Learner) -> Iterator[None]:
    """Afterwards all parameters, buffers and torch's generators are as they were."""
    tensors = [*learner.parameters(), *learner.buffers()]
    kept = [tensor.detach().clone() for tensor in tensors]
    devices = [tensors[0].device] if tensors[0].is_cuda else []
    with torch.random.fork_rng(devices=devices):
        yield
    with torch.no_grad():
        for tensor, before in zip(tensors, kept, strict=True):
            tensor.copy_(before)
