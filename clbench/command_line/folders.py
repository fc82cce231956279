"""The folder of a run or a sweep: a new one for every command, and none for a command that is refused."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from clbench.errors import ClbenchError, ConfigError
from clbench.options import override_value
from clbench.records.run_folder import RunFolder

WITHOUT_TRAINING = (
    ".hydra", ".lock", "clbench.log", "config.yaml", "scenario.json", "environment.json", "summary.json", "multirun.yaml",
)  # fmt: skip
"""What lies in a folder before the first step."""

RESULTS = ("checkpoint", "curve.parquet", "study.json", "optuna.journal")
"""What lies there only when something was done."""


def folder_of(composed: DictConfig, key: str) -> tuple[Path, bool]:
    """The folder that a composed configuration names for a run or a sweep, and whether it is named after the present time.

    Args:
        composed: with Hydra's part.
        key: ``run`` or ``sweep``.
    """
    pattern = OmegaConf.to_container(composed.hydra[key], resolve=False)["dir"]  # type: ignore[index, call-overload]
    before = HydraConfig.instance().cfg
    HydraConfig.instance().set_config(composed)  # which the folder's name may refer to
    try:
        return Path(str(composed.hydra[key].dir)), "${now:" in str(pattern)
    finally:
        HydraConfig.instance().cfg = before


class NewFolder:
    """The folder of a command.

    Args:
        named: the folder, and whether its name is that of the time: two commands in one second get different ones.
    """

    def __init__(self, named: tuple[Path, bool]) -> None:
        self.path, self._is_of_the_time = named
        self._refuse_long_names()
        self._parents_there = [folder for folder in self.path.absolute().parents if folder.exists()]
        self._is_new = self._make()
        self._files_there = set(self.path.iterdir())

    def override(self, key: str) -> list[str]:
        """The override that tells Hydra, where the folder is not the one it would make itself."""
        return [f"{key}={override_value(str(self.path))}"] if self._is_of_the_time else []

    @contextmanager
    def removed_if_refused(self) -> Iterator[None]:
        """Within this context, an error that comes before anything was trained takes the folder with it."""
        try:
            yield
        except (ClbenchError, OSError):
            self.remove()
            raise

    def _make(self) -> bool:
        """Make the folder; returns whether it was not there. One that is named after the time gets a number behind its name."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        first, number = self.path, 1
        while True:
            try:
                self.path.mkdir()
            except FileExistsError:
                if not self._is_of_the_time:
                    return False
                number += 1
                self.path = first.with_name(f"{first.name}-{number}")
            else:
                return True

    def _refuse_long_names(self) -> None:
        for part in self.path.parts:
            if len(part.encode()) > LONGEST_NAME:
                raise ConfigError(
                    f"the folder name {part[:40]}… has {len(part.encode())} bytes, more than the {LONGEST_NAME} that file "
                    "systems allow: choose another hydra.run.dir"
                )

    def remove(self) -> None:
        """Remove what the command has made, if nothing of it is a result and no other process is at work there."""
        if any(any(self.path.rglob(name)) for name in RESULTS) or any(map(_is_held, self.path.rglob(".lock"))):
            return
        if not self._is_new:  # the user's folder: only what is new in it
            for file in set(self.path.iterdir()) - self._files_there:
                if file.name in WITHOUT_TRAINING:
                    shutil.rmtree(file) if file.is_dir() else file.unlink()
            return
        shutil.rmtree(self.path)
        for folder in self.path.absolute().parents:
            if folder in self._parents_there or any(folder.iterdir()):
                return
            folder.rmdir()


def _is_held(lock: Path) -> bool:
    """Whether a process is writing the run whose lock this is."""
    try:
        with RunFolder(lock.parent).owned(wait=False):
            return False
    except BlockingIOError:
        return True


LONGEST_NAME = 255
"""Bytes of a file's name on the file systems in use."""
