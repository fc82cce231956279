"""LoRA: one low-rank adapter of a frozen transformer, trained on task after task (Hu et al. 2022, arXiv:2106.09685; "SeqLoRA").

    y = W x + b + (α / r) · B A x        for the projections ``targets`` of every block;  A, B and the head are trained

By itself it is fine-tuning of few parameters, and forgets as that does. It is the main strategy for methods that are to train
an adapter in place of the network: ``strategy=lora strategy.plus=[er]``, ``[joint]``, ``[ewc]``, ``[lwf]``. The layers are in
:mod:`clbench.models.lora`; there is no dropout before A.

Reported after every task: ``adapter_parameters``, the number of entries of all A and B.
"""

from dataclasses import dataclass
from typing import ClassVar

from clbench.config import StrategyConfig
from clbench.learning.base import Measurement, Needs, Strategy
from clbench.models.continual import ContinualModel
from clbench.models.lora import TARGETS, Adapter, adapters, add_adapters
from clbench.options import option
from clbench.registry import STRATEGIES
from clbench.scenarios.scenario import Scenario


@dataclass
class LoRAConfig(StrategyConfig):
    """Options of ``strategy=lora``, and of all strategies with low-rank adapters."""

    rank: int = option(help="rank r of the updates", at_least=1)
    alpha: float = option(help="α: the updates are scaled by α / r", above=0)
    targets: list[str] = option(help=f"what is adapted in every block: some of {', '.join(TARGETS)}")


@STRATEGIES.register("lora")
class LoRA(Strategy):
    """Trains low-rank updates of a frozen transformer's projections, and the head."""

    config: ClassVar[type[LoRAConfig]] = LoRAConfig
    needs = Needs(boundaries=False, transformer=True, weights_only=True)
    changes_network = True
    options: LoRAConfig

    def __init__(self, config: LoRAConfig, model: ContinualModel, scenario: Scenario) -> None:
        super().__init__(config, model, scenario)
        add_adapters(model.backbone.transformer, config.targets, config.rank, config.alpha)
        model.train(model.training)  # the new modules take the network's mode

    def adapters(self) -> dict[str, Adapter]:
        """The adapters by name, from the input on."""
        return dict(adapters(self.model.backbone))

    def measurements(self) -> list[Measurement]:
        """The number of adapter parameters."""
        n = sum(p.numel() for adapter in self.adapters().values() for p in adapter.parameters())
        return [Measurement("adapter_parameters", "", float(n))]
