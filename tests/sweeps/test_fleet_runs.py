"""A group of runs, each in its own folder, in every way; what happens when some of them fail."""

import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from loaded_processes import processes
from safetensors.torch import save_file

from clbench.compose import compose, load_run_config
from clbench.models.small_vit import SmallViT
from clbench.options import to_dataclass
from clbench.run import run
from clbench.strategies.finetune import Finetune
from clbench.sweeps import fleet_runs, ways
from clbench.sweeps.fleet_runs import Job, train_together
from clbench.training.fleet import Fleet

FIRST_LAYER = {
    "lora": "backbone.network.blocks.0.attn.qkv.base.weight",
    "oneprompt": "backbone.backbone.network.blocks.0.attn.qkv.weight",
    "reglora": "backbone.network.blocks.0.attn.qkv.base.weight",
}
OPTIONS = [
    "strategy=ewc", "model.hidden=[8]", "trainer.epochs=null", "trainer.max_steps_per_task=4", "trainer.batch_size=8",
    "evaluator.subset=20", "scenario.increment=5", "progress=false", "device=cpu", "record.figure=false",
]  # fmt: skip


def jobs(folder: Path, *different: list[str]) -> list[Job]:
    return [Job(compose([*OPTIONS, *more]), folder / str(number)) for number, more in enumerate(different)]


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_member_leaves_what_a_run_alone_leaves(tmp_path):
    together = jobs(
        tmp_path / "fleet",
        ["seed=0", "record.figure=true"],
        ["seed=1", "strategy.lam=1.0", "record.figure=true"],
    )
    outcomes = train_together(together, "stacked")
    for job, outcome in zip(together, outcomes, strict=True):
        alone = tmp_path / "alone" / job.path.name
        summary = run(job.config, alone)
        assert files(job.path) == files(alone)
        assert outcome.summary == json.loads((job.path / "summary.json").read_text())
        assert outcome.summary.keys() == summary.keys()
        metrics = [one["metrics"] | {"undefined": None} for one in (outcome.summary, summary)]
        assert metrics[0] == pytest.approx(metrics[1], abs=1e-3, nan_ok=True)
        assert outcome.summary["metrics"]["undefined"] == summary["metrics"]["undefined"]
        assert outcome.summary["costs"].keys() == summary["costs"].keys()
        assert outcome.summary["costs"]["peak_memory_of"] in ("fleet", None)
        assert summary["costs"]["peak_memory_of"] in ("run", None)
        for name in ("curve", "tasks", "training"):
            mine, its = (pd.read_parquet(path / f"{name}.parquet") for path in (job.path, alone))
            pd.testing.assert_frame_equal(mine, its, rtol=1e-3, atol=1e-3)
        assert load_run_config(job.path / "config.yaml") == job.config
        mine, its = (json.loads((path / "environment.json").read_text()) for path in (job.path, alone))
        assert mine.keys() == its.keys()
        assert mine["initial_weights_sha256"] == its["initial_weights_sha256"]
        assert mine["fleet"] == {"runs": 2, "way": "stacked"}
        assert its["fleet"] is None


@pytest.mark.parametrize("way", ["in_turn", "processes"])
def test_other_ways_give_the_run_alone_to_the_bit(way, tmp_path, monkeypatch):
    # Where ways are timed, processes are those of a sweep, which import everything.
    monkeypatch.setattr(ways, "get_context", lambda method: processes)
    together = jobs(tmp_path / way, ["seed=0", "trainer.threads=1"], ["seed=1", "trainer.threads=1"])
    outcomes = train_together(together, way)
    assert [outcome.summary["seed"] for outcome in outcomes] == [0, 1]
    run(together[1].config, tmp_path / "alone")
    pd.testing.assert_frame_equal(
        pd.read_parquet(together[1].path / "curve.parquet"), pd.read_parquet(tmp_path / "alone" / "curve.parquet")
    )


def test_a_wrong_configuration_does_not_keep_the_others(tmp_path):
    together = jobs(tmp_path, ["seed=0"], ["seed=1", "strategy.lam=-1.0"], ["seed=2"])
    outcomes = train_together(together, "stacked")
    assert [outcome.failure is None for outcome in outcomes] == [True, False, True]
    assert "strategy.lam=-1.0 is out of range" in outcomes[1].failure
    assert json.loads((tmp_path / "1" / "summary.json").read_text())["status"] == "failed"
    assert train_together(jobs(tmp_path / "auto", ["seed=0"], ["strategy.lam=-1.0"]))[0].summary["status"] == "finished"


def test_a_diverged_member_is_recorded_as_such(tmp_path):
    together = jobs(tmp_path, ["strategy=l2"], ["strategy=l2", "strategy.lam=1e30"])
    outcomes = train_together(together, "stacked")
    assert [outcome.summary["status"] for outcome in outcomes] == ["finished", "diverged"]
    assert "became" in outcomes[1].summary["reason"]
    assert {"curve.parquet", "tasks.parquet", "summary.json"} <= files(tmp_path / "1")


def test_out_of_memory_halves_the_fleet(tmp_path, monkeypatch, caplog):
    sizes = []
    step = Fleet.train_step

    def crowded(fleet):
        if fleet.step == 2:
            sizes.append(len(fleet.members))
            if len(fleet.members) > 2:
                raise torch.OutOfMemoryError("no room")
        step(fleet)

    monkeypatch.setattr(Fleet, "train_step", crowded)
    outcomes = train_together(jobs(tmp_path, *([f"seed={seed}"] for seed in range(5))), "stacked")
    assert [outcome.summary["status"] for outcome in outcomes] == ["finished"] * 5
    assert sizes[:3] == [5, 2, 2]
    assert "out of memory with 5 runs at once: two fleets of half the size" in caplog.text


def test_what_cannot_be_stacked_is_trained_in_turn_and_says_why(tmp_path, monkeypatch, caplog):
    def looks(self, batch, outputs):
        return outputs.logits.mean() * (1.0 if outputs.logits.sum().item() > 0 else 2.0)

    monkeypatch.setattr(Finetune, "penalty", looks)
    for way in ("stacked", "auto"):
        caplog.clear()
        outcomes = train_together(jobs(tmp_path / way, *(["strategy=finetune", f"seed={s}"] for s in (0, 1))), way)
        assert [outcome.summary["status"] for outcome in outcomes] == ["finished"] * 2
        assert "trained one after another, since stacking" in caplog.text
        assert "item()" in caplog.text


def test_the_fastest_way_is_taken_and_said(tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    taken = []
    for fastest in ways.WAYS:
        monkeypatch.setattr(
            fleet_runs, "seconds_per_iteration", lambda configs, f=fastest: {w: 1.0 + (w != f) for w in ways.WAYS}
        )
        for name, way in (("_stacked", "stacked"), ("_in_processes", "processes"), ("_alone", "in_turn")):
            monkeypatch.setattr(fleet_runs, name, lambda _jobs, way=way: taken.append(way) or [])
        train_together(jobs(tmp_path, ["seed=0"], ["seed=1"]))
    assert [way for i, way in enumerate(taken) if i == 0 or way != taken[i - 1]] == list(ways.WAYS)
    assert "chosen: processes" in caplog.text


def test_ways_are_timed_on_throwaway_learners(monkeypatch):
    configs = [job.config for job in jobs(Path("unused"), ["seed=0"], ["seed=1"])]
    before = [config.copy() for config in configs]
    seconds = ways.seconds_per_iteration(configs)
    assert set(seconds) == {"stacked", "in_turn"}  # too short for processes
    assert all(0 < value < 10 for value in seconds.values())
    assert configs == before
    monkeypatch.setattr(ways, "WORTH_PROCESSES", 0.0)
    monkeypatch.setattr(ways, "n_processes", lambda config, n: 2)
    assert set(ways.seconds_per_iteration(configs)) == {"stacked", "in_turn", "processes"}


@pytest.mark.parametrize(
    ("strategy", "copies"), [("lora", 1), pytest.param("oneprompt", 1, marks=pytest.mark.slow), ("reglora", 3)]
)
def test_members_hold_one_copy_of_a_frozen_backbone(strategy, copies, tmp_path, monkeypatch):
    """From the moment they are built to the end; where a method merges into it, until it does."""
    sizes = ["model=small_vit", "model.width=8", "model.depth=5", "model.heads=1"]
    config = to_dataclass(compose(sizes)).model
    save_file(SmallViT(config, (1, 8, 8)).network.state_dict(), tmp_path / "pretrained.safetensors")
    small = [*sizes, f"model.checkpoint={tmp_path / 'pretrained.safetensors'}", *OPTIONS[2:]]
    seeds = [Job(compose([f"strategy={strategy}", *small, f"seed={seed}"]), tmp_path / str(seed)) for seed in range(3)]
    seen, fit = [], Fleet.fit

    def count(members):
        weights = [member.learner.model.get_parameter(FIRST_LAYER[strategy]) for member in members]
        return len({weight.data_ptr() for weight in weights})

    def counted(fleet):
        seen.append(count(fleet.members))
        fit(fleet)
        seen.append(count(fleet.members))

    monkeypatch.setattr(Fleet, "fit", counted)
    outcomes = train_together(seeds, "stacked")
    assert seen == [1, copies]
    run(seeds[1].config, tmp_path / "alone")
    mine, its = (pd.read_parquet(path / "tasks.parquet") for path in (seeds[1].path, tmp_path / "alone"))
    assert outcomes[1].summary["metrics"]["ACC"] == pytest.approx(
        (mine.correct / mine.n)[mine.task_learning == 1].mean()
    )
    pd.testing.assert_frame_equal(mine, its, rtol=1e-3, atol=1e-3)
