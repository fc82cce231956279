"""How far the adaptive evaluator's figures are from those of ``every=1``, and at how many evaluations.

    python benchmarks/adaptive_error.py RUN_FOLDER ... [--window 64] [--share 0.125] [--tolerance 0.001]

Takes finished run folders recorded with ``evaluator.every=1`` and replays the policy (clbench/evaluation/refinement.py) on their
curves: it is shown what it asks for and nothing else, window by window, as the evaluator does it. Evaluation leaves no trace in
training, so that an adaptive run would have gone through the same iterations. The folders, for seeds 0 to 19 and strategies er
(``experiment=split_mnist_er``, ``experiment=split_cifar10_er``), ewc (``strategy.fisher_samples=500`` and ``200``) and finetune::

    clbench scenario=split_mnist strategy=finetune trainer.epochs=null trainer.max_steps_per_task=200
    clbench scenario=split_cifar10 model=mlp strategy=finetune trainer.epochs=null trainer.max_steps_per_task=100 trainer.lr=0.01

The policy's constants were chosen on seeds 100 to 102 and on six runs of other settings (no momentum, Adam, batches of 10 …).
Writes to ``benchmarks/results``:

* ``adaptive_error.csv``: a line per run; errors are adaptive minus every=1, in points (percent accuracy). ``share``: of the
  iterations that were evaluated; ``sample_share``: the same with an evaluation weighted by its samples, which grow with the
  tasks seen, so that late iterations cost more. ``rounds``: most requests in a window. ``unresolved``: the error that the
  adaptive run itself reports as to be expected (``min_ACC_unresolved``), in points.
* ``adaptive_error.png``: largest and mean error over the seeds against the share, for budgets from 1/40 to 1/2 and for regular
  grids (every=2 … 32). Where min-ACC is 0 and every way finds it, there is no panel.
"""

import argparse
import json
import platform
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from clbench.evaluation import metrics
from clbench.evaluation.refinement import Refinement

RESULTS = Path(__file__).resolve().parent / "results"
ALSO = ("gap_depth", "gap_area", "WF10", "WF100", "WP10", "LCA", "AAA")
"""Metrics that are reported beside min-ACC and WC-ACC, which alone guide the policy."""
SHARES = (1 / 40, 1 / 32, 1 / 24, 1 / 20, 1 / 16, 1 / 14, 1 / 12, 1 / 10, 1 / 9, 1 / 8, 1 / 6, 1 / 4, 1 / 2)
TARGET = 0.2
PERIODS = (2, 4, 6, 8, 10, 12, 16, 24, 32)


def replay(curve: pd.DataFrame, window: int, share: float, tolerance: float) -> tuple[pd.DataFrame, int]:
    """The rows of a curve recorded with every=1 that the adaptive evaluator would have recorded.

    Returns:
        The rows, and the most requests the policy made in a window.
    """
    by_iteration = {i: rows.sort_values("task_eval") for i, rows in curve.groupby("iteration")}
    policy = Refinement(int(curve.task_learning.max()) + 1, share, tolerance)
    evaluated: set[int] = set()

    def evaluate(iterations: list[int]) -> None:
        for i in iterations:
            policy.tell(i, by_iteration[i].correct.to_numpy(), by_iteration[i].n.to_numpy())
            evaluated.add(i)

    evaluate([0])
    rounds = 0
    for task, rows in curve[curve.iteration > 0].groupby("task_learning"):
        end = int(rows.iteration.max())
        for first in range(int(rows.iteration.min()), end + 1, window):
            last = min(first + window - 1, end)
            requests = 0
            while request := policy.ask(int(task), first, last):
                evaluate(request)
                requests += 1
            rounds = max(rounds, requests)
    return curve[curve.iteration.isin(evaluated)], rounds


def targets(curve: pd.DataFrame) -> np.ndarray:
    """min-ACC and WC-ACC in percent."""
    return 100 * np.array([metrics.minimum_accuracy(curve)[0], metrics.worst_case_accuracy(curve)])


def load(folder: Path) -> tuple[dict, pd.DataFrame, pd.DataFrame]:
    """Scenario, strategy and seed of a run, its curve, its task table."""
    summary = json.loads((folder / "summary.json").read_text())
    if summary["status"] != "finished" or summary["metrics"]["every"] != 1:
        raise SystemExit(f"{folder} is not a finished run with evaluator.every=1")
    names = {name: summary[name] for name in ("scenario", "strategy", "seed")}
    return names, pd.read_parquet(folder / "curve.parquet"), pd.read_parquet(folder / "tasks.parquet")


def measure(names: dict, curve: pd.DataFrame, tasks: pd.DataFrame, options: argparse.Namespace) -> dict:
    """A line of the CSV."""
    adaptive, rounds = replay(curve, options.window, options.share, options.tolerance)
    exact = metrics.summarise(curve, tasks, every=1)
    approximate = metrics.summarise(adaptive, tasks, every=1, adaptive=True)
    percent = {f"{name}_percent": round(100 * exact[name], 3) for name in ("min_ACC", "WC_ACC")}
    unit = {name: 1 if name == "gap_area" else 100 for name in ("min_ACC", "WC_ACC", *ALSO)}
    errors = {f"{name}_error": round(u * (approximate[name] - exact[name]), 4) for name, u in unit.items()}
    iterations = curve.iteration.nunique()
    return {
        **names,
        "iterations": iterations,
        "evaluations": approximate["evaluations"],
        "share": round(approximate["evaluations"] / iterations, 4),
        "sample_share": round(adaptive.n.sum() / curve.n.sum(), 4),
        "rounds": rounds,
        **percent,
        "unresolved": round(100 * approximate["min_ACC_unresolved"], 3),
        **errors,
    }


def summary_table(table: pd.DataFrame) -> pd.DataFrame:
    """Mean and largest absolute errors, and shares, per scenario and strategy."""
    groups = table.groupby(["scenario", "strategy"])
    columns = {"runs": groups.size()}
    for name in ("min_ACC", "WC_ACC"):
        error = groups[f"{name}_error"]
        columns[f"{name} mean"] = error.apply(lambda e: e.abs().mean())
        columns[f"{name} max"] = error.apply(lambda e: e.abs().max())
        columns[f"{name} > {TARGET}"] = error.apply(lambda e: int((e.abs() > TARGET).sum()))
    columns["share max"] = groups.share.max()
    columns["sample share max"] = groups.sample_share.max()
    columns["unresolved max"] = groups.unresolved.max()
    for name in ALSO:
        columns[f"{name} mean"] = groups[f"{name}_error"].apply(lambda e: e.abs().mean())
    return pd.DataFrame(columns)


def trade_off(curves: list[pd.DataFrame], options: argparse.Namespace) -> dict[str, np.ndarray]:
    """Way of choosing → (settings, 3): mean share of the iterations, mean and largest |error| of min-ACC in points."""
    exact = [targets(curve)[0] for curve in curves]
    ways = {
        "adaptive": [[replay(c, options.window, share, options.tolerance)[0] for c in curves] for share in SHARES],
        "regular grid": [[metrics.coarsened(c, every) for c in curves] for every in PERIODS],
    }
    points = {}
    for way, settings in ways.items():
        rows = []
        for chosen in settings:
            errors = [abs(targets(c)[0] - e) for c, e in zip(chosen, exact, strict=True)]
            shares = [c.iteration.nunique() / d.iteration.nunique() for c, d in zip(chosen, curves, strict=True)]
            rows.append((np.mean(shares), np.mean(errors), np.max(errors)))
        points[way] = np.array(rows)
    return points


def draw(groups: dict[tuple[str, str], list[pd.DataFrame]], options: argparse.Namespace, path: Path) -> None:
    """A panel for every scenario and strategy with an error to show."""
    panels = {names: (len(curves), trade_off(curves, options)) for names, curves in groups.items()}
    shown = {names: panel for names, panel in panels.items() if any(points[:, 2].any() for points in panel[1].values())}
    exact = [" ".join(names) for names in panels if names not in shown]
    if not shown:
        print("no figure: every way of choosing iterations is exact")
        return
    figure, axes = plt.subplots(1, len(shown), figsize=(4.2 * len(shown), 3.6), squeeze=False, layout="constrained")
    for ax, (names, (runs, ways)) in zip(axes[0], shown.items(), strict=True):
        for (way, points), colour in zip(ways.items(), ("C0", "C1"), strict=True):
            share, mean, largest = points[np.argsort(points[:, 0])].T
            ax.plot(share, largest, "o-", color=colour, ms=3, label=f"{way}, largest")
            ax.plot(share, mean, "o--", color=colour, ms=3, lw=1, label=f"{way}, mean")
        ax.axhline(TARGET, color="0.6", lw=0.8)
        ax.axvline(1 / 8, color="0.6", lw=0.8)
        ax.set_xscale("log", base=2)
        ax.set_xticks([1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2], ["1/32", "1/16", "1/8", "1/4", "1/2"])
        ax.set_yscale("symlog", linthresh=0.1)
        ax.set_ylim(0, 50)
        ax.set_title(f"{' '.join(names)}, {runs} seeds", fontsize=10)
        ax.set_xlabel("share of the iterations evaluated")
    axes[0, 0].set_ylabel("|error| of min-ACC (points)")
    axes[0, -1].legend(fontsize=8)
    if exact:
        figure.suptitle(f"no error at any share: {', '.join(exact)}", fontsize=9)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="run folders recorded with evaluator.every=1")
    parser.add_argument("--window", type=int, default=64, help="snapshots in the ring")
    parser.add_argument("--share", type=float, default=1 / 8, help="of the iterations that may be evaluated")
    parser.add_argument("--tolerance", type=float, default=0.001, help="expected gain that is not worth an evaluation")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    options = parser.parse_args()

    lines, groups = [], {}
    for folder in options.runs:
        names, curve, tasks = load(folder)
        lines.append(measure(names, curve, tasks, options))
        groups.setdefault((names["scenario"], names["strategy"]), []).append(curve)
    table = pd.DataFrame(lines).sort_values(["scenario", "strategy", "seed"])
    options.out.mkdir(parents=True, exist_ok=True)
    with (options.out / "adaptive_error.csv").open("w") as file:
        file.write(f"# window {options.window}, share {options.share}, tolerance {options.tolerance}; ")
        file.write(f"python {platform.python_version()}, numpy {np.__version__}, pandas {pd.__version__}\n")
        table.to_csv(file, index=False)
    draw(groups, options, options.out / "adaptive_error.png")
    print("absolute errors in points (gap_area: accuracy × iterations); shares of every=1")
    print(summary_table(table).T.round(3).to_string())


if __name__ == "__main__":
    main()
