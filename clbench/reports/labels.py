"""What a run is called in a comparison: its strategy, and the options in which runs of that strategy differ."""

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

import pandas as pd
from omegaconf import DictConfig, OmegaConf

from clbench.errors import ConfigError, choose_from

NOT_THE_METHOD = (
    "seed", "device", "progress", "study", "protocol", "record", "wandb", "strategy.search",
    "data.root", "data.download", "data.placement",
    "trainer.threads", "trainer.compile", "evaluator.batch_size", "evaluator.diagnostics_every",
    "evaluator.plasticity_every", "evaluator.connectivity_points", "evaluator.kl_from", "scenario.name", "scenario.frozen",
)  # fmt: skip
"""Options, or groups of them, that say where and how a run was computed or recorded, not what was computed."""


def method_labels(table: pd.DataFrame, configs: dict[str, dict[str, Any]], by: list[str]) -> pd.Series:
    """A label for every run, such as ``ewc (lam=10, lr=0.1)``.

    Args:
        table: the runs, with the columns folder, strategy, scenario and those that ``by`` names.
        configs: folder → configuration, dotted name → value.
        by: what makes a method. ``method`` is the strategy with the options in which runs of this strategy differ within a
            scenario (for runs of a study: the study's own name of the method); ``strategy`` the strategy alone; any other
            column or option adds its value, to a study's own name only where runs of that name differ in it. Tables are per
            scenario, so ``scenario`` adds nothing.

    Raises:
        ConfigError: ``by`` names neither a column nor an option.
    """
    options = {name for leaves in configs.values() for name in leaves}
    for name in by:
        if name not in options and name not in table.columns:
            raise ConfigError(choose_from("column or option in --by", name, options | set(table.columns)))
    differing = {}
    if "method" in by:
        differing = {
            key: differing_options([configs[folder] for folder in rows.folder])
            for key, rows in table.groupby(["strategy", "scenario"], dropna=False)
        }
    added = [name for name in by if name not in ("method", "strategy", "scenario")]
    values_of_studied: dict[tuple[str, str], set[str]] = {}
    for row in table.to_dict("records"):
        for name in added:
            value = _key(configs[row["folder"]].get(name, row.get(name)))
            values_of_studied.setdefault((str(configs[row["folder"]].get("study.method")), name), set()).add(value)
    labels = []
    for row in table.to_dict("records"):
        leaves = configs[row["folder"]]
        base, names = "", list(added)
        if "method" in by or "strategy" in by:
            base = row["strategy"] if isinstance(row["strategy"], str) else "unknown"
        if "method" in by:
            if leaves.get("study.method"):
                base = leaves["study.method"]
                names = [name for name in added if len(values_of_studied[base, name]) > 1]
            else:
                # pandas turns None into NaN in keys, and NaN equals nothing: such rows have no strategy and no options
                own = differing.get((row["strategy"], row["scenario"]), [])
                names = [*own, *(name for name in added if name not in own)]
        shown = [
            f"{short}={shown_value(leaves.get(name, row.get(name)))}" for name, short in short_names(names).items()
        ]
        labels.append(" ".join(filter(None, [base, f"({', '.join(shown)})" if base and shown else ", ".join(shown)])))
    return pd.Series(labels, index=table.index, dtype=object)


def differing_options(configs: Iterable[dict[str, Any]]) -> list[str]:
    """The options, in their order in the files, that do not have one value in all of ``configs``.

    Options that are not the method's (:data:`NOT_THE_METHOD`) and runs of studies, which have names of their own, are
    left out. An option that only some configurations have counts as differing.
    """
    configs = [leaves for leaves in configs if leaves and not leaves.get("study.method")]
    names = dict.fromkeys(name for leaves in configs for name in leaves)
    return [
        name for name in names if is_of_the_method(name) and len({_key(leaves.get(name)) for leaves in configs}) > 1
    ]


def swept_options(configs: list[DictConfig]) -> list[dict[str, str]]:
    """Of every run the options in which the runs differ beside the seed, by their short names."""
    flat = [dict(flat_leaves(OmegaConf.to_container(config, resolve=True))) for config in configs]
    names = short_names(differing_options(flat))
    return [{short: shown_value(leaves.get(name)) for name, short in names.items()} for leaves in flat]


def flat_leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted name and value of everything in a nested configuration; lists are values."""
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from flat_leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def is_of_the_method(name: str) -> bool:
    """Whether an option says what was computed; one of an added strategy (``plus.ewc.lam``) does, what its tuning tries not."""
    if name == "plus" or re.match(r"plus\.\w+\.search\b", name):
        return False
    return not any(name == ignored or name.startswith(f"{ignored}.") for ignored in NOT_THE_METHOD)


def short_names(names: Iterable[str]) -> dict[str, str]:
    """Dotted name → its last part, or all of it where two names end alike."""
    names = list(names)
    last = [name.rsplit(".", 1)[-1] for name in names]
    return {name: short if last.count(short) == 1 else name for name, short in zip(names, last, strict=True)}


def _key(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def shown_value(value: Any) -> str:
    """An option's value as tables have it."""
    return f"{value:g}" if isinstance(value, float) else str(value)
