"""Weights & Biases: the same numbers as the run folder, sent where ``wandb.mode`` is offline or online."""

import hashlib
from pathlib import Path
from typing import Any, Literal, cast

import pandas as pd

from clbench.config import WandbConfig
from clbench.evaluation.metrics import last_of_iteration
from clbench.records.summary import Summary


class WandbLog:
    """Logs config, curves, summary and picture of one run; the library is imported only here.

    Args:
        config: mode, project, group.
        run_config: the run's resolved configuration.
        folder: the run folder; a resumed run continues under the same id.
    """

    def __init__(self, config: WandbConfig, run_config: dict[str, Any], folder: Path) -> None:
        import wandb

        self._wandb = wandb
        self._last_iteration = -1
        self._run = wandb.init(
            mode=cast(Literal["online", "offline", "disabled"], config.mode),
            project=config.project,
            group=config.group,
            config=run_config,
            dir=str(folder),
            id=hashlib.blake2b(str(folder.resolve()).encode(), digest_size=8).hexdigest(),
            resume="allow",
        )
        self._run.define_metric("iteration")
        self._run.define_metric("*", step_metric="iteration")

    def log_curve(self, curve: pd.DataFrame) -> None:
        """Log the iterations of the per-iteration table that have not been logged yet: of each its last state."""
        fresh = last_of_iteration(curve[curve.iteration > self._last_iteration])
        for iteration, rows in fresh.groupby("iteration"):
            accuracy = rows.correct / rows.n
            values = {f"accuracy/task_{task}": value for task, value in zip(rows.task_eval, accuracy, strict=True)}
            self._run.log({"iteration": int(iteration), "accuracy/mean": accuracy.mean(), **values})
            self._last_iteration = int(iteration)

    def finish(self, summary: Summary, figure: Path) -> None:
        """Log the summary and the picture, and close the run."""
        self._run.summary.update({"status": summary["status"], **summary["metrics"], **summary["costs"]})
        if figure.exists():
            self._run.log({"curve": self._wandb.Image(str(figure))})
        self._run.finish(exit_code=0 if summary["status"] == "finished" else 1)
