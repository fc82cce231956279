"""OVOR: OnePrompt with virtual outliers (Huang, Chen & Hsu 2024, arXiv:2402.04129).

:mod:`clbench.strategies.oneprompt`, with the regularised stage of :mod:`clbench.strategies.outliers` at the end of every task.
``strategy=oneprompt strategy.plus=[outliers]`` is the same; this one names and tunes its options together.
"""

from dataclasses import dataclass

from clbench.learning.base import Needs
from clbench.registry import STRATEGIES
from clbench.strategies.oneprompt import OnePrompt, OnePromptConfig
from clbench.strategies.outliers import TRAITS, Outliers, OutliersConfig


@dataclass
class OVORConfig(OutliersConfig, OnePromptConfig):
    """Options of ``strategy=ovor``."""


@STRATEGIES.register("ovor")
class OVOR(Outliers, OnePrompt):
    """One prompt for all tasks, and a head that is trained against virtual outliers at every task's end."""

    config = OVORConfig
    needs = Needs(transformer=True, vision=True, traits=TRAITS)
    options: OVORConfig
