"""What a strategy says of itself: its options, its bounds, what it needs, and how ``list`` and ``describe`` show it."""

import dataclasses
import inspect
import io
import os
from contextlib import redirect_stdout
from operator import attrgetter
from typing import Any
from unittest.mock import patch

import torch

from clbench import listing
from clbench.config import typed
from clbench.errors import ConfigError
from clbench.learning.base import Needs
from clbench.learning.traits import traits_of
from clbench.options import check_fields
from clbench.protocol.search_space import as_overrides, space_of
from clbench.registry import STRATEGIES
from clbench.testing.properties import require
from clbench.testing.small_runs import Case, composed


def check_needs(name: str) -> None:
    """The class declares its own ``needs``, of settings that there are, and a memory exactly where it has ``memory_size``."""
    cls = STRATEGIES[name]
    require(isinstance(vars(cls).get("needs"), Needs), f"the class of {name} has no needs = Needs(…) of its own")
    require(
        cls.needs.memory == ("memory_size" in cls.config.__dataclass_fields__),
        f"{name} declares needs.memory={cls.needs.memory}: a method that stores samples has an option memory_size, no other",
    )
    unknown = set(cls.needs.settings) - {"class", "task", "domain"}
    require(bool(cls.needs.settings) and not unknown, f"{name} is defined for the settings {cls.needs.settings}")
    traits_of(cls, composed(f"strategy={name}").strategy)  # raises where a trait is misspelt


def check_options_are_buffers(case: Case) -> None:
    """The learner's state holds the real-valued options, so that learners with different ones can be stacked."""
    strategy = case.setup().learner.strategies[0]
    for field, value in vars(strategy.options).items():
        if isinstance(value, float):
            held = strategy.state_dict().get(field)
            require(
                held is not None and held.shape == () and held == torch.tensor(value),
                f"the option {field} of {case.strategy} is {value}, and the buffer of this name holds {held}; usually __init__ "
                "does not call super().__init__(config, model, scenario)",
            )


def check_options_are_validated(name: str) -> None:
    """Every option has a help text, and values beside its bounds and choices are refused by the option's name."""
    cls = STRATEGIES[name].config
    given = typed(composed(f"strategy={name}")).strategy
    for field in dataclasses.fields(cls):
        require(bool(field.metadata.get("help")), f"the option {field.name} of {name} has no option(help=…)")
        for wrong in _wrong_values(field):
            try:
                check_fields(dataclasses.replace(given, **{field.name: wrong}), "strategy.")
            except ConfigError as error:
                require(f"strategy.{field.name}" in str(error), f"strategy.{field.name}={wrong} is refused by: {error}")
            else:
                raise AssertionError(f"strategy.{field.name}={wrong} is accepted, which its option(…) excludes")


def _wrong_values(field: Any) -> list[Any]:
    metadata = field.metadata
    wrong: list[Any] = []
    if metadata.get("choices"):
        wrong.append("no such choice")
    for bound, step in (("at_least", -1), ("above", 0), ("at_most", 1)):
        if metadata.get(bound) is not None:
            wrong.append(metadata[bound] + step)
    if wrong and field.type is float:
        wrong.append(float("nan"))
    return wrong


def check_described(name: str) -> None:
    """``list`` has a line for it, and ``describe`` its equation, its options and a command."""
    require(
        len(listing.one_line("strategy", name)) > 10,
        f"python -m clbench list has nothing to say of {name}: the first line of its module's docstring is shown there",
    )
    shown = described(name)
    require("=" in shown, f"python -m clbench describe {name} shows no equation: it shows the docstring of the module")
    for field in dataclasses.fields(STRATEGIES[name].config):
        require(f"strategy.{field.name}" in shown, f"describe {name} does not show the option {field.name}")
    require(f"strategy={name}" in shown, f"describe {name} shows no command")


def described(name: str) -> str:
    """What ``describe`` prints on a wide terminal."""
    with patch.dict(os.environ, {"COLUMNS": "200"}), redirect_stdout(io.StringIO()) as shown:
        listing.describe(name)
    return shown.getvalue()


def check_search(name: str) -> None:
    """What a tuning protocol tries (``search`` in its YAML) are options that exist, with values that can be run."""
    run = composed(f"strategy={name}")
    search = dict(run.strategy.search)
    made = space_of(run, {}, {}, set())
    require(
        set(made.distributions) == set(search), f"{name} is searched over {set(made.distributions)}, not {set(search)}"
    )
    require(not made.shared, f"{name} alone is searched over shared options: {made.shared}")
    for place in range(max((len(values) for values in search.values()), default=0)):
        values = {option: choices[place % len(choices)] for option, choices in search.items()}
        config = typed(composed(f"strategy={name}", *as_overrides(values)))
        found = {option: attrgetter(option)(config) for option in search}
        require(found == values, f"the search of {name} names {values}, and the run gets {found}")


def check_documented(name: str) -> None:
    """The class has a docstring, and its module one with more than a line."""
    cls = STRATEGIES[name]
    require(bool(vars(cls).get("__doc__")), f"the class of {name} has no docstring")
    module = inspect.getmodule(cls)
    require(
        bool(module and module.__doc__ and "\n" in module.__doc__),
        f"the module of {name} has a docstring of one line or none",
    )
