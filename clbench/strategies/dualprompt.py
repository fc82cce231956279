"""DualPrompt: prompts for all tasks, and one for each task (Wang et al. 2022, arXiv:2204.04799).

    at the general blocks   one prompt, trained by all tasks (G)
    at the expert blocks    prompts e_t with keys k_t, one for every task (E):
                            in training e_t of the current task t, in evaluation the one whose key has the largest cos(q(x), k)
    L = CE( z over the current task's classes, y ) + pull · mean over samples and expert blocks of (1 − cos(q(x), k_t))

q(x) are the features of the frozen network without prompts. In task t nothing of the other tasks' e and k gets a gradient; with
an optimizer that starts anew in every task and without weight decay they stay as they are. With Adam ``pull`` makes no
difference, as in L2P (:mod:`clbench.strategies.l2p`).

There are as many prompts e_t as the scenario has tasks. Keys of tasks that have not begun do not compete in evaluation; in
the code of CODA-Prompt and OVOR they do, with the values that they were drawn with. A task's prompt and key begin as they were
drawn too; LAMDA-CL/LAMDA-PILOT copies those of the task before. Replayed samples (``strategy.plus=[er]``) pass through the
current task's prompts as well. In task-incremental streams the prompt is found by its key although the task is given.
"""

from dataclasses import dataclass

from clbench.config import StrategyConfig
from clbench.errors import ConfigError
from clbench.learning.base import Needs
from clbench.learning.parts.prompting import KeyedPrompting, check_places
from clbench.models.prompt_pools import TaskPrompts
from clbench.models.prompts import Prefix, Prompt
from clbench.options import option
from clbench.registry import STRATEGIES
from clbench.scenarios.scenario import Scenario


@dataclass
class DualPromptConfig(StrategyConfig):
    """Options of ``strategy=dualprompt``."""

    general_blocks: list[int] = option(help="blocks of the transformer, from 0, that get a prompt for all tasks")
    general_length: int = option(help="vectors of each of these: half of them keys, half values", at_least=2)
    expert_blocks: list[int] = option(help="blocks that get a prompt for every task")
    expert_length: int = option(help="vectors of each of these", at_least=2)
    pull: float = option(help="weight of the loss that pulls the task's key to the queries", at_least=0)


@STRATEGIES.register("dualprompt")
class DualPrompt(KeyedPrompting):
    """Shared prompts, and those of the task whose key is nearest to an image's query."""

    config = DualPromptConfig
    needs = Needs(transformer=True, vision=True, traits=KeyedPrompting.TRAITS)
    options: DualPromptConfig

    def prompts(self, width: int, scenario: Scenario) -> dict[int, Prompt]:
        """A :class:`Prefix` for every general block, :class:`TaskPrompts` for every expert block."""
        o = self.options
        check_places("general_blocks", o.general_blocks, "general_length", o.general_length)
        check_places("expert_blocks", o.expert_blocks, "expert_length", o.expert_length)
        twice = sorted(set(o.general_blocks) & set(o.expert_blocks))
        if twice:
            raise ConfigError(
                f"strategy.general_blocks={o.general_blocks} and strategy.expert_blocks={o.expert_blocks} both name block "
                f"{twice[0]}: a block can have one kind of prompt"
            )
        general = {block: Prefix(o.general_length, width) for block in o.general_blocks}
        expert = {block: TaskPrompts(scenario.n_tasks, o.expert_length, width) for block in o.expert_blocks}
        return {**general, **expert}
