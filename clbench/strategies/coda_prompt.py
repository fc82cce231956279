"""CODA-Prompt: prompts that are sums of components (Smith et al. 2023, arXiv:2211.13218).

    P(x) = Σ_m α_m P_m,   α_m = cos(q(x) ⊙ A_m, K_m)                  over the components of all tasks so far
    L = CE( z over the current task's classes, y ) + μ · Σ over blocks and B ∈ {P, A, K} of ‖B Bᵀ − I‖²

q(x) are the features of the frozen network without prompts. Each task adds ``pool`` / (number of tasks) components, drawn
orthogonal to those before, and trains them alone; with an optimizer that starts anew in every task and without weight decay the
earlier ones stay as they are. There is no choice and no matching loss: attention vectors A and keys K get their gradient
through P.

Differs from the authors' code (GT-RIPL/CODA-Prompt): new components are orthogonal to the span of the earlier ones as they have
become in training; there the projections on each are subtracted, which is the same only while those are orthogonal. The
norm is a sum of squares, there their mean over the matrix, so that their μ is to be divided by the number of components squared.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from clbench.config import StrategyConfig
from clbench.errors import ConfigError
from clbench.learning.base import Batch, Needs, Outputs
from clbench.learning.parts.prompting import Prompting, check_places
from clbench.models.prompt_pools import PromptComponents
from clbench.models.prompts import Prompt
from clbench.options import option
from clbench.registry import STRATEGIES
from clbench.scenarios.scenario import Scenario


@dataclass
class CodaPromptConfig(StrategyConfig):
    """Options of ``strategy=coda_prompt``."""

    blocks: list[int] = option(help="blocks of the transformer, from 0, that get a prompt")
    pool: int = option(help="components of all tasks together", at_least=1)
    length: int = option(help="vectors of a prompt: half of them keys, half values", at_least=2)
    mu: float = option(help="weight μ of the penalty on components that are not orthogonal", at_least=0)


@STRATEGIES.register("coda_prompt")
class CodaPrompt(Prompting):
    """A weighted sum of components, of which every task adds and trains its own."""

    config = CodaPromptConfig
    needs = Needs(transformer=True, vision=True)
    options: CodaPromptConfig
    mu: Tensor

    def prompts(self, width: int, scenario: Scenario) -> dict[int, Prompt]:
        """:class:`PromptComponents` for every block."""
        o = self.options
        check_places("blocks", o.blocks, "length", o.length)
        if o.pool < scenario.n_tasks:
            raise ConfigError(
                f"strategy.pool={o.pool} has to be at least {scenario.n_tasks}, a component for every task of {scenario.name}"
            )
        return {block: PromptComponents(o.pool, o.length, width, scenario.n_tasks) for block in o.blocks}

    def penalty(self, batch: Batch, outputs: Outputs) -> Tensor | None:
        """The penalty on components that are not orthogonal."""
        prompts = cast(Iterable[PromptComponents], self.network.of_blocks())
        return self.mu * torch.stack([prompt.orthogonality_loss() for prompt in prompts]).sum()
