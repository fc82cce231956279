"""A study that is killed at any instant continues to the same result; launchers and lost workers change nothing. By hand:

pytest -m slow tests/protocol
"""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

OPTIONS = [
    "protocol=two_phase", "strategy=er,l2", "protocol.trials=3", "protocol.tuning_seeds=[0,1]",
    "protocol.evaluation_seeds=[100,101]", "protocol.best=null", "record.report=false", "hydra.sweep.dir=study",
    "device=cpu", "trainer.threads=1",
]  # fmt: skip
RUNS = 2 * (3 * 2 + 2)


def start(folder: Path, *arguments: str) -> subprocess.Popen:
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "clbench", "-m", *OPTIONS, *arguments]
    with (folder / "log").open("a") as log:
        return subprocess.Popen(command, cwd=folder, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)


def complete(folder: Path, *arguments: str) -> None:
    assert start(folder, *arguments).wait(timeout=280) == 0, (folder / "log").read_text()[-2000:]


def outcome(folder: Path) -> dict[str, Any]:
    """What was tried, what was selected and how the evaluation came out; no times."""
    study = json.loads((folder / "study/study.json").read_text())
    assert study["status"] == "finished"
    found = {}
    for method in study["methods"]:
        result = method["protocols"]["two_phase"]
        files = {seed: folder / "study" / run["folder"] / "summary.json" for seed, run in result["evaluation"].items()}
        found[method["method"]] = {
            "trials": [(t["values"], t["score"], t["state"]) for t in result["trials"]],
            "selected": result["selected"],
            "evaluation": {seed: json.loads(file.read_text())["metrics"] for seed, file in files.items()},
        }
    return found


def ended(folder: Path) -> dict[Path, int]:
    """Runs that have come to their end, and when they wrote that down."""
    files = list(folder.glob("study/**/summary.json"))
    over = [file for file in files if json.loads(file.read_text())["status"] in ("finished", "diverged")]
    return {file: file.stat().st_mtime_ns for file in over}


def worker_of(folder: Path, process: subprocess.Popen, *words: str) -> psutil.Process:
    """The process that makes a run: of those that the sweeper started, or whose command line has ``words``, the busiest."""
    for _ in range(1200):
        if any('"running"' in file.read_text() for file in folder.glob("study/**/summary.json")):
            break
        time.sleep(0.02)
    else:
        raise AssertionError("no run has begun")
    if words:
        everyone = psutil.process_iter(["cmdline"])
        found = [p for p in everyone if all(word in " ".join(p.info["cmdline"] or []) for word in words)]
    else:
        found = psutil.Process(process.pid).children(recursive=True)
    return max(found, key=lambda p: p.cpu_times().user)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    complete(folder)
    assert len(ended(folder)) == RUNS
    return outcome(folder)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_at_random_instants(tmp_path, undisturbed):
    """The whole sweeper is killed again and again, also before it has drawn anything and while it writes."""
    instants, kills = random.Random(0), 0
    while True:
        before = ended(tmp_path)
        process = start(tmp_path)
        try:
            process.wait(timeout=instants.uniform(3.0, 12.0))
            break
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
        assert all(file.stat().st_mtime_ns == when for file, when in before.items())  # none was made a second time
    assert kills >= 3
    assert outcome(tmp_path) == undisturbed
    before = ended(tmp_path)
    assert len(before) == RUNS
    complete(tmp_path)  # everything is there: nothing is made
    assert ended(tmp_path) == before


@pytest.mark.slow
def test_fleet_gives_the_same(tmp_path, undisturbed):
    complete(tmp_path, "hydra/launcher=fleet", "hydra.launcher.way=in_turn")
    assert outcome(tmp_path) == undisturbed


@pytest.mark.slow
def test_joblib_gives_the_same_though_a_worker_is_killed(tmp_path, undisturbed):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    process = start(tmp_path, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    worker_of(tmp_path, process).kill()
    assert process.wait(timeout=280) == 0
    assert "the launcher stopped with TerminatedWorkerError" in (tmp_path / "log").read_text()
    assert outcome(tmp_path) == undisturbed


@pytest.mark.slow
def test_submitit_on_this_machine_gives_the_same(tmp_path, undisturbed):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    complete(tmp_path, "hydra/launcher=submitit_local", "hydra.launcher.cpus_per_task=1")
    assert outcome(tmp_path) == undisturbed


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_slurm_gives_the_same_though_a_job_is_taken_off_its_node(tmp_path, undisturbed):
    """SLURM kills a job that runs and queues it again, as it does where a node fails or another job has precedence."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    if shutil.which("sinfo") is None or subprocess.run(["sinfo"], capture_output=True, check=False).returncode:
        pytest.skip("needs a SLURM that runs")
    small = ["hydra.launcher.cpus_per_task=1", "hydra.launcher.mem_gb=2", "hydra.launcher.timeout_min=10"]
    process = start(tmp_path, "hydra/launcher=slurm_cpu", *small)
    worker_of(tmp_path, process, "submitit.core._submit", str(tmp_path))
    running = subprocess.run(["squeue", "-h", "-t", "R", "-o", "%i"], capture_output=True, text=True, check=True)
    subprocess.run(["scontrol", "requeue", running.stdout.split()[0]], check=True)
    assert process.wait(timeout=590) == 0
    assert outcome(tmp_path) == undisturbed


@pytest.fixture
def two_ray_nodes():
    """A Ray cluster of two nodes, both on this machine, a CPU each; its address."""
    pytest.importorskip("hydra_plugins.hydra_ray_launcher")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ray = [str(Path(sys.executable).with_name("ray")), "start", "--num-cpus=1", "--disable-usage-stats"]
    for role in (["--head", f"--port={port}", "--include-dashboard=false"], [f"--address=127.0.0.1:{port}"]):
        subprocess.run([*ray, *role], check=True, capture_output=True, timeout=60)
    yield f"127.0.0.1:{port}"
    subprocess.run([ray[0], "stop", "--force"], check=True, capture_output=True, timeout=60)


@pytest.mark.slow
def test_two_ray_nodes_give_the_same_though_a_worker_is_killed(tmp_path, undisturbed, two_ray_nodes):
    process = start(tmp_path, "hydra/launcher=ray_cluster", f"hydra.launcher.ray.init.address='{two_ray_nodes}'")
    worker_of(tmp_path, process, "ray::").kill()
    assert process.wait(timeout=280) == 0
    assert outcome(tmp_path) == undisturbed
