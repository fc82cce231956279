"""``hydra/launcher=fleet`` from the command line."""

import json
import subprocess
import sys
from pathlib import Path

OPTIONS = [
    "hydra/launcher=fleet", "model.hidden=[8]", "trainer.epochs=null", "trainer.max_steps_per_task=3", "trainer.threads=1",
    "scenario.increment=5", "evaluator.subset=10", "record.figure=false", "progress=false", "device=cpu", "hydra.sweep.dir=sweep",
]  # fmt: skip


def clbench(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "clbench", "-m", *OPTIONS, *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)


def test_every_job_gets_its_run_folder_and_hydras(tmp_path):
    """Two strategies, three seeds, one wrong value: the other jobs are made all the same."""
    done = clbench(tmp_path, "strategy=l2,finetune", "seed=0,1", "trainer.lr=0.1,-1.0", "hydra.launcher.way=stacked")
    summaries = {int(path.parent.name): json.loads(path.read_text()) for path in tmp_path.glob("sweep/*/summary.json")}
    assert sorted(summaries) == list(range(8))
    right = {number: summary for number, summary in summaries.items() if summary["status"] == "finished"}
    assert [(s["strategy"], s["seed"]) for _, s in sorted(right.items())] == [
        ("l2", 0),
        ("l2", 1),
        ("finetune", 0),
        ("finetune", 1),
    ]
    assert all("trainer.lr=-1.0 is out of range" in s["reason"] for n, s in summaries.items() if n not in right)
    assert done.returncode != 0
    assert "trainer.lr=-1.0 is out of range" in done.stdout + done.stderr
    for number in right:
        folder = tmp_path / "sweep" / str(number)
        assert {"config.yaml", "hydra.yaml", "overrides.yaml"} == {path.name for path in (folder / ".hydra").iterdir()}
        record = json.loads((folder / "environment.json").read_text())
        assert "hydra/launcher=fleet" in record["command"]
        assert record["fleet"] == {"runs": 4, "way": "stacked"}


def test_a_wrong_way_is_one_sentence(tmp_path):
    done = clbench(tmp_path, "hydra.launcher.way=stakced", "seed=0,1")
    assert done.returncode != 0
    assert "did you mean 'stacked'? Valid choices: auto, in_turn, processes, stacked" in done.stderr
    assert "Traceback" not in done.stderr
