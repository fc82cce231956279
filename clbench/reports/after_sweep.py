"""A sweep or a study: how far it is while it runs, and its comparison at the end."""

import logging
import sys
import time
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from clbench.errors import ClbenchError
from clbench.progress import in_words
from clbench.records.run_folder import RunFolder

log = logging.getLogger(__name__)

ENDED = ("finished", "diverged", "failed")

_launched: list[DictConfig] = []


class SweepReport(Callback):
    """Hydra's callback that notes where a sweep goes and says how far it is; registered in conf/config.yaml.

    Launchers send it to their workers, so that whoever has made a run counts the folders of all.
    """

    def __init__(self) -> None:
        self._folder: Path | None = None
        self._n = self._n_before = self._n_said = 0
        self._started = 0.0

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Called in the launching process, with the configuration of the sweep."""
        _launched.append(config)

    def expect(self, folder: Path, n: int) -> None:
        """Take note that ``n`` runs are to be made below ``folder``, of which some may have been made already."""
        self._folder, self._n = folder.absolute(), n
        self._n_before = self._n_said = n_ended(self._folder)
        self._started = time.time()

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        """Called in the process that has made a run."""
        if self._folder is None:
            return
        n = n_ended(self._folder)
        if n == self._n_said:
            return
        self._n_said = n
        left = (self._n - n) * (time.time() - self._started) / max(1, n - self._n_before)
        print(f"{n} of {self._n} runs" + (f", {in_words(left)} left" if n < self._n else ""), file=sys.stderr)


def n_ended(folder: Path) -> int:
    """How many runs below a folder have come to an end."""
    return sum(RunFolder(file.parent).status in ENDED for file in folder.rglob("summary.json"))


def conclude_sweep() -> None:
    """Show the comparison of the sweep that has been launched in this process, and write its report.

    Runs that cannot be compared (of different budgets, say) are no error here: a sentence says why there is no comparison.
    """
    if not _launched:
        return
    config = _launched.pop()
    folder = Path(str(config.hydra.sweep.dir))
    if not any(folder.rglob("summary.json")):
        return
    from clbench.reports.command import show_comparison

    try:
        show_comparison([str(folder)], folder / "report" if config.record.report else None)
    except ClbenchError as error:
        print(f"no comparison of {folder}: {error}", file=sys.stderr)
