"""The sweeper of a plain sweep: Hydra's basic one, which says of every failed job why, and not of the first alone.

clbench puts it in the place of Hydra's in its own processes only (:func:`use_as_basic`).
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import OmegaConf


@dataclass
class SweepConfig:
    """Options as Hydra's basic sweeper has them: jobs that are launched at once, and overrides that are added."""

    _target_: str = "hydra_plugins.clbench_sweep.Sweep"
    max_batch_size: int | None = None
    params: dict[str, str] | None = field(default_factory=dict)


def use_as_basic() -> None:
    """Let ``hydra/sweeper=basic``, Hydra's default, mean this one. Hydra's own registers itself when plugins are looked for."""
    Plugins.instance()
    ConfigStore.instance().store(group="hydra/sweeper", name="basic", node=SweepConfig, provider="clbench")


class Sweep(BasicSweeper):
    """See the module docstring."""

    def sweep(self, arguments: list[str]) -> Any:
        """Run every job.

        Raises:
            RunFailed: jobs have failed; the others have been run.
        """
        assert self.config is not None
        assert self.launcher is not None
        assert self.hydra_context is not None
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        overrides = parser.parse_overrides([*self._parse_config(), *arguments])
        batches = self.split_arguments(overrides, self.max_batch_size)
        for batch in batches:
            self.validate_batch_is_legal(batch)
        folder = Path(str(self.config.hydra.sweep.dir))
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.config, folder / "multirun.yaml")
        jobs = list(itertools.chain.from_iterable(batches))
        expect_runs(self.hydra_context, folder, len(jobs))
        results: list[Sequence[JobReturn]] = []
        for batch in batches:
            results.append(self.launcher.launch(batch, initial_job_idx=sum(len(part) for part in results)))
        self._complain_of_failures(jobs, list(itertools.chain.from_iterable(results)))
        return results

    @staticmethod
    def _complain_of_failures(jobs: Sequence[Sequence[str]], results: list[JobReturn]) -> None:
        from clbench.errors import ConfigError, DataError, RunFailed

        failed = {number: r._return_value for number, r in enumerate(results) if r.status == JobStatus.FAILED}
        if not failed:
            return
        swept = [override for override in jobs[0] if any(override not in job for job in jobs)]
        keys = [override.partition("=")[0] for override in swept]
        lines = []
        for number, error in failed.items():
            own = " ".join(o for o in jobs[number] if o.partition("=")[0] in keys)
            lines.append(f"job {number}{f' ({own})' if own else ''} failed: {_reason(error)}")
        refused = all(isinstance(error, ConfigError | DataError) for error in failed.values())
        raise RunFailed("\n".join(lines), all_refused=refused and len(failed) == len(results))


def expect_runs(hydra_context: Any, folder: Path, n: int) -> None:
    """Tell clbench's callback how many runs there will be in ``folder``."""
    from clbench.reports.after_sweep import SweepReport

    for callback in hydra_context.callbacks.callbacks:
        if isinstance(callback, SweepReport):
            callback.expect(folder, n)


def _reason(error: Any) -> str:
    from clbench.machine_errors import explanation

    explained = explanation(error)
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}" if explained is None else str(explained)
