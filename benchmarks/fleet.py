"""R runs as one stack, in turn, and in processes: what a fleet brings, and where it does not.

    python benchmarks/fleet.py [--model digits_mlp|mlp|slim_resnet18] [--device cpu|cuda] [--every 0|1] [--largest N]
        [--ways stacked "in turn" processes] [--numbers R ...] [--compile off|auto|max] [--precision fp32|bf16]
        [--tasks 2] [--steps N] [--subset N] [--repetitions 3] [--threads N] [--profile] [--out benchmarks/results]

R = 1, 2, 4 … runs of finetuning that differ in seed and learning rate (digits_mlp: scikit-learn's digits, one hidden layer of 32;
mlp: 2×400 on random images of MNIST's shape, batch 128; slim_resnet18: random images of CIFAR-10's shape, batch 256) are trained

* stacked, as one :class:`clbench.training.fleet.Fleet`,
* in turn, one after another in this process,
* in processes: as many at a time as the machine has processors for them (eight on a GPU), each with ``--threads`` threads.

Timed is training with its evaluations (``--every``), from the first task's hooks to the last step; evaluations on full test sets
and checkpoints are left out, and so is the start of processes, which is reported beside it. The figure is iterations of runs per
second; repetitions are interleaved, medians reported. A number of runs for which memory does not suffice is recorded as such.
``--profile`` writes what the steps of the largest stack spend their time on.
"""

import argparse
import csv
import math
import multiprocessing
import os
import statistics
import sys
import tempfile
import textwrap
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from continual_eval import describe, now, origin
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from clbench.compose import compose
from clbench.evaluation.evaluator import as_table
from clbench.set_up import set_up
from clbench.training.fleet import Fleet
from clbench.training.trainer import Trainer

WAYS = ("stacked", "in turn", "processes")
PROCESSES_PER_GPU = 8
DEFAULTS = {
    ("digits_mlp", "cpu"): {"steps": 40, "subset": 70, "largest": 64},
    ("mlp", "cpu"): {"steps": 10, "subset": 1000, "largest": 16},
    ("slim_resnet18", "cpu"): {"steps": 1, "subset": 50, "largest": 4},
    ("digits_mlp", "cuda"): {"steps": 100, "subset": 70, "largest": 64},
    ("mlp", "cuda"): {"steps": 100, "subset": 1000, "largest": 64},
    ("slim_resnet18", "cuda"): {"steps": 30, "subset": 1000, "largest": 64},
}
"""Steps per task, evaluation samples per task and largest R that keep the whole benchmark within minutes."""

MODELS = {
    "digits_mlp": ["scenario.source=digits", "model=mlp", "model.hidden=[32]", "trainer.batch_size=32"],
    "mlp": ["scenario.source=random_mlp", "model=mlp", "trainer.batch_size=128"],
    "slim_resnet18": ["scenario.source=random_slim_resnet18", "model=slim_resnet18", "trainer.batch_size=256"],
}


@dataclass(frozen=True)
class Workload:
    """What every run has to do."""

    model: str
    device: str
    every: int
    tasks: int
    steps: int
    subset: int
    threads: int
    compile: str = "off"
    precision: str = "fp32"

    def trainer(self, number: int, folder: Path) -> Trainer:
        """Run ``number``, without evaluations on full test sets and checkpoints."""
        overrides = [
            "strategy=finetune",
            "scenario=split_digits",
            "scenario.frozen=null",
            f"scenario.increment={10 // self.tasks}",
            *MODELS[self.model],
            "trainer.epochs=null",
            f"trainer.max_steps_per_task={self.steps}",
            f"trainer.threads={self.threads}",
            f"trainer.compile={self.compile}",
            f"trainer.precision={self.precision}",
            f"trainer.lr={0.01 * (1 + number)}",
            f"evaluator.every={self.every}",
            f"evaluator.subset={self.subset}",
            "record.checkpoint_seconds=1e9",
            f"device={self.device}",
            f"seed={number}",
        ]
        setup = set_up(compose(overrides))
        setup.evaluator.evaluate_full = lambda task, iteration: as_table(np.empty((0, 6)))  # type: ignore[method-assign]
        trainer = Trainer(
            setup.config,
            setup.scenario,
            setup.learner,
            setup.inputs,
            setup.evaluator,
            folder / str(number) / "state.pt",
        )
        trainer.save = lambda: None  # type: ignore[method-assign]
        return trainer

    def run_iterations(self, runs: int) -> int:
        """Iterations of all runs together."""
        return runs * self.tasks * self.steps


def warm_up(work: Workload) -> None:
    """Let libraries load and a GPU choose its kernels."""
    with tempfile.TemporaryDirectory() as folder:
        work.trainer(0, Path(folder)).fit()


def seconds_stacked(work: Workload, runs: int) -> float:
    """Training R runs as one stack."""
    with tempfile.TemporaryDirectory() as folder:
        fleet = Fleet([work.trainer(number, Path(folder)) for number in range(runs)])
        started = now(work.device)
        fleet.fit()
        return now(work.device) - started


def seconds_in_turn(work: Workload, runs: int) -> float:
    """Training them one after another."""
    with tempfile.TemporaryDirectory() as folder:
        trainers = [work.trainer(number, Path(folder)) for number in range(runs)]
        started = now(work.device)
        for trainer in trainers:
            trainer.fit()
        return now(work.device) - started


def seconds_in_processes(work: Workload, runs: int) -> tuple[float, float]:
    """Training them in processes: seconds from when all are ready until the last has ended, and of getting ready."""
    at_a_time = min(runs, PROCESSES_PER_GPU if work.device == "cuda" else max(1, (os.cpu_count() or 1) // work.threads))
    context = multiprocessing.get_context("spawn")
    barrier, times = context.Barrier(at_a_time), context.Queue()
    shares = [list(range(first, runs, at_a_time)) for first in range(at_a_time)]
    started = time.time()
    workers = [context.Process(target=train_share, args=(work, share, barrier, times)) for share in shares]
    for worker in workers:
        worker.start()
    ended = [times.get() for _ in workers]
    for worker in workers:
        worker.join()
    ready = min(begin for begin, _ in ended)
    return max(end for _, end in ended) - ready, ready - started


def train_share(work: Workload, numbers: list[int], barrier, times) -> None:
    """What a process does: its runs in turn, once every process is ready."""
    warm_up(work)
    with tempfile.TemporaryDirectory() as folder:
        trainers = [work.trainer(number, Path(folder)) for number in numbers]
        barrier.wait()
        begin = time.time()
        for trainer in trainers:
            trainer.fit()
        now(work.device)
        times.put((begin, time.time()))


def measure(work: Workload, numbers: list[int], ways: list[str], repetitions: int) -> list[dict]:
    """A row for every way and number of runs."""
    seconds: dict[tuple[str, int], list[float]] = {}
    start_up: dict[int, list[float]] = {}
    peak: dict[int, int] = {}
    for _ in range(repetitions):
        for runs in numbers:
            if "stacked" in ways and seconds.get(("stacked", runs)) != [math.inf]:
                try:
                    if work.device == "cuda":
                        torch.cuda.reset_peak_memory_stats()
                    seconds.setdefault(("stacked", runs), []).append(seconds_stacked(work, runs))
                    peak[runs] = torch.cuda.max_memory_allocated() if work.device == "cuda" else 0
                except torch.OutOfMemoryError:
                    seconds["stacked", runs] = [math.inf]
            if "in turn" in ways:
                seconds.setdefault(("in turn", runs), []).append(seconds_in_turn(work, runs))
            if "processes" in ways:
                trained, ready = seconds_in_processes(work, runs)
                seconds.setdefault(("processes", runs), []).append(trained)
                start_up.setdefault(runs, []).append(ready)
    # One run in turn; where that is left out, the smallest stack stands for its runs.
    base = "in turn" if "in turn" in ways else ways[0]
    one = statistics.median(seconds[base, numbers[0]]) / work.run_iterations(numbers[0])
    rows = []
    for way in ways:
        for runs in numbers:
            median = statistics.median(seconds[way, runs])
            rows.append(
                {
                    "way": way,
                    "runs": runs,
                    "run_iterations_per_second": work.run_iterations(runs) / median,
                    "multiple_of_one_run": one * work.run_iterations(runs) / median,
                    "seconds_median": median,
                    "seconds_min": min(seconds[way, runs]),
                    "seconds_max": max(seconds[way, runs]),
                    "seconds_of_start_up": statistics.median(start_up[runs]) if way == "processes" else 0.0,
                    "peak_gpu_bytes": peak.get(runs, 0) if way == "stacked" else 0,
                    "memory": "out of memory" if median == math.inf else "",
                }
            )
    return rows


def profile(work: Workload, runs: int, path: Path) -> None:
    """Write the operations that some steps of a stack of R spend most time on, on device and host."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    activities += [torch.profiler.ProfilerActivity.CUDA] if work.device == "cuda" else []
    with tempfile.TemporaryDirectory() as folder:
        fleet = Fleet([work.trainer(number, Path(folder)) for number in range(runs)])
        fleet.begin_task()
        fleet.train_step()
        with torch.profiler.profile(activities=activities) as profiler:
            for _ in range(min(10, work.steps - 1)):
                fleet.train_step()
    by = ["self_cpu_time_total"] + ["self_cuda_time_total"] * (work.device == "cuda")
    tables = [profiler.key_averages().table(sort_by=key, row_limit=15, max_name_column_width=50) for key in by]
    path.write_text(f"{runs} runs of {work.model} on {work.device}, stacked\n\n" + "\n\n".join(tables))


def write_csv(path: Path, work: Workload, repetitions: int, rows: list[dict], where: dict) -> None:
    """One line per figure, each with everything needed to read it alone."""
    head = {"model": work.model, "device": work.device, "every": work.every, "compile": work.compile}
    head |= {"precision": work.precision}
    tail = {"tasks": work.tasks, "steps": work.steps, "subset": work.subset, "repetitions": repetitions}
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*head, *rows[0], *tail, *where], lineterminator="\n")
        writer.writeheader()
        for row in rows:
            figures = {key: f"{value:.4g}" if isinstance(value, float) else value for key, value in row.items()}
            writer.writerow({**head, **figures, **tail, **where})


def draw(path: Path, work: Workload, rows: list[dict], where: dict) -> None:
    """Throughput as a multiple of one run's, against the number of runs."""
    figure = Figure(figsize=(6.5, 4.6), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    styles = {"stacked": ("#0072B2", "o", "-"), "in turn": ("#000000", "s", ":"), "processes": ("#D55E00", "^", "--")}
    for way, (colour, marker, line) in styles.items():
        points = [(row["runs"], row["multiple_of_one_run"]) for row in rows if row["way"] == way and not row["memory"]]
        if not points:
            continue
        axes.plot(*zip(*points, strict=True), color=colour, marker=marker, linestyle=line, label=way)
        axes.annotate(
            f"{points[-1][1]:.2g}×", points[-1], xytext=(5, 3), textcoords="offset points", fontsize=9, color=colour
        )
    axes.set_xscale("log", base=2)
    runs = sorted({row["runs"] for row in rows})
    axes.set_xticks(runs, [str(n) for n in runs])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("runs")
    axes.set_ylabel("iterations of runs per second,\nas a multiple of one run alone")
    axes.set_title(f"{work.model} on {work.device}, evaluation every={work.every}", loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.supxlabel("\n".join(textwrap.wrap(describe(where), 105)), x=0.01, ha="left", fontsize=6.5, color="0.25")
    figure.savefig(path)


def main(arguments: list[str]) -> None:
    """Measure, print and write ``fleet_<model>_<device>.csv`` and ``.png``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="digits_mlp")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--largest", type=int, help="largest R of 1, 2, 4 …; default by model and device")
    parser.add_argument("--numbers", type=int, nargs="+", help="the numbers R, in place of 1, 2, 4 …")
    parser.add_argument("--ways", choices=WAYS, nargs="+", default=list(WAYS))
    parser.add_argument("--compile", choices=("off", "auto", "max"), default="off")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--tasks", type=int, choices=(2, 5), default=2)
    parser.add_argument("--steps", type=int, help="iterations per task; default by model and device")
    parser.add_argument("--subset", type=int, help="evaluation samples per task; default by model and device")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent / "results")
    options = parser.parse_args(arguments)
    default = DEFAULTS[options.model, options.device]
    work = Workload(options.model, options.device, options.every, options.tasks, options.steps or default["steps"],
                    options.subset or default["subset"], options.threads, options.compile, options.precision)  # fmt: skip
    where = origin("fleet", arguments, work.device, work.threads)
    print(describe(where), work, sep="\n")
    warm_up(work)
    largest = options.largest or default["largest"]
    numbers = options.numbers or [2**power for power in range(int(math.log2(largest)) + 1)]
    rows = measure(work, numbers, options.ways, options.repetitions)
    for row in rows:
        print(f"{row['way']:10s} R={row['runs']:<3d} {row['run_iterations_per_second']:10.1f} run-iterations/s "
              f"{row['multiple_of_one_run']:6.2f}× one run {row['memory']}")  # fmt: skip
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"fleet_{work.model}_{work.device}"
    write_csv(path.with_suffix(".csv"), work, options.repetitions, rows, where)
    draw(path.with_suffix(".png"), work, rows, where)
    if options.profile:
        profile(work, numbers[-1], path.with_name(path.name + "_profile.txt"))


if __name__ == "__main__":
    main(sys.argv[1:])
