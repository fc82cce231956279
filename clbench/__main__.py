"""``python -m clbench``: one run, or a sub-command."""

import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from clbench import config as configuration


def train(composed: DictConfig) -> float:
    """One run, in the folder that Hydra has made for it."""
    from clbench.run import run

    folder = Path(HydraConfig.get().runtime.output_dir)
    summary = run(composed, folder)
    print(summary, folder)
    return summary["metrics"]["ACC"]


def main() -> None:
    configuration.store_schemas()
    hydra.main(config_path=str(configuration.conf_dir()), config_name="config", version_base="1.3")(train)()


if __name__ == "__main__":
    main()
