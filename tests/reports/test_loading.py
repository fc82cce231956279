"""Run folders read into one table."""

import json
import math
import shutil
import time

import pandas as pd
import pytest
from made_runs import METRICS, write_run, write_study, write_sweep

from clbench.errors import ConfigError
from clbench.reports.labels import method_labels
from clbench.reports.loading import load


def test_a_row_holds_what_the_folder_says(tmp_path):
    write_run(tmp_path / "a", "ewc", 3, ACC=0.71, seconds=9.0, options={"trainer.max_steps_per_task": 50})
    row = load([tmp_path]).table.iloc[0]
    expected = {
        "folder": str(tmp_path / "a"), "method": "ewc", "strategy": "ewc", "scenario": "stream", "model": "mlp", "seed": 3,
        "split": "test", "status": "finished", "evaluation_kind": "every=1", "ACC": 0.71, "seconds": 9.0,
        "budget": "20 epochs, at most 50 steps a task, batch 32", "device": "cpu, 1 threads", "torch": "2.14.1",
        "clbench": "0.1.0", "git_commit": "f00",
    }  # fmt: skip
    assert {name: row[name] for name in expected} == expected
    assert set(METRICS) <= set(row.index)
    assert math.isnan(row.FWT)


def test_a_real_run_is_read(tmp_path):
    from clbench.compose import compose
    from clbench.run import run

    options = [
        "strategy=er",
        "strategy.plus=[ewc]",
        "trainer.max_steps_per_task=2",
        "record.figure=false",
        "progress=false",
    ]
    summary = run(compose([*options, "evaluator=adaptive"]), tmp_path / "run")
    runs = load([tmp_path])
    row = runs.table.iloc[0]
    assert row.strategy == row.method == summary["strategy"] == "er+ewc"
    assert row.scenario == summary["scenario"]
    assert row.evaluation_kind == "adaptive"
    assert summary["metrics"]["ACC"] == row.ACC
    assert row.parameters == summary["costs"]["parameters"]
    assert runs.config(row.folder)["strategy.memory_size"] == 2000
    assert len(runs.curve(row.folder)) > 0
    assert runs.tasks(row.folder).task_learning.max() == 4
    assert runs.stream(row.folder)["hash"] == row.scenario_hash


def test_folders_at_any_depth_patterns_and_no_run_twice(tmp_path):
    write_run(tmp_path / "2026-01-01" / "deep" / "a", seed=0)
    write_run(tmp_path / "2026-01-02" / "b", seed=1)
    write_run(tmp_path / "2026-01-02" / "lr=[0.1]", seed=2)
    (tmp_path / "2026-01-02" / "b" / ".hydra").mkdir()
    (tmp_path / "2026-01-02" / "b" / ".hydra" / "config.yaml").write_text("seed: 1")
    assert len(load([tmp_path]).table) == 3
    assert load([f"{tmp_path}/*-01/**"]).table.seed.tolist() == [0]
    assert load([tmp_path / "2026-01-02" / "lr=[0.1]"]).table.seed.tolist() == [2]
    assert len(load([tmp_path, tmp_path / "2026-01-02", f"{tmp_path}/2026-*"]).table) == 3


def test_jobs_of_a_sweep_come_in_their_order(tmp_path):
    for job in range(12):
        write_run(tmp_path / str(job), seed=job)
    assert load([tmp_path]).table.seed.tolist() == list(range(12))


@pytest.mark.parametrize("path", ["nowhere", "no*where", "."])
def test_a_path_without_runs_is_an_error(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=f"no run in '{path}'".replace("*", r"\*")):
        load([path])


def test_unfinished_runs_have_their_status_and_what_their_configuration_says(tmp_path):
    write_run(tmp_path / "a", "ewc", 4, status="failed")
    write_run(tmp_path / "b", "ewc", 5, status="running")
    write_run(tmp_path / "c", "ewc", 6, status="diverged", ACC=None)
    table = load([tmp_path]).table
    assert table.status.tolist() == ["failed", "running", "diverged"]
    assert table.seed.tolist() == [4, 5, 6]
    assert table.strategy.tolist() == ["ewc"] * 3
    assert table.reason[0] == "ConfigError: no such thing"
    assert table.reason[2] == "the training loss became nan"


def test_a_run_that_failed_before_it_wrote_its_configuration_is_known_from_hydras(tmp_path):
    hydra = tmp_path / "a" / ".hydra"
    hydra.mkdir(parents=True)
    (hydra / "config.yaml").write_text("strategy: {name: gem}\nscenario: {name: stream}\nseed: 7\n")
    (tmp_path / "a" / "summary.json").write_text('{"status": "failed", "reason": "ConfigError: why"}')
    row = load([tmp_path]).table.iloc[0]
    assert (row.strategy, row.seed, row.status, row.reason) == ("gem", 7, "failed", "ConfigError: why")


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("summary.json", '{"status": "fini', "JSONDecodeError"),
        ("summary.json", None, "summary.json is missing"),
        ("summary.json", '{"status": "asleep"}', "'asleep'"),
        ("summary.json", "[]", "its status is a list"),
        (
            "summary.json",
            '{"status": "finished", "format": 2}',
            "has format 2, and this version of",
        ),
        ("summary.json", '{"status": "finished", "format": "1"}', "its format is '1'"),
        ("config.yaml", "a: [", "Error"),
        ("config.yaml", "just words", "not a configuration"),
        ("environment.json", "{", "JSONDecodeError"),
    ],
)
def test_an_unreadable_folder_is_a_row_with_the_reason(tmp_path, file, content, reason):
    write_run(tmp_path / "a")
    folder = write_run(tmp_path / "b", seed=1)
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_text(content)
    table = load([tmp_path]).table
    assert table.status.tolist() == ["finished", "unreadable"]
    assert reason in table.reason[1]


def test_a_record_with_a_format_is_the_row_that_one_without_is(tmp_path):
    file = write_run(tmp_path / "a") / "summary.json"
    without = load([tmp_path]).table
    assert "format" not in json.loads(file.read_text())
    file.write_text(json.dumps({"format": 1} | json.loads(file.read_text())))
    pd.testing.assert_frame_equal(load([tmp_path]).table, without)


def test_labels_name_the_options_that_differ(tmp_path):
    write_run(tmp_path / "a", "ewc", 0, options={"strategy.lam": 10, "trainer.lr": 0.1})
    write_run(tmp_path / "b", "ewc", 0, options={"strategy.lam": 1, "trainer.lr": 0.1})
    write_run(
        tmp_path / "c",
        "ewc",
        1,
        options={"strategy.lam": 1, "trainer.lr": 0.1, "record.figure": False, "trainer.threads": 8},
    )
    write_run(tmp_path / "d", "er", 0, options={"trainer.lr": 0.5})
    assert load([tmp_path]).table.method.tolist() == ["ewc (lam=10)", "ewc (lam=1)", "ewc (lam=1)", "er"]


def test_options_that_end_alike_are_written_out(tmp_path):
    for name, (own, added) in {"a": (1, 2), "b": (2, 1)}.items():
        options = {"strategy.lam": own, "strategy.plus": ["l2"], "plus.l2.lam": added}
        write_run(tmp_path / name, "ewc", options=options)
    assert load([tmp_path]).table.method[0] == "ewc+l2 (strategy.lam=1, plus.l2.lam=2)"


def test_what_a_tuning_would_try_is_no_difference(tmp_path):
    write_run(tmp_path / "a", "ewc", 0, options={"strategy.search": {"lam": [1]}, "plus.er.search": {"x": [1]}})
    write_run(tmp_path / "b", "ewc", 1, options={"strategy.search": {"lam": [2]}, "plus.er.search": {"x": [2]}})
    assert load([tmp_path]).table.method.tolist() == ["ewc", "ewc"]


def test_options_are_compared_within_a_scenario(tmp_path):
    write_run(tmp_path / "a", "er", scenario="one", options={"trainer.lr": 0.1})
    write_run(tmp_path / "b", "er", scenario="two", options={"trainer.lr": 0.2})
    assert load([tmp_path]).table.method.tolist() == ["er", "er"]


def test_a_study_is_found_and_its_runs_carry_its_names(tmp_path):
    one = {"two_phase": {100: 0.8, 101: 0.7}}
    write_study(tmp_path / "deep" / "study", {"ewc": one}, {"ewc": {"two_phase": [0.5, 0.6]}})
    runs = load([tmp_path])
    assert [study.folder for study in runs.studies] == [tmp_path / "deep" / "study"]
    assert runs.table.phase.value_counts().to_dict() == {"tuning": 2, "evaluation": 2}
    assert set(runs.table.method) == {"ewc"}
    assert sorted(runs.table.trial.dropna()) == [0, 1]


def test_a_broken_study_is_an_error(tmp_path):
    write_run(tmp_path / "a")
    (tmp_path / "study.json").write_text("{")
    with pytest.raises(ConfigError, match=r"study\.json cannot be read"):
        load([tmp_path])


@pytest.mark.slow
def test_five_hundred_runs_are_read_in_seconds(tmp_path):
    first = write_run(tmp_path / "0")
    for seed in range(1, 500):
        folder = shutil.copytree(first, tmp_path / str(seed))
        config = (folder / "config.yaml").read_text().replace("seed: 0", f"seed: {seed}")
        (folder / "config.yaml").write_text(config)
        summary = json.loads((folder / "summary.json").read_text()) | {"seed": seed}
        (folder / "summary.json").write_text(json.dumps(summary))
    started = time.perf_counter()
    table = load([tmp_path]).table
    assert time.perf_counter() - started < 10
    assert sorted(table.seed) == list(range(500))


def test_statistics_of_a_sweep_are_numbers(tmp_path):
    table = load([write_sweep(tmp_path, {"er": [0.9, 0.8], "ewc": [0.4]})]).table
    assert table.query("strategy == 'er' and ACC > 0.85").seed.tolist() == [0]
    assert table.query("FWT > 0").empty  # defined nowhere, still a number


def test_what_a_method_says_of_itself(tmp_path):
    rows = [(0, "sparse", "density", "", 0.2), (0, "sparse", "density", "head.weight", 0.5)]
    write_run(tmp_path / "a", seed=0, notes=["er: a reading."], measurements=rows)
    write_run(tmp_path / "b", seed=1, notes=[])
    write_run(tmp_path / "c", seed=2)  # from before there were notes
    runs = load([tmp_path])
    assert runs.table.notes[0] == ["er: a reading."]
    assert runs.table.notes[1:].isna().all()
    first, *others = (runs.measurements(folder) for folder in runs.table.folder)
    assert list(first.itertuples(index=False, name=None)) == rows
    assert all(table.empty and list(table) == list(first) for table in others)


def test_measures_of_plasticity(tmp_path):
    rows = [(0, 0, "current", "train_accuracy", "", 0.1), (0, 10, "", "sigma_max", "h1", 2.5)]
    write_run(tmp_path / "a", seed=0, plasticity=rows)
    write_run(tmp_path / "b", seed=1)
    runs = load([tmp_path])
    first, second = (runs.plasticity(folder) for folder in runs.table.folder)
    assert list(first.itertuples(index=False, name=None)) == rows
    assert second.empty
    assert list(second) == list(first)


def test_lines_between_states(tmp_path):
    rows = [(1, 0.0, 0, 10, 5, 7.5), (1, 1.0, 1, 10, 9, 2.5)]
    write_run(tmp_path / "a", seed=0, connectivity=rows)
    write_run(tmp_path / "b", seed=1)
    runs = load([tmp_path])
    first, second = (runs.connectivity(folder) for folder in runs.table.folder)
    assert list(first.itertuples(index=False, name=None)) == rows
    assert second.empty
    assert list(second) == list(first)


def test_without_notes_there_is_no_column_of_notes(tmp_path):
    write_run(tmp_path / "a", seed=0, notes=[])
    write_run(tmp_path / "b", seed=1)
    assert "notes" not in load([tmp_path]).table


def test_an_added_option_names_a_studied_method_only_where_its_runs_differ():
    table = pd.DataFrame({"folder": list("abc"), "method": None, "strategy": "er", "scenario": "s"})
    configs = {
        folder: {"study.method": method, "model.norm": norm}
        for folder, method, norm in [("a", "er", None), ("b", "er", "layer"), ("c", "er-layer_norm", "layer")]
    }
    labels = method_labels(table, configs, ["method", "model.norm"])
    assert labels.tolist() == ["er (norm=None)", "er (norm=layer)", "er-layer_norm"]


def test_curves_from_before_there_were_consolidated_rows_have_none(tmp_path):
    row = {"task_learning": 0, "iteration": 1, "task_eval": 0, "n": 10, "correct": 5, "loss": 1.0}
    folder = write_run(tmp_path / "old")
    pd.DataFrame([row]).to_parquet(folder / "curve.parquet")
    assert load([tmp_path]).curve(str(folder)).to_dict("records") == [row | {"consolidated": False}]
