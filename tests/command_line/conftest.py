"""The command line in this process, in an empty folder: starting another takes seconds."""

from collections.abc import Callable
from pathlib import Path

import pytest

from clbench import config
from clbench.__main__ import status_of


@pytest.fixture
def clb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Callable[..., tuple]:
    """A function: the words of a command → its exit status, what it printed, and its errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(config, "_added_dirs", [])
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr("sys.argv", ["clbench"])

    def call(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        status = status_of(list(words))
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return call
