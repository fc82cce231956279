"""A run alone, started from the configuration that was composed to check it.

Hydra's own entry point composes a configuration twice more: once to see whether many runs are asked for, and once to run it. Each
time takes about a tenth of what importing torch takes.
"""

from collections.abc import Callable
from typing import Any

from hydra import initialize_config_dir
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.utils import configure_log, run_job
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, read_write

from clbench.command_line.folders import NewFolder
from clbench.conf_files import conf_dir


def run_alone(composed: DictConfig, folder: NewFolder, task: Callable[[DictConfig], Any]) -> Any:
    """Do with a configuration what Hydra does with it: logging, callbacks, ``.hydra/``, the job itself; returns what it returns.

    Args:
        composed: with Hydra's part.
        folder: of the run.
        task: is handed the configuration without Hydra's part.
    """
    in_folder = folder.override("hydra.run.dir")
    with read_write(composed.hydra):
        composed.hydra.mode = RunMode.RUN
        composed.hydra.overrides.hydra.extend([*in_folder, "hydra.mode=RUN"])
        if in_folder:
            composed.hydra.run.dir = str(folder.path)
    with initialize_config_dir(config_dir=str(conf_dir()), version_base="1.3"):
        context = HydraContext(config_loader=GlobalHydra.instance().config_loader(), callbacks=Callbacks(composed))
        configure_log(composed.hydra.hydra_logging, composed.hydra.verbose)
        context.callbacks.on_run_start(config=composed, config_name="config")
        done = run_job(
            task_function=task, config=composed, job_dir_key="hydra.run.dir", job_subdir_key=None, hydra_context=context
        )
        context.callbacks.on_run_end(config=composed, config_name="config", job_return=done)
    return done.return_value
