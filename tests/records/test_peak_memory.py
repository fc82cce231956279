"""The peak memory of one run, not that of the process."""

import os

import pytest
import torch

from clbench.records import peak_memory
from clbench.records.peak_memory import PeakMemory

MIB = 2**20
CPU = torch.device("cpu")


def use(mib: int) -> None:
    torch.ones(mib * MIB // 4)


@pytest.fixture
def without_reset(monkeypatch, tmp_path):
    """A system that lets nobody reset the peak."""
    monkeypatch.setattr(peak_memory, "CLEAR_REFS", tmp_path / "no" / "clear_refs")
    monkeypatch.setattr(peak_memory, "STATM", tmp_path / "no" / "statm")


def test_a_small_run_after_a_large_one_has_its_own_peak():
    if not os.access(peak_memory.CLEAR_REFS, os.W_OK):
        pytest.skip("this system does not let a process reset its peak")
    measured = []
    for mib in (400, 40):
        memory = PeakMemory(CPU)
        use(mib)
        measured.append(memory.read())
    assert 300 * MIB < measured[0] - measured[1] < 420 * MIB


def test_where_the_peak_cannot_be_reset_only_a_new_one_is_the_runs(without_reset, monkeypatch):
    peaks = iter(
        [100, 100, 100, 140]
    )  # before and after a run that stays below an earlier one, and of one that does not
    monkeypatch.setattr(peak_memory, "_peak_of_process", lambda: next(peaks))
    assert PeakMemory(CPU).read() is None
    assert PeakMemory(CPU).read() == 140


def test_a_reset_that_the_system_accepts_and_does_not_make_is_noticed(monkeypatch, tmp_path):
    monkeypatch.setattr(peak_memory, "CLEAR_REFS", tmp_path / "clear_refs")
    monkeypatch.setattr(peak_memory, "_resident_now", lambda: 50)
    monkeypatch.setattr(peak_memory, "_peak_of_process", lambda: 100)
    assert PeakMemory(CPU).read() is None


@pytest.mark.parametrize(("system", "size"), [("darwin", 7), ("linux", 7 * 1024)])
def test_units_of_systems(monkeypatch, system, size):
    class Usage:
        ru_maxrss = 7

    monkeypatch.setattr(peak_memory.resource, "getrusage", lambda who: Usage)
    monkeypatch.setattr(peak_memory.sys, "platform", system)
    assert peak_memory._peak_of_process() == size


def test_on_a_gpu_torchs_own_peak_is_reset(monkeypatch):
    calls = []
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: calls.append(device.type))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 5)
    assert PeakMemory(torch.device("cuda")).read() == 5
    assert calls == ["cuda"]
