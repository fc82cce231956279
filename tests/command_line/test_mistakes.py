"""Every slip of the pen has one sentence, with what would be right, and leaves no folder behind."""

import json
from pathlib import Path

import pytest
from small_commands import SMALL


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["stratgy=er"], "unknown option 'stratgy': did you mean 'strategy'?"),
        (["strategy=EWC"], "unknown strategy 'EWC': did you mean 'ewc'?"),
        (["strategy="], "strategy= has no value. Valid choices: acil, "),
        (["strategy.lan=3"], "unknown option of strategy 'lan': did you mean 'lam'?"),
        (["strategy.lam=abc"], "strategy.lam=abc: the value has to be a number"),
        (["seed=abc"], "seed=abc: the value has to be a whole number"),
        (["seed=1.5"], "seed=1.5: the value has to be a whole number"),
        (["trainer.epochs=x"], "trainer.epochs=x: the value has to be a whole number or null"),
        (["trainer.tf32=maybe"], "trainer.tf32=maybe: the value has to be true or false"),
        (["trainer.milestones=3"], "trainer.milestones=3: the value has to be a list of numbers, written [0,1]"),
        (["trainer.optimizer=[1,2]"], "the value has to be one of sgd, adam, adamw, adagrad"),
        (["trainer=3"], "trainer is a group of options, each set as trainer.<option>=…"),
        (["trainer.lr.x=3"], "trainer.lr is one value and has no options"),
        (["+strategy=finetune"], "+strategy=finetune: a name takes the place of the one by default, so it has no +: strategy="),
        (["+strategy=finetun"], "unknown strategy 'finetun': did you mean 'finetune'?"),
        (["++model=mlp"], "so it has no +: model=mlp"),
        (["-m", "+protocol=two_phase"], "so it has no +: protocol=two_phase"),
        (["-m", "+strategy=er,gem"], "so it has no +: strategy=er,gem"),
        (["+hydra/launcher=fleet"], "so it has no +: hydra/launcher=fleet"),
        (["~strategy"], "every run has a strategy, so that it cannot be left out: choose another with strategy=… from acil, "),
        (["-m", "STRATEGY=ER,GEM", "strategy.memory_size=20"], "unknown option 'STRATEGY': did you mean 'strategy'?"),
        (["-m", "Seed=0,1", "strategy.lan=2"], "unknown option 'Seed': did you mean 'seed'?"),
        (["-m", "strategy=packnet,finetune", "strategy.prune=0.5"], "strategy=finetune: unknown option of strategy 'prune'"),
        (["-m", "strategy=ewc,finetune", "strategy.lam=1,2"], "strategy=finetune: unknown option of strategy 'lam'"),
        (["-m", "model=mlp,resnet18", "model.hidden=[8]"], "model=resnet18: unknown option of model 'hidden'"),
        (["+seed=3"], "seed is there already, so it is set without a +: seed=3"),
        (["~trainer.lr"], "trainer.lr cannot be left out"),
        (["strategy.plus=[l2]", "plus.l2.lamda=5"], "unknown option of plus.l2 'lamda': did you mean 'lam'?"),
        (["strategy.plus=[l2]", "+plus.l2.lam=x"], "plus.l2.lam=x: the value has to be a number"),
        (["strategy.plus=[l22]"], "unknown strategy 'l22': did you mean 'l2'?"),
        (["strategy=er", "strategy=gem"], "strategy=er and strategy=gem exclude each other"),
        (["seed=0,1"], "add -m for a sweep (python -m clbench -m seed=0,1)"),
        (["scenario.class_order=1,0"], 'write a list as "scenario.class_order=[1,0]"'),
        (["scenario.name=a(b"], "put a value with special characters into quotes within quotes"),
        (["-s", "er"], "unknown flag '-s'"),
        (["--multi"], "unknown flag '--multi': did you mean '--multirun'?"),
        (["-m=1"], "-m takes no value"),
        (["-seed=1"], "an option is given without a dash before it, as seed=1"),
        (["--cfg"], "--cfg needs a value after it"),
        (["--cfg", "jbo"], "unknown value of --cfg 'jbo': did you mean 'job'?"),
        (["--cfg", "job", "-m", "seed=0,1"], "--multirun and --cfg exclude each other: leave all but one out"),
        (["--resolve", "seed=1"], "--resolve is for what --cfg prints: add --cfg job"),
        (["--config-dir", "nowhere", "seed=1"], "there is no folder nowhere"),
        (["--strategy=er"], "unknown flag '--strategy'"),
        (["strategy", "=", "er"], "an override is written without spaces, as key=value"),
        (["strategy"], "strategy needs a value: strategy=…"),
        (["er", "list"], "unknown command 'er'"),
        (["seed=1", "list"], "the command list comes first: python -m clbench list …"),
        (["protocol=two_phase"], "a protocol makes many runs: python -m clbench -m protocol=two_phase"),
        (["hydra.run.dri=x"], "unknown option of hydra.run 'dri': did you mean 'dir'?"),
        (["hydra/launcher=flet"], "unknown hydra/launcher 'flet': did you mean 'fleet'?"),
        (["hydra/launcher=ray_gpu", "-m", "seed=0,1"], "pip install 'clbench[launchers]'"),
        (["trainer.lr=-1"], "trainer.lr=-1.0 is out of range"),
        (["+best=true"], "no tuned values of ewc on split_digits"),
        (["-m", "trainer.lr=-1", "seed=0,1"], "trainer.lr=-1.0 is out of range"),
        (["-m", "trainer.lr=0.1,x"], "trainer.lr=x: the value has to be a number"),
        (["-m", "strategy=er,ewcc"], "unknown strategy 'ewcc'"),
        (["-m", "strategy=er,ewc", "strategy.memory_size=20"], "unknown option of strategy 'memory_size'"),
        (["-m", "protocol=two_phase", "strategy=er", "protocol.trails=2"], "unknown option of protocol 'trails': did you mean"),
        (["-m", "protocol=two_phase", "strategy=er", "protocol.trials=0"], "protocol.trials=0 is out of range"),
        (["-m", "protocol=two_phase", "strategy=er", "protocol.tuning_seeds=0"], "a number of seeds from 1 to 1000"),
        (["-m", "protocol=two_phase", "strategy=er", "protocol.tuning_seeds=0,1"], "a list is written [0,1]"),
        (["describe", "nope"], "unknown name 'nope'"),
        (["describe"], "usage: python -m clbench describe NAME"),
        (["list", "modl"], "unknown kind 'modl': did you mean 'model'?"),
        (["help", "runz"], "unknown command 'runz': did you mean 'runs'?"),
        (["resume", "nowhere"], "nowhere is neither a run folder"),
        (["scenario.increment=3"], "does not divide the 10 classes"),
        (["-m", "strategy=finetune", "scenario.increment=3,7"], "does not divide the 10 classes"),
        (["scenario=cifar100", "data.root=.", "data.download=false"], "cifar-100-python"),
    ],
)  # fmt: skip
def test_one_sentence_and_no_folder(words, sentence, clb, tmp_path):
    status, _, errors = clb(*words)
    assert status == 2
    said = [line for line in errors.splitlines() if line.startswith("clbench: ")]
    assert sentence in said[0]
    assert "Traceback" not in errors
    assert len(said) == (2 if "3,7" in words[-1] else 1)
    assert list(tmp_path.iterdir()) == []


def test_a_miss_of_describe_is_short(clb):
    _, _, errors = clb("describe", "cifar101")
    assert "did you mean" in errors
    assert "'cifar10'" in errors
    assert len(errors) < 200


def test_a_folder_of_the_users_keeps_what_was_in_it(clb, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.yaml").write_text("my: own\n")
    status, _, _ = clb("scenario.increment=3", "hydra.run.dir=mine")
    assert status == 2
    assert [file.name for file in (tmp_path / "mine").iterdir()] == ["config.yaml"]


def test_a_refused_command_leaves_a_finished_run_alone(clb, tmp_path):
    assert clb(*SMALL, "hydra.run.dir=run")[0] == 0
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "run").rglob("*")}
    status, _, errors = clb(*SMALL, "seed=3", "hydra.run.dir=run")
    assert status == 2
    assert "already holds a finished run" in errors
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "run").rglob("*")} == before


def test_options_of_an_added_strategy_need_no_plus_sign(clb, tmp_path):
    assert clb(*SMALL, "strategy.plus=[l2]", "plus.l2.lam=5", "hydra.run.dir=run")[0] == 0
    assert "lam: 5" in (tmp_path / "run" / "config.yaml").read_text()


def test_an_option_given_twice_is_said(clb, tmp_path):
    status, _, errors = clb(*SMALL, "seed=1", "seed=2", "hydra.run.dir=run")
    assert status == 0
    assert "seed is given twice: seed=2 holds" in errors
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["seed"] == 2


def statuses(sweep: Path) -> list[str]:
    return [json.loads(file.read_text())["status"] for file in sorted(sweep.glob("*/summary.json"))]


def test_an_option_that_only_the_swept_strategies_have(clb, tmp_path):
    """EWC, the default, has no memory_size; Hydra alone applies fixed options to the defaults first."""
    small = [override for override in SMALL if not override.startswith(("strategy=", "record.report="))]
    status, out, errors = clb("-m", "strategy=er,gem", "strategy.memory_size=20", *small, "hydra.sweep.dir=s", "seed=0")
    assert status == 0, errors
    assert statuses(tmp_path / "s") == ["finished", "finished"]
    assert "memory_size: 20" in (tmp_path / "s" / "1" / "config.yaml").read_text()
    assert "2 of 2 runs" in errors
    assert "split_digits: results" in out  # the comparison, and no table of a single run
    assert "recovery time" not in out
    assert (tmp_path / "s" / "report" / "report.html").exists()


def test_every_failed_job_has_its_sentence(clb, tmp_path):
    small = [override for override in SMALL if not override.startswith("strategy=")]
    status, _, errors = clb("-m", "strategy=er", "strategy.memory_size=2,20", "seed=0,1", *small, "hydra.sweep.dir=s")
    assert status == 1
    assert statuses(tmp_path / "s") == ["failed", "failed", "finished", "finished"]
    for job, seed in enumerate((0, 1)):
        assert (
            f"clbench: job {job} (strategy.memory_size=2 seed={seed}) failed: strategy.memory_size=2 is too small"
            in errors
        )
    assert "Traceback" not in errors


def test_two_sweeps_of_one_second_get_folders_of_their_own(clb, tmp_path, monkeypatch):
    from datetime import datetime

    from hydra.core import utils

    class Stopped(datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2030, 1, 2, 3, 4, 5)

    monkeypatch.setattr(utils, "datetime", Stopped)
    for seed in (0, 1):
        assert clb("-m", *SMALL, f"seed={seed}")[0] == 0
        assert clb(*SMALL)[0] == 0
    assert sorted(folder.name for folder in (tmp_path / "multirun/2030-01-02").iterdir()) == ["03-04-05", "03-04-05-2"]
    name = "03-04-05-finetune-split_digits-seed0"
    assert sorted(folder.name for folder in (tmp_path / "outputs/2030-01-02").iterdir()) == [name, f"{name}-2"]


def test_too_long_a_folder_name(clb, tmp_path):
    status, _, errors = clb(*SMALL, f"hydra.run.dir={'x' * 300}")
    assert status == 2
    assert "has 300 bytes, more than the 255 that file systems allow" in errors
    status, _, errors = clb("-m", *SMALL, "seed=0,1", f"hydra.sweep.subdir={'x' * 300}", "hydra.sweep.dir=s")
    assert status != 0
    assert "File name too long" in errors
    assert "Traceback" not in errors
    assert list(tmp_path.iterdir()) == []


def test_a_diverged_run_has_a_status_of_its_own(clb, tmp_path):
    status, out, _ = clb(*SMALL, "trainer.lr=1e10", "trainer.max_steps_per_task=50", "hydra.run.dir=run")
    assert status == 3
    assert "diverged" in out
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "diverged"
