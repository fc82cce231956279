"""``protocol=…``: a sweep that tunes every method and then evaluates it (see clbench.protocol).

The sweeper hands runs to whichever launcher is chosen, so that a study works on one machine as on a cluster. Hydra finds
plugins by importing every module of this package, so that nothing heavy is imported here before a sweep begins.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

log = logging.getLogger(__name__)


@dataclass
class ProtocolSweeperConfig:
    """The options of a protocol are in the group ``protocol``."""

    _target_: str = "hydra_plugins.clbench_protocol.ProtocolSweeper"


ConfigStore.instance().store(
    group="hydra/sweeper", name="clbench_protocol", node=ProtocolSweeperConfig, provider="clbench"
)


class ProtocolSweeper(Sweeper):
    """Runs a study; see the module docstring."""

    config: DictConfig
    hydra_context: HydraContext
    launcher: Launcher

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called by Hydra."""
        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )
        self._n_launched = 0

    def sweep(self, arguments: list[str]) -> None:
        """Make the study that the command line describes, in ``hydra.sweep.dir``."""
        self._study(arguments).run()

    def _study(self, arguments: list[str]) -> Any:
        from clbench.options import check_fields, to_dataclass
        from clbench.protocol.methods import methods_of
        from clbench.protocol.study import Study
        from clbench.records.run_folder import command_line
        from hydra_plugins.clbench_sweep import expect_runs

        options = to_dataclass(self.config.protocol)
        check_fields(options, "protocol.")
        options.check()
        methods = methods_of(arguments, options, self._compose)
        folder = Path(str(self.config.hydra.sweep.dir)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "study.json").exists():  # what lies there may be another study, which is refused later
            OmegaConf.save(self.config, folder / "multirun.yaml")
        log.info("the study is in %s", folder)
        best = None if options.best is None else Path(str(self.config.hydra.runtime.cwd)) / options.best

        def expect(n: int) -> None:
            log.info("%d runs at most", n)
            expect_runs(self.hydra_context, folder, n)

        return Study(folder, methods, options, self._compose, self._launch, command_line(), best, expect)

    def _compose(self, overrides: list[str]) -> DictConfig:
        from clbench.errors import ConfigError

        try:
            config = self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
        except Exception as error:  # Hydra's and OmegaConf's, all of which mean that the overrides are wrong
            reason = error.__cause__ or error
            raise ConfigError(f"{' '.join(overrides)}: {str(reason).splitlines()[0]}") from error
        with open_dict(config):
            config.hydra.job.id = config.hydra.job.num = 0
        return config

    def _launch(self, requests: list[Any]) -> None:
        from clbench.options import override_value

        folder = override_value(str(Path(str(self.config.hydra.sweep.dir)).absolute()))  # a worker may work elsewhere
        jobs = [
            [*request.overrides, f"hydra.sweep.dir={folder}", f"hydra.sweep.subdir={override_value(request.folder)}"]
            for request in requests
        ]
        first, self._n_launched = self._n_launched, self._n_launched + len(jobs)
        self.launcher.launch(jobs, initial_job_idx=first)
