"""Ctrl-C and SIGTERM: one line that says how to go on, a record that says what happened, and the same curve in the end."""

import json
import os
import signal
from pathlib import Path

import pandas as pd
import pytest
import torch
from small_commands import SMALL

from clbench.training.trainer import Trainer

LONGER = [option for option in SMALL if not option.startswith(("trainer.max", "evaluator.every"))]
LONGER += ["trainer.max_steps_per_task=4", "evaluator.every=1", "evaluator.subset=20", "trainer.batch_size=8"]


@pytest.fixture(autouse=True)
def default_signals():
    """As in a terminal: of a shell that starts pytest in the background, this process inherits that Ctrl-C is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def signal_at(monkeypatch):
    """A function: signal and iteration → the signal comes while that step of a run is taken, once."""

    def arrange(number: signal.Signals, iteration: int, times: int = 1) -> None:
        advance, sent = Trainer.advance, []

        def with_signal(self: Trainer) -> None:
            if self.iteration == iteration and not sent:
                sent.append(True)
                for _ in range(times):
                    os.kill(os.getpid(), number)
            advance(self)

        monkeypatch.setattr(Trainer, "advance", with_signal)

    return arrange


def summary(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


def curve(folder: Path) -> pd.DataFrame:
    return pd.read_parquet(folder / "curve.parquet")


@pytest.mark.parametrize(
    ("number", "status", "word"), [(signal.SIGINT, 130, "Ctrl-C"), (signal.SIGTERM, 143, "SIGTERM")]
)
def test_a_run_is_stopped_after_its_step_and_goes_on_to_the_same_curve(number, status, word, clb, tmp_path, signal_at):
    assert clb(*LONGER, "hydra.run.dir=whole")[0] == 0
    signal_at(number, 6)
    stopped, _, errors = clb(*LONGER, "hydra.run.dir=stopped")
    assert stopped == status
    assert errors.splitlines() == ["clbench: interrupted; continue with python -m clbench resume stopped"]
    assert summary(tmp_path / "stopped") == {"format": 1, "status": "interrupted", "reason": word}
    position = torch.load(tmp_path / "stopped" / "checkpoint" / "state.pt", weights_only=True)["position"]
    assert {name: position[name] for name in ("task", "step", "iteration")} == {"task": 1, "step": 3, "iteration": 7}
    assert "interrupted" in clb("runs", "stopped", "--columns", "status")[1]
    assert clb("resume", "stopped")[0] == 0
    assert summary(tmp_path / "stopped")["status"] == "finished"
    pd.testing.assert_frame_equal(curve(tmp_path / "stopped"), curve(tmp_path / "whole"))


def test_a_second_signal_stops_at_once(clb, tmp_path, signal_at):
    signal_at(signal.SIGINT, 6, times=2)
    status, _, errors = clb(*LONGER, "hydra.run.dir=stopped")
    assert status == 130
    assert "continue with python -m clbench resume stopped" in errors
    assert "Traceback" not in errors
    assert clb("resume", "stopped")[0] == 0


def test_a_sweep_is_stopped_as_a_whole_and_goes_on(clb, tmp_path, signal_at):
    signal_at(signal.SIGINT, 6)
    status, _, errors = clb("-m", *LONGER, "seed=0,1", "hydra.sweep.dir=s")
    assert status == 130
    assert errors.splitlines()[-1] == "clbench: interrupted; continue with python -m clbench resume s"
    assert summary(tmp_path / "s" / "0")["status"] == "interrupted"
    assert not (tmp_path / "s" / "1").exists()
    assert clb("resume", "s")[0] == 0
    assert [summary(tmp_path / "s" / str(job))["status"] for job in (0, 1)] == ["finished", "finished"]


def test_a_run_that_has_ended_is_not_resumed(clb):
    assert clb(*SMALL, "hydra.run.dir=run")[0] == 0
    status, _, errors = clb("resume", "run")
    assert status == 2
    assert errors == "clbench: the run in run is finished; nothing to resume\n"


@pytest.mark.parametrize(
    ("kept", "files"),
    [("last", {"state.pt"}), ("none", set()), ("all", {"state.pt", *(f"task_{i}.pt" for i in range(1, 6))})],
)
def test_what_is_kept_of_a_finished_run(kept, files, clb, tmp_path):
    assert clb(*SMALL, "trainer.optimizer=adam", f"record.checkpoint={kept}", "hydra.run.dir=run")[0] == 0
    folder = tmp_path / "run" / "checkpoint"
    assert {file.name for file in folder.glob("*")} == files
    if kept == "last":
        assert set(torch.load(folder / "state.pt", weights_only=True)) == {"learner", "left_out", "position"}
    if kept == "all":
        states = [torch.load(folder / f"task_{task}.pt", weights_only=True) for task in (1, 5)]
        assert [state["position"]["task"] for state in states] == [1, 5]
        assert states[0]["optimizer"]["state"]
