"""Writing and reading a run folder. Every file is written to a neighbour first and renamed, so none is ever half there."""

import fcntl
import json
import logging
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pandas as pd

log = logging.getLogger(__name__)

RECORDED_PACKAGES = ("torch", "torchvision", "numpy", "hydra-core", "timm", "pandas", "scikit-learn")


class RunFolder:
    """The files of one run, see section "Run folder" of the README.

    Args:
        path: the folder; created where it does not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)

    @property
    def checkpoint(self) -> Path:
        """The resumable state."""
        return self.path / "checkpoint" / "state.pt"

    def write_text(self, name: str, text: str) -> None:
        """Write a text file atomically."""
        self.path.mkdir(parents=True, exist_ok=True)
        unfinished = self.path / f".{name}.unfinished"
        with unfinished.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(self.path / name)

    def write_json(self, name: str, content: Any) -> None:
        """Write a JSON file atomically; NaN is not JSON, so undefined values have to be None."""
        self.write_text(name, json.dumps(content, indent=2, allow_nan=False) + "\n")

    def read_json(self, name: str) -> Any:
        """The content of a JSON file, or None where it does not exist."""
        file = self.path / name
        return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None

    def write_table(self, name: str, table: pd.DataFrame) -> None:
        """Write a parquet file atomically."""
        self.path.mkdir(parents=True, exist_ok=True)
        unfinished = self.path / f".{name}.unfinished"
        table.to_parquet(unfinished, index=False)
        unfinished.replace(self.path / name)

    def read_table(self, name: str) -> pd.DataFrame:
        """The table in a parquet file."""
        return pd.read_parquet(self.path / name)

    @contextmanager
    def owned(self, wait: bool = True) -> Iterator[None]:
        """Within this context no other process writes here: one that also asks waits until this one has left or died.

        Raises:
            BlockingIOError: another process is writing, and ``wait`` is false.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not wait:
                    raise
                log.warning("%s is being written by another process: waiting until that has ended", self.path)
                fcntl.flock(file, fcntl.LOCK_EX)
            yield

    @property
    def status(self) -> str | None:
        """``running`` (or killed), ``finished``, ``diverged``, ``failed``; None where no run has begun."""
        summary = self.read_json("summary.json")
        return None if summary is None else summary["status"]


def environment(device: str) -> dict[str, Any]:
    """Versions, device, git state and command of this process."""
    return {
        "clbench": _version("clbench"),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in RECORDED_PACKAGES},
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "device": device,
        "git": _git_state(),
        "command": command_line(),
    }


COMMAND_VARIABLE = "CLBENCH_COMMAND"
"""Environment variable with the user's command, which the workers that a launcher starts inherit."""


def command_line() -> str:
    """The command that this process, or the one that launched it, was started with."""
    if COMMAND_VARIABLE in os.environ:
        return os.environ[COMMAND_VARIABLE]
    program = "python -m clbench" if sys.argv[0].endswith("__main__.py") else Path(sys.argv[0]).name
    return f"{program} {shlex.join(sys.argv[1:])}"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git_state() -> dict[str, Any] | None:
    """Commit of the checkout the package runs from, and whether files differ from it; None outside a checkout."""
    package = Path(__file__).resolve().parent

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=package, capture_output=True, text=True, timeout=10, check=True)
        return done.stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.SubprocessError):
        return None
