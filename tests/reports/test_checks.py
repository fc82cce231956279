"""What may be compared, and what is missing."""

import json

import pytest
from made_runs import write_run, write_study, write_sweep

from clbench.errors import ConfigError
from clbench.reports.checks import select
from clbench.reports.loading import load


def chosen(path, by="method"):
    return select(load([path]), by.split(","))


def two_runs(tmp_path, a=None, b=None, seeds=(0, 0), **keywords):
    """ER and EWC, the second with other options."""
    write_run(tmp_path / "a", "er", seeds[0], options=a)
    write_run(tmp_path / "b", "ewc", seeds[1], options=b, **keywords)
    return tmp_path


def test_comparable_runs(tmp_path):
    write_sweep(tmp_path, {"er": [0.9, 0.8], "ewc": [0.5, 0.4]})
    selection = chosen(tmp_path)
    assert len(selection.included) == 4
    assert selection.methods == ["er", "ewc"]
    assert selection.expected_seeds == {"stream": [0, 1]}
    assert selection.failures.empty


@pytest.mark.parametrize(
    ("option", "value", "default"),
    [
        ("trainer.epochs", 5, "20"),
        ("trainer.max_steps_per_task", 100, "None"),
        ("trainer.batch_size", 64, "32"),
        ("model.name", "resnet18", "mlp"),
        ("model.hidden", [10], r"\[400, 400\]"),
        ("scenario.increment", 5, "2"),
        ("evaluator.split", "validation", "test"),
        ("evaluator.subset", 50, "1000"),
    ],
)
def test_a_condition_that_differs_is_named_with_both_folders_and_a_way_out(tmp_path, option, value, default):
    two_runs(tmp_path, b={option: value})
    name = "split" if option == "evaluator.split" else option
    with pytest.raises(ConfigError) as error:
        chosen(tmp_path)
    message = str(error.value)
    assert str(tmp_path / "a") in message
    assert str(tmp_path / "b") in message
    assert f": {default.replace(chr(92), '')} and {value}" in message
    assert message.endswith(f"--by method,{name}")
    selection = chosen(tmp_path, f"method,{name}")  # the way out works, and the label says what differs
    assert len(selection.included) == 2
    assert str(value) in selection.methods[1]


def test_another_learning_rate_is_a_choice_of_the_method(tmp_path):
    assert len(chosen(two_runs(tmp_path, b={"trainer.lr": 1.0})).included) == 2


def test_streams_have_to_agree_for_each_seed(tmp_path):
    two_runs(tmp_path, stream_hash="f" * 32)
    with pytest.raises(ConfigError, match="the stream"):
        chosen(tmp_path)
    assert len(chosen(tmp_path, "method,scenario_hash").included) == 2


def test_streams_may_differ_from_seed_to_seed(tmp_path):
    for seed in range(3):
        for strategy in ("er", "ewc"):
            write_run(tmp_path / f"{strategy}{seed}", strategy, seed, stream_hash=str(seed) * 32)
    assert len(chosen(tmp_path).included) == 6


def test_curves_evaluated_differently_are_not_compared(tmp_path):
    two_runs(tmp_path, b={"evaluator.every": 10})
    with pytest.raises(ConfigError, match="how the curve was evaluated: every=1 and every=10"):
        chosen(tmp_path)
    assert chosen(tmp_path, "method,evaluation_kind").methods[1] == "ewc (evaluation_kind=every=10)"


def test_budgets_may_differ_between_scenarios(tmp_path):
    write_run(tmp_path / "a", scenario="one", options={"trainer.epochs": 1})
    write_run(tmp_path / "b", scenario="two", options={"trainer.epochs": 2})
    assert len(chosen(tmp_path).included) == 2


def test_the_same_method_and_seed_twice(tmp_path):
    write_run(tmp_path / "a")
    write_run(tmp_path / "b")
    with pytest.raises(ConfigError, match="are both er on stream with seed 0, with the same options"):
        chosen(tmp_path)


def test_pooling_by_strategy_does_not_hide_an_option(tmp_path):
    write_run(tmp_path / "a", options={"trainer.lr": 0.1})
    write_run(tmp_path / "b", options={"trainer.lr": 0.2})
    with pytest.raises(ConfigError, match=r"differ in trainer\.lr: add it with --by strategy,trainer\.lr"):
        chosen(tmp_path, "strategy")
    assert chosen(tmp_path, "strategy,trainer.lr").methods == ["er (lr=0.1)", "er (lr=0.2)"]


def test_unknown_by(tmp_path):
    write_run(tmp_path / "a")
    with pytest.raises(ConfigError, match=r"'trainer\.epoch': did you mean 'trainer\.epochs'"):
        chosen(tmp_path, "method,trainer.epoch")


def test_whatever_did_not_finish_is_listed_and_not_included(tmp_path):
    write_sweep(tmp_path, {"er": [0.9, 0.9, 0.9, 0.9]})
    write_run(tmp_path / "1", "ewc", 0)
    write_run(tmp_path / "2", "ewc", 1, status="failed")
    write_run(tmp_path / "3", "ewc", 2, status="diverged", ACC=0.1)
    write_run(tmp_path / "4", "gem", 0, status="running")
    (tmp_path / "5").mkdir()
    (tmp_path / "5" / "summary.json").write_text("{")
    selection = chosen(tmp_path)
    assert selection.included.method.value_counts().to_dict() == {"er": 4, "ewc": 1}
    assert selection.methods == ["ewc", "gem", "er"]
    listed = {
        (row.method, row.seed, row.status) for row in selection.failures.itertuples() if row.status != "unreadable"
    }
    assert listed == {
        ("ewc", 1, "failed"), ("ewc", 2, "diverged"), ("ewc", 3, "missing"),
        ("gem", 0, "running"), ("gem", 1, "missing"), ("gem", 2, "missing"), ("gem", 3, "missing"),
    }  # fmt: skip
    assert selection.failures.status.tolist().count("unreadable") == 1
    assert "ConfigError: no such thing" in set(selection.failures.reason)


def test_nothing_finished(tmp_path):
    write_run(tmp_path / "a", status="running")
    with pytest.raises(ConfigError, match=r"none of the runs to compare has finished .found: 1 running"):
        chosen(tmp_path)


def study(tmp_path, **keywords):
    evaluations = {
        "er": {"conventional": {100: 0.9, 101: 0.8}, "two_phase": {100: 0.7, 101: 0.6}},
        "ewc": {"conventional": {100: 0.5, 101: 0.4}, "two_phase": {100: 0.3, 101: 0.2}},
    }
    scores = {method: {"conventional": [0.5, 0.6], "two_phase": [0.6, 0.5]} for method in evaluations}
    return write_study(tmp_path / "study", evaluations, scores, seeds=(100, 101), **keywords)


def test_of_a_study_the_evaluation_runs_after_two_phase_tuning_are_compared(tmp_path):
    selection = chosen(study(tmp_path))
    assert sorted(selection.included.ACC) == [0.2, 0.3, 0.6, 0.7]
    assert selection.methods == ["er", "ewc"]
    assert selection.failures.empty


def test_evaluation_runs_that_two_protocols_share_belong_to_both(tmp_path):
    folder = study(tmp_path)
    content = json.loads((folder / "study.json").read_text())
    protocols = content["methods"][0]["protocols"]
    protocols["two_phase"]["evaluation"] = protocols["conventional"]["evaluation"]
    (folder / "study.json").write_text(json.dumps(content))
    assert sorted(chosen(folder).included.ACC) == [0.2, 0.3, 0.8, 0.9]


def test_a_tuned_budget_may_differ_another_may_not(tmp_path):
    folder = study(tmp_path, search={"trainer.batch_size": [32, 64]})
    content = json.loads((folder / "study.json").read_text())
    config = next(folder.glob("evaluation/ewc/two_phase/seed_100/config.yaml"))
    config.write_text(config.read_text().replace("batch_size: 32", "batch_size: 64"))
    assert len(chosen(folder).included) == 4
    content["methods"][0]["search"] = content["methods"][1]["search"] = {"trainer.lr": [0.1]}
    (folder / "study.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=r"trainer\.batch_size: (32 and 64|64 and 32)"):
        chosen(folder)


def test_seeds_that_a_study_planned_and_methods_not_evaluated_are_missing(tmp_path):
    folder = study(tmp_path)
    content = json.loads((folder / "study.json").read_text())
    content["protocol"]["evaluation_seeds"] = [100, 101, 102]
    content["methods"][1]["protocols"]["two_phase"]["evaluation"] = None
    (folder / "study.json").write_text(json.dumps(content))
    failures = chosen(folder).failures
    assert ("er", 102, "missing") in set(zip(failures.method, failures.seed, failures.status, strict=True))
    assert any(
        row.method == "ewc" and row.reason == "not evaluated yet under two_phase" for row in failures.itertuples()
    )
