"""Run folders and studies with chosen results, written without training, for tests of reports."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from clbench.evaluation.metrics import POOLED

STREAM = "0123456789abcdef0123456789abcdef"
METRICS = {
    "ACC": 0.8, "FORG": 0.1, "forgetting_max": 0.1, "BWT": -0.1, "FWT": None, "average_incremental_macro": 0.9, "LA": 0.88,
    "LA_slope": None, "min_ACC": 0.5, "min_ACC_stderr": 0.02, "WC_ACC": 0.6, "gap_depth": 0.2, "WF10": 0.3, "WF100": 0.3,
    "WP10": 0.7, "WP100": 0.8, "LCA": 0.6, "AAA": 0.85, "recovery_iterations": 12.5, "gap_area": 1.5, "switches": 1,
    "switches_recovered": 1, "tasks_learned": 2, "every": 1, "smallest_subset": 70,
}  # fmt: skip
COSTS = {
    "seconds": 2.0, "evaluation_seconds": 0.5, "iterations": 100, "peak_memory_bytes": 2**30, "parameters": 1000,
    "trainable_parameters": 900, "strategy_bytes": 2**20, "forward_flops_per_sample": 5000,
}  # fmt: skip


def config(strategy: str, seed: int, scenario: str, options: dict[str, Any]) -> dict[str, Any]:
    """A resolved configuration; ``options`` are dotted names and their values."""
    content: dict[str, Any] = {
        "scenario": {"name": scenario, "kind": "class_incremental", "increment": 2, "frozen": None},
        "strategy": {"name": strategy, "plus": []},
        "model": {"kind": "mlp", "name": "mlp", "hidden": [400, 400]},
        "trainer": {"epochs": 20, "max_steps_per_task": None, "batch_size": 32, "lr": 0.05, "threads": 1},
        "evaluator": {"split": "test", "kind": "periodic", "every": 1, "subset": 1000},
        "record": {"figure": True},
        "plus": {},
        "study": None,
        "seed": seed,
    }
    for name, value in options.items():
        *groups, last = name.split(".")
        node = content
        for group in groups:
            node = node.setdefault(group, {})
        node[last] = value
    return content


def write_run(
    folder: Path,
    strategy: str = "er",
    seed: int = 0,
    scenario: str = "stream",
    status: str = "finished",
    options: dict[str, Any] | None = None,
    stream_hash: str = STREAM,
    study: dict[str, Any] | None = None,
    notes: list[str] | None = None,
    measurements: list[tuple[int, str, str, str, float]] | None = None,
    plasticity: list[tuple[int, int, str, str, str, float]] | None = None,
    connectivity: list[tuple[int, float, int, int, int, float]] | None = None,
    learned: list[float] | None = None,
    subsets: tuple[int, int] = (5, 5),
    **metrics: Any,
) -> Path:
    """A run folder as a run leaves it; ``metrics`` replace those of :data:`METRICS` and :data:`COSTS`.

    Args:
        notes: those of ``summary.json``; None: a run from before there were notes.
        measurements: rows of ``method.parquet``: task_learning, strategy, quantity, part, value; None: no such file.
        plasticity: rows of ``plasticity.parquet``: task_learning, iteration, probe, quantity, part, value; None: no such file.
        connectivity: rows of ``connectivity.parquet``: task_learning, lam, task_eval, n, correct, loss; None: no such file.
        learned: accuracy on every task when it was just learned, in hundredths; all earlier tasks are then at 0.1. None: the two
            tasks that every run has.
        subsets: samples of either task that the curve was evaluated on.
    """
    folder.mkdir(parents=True)
    content = config(strategy, seed, scenario, options or {}) | {"study": study}
    (folder / "config.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    if status in ("failed", "running"):
        summary = {"status": status} | ({"reason": "ConfigError: no such thing"} if status == "failed" else {})
        (folder / "summary.json").write_text(json.dumps(summary))
        return folder
    tasks = [
        {
            "name": "0, 1",
            "classes": ["0", "1"],
            "n_train": 9,
            "n_test": 5,
            "train_hash": "a" * 32,
            "test_hash": "b" * 32,
        },
        {
            "name": "2, 3",
            "classes": ["2", "3"],
            "n_train": 9,
            "n_test": 5,
            "train_hash": "c" * 32,
            "test_hash": "d" * 32,
        },
    ]
    stream = {
        "name": scenario,
        "hash": stream_hash,
        "frozen": f"{scenario}/v1",
        "note": "",
        "setting": "class",
        "tasks": tasks,
    }
    (folder / "scenario.json").write_text(json.dumps(stream))
    environment = {
        "clbench": "0.1.0", "packages": {"torch": "2.14.1"}, "device": "cpu, 1 threads",
        "git": {"commit": "f00", "dirty": False}, "command": "python -m clbench",
    }  # fmt: skip
    (folder / "environment.json").write_text(json.dumps(environment))
    changed = {name: value for name, value in metrics.items() if name not in COSTS}
    # The tasks are equally large, unless a test says otherwise.
    pooled = {share: (METRICS | changed)[mean] for mean, share in POOLED.items()}
    summary = {
        "status": status,
        "reason": "the training loss became nan" if status == "diverged" else None,
        "strategy": "+".join([strategy, *content["strategy"]["plus"]]),
        "scenario": scenario,
        "scenario_hash": stream_hash,
        "seed": seed,
        "split": content["evaluator"]["split"],
        "metrics": {**pooled, **METRICS, **changed},
        "costs": COSTS | {name: value for name, value in metrics.items() if name in COSTS},
    }
    summary |= {} if notes is None else {"notes": notes}
    (folder / "summary.json").write_text(json.dumps(summary))
    if measurements is not None:
        columns = ["task_learning", "strategy", "quantity", "part", "value"]
        pd.DataFrame(measurements, columns=columns).to_parquet(folder / "method.parquet")
    if plasticity is not None:
        columns = ["task_learning", "iteration", "probe", "quantity", "part", "value"]
        pd.DataFrame(plasticity, columns=columns).to_parquet(folder / "plasticity.parquet")
    if connectivity is not None:
        columns = ["task_learning", "lam", "task_eval", "n", "correct", "loss"]
        pd.DataFrame(connectivity, columns=columns).to_parquet(folder / "connectivity.parquet")
    one, two = subsets
    rows = [(0, 10, 0, one, one, 0.1), (1, 20, 0, one, 3, 0.9), (1, 20, 1, two, two, 0.1)]
    table = pd.DataFrame(rows, columns=["task_learning", "iteration", "task_eval", "n", "correct", "loss"])
    table.to_parquet(folder / "curve.parquet")
    if learned is not None:
        ends = [
            (task, 10 * task + 10, seen, 100, round(100 * accuracy) if seen == task else 10, 0.1)
            for task, accuracy in enumerate(learned)
            for seen in range(task + 1)
        ]
        table = pd.DataFrame(ends, columns=table.columns)
    table.to_parquet(folder / "tasks.parquet")
    return folder


def write_sweep(folder: Path, results: dict[str, list[float]], scenario: str = "stream") -> Path:
    """Finished runs: strategy → ACC by seed 0, 1, …"""
    for strategy, accuracies in results.items():
        for seed, accuracy in enumerate(accuracies):
            write_run(folder / f"{scenario}-{strategy}-{seed}", strategy, seed, scenario, ACC=accuracy)
    return folder


def write_study(
    folder: Path,
    evaluations: dict[str, dict[str, dict[int, float]]],
    scores: dict[str, dict[str, list[float | None]]],
    search: dict[str, list[Any]] | None = None,
    seeds: tuple[int, ...] = (100, 101, 102),
) -> Path:
    """A finished study whose metric is ACC.

    Args:
        evaluations: method → protocol kind → seed → ACC on the evaluation stream.
        scores: method → protocol kind → tuning score by trial, None for a trial that failed. Trial i has the i-th value of
            every list of ``search``, from the first again after the last.
        seeds: the planned evaluation seeds.
    """
    search = search or {"trainer.lr": [0.01, 0.1]}
    kinds = list(next(iter(evaluations.values())))
    methods = []
    for method, by_kind in evaluations.items():
        protocols = {}
        for kind, accuracies in by_kind.items():
            trials = []
            for number, score in enumerate(scores[method][kind]):
                values = {name: choices[number % len(choices)] for name, choices in search.items()}
                run = f"tuning/{method}/{kind}/{number}"
                tags = {"phase": "tuning", "method": method, "trial": number, "protocol": kind}
                status = "failed" if score is None else "finished"
                write_run(folder / run, method, 0, status=status, options=values, study=tags)
                entry = {"folder": run, "status": status, "score": score, "seconds": 1800.0}
                state = "failed" if score is None else "complete"
                trials.append(
                    {
                        "trial": number,
                        "values": values,
                        "state": state,
                        "score": score,
                        "diverged_seeds": [],
                        "runs": {"0": entry},
                    }
                )
            best = max((trial for trial in trials if trial["score"] is not None), key=lambda trial: trial["score"])
            runs = {}
            for seed, accuracy in accuracies.items():
                run = f"evaluation/{method}/{kind}/seed_{seed}"
                tags = {"phase": "evaluation", "method": method, "trial": None, "protocol": kind}
                write_run(folder / run, method, seed, options=best["values"], study=tags, ACC=accuracy, seconds=3600.0)
                runs[str(seed)] = {"folder": run, "status": "finished"}
            selected = {name: best[name] for name in ("trial", "values", "score")}
            protocols[kind] = {"trials": trials, "selected": selected, "evaluation": runs}
        methods.append(
            {
                "method": method,
                "scenario": "stream",
                "overrides": [f"strategy={method}"],
                "search": search,
                "protocols": protocols,
            }
        )
    content = {
        "format": 1,
        "status": "finished",
        "command": "python -m clbench -m protocol=two_phase",
        "seconds": 10.0,
        "protocol": {"kinds": kinds, "trials": 2, "evaluation_seeds": list(seeds), "metric": "ACC"},
        "streams": [
            {
                "scenario": "stream",
                "evaluation": {str(seed): STREAM for seed in seeds},
                "tuning": {kind: {"0": "e" * 32} for kind in kinds},
                "classes": {"tuning": ["0", "1"], "evaluation": ["5", "6"]},
                "common_samples": 0,
                "common_classes": [],
                "note": "",
            }
        ],
        "methods": methods,
    }
    (folder / "study.json").write_text(json.dumps(content))
    return folder
