"""Which runs may train as one stack.

Runs do whose configurations differ only in the seed, the class order, real-valued options of strategies and optimizer, and in
what is recorded how. All else (scenario, model, batch size, memory size, …) decides about the shape of what is computed.
"""

import json
from typing import Any

from omegaconf import DictConfig, OmegaConf

from clbench.registry import STRATEGIES

OWN = ("seed", "record", "wandb", "progress", "study")
"""Parts of a configuration in which members of a fleet may differ freely."""

REAL_VALUED = ("strategy", "plus", "trainer")
"""Parts in which they may differ in real values."""


def grouped(configs: list[DictConfig], largest: int, at_least: int = 1) -> list[list[int]]:
    """The runs, by their numbers, in groups that may train as one stack, in the order of their first runs.

    Args:
        configs: of all runs.
        largest: runs in a group at most.
        at_least: groups to form, where there are as many runs: one for every worker that can train.
    """
    groups: dict[str, list[int]] = {}
    for number, config in enumerate(configs):
        key = f"alone {number}" if why_alone(config) else _shape(config)
        groups.setdefault(key, []).append(number)
    largest = min(largest, max(1, -(-len(configs) // at_least)))
    parts: list[list[int]] = []
    for group in groups.values():
        n_parts = -(-len(group) // largest)
        size = -(-len(group) // n_parts)  # nearly equal parts: the last is not left with a few
        parts += [group[start : start + size] for start in range(0, len(group), size)]
    return parts


def why_alone(config: DictConfig) -> str:
    """Why runs of this configuration cannot be stacked, a clause; empty if they can."""
    for name in (config.strategy.name, *config.strategy.plus):
        reason = STRATEGIES[name].needs.alone
        if reason:
            return f"{name}: {reason}"
    if arrives_otherwise(config.scenario):
        return "which classes have been seen is found out, and counted, run by run"
    if config.model.get("dropout"):
        return "dropout draws from the one generator of a run"
    if config.evaluator.diagnostics_every:
        return "diagnostics look into the gradients of one run"
    if config.trainer.precision == "fp16":
        return "with fp16 every run scales its loss by itself"
    return ""


def arrives_otherwise(scenario: DictConfig) -> bool:
    """Whether classes need not arrive each with its task, or nobody is told when they do."""
    if scenario.boundaries == "hidden" or scenario.kind in ("blurry", "class_repetition"):
        return True
    return scenario.kind == "class_incremental" and (
        scenario.drift is not None or scenario.boundaries not in (None, "told")
    )


def _shape(config: DictConfig) -> str:
    """Everything in which members of a fleet are equal, as text."""
    values: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    for name in OWN:
        values.pop(name)
    values["scenario"].pop("class_order", None)
    for name in REAL_VALUED:
        values[name] = _without_reals(values[name])
    return json.dumps(values, sort_keys=True, default=str)


def _without_reals(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_reals(part) for key, part in value.items()}
    return "real" if isinstance(value, float) else value
