"""Optimizers and learning-rate schedules, by the names of ``trainer.optimizer`` and ``trainer.scheduler``."""

from collections.abc import Iterable

import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, MultiStepLR

from clbench.config import TrainerConfig


def make_optimizer(config: TrainerConfig, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer of ``config``."""
    common = {"lr": config.lr, "weight_decay": config.weight_decay, "fused": True}
    if config.optimizer == "sgd":
        return torch.optim.SGD(parameters, momentum=config.momentum, **common)
    return {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.optimizer](parameters, **common)


def make_scheduler(config: TrainerConfig, optimizer: torch.optim.Optimizer, n_steps: int) -> LRScheduler | None:
    """The schedule over one task of ``n_steps``, starting at ``config.lr`` again; None for a constant rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] = config.lr
    if config.scheduler == "cosine":
        return CosineAnnealingLR(optimizer, n_steps)
    if config.scheduler == "step":
        milestones = [round(fraction * n_steps) for fraction in config.milestones]
        return MultiStepLR(optimizer, milestones, config.gamma)
    return None
