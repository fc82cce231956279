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


def _case(name: str, setting: str):
    """One strategy in one setting. What acts within a transformer is slower to test, and does the same in every setting."""
    needs = STRATEGIES[name].needs
    return _parameter(name, setting, needs.transformer and setting != needs.settings[0])


def _in_turn(index: int, name: str, setting: str):
    """One strategy in one setting, of which every strategy has another in turn; the other settings are slow."""
    needs = STRATEGIES[name].needs
    return _parameter(name, setting, setting != needs.settings[0 if needs.transformer else index % len(needs.settings)])


CASES = [_case(name, setting) for name in STRATEGIES.names() for setting in STRATEGIES[name].needs.settings]

IN_TURN = [
    _in_turn(index, name, setting)
    for index, name in enumerate(STRATEGIES.names())
    for setting in STRATEGIES[name].needs.settings
]
"""The same, for tests of what hardly depends on the setting: every strategy once, and every setting."""

ONCE = [_parameter(name, setting_of(name, "class"), is_slow=False) for name in STRATEGIES.names()]
"""Every strategy in one setting."""
