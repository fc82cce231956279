"""Options of the strategies in ``strategy.plus``: Hydra composes those of the main one alone."""

from typing import Any

from omegaconf import OmegaConf

from clbench import config as configuration
from clbench.config import RunConfig
from clbench.errors import ConfigError
from clbench.registry import STRATEGIES


def added_strategies(config: RunConfig) -> list[Any]:
    """The options of the strategies in ``strategy.plus``: those of their YAML files, changed by ``plus.<name>.*``.

    Raises:
        ConfigError: one is named twice, or has options and is not named.
    """
    unused = set(config.plus) - set(config.strategy.plus)
    if unused:
        raise ConfigError(
            f"options for {', '.join(sorted(unused))} are set under plus, but strategy.plus={config.strategy.plus} does not "
            "name it"
        )
    for name in config.strategy.plus:
        if name == config.strategy.name or config.strategy.plus.count(name) > 1:
            raise ConfigError(f"strategy.plus={config.strategy.plus} names {name} twice")
    return [added_strategy(name, config.plus.get(name) or {}) for name in config.strategy.plus]


def added_strategy(name: str, changes: dict[str, Any]) -> Any:
    """Options of a strategy in ``strategy.plus``: those of its YAML file, with ``changes``.

    Raises:
        ConfigError: an option does not exist, or its value is of the wrong type or not possible.
    """
    options = STRATEGIES[name].config
    file = configuration.config_file("strategy", name)
    values = OmegaConf.create({"name": name}) if file is None else OmegaConf.load(file)
    values.pop("defaults", None)
    try:
        merged = OmegaConf.merge(OmegaConf.structured(options), values, changes)
    except Exception as error:  # OmegaConf has no common base for "no such key" and "wrong type"
        raise ConfigError(f"plus.{name}: {str(error).splitlines()[0]}") from error
    options = configuration.to_dataclass(merged)
    configuration.check_fields(options, f"plus.{name}.")
    return options
