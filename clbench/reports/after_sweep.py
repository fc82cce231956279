"""A sweep or a study writes its comparison report on its own at the end."""

import logging
import sys
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from clbench.errors import ClbenchError

log = logging.getLogger(__name__)

_launched: list[DictConfig] = []


class SweepReport(Callback):
    """Hydra's callback that notes where a sweep goes; registered in conf/config.yaml."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Called in the launching process, with the configuration of the sweep."""
        _launched.append(config)


def write_report_of_sweep() -> None:
    """Report on the sweep that has been launched in this process, if one was and it left any runs.

    Runs that cannot be compared (of different budgets, say) are no error here: a sentence says why there is no report.
    """
    if not _launched:
        return
    config = _launched.pop()
    folder = Path(str(config.hydra.sweep.dir))
    if not config.record.report or not any(folder.rglob("summary.json")):
        return
    from clbench.reports.command import write_report

    try:
        file = write_report([str(folder)], folder / "report")
        print(f"report: {file}")
    except ClbenchError as error:
        print(f"no report of {folder}: {error}", file=sys.stderr)
