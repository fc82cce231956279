"""Configurations, composed once for every choice of files: that is what takes time."""

import functools

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig

from clbench.compose import compose

GROUPS = (
    "strategy",
    "scenario",
    "model",
    "evaluator",
    "experiment",
    "protocol",
    "debug",
    "training",
    "local",
    "search_space",
)
"""What chooses a file of the Hydra tree."""


@functools.cache
def composed(*overrides: str) -> DictConfig:
    """The configuration of overrides, as :func:`clbench.compose.compose` makes it. It is made once: nobody may change it.

    Composing takes longer than a small run, so that files are composed once for every choice of them; setting single values
    is what Hydra does last.
    """
    groups = [override for override in overrides if override.partition("=")[0] in GROUPS]
    values = [override for override in overrides if override not in groups]
    if not values:
        return compose(groups)
    config = composed(*groups).copy()
    ConfigLoaderImpl._apply_overrides_to_config(OverridesParser.create().parse_overrides(values), config)
    return config
