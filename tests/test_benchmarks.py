"""The benchmarks run with tiny numbers and write what they promise. What they measure is not asserted: machines differ."""

import importlib.util
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import ClassVar

import matplotlib.image
import pandas as pd
import pytest
import torch

from clbench.registry import SOURCES

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture
def continual_eval(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The script as a module, without Avalanche; the data sources it registers are taken out again."""
    SOURCES.names()  # import the real ones first
    monkeypatch.setattr(SOURCES, "_entries", dict(SOURCES._entries))
    spec = importlib.util.spec_from_file_location("continual_eval", BENCHMARKS / "continual_eval.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "continual_eval", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "avalanche_version", lambda: None)
    monkeypatch.setattr(module, "TRAIN_PER_CLASS", 30)
    monkeypatch.setattr(module, "TEST_PER_CLASS", 10)
    threads = torch.get_num_threads()
    yield module
    torch.set_num_threads(threads)


def test_continual_eval_writes_a_table_and_a_picture(continual_eval, tmp_path, capsys):
    continual_eval.main(
        ["--model", "mlp", "--tasks", "5", "--steps", "2", "--subset", "8", "--repetitions", "2", "--threads", "1",
         "--out", str(tmp_path)]
    )  # fmt: skip
    printed = capsys.readouterr().out
    assert "Avalanche is not installed" in printed
    table = pd.read_csv(tmp_path / "continual_eval_mlp_cpu.csv")
    assert {"model", "device", "what", "evaluation", "processor", "cores", "torch", "command"} <= set(table.columns)
    times = table[table.unit == "milliseconds_per_iteration"].set_index(["what", "part"])
    for what in ("clbench", "hand-written"):
        assert times.loc[(what, "training"), "evaluation"] == "none"
        assert times.loc[(what, "total"), "evaluation"] == "every=1"
        assert times.loc[(what, "training"), "min"] > 0
    assert times.loc[("bare forwards", "evaluation"), "min"] > 0
    assert not table.what.str.contains("Avalanche").any()
    ratios = set(table[table.unit == "ratio"].what)
    assert {"clbench / hand-written", "clbench / bare forwards"} <= ratios
    assert (table["min"] <= table["median"]).all()
    assert (table["median"] <= table["max"]).all()
    height, width, _ = matplotlib.image.imread(tmp_path / "continual_eval_mlp_cpu.png").shape
    assert height > 300
    assert width > 1000


def test_every_loop_takes_the_same_batches_and_subsets(continual_eval):
    work = continual_eval.Workload("mlp", "cpu", tasks=5, steps=3, subset=8, threads=1)
    material = continual_eval.prepare(work)
    forwards: list[tuple[bool, int]] = []

    def spy(module: torch.nn.Module, inputs: tuple[torch.Tensor]) -> None:
        forwards.append((module.training, len(inputs[0])))

    material.network.register_forward_pre_hook(spy)  # kept by the copies that are trained
    continual_eval.time_handwritten(work, material, evaluate=True)
    training = [n for in_training, n in forwards if in_training]
    assert training == [60] * 15  # a task's 60 images are fewer than a batch
    evaluated = [n for in_training, n in forwards if not in_training]
    assert evaluated == [8] * (3 * (1 + 2 + 3 + 4 + 5))
    forwards.clear()
    continual_eval.time_bare_forwards(work, material)
    assert forwards == [(False, 8 * (task + 1)) for task in range(5) for _ in range(3)]
    for evaluation, expected in ((None, 0), ("evaluator.every=1", 1)):
        cost, share = continual_eval.time_clbench(work, evaluation)
        assert share == expected
        assert 0 < cost.evaluation < cost.whole


def test_ratios_are_taken_within_a_repetition(continual_eval):
    def times(clbench: float, avalanche: float) -> dict:
        return {("clbench", "total"): clbench, ("Avalanche", "total"): avalanche}

    rows = continual_eval.result_rows([times(1, 4), times(10, 20), times(2, 6)])
    ratio = next(row for row in rows if row["unit"] == "ratio")
    assert (ratio["what"], ratio["min"], ratio["median"], ratio["max"]) == ("Avalanche / clbench", 2, 3, 4)


@pytest.fixture
def script(continual_eval, monkeypatch: pytest.MonkeyPatch):
    """A function: the name of another script → it as a module."""

    def load(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(f"benchmark_{name}", BENCHMARKS / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, f"benchmark_{name}", module)
        spec.loader.exec_module(module)
        return module

    return load


def test_fleet_writes_a_table_a_picture_and_a_profile(script, monkeypatch, tmp_path):
    fleet = script("fleet")
    monkeypatch.setattr(fleet, "seconds_in_processes", lambda work, runs: (1.0, 2.0))  # processes take seconds to start

    def crowded(work, runs):
        if runs > 2:
            raise torch.OutOfMemoryError("no room")
        return stacked(work, runs)

    stacked = fleet.seconds_stacked
    monkeypatch.setattr(fleet, "seconds_stacked", crowded)
    fleet.main(["--largest", "4", "--steps", "3", "--repetitions", "2", "--profile", "--out", str(tmp_path)])
    table = pd.read_csv(tmp_path / "fleet_digits_mlp_cpu.csv")
    assert set(zip(table.way, table.runs, strict=True)) == {(way, runs) for way in fleet.WAYS for runs in (1, 2, 4)}
    assert (table.memory == "out of memory").tolist() == [
        (w, r) == ("stacked", 4) for w, r in zip(table.way, table.runs, strict=True)
    ]
    one = table[(table.way == "in turn") & (table.runs == 1)].iloc[0]
    assert one.multiple_of_one_run == pytest.approx(1)
    assert one.run_iterations_per_second == pytest.approx(2 * 3 / one.seconds_median, rel=1e-3)
    assert matplotlib.image.imread(tmp_path / "fleet_digits_mlp_cpu.png").std() > 0.01
    assert "Self CPU" in (tmp_path / "fleet_digits_mlp_cpu_profile.txt").read_text()


def test_scaling_writes_a_table_and_a_picture(script, monkeypatch, tmp_path):
    scaling = script("scaling")
    monkeypatch.setattr(scaling, "PANELS", {panel: [2, 3] for panel in scaling.PANELS})
    scaling.main(["--calls", "1", "--threads", "1", "--out", str(tmp_path)])
    table = pd.read_csv(tmp_path / "scaling_cpu.csv")
    assert table.groupby("grows").size().tolist() == [2] * 4
    assert (table[["training step (ms)", "evaluation (ms)"]] > 0).all().all()
    assert matplotlib.image.imread(tmp_path / "scaling_cpu.png").std() > 0.01


def test_batch_leak_writes_a_table(script, tmp_path):
    leak = script("batch_leak")
    leak.main(["--source", "digits", "--per-class", "40", "--orders", "1", "--out", str(tmp_path),
               "strategy.n_windows=2", "strategy.n_expand=30", "strategy.n_out=30"])  # fmt: skip
    table = pd.read_csv(tmp_path / "if2net_batch_leak.csv", comment="#")
    assert table["fitted at test to"].tolist() == [
        "first task", "last task", "pooled test set", "each task's test set", "avg", "max", "recon"
    ]  # fmt: skip
    of = table.set_index("fitted at test to").accuracy_percent
    assert of["each task's test set"] > of["last task"]
    assert of["first task"] > of["last task"]


@pytest.fixture
def loop_cost(script) -> ModuleType:
    return script("loop_cost")


def test_loop_cost_times_steps_of_the_second_task(loop_cost, tmp_path):
    """With a memory that is replayed, alone and in a fleet, as long as there are steps."""
    case = loop_cost.Case("er", "mlp", 1)
    advance = loop_cost.stepper(case, 3, tmp_path)
    trainer = advance.__self__
    for taken in range(3):
        assert (trainer.task, trainer.step) == (1, taken)
        assert len(trainer.steps[taken].ids) > trainer.steps[taken].n_new == 32
        advance()
    answers = io.StringIO()
    loop_cost.serve(['["ewc", "mlp", 2, 2]', '["ewc", "mlp", 2, 1]'], answers, most=3)
    where, first, second = map(json.loads, answers.getvalue().splitlines())
    assert where == str(BENCHMARKS.parent)
    assert first > 0
    assert second > 0


class Side:
    """Stands for the process of a checkout: the first takes 3 µs a step, then 4, …; the second 2 always."""

    made: ClassVar[list["Side"]] = []

    def __init__(self, folder, most):
        self.number, self.asked = len(self.made), 0
        self.made.append(self)

    def microseconds(self, case, steps):
        self.asked += 1
        order.append((self.number, steps))
        return 2.0 if self.number else 2.0 + self.asked

    def close(self):
        self.number = None


order: list[tuple[int, int]] = []


def test_loop_cost_takes_turns_and_writes_a_table(loop_cost, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(loop_cost, "Checkout", Side)
    monkeypatch.setattr(Side, "made", [])
    order.clear()
    chosen = [
        "--against",
        "other",
        "--strategies",
        "er",
        "--networks",
        "mlp",
        "--repetitions",
        "3",
        "--out",
        str(tmp_path),
    ]
    loop_cost.main([*chosen, "--dry-run"])
    assert not list(tmp_path.iterdir())
    assert order == [(0, 1), (1, 1)] * 2  # one step of either way
    order.clear()
    Side.made.clear()
    loop_cost.main([*chosen, "--steps", "0.5"])
    assert [side for side, _ in order] == [0, 1, 0, 1, 1, 0, 1, 0, 0, 1, 0, 1]
    assert {steps for _, steps in order} == {100, 50}
    assert all(side.number is None for side in Side.made)
    table = pd.read_csv(tmp_path / "loop_cost.csv")
    assert table.runs.tolist() == [1, 8]
    assert table.step_us.tolist() == [5, 6]  # medians of 3, 5, 7 and of 4, 6, 8
    assert table.step_us_of_a_run.tolist() == [5, 0.75]
    assert table[["ratio", "ratio_min", "ratio_max"]].to_numpy().tolist() == [[2.5, 1.5, 3.5], [3, 2, 4]]
    assert "2.500 (1.500 to 3.500)" in capsys.readouterr().out


def test_loop_cost_refuses_a_folder_without_clbench(loop_cost, tmp_path):
    with pytest.raises(SystemExit, match="is not the root of a checkout: it has no folder clbench"):
        loop_cost.Checkout(tmp_path, 1)


@pytest.mark.slow
def test_loop_cost_in_processes(loop_cost, capsys):
    loop_cost.main(["--against", str(BENCHMARKS.parent), "--networks", "mlp", "--dry-run"])
    assert len(capsys.readouterr().out.splitlines()) == 1 + 2 * 4


@pytest.mark.slow
def test_shared_backbone_writes_a_table(tmp_path):
    """Two learners on one backbone hold hardly more than one."""
    script = [
        sys.executable,
        str(BENCHMARKS / "shared_backbone.py"),
        "--network",
        "vit_tiny_patch16_224",
        "--runs",
        "1",
        "2",
    ]
    subprocess.run([*script, "--strategies", "lora", "--out", str(tmp_path)], check=True, capture_output=True)
    table = pd.read_csv(tmp_path / "shared_backbone.csv").set_index(["runs", "way"]).tensor_mib
    assert table[2, "shared"] < 1.05 * table[1, "shared"]
    assert table[2, "separate"] == pytest.approx(2 * table[1, "separate"], rel=0.01)


# ---- what a GPU shows ---------------------------------------------------------------------------------------------------


def test_fleet_measures_the_ways_and_numbers_that_are_named(script, tmp_path):
    fleet = script("fleet")
    fleet.main(["--ways", "stacked", "--numbers", "1", "3", "--steps", "2", "--repetitions", "1", "--precision", "bf16",
                "--out", str(tmp_path)])  # fmt: skip
    table = pd.read_csv(tmp_path / "fleet_digits_mlp_cpu.csv")
    assert list(zip(table.way, table.runs, strict=True)) == [("stacked", 1), ("stacked", 3)]
    assert set(table.precision) == {"bf16"}
    assert table.multiple_of_one_run[0] == pytest.approx(1)


@pytest.fixture
def on_gpu(script) -> ModuleType:
    return script("on_gpu")


def test_checks_of_a_gpu_compare_eager_and_compiled_runs(on_gpu):
    found = on_gpu.CHECKS["compile_auto_mlp_er"](on_gpu.Scale("cpu", tiny=True))
    assert found["largest_deviation"] == 0  # auto is eager on a processor
    assert found["compiled"]["what"] == "eager"
    assert found["eager"]["milliseconds_later"] > 0


def test_precisions_of_a_gpu(on_gpu):
    found = on_gpu.CHECKS["precisions"](on_gpu.Scale("cpu", tiny=True))["milliseconds_per_step"]
    assert found.keys() == {"fp32", "tf32", "bf16", "fp16"}
    assert min(found.values()) > 0


def test_a_check_that_fails_leaves_a_line_and_the_next_is_run(on_gpu, monkeypatch, tmp_path):
    lines = iter([(1, "", "Traceback\nRuntimeError: no kernel"), (0, 'a warning\n{"answer": 1}', "")])

    def run(command, **_):
        code, out, err = next(lines)
        return subprocess.CompletedProcess(command, code, out, err)

    monkeypatch.setattr(on_gpu.subprocess, "run", run)
    on_gpu.main(["without_compiler", "precisions", "--device", "cpu", "--out", str(tmp_path / "checks.jsonl")])
    first, second = (json.loads(line) for line in (tmp_path / "checks.jsonl").read_text().splitlines())
    assert (first["check"], first["ok"], first["error"][-1]) == ("without_compiler", False, "RuntimeError: no kernel")
    assert (second["ok"], second["found"]) == (True, {"answer": 1})


def test_the_script_names_checks_that_there_are(on_gpu):
    words = (BENCHMARKS / "on_gpu.sh").read_text().split()
    named = {
        word for word in words if word.startswith(("compile_", "evaluation_memory_")) or word == "without_compiler"
    }
    assert named
    assert named <= on_gpu.CHECKS.keys()


def test_the_script_refuses_what_it_does_not_know():
    done = subprocess.run(["bash", str(BENCHMARKS / "on_gpu.sh"), "everything"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: benchmarks/on_gpu.sh")


def test_same_bits_digests_runs_and_pairs(script):
    """The same twice; another where the strategy is another."""
    same_bits = script("same_bits")
    run, pair = ("finetune", "class", "plain"), ("l2", "spectral")
    assert same_bits.digests(run) == same_bits.digests(run)
    assert same_bits.digests(run).keys() == {"weights", "curve", "losses"} == same_bits.digests(pair).keys()
    assert same_bits.digests(pair)["weights"] != same_bits.digests(("l2", "finetune"))["weights"]
    assert "cannot be combined" in same_bits.digests(("er", "joint"))["refused"]
