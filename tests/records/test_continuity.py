"""A run that was stopped goes on as it was begun, or a sentence says what has changed. Nothing recorded is lost."""

import hashlib
import json
import logging
import shutil
from importlib import import_module

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from clbench.compose import load_run_config
from clbench.errors import ConfigError, DamagedRecord, DataError
from clbench.records.run_folder import RunFolder
from clbench.registry import STRATEGIES
from clbench.run import run
from clbench.testing.small_runs import composed

OPTIONS = [
    "strategy=finetune",
    "scenario.source=folder",
    "scenario.name=own",
    "scenario.frozen=null",
    "scenario.increment=2",
    "data.folder=own",
    "trainer.max_steps_per_task=2",
    "trainer.batch_size=4",
    "model.hidden=[8]",
    "record.figure=false",
    "progress=false",
    "device=cpu",
]


class Killed(BaseException):
    """Stands for a kill, which no code sees."""


@pytest.fixture
def images(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("a", "b", "c", "d"):
        (tmp_path / "data" / "own" / name).mkdir(parents=True)
        for i in range(6):
            pixels = rng.integers(0, 256, (4, 4, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / "own" / name / f"{i}.png")
    return tmp_path / "data"


def config(images, *more):
    return composed(*OPTIONS, f"data.root='{images}'", *more)


def stopped(configuration, folder, monkeypatch):
    """A run that was killed after its first task."""
    with monkeypatch.context() as patch:
        patch.setattr("clbench.run.Run._on_task_end", lambda self, task: (_ for _ in ()).throw(Killed))
        patch.setattr("clbench.records.run_folder.RunFolder.write_json", _without_summaries(RunFolder.write_json))
        with pytest.raises(Killed):
            run(configuration, folder)
    (folder / "summary.json").write_text('{"status": "running"}')
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


def _without_summaries(write_json):
    def write(self, name, content):
        if name != "summary.json":
            write_json(self, name, content)

    return write


def resume(folder):
    return run(load_run_config(folder / "config.yaml"), folder)


def change_one_image(images):
    Image.new("RGB", (4, 4), (1, 2, 3)).save(images / "own" / "c" / "0.png")


def test_data_that_have_changed_are_refused_and_the_record_stays(images, tmp_path, monkeypatch):
    before = stopped(config(images), tmp_path / "run", monkeypatch)
    original = (images / "own" / "c" / "0.png").read_bytes()
    change_one_image(images)
    with pytest.raises(
        DataError, match=r"have changed since it was begun: task 2 \(c, d\) has \d+ (training|test) samples"
    ):
        resume(tmp_path / "run")
    after = {file.name: file.read_bytes() for file in (tmp_path / "run").iterdir() if file.is_file()}
    assert {name for name in before if after[name] != before[name]} == {"summary.json"}
    assert json.loads(after["summary.json"])["status"] == "failed"
    (images / "own" / "c" / "0.png").write_bytes(original)  # and once they are back, the run goes on
    assert resume(tmp_path / "run")["status"] == "finished"


def test_data_that_have_changed_are_refused_without_a_checkpoint_too(images, tmp_path, monkeypatch):
    stopped(config(images), tmp_path / "run", monkeypatch)
    shutil.rmtree(tmp_path / "run" / "checkpoint")
    change_one_image(images)
    with pytest.raises(DataError, match="have changed since it was begun"):
        resume(tmp_path / "run")


def test_another_configuration_may_use_the_folder_of_a_run_that_failed(images, tmp_path, monkeypatch):
    stopped(config(images), tmp_path / "run", monkeypatch)
    shutil.rmtree(tmp_path / "run" / "checkpoint")
    change_one_image(images)
    assert run(config(images, "seed=1"), tmp_path / "run")["status"] == "finished"


def test_subsets_that_would_be_drawn_otherwise_are_refused(images, tmp_path, monkeypatch):
    stopped(config(images, "evaluator.subset=1"), tmp_path / "run", monkeypatch)
    file = tmp_path / "run" / "scenario.json"
    recorded = json.loads(file.read_text())
    recorded["evaluation_subsets"][0][0] += 1
    file.write_text(json.dumps(recorded))
    with pytest.raises(DataError, match=r"evaluation subsets of the run in .* would be drawn otherwise"):
        resume(tmp_path / "run")


def test_pretrained_weights_that_have_changed_are_refused(images, tmp_path, monkeypatch):
    run(config(images), tmp_path / "first")
    state = torch.load(tmp_path / "first" / "checkpoint" / "state.pt", weights_only=True)["learner"]
    weights = {k.removeprefix("model.backbone."): v for k, v in state.items() if k.startswith("model.backbone.")}
    save_file(weights, tmp_path / "weights.safetensors")
    stopped(config(images, f"model.checkpoint='{tmp_path}/weights.safetensors'"), tmp_path / "run", monkeypatch)
    changed = {name: value + 1 for name, value in load_file(tmp_path / "weights.safetensors").items()}
    save_file(changed, tmp_path / "weights.safetensors")
    with pytest.raises(DataError, match=r"the pretrained weights of the run in .* have changed"):
        resume(tmp_path / "run")


def test_another_machine_is_said_and_recorded(images, tmp_path, monkeypatch, caplog):
    stopped(config(images), tmp_path / "run", monkeypatch)
    file = tmp_path / "run" / "environment.json"
    recorded = json.loads(file.read_text())
    recorded["packages"]["torch"], recorded["device"] = "1.0", "abacus"
    file.write_text(json.dumps(recorded))
    with caplog.at_level(logging.WARNING):
        resume(tmp_path / "run")
    assert f"torch 1.0 → {torch.__version__.split('+')[0]}" in caplog.text
    assert "device abacus → cpu" in caplog.text
    [earlier] = json.loads(file.read_text())["earlier"]
    assert (earlier["device"], earlier["packages"]["torch"]) == ("abacus", "1.0")


def test_another_file_of_a_strategy_is_said_and_recorded(images, tmp_path, monkeypatch, caplog):
    """The version of a package that is installed for editing stays that of the day it was installed."""
    module = tmp_path / "my_l2.py"
    module.write_text("from clbench.strategies.l2 import L2\n\n\nclass Mine(L2):\n    name = 'l2'\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(STRATEGIES._entries, "l2", import_module("my_l2").Mine)
    stopped(config(images, "strategy=l2"), tmp_path / "run", monkeypatch)
    file = tmp_path / "run" / "environment.json"
    first = json.loads(file.read_text())["plug_ins"]["l2"]
    assert first == {"distribution": None, "version": None, "sha256": hashlib.sha256(module.read_bytes()).hexdigest()}
    module.write_text(module.read_text() + "# another one\n")
    with caplog.at_level(logging.WARNING):
        resume(tmp_path / "run")
    assert (
        f"strategies of other packages l2 without a version (file {first['sha256'][:10]}) → l2 without" in caplog.text
    )
    assert json.loads(file.read_text())["earlier"][0]["plug_ins"] == {"l2": first}


@pytest.mark.parametrize("keep", [0, 100, 0.5])
def test_a_checkpoint_that_is_cut_off_is_named_and_kept(keep, images, tmp_path, monkeypatch):
    stopped(config(images), tmp_path / "run", monkeypatch)
    file = tmp_path / "run" / "checkpoint" / "state.pt"
    whole = file.read_bytes()
    file.write_bytes(whole[: int(keep * len(whole)) if isinstance(keep, float) else keep])
    with pytest.raises(DamagedRecord, match=r"the checkpoint .*state\.pt is damaged \(.+\): put a whole copy") as error:
        resume(tmp_path / "run")
    assert "\n" not in str(error.value)
    assert file.exists()
    file.write_bytes(whole)
    assert resume(tmp_path / "run")["status"] == "finished"


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"other": 1}, "it holds no state of a run"),
        ([1], "it holds no state of a run"),
        ({"position": {}, "learner": {}}, "it holds no state of a run"),
        ({"position": {"task": 0, "step": 3, "iteration": 3}, "learner": {}}, r"does not fit the run, .*Missing key"),
    ],
)
def test_a_checkpoint_of_something_else_is_refused(state, message, images, tmp_path, monkeypatch):
    stopped(config(images), tmp_path / "run", monkeypatch)
    torch.save(state, tmp_path / "run" / "checkpoint" / "state.pt")
    with pytest.raises(DamagedRecord, match=message):
        resume(tmp_path / "run")


@pytest.mark.parametrize("name", ["scenario.json", "environment.json", "summary.json", "config.yaml"])
def test_a_damaged_record_is_named(name, images, tmp_path, monkeypatch):
    stopped(config(images), tmp_path / "run", monkeypatch)
    file = tmp_path / "run" / name
    configuration = load_run_config(tmp_path / "run" / "config.yaml")
    file.write_bytes(file.read_bytes()[:-20] + b"\xff{")
    with pytest.raises(DamagedRecord, match=rf"{name} is damaged") as error:
        run(configuration, tmp_path / "run")
    assert "\n" not in str(error.value)


def test_relative_paths_are_recorded_as_absolute_ones(images, tmp_path, monkeypatch):
    """A run that was begun in one working directory goes on from another, and a sweep that is repeated knows it."""
    monkeypatch.chdir(images.parent)
    relative = composed(*OPTIONS, "data.root=data")
    stopped(relative, tmp_path / "run", monkeypatch)
    assert load_run_config(tmp_path / "run" / "config.yaml").data.root == str(images)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    (tmp_path / "run").rename(tmp_path / "moved")
    assert resume(tmp_path / "moved")["status"] == "finished"
    monkeypatch.chdir(images.parent)
    finished = (tmp_path / "moved" / "summary.json").stat().st_mtime_ns
    assert run(relative, tmp_path / "moved", reuse=True)["status"] == "finished"
    assert (tmp_path / "moved" / "summary.json").stat().st_mtime_ns == finished
    with pytest.raises(ConfigError, match="already holds a finished run"):
        run(relative, tmp_path / "moved")


def test_a_relative_variable_is_recorded_and_an_absolute_one_is_not(images, tmp_path, monkeypatch):
    monkeypatch.chdir(images.parent)
    for kind, variable, recorded in (("relative", "data", str(images)), ("absolute", str(images), None)):
        monkeypatch.setenv("CLBENCH_DATA", variable)
        run(composed(*OPTIONS), tmp_path / kind)
        assert load_run_config(tmp_path / kind / "config.yaml").data.root == recorded
        assert RunFolder(tmp_path / kind).read_json("environment.json")["data_root"] == str(images)


def test_a_resumed_run_is_the_run_that_was_not_stopped(images, tmp_path, monkeypatch):
    run(config(images), tmp_path / "whole")
    stopped(config(images), tmp_path / "run", monkeypatch)
    resume(tmp_path / "run")
    curves = [pd.read_parquet(tmp_path / name / "curve.parquet") for name in ("whole", "run")]
    pd.testing.assert_frame_equal(*curves)
