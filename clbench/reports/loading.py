"""Run folders, read into one table: the only input of reports."""

import glob
import json
import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from clbench.errors import ConfigError
from clbench.evaluation.metrics import in_order
from clbench.records.summary import STATUSES, readable
from clbench.reports.labels import flat_leaves, method_labels

try:
    from yaml import CSafeLoader as YamlLoader  # ten times as fast; absent where PyYAML was built without libyaml
except ImportError:
    from yaml import SafeLoader as YamlLoader  # type: ignore[assignment]

IDENTITY = [
    "folder", "method", "strategy", "scenario", "scenario_hash", "model", "seed", "split", "status", "reason",
    "phase", "trial", "protocol", "evaluation_kind", "budget",
]  # fmt: skip
"""Columns of :attr:`Runs.table` that every row has; metrics, costs and :data:`PROVENANCE` follow."""

PROVENANCE = ["device", "torch", "clbench", "git_commit", "command"]

MEASUREMENT_COLUMNS = ["task_learning", "strategy", "quantity", "part", "value"]
PLASTICITY_COLUMNS = ["task_learning", "iteration", "probe", "quantity", "part", "value"]
CONNECTIVITY_COLUMNS = ["task_learning", "lam", "task_eval", "n", "correct", "loss"]

READ_STATUSES = (*STATUSES, "unreadable")

Leaves = dict[str, Any]
"""A configuration as a flat dict: dotted name → value; lists are values."""

FORMER_NAMES = {"average_incremental": "average_incremental_macro"}
"""Metrics of older run folders under the names they have now. What was called average incremental accuracy was the mean over the
tasks, not the share of all samples."""


@dataclass(frozen=True)
class Study:
    """A ``study.json``, as a protocol writes it, and the folder that its paths are relative to."""

    folder: Path
    content: dict[str, Any]

    def path(self, run: dict[str, Any]) -> Path:
        """The resolved folder of an entry of ``runs`` or ``evaluation``."""
        return (self.folder / run["folder"]).resolve()


@dataclass(frozen=True)
class Runs:
    """All runs found, one row each, and access to what their folders hold."""

    table: pd.DataFrame
    """Columns :data:`IDENTITY`, every metric of ``summary.json`` (fractions), every cost, :data:`PROVENANCE`; NaN or None where
    a run has no such value. ``status`` is one of :data:`READ_STATUSES`. ``notes``, lists of sentences, where a run has some."""

    studies: list[Study]

    configs: dict[str, Leaves]
    """Folder → configuration; empty where there is none to read."""

    def config(self, folder: str) -> Leaves:
        """The configuration of a run, dotted name → value."""
        return self.configs[folder]

    def curve(self, folder: str) -> pd.DataFrame:
        """``curve.parquet``: task_learning, iteration, task_eval, n, correct, loss, consolidated, on the evaluation subsets."""
        return in_order(pd.read_parquet(Path(folder) / "curve.parquet"))

    def subset_sizes(self, folder: str) -> tuple[float, float]:
        """The smallest and the largest number of samples of a task that the curve was evaluated on; NaN without a curve."""
        n = pd.read_parquet(Path(folder) / "curve.parquet", columns=["n"]).n
        return float(n.min()), float(n.max())

    def tasks(self, folder: str) -> pd.DataFrame:
        """``tasks.parquet``: the same columns but the last, on the full test sets at task ends."""
        return pd.read_parquet(Path(folder) / "tasks.parquet")

    def measurements(self, folder: str) -> pd.DataFrame:
        """``method.parquet``: task_learning, strategy, quantity, part, value; without rows where the method reports nothing."""
        file = Path(folder) / "method.parquet"
        return pd.read_parquet(file) if file.exists() else pd.DataFrame(columns=MEASUREMENT_COLUMNS)

    def plasticity(self, folder: str) -> pd.DataFrame:
        """``plasticity.parquet``: task_learning, iteration, probe, quantity, part, value; without rows where there is none."""
        file = Path(folder) / "plasticity.parquet"
        return pd.read_parquet(file) if file.exists() else pd.DataFrame(columns=PLASTICITY_COLUMNS)

    def connectivity(self, folder: str) -> pd.DataFrame:
        """``connectivity.parquet``: task_learning, lam, task_eval, n, correct, loss; without rows where there is none."""
        file = Path(folder) / "connectivity.parquet"
        return pd.read_parquet(file) if file.exists() else pd.DataFrame(columns=CONNECTIVITY_COLUMNS)

    def stream(self, folder: str) -> dict[str, Any]:
        """``scenario.json``: name, hash, frozen name, note and every task's classes, sizes and hashes."""
        return json.loads((Path(folder) / "scenario.json").read_text(encoding="utf-8"))

    @property
    def resolved_folders(self) -> pd.Series:
        """The folder of every row without links and relative parts, as :meth:`Study.path` gives them."""
        return self.table.folder.map(lambda folder: str(Path(folder).resolve()))

    def relabelled(self, by: list[str]) -> pd.DataFrame:
        """The table with the column ``method`` made from ``by``, see :func:`clbench.reports.labels.method_labels`."""
        return self.table.assign(method=method_labels(self.table, self.configs, by))


def load(paths: Iterable[str | Path]) -> Runs:
    """Read every run folder and every study at or below ``paths``.

    A folder that cannot be read becomes a row with status ``unreadable`` and the reason; nothing is left out silently.

    Args:
        paths: folders or glob patterns.

    Raises:
        ConfigError: one of the paths holds no run.
    """
    rows: dict[Path, dict[str, Any]] = {}
    configs: dict[str, Leaves] = {}
    studies: dict[Path, Study] = {}
    for path in paths:
        found = False
        for folder in _folders_below(path):
            where = folder.resolve()
            if (folder / "study.json").is_file() and where not in studies:
                studies[where] = Study(folder, _read_study(folder))
            if _is_run(folder):
                found = True
                if where not in rows:
                    rows[where], configs[str(folder)] = _read_run(folder)
        if not found:
            raise ConfigError(
                f"there is no run in {str(path)!r}: name run folders, folders that hold some, or a pattern such as "
                "'outputs/2026-*'"
            )
    table = pd.DataFrame(rows.values())
    table = table.reindex(columns=[*IDENTITY, *(name for name in table.columns if name not in IDENTITY)])
    undefined = [name for name in table if name not in IDENTITY and table[name].isna().all()]
    table[undefined] = table[undefined].astype(float)  # a metric that no run defines is still a number
    runs = Runs(table, list(studies.values()), configs)
    return Runs(runs.relabelled(["method"]), runs.studies, configs)


def _folders_below(path: str | Path) -> Iterator[Path]:
    """Every folder at or below a folder or pattern, sorted; nothing below run folders, nothing hidden."""
    # A folder's own name may hold the characters of a pattern, as in "lam=[1,2]".
    matches = [str(path)] if Path(path).exists() else sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207
    for match in matches:
        for folder, subfolders, _ in os.walk(match):
            yield Path(folder)
            if _is_run(Path(folder)):
                subfolders.clear()
            subfolders[:] = sorted((name for name in subfolders if not name.startswith(".")), key=_natural)


def _natural(name: str) -> tuple[float, str]:
    """Hydra numbers the jobs of a sweep 0, 1, …, 10: in this order, not 0, 1, 10."""
    return (int(name), "") if name.isdecimal() else (math.inf, name)


def _is_run(folder: Path) -> bool:
    return (folder / "summary.json").is_file() or (folder / "config.yaml").is_file()


def _read_study(folder: Path) -> dict[str, Any]:
    try:
        content = json.loads((folder / "study.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder / 'study.json'} cannot be read: {error}") from error
    chosen = content["protocol"]["metric"]
    content["protocol"]["metric"] = FORMER_NAMES.get(chosen, chosen)
    return content


def _with_present_names(metrics: dict[str, Any]) -> dict[str, Any]:
    return {FORMER_NAMES.get(name, name): value for name, value in metrics.items()}


def _read_run(folder: Path) -> tuple[dict[str, Any], Leaves]:
    """A row of :attr:`Runs.table`, without its label, and the configuration."""
    row: dict[str, Any] = {"folder": str(folder), "status": "unreadable"}
    leaves: Leaves = {}
    try:
        leaves = _read_config(folder)
        row |= _from_config(leaves)
        file = folder / "summary.json"
        summary = readable(json.loads(file.read_text(encoding="utf-8")), file)
        metrics, costs = _with_present_names(summary.get("metrics", {})), summary.get("costs", {})
        apart = {"format", "metrics", "costs"}
        if not summary.get("notes"):  # an empty list, or a run folder from before there were notes
            apart.add("notes")
        rest = {name: value for name, value in summary.items() if name not in apart}
        row |= {**metrics, **costs, **_read_environment(folder), **rest}
    except FileNotFoundError as error:
        row |= {"status": "unreadable", "reason": f"{Path(error.filename).name} is missing"}
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        row |= {"status": "unreadable", "reason": f"{type(error).__name__}: {' '.join(str(error).split())}"}
    return row, leaves


def _read_config(folder: Path) -> Leaves:
    """The configuration; of a run that failed before it wrote one, what Hydra composed."""
    file = folder / "config.yaml"
    if not file.exists():
        file = folder / ".hydra" / "config.yaml"
    if not file.exists():
        return {}
    content = yaml.load(file.read_text(encoding="utf-8"), YamlLoader)
    if not isinstance(content, dict):
        raise ValueError("config.yaml is not a configuration")
    return dict(flat_leaves(content))


def _from_config(leaves: Leaves) -> dict[str, Any]:
    """What a row owes to the configuration; failed and running runs have nothing else."""
    if "strategy.name" not in leaves:
        return {}
    return {
        "strategy": "+".join([leaves["strategy.name"], *(leaves.get("strategy.plus") or [])]),
        "scenario": leaves.get("scenario.name"),
        "model": leaves.get("model.name"),
        "seed": leaves.get("seed"),
        "split": leaves.get("evaluator.split"),
        "phase": leaves.get("study.phase"),
        "trial": leaves.get("study.trial"),
        "protocol": leaves.get("study.protocol"),
        "evaluation_kind": _evaluation_kind(leaves),
        "budget": _budget(leaves),
    }


def _evaluation_kind(leaves: Leaves) -> str:
    """When the curve was evaluated. How many samples are in its subsets, the curve itself says: a task may have fewer."""
    if leaves.get("evaluator.kind") == "adaptive":
        return "adaptive"
    every = leaves.get("evaluator.every")
    return f"every={every}" if every else "task switches"


FIRST_TASK = "trainer.first_task."


def _budget(leaves: Leaves) -> str:
    epochs, steps = leaves.get("trainer.epochs"), leaves.get("trainer.max_steps_per_task")
    parts = []
    if epochs is not None:
        parts.append(f"{epochs} epochs")
    if steps is not None:
        parts.append(f"{steps} steps a task" if epochs is None else f"at most {steps} steps a task")
    parts.append(f"batch {leaves.get('trainer.batch_size')}")
    of_first = {name.removeprefix(FIRST_TASK): value for name, value in leaves.items() if name.startswith(FIRST_TASK)}
    given = [f"{name}={value}" for name, value in of_first.items() if value is not None]
    return ", ".join([*parts, *(["first task: " + " ".join(given)] if given else [])])


def _read_environment(folder: Path) -> dict[str, Any]:
    file = folder / "environment.json"
    if not file.exists():  # a run that failed before its first step
        return {}
    content = json.loads(file.read_text(encoding="utf-8"))
    git = content.get("git") or {}
    commit = git.get("commit")
    return {
        "device": content.get("device"),
        "torch": (content.get("packages") or {}).get("torch"),
        "clbench": content.get("clbench"),
        "git_commit": f"{commit}, with changes" if commit and git.get("dirty") else commit,
        "command": content.get("command"),
    }
