"""``hydra/launcher=fleet`` from the command line."""

import json

OPTIONS = [
    "hydra/launcher=fleet", "model.hidden=[8]", "trainer.epochs=null", "trainer.max_steps_per_task=3", "trainer.threads=1",
    "scenario.increment=5", "evaluator.subset=10", "record.figure=false", "progress=false", "device=cpu", "hydra.sweep.dir=sweep",
    "record.report=false",
]  # fmt: skip


def test_every_job_gets_its_run_folder_and_hydras(clb, tmp_path, monkeypatch):
    """Two strategies, three seeds, one wrong value: the other jobs are made all the same."""
    command = ["-m", *OPTIONS, "strategy=l2,finetune", "seed=0,1", "trainer.lr=0.1,-1.0", "hydra.launcher.way=stacked"]
    monkeypatch.setattr("sys.argv", ["clbench", *command])  # from which the record is made
    status, out, errors = clb(*command)
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
    assert status == 1
    assert "trainer.lr=-1.0 is out of range" in out + errors
    for number in right:
        folder = tmp_path / "sweep" / str(number)
        assert {"config.yaml", "hydra.yaml", "overrides.yaml"} == {path.name for path in (folder / ".hydra").iterdir()}
        record = json.loads((folder / "environment.json").read_text())
        assert "hydra/launcher=fleet" in record["command"]
        assert record["fleet"] == {"runs": 4, "way": "stacked"}


def test_a_wrong_way_is_one_sentence(clb):
    status, _, errors = clb("-m", *OPTIONS, "hydra.launcher.way=stakced", "seed=0,1")
    assert status == 2
    assert "did you mean 'stacked'? Valid choices: auto, in_turn, processes, stacked" in errors
    assert "Traceback" not in errors
