"""A run alone: composed once, and recorded and called as Hydra does it."""

import sys

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from omegaconf import OmegaConf
from small_commands import SMALL

CALLBACK = """\
from pathlib import Path
from hydra.experimental.callback import Callback

class Told(Callback):
    def on_run_start(self, config, **_):
        Path("told.txt").write_text(f"{config.hydra.mode.name} {config.seed}\\n")

    def on_job_end(self, config, job_return, **_):
        with Path("told.txt").open("a") as file:
            file.write(f"{job_return.status.name}\\n")

    def on_run_end(self, config, **_):
        with Path("told.txt").open("a") as file:
            file.write("over\\n")
"""


def test_the_configuration_is_composed_once(clb, monkeypatch):
    """It takes a tenth of what the import of torch takes; Hydra's entry point would do it twice more."""
    composed = []
    load = ConfigLoaderImpl.load_configuration
    monkeypatch.setattr(
        ConfigLoaderImpl, "load_configuration", lambda self, *a, **k: composed.append(1) or load(self, *a, **k)
    )
    assert clb(*SMALL)[0] == 0
    assert len(composed) == 1


def test_hydras_records_and_callbacks(clb, tmp_path, monkeypatch):
    (tmp_path / "telling.py").write_text(CALLBACK)
    monkeypatch.syspath_prepend(tmp_path)
    status, _, errors = clb(*SMALL, "seed=3", "+hydra.callbacks.told._target_=telling.Told")
    sys.modules.pop("telling", None)
    assert status == 0, errors
    assert (tmp_path / "told.txt").read_text().split() == ["RUN", "3", "COMPLETED", "over"]
    (folder,) = (tmp_path / "outputs").glob("*/*")
    hydras = OmegaConf.load(folder / ".hydra" / "hydra.yaml").hydra
    assert hydras.run.dir == str(folder.relative_to(tmp_path))
    assert hydras.runtime.output_dir == str(folder)
    assert hydras.overrides.task[-1] == "seed=3"
    assert f"hydra.run.dir={hydras.run.dir}" in hydras.overrides.hydra
    assert hydras.overrides.hydra[-1] == "hydra.mode=RUN"
    assert OmegaConf.load(folder / ".hydra" / "config.yaml").seed == 3


def test_hydras_debug_listing_is_there_when_it_is_asked_for(clb, tmp_path):
    status, output, errors = clb(*SMALL, "hydra.verbose=true", "seed=3")
    assert status == 0, errors
    listed = output + errors
    assert "Config search path" in listed
    assert "Installed Hydra Plugins" in listed
    (folder,) = (tmp_path / "outputs").glob("*/*")
    assert OmegaConf.load(folder / "config.yaml").seed == 3
