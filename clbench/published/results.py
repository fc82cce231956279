"""The runs of a published cell, read from their folders."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import DictConfig, OmegaConf

from clbench.compose import load_run_config
from clbench.config import without_hydra
from clbench.errors import DamagedRecord
from clbench.published.comparison import Compared, compared
from clbench.published.tables import PublishedCell
from clbench.reports.labels import flat_leaves, is_of_the_method
from clbench.reports.loading import load


@dataclass(frozen=True)
class Result:
    """A published figure and what runs have found."""

    cell: PublishedCell
    verdict: str
    """One of :data:`clbench.published.comparison.VERDICTS`."""

    compared: Compared | None = None
    """None where no run has ended, or none has the metric."""

    runs: pd.DataFrame = field(default_factory=pd.DataFrame)
    """Rows of :attr:`clbench.reports.loading.Runs.table`: the runs of the cell's configuration."""

    strategy: str = ""
    reason: str = ""
    """Why there is no figure, or not one over all seeds."""

    @property
    def seeds(self) -> list[int]:
        """Those that the mean is over."""
        return sorted(int(seed) for seed in self.runs[self.runs.status == "finished"].seed) if len(self.runs) else []


def read_result(cell: PublishedCell, folder: Path, config: DictConfig | None, failure: str = "") -> Result:
    """What the runs below ``folder`` say of a cell.

    Args:
        cell: the published figure.
        folder: with a run folder for every seed; it need not be there.
        config: the configuration that its overrides make, of any seed; None where they make none. Runs of another are left out.
        failure: why there is no configuration, or which runs could not be made just now.
    """
    if cell.missing or config is None:
        return Result(cell, "not possible", reason=cell.missing or failure)
    strategy = "+".join([config.strategy.name, *config.strategy.plus])
    files = sorted(folder.glob("*/config.yaml"))
    # A run that was killed while it was set up has no summary yet, and is none.
    own = [f.parent for f in files if f.with_name("summary.json").exists() and _same_setting(f, config)]
    if not own:
        foreign = any(not _same_setting(file, config) for file in files)
        other = "there are runs of another configuration in its folder" if foreign else ""
        return Result(cell, "failed" if failure else "not run", strategy=strategy, reason=failure or other)
    runs = load(own).table
    values = [100 * float(value) for value in runs[runs.status == "finished"].get(cell.metric, _NONE).dropna()]
    found = compared(cell, values) if values else None
    recorded = [str(reason) for reason in runs.get("reason", _NONE).dropna()]
    reasons = [failure, *(reason for reason in recorded if not failure or reason not in failure)]
    states = set(runs.status)
    if "diverged" in states:
        verdict = "diverged"
    elif failure or states & {"failed", "unreadable"}:
        verdict = "failed"
    else:
        verdict = found.verdict if found is not None else "not run"
    return Result(cell, verdict, found, runs, strategy, "; ".join(dict.fromkeys(filter(None, reasons))))


_NONE = pd.Series(dtype=object)
"""What a table without a column has in it."""


def _same_setting(file: Path, config: DictConfig) -> bool:
    """Whether a run's ``config.yaml`` computes what ``config`` does, with whatever seed, on whatever machine."""
    try:
        recorded = load_run_config(file)
    except DamagedRecord:
        return False
    return setting_of(recorded) == setting_of(config)


def setting_of(config: DictConfig) -> dict[str, Any]:
    """The options that say what is computed: dotted name → value."""
    values: dict[str, Any] = OmegaConf.to_container(without_hydra(config), resolve=True)  # type: ignore[assignment]
    return {name: value for name, value in flat_leaves(values) if is_of_the_method(name)}
