"""Which runs are due, what a run scores, and which configuration is best."""

import itertools
import math
from collections.abc import Callable
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clbench.evaluation.chance import chance_level
from clbench.protocol.journal import TrialLog, open_journal
from clbench.protocol.options import ProtocolConfig
from clbench.protocol.search_space import SearchSpace, distribution
from clbench.protocol.tuning import Tuning, score
from clbench.records.run_folder import RunFolder

LAM = [0.1, 1.0, 10.0, 100.0]
LR = [0.01, 0.1, 1.0]
LISTS = SearchSpace(
    {"strategy.lam": distribution("strategy.lam", LAM), "trainer.lr": distribution("trainer.lr", LR)}, frozenset()
)
RANGE = SearchSpace({"strategy.lam": distribution("strategy.lam", {"low": 0.0, "high": 1.0})}, frozenset())


def tuning_in(
    folder: Path, options: ProtocolConfig, space: SearchSpace = LISTS, given_up: Callable[[str], bool] = lambda _: False
) -> Tuning:
    """The search of a new process."""
    log = TrialLog(open_journal(folder), "conventional/split_digits/ewc", space)
    return Tuning("ewc", folder, "tuning/ewc", ["strategy=ewc"], space, options, log, given_up)


def finish(tuning: Tuning, launch: Callable) -> None:
    """Make all runs that are due, until none is."""
    while due := tuning.due():
        launch(due)


def made_up(values: dict) -> float:
    """A score between 0 and 1 that says nothing; the same for the same values and seed."""
    text = f"{values['strategy.lam']}/{values.get('trainer.lr')}/{values['seed']}"
    return float(np.random.default_rng(list(text.encode())).random())


# ---- which runs ---------------------------------------------------------------------------------------------------------


def test_every_configuration_is_trained_with_every_seed_once(tmp_path, options_of, made_runs):
    launch = made_runs(tmp_path, made_up)
    tuning = tuning_in(tmp_path, options_of(trials=5, tuning_seeds=[0, 3, 7]))
    finish(tuning, launch)
    folders = [f"tuning/ewc/trial_{trial:03d}/seed_{seed}" for trial in range(5) for seed in (0, 3, 7)]
    assert sorted(launch.began) == sorted(folders)
    assert len(launch.launches) == 1  # all of them can be made at the same time
    for result in tuning.results():
        for seed in (0, 3, 7):
            run = launch.values[f"tuning/ewc/trial_{result.number:03d}/seed_{seed}"]
            expected = {"strategy": "ewc", **result.values, "seed": seed, "study.trial": result.number}
            assert run == expected
    assert len({tuple(result.values.items()) for result in tuning.results()}) == 5


def test_a_grid_is_the_whole_space(tmp_path, options_of, made_runs):
    tuning = tuning_in(tmp_path, options_of(trials=1000, sampler="grid"))
    finish(tuning, made_runs(tmp_path, made_up))
    tried = [(result.values["strategy.lam"], result.values["trainer.lr"]) for result in tuning.results()]
    assert sorted(tried) == sorted(itertools.product(LAM, LR))


def test_without_anything_to_tune_there_is_one_trial(tmp_path, options_of, made_runs):
    launch = made_runs(tmp_path, lambda values: 0.25 * (1 + values["seed"]))
    tuning = tuning_in(tmp_path, options_of(trials=30), SearchSpace({}, frozenset()))
    finish(tuning, launch)
    assert len(launch.began) == 2
    assert (tuning.best().values, tuning.best().score) == ({}, 0.375)


# ---- which is best ------------------------------------------------------------------------------------------------------


def test_the_best_has_the_highest_mean_over_the_seeds(tmp_path, options_of, made_runs):
    tuning = tuning_in(tmp_path, options_of(trials=12, tuning_seeds=[0, 1, 2]))
    finish(tuning, made_runs(tmp_path, made_up))
    means = {
        (lam, lr): np.mean([made_up({"strategy.lam": lam, "trainer.lr": lr, "seed": seed}) for seed in range(3)])
        for lam in LAM
        for lr in LR
    }
    expected = max(means, key=lambda key: means[key])
    best = tuning.best()
    assert (best.values["strategy.lam"], best.values["trainer.lr"]) == expected
    assert best.score == pytest.approx(means[expected], abs=1e-12)
    assert {(r.values["strategy.lam"], r.values["trainer.lr"]): r.score for r in tuning.results()} == pytest.approx(
        means
    )


def test_the_metric_that_is_asked_for_decides(tmp_path, options_of, made_runs):
    """ACC is half of the average in the made runs."""
    tuning = tuning_in(tmp_path, options_of(trials=12, metric="ACC"))
    finish(tuning, made_runs(tmp_path, lambda values: values["strategy.lam"] / 1000))
    assert tuning.best().score == pytest.approx(0.05)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_ties_go_to_fewer_diverged_runs_then_fewer_steps_then_the_earlier_trial(tmp_path_factory, made_runs, data):
    """Against a sort that is written out here; a trial with a failed run is out of the race.

    Chance level of the made streams is (1/2 + 1/4) / 2 = 0.375, so that ties are frequent.
    """
    folder = tmp_path_factory.mktemp("study")
    steps = SearchSpace(
        {"trainer.max_steps_per_task": distribution("trainer.max_steps_per_task", [10, 20]),
         "strategy.lam": distribution("strategy.lam", [1.0, 2.0, 3.0])},
        frozenset(),
    )  # fmt: skip
    scores = {
        (n, lam, seed): data.draw(st.sampled_from([0.375, 0.5, "diverged", "RuntimeError: made up"]))
        for n in (10, 20)
        for lam in (1.0, 2.0, 3.0)
        for seed in (0, 1)
    }
    outcome = lambda v: scores[v["trainer.max_steps_per_task"], v["strategy.lam"], v["seed"]]  # noqa: E731
    launch = made_runs(folder, outcome)
    options = ProtocolConfig(kinds=["conventional"], trials=6, tuning_seeds=[0, 1])
    tuning = tuning_in(folder, options, steps, given_up=lambda place: place in launch.began)
    finish(tuning, launch)
    rivals = []
    for result in tuning.results():
        n, lam = result.values["trainer.max_steps_per_task"], result.values["strategy.lam"]
        outcomes = [scores[n, lam, seed] for seed in (0, 1)]
        if "RuntimeError: made up" in outcomes:
            assert result.state == "failed"
            continue
        assert result.state == "complete"
        mean = sum(0.375 if o == "diverged" else o for o in outcomes) / 2
        assert result.score == mean
        assert result.diverged_seeds == [seed for seed in (0, 1) if outcomes[seed] == "diverged"]
        rivals.append((-mean, outcomes.count("diverged"), n, result.number))
    best = tuning.best()
    assert (None if best is None else best.number) == (min(rivals)[-1] if rivals else None)


def test_a_failed_run_makes_its_trial_fail_and_another_is_selected(tmp_path, options_of, made_runs):
    """The failed one would have been best."""
    launch = made_runs(
        tmp_path,
        lambda v: "RuntimeError: no" if (v["strategy.lam"], v["seed"]) == (100.0, 1) else v["strategy.lam"] / 100,
    )
    tuning = tuning_in(tmp_path, options_of(trials=12), given_up=lambda place: place in launch.began)
    finish(tuning, launch)
    assert {r.values["strategy.lam"] for r in tuning.results() if r.state == "failed"} == {100.0}
    assert tuning.best().values["strategy.lam"] == 10.0
    failed = next(r for r in tuning.results() if r.state == "failed")
    assert failed.runs[1]["status"] == "failed"
    assert failed.runs[1]["reason"] == "RuntimeError: no"


def test_nothing_is_selected_where_all_fail(tmp_path, options_of, made_runs):
    launch = made_runs(tmp_path, lambda _: "RuntimeError: no")
    tuning = tuning_in(tmp_path, options_of(), given_up=lambda place: place in launch.began)
    finish(tuning, launch)
    assert tuning.best() is None
    assert {result.state for result in tuning.results()} == {"failed"}


# ---- successive halving --------------------------------------------------------------------------------------------------


def halving(scores: np.ndarray, reduction: int) -> tuple[set[tuple[int, int]], int]:
    """Synchronous successive halving (Jamieson & Talwalkar 2016), the seeds being the resource.

    Args:
        scores: (trials, seeds).

    Returns:
        (trial, seed number) of all runs, and the trial that is selected.
    """
    n_trials, n_seeds = scores.shape
    alive, used, runs = list(range(n_trials)), 1, set()
    while True:
        used = min(used, n_seeds)
        runs |= {(trial, seed) for trial in alive for seed in range(used)}
        means = {trial: scores[trial, :used].mean() for trial in alive}
        alive.sort(key=lambda trial: (-means[trial], trial))
        if used == n_seeds:
            return runs, alive[0]
        alive = sorted(alive[: math.ceil(len(alive) / reduction)])
        used *= reduction


@pytest.mark.parametrize(
    ("n_trials", "n_seeds", "reduction"), [(8, 5, 2), (9, 4, 3), (12, 1, 2), (5, 8, 2), (1, 3, 2), (7, 2, 4)]
)
def test_successive_halving_trains_exactly_the_runs_it_should(tmp_path, made_runs, n_trials, n_seeds, reduction):
    seeds = [10 + 3 * i for i in range(n_seeds)]
    options = ProtocolConfig(
        kinds=["conventional"], trials=n_trials, tuning_seeds=seeds, pruner="successive_halving", reduction=reduction
    )
    launch = made_runs(tmp_path, made_up)
    tuning = tuning_in(tmp_path, options)
    expected = tuning.n_runs()
    finish(tuning, launch)
    assert len(launch.began) == expected
    drawn = [result.values for result in tuning.results()]
    table = np.array([[made_up({**values, "seed": seed}) for seed in seeds] for values in drawn])
    runs, selected = halving(table, reduction)
    assert sorted(launch.began) == sorted(
        f"tuning/ewc/trial_{trial:03d}/seed_{seeds[number]}" for trial, number in runs
    )
    assert tuning.best().number == selected
    finalists = {trial for trial, number in runs if number == n_seeds - 1}
    assert {result.number for result in tuning.results() if result.state == "complete"} == finalists
    assert {result.state for result in tuning.results() if result.number not in finalists} <= {"pruned"}


def test_eight_configurations_and_five_seeds_by_hand(tmp_path, options_of, made_runs):
    """8 with one seed, 4 with two, 2 with four, 1 with all five: 8 + 4 + 2 * 2 + 1 = 17 runs in place of 40, in four launches."""
    launch = made_runs(tmp_path, made_up)
    options = options_of(trials=8, tuning_seeds=[0, 1, 2, 3, 4], pruner="successive_halving")
    finish(tuning_in(tmp_path, options), launch)
    assert [len(batch) for batch in launch.launches] == [8, 4, 4, 1]


def test_a_diverged_first_seed_counts_as_chance_and_a_failed_one_as_worst(tmp_path, options_of, made_runs):
    """Chance is 0.375: better than 0.2, worse than 0.5; of the four two are kept."""
    first = {0.1: 0.2, 1.0: "RuntimeError: no", 10.0: "diverged", 100.0: 0.5}
    launch = made_runs(tmp_path, lambda v: first[v["strategy.lam"]] if v["seed"] == 0 else 0.9)
    options = options_of(trials=4, pruner="successive_halving")
    lam = SearchSpace({"strategy.lam": distribution("strategy.lam", LAM)}, frozenset())
    tuning = tuning_in(tmp_path, options, lam, given_up=lambda place: place in launch.began)
    finish(tuning, launch)
    states = {result.values["strategy.lam"]: result.state for result in tuning.results()}
    assert states == {0.1: "pruned", 1.0: "failed", 10.0: "complete", 100.0: "complete"}
    scores = {result.values["strategy.lam"]: result.score for result in tuning.results()}
    assert scores == pytest.approx({0.1: 0.2, 1.0: None, 10.0: (0.375 + 0.9) / 2, 100.0: 0.7})
    assert len(launch.began) == 6


# ---- TPE -----------------------------------------------------------------------------------------------------------------


def test_tpe_draws_a_batch_before_it_looks_at_results(tmp_path, options_of, made_runs):
    launch = made_runs(tmp_path, lambda v: 1 - abs(v["strategy.lam"] - 0.7))
    options = options_of(trials=23, sampler="tpe", batch=5, tuning_seeds=[0])
    tuning = tuning_in(tmp_path, options, RANGE)
    finish(tuning, launch)
    assert [len(batch) for batch in launch.launches] == [5, 5, 5, 5, 3]
    # The first ten are independent draws, whatever the results; from then on results matter.
    (tmp_path / "other").mkdir()
    opposite = tuning_in(tmp_path / "other", options, RANGE)
    finish(opposite, made_runs(tmp_path / "other", lambda v: 1 - abs(v["strategy.lam"] - 0.1)))
    here, there = ([r.values["strategy.lam"] for r in t.results()] for t in (tuning, opposite))
    assert here[:10] == there[:10]
    assert here[10:] != there[10:]


class Stop(BaseException):
    """Ends a process at this point."""


@settings(max_examples=12, deadline=None)
@given(fuses=st.lists(st.integers(0, 6), max_size=6), pruner=st.sampled_from(["none", "successive_halving"]))
def test_tpes_draws_do_not_depend_on_where_it_was_interrupted(tmp_path_factory, made_runs, fuses, pruner):
    options = ProtocolConfig(
        kinds=["conventional"], trials=14, sampler="tpe", batch=4, tuning_seeds=[0, 1], pruner=pruner
    )
    straight, broken = tmp_path_factory.mktemp("straight"), tmp_path_factory.mktemp("broken")
    whole = tuning_in(straight, options, RANGE)
    finish(whole, made_runs(straight, made_up))
    ended = []
    for fuse in [*fuses, None]:
        launch = made_runs(broken, made_up, fuse=fuse, error=Stop())
        tuning = tuning_in(broken, options, RANGE)
        with suppress(Stop):
            finish(tuning, launch)
        ended += launch.ended
    outline = lambda tuning: [(r.number, r.values, r.state, r.score) for r in tuning.results()]  # noqa: E731
    finish(tuning, made_runs(broken, made_up))
    assert outline(tuning) == outline(whole)
    assert len(ended) == len(set(ended))  # no run is made again that had come to its end


# ---- scores --------------------------------------------------------------------------------------------------------------


def stream(setting: str, sizes: list[int]) -> dict:
    """A ``scenario.json`` with so many classes per task, and twice, four times, six times … as many held-out samples."""
    tasks, first = [], 0
    for n in sizes:
        start = 0 if setting == "domain" else first
        counts = {"n_validation": 2 * (len(tasks) + 1), "n_test": 7}
        tasks.append({"name": "task", "classes": [f"class {c}" for c in range(start, start + n)], **counts})
        first += n
    return {"setting": setting, "tasks": tasks}


def guessing(setting: str, sizes: list[int], n: int = 60_000) -> dict[str, float]:
    """Average incremental accuracies and ACC of a guesser, by guessing ``n`` labels for every task after every task."""
    rng = np.random.default_rng(0)
    first = np.concatenate([[0], np.cumsum(sizes)])
    macro, pooled = [], []
    for learned in range(len(sizes)):
        accuracies = []
        for task in range(learned + 1):
            own = np.arange(sizes[task]) if setting == "domain" else np.arange(first[task], first[task + 1])
            among = {"class": np.arange(first[learned + 1]), "task": own, "domain": own}[setting]
            accuracies.append(np.mean(rng.choice(own, n) == rng.choice(among, n)))
        macro.append(np.mean(accuracies))
        pooled.append(np.average(accuracies, weights=np.arange(1, learned + 2)))
    return {
        "average_incremental_macro": np.mean(macro),
        "average_incremental_pooled": np.mean(pooled),
        "ACC": macro[-1],
        "ACC_pooled": pooled[-1],
    }


@pytest.mark.parametrize("setting", ["class", "task", "domain"])
@pytest.mark.parametrize("sizes", [[2, 2, 2], [5, 1, 3], [4]])
def test_chance_level_is_what_guessing_scores(setting, sizes):
    sizes = [sizes[0]] * len(sizes) if setting == "domain" else sizes
    for metric, expected in guessing(setting, sizes).items():
        assert chance_level(stream(setting, sizes), metric) == pytest.approx(expected, abs=0.005), metric
    assert chance_level(stream(setting, sizes), "min_ACC") == 0
    assert chance_level(stream(setting, sizes), "WC_ACC") == 0


def test_chance_level_by_hand():
    """Five tasks of two classes: 1/2, 1/4, 1/6, 1/8, 1/10 of all classes seen; 1/2 where the task is given."""
    expected = (Fraction(1, 2) + Fraction(1, 4) + Fraction(1, 6) + Fraction(1, 8) + Fraction(1, 10)) / 5
    assert chance_level(stream("class", [2] * 5), "average_incremental_macro") == pytest.approx(float(expected))
    assert chance_level(stream("class", [2] * 5), "ACC") == pytest.approx(0.1)
    assert chance_level(stream("task", [2] * 5), "average_incremental_macro") == 0.5
    # Two held-out samples of two classes, four of three: (2/2 + 4/3) / 6.
    assert chance_level(stream("task", [2, 3]), "ACC_pooled") == pytest.approx((2 / 2 + 4 / 3) / 6)
    assert chance_level(stream("domain", [10] * 3), "AAA") == pytest.approx(0.1)
    # Each task when it was just learned: 1/2 and 1/3 where it is given, 1/2 and 1/5 where all classes seen compete.
    assert chance_level(stream("task", [2, 3]), "LA") == pytest.approx((1 / 2 + 1 / 3) / 2)
    assert chance_level(stream("class", [2, 3]), "LA") == pytest.approx((1 / 2 + 1 / 5) / 2)
    assert chance_level(stream("task", [2, 3]), "LCA") == pytest.approx((1 / 2 + 1 / 3) / 2)


def test_chance_level_of_pooled_accuracies_weighs_tasks_by_what_they_are_measured_on():
    content = stream("task", [2, 4])
    for task, n in zip(content["tasks"], (30, 10), strict=True):
        task["n_test"] = n
        del task["n_validation"]
    pooled = (30 / 2 + 10 / 4) / 40
    assert chance_level(content, "ACC_pooled") == pytest.approx(pooled)
    assert chance_level(content, "ACC") == pytest.approx((1 / 2 + 1 / 4) / 2)
    assert chance_level(content, "average_incremental_pooled") == pytest.approx((1 / 2 + pooled) / 2)
    assert chance_level(stream("class", [2, 4]), "ACC_pooled") == pytest.approx(1 / 6)


@pytest.mark.parametrize(
    ("summary", "expected"),
    [
        (None, None),
        ({"status": "running"}, None),
        ({"status": "failed", "reason": "no"}, None),
        ({"status": "finished", "metrics": {"ACC": 0.7}}, 0.7),
        ({"status": "finished", "metrics": {"ACC": 0.0}}, 0.0),
        ({"status": "diverged", "metrics": {"ACC": 0.9}}, 0.25),  # what it had reached before does not count
    ],
)
def test_a_runs_score(tmp_path, summary, expected):
    if summary is not None:
        RunFolder(tmp_path).write_json("summary.json", summary)
    RunFolder(tmp_path).write_json("scenario.json", stream("class", [2, 2]))
    assert score(tmp_path, "ACC") == expected


def test_a_nan_configuration_counts_as_chance_level_and_the_study_goes_on(tmp_path, options_of, made_runs):
    """A configuration of which one seed diverges may still win, by what it has left."""
    scores = {
        0.1: {0: 0.4, 1: 0.4},
        1.0: {0: 0.9, 1: "diverged"},
        10.0: {0: "diverged", 1: "diverged"},
        100.0: {0: 0.1, 1: 0.1},
    }
    lam = SearchSpace({"strategy.lam": distribution("strategy.lam", LAM)}, frozenset())
    tuning = tuning_in(tmp_path, options_of(trials=4), lam)
    finish(tuning, made_runs(tmp_path, lambda v: scores[v["strategy.lam"]][v["seed"]]))
    found = {result.values["strategy.lam"]: (result.state, result.score) for result in tuning.results()}
    assert found == {
        0.1: ("complete", 0.4),
        1.0: ("complete", (0.9 + 0.375) / 2),
        10.0: ("complete", 0.375),
        100.0: ("complete", 0.1),
    }
    assert tuning.best().values == {"strategy.lam": 1.0}
    assert tuning.best().diverged_seeds == [1]


def test_the_journal_can_be_read_by_optuna(tmp_path, options_of, made_runs):
    """Its best trial is ours where nothing ties: Optuna's own tools (plots, importances) work on a study."""
    tuning = tuning_in(tmp_path, options_of(trials=12))
    finish(tuning, made_runs(tmp_path, made_up))
    study = optuna.load_study(study_name="conventional/split_digits/ewc", storage=open_journal(tmp_path))
    assert study.best_trial.number == tuning.best().number
    assert study.best_value == tuning.best().score
