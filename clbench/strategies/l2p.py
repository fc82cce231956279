"""L2P: a pool of prompts, of which every image finds its own (Wang et al. 2022, Learning to Prompt, arXiv:2112.08654).

    q(x): the features of the frozen network without prompts
    P(x) = [P_i : i ∈ S(x)],   S(x) = the top_k keys k_i with the largest cos(q(x), k_i)
    L = CE( z over the current task's classes, y ) + pull · mean over S(x) of (1 − cos(q(x), k_i))

as prefixes in front of keys and values (:mod:`clbench.models.prompts`), the "L2P++" of Smith et al. 2023 (CODA-Prompt,
arXiv:2211.13218); with ``blocks=[0,1,2,3,4]``, each with a pool of its own, their "deep" variant. Pool and keys are shared by
all tasks. Keys get a gradient from the second term alone, and nothing else does, so that with Adam, which does not
see how large a gradient is, ``pull`` makes no difference; with SGD it does.

Every image chooses by itself. What the released codes do otherwise is left out: L2P's majority vote over the batch, in
which the prompts of an image depend on the others and in training on their task; and a matching loss of CODA-Prompt's and
OVOR's code that pulls every query to the keys that any image of its batch has chosen. The original puts its prompts (pool 10,
length 5) in front of the tokens, which is another method than this one.
"""

from dataclasses import dataclass

from clbench.config import StrategyConfig
from clbench.errors import ConfigError
from clbench.learning.base import Needs
from clbench.learning.parts.prompting import KeyedPrompting, check_places
from clbench.models.prompt_pools import PromptPool
from clbench.models.prompts import Prompt
from clbench.options import option
from clbench.registry import STRATEGIES
from clbench.scenarios.scenario import Scenario


@dataclass
class L2PConfig(StrategyConfig):
    """Options of ``strategy=l2p``."""

    blocks: list[int] = option(help="blocks of the transformer, from 0, that get a pool of prompts")
    pool: int = option(help="prompts in the pool", at_least=1)
    length: int = option(help="vectors of each prompt: half of them keys, half values", at_least=2)
    top_k: int = option(help="prompts that an image gets", at_least=1)
    pull: float = option(help="weight of the loss that pulls chosen keys to the queries", at_least=0)


@STRATEGIES.register("l2p")
class L2P(KeyedPrompting):
    """The prompts of the keys nearest to an image's query."""

    config = L2PConfig
    needs = Needs(boundaries=False, transformer=True, vision=True, weights_only=True, traits=KeyedPrompting.TRAITS)
    options: L2PConfig

    def prompts(self, width: int, scenario: Scenario) -> dict[int, Prompt]:
        """One :class:`PromptPool` for every block."""
        o = self.options
        check_places("blocks", o.blocks, "length", o.length)
        if o.top_k > o.pool:
            raise ConfigError(f"strategy.top_k={o.top_k} has to be at most strategy.pool={o.pool}")
        return {block: PromptPool(o.pool, o.length, width, o.top_k) for block in o.blocks}
