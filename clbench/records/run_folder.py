"""Writing and reading a run folder. Every file is written to a neighbour first and renamed, so none is ever half there."""

import errno
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

from clbench.errors import DamagedRecord
from clbench.machine_errors import naming
from clbench.records.summary import FORMAT, Summary, readable

log = logging.getLogger(__name__)

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""What the system says where a file system has no locks."""

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
        with replacing(self.path / name) as unfinished, unfinished.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())

    def write_json(self, name: str, content: Any) -> None:
        """Write a JSON file atomically; NaN is not JSON, so undefined values have to be None."""
        self.write_text(name, json.dumps(content, indent=2, allow_nan=False) + "\n")

    def read_json(self, name: str) -> Any:
        """The content of a JSON file, or None where it does not exist.

        Raises:
            DamagedRecord: it is no JSON.
        """
        file = self.path / name
        try:
            return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None
        except ValueError as error:  # of JSON or of UTF-8
            raise DamagedRecord(f"{file} is damaged ({error}): restore it, or choose another folder") from error

    def write_summary(self, summary: Summary) -> Summary:
        """Write ``summary.json`` atomically, with the number of its format; returns what it says."""
        written: Summary = {"format": FORMAT, **summary}
        self.write_json("summary.json", written)
        return written

    def read_summary(self) -> Summary | None:
        """The content of ``summary.json``, or None where no run has begun.

        Raises:
            DamagedRecord: it is no JSON, of a newer format, or not what a run writes.
        """
        content = self.read_json("summary.json")
        return None if content is None else readable(content, self.path / "summary.json")

    def write_table(self, name: str, table: pd.DataFrame) -> None:
        """Write a parquet file atomically."""
        self.path.mkdir(parents=True, exist_ok=True)
        with replacing(self.path / name) as unfinished:
            table.to_parquet(unfinished, index=False)

    def read_table(self, name: str) -> pd.DataFrame:
        """The table in a parquet file.

        Raises:
            DamagedRecord: it is no parquet file, or cut off.
        """
        try:
            return pd.read_parquet(self.path / name)
        except ValueError as error:  # of pyarrow
            first = str(error).splitlines()[0]
            raise DamagedRecord(f"{self.path / name} is damaged ({first}): run it again in another folder") from error

    @contextmanager
    def owned(self, wait: bool = True) -> Iterator[None]:
        """Within this context no other process writes here: one that also asks waits until this one has left or died.

        Where the file system has no locks, a warning says so.

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
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    raise
                log.warning(
                    "the file system of %s has no locks (%s): see to it yourself that no two processes write there",
                    self.path,
                    error.strerror,
                )
            yield

    @property
    def status(self) -> str | None:
        """``running`` (or killed), ``finished``, ``diverged``, ``failed``, ``interrupted``; None where no run has begun."""
        summary = self.read_summary()
        return None if summary is None else summary["status"]


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """A neighbour of ``file`` to write, which takes its place at the end; where writing fails, ``file`` stays as it was.

    Raises:
        OSError: naming the file, where the system does not.
    """
    unfinished = file.with_name(f".{file.name}.unfinished")
    try:
        with naming(file):
            yield unfinished
            unfinished.replace(file)
    finally:
        unfinished.unlink(missing_ok=True)


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


@contextmanager
def known_command_line() -> Iterator[None]:
    """Tell the processes that are started within which command the user gave; afterwards the environment is as before."""
    earlier = os.environ.get(COMMAND_VARIABLE)
    os.environ[COMMAND_VARIABLE] = command_line()
    try:
        yield
    finally:
        if earlier is None:
            del os.environ[COMMAND_VARIABLE]
        else:
            os.environ[COMMAND_VARIABLE] = earlier


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
