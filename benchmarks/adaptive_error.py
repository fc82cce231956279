"""How far the adaptive evaluator's min-ACC is from that of ``every=1``, at how many evaluations, and whether its bound holds.

    python benchmarks/adaptive_error.py FOLDER --make            # trains what is missing in FOLDER (an hour or so on two cores)
    python benchmarks/adaptive_error.py FOLDER [--window 64] [--share 0.125] [--dense 24] [--tolerance 0.001]

The runs are those of ``benchmarks/adaptive_families.py``: many kinds, drawn at random, with an evaluation at every iteration. The
policy (clbench/evaluation/refinement.py) is replayed on their curves: it is shown what it asks for and nothing else, window by
window, as the evaluator does it. Evaluation leaves no trace in training, so that an adaptive run would have gone through the
same iterations. The policy's constants were fixed on the development families; the held-out ones judge it.

Beside it stands "evaluate every k-th step" at equal cost: for every run the largest k that takes at least as many evaluations.

Writes to ``benchmarks/results``:

* ``adaptive_error.csv``: a line per run. ``error``: min-ACC found minus true, in points (percent accuracy), never below 0.
  ``bound``: the ``min_ACC_unresolved`` that the adaptive run states, in points; it ``held`` where the error is no larger.
  ``resolved``: the run shows min-ACC as a number, and not as an upper limit. ``share``: of the iterations that were evaluated;
  ``sample_share``: the same with an evaluation weighted by its samples, which grow with the tasks seen.
* ``adaptive_error_summary.csv``: the distribution of the errors on development and held-out families.
* ``adaptive_error.png``: the held-out runs.
"""

import argparse
import platform
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from adaptive_families import Family, load, make

from clbench.evaluation import metrics
from clbench.evaluation.refinement import Refinement

RESULTS = Path(__file__).resolve().parent / "results"
EXACT = 0.005
"""Points below which an error is rounding."""


def replay(curve: pd.DataFrame, policy: Refinement, window: int) -> pd.DataFrame:
    """The rows of a curve recorded with every=1 that the adaptive evaluator would have recorded."""
    ordered = curve.sort_values(["iteration", "task_eval"])
    rows_of = ordered.groupby("iteration").indices
    correct, n = ordered.correct.to_numpy(), ordered.n.to_numpy()
    evaluated: set[int] = set()

    def evaluate(iterations: list[int]) -> None:
        for i in iterations:
            policy.tell(i, correct[rows_of[i]], n[rows_of[i]])
            evaluated.add(i)

    evaluate([0])
    for task, rows in curve[curve.iteration > 0].groupby("task_learning"):
        end = int(rows.iteration.max())
        for first in range(int(rows.iteration.min()), end + 1, window):
            last = min(first + window - 1, end)
            while request := policy.ask(int(task), first, last):
                evaluate(request)
    return curve[curve.iteration.isin(evaluated)]


def equal_cost(curve: pd.DataFrame, evaluations: int) -> tuple[int, pd.DataFrame]:
    """The regular grid with the largest period that takes at least so many evaluations, and the period."""
    every = max(1, curve.iteration.nunique() // evaluations + 1)
    while (grid := metrics.coarsened(curve, every)).iteration.nunique() < evaluations:
        every -= 1
    return every, grid


def measure(family: Family, seed: int, curve: pd.DataFrame, options: argparse.Namespace) -> dict:
    """A line of the CSV."""
    policy = Refinement(int(curve.task_learning.max()) + 1, options.share, options.dense, options.tolerance)
    adaptive = replay(curve, policy, options.window)
    exact, found = (100 * metrics.minimum_accuracy(c)[0] for c in (curve, adaptive))
    bound = 100 * metrics.unresolved_minimum(adaptive)
    evaluations, iterations = adaptive.iteration.nunique(), curve.iteration.nunique()
    every, grid = equal_cost(curve, evaluations)
    return {
        "split": "held out" if family.held_out else "development",
        "family": str(family),
        "seed": seed,
        "iterations": iterations,
        "share": round(evaluations / iterations, 4),
        "sample_share": round(adaptive.n.sum() / curve.n.sum(), 4),
        "min_ACC": round(exact, 3),
        "error": round(found - exact, 3),
        "bound": round(bound, 3),
        "held": found - exact <= bound + EXACT,
        "resolved": bound <= 100 * metrics.UNRESOLVED,
        "every": every,
        "every_share": round(grid.iteration.nunique() / iterations, 4),
        "every_error": round(100 * metrics.minimum_accuracy(grid)[0] - exact, 3),
    }


def summary_table(table: pd.DataFrame) -> pd.DataFrame:
    """The distribution of errors, shares and bounds, per split."""
    splits = {**dict(list(table.groupby("split"))), "held out, over 100 steps a task": None}
    splits["held out, over 100 steps a task"] = table[
        (table.split == "held out") & (table.family.str.extract(r"-s(\d+)-")[0].astype(int) > 100)
    ]
    columns = {}
    for name, rows in splits.items():
        if not len(rows):
            continue
        resolved = rows[rows.resolved]
        columns[name] = {
            "runs": len(rows),
            "families": rows.family.nunique(),
            "share of the iterations, all runs together": (rows.share * rows.iterations).sum() / rows.iterations.sum(),
            "share, mean over the runs": rows.share.mean(),
            "sample share, mean over the runs": rows.sample_share.mean(),
            **_distribution("error", rows.error),
            "bound held (% of the runs)": 100 * rows.held.mean(),
            "bound median": rows.bound.median(),
            "resolved (% of the runs)": 100 * rows.resolved.mean(),
            **_distribution("error of resolved", resolved.error),
            "resolved and off by over 0.2 points (% of those)": 100 * (resolved.error > 0.2).mean(),
            "share of every k-th step, mean over the runs": rows.every_share.mean(),
            **_distribution("error of every k-th step", rows.every_error),
        }
    return pd.DataFrame(columns)


def _distribution(name: str, error: pd.Series) -> dict[str, float]:
    return {
        f"{name}, median": error.median(),
        f"{name}, mean": error.mean(),
        f"{name}, 95th percentile": error.quantile(0.95),
        f"{name}, worst": error.max(),
    }


def draw(table: pd.DataFrame, path: Path) -> None:
    """Held-out runs: the distribution of the error, and the stated bound against it."""
    held_out = table[table.split == "held out"]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 3.9), layout="constrained")
    for column, label in (("error", "adaptive"), ("every_error", "every k-th step, equal cost")):
        error = np.sort(held_out[column])
        left.plot(
            np.maximum(error, 0.01), np.arange(1, len(error) + 1) / len(error), label=label, drawstyle="steps-post"
        )
    left.set(
        xscale="log",
        xlabel="error of min-ACC (points; 0.01: none)",
        ylabel="share of the held-out runs",
        ylim=(0, 1.01),
    )
    left.legend(fontsize=8, loc="lower right")
    for resolved, colour, label in ((True, "C0", "resolved"), (False, "C3", "shown as an upper limit")):
        rows = held_out[held_out.resolved == resolved]
        right.loglog(np.maximum(rows.bound, 0.01), np.maximum(rows.error, 0.01), "o", ms=3, color=colour, label=label)
    right.axline((0.01, 0.01), (100, 100), color="0.6", lw=0.8)
    right.set(xlabel="stated bound (points)", ylabel="error (points; 0.01: none)", xlim=(0.008, 100), ylim=(0.008, 100))
    right.legend(fontsize=8, loc="upper left")
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the runs' curves")
    parser.add_argument("--make", action="store_true", help="train the runs that are missing, and do nothing else")
    parser.add_argument(
        "--part", type=int, nargs=2, default=(0, 1), metavar=("I", "N"), help="with --make: part I of N"
    )
    parser.add_argument("--window", type=int, default=64, help="snapshots in the ring")
    parser.add_argument(
        "--share", type=float, default=1 / 8, help="of the iterations that may be evaluated, long after a switch"
    )
    parser.add_argument("--dense", type=int, default=24, help="steps after a switch that may all be evaluated")
    parser.add_argument("--tolerance", type=float, default=0.001, help="expected gain that is not worth an evaluation")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    options = parser.parse_args()
    if options.make:
        make(options.folder, *options.part)
        return
    table = pd.DataFrame([measure(*run, options) for run in load(options.folder)])
    if not len(table):
        raise SystemExit(f"{options.folder} holds no runs; make them with --make")
    options.out.mkdir(parents=True, exist_ok=True)
    summary = summary_table(table)
    versions = f"python {platform.python_version()}, numpy {np.__version__}, pandas {pd.__version__}"
    chosen = f"window {options.window}, share {options.share}, dense {options.dense}, tolerance {options.tolerance}"
    for name, frame in (("adaptive_error", table.set_index("split")), ("adaptive_error_summary", summary.round(3))):
        with (options.out / f"{name}.csv").open("w") as file:
            file.write(f"# {chosen}; {versions}\n")
            frame.to_csv(file)
    draw(table, options.out / "adaptive_error.png")
    print("errors and bounds in points")
    print(summary.round(2).to_string())


if __name__ == "__main__":
    main()
