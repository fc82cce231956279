"""What a training step and an evaluation cost as one thing grows: tasks, evaluation samples, the network, runs in a fleet.

    python benchmarks/scaling.py [--device cpu|cuda] [--threads 2] [--calls 15] [--out benchmarks/results]

EWC (its penalty acts from the second task on) with an MLP of two hidden layers, batch 128, on random images of MNIST's shape:

* tasks: 5 … 100 permutations of the pixels (400 units, 100 evaluation samples a task), timed in the last task;
* evaluation samples: 100 … 2,000 a task, of five tasks;
* units: 100 … 1,600 in each hidden layer;
* runs: a fleet of 1 … 32 (100 units), a step and an evaluation of all of them.

Medians over single calls, the hooks of a task left out. A method whose step costs more with every task would show in the first
panel; the evaluation does cost more there, since it looks at all tasks seen so far.
"""

import argparse
import csv
import statistics
import sys
import tempfile
import textwrap
from collections.abc import Callable
from pathlib import Path

from continual_eval import describe, now, origin
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from clbench.compose import compose
from clbench.set_up import set_up
from clbench.training.fleet import Fleet
from clbench.training.trainer import Trainer

PANELS: dict[str, list[int]] = {
    "tasks": [5, 10, 20, 50, 100],
    "evaluation samples a task": [100, 200, 500, 1000, 2000],
    "units in a hidden layer": [100, 200, 400, 800, 1600],
    "runs in a fleet": [1, 2, 4, 8, 16, 32],
}
PERMUTED = [
    "scenario=permuted_mnist", "scenario.source=random_mlp", "scenario.frozen=null", "trainer.optimizer=sgd",
    "scenario.mean=null", "scenario.std=null",
]  # fmt: skip


def trainer(
    device: str, threads: int, folder: Path, *, tasks: int = 5, subset: int = 1000, units: int = 400, seed: int = 0
) -> Trainer:
    """A run at the beginning of its last task."""
    overrides = [
        *PERMUTED,
        f"scenario.n_tasks={tasks}",
        "strategy=ewc",
        "model=mlp",
        f"model.hidden=[{units},{units}]",
        "trainer.epochs=null",
        "trainer.max_steps_per_task=500",
        "trainer.batch_size=128",
        f"trainer.threads={threads}",
        "evaluator.every=0",
        f"evaluator.subset={subset}",
        f"seed={seed}",
        f"device={device}",
    ]
    setup = set_up(compose(overrides))
    run = Trainer(
        setup.config, setup.scenario, setup.learner, setup.inputs, setup.evaluator, folder / str(seed) / "state.pt"
    )
    run.task = tasks - 1
    run.learner.resume_at(run.task)  # so that the penalty is computed
    return run


def milliseconds(call: Callable[[], object], calls: int, device: str) -> float:
    """The median over single calls, after three."""
    timings = []
    for number in range(calls + 3):
        started = now(device)
        call()
        if number >= 3:
            timings.append(now(device) - started)
    return 1000 * statistics.median(timings)


def measure(panel: str, value: int, device: str, threads: int, calls: int) -> tuple[float, float]:
    """Milliseconds of a training step and of an evaluation of all tasks."""
    with tempfile.TemporaryDirectory() as folder:
        if panel == "runs in a fleet":
            members = [trainer(device, threads, Path(folder), units=100, seed=seed) for seed in range(value)]
            fleet = Fleet(members)
            fleet.begin_task()
            last = members[0].task
            return milliseconds(fleet.train_step, calls, device), milliseconds(
                lambda: fleet.evaluate(last), calls, device
            )
        changed = {
            "tasks": {"tasks": value, "subset": 100},
            "evaluation samples a task": {"subset": value},
            "units in a hidden layer": {"units": value},
        }[panel]
        run = trainer(device, threads, Path(folder), **changed)
        run.begin_task()
        evaluate = run.evaluator.evaluate
        return milliseconds(run.advance, calls, device), milliseconds(lambda: evaluate(run.task, 0), calls, device)


def draw(path: Path, rows: list[dict], where: dict) -> None:
    """Four panels: cost against what grows."""
    figure = Figure(figsize=(8.5, 6.6), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    for axes, panel in zip(figure.subplots(2, 2).flat, PANELS, strict=True):
        values = [row["value"] for row in rows if row["grows"] == panel]
        for name, colour, marker, line in (
            ("training step", "#0072B2", "o", "-"),
            ("evaluation", "#D55E00", "^", "--"),
        ):
            times = [row[f"{name} (ms)"] for row in rows if row["grows"] == panel]
            axes.plot(values, times, color=colour, marker=marker, linestyle=line, label=name)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xticks(values, [str(value) for value in values])
        axes.minorticks_off()
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.set_xlabel(panel)
        axes.set_ylabel("milliseconds")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="0.9")
    axes.legend(frameon=False)
    figure.supxlabel("\n".join(textwrap.wrap(describe(where), 130)), x=0.01, ha="left", fontsize=6.5, color="0.25")
    figure.savefig(path)


def main(arguments: list[str]) -> None:
    """Measure, print and write ``scaling_<device>.csv`` and ``.png``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--calls", type=int, default=15)
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent / "results")
    options = parser.parse_args(arguments)
    where = origin("scaling", arguments, options.device, options.threads)
    print(describe(where))
    rows = []
    for panel, values in PANELS.items():
        for value in values:
            step, evaluation = measure(panel, value, options.device, options.threads, options.calls)
            rows.append({"grows": panel, "value": value, "training step (ms)": step, "evaluation (ms)": evaluation})
            print(f"{panel:28s} {value:5d}: step {step:8.2f} ms, evaluation {evaluation:8.2f} ms")
    options.out.mkdir(parents=True, exist_ok=True)
    with (options.out / f"scaling_{options.device}.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*rows[0], *where], lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow(
                {key: f"{value:.4g}" if isinstance(value, float) else value for key, value in row.items()} | where
            )
    draw(options.out / f"scaling_{options.device}.png", rows, where)


if __name__ == "__main__":
    main(sys.argv[1:])
