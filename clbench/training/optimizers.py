"""Optimizers and learning-rate schedules, by the names of ``trainer.optimizer`` and ``trainer.scheduler``."""

import copy
import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, MultiStepLR

from clbench.config import TrainerConfig
from clbench.training.eager_optimizers import SGD, Adagrad, Adam, AdamW
from clbench.training.elementwise_adam import ElementwiseAdam


def make_optimizer(
    config: TrainerConfig, parameters: Iterable[nn.Parameter], renewed: bool = False
) -> torch.optim.Optimizer:
    """The optimizer of ``config``; where weights are ``renewed`` while training, or it says so, Adam counts the steps of each.

    (Adagrad has no use for its count, so that a weight whose sum of squares is set to 0 starts as all did.)
    SGD has its momentum buffers from the start, as zeros: torch's fused SGD would make them of uninitialised memory in its first
    step, and leave them so where a loss scale overflows in that step.
    """
    if (renewed or config.adam_steps == "own") and config.optimizer in ("adam", "adamw"):
        return ElementwiseAdam(parameters, config.lr, config.weight_decay, decoupled=config.optimizer == "adamw")
    common: dict[str, Any] = {"lr": config.lr, "weight_decay": config.weight_decay, "fused": True}
    if config.optimizer == "sgd":
        sgd = SGD(parameters, momentum=config.momentum, **common)
        if config.momentum:
            for parameter in (p for group in sgd.param_groups for p in group["params"]):
                sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return sgd
    return {"adam": Adam, "adamw": AdamW, "adagrad": Adagrad}[config.optimizer](parameters, **common)


def optimizer_of_task(
    before: torch.optim.Optimizer, config: TrainerConfig, parameters: Sequence[nn.Parameter], renewed: bool
) -> torch.optim.Optimizer:
    """The optimizer of a task that begins: a new one with ``reset_optimizer``, or the one ``before``.

    Where other parameters are trained than before, it is a new one that remembers what it did of those that were there.
    """
    known = [parameter for group in before.param_groups for parameter in group["params"]]
    are_the_same = [id(p) for p in known] == [id(p) for p in parameters]
    if are_the_same and not config.reset_optimizer:
        return before
    optimizer = make_optimizer(config, parameters, renewed)
    if not config.reset_optimizer:
        still_there = {id(p) for p in parameters}
        optimizer.state.update({p: before.state[p] for p in known if id(p) in still_there and p in before.state})
    return optimizer


def learning_rates(config: TrainerConfig, n_steps: int) -> list[float]:
    """The learning rate at every step of a task of ``n_steps``; every task starts at ``config.lr`` again.

    The schedules are torch's, run over a parameter of no use: known in advance, a schedule has no state to save.
    """
    if config.scheduler == "constant":
        return [config.lr] * n_steps
    if config.scheduler == "warm_restarts":
        n_parts = 2**config.restarts
        return [_of_part(step * n_parts // n_steps, config) for step in range(n_steps)]
    optimizer = SGD([torch.zeros(())], lr=config.lr)
    if config.scheduler == "cosine":
        scheduler: torch.optim.lr_scheduler.LRScheduler = CosineAnnealingLR(optimizer, n_steps)
    else:
        milestones = [round(fraction * n_steps) for fraction in config.milestones]
        scheduler = MultiStepLR(optimizer, milestones, config.gamma)
    rates = []
    for _ in range(n_steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def _of_part(part: int, config: TrainerConfig) -> float:
    """The learning rate in a part of a task (from 0) with ``scheduler=warm_restarts`` (Loshchilov & Hutter 2017; GDumb)."""
    if part == 0:
        return config.lr / 10
    length = 1 << (part.bit_length() - 1)  # of the cycle, and the part with which it begins
    falls = (1 + math.cos(math.pi * (part - length) / length)) / 2
    return config.lr_min + (config.lr - config.lr_min) * falls


def next_update(optimizer: torch.optim.Optimizer, gradient: Tensor) -> Tensor:
    """The change (P,) that ``optimizer.step()`` would make for ``gradient`` (P,); nothing is changed by asking."""
    twin = copy.deepcopy(optimizer)
    moved = [parameter for group in twin.param_groups for parameter in group["params"]]
    before = torch.cat([parameter.detach().reshape(-1) for parameter in moved])
    assign_gradients(moved, gradient)
    twin.step()
    return torch.cat([parameter.detach().reshape(-1) for parameter in moved]) - before


def forget(optimizer: torch.optim.Optimizer, renewed: Tensor) -> None:
    """Set to 0 what the optimizer remembers of the weights that are True in ``renewed``, boolean (P,)."""
    start = 0
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            kept = ~renewed[start : start + parameter.numel()].view_as(parameter)
            start += parameter.numel()
            for remembered in optimizer.state[parameter].values():
                if remembered.shape == parameter.shape:
                    remembered.mul_(kept)


def flatten_gradients(parameters: list[nn.Parameter]) -> Tensor:
    """The gradients of ``parameters`` as one vector (P,); zeros where a parameter has none."""
    return torch.cat([torch.zeros_like(p).view(-1) if p.grad is None else p.grad.reshape(-1) for p in parameters])


def assign_gradients(parameters: list[nn.Parameter], gradient: Tensor) -> None:
    """Write the vector (P,) into the gradients of ``parameters``."""
    start = 0
    for parameter in parameters:
        parameter.grad = gradient[start : start + parameter.numel()].view_as(parameter)
        start += parameter.numel()
