"""Data of the user's own (``scenario.source=folder``) have a name of their own, and say what was not chosen for them."""

import dataclasses

from omegaconf import OmegaConf

from clbench.conf_files import conf_dir
from clbench.config import RunConfig
from clbench.errors import ConfigError
from clbench.scenarios.scenario import Scenario

OWN = "folder"


def refuse_borrowed_name(config: RunConfig) -> None:
    """Own data recorded as ``split_digits`` would be compared with results on digits.

    Raises:
        ConfigError: the source is a folder, and ``scenario.name`` is that of a scenario of other data.
    """
    name = config.scenario.name
    file = conf_dir() / "scenario" / f"{name}.yaml"
    if config.scenario.source != OWN or not file.exists():
        return
    source = OmegaConf.load(file).scenario.source
    if source != OWN:
        folder = (config.data.folder or "my_data").rstrip("/").rsplit("/", 1)[-1]
        raise ConfigError(
            f"scenario.source={OWN} is not {source}, the data of scenario {name}, under whose name the run would be recorded: "
            f"give it a name of its own, e.g. scenario.name={folder}"
        )


def with_own_note(config: RunConfig, scenario: Scenario) -> Scenario:
    """The scenario; of own data, with a note that their schedule and network are inherited where the user set none."""
    if config.scenario.source != OWN:
        return scenario
    trainer = config.trainer
    lengths = {"epochs": trainer.epochs, "steps a task at most": trainer.max_steps_per_task}
    budget = ", ".join(f"{n} {unit}" for unit, n in lengths.items() if n is not None)
    note = (
        f"own data: {budget}, batch {trainer.batch_size}, lr={trainer.lr:g} and model={config.model.kind} suit other data unless "
        "you chose them"
    )
    return dataclasses.replace(scenario, note=f"{scenario.note}; {note}" if scenario.note else note)
