"""OnePrompt: one prompt for all tasks (Huang, Chen & Hsu 2024, OVOR, arXiv:2402.04129).

    Attention(q, k, v)  →  softmax( q [P_K; k]ᵀ / √d ) [P_V; v]        at some blocks of a frozen vision transformer
    L = CE( z over the current task's classes, y )                      scenario.logit_scope=current

A prompt P (L, D) of a block is one tensor: its first L / 2 rows are P_K, the others P_V. There is no pool, no key, no query, and
no task to be inferred: every task goes on with the same tensors, and an image takes a single pass through the network. Prompts
start from U(0, 1). Rows of the head that belong to other tasks get no gradient; with an optimizer that starts anew in every task
and without weight decay they stay as they are, so that what forgets is the prompt alone.

``strategy=ovor`` adds the authors' virtual outliers (``strategy.plus=[outliers]`` does the same).

Lengths and places are those of the authors' code (jpmorganchase/ovor); where the prompts of their "OVOR-Deep" stand could not be
found out.
"""

from dataclasses import dataclass

from clbench.config import StrategyConfig
from clbench.errors import ConfigError
from clbench.learning.base import Needs
from clbench.learning.parts.prompting import Prompting
from clbench.models.prompts import Prefix, Prompt
from clbench.options import option
from clbench.registry import STRATEGIES
from clbench.scenarios.scenario import Scenario


@dataclass
class OnePromptConfig(StrategyConfig):
    """Options of ``strategy=oneprompt``."""

    blocks: list[int] = option(help="blocks of the transformer, from 0, that get a prompt")
    lengths: list[int] = option(help="vectors of each block's prompt: half of them keys, half values")


@STRATEGIES.register("oneprompt")
class OnePrompt(Prompting):
    """The same trained keys and values for every sample and task."""

    config = OnePromptConfig
    needs = Needs(boundaries=False, transformer=True, vision=True, weights_only=True)
    options: OnePromptConfig

    def prompts(self, width: int, scenario: Scenario) -> dict[int, Prompt]:
        """One :class:`Prefix` for every block."""
        blocks, lengths = self.options.blocks, self.options.lengths
        if len(blocks) != len(lengths) or len(set(blocks)) < len(blocks):
            raise ConfigError(f"strategy.lengths={lengths} has to hold a length for each of strategy.blocks={blocks}")
        odd = [length for length in lengths if length % 2 or length < 2]
        if odd:
            raise ConfigError(
                f"strategy.lengths={lengths} has to hold even numbers: half of a prompt's vectors are keys"
            )
        return {block: Prefix(length, width) for block, length in zip(blocks, lengths, strict=True)}
