"""N-LoRA: a fresh low-rank adapter a task, whose update is sparse (Yang et al. 2024, arXiv:2410.10179).

Sparse updates of different tasks hardly ever change the same entry of a weight; then they need not be orthogonal to each other.

    y = W x + b + (α / r) · Σ_{i ≤ t} B_i A_i x        A_t, B_t and the head are trained
    L = CE(new) + λ Σ over adapted layers ‖M‖₁         in every task; ‖M‖₁ is the sum of all |M_ij|

``form`` says what M is:

* ``update``  M = B_t A_t, the update without its factor α / r: the paper's equation.
* ``inner``   M = A_t B_t, r × r, as in the authors' code (PKU-YuanGroup/N-LoRA), which multiplies the factors the other way
              round. That is possible only where a weight is square, and says nothing of single entries: the update may be as
              dense as it likes. Their λ (0.4 for three of six streams, at most 1.8) is for r² entries, and far too large for all
              of a weight.

B is 0 when a task begins, where there is nothing to make smaller: the penalty acts from the second step on. Adam with an ℓ₁ norm
makes entries small, and not exactly 0. Finished updates are merged (:mod:`clbench.strategies.inc_lora`).

Reported after every task: ``adapter_parameters``; ``near_zero``, the share of entries of the B_t A_t that are less than a
hundredth of the largest one of their layer.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from clbench.errors import ConfigError
from clbench.learning.base import Batch, Measurement, Needs, Outputs
from clbench.models.continual import ContinualModel
from clbench.options import option
from clbench.registry import STRATEGIES
from clbench.scenarios.scenario import Scenario
from clbench.scenarios.task import Task
from clbench.strategies.inc_lora import IncLoRA
from clbench.strategies.lora import LoRAConfig


@dataclass
class NLoRAConfig(LoRAConfig):
    """Options of ``strategy=n_lora``."""

    lam: float = option(help="weight λ of the penalty on the entries of M", at_least=0)
    form: str = option(
        help="M is the update B A, or the r × r product A B of the authors' code", choices=("update", "inner")
    )


@STRATEGIES.register("n_lora")
class NLoRA(IncLoRA):
    """A fresh adapter a task, with a penalty on the absolute entries of its update."""

    config = NLoRAConfig
    needs = Needs(transformer=True, weights_only=True, traits=frozenset({"redraws weights"}))
    options: NLoRAConfig
    lam: Tensor
    near_zero: Tensor

    def __init__(self, config: NLoRAConfig, model: ContinualModel, scenario: Scenario) -> None:
        super().__init__(config, model, scenario)
        for name, adapter in self.adapters().items():
            if config.form == "inner" and len(adapter.B) != adapter.A.shape[1]:
                raise ConfigError(
                    f"strategy.form=inner multiplies A by B, which the {len(adapter.B)}×{adapter.A.shape[1]} weight of {name} "
                    "does not allow: set strategy.form=update, or leave mlp out of strategy.targets"
                )
        self.register_buffer("near_zero", torch.zeros(()))

    def penalty(self, batch: Batch, outputs: Outputs) -> Tensor | None:
        inner = self.options.form == "inner"
        products = [adapter.A @ adapter.B if inner else adapter.product() for adapter in self.adapters().values()]
        return self.lam * torch.stack([product.abs().sum() for product in products]).sum()

    @torch.no_grad()
    def end_task(self, task: Task) -> None:
        """Note how sparse the task's updates are, then merge them."""
        sizes = [adapter.product().abs() for adapter in self.adapters().values()]
        small = torch.stack([(size < size.max() / 100).sum() for size in sizes]).sum()
        self.near_zero.copy_(small / sum(size.numel() for size in sizes))
        super().end_task(task)

    def measurements(self) -> list[Measurement]:
        """Also how sparse the task's updates are."""
        return [*super().measurements(), Measurement("near_zero", "", float(self.near_zero))]
