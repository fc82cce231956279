"""What the tests of the tuning protocols share: configurations, options, and a launcher that makes runs without training."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig

from clbench.compose import store_schemas
from clbench.conf_files import conf_dir
from clbench.protocol.options import ProtocolConfig
from clbench.records.run_folder import RunFolder


@functools.cache
def _composed(groups: tuple[str, ...], values: tuple[str, ...]) -> DictConfig:
    """The configuration of a choice of files, and what Hydra does last: setting single values."""
    if values:
        composed = _composed(groups, ()).copy()
        ConfigLoaderImpl._apply_overrides_to_config(OverridesParser.create().parse_overrides(list(values)), composed)
        return composed
    GlobalHydra.instance().clear()
    with initialize_config_dir(config_dir=str(conf_dir()), version_base="1.3"):
        return hydra_compose("config", overrides=list(groups), return_hydra_config=True)


@pytest.fixture(scope="session")
def compose() -> Callable[[list[str]], DictConfig]:
    """A function: overrides → configuration with Hydra's own part, as the sweeper's. It is made once: nobody may change it.

    Files are composed once for every choice of them, so that the many configurations of these tests take a tenth of the time.
    """
    store_schemas()

    def make(overrides: list[str]) -> DictConfig:
        values = [override for override in overrides if "." in override.partition("=")[0]]
        return _composed(tuple(o for o in overrides if o not in values), tuple(values))

    return make


@pytest.fixture(scope="session")
def options_of() -> Callable[..., ProtocolConfig]:
    """A function: options of a protocol that differ from a small one that tunes and evaluates on the same stream."""

    def make(**changes: Any) -> ProtocolConfig:
        small = {"kinds": ["conventional"], "trials": 4, "tuning_seeds": [0, 1], "evaluation_seeds": [100, 101]}
        return ProtocolConfig(**{**small, **changes})

    return make


@functools.cache
def _parsed(override: str) -> tuple[str, Any]:
    [parsed] = OverridesParser.create().parse_overrides([override])
    return parsed.key_or_group, parsed.value()


@dataclass
class MadeRuns:
    """A launcher that writes what a run leaves behind, from a formula in place of training.

    Attributes:
        folder: of the study.
        outcome: (option → value as the run sees it) → its score; or a status, or an error's text with which it fails.
        fuse: runs that come to their end before ``error`` is raised, with the next run half made; None: no error.
        began: folder of every run, in order, each time that it began.
        ended: the same for those that came to their end.
    """

    folder: Path
    outcome: Callable[[dict[str, Any]], float | str]
    fuse: int | None = None
    error: BaseException = field(default_factory=KeyboardInterrupt)
    began: list[str] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)
    launches: list[list[str]] = field(default_factory=list)
    values: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __call__(self, requests: list[Any]) -> None:
        """Make the runs one after the other."""
        self.launches.append([request.folder for request in requests])
        left = self.fuse
        for request in requests:
            files = RunFolder(self.folder / request.folder)
            values = self.values[request.folder] = dict(_parsed(override) for override in request.overrides)
            self.began.append(request.folder)
            files.write_json("summary.json", {"status": "running"})
            if left == 0:
                raise self.error
            left = None if left is None else left - 1
            self._end(files, values)
            self.ended.append(request.folder)

    def _end(self, files: RunFolder, values: dict[str, Any]) -> None:
        outcome = self.outcome(values)
        costs = {"seconds": 1.0, "iterations": values.get("trainer.max_steps_per_task", 10)}
        tasks = [{"name": f"task {t}", "classes": [f"{t}a", f"{t}b"]} for t in range(2)]
        files.write_json(
            "scenario.json", {"setting": "class", "tasks": tasks, "hash": f"stream of seed {values['seed']}"}
        )
        if isinstance(outcome, float):
            metrics = {"average_incremental_pooled": outcome, "ACC": outcome / 2}
            files.write_json("summary.json", {"status": "finished", "reason": None, "metrics": metrics, "costs": costs})
        elif outcome == "diverged":
            metrics = {"average_incremental_pooled": None, "ACC": None}
            files.write_json(
                "summary.json", {"status": "diverged", "reason": "NaN", "metrics": metrics, "costs": costs}
            )
        else:
            files.write_json("summary.json", {"status": "failed", "reason": outcome})


@pytest.fixture(scope="session")
def made_runs() -> type[MadeRuns]:
    """A launcher that makes runs by a formula: (folder of the study, formula) → launcher."""
    return MadeRuns
