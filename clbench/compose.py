"""From YAML files and overrides, or from a run folder, to a configuration whose every key is known and typed."""

from pathlib import Path
from typing import Any, cast

import hydra
import yaml
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from clbench.conf_files import conf_dir, config_file, yaml_mapping
from clbench.config import RunConfig
from clbench.errors import ConfigError, DamagedRecord
from clbench.options import check_fields, to_dataclass
from clbench.protocol.options import ProtocolConfig
from clbench.registry import MODELS, SCENARIOS, STRATEGIES
from hydra_plugins.clbench_sweep import use_as_basic


def store_schemas() -> None:
    """Put the dataclass of every group, and of every registered name, into Hydra's ConfigStore.

    ``conf/strategy/ewc.yaml`` then begins with ``- schema/ewc@_here_`` in its defaults list, and a misspelt or mistyped
    option fails while the configuration is composed.
    """
    use_as_basic()
    _store(None, "run_schema", RunConfig)
    _store("protocol", "schema", ProtocolConfig)
    for group, registry in (("strategy", STRATEGIES), ("scenario", SCENARIOS), ("model", MODELS)):
        for name in registry.names():
            schema = registry[name].config
            _store(f"{group}/schema", name, schema)
            if group != "scenario" and config_file(group, name) is None:
                # Code of the user's, without a YAML file here: its dataclass has to have all defaults.
                named = {"name": name} if group == "strategy" else {"kind": name, "name": name}
                _store(group, name, schema(**named))


_STORED: dict[tuple[str | None, str], Any] = {}


def _store(group: str | None, name: str, node: Any) -> None:
    """Put a schema into the ConfigStore, once: that takes a third of the time of composing a configuration."""
    if _STORED.get((group, name)) != node:
        _STORED[group, name] = node
        ConfigStore.instance().store(group=group, name=name, node=node)


def compose(overrides: list[str], with_hydra: bool = False) -> DictConfig:
    """The configuration that ``python -m clbench <overrides>`` would run, for tests, tools and notebooks.

    Args:
        overrides: as on the command line.
        with_hydra: keep Hydra's own part.
    """
    store_schemas()
    GlobalHydra.instance().clear()
    with initialize_config_dir(config_dir=str(conf_dir()), version_base="1.3"):
        return hydra.compose("config", overrides=overrides, return_hydra_config=with_hydra)


def load_run_config(path: Path) -> DictConfig:
    """The configuration in a run folder's ``config.yaml``, typed and checked like a composed one.

    Raises:
        DamagedRecord: it is cut off, or not what a run has written.
    """
    try:
        saved = OmegaConf.load(path)
        typed = OmegaConf.structured(RunConfig)
        typed.scenario = OmegaConf.structured(SCENARIOS[saved.scenario.kind].config)
        typed.strategy = OmegaConf.structured(STRATEGIES[saved.strategy.name].config)
        typed.model = OmegaConf.structured(MODELS[saved.model.kind].config)
        return cast(DictConfig, OmegaConf.merge(typed, saved))
    except (OmegaConfBaseException, yaml.YAMLError, UnicodeDecodeError) as error:
        first = str(error).splitlines()[0]
        raise DamagedRecord(f"{path} is damaged, or not of this version of clbench: {first}") from error


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
    file = config_file("strategy", name)
    values = OmegaConf.create({"name": name}) if file is None else yaml_mapping(file)
    values.pop("defaults", None)
    try:
        merged = OmegaConf.merge(OmegaConf.structured(options), values, changes)
    except Exception as error:  # OmegaConf has no common base for "no such key" and "wrong type"
        raise ConfigError(f"plus.{name}: {str(error).splitlines()[0]}") from error
    options = to_dataclass(cast(DictConfig, merged))
    check_fields(options, f"plus.{name}.")
    return options
