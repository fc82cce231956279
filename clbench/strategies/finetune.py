"""Finetuning: train on each task in turn and do nothing about forgetting (the lower bound).

L = CE(f(x), y)   on the new samples
"""

from clbench.learning.base import Needs, Strategy
from clbench.registry import STRATEGIES


@STRATEGIES.register("finetune")
class Finetune(Strategy):
    """Cross-entropy on the new samples only; which logits it sees is ``scenario.logit_scope``."""

    needs = Needs(boundaries=False)
