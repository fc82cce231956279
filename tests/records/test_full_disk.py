"""A disk that is full, a file that is too large, a folder that cannot be: a sentence, and what was written before stays."""

import errno
import os
import subprocess
import sys

import pytest
import torch

from clbench.compose import compose
from clbench.errors import ConfigError, DataError, MachineError
from clbench.machine_errors import ADVICE, explanation, in_sentences
from clbench.records.run_folder import RunFolder
from clbench.run import run
from clbench.testing.small_runs import composed
from clbench.training.checkpoint import load_checkpoint, save_checkpoint

OPTIONS = [
    "trainer.max_steps_per_task=1",
    "model.hidden=[8]",
    "progress=false",
    "strategy=finetune",
    "record.figure=false",
]

LIMITED = """
import resource, signal, sys
from pathlib import Path
import torch
from clbench.training.checkpoint import save_checkpoint
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    save_checkpoint(Path(sys.argv[1]), {"position": torch.zeros(50_000)})
except OSError as error:
    print(error.errno, error.filename)
"""


def test_a_checkpoint_that_does_not_fit_leaves_the_last_one(tmp_path):
    """On a real limit: torch's own writer turns the system's error into another."""
    file = tmp_path / "checkpoint" / "state.pt"
    save_checkpoint(file, {"position": torch.ones(3)})
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(file)], capture_output=True, text=True, timeout=100, check=True
    )
    assert done.stdout.split() == [str(errno.EFBIG), str(file)], done.stderr
    assert load_checkpoint(file, torch.device("cpu"))["position"].tolist() == [1, 1, 1]
    assert [path.name for path in file.parent.iterdir()] == ["state.pt"]


def test_a_run_on_a_full_disk_says_so_and_keeps_its_tables(tmp_path, monkeypatch):
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    writes = []
    to_parquet = RunFolder.write_table.__globals__["pd"].DataFrame.to_parquet

    def second_time_full(self, path, index):
        writes.append(path)
        if len(writes) > 3:
            raise full
        to_parquet(self, path, index=index)

    monkeypatch.setattr("pandas.DataFrame.to_parquet", second_time_full)
    with pytest.raises(MachineError, match=r"curve\.parquet: No space left on device; free some space there"):
        run(composed(*OPTIONS), tmp_path)
    folder = RunFolder(tmp_path)
    assert folder.read_table("curve.parquet").task_learning.max() == 0
    assert "No space left on device" in folder.read_json("summary.json")["reason"]
    assert not list(tmp_path.rglob("*unfinished*"))


def test_a_failure_that_cannot_be_recorded_is_still_the_failure_that_is_said(tmp_path, monkeypatch):
    write_text = RunFolder.write_text

    def full(self, name, text):
        if name == "summary.json" and "failed" in text:
            raise OSError(errno.ENOSPC, "No space left on device")
        write_text(self, name, text)

    monkeypatch.setattr(RunFolder, "write_text", full)
    monkeypatch.setattr("clbench.training.trainer.Trainer.fit", lambda self: {}["the first fault"])
    with pytest.raises(KeyError, match="the first fault"):
        run(composed(*OPTIONS), tmp_path)


def test_a_folder_below_a_file_is_refused_in_a_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(MachineError, match=r"file/run: Not a directory; a part of the path is a file"):
        run(composed(*OPTIONS), tmp_path / "file" / "run")
    with pytest.raises(MachineError, match=r"file: File exists; a file is in the way"):
        run(composed(*OPTIONS), tmp_path / "file")
    with pytest.raises(MachineError, match="File name too long; choose a shorter"):
        run(composed(*OPTIONS), tmp_path / ("x" * 300))


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_without_locks_a_warning_says_so(number, tmp_path, monkeypatch, caplog):
    def flock(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("clbench.records.run_folder.fcntl.flock", flock)
    with RunFolder(tmp_path).owned():
        pass
    assert "has no locks" in caplog.text


@pytest.mark.parametrize("number", ADVICE)
def test_every_error_of_the_system_has_a_file_and_advice(number):
    error = OSError(number, os.strerror(number), "/a/file")
    assert str(explanation(error)) == f"/a/file: {os.strerror(number)}; {ADVICE[number]}"


def test_what_is_nobodys_fault_but_ours_is_passed_on():
    for error in (KeyError("x"), RuntimeError("mat1 and mat2"), AssertionError(), TypeError("x")):
        assert explanation(error) is None
        with pytest.raises(type(error)), in_sentences():
            raise error


def test_memory_that_runs_out_is_no_traceback():
    for error in (
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: 8 bytes"
        ),
    ):
        assert "the memory does not suffice" in str(explanation(error))


def test_hydra_and_omegaconf_are_explained():
    with pytest.raises(ConfigError), in_sentences():
        compose(["strategy.nothing=1"])
    with pytest.raises(DataError, match="as it is"), in_sentences():
        raise DataError("as it is")
