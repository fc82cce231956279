"""What the prompt methods share: a frozen vision transformer, prompts at some of its blocks, and one linear head.

A method says which prompts there are (:meth:`Prompting.prompts`); how they act is written in :mod:`clbench.models.prompts`.
Trained are the prompts and the head. All of the methods train the head with the cross-entropy over the current task's classes
alone, ``scenario.logit_scope=current``: the files ``conf/training/<method>.yaml`` say so, and give the papers' optimizer.

Reported after every task: ``prompt_parameters``, the number of trained parameters beside the head.
"""

from torch import Tensor

from clbench.config import StrategyConfig
from clbench.errors import ConfigError
from clbench.learning.base import Batch, Measurement, Outputs, Strategy
from clbench.models.continual import ContinualModel
from clbench.models.prompts import Prompt, PromptedTransformer
from clbench.scenarios.scenario import Scenario
from clbench.scenarios.task import Task


class Prompting(Strategy):
    """Base of the prompt methods, which override ``prompts``."""

    changes_network = True

    def __init__(self, config: StrategyConfig, model: ContinualModel, scenario: Scenario) -> None:
        super().__init__(config, model, scenario)
        backbone = model.backbone
        chosen, n_blocks = self.prompts(backbone.n_features, scenario), len(backbone.transformer.blocks)
        beyond = [block for block in chosen if not 0 <= block < n_blocks]
        if beyond:
            raise ConfigError(
                f"strategy {config.name} prompts block {beyond[0]} of a network that has the blocks 0 to {n_blocks - 1}"
            )
        model.backbone = PromptedTransformer(backbone, chosen)

    def prompts(self, width: int, scenario: Scenario) -> dict[int, Prompt]:
        """The prompts by the number of their block, from 0, for tokens of ``width`` entries."""
        raise NotImplementedError

    @property
    def network(self) -> PromptedTransformer:
        """The network with its prompts."""
        return self.model.backbone

    def begin_task(self, task: Task) -> Tensor | None:
        """Tell every prompt; returns which trained weights they have drawn anew."""
        renewed: dict[str, Tensor] = {}
        for block, prompt in zip(self.network.prompts, self.network.of_blocks(), strict=True):
            drawn = prompt.begin_task(task.index, task.torch_generator(f"prompt{block}"))
            renewed |= {f"backbone.prompts.{block}.{name}": entries for name, entries in drawn.items()}
        return self.model.flat_mask(renewed) if renewed else None

    def measurements(self) -> list[Measurement]:
        """The number of prompt parameters."""
        n = sum(parameter.numel() for parameter in self.network.prompts.parameters())
        return [Measurement("prompt_parameters", "", float(n))]


class KeyedPrompting(Prompting):
    """Base of methods that find prompts by keys: their loss pulls the chosen keys towards the queries, by their option ``pull``,

    pull · mean over blocks of the prompts' matching loss.
    """

    TRAITS = frozenset({"reads the forward pass"})  # of the queries of the batch
    pull: Tensor

    def penalty(self, batch: Batch, outputs: Outputs) -> Tensor | None:
        """The pull of the keys chosen for the batch that ``outputs`` come from."""
        return self.pull * self.network.matching_loss()


def check_places(blocks_option: str, blocks: list[int], length_option: str, length: int) -> None:
    """Refuse blocks that are none or not all different, and a length that cannot be halved.

    Raises:
        ConfigError: with the option's name and value.
    """
    if not blocks or len(set(blocks)) < len(blocks):
        raise ConfigError(f"strategy.{blocks_option}={blocks} has to name at least one block, and none twice")
    if length % 2:
        raise ConfigError(f"strategy.{length_option}={length} has to be even: half of a prompt's vectors are keys")
