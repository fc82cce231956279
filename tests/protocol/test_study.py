"""A study: every method tuned, the selected configurations evaluated, continued wherever it was stopped."""

import fcntl
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from clbench.command_line.launch import resume
from clbench.config import typed
from clbench.errors import ConfigError, RunFailed
from clbench.protocol.methods import Method, methods_of
from clbench.protocol.options import ProtocolConfig
from clbench.protocol.search_space import as_overrides, frozen_trial, next_values, space_of
from clbench.protocol.study import Study
from clbench.protocol.tuned_values import with_tuned_values
from clbench.records.run_folder import RunFolder

LR = [0.01, 0.1, 1.0]


class Stop(BaseException):
    """Ends the process at this point."""


@pytest.fixture(scope="session")
def study(compose) -> Callable[..., Study]:
    """A function: folder, words of the command line, options and launcher → a study, in a process of its own as it were."""
    known: dict[str, list[Method]] = {}  # methods do not change, and every value of their spaces is checked once

    def make(
        folder: Path, arguments: list[str], options: ProtocolConfig, launch: Callable, best: Path | None = None
    ) -> Study:
        key = f"{arguments} {options.search} {options.sampler}"
        if key not in known:
            known[key] = methods_of(arguments, options, compose)
        return Study(folder, known[key], options, compose, launch, "the command", best)

    return make


def run(study: Study) -> dict[str, Any]:
    """Run a study without building streams and networks first; returns its study.json."""
    with patch.object(Study, "_check"):
        study.run()
    return content(study.folder)


def content(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "study.json").read_text())


def made_up(values: dict) -> float:
    """A score between 0 and 1 that says nothing; the same for the same values and seed."""
    text = f"{values['study.method']}/{values.get('strategy.lam')}/{values['trainer.lr']}/{values['seed']}"
    return float(np.random.default_rng(list(text.encode())).random())


def small(options_of, **changes: Any) -> ProtocolConfig:
    return options_of(**{"trials": 4, "search": {"trainer.lr": LR}, **changes})


# ---- what a study does ----------------------------------------------------------------------------------------------


def test_every_method_is_tuned_and_its_best_configuration_is_evaluated(tmp_path, study, options_of, made_runs):
    """All that is selected, against an argmax over the made scores; 15 configurations of EWC, 3 of finetuning."""
    launch = made_runs(tmp_path, made_up)
    options = small(options_of, trials=100, tuning_seeds=[0, 1, 2])
    found = run(study(tmp_path, ["strategy=ewc,finetune"], options, launch))
    assert found["status"] == "finished"
    assert [(method["method"], method["scenario"]) for method in found["methods"]] == [
        ("ewc", "split_digits"),
        ("finetune", "split_digits"),
    ]
    for method, n_trials in zip(found["methods"], (15, 3), strict=True):
        outcome = method["protocols"]["conventional"]
        assert len(outcome["trials"]) == n_trials
        means = []
        for trial in outcome["trials"]:
            made = [made_up({**trial["values"], "study.method": method["method"], "seed": seed}) for seed in range(3)]
            means.append(sum(made) / 3)
            assert trial["score"] == pytest.approx(means[-1], abs=1e-12)
            assert [trial["runs"][str(seed)]["score"] for seed in range(3)] == made
            assert trial["state"] == "complete"
        best = int(np.argmax(means))
        assert outcome["selected"] == {
            "trial": best,
            "values": outcome["trials"][best]["values"],
            "score": outcome["trials"][best]["score"],
        }
        assert list(outcome["evaluation"]) == ["100", "101"]
        for seed, record in outcome["evaluation"].items():
            values = launch.values[record["folder"]]
            assert record["status"] == "finished"
            assert {name: values[name] for name in outcome["selected"]["values"]} == outcome["selected"]["values"]
            assert (values["seed"], values["study.phase"], values["study.method"]) == (
                int(seed),
                "evaluation",
                method["method"],
            )
            assert "scenario.validation" not in values
            assert "evaluator.split" not in values
    assert Counter(folder.partition("/")[0] for folder in launch.began) == {"tuning": 3 * 18, "evaluation": 4}
    assert len(set(launch.began)) == len(launch.began)


def test_the_runs_of_a_study_say_what_they_are(tmp_path, study, options_of, made_runs, compose):
    """Composed as a launcher would: what is tuned on has no test split, and what is evaluated nothing else."""
    requests = {}
    launch = made_runs(tmp_path, made_up)

    def noting(due: list) -> None:
        requests.update({request.folder: request for request in due})
        launch(due)

    options = small(options_of, validation=0.2)
    run(study(tmp_path, ["strategy=er", "strategy.plus=[ewc]", "trainer.batch_size=7"], options, noting))
    tuned = typed(compose(requests["tuning/conventional/split_digits/er+ewc/trial_002/seed_1"].overrides))
    assert (tuned.study.phase, tuned.study.protocol, tuned.study.method, tuned.study.trial) == (
        "tuning",
        "conventional",
        "er+ewc",
        2,
    )
    assert (tuned.seed, tuned.scenario.validation, tuned.evaluator.split, tuned.evaluator.every) == (
        1,
        0.2,
        "validation",
        0,
    )
    [evaluation] = [request for folder, request in requests.items() if folder.startswith("eval") and "_100" in folder]
    evaluated = typed(compose(evaluation.overrides))
    assert (evaluated.study.phase, evaluated.study.method, evaluated.study.trial) == ("evaluation", "er+ewc", None)
    assert (evaluated.seed, evaluated.scenario.validation, evaluated.evaluator.split) == (100, 0.0, "test")
    assert evaluated.evaluator.every == 1
    selected = content(tmp_path)["methods"][0]["protocols"]["conventional"]["selected"]["values"]
    assert evaluated.plus["ewc"]["lam"] == selected["plus.ewc.lam"]
    assert (evaluated.trainer.lr, evaluated.strategy.new_weight) == (
        selected["trainer.lr"],
        selected["strategy.new_weight"],
    )
    for config in (tuned, evaluated):
        assert (config.strategy.plus, config.trainer.batch_size, config.progress) == (["ewc"], 7, False)


def test_the_streams_are_recorded_by_their_hashes(tmp_path, study, options_of, made_runs):
    found = run(study(tmp_path, ["strategy=ewc,finetune"], small(options_of), made_runs(tmp_path, made_up)))
    [stream] = found["streams"]
    assert stream["scenario"] == "split_digits"
    assert stream["tuning"] == {"conventional": {"0": "stream of seed 0", "1": "stream of seed 1"}}
    assert stream["evaluation"] == {"100": "stream of seed 100", "101": "stream of seed 101"}


def test_kinds_of_tuning_that_select_the_same_share_its_evaluation(tmp_path, study, options_of, made_runs):
    options = small(options_of, kinds=["conventional", "first_task", "first_k"], trials=3)
    launch = made_runs(
        tmp_path, lambda v: float(v["trainer.lr"] == (0.1 if v.get("study.protocol") == "first_k" else 0.01))
    )
    found = run(study(tmp_path, ["strategy=finetune"], options, launch))
    outcomes = found["methods"][0]["protocols"]
    assert [outcome["selected"]["values"]["trainer.lr"] for outcome in outcomes.values()] == [0.01, 0.01, 0.1]
    assert outcomes["conventional"]["evaluation"] == outcomes["first_task"]["evaluation"]
    assert outcomes["conventional"]["evaluation"] != outcomes["first_k"]["evaluation"]
    began = [folder for folder in launch.began if folder.startswith("evaluation")]
    assert len(began) == len(set(began)) == 4


def test_equal_budgets(tmp_path, study, options_of, made_runs):
    launch = made_runs(tmp_path, made_up)
    options = small(options_of, trials=6, search={"trainer.lr": LR, "trainer.weight_decay": [0.0, 0.1]})
    found = run(study(tmp_path, ["strategy=ewc,lwf,finetune"], options, launch))
    runs = Counter(folder.split("/")[3] for folder in launch.began if folder.startswith("tuning"))
    assert runs == {"ewc": 12, "lwf": 12, "finetune": 12}
    assert all(len(method["protocols"]["conventional"]["trials"]) == 6 for method in found["methods"])


def test_successive_halving_and_tpe_in_a_study(tmp_path, study, options_of, made_runs):
    """Of six trials in batches of three: 3, 2 and 1 of each; the methods' runs are launched together."""
    options = small(options_of, sampler="tpe", batch=3, trials=6, pruner="successive_halving", tuning_seeds=[0, 1, 2],
                    search={"trainer.lr": {"low": 0.01, "high": 1.0}})  # fmt: skip
    launch = made_runs(tmp_path, made_up)
    found = run(study(tmp_path, ["strategy=finetune,joint"], options, launch))
    rounds = [Counter(folder.split("/")[3] for folder in batch) for batch in launch.launches]
    assert rounds[:-1] == [{"finetune": n, "joint": n} for n in (3, 2, 1, 3, 2, 1)]
    for method in found["methods"]:
        states = [trial["state"] for trial in method["protocols"]["conventional"]["trials"]]
        assert Counter(states[:3]) == Counter(states[3:]) == {"pruned": 2, "complete": 1}


# ---- what goes wrong ------------------------------------------------------------------------------------------------


def test_a_diverged_configuration_counts_as_chance_and_the_study_goes_on(tmp_path, study, options_of, made_runs):
    outcome = lambda v: "diverged" if v["trainer.lr"] == 1.0 else v["trainer.lr"]  # noqa: E731
    found = run(study(tmp_path, ["strategy=finetune"], small(options_of), made_runs(tmp_path, outcome)))
    trials = found["methods"][0]["protocols"]["conventional"]["trials"]
    assert {trial["values"]["trainer.lr"]: trial["score"] for trial in trials} == {0.01: 0.01, 0.1: 0.1, 1.0: 0.375}
    assert {trial["values"]["trainer.lr"]: trial["diverged_seeds"] for trial in trials} == {
        0.01: [],
        0.1: [],
        1.0: [0, 1],
    }
    # Chance is better than the others here, so the diverging configuration is evaluated, and that is recorded.
    evaluation = found["methods"][0]["protocols"]["conventional"]["evaluation"]
    assert {record["status"] for record in evaluation.values()} == {"diverged"}


@pytest.mark.parametrize(
    ("reason", "retries", "times"),
    [("RuntimeError: out of memory", 1, 2), ("RuntimeError: out of memory", 0, 1), ("RuntimeError: x", 2, 3),
     ("ConfigError: lr=1", 1, 1), ("DataError: damaged", 3, 1), ("DamagedRecord: cut", 3, 1), ("MachineError: full", 1, 2)],
)  # fmt: skip
def test_how_often_a_failed_run_is_tried_again(tmp_path, study, options_of, made_runs, reason, retries, times):
    launch = made_runs(tmp_path, lambda v: reason if v["trainer.lr"] == 1.0 and v["seed"] == 1 else v["trainer.lr"])
    found = run(study(tmp_path, ["strategy=finetune"], small(options_of, retries=retries), launch))
    trials = found["methods"][0]["protocols"]["conventional"]["trials"]
    [failed] = [trial for trial in trials if trial["state"] == "failed"]
    assert failed["values"] == {"trainer.lr": 1.0}
    assert failed["runs"]["1"]["reason"] == reason
    tries = Counter(launch.began)
    assert {n for folder, n in tries.items() if folder != failed["runs"]["1"]["folder"]} == {1}
    assert tries[failed["runs"]["1"]["folder"]] == times
    assert found["methods"][0]["protocols"]["conventional"]["selected"]["values"] == {"trainer.lr": 0.1}


def test_a_run_that_succeeds_when_it_is_tried_again(tmp_path, study, options_of, made_runs):
    seen: Counter = Counter()

    def outcome(values: dict) -> float | str:
        seen[values["trainer.lr"], values["seed"]] += 1
        first = seen[values["trainer.lr"], values["seed"]] == 1
        return "RuntimeError: killed" if first and values["trainer.lr"] == 1.0 else values["trainer.lr"]

    found = run(study(tmp_path, ["strategy=finetune"], small(options_of), made_runs(tmp_path, outcome)))
    assert found["methods"][0]["protocols"]["conventional"]["selected"]["values"] == {"trainer.lr": 1.0}


def test_a_method_whose_trials_all_fail_is_named_and_the_others_are_evaluated(tmp_path, study, options_of, made_runs):
    launch = made_runs(tmp_path, lambda v: "RuntimeError: no" if v["study.method"] == "ewc" else 0.5)
    with pytest.raises(
        RunFailed, match=r"no result for ewc on split_digits \(conventional\): see study.json"
    ) as raised:
        run(study(tmp_path, ["strategy=ewc,finetune"], small(options_of), launch, tmp_path / "best"))
    assert "finetune" not in str(raised.value)
    ewc, finetune = content(tmp_path)["methods"]
    assert ewc["protocols"]["conventional"]["selected"] is None
    assert ewc["protocols"]["conventional"]["evaluation"] is None
    assert {trial["runs"]["0"]["reason"] for trial in ewc["protocols"]["conventional"]["trials"]} == {
        "RuntimeError: no"
    }
    assert {r["status"] for r in finetune["protocols"]["conventional"]["evaluation"].values()} == {"finished"}
    assert [file.name for file in (tmp_path / "best").rglob("*.yaml")] == ["finetune.yaml"]


@pytest.mark.parametrize("failing", [{100}, {100, 101}])
def test_failed_evaluation_runs(tmp_path, study, options_of, made_runs, failing):
    """One of two is recorded as failed; without any there is no result."""
    launch = made_runs(tmp_path, lambda v: "RuntimeError: no" if v["seed"] in failing else 0.5)
    new = lambda: study(tmp_path, ["strategy=finetune"], small(options_of), launch)  # noqa: E731
    if len(failing) == 2:
        with pytest.raises(RunFailed, match="no result for finetune on split_digits"):
            run(new())
    else:
        run(new())
    evaluation = content(tmp_path)["methods"][0]["protocols"]["conventional"]["evaluation"]
    assert {int(seed) for seed, record in evaluation.items() if record["status"] == "failed"} == failing
    launch.outcome = lambda _: 0.5  # what was wrong has been mended
    began = Counter(launch.began)
    found = run(new())
    evaluation = found["methods"][0]["protocols"]["conventional"]["evaluation"]
    assert {record["status"] for record in evaluation.values()} == {"finished"}
    assert {int(folder.rpartition("_")[2]) for folder in Counter(launch.began) - began} == failing


def test_a_launcher_that_cannot_begin_anything_is_no_runs_fault(tmp_path, study, options_of, made_runs):
    def broken(_: list) -> None:
        raise OSError("no such partition")

    with pytest.raises(OSError, match="no such partition"):
        run(study(tmp_path, ["strategy=finetune"], small(options_of), broken))
    found = run(study(tmp_path, ["strategy=finetune"], small(options_of), made_runs(tmp_path, made_up)))
    assert {trial["state"] for trial in found["methods"][0]["protocols"]["conventional"]["trials"]} == {"complete"}


def test_a_run_that_never_began_has_not_been_tried(tmp_path, study, options_of, made_runs):
    """A launcher whose worker dies in the middle takes the runs behind it along; the next round makes them.

    Here it dies in every round, each time after two more runs: no run has a fault, so no trial may fail.
    """
    launch = made_runs(tmp_path, made_up)

    def dying(due: list) -> None:
        launch(due[:2])
        if len(due) > 2:
            raise RuntimeError("a worker was killed")

    found = run(study(tmp_path, ["strategy=finetune"], small(options_of, trials=3, tuning_seeds=[0, 1, 2]), dying))
    trials = found["methods"][0]["protocols"]["conventional"]["trials"]
    assert [trial["state"] for trial in trials] == ["complete"] * 3
    assert Counter(launch.began).most_common(1)[0][1] == 1


# ---- continuing -----------------------------------------------------------------------------------------------------

SETTINGS: dict[str, dict[str, Any]] = {
    "random": {"sampler": "random", "trials": 6},
    "grid with halving": {"sampler": "grid", "trials": 9, "pruner": "successive_halving", "tuning_seeds": [0, 1, 2]},
    "tpe": {"sampler": "tpe", "trials": 12, "batch": 5},
    "two kinds": {"kinds": ["conventional", "first_task"], "trials": 3},
}


def without_time(study_json: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in study_json.items() if name != "seconds"}


@settings(max_examples=5, deadline=None)
@given(
    name=st.sampled_from(sorted(SETTINGS)),
    fuses=st.lists(st.integers(0, 10), min_size=1, max_size=4),
    error=st.sampled_from([KeyboardInterrupt, Stop]),
)
def test_a_study_that_is_stopped_anywhere_ends_as_if_it_had_not_been(
    tmp_path_factory, study, options_of, made_runs, name, fuses, error
):
    """Stopped with a run half made, any number of times, and continued by another process each time."""
    options = small(options_of, search={"trainer.lr": LR, "trainer.weight_decay": [0.0, 0.1]}, **SETTINGS[name])
    straight, broken = tmp_path_factory.mktemp("straight"), tmp_path_factory.mktemp("broken")
    arguments = ["strategy=joint,finetune"]
    outcome = lambda v: "diverged" if made_up(v) < 0.1 else made_up(v)  # noqa: E731
    expected = run(study(straight, arguments, options, made_runs(straight, outcome)))
    ended: list[str] = []
    for fuse in fuses:
        launch = made_runs(broken, outcome, fuse=fuse, error=error())
        with suppress(KeyboardInterrupt, Stop):
            run(study(broken, arguments, options, launch))
        ended += launch.ended
    launch = made_runs(broken, outcome)
    assert without_time(run(study(broken, arguments, options, launch))) == without_time(expected)
    ended += launch.ended
    assert len(ended) == len(set(ended))  # no run that had come to its end was made again


def test_a_finished_study_is_left_as_it_is(tmp_path, study, options_of, made_runs):
    first = run(study(tmp_path, ["strategy=l2,finetune"], small(options_of), made_runs(tmp_path, made_up)))
    launch = made_runs(tmp_path, made_up)
    assert without_time(run(study(tmp_path, ["strategy=l2,finetune"], small(options_of), launch))) == without_time(
        first
    )
    assert launch.began == []


@settings(max_examples=5, deadline=None)
@given(fuses=st.lists(st.integers(0, 5), min_size=1, max_size=5))
def test_a_launcher_that_gives_up_any_number_of_times_loses_no_run(
    tmp_path_factory, study, options_of, made_runs, fuses
):
    """Between two runs, so that none of them is half made; where nothing ever begins the study stops, and is continued."""
    options = small(options_of, trials=3)
    straight, broken = tmp_path_factory.mktemp("straight"), tmp_path_factory.mktemp("broken")
    expected = run(study(straight, ["strategy=finetune"], options, made_runs(straight, made_up)))
    launch, left = made_runs(broken, made_up), list(fuses)

    def giving_up(due: list) -> None:
        fuse = left.pop(0) if left else len(due)
        launch(due[:fuse])
        if fuse < len(due):
            raise RuntimeError("a worker was killed")

    found = None
    while found is None:
        with suppress(RuntimeError):
            found = run(study(broken, ["strategy=finetune"], options, giving_up))
    assert without_time(found) == without_time(expected)
    assert set(Counter(launch.ended).values()) == {1}


def test_another_study_is_not_continued_in_this_folder(tmp_path, study, options_of, made_runs):
    launch = made_runs(tmp_path, made_up)
    run(study(tmp_path, ["strategy=finetune"], small(options_of), launch))
    began = len(launch.began)
    with pytest.raises(
        ConfigError, match=r"holds another study: protocol\.trials=2 \(there 4\)\. Choose another hydra.sweep.dir"
    ):
        run(study(tmp_path, ["strategy=finetune"], small(options_of, trials=2), launch))
    for arguments in (
        ["strategy=ewc"],
        ["strategy=finetune", "trainer.batch_size=7"],
        ["strategy=finetune", "trainer.lr=1,2"],
    ):
        with pytest.raises(ConfigError, match="holds another study: other methods, or other options of theirs"):
            run(study(tmp_path, arguments, small(options_of), launch))
    run(study(tmp_path, ["strategy=finetune"], small(options_of, retries=3, best=None), launch))  # these do not matter
    assert len(launch.began) == began


def test_trials_of_a_study_that_was_killed_while_it_was_planned_are_not_another_ones(
    tmp_path, study, options_of, made_runs
):
    """Killed after its first draws, before study.json could say which study it is."""
    write = RunFolder.write_json

    def killed(self: RunFolder, name: str, content: Any) -> None:
        if name == "study.json":
            raise Stop
        write(self, name, content)

    with patch.object(RunFolder, "write_json", killed), pytest.raises(Stop):
        run(study(tmp_path, ["strategy=finetune"], small(options_of), made_runs(tmp_path, made_up)))
    other = small(options_of, search={"trainer.lr": [7.0, 8.0, 9.0]})
    found = run(study(tmp_path, ["strategy=finetune"], other, made_runs(tmp_path, made_up)))
    trials = found["methods"][0]["protocols"]["conventional"]["trials"]
    assert sorted(trial["values"]["trainer.lr"] for trial in trials) == [7.0, 8.0, 9.0]


def test_two_processes_do_not_run_one_study(tmp_path, study, options_of, made_runs):
    launch = made_runs(tmp_path, made_up)
    with (tmp_path / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="is being run by another process"):
            run(study(tmp_path, ["strategy=finetune"], small(options_of), launch))
    run(study(tmp_path, ["strategy=finetune"], small(options_of), launch))


# ---- leaks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "changes", "message"),
    [
        ([], {"kinds": ["two_phase"], "tune_on": "split_digits"}, "the tuning stream has classes of the evaluation stream, 0, 1"),
        (["scenario.increment=5"], {"kinds": ["conventional", "two_phase"], "tune_on": "split_digits_task"}, "configuration"),
    ],
)  # fmt: skip
def test_a_planted_leak_is_refused_before_anything_is_trained(tmp_path, study, options_of, arguments, changes, message):
    def never(_: list) -> None:
        raise AssertionError("a run was launched")

    arguments = ["strategy=finetune", "model.hidden=[4]", *arguments]
    with pytest.raises(ConfigError, match=message):
        study(tmp_path, arguments, small(options_of, **changes), never).run()
    assert not (tmp_path / "study.json").exists()


def test_disjoint_halves_are_recorded_as_such(tmp_path, study, options_of, made_runs):
    """With the checks that a real study makes."""
    options = small(options_of, kinds=["two_phase"], halves="index", trials=1)
    study(tmp_path, ["strategy=finetune", "model.hidden=[4]"], options, made_runs(tmp_path, made_up)).run()
    [stream] = content(tmp_path)["streams"]
    assert stream["classes"] == {"tuning": ["0", "1", "2", "3"], "evaluation": ["5", "6", "7", "8"]}
    assert (stream["common_classes"], stream["common_samples"]) == ([], 0)
    assert stream["tuning_scenario"] == "split_digits"
    assert 600 < stream["samples_compared"] < 800
    assert "2 classes are in neither half" in stream["note"]


def test_a_method_that_cannot_be_run_on_a_stream_is_refused_before_anything_is_trained(
    tmp_path, study, options_of, made_runs
):
    launch = made_runs(tmp_path, made_up)
    with pytest.raises(ConfigError, match=r"scenario\.tasks=6 is more than the 5 tasks of split_digits"):
        study(tmp_path, ["strategy=finetune"], small(options_of, kinds=["first_k"], first_tasks=6), launch).run()
    assert launch.began == []


# ---- tuned values ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [["strategy=ewc"], ["strategy=er", "strategy.plus=[l2]"]], ids=["ewc", "er+l2"])
def test_a_later_run_takes_the_tuned_values(tmp_path, study, options_of, made_runs, compose, arguments):
    """What +best=FOLDER sets is what the study selected, and the run's options are in order."""
    found = run(study(tmp_path, arguments, small(options_of), made_runs(tmp_path, made_up), tmp_path / "best"))
    selected = found["methods"][0]["protocols"]["conventional"]["selected"]["values"]
    composed, sentence = with_tuned_values(compose([*arguments, f"+best={tmp_path / 'best'}"]), arguments)
    expected = typed(compose([*arguments, *as_overrides(selected)]))
    assert typed(composed) == expected
    assert "conventional, 4 trials × 2 seeds, average_incremental_pooled" in sentence


def test_the_first_kinds_values_are_written(tmp_path, study, options_of, made_runs):
    options = small(options_of, kinds=["first_task", "conventional"])
    launch = made_runs(
        tmp_path, lambda v: float(v["trainer.lr"] == (0.1 if v.get("study.protocol") == "first_task" else 0.01))
    )
    run(study(tmp_path, ["strategy=finetune"], options, launch, tmp_path / "best"))
    text = (tmp_path / "best" / "split_digits" / "finetune.yaml").read_text()
    assert "trainer.lr: 0.1\n" in text
    assert "protocol: first_task\n" in text


def test_values_of_methods_that_differ_in_the_network_are_found_again(tmp_path, study, options_of, made_runs, compose):
    """strategy=finetune model=mlp,slim_resnet18 are two methods, whose runs are asked for in those words."""
    launch = made_runs(
        tmp_path, lambda v: float(v["trainer.lr"] == (0.1 if v["study.method"] == "finetune-mlp" else 1.0))
    )
    arguments = ["strategy=finetune", "model=mlp,slim_resnet18"]
    run(study(tmp_path, arguments, small(options_of), launch, tmp_path / "best"))
    for model, lr in (("mlp", 0.1), ("slim_resnet18", 1.0)):
        words = ["strategy=finetune", f"model={model}"]
        composed, _ = with_tuned_values(compose([*words, f"+best={tmp_path / 'best'}"]), words)
        assert composed.trainer.lr == lr


# ---- from the command line ------------------------------------------------------------------------------------------

OPTIONS = [
    "protocol=two_phase", "strategy=l2,finetune", "trainer.lr=0.02,0.05,0.1", "search_space=none", "protocol.trials=2",
    "protocol.tuning_seeds=[0,1]", "protocol.evaluation_seeds=[100]", "model.hidden=[8]", "trainer.epochs=null",
    "trainer.max_steps_per_task=2", "trainer.threads=1", "evaluator.subset=10", "record.report=false", "record.figure=false",
    "device=cpu", "hydra.sweep.dir=study",
]  # fmt: skip

TWICE = """
import json, runpy, sys
from pathlib import Path

given = json.loads(sys.argv[1])
for name in ("first.json", "second.json"):
    sys.argv = ["clbench", "-m", *given]
    runpy.run_module("clbench", run_name="__main__", alter_sys=True)
    times = {path.as_posix(): path.stat().st_mtime_ns for path in Path("study").glob("*/**/*") if path.is_file()}
    Path(name).write_text(json.dumps({"times": times, "study": json.loads(Path("study/study.json").read_text())}))
"""
"""``python -m clbench -m …`` two times in one process, which spares the second import; notes what is there after each."""


@pytest.fixture(scope="module")
def commanded(tmp_path_factory) -> Path:
    """The folder in which a study was made by command, and the command given again."""
    folder = tmp_path_factory.mktemp("commanded")
    command = [sys.executable, "-c", TWICE, json.dumps(OPTIONS)]
    environment = {**os.environ, "PYTHONHASHSEED": "1"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    (folder / "errors.txt").write_text(done.stderr)
    return folder


def outcomes(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Method and what the study says about its two-phase tuning."""
    for method in content(folder / "study")["methods"]:
        yield method["method"], method["protocols"]["two_phase"]


def record_of(folder: Path, run: dict[str, Any]) -> tuple[Any, dict[str, Any], set[str]]:
    """Configuration, summary and classes of a run."""
    files = RunFolder(folder / "study" / run["folder"])
    classes = {c for task in files.read_json("scenario.json")["tasks"] for c in task["classes"]}
    return OmegaConf.load(files.path / "config.yaml"), files.read_json("summary.json"), classes


def test_a_study_by_command(commanded):
    found = content(commanded / "study")
    said = (commanded / "errors.txt").read_text()
    assert "10 of 10 runs" in said  # two methods: two trials with two seeds, and an evaluation
    assert "9 of 10 runs, " in said
    assert found["status"] == "finished"
    assert "protocol=two_phase" in found["command"]
    assert [method["method"] for method in found["methods"]] == ["l2", "finetune"]
    assert found["streams"][0]["common_samples"] == 0
    ran = {file.parent.as_posix() for file in (commanded / "study").rglob("summary.json")}
    assert len(ran) == 2 * (2 * 2 + 1)
    assert {path.name for path in (commanded / "best" / "split_digits").iterdir()} == {"l2.yaml", "finetune.yaml"}


def test_it_was_tuned_on_the_first_half_and_never_tested(commanded):
    for method, outcome in outcomes(commanded):
        means = []
        for trial in outcome["trials"]:
            for seed, run in trial["runs"].items():
                config, summary, classes = record_of(commanded, run)
                assert (summary["status"], summary["split"], summary["seed"]) == ("finished", "validation", int(seed))
                assert run["score"] == summary["metrics"]["average_incremental_pooled"]
                assert classes == set("0123")
                assert (config.study.phase, config.study.method, config.study.trial) == (
                    "tuning",
                    method,
                    trial["trial"],
                )
                assert config.trainer.lr == trial["values"]["trainer.lr"]
            means.append(np.mean([run["score"] for run in trial["runs"].values()]))
        best = outcome["trials"][int(np.argmax(means))]
        assert outcome["selected"]["values"] == best["values"]
        assert outcome["selected"]["score"] == pytest.approx(max(means))


def test_what_was_selected_was_evaluated_unchanged_on_the_second_half_with_another_seed(commanded):
    for method, outcome in outcomes(commanded):
        [(seed, run)] = outcome["evaluation"].items()
        config, summary, classes = record_of(commanded, run)
        assert (seed, summary["seed"]) == ("100", 100)
        assert (summary["status"], summary["split"]) == ("finished", "test")
        assert classes == set("5678")
        assert (config.study.phase, config.study.method, config.study.trial) == ("evaluation", method, None)
        for name, value in outcome["selected"]["values"].items():
            assert OmegaConf.select(config, name) == value
        found = content(commanded / "study")
        assert found["streams"][0]["evaluation"]["100"] == summary["scenario_hash"]


def test_another_process_has_drawn_what_this_one_draws(commanded, compose):
    """With another seed of Python's hashes."""
    for method, outcome in outcomes(commanded):
        space = space_of(compose([f"strategy={method}"]), {}, {"trainer.lr": [0.02, 0.05, 0.1]}, set())
        trials = []
        for trial in outcome["trials"]:
            values = next_values(trials, method, space, ProtocolConfig(kinds=["two_phase"]))
            assert values == trial["values"]
            trials.append(frozen_trial(values, space))


def test_the_same_command_again_makes_no_run(commanded):
    first, second = (json.loads((commanded / name).read_text()) for name in ("first.json", "second.json"))
    assert second["times"] == first["times"]
    assert any(path.endswith("summary.json") for path in first["times"])
    assert without_time(second["study"]) == without_time(first["study"])


def test_a_study_can_be_resumed_by_its_folder(commanded, monkeypatch):
    """``python -m clbench resume <folder>`` is the command that made it."""
    given: list[str] = []
    monkeypatch.setattr("clbench.command_line.launch.launch", lambda words, commands: given.extend(words))
    resume(str(commanded / "study"), [])
    assert given[0] == "-m"
    assert sorted(given[1:]) == sorted([*OPTIONS[:-1], f"hydra.sweep.dir={commanded / 'study'}"])
