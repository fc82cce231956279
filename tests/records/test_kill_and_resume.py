"""A run that is killed (SIGKILL, at a random instant) and resumed leaves the curve of the uninterrupted run."""

import random
import time
from pathlib import Path

import pandas as pd
import pytest
from loaded_processes import processes

from clbench.compose import compose, load_run_config
from clbench.records.run_folder import RunFolder

OPTIONS = [
    "model.hidden=[32]",
    "trainer.epochs=2",
    "trainer.batch_size=16",
    "evaluator.subset=50",
    "record.figure=false",
    "record.checkpoint_seconds=0",  # a checkpoint after every step: most kills hit one being written
    "progress=false",
    "device=cpu",
    "trainer.threads=1",
]
MEMORY = {"er": ["strategy.memory_size=50"], "gem": ["strategy.memory_size=50"]}


def start(folder: Path, overrides: list[str] | None) -> None:
    """Run in ``folder``: from the overrides, or as ``python -m clbench resume`` does."""
    from clbench.run import run

    run(compose(overrides) if overrides is not None else load_run_config(folder / "config.yaml"), folder)


def spawn(folder: Path, overrides: list[str] | None):
    process = processes.Process(target=start, args=(folder, overrides))
    process.start()
    return process


def check(strategy: str, trials: int, tmp_path: Path) -> None:
    overrides = [f"strategy={strategy}", *OPTIONS, *MEMORY.get(strategy, [])]
    whole = RunFolder(tmp_path / "whole")
    process = spawn(whole.path, overrides)
    while not whole.checkpoint.exists() and process.is_alive():
        time.sleep(0.001)
    began = time.monotonic()
    process.join()
    duration = time.monotonic() - began
    assert whole.status == "finished"
    rng = random.Random(strategy)
    killed_midway = 0
    for trial in range(trials):
        folder = RunFolder(tmp_path / f"trial{trial}")
        process = spawn(folder.path, overrides)
        while folder.status != "running" and process.is_alive():
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.8 * duration))
        process.kill()  # SIGKILL; does nothing where the run was quicker
        process.join()
        killed_midway += folder.status == "running"
        if folder.status == "running":
            process = spawn(folder.path, None)
            process.join()
        assert folder.status == "finished"
        for table in ("curve.parquet", "tasks.parquet", "training.parquet"):
            pd.testing.assert_frame_equal(whole.read_table(table), folder.read_table(table))
        assert whole.read_json("summary.json")["metrics"] == folder.read_json("summary.json")["metrics"]
    assert killed_midway >= trials // 2 or trials == 1


def test_killed_and_resumed(tmp_path):
    check("er", trials=1, tmp_path=tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["finetune", "er", "ewc", "gem"])
def test_killed_at_ten_instants(strategy, tmp_path):
    check(strategy, trials=10, tmp_path=tmp_path)
