"""RegLoRA: later updates stay away from the key entries of earlier ones (Chen et al. 2025, SEFE, arXiv:2505.02486).

Every task trains a fresh low-rank adapter of each adapted layer, whose update ΔW = B A is merged into the layer when the task
ends. The key entries of a task are the ⌊f · rows · columns⌋ largest |B A|; C counts, per entry, how many earlier tasks it was
key of:

    R = mean over adapted layers of  Σ_ij C_ij |(B A)_ij| / Σ_ij C_ij
    L = CE(new) + λ R                    from the second task on; in the first, plain LoRA

As in the authors' code (jinpeng0528/SEFE) the absolute value is not squared and B A goes without the factor α / r, so that λ
belongs to the α / r it was tuned at. ``accumulate=concat`` is theirs: they keep the list of all tasks' key entries, in which
an entry that k tasks chose stands k times; ``union`` counts every entry once. Either way the pull on one entry weakens as
entries get more. They do so in language models; on small networks λ has to be tuned again, and r should be small: with f =
0.02 and r = 10 on a 768×768 layer, the key entries of three tasks outnumber the adapter's parameters.

B is 0 when a task begins, where |B A| has no gradient: the penalty acts from the second step on. Queries, keys and values,
which timm computes in one layer, are layers of their own. Stores C, two bytes an entry of the adapted weights. The other half
of SEFE, answer styles, is about data and not in here.

Reported after every task: ``adapter_parameters``; ``key_entries``, the share of the adapted entries that are key of some
task.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from clbench.errors import ConfigError
from clbench.learning.base import Batch, Measurement, Needs, Outputs, buffer_name
from clbench.models.continual import ContinualModel
from clbench.options import option
from clbench.registry import STRATEGIES
from clbench.scenarios.scenario import Scenario
from clbench.scenarios.task import Task
from clbench.strategies.inc_lora import IncLoRA
from clbench.strategies.lora import LoRAConfig


@dataclass
class RegLoRAConfig(LoRAConfig):
    """Options of ``strategy=reglora``."""

    lam: float = option(help="weight λ of the penalty", at_least=0)
    top_fraction: float = option(
        help="f: the share of an update's entries that are key to its task", above=0, at_most=1
    )
    accumulate: str = option(
        help="an entry that several tasks chose counts for each of them, or once", choices=("concat", "union")
    )


@STRATEGIES.register("reglora")
class RegLoRA(IncLoRA):
    """A fresh adapter a task, merged at its end, and a penalty on what it does to earlier tasks' key entries."""

    config = RegLoRAConfig
    needs = Needs(transformer=True, weights_only=True, traits=frozenset({"redraws weights", "acts from second task"}))
    options: RegLoRAConfig
    lam: Tensor

    def __init__(self, config: RegLoRAConfig, model: ContinualModel, scenario: Scenario) -> None:
        super().__init__(config, model, scenario)
        for name, adapter in self.adapters().items():
            shape = len(adapter.B), adapter.A.shape[1]
            if int(config.top_fraction * shape[0] * shape[1]) == 0:
                raise ConfigError(
                    f"strategy.top_fraction={config.top_fraction} leaves no key entry among the {shape[0]}×{shape[1]} of "
                    f"{name}: choose a larger one"
                )
            self.register_buffer(buffer_name("key", name), torch.zeros(shape, dtype=torch.int16))

    def penalty(self, batch: Batch, outputs: Outputs) -> Tensor | None:
        if self.tasks_learned == 0:
            return None
        means = []
        for name, adapter in self.adapters().items():
            counts = self.get_buffer(buffer_name("key", name)).to(adapter.A.dtype)
            means.append((counts * adapter.product().abs()).sum() / counts.sum())
        return self.lam * torch.stack(means).mean()

    @torch.no_grad()
    def end_task(self, task: Task) -> None:
        """Note the task's key entries, then merge its updates."""
        for name, adapter in self.adapters().items():
            counts = self.get_buffer(buffer_name("key", name))
            counts += key_entries(adapter.product(), self.options.top_fraction)
            if self.options.accumulate == "union":
                counts.clamp_(max=1)
        super().end_task(task)

    def measurements(self) -> list[Measurement]:
        """Also the share of entries that are key."""
        counts = [self.get_buffer(buffer_name("key", name)) for name in self.adapters()]
        share = sum(int((c > 0).sum()) for c in counts) / sum(c.numel() for c in counts)
        return [*super().measurements(), Measurement("key_entries", "", share)]


def key_entries(update: Tensor, fraction: float) -> Tensor:
    """Boolean, of the shape of ``update``: its ⌊fraction · entries⌋ entries of largest absolute value."""
    n = int(fraction * update.numel())
    chosen = torch.zeros(update.numel(), dtype=torch.bool, device=update.device)
    chosen[update.abs().flatten().topk(n).indices] = True
    return chosen.view(update.shape)
