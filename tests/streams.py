"""Every strategy in every setting it is defined for, as parameters of tests."""

import pytest

from clbench.registry import STRATEGIES
from clbench.testing.small_runs import Case, setting_of


def digits_for(name: str) -> str:
    """The scenario of digits that the strategy is defined for: the default one, or its task-incremental sister."""
    return {"class": "split_digits", "task": "split_digits_task"}[setting_of(name, "class")]


def _parameter(name: str, setting: str, is_slow: bool):
    case = Case(name, setting)
    return pytest.param(case, id=str(case), marks=pytest.mark.slow if is_slow else ())


def _in_turn(offset: int) -> list:
    """Every strategy in one setting, in another from strategy to strategy; its other settings are slow."""
    cases = []
    for index, name in enumerate(STRATEGIES.names()):
        settings, in_turn = STRATEGIES[name].needs.settings, 0 if STRATEGIES[name].needs.transformer else index + offset
        cases += [_parameter(name, setting, setting != settings[in_turn % len(settings)]) for setting in settings]
    return cases


IN_TURN = _in_turn(0)
"""Every strategy and every setting it is defined for; each pair that is not in turn is slow. What acts within a transformer does
the same in every setting."""

IN_TURN_FROM_THE_NEXT = _in_turn(1)
"""The same, with each strategy in another setting."""

ONCE = [_parameter(name, setting_of(name, "class"), is_slow=False) for name in STRATEGIES.names()]
"""Every strategy in one setting."""
