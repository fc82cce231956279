"""Frozen scenario definitions: ``scenarios/<name>/<version>.json`` says which classes and images a stream consists of."""

from clbench.config import ScenarioConfig
from clbench.scenarios.scenario import Scenario


def check_frozen(config: ScenarioConfig, scenario: Scenario) -> None:
    """Compare with the frozen definition."""
