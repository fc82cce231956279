"""The run folder: complete, self-describing, and never half written."""

import json
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from clbench.compose import compose, load_run_config
from clbench.errors import DamagedRecord, MachineError
from clbench.evaluation.evaluator import COLUMNS, CURVE_COLUMNS
from clbench.records.run_folder import RunFolder
from clbench.records.wandb_log import WandbLog
from clbench.run import run

OPTIONS = ["trainer.max_steps_per_task=3", "model.hidden=[16]", "progress=false", "strategy=ewc"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("run")
    run(compose([*OPTIONS, "evaluator.diagnostics_every=1", "evaluator.connectivity_points=3"]), path)
    return RunFolder(path)


def test_every_file_is_there(folder):
    files = {"config.yaml", "scenario.json", "environment.json", "summary.json", "curve.parquet", "tasks.parquet",
             "training.parquet", "diagnostics.parquet", "connectivity.parquet", "curve.png"}  # fmt: skip
    assert files <= {path.name for path in folder.path.iterdir()}
    assert not list(folder.path.rglob("*unfinished*"))
    assert folder.status == "finished"


def test_tables_have_the_documented_columns(folder):
    assert list(folder.read_table("curve.parquet").columns) == CURVE_COLUMNS
    assert folder.read_table("curve.parquet").consolidated.dtype == bool
    assert list(folder.read_table("tasks.parquet").columns) == COLUMNS
    assert folder.read_table("curve.parquet").iteration.min() == 0


def test_scenario_file_says_exactly_what_was_seen(folder):
    scenario = folder.read_json("scenario.json")
    assert [task["classes"] for task in scenario["tasks"]] == [[str(2 * t), str(2 * t + 1)] for t in range(5)]
    assert all(len(task["train_hash"]) == 32 for task in scenario["tasks"])
    assert len(scenario["evaluation_subsets"]) == 5
    assert folder.read_json("summary.json")["scenario_hash"] == scenario["hash"]


def test_environment_has_versions_device_git_and_command(folder):
    environment = folder.read_json("environment.json")
    assert environment["packages"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert {"clbench", "python", "device", "git", "command"} <= set(environment)
    assert len(environment["initial_weights_sha256"]) == 64
    assert "A and B, each by itself" in environment["interpolated"]


def test_checkpoint_runs_no_code_when_loaded(folder):
    state = torch.load(folder.checkpoint, weights_only=True)
    assert state["position"] == {"task": 5, "step": 0, "iteration": 15}


def test_config_file_alone_reproduces_the_run(folder, tmp_path):
    run(load_run_config(folder.path / "config.yaml"), tmp_path)
    pd.testing.assert_frame_equal(folder.read_table("curve.parquet"), RunFolder(tmp_path).read_table("curve.parquet"))


def test_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    folder = RunFolder(tmp_path)
    folder.write_json("summary.json", {"status": "running"})
    monkeypatch.setattr("os.fsync", lambda _file: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        folder.write_json("summary.json", {"status": "finished"})
    assert json.loads((tmp_path / "summary.json").read_text()) == {"status": "running"}


def test_a_table_that_is_cut_off_is_named(tmp_path):
    folder = RunFolder(tmp_path)
    folder.write_table("curve.parquet", pd.DataFrame({"a": range(100)}))
    (tmp_path / "curve.parquet").write_bytes((tmp_path / "curve.parquet").read_bytes()[:200])
    with pytest.raises(DamagedRecord, match=r"curve\.parquet is damaged"):
        folder.read_table("curve.parquet")


def test_failed_run_says_why(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "clbench.training.trainer.Trainer.fit", lambda self: (_ for _ in ()).throw(MemoryError("too much"))
    )
    with pytest.raises(MachineError, match="the memory does not suffice"):
        run(compose(OPTIONS), tmp_path)
    summary = RunFolder(tmp_path).read_json("summary.json")
    assert summary["status"] == "failed"
    assert summary["reason"].startswith("MachineError: the memory does not suffice (too much): a smaller trainer.batch")


def test_a_fault_of_the_code_keeps_its_traceback(tmp_path, monkeypatch):
    monkeypatch.setattr("clbench.training.trainer.Trainer.fit", lambda self: {}["nothing"])
    with pytest.raises(KeyError):
        run(compose(OPTIONS), tmp_path)
    assert RunFolder(tmp_path).read_json("summary.json")["reason"] == "KeyError: 'nothing'"


def test_wandb_gets_the_same_numbers_offline(tmp_path, monkeypatch):
    logged, kept = [], {}

    class FakeRun:
        summary = type("Summary", (), {"update": staticmethod(kept.update)})

        def define_metric(self, *_, **__): ...
        def log(self, values):
            logged.append(values)

        def finish(self, exit_code):
            kept["exit_code"] = exit_code

    class FakeWandb:
        Image = str

        @staticmethod
        def init(**options):
            kept["options"] = options
            return FakeRun()

    monkeypatch.setitem(__import__("sys").modules, "wandb", FakeWandb)
    summary = run(compose([*OPTIONS, "wandb.mode=offline"]), tmp_path)
    curve = RunFolder(tmp_path).read_table("curve.parquet")
    assert kept["options"]["mode"] == "offline"
    assert kept["options"]["config"]["strategy"]["name"] == "ewc"
    assert kept["ACC"] == summary["metrics"]["ACC"]
    assert kept["exit_code"] == 0
    points = [values for values in logged if "iteration" in values]
    assert [values["iteration"] for values in points] == sorted(curve.iteration.unique())
    last = curve[curve.iteration == curve.iteration.max()]
    assert points[-1]["accuracy/task_0"] == (last.correct / last.n).iloc[0]
    assert "curve" in logged[-1]


def test_wandb_is_imported_only_when_used():
    import subprocess
    import sys

    code = "import sys, clbench.run, clbench.__main__; sys.exit('wandb' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=120).returncode == 0


def test_weights_and_biases_gets_one_state_of_every_iteration():
    """The one after the hooks at a task's end; nothing is sent twice."""
    sent = []
    log = object.__new__(WandbLog)
    log._last_iteration, log._run = -1, SimpleNamespace(log=sent.append)
    rows = [(0, 1, 0, 10, 2, 0.0, False), (0, 2, 0, 10, 2, 0.0, False), (0, 2, 0, 10, 8, 0.0, True)]
    for end in (2, 3, 3):
        log.log_curve(pd.DataFrame(rows[:1] if end == 2 else rows, columns=CURVE_COLUMNS))
    assert sent == [
        {"iteration": 1, "accuracy/mean": 0.2, "accuracy/task_0": 0.2},
        {"iteration": 2, "accuracy/mean": 0.8, "accuracy/task_0": 0.8},
    ]
