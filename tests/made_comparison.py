"""A comparison made from closed-form curves, for tests of figures and pages: no training, every number known."""

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd

from clbench.reports.comparison import Comparison
from clbench.reports.connectivity_tables import LINE_COLUMNS
from clbench.reports.loading import MEASUREMENT_COLUMNS, PLASTICITY_COLUMNS
from clbench.reports.protocols import ProtocolReport, Sensitivity
from clbench.reports.statistics import Ranking
from clbench.reports.tables import Cell, Column, Table

N = 1000
"""Samples per task: accuracies are multiples of 0.001."""

METHODS = ["er", "ewc", "finetune"]

LAYERS = ["backbone.conv1.weight", "backbone.conv2.weight", "head.weight"]
RUN = ["scenario", "method", "seed", "folder"]
MEASURED = [*RUN, *MEASUREMENT_COLUMNS]
"""Columns of a comparison's measurements."""


@dataclass(frozen=True)
class Shape:
    """The curve of one method: learns at once to 0.9, dips by ``gap`` at a switch and is back after 20, minus ``loss``."""

    gap: float
    loss: float


SHAPES = {"er": Shape(0.3, 0.0), "ewc": Shape(0.2, 0.1), "finetune": Shape(0.0, 0.3)}


def made_curve(shape: Shape, n_tasks: int = 4, per_task: int = 100, shift: float = 0.0) -> pd.DataFrame:
    """A curve table evaluated at every iteration; ``shift`` is added to every accuracy."""
    rows = []
    for learning in range(n_tasks):
        for step in range(0 if learning == 0 else 1, per_task + 1):
            for task in range(learning + 1):
                if task == learning:
                    accuracy = 0.9
                else:
                    accuracy = 0.9 - shape.loss * (learning - task)
                    if step <= 20:  # straight down for 5 iterations, straight up for 15
                        accuracy -= shape.gap * (step / 5 if step <= 5 else (20 - step) / 15)
                correct = round(N * max(0.0, accuracy + shift))
                rows.append((learning, learning * per_task + step, task, N, correct, 0.5))
    return pd.DataFrame(rows, columns=["task_learning", "iteration", "task_eval", "n", "correct", "loss"])


def task_ends(curve: pd.DataFrame) -> pd.DataFrame:
    """The rows at the end of each task, as a ``tasks.parquet`` would hold them."""
    last = curve.groupby("task_learning").iteration.transform("max")
    return curve[curve.iteration == last].reset_index(drop=True)


def made_comparison(
    methods: list[str] | None = None,
    scenarios: tuple[str, ...] = ("split_digits", "rotated_mnist", "split_cifar10"),
    n_tasks: int = 4,
    per_task: int = 100,
    seeds: int = 3,
    title: str = "Made comparison",
    failures: bool = True,
    reporting: tuple[str, ...] = (),
    plasticity: tuple[str, ...] = (),
    connectivity: tuple[str, ...] = (),
) -> Comparison:
    """Every part of a comparison filled; method i has the look and curve of ``METHODS[i % 3]`` and the name ``methods[i]``.

    Args:
        reporting: the methods that report something of themselves, see :func:`made_measurements`.
        plasticity: the methods of whose networks plasticity was measured, see :func:`made_plasticity`.
        connectivity: the methods between whose states was evaluated, see :func:`made_connectivity`.
    """
    methods = METHODS if methods is None else methods
    curves, rows = {}, []
    for scenario in scenarios:
        for index, method in enumerate(methods):
            for seed in range(seeds):
                folder = f"{scenario}/{index}/{seed}"
                shape = SHAPES[METHODS[index % 3]]
                curves[folder] = made_curve(shape, n_tasks, per_task, shift=0.01 * seed - 0.02 * (index // 3))
                cost = {"seconds": 12.0 + 5 * index + seed, "evaluation_seconds": 2.0}
                cost |= {"peak_memory_bytes": 2**28, "parameters": 190410, "strategy_bytes": 2**20 * index}
                row = {"folder": folder, "method": method, "scenario": scenario, "seed": seed, "split": "test"}
                row |= {
                    "status": "finished",
                    "evaluation_kind": "every=1",
                    "subset_low": N,
                    "subset_high": N,
                    "forward_flops_per_sample": 379200,
                }
                rows.append(row | cost | {"ACC": task_ends(curves[folder]).tail(n_tasks).correct.mean() / N})
    included = pd.DataFrame(rows)
    runs: Any = SimpleNamespace(
        table=included, curve=curves.__getitem__, tasks=lambda folder: task_ends(curves[folder]), studies=[]
    )

    def of_runs(
        make: Callable[[int, float], pd.DataFrame], chosen: tuple[str, ...], columns: list[str]
    ) -> pd.DataFrame:
        tables = [
            make(n_tasks, 0.1 * methods.index(row.method) + 0.01 * row.seed).assign(
                scenario=row.scenario, method=row.method, seed=row.seed, folder=row.folder
            )
            for row in included[included.method.isin(chosen)].itertuples()
        ]
        return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=columns)

    ranks = pd.Series({method: 1.0 + index for index, method in enumerate(methods)})
    return Comparison(
        title=title,
        command="python -m clbench report made",
        runs=runs,
        included=included,
        counted=included,
        expected_seeds={scenario: list(range(seeds)) for scenario in scenarios},
        unfinished={scenario: {} for scenario in scenarios},
        not_best={scenario: {} for scenario in scenarios},
        methods=methods,
        by=["method"],
        metric="ACC",
        main=[_table(f"Results: {scenario}", methods, scenario) for scenario in scenarios],
        measurements=of_runs(made_measurements, reporting, MEASURED),
        reported=[_table(f"Reported: {scenario}", list(reporting), scenario) for scenario in scenarios if reporting],
        plasticity=of_runs(made_plasticity, plasticity, [*RUN, *PLASTICITY_COLUMNS]),
        plasticity_tables=[
            _table(f"Plasticity: {scenario}", methods, scenario) for scenario in scenarios if plasticity
        ],
        connectivity=of_runs(made_connectivity, connectivity, [*RUN, *LINE_COLUMNS]),
        connectivity_tables=[
            _table(f"Connectivity: {scenario}", methods, scenario) for scenario in scenarios if connectivity
        ],
        costs=[_table(f"Costs: {scenario}", methods, scenario) for scenario in scenarios],
        failures=_table("Failures", methods[-1:]) if failures else None,
        provenance=[_table(f"Provenance: {scenario}", methods[:1], scenario) for scenario in scenarios],
        hyperparameters=[],
        statistics={},
        tests=[_table(f"Tests: {scenario}", methods, scenario) for scenario in scenarios],
        ranks=Ranking("ACC", list(scenarios), ranks, 0.05, 1.91, [methods[:2]] if len(methods) > 2 else []),
        protocols=[_protocol_report(methods, scenarios[0])],
        sensitivity=[_sensitivity(method, scenarios[0]) for method in methods[:2]],
    )


def made_measurements(n_tasks: int, shift: float) -> pd.DataFrame:
    """What a strategy ``sparse`` reports: a quantity that never changes, two that do, one with layers and one with tasks.

    After task t: density 0.2; free share 0.8 ** (t + 1), plus ``shift``; flops 1e6 · (t + 1); free share of layer k that of the
    whole minus 0.01 · k; overlap with task j 0.1 · (t − j), plus ``shift``.
    """
    rows: list[tuple[int, str, str, float]] = []
    for task in range(n_tasks):
        free = 0.8 ** (task + 1) + shift
        rows += [(task, "density", "", 0.2), (task, "free_share", "", free), (task, "flops", "", 1e6 * (task + 1))]
        rows += [(task, "free_share", layer, free - 0.01 * place) for place, layer in enumerate(LAYERS)]
        rows += [(task, "overlap", f"task {earlier}", 0.1 * (task - earlier) + shift) for earlier in range(task)]
    table = pd.DataFrame(rows, columns=["task_learning", "quantity", "part", "value"])
    return table.assign(strategy="sparse")


def made_plasticity(n_tasks: int, shift: float) -> pd.DataFrame:
    """Measures of plasticity at task ends: of the whole, of two hidden layers and of two weight matrices.

    After task t (from 0), on the probe ``current`` (``earlier``: 0.5 less): training accuracy 0.9 − 0.1 · t − ``shift``; dead
    units of layer h1 0.01 · t, of h2 0.1 · t; gradient norm 10^−t; largest singular values 5 of h1 and 2 + t + ``shift`` of h2.
    """
    rows: list[tuple[int, str, str, str, float]] = []
    for task in range(n_tasks):
        for probe, less in (("current", 0.0), ("earlier", 0.5)) if task else (("current", 0.0),):
            rows += [
                (task, probe, "train_accuracy", "", 0.9 - 0.1 * task - shift - less),
                (task, probe, "dead_frac_exact", "h1", 0.01 * task),
                (task, probe, "dead_frac_exact", "h2", 0.1 * task),
                (task, probe, "grad_norm_probe", "", 10.0**-task),
            ]
        rows += [(task, "", "sigma_max", "h1", 5.0), (task, "", "sigma_max", "h2", 2.0 + task + shift)]
    table = pd.DataFrame(rows, columns=["task_learning", "probe", "quantity", "part", "value"])
    return table.assign(iteration=100 * (table.task_learning + 1))


def made_connectivity(n_tasks: int, shift: float) -> pd.DataFrame:
    """Five points between the states after task t − 1 and after t ≥ 1, counted from 0.

    Accuracy on the current task 0.1 · t + 0.4 λ + ``shift``, on the earlier ones 0.5 − 0.2 λ + ``shift``; loss 1 on all.
    """
    rows = [
        (task, lam, tasks, accuracy + shift, 1.0)
        for task in range(1, n_tasks)
        for lam in (0.0, 0.25, 0.5, 0.75, 1.0)
        for tasks, accuracy in (("current", 0.1 * task + 0.4 * lam), ("earlier", 0.5 - 0.2 * lam))
    ]
    return pd.DataFrame(rows, columns=LINE_COLUMNS)


def _table(title: str, methods: list[str], scenario: str = "") -> Table:
    columns = [Column("method"), Column("ACC ↑", "full test sets", True), Column("FORG ↓", "full test sets", True)]
    rows = [
        [Cell(method), Cell(f"{value:.1f} ± 0.5", value, "best" if not place else ""), Cell("–")]
        for place, (method, value) in enumerate(zip(methods, 90 - 9.5 * np.arange(len(methods)), strict=True))
    ]
    return Table(title, f"Caption of {title}.", columns, rows, scenario)


def _protocol_report(methods: list[str], scenario: str) -> ProtocolReport:
    """Tuning ranks the methods in their order; on the evaluation stream the first two change places under two_phase."""
    swapped = methods[1::-1] + methods[2:]
    rows = [
        {"method": method, "kind": kind, "tuning_score": 0.9, "tuning_rank": 1.0 + methods.index(method), "seeds": 3}
        | {"evaluation": 0.8, "half_width": 0.02, "evaluation_rank": 1.0 + order.index(method)}
        for kind, order in (("two_phase", swapped), ("conventional", methods))
        for method in methods
    ]
    gap = 0.01 * np.arange(len(methods))
    optimism = pd.DataFrame({"method": methods, "gap": gap, "low": gap - 0.005, "high": gap + 0.02, "pairs": 3})
    tables = [_table("Protocols", methods, scenario)]
    kind_tau = pd.DataFrame(columns=["kind", "other", "tau", "methods"])
    return ProtocolReport(
        "study", scenario, "ACC", ["two_phase", "conventional"], pd.DataFrame(rows), {"two_phase": 0.33}, kind_tau,
        optimism, ["Every method had the same budget."], tables,
    )  # fmt: skip


def _sensitivity(method: str, scenario: str) -> Sensitivity:
    """Twelve trials on a grid: the score is 0.9 − 0.2 · (lr is 0.01) − 0.01 · (place of lam)."""
    rows = []
    for trial in range(12):
        lr, place = (0.1, 0.01)[trial % 2], trial // 2 % 3
        score = 0.9 - 0.2 * (lr == 0.01) - 0.01 * place
        rows += [("trainer.lr", lr, trial, score), ("strategy.lam", (1, 10, 100)[place], trial, score)]
    scores = pd.DataFrame(rows, columns=["parameter", "value", "trial", "score"])
    importance = pd.Series({"trainer.lr": 0.9, "strategy.lam": 0.1})
    return Sensitivity(
        "study", scenario, method, "two_phase", scores, importance, "Importance by fANOVA over 12 trials."
    )
