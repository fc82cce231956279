"""What a training step costs in processor time, alone and in a fleet, against another checkout of clbench.

    python benchmarks/loop_cost.py [--against FOLDER] [--repetitions 5] [--steps 1.0] [--dry-run] [--out benchmarks/results]

Finetuning, ER, EWC and DER++, on scikit-learn's digits, with an MLP (2×100, 8×8 pixels) and with slim ResNet-18 (32×32 pixels);
one run, and a fleet of eight that differ in seed. Timed are steps of the second task, in which memories are replayed and
penalties act, 32 new samples each, without evaluations: processor time of one thread, so that what else the machine does counts
little.

``--against`` names the root of another checkout, say a ``git worktree`` of the commit before. Each checkout has a process of its
own, which keeps its runs, and they take turns: every case is measured in one, then in the other, the order changing from
repetition to repetition. The figures are medians; the ratio is the median over repetitions of this checkout's time by the
other's. ``--steps`` is a factor of the number of steps in a measurement. ``--dry-run`` takes one step of everything and writes no
file.
"""

import argparse
import csv
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TextIO

HERE = Path(__file__).resolve().parent

STRATEGIES = {
    "finetune": [],
    "er": ["strategy.memory_size=200"],
    "ewc": ["strategy.fisher_samples=16"],  # timed is its penalty
    "derpp": ["strategy.memory_size=200"],
}
NETWORKS = {
    "mlp": ["model=mlp", "model.hidden=[100,100]"],
    "slim_resnet18": ["model=slim_resnet18", "scenario.image_size=32"],
}
RUNS = (1, 8)
STEPS = {("mlp", 1): 200, ("mlp", 8): 100, ("slim_resnet18", 1): 10, ("slim_resnet18", 8): 2}
"""Steps in a measurement: about half a second."""

WARM_UP = 3
"""Steps before the first measurement: the first of a task is evaluated, and memory is taken from the system."""

FIRST_TASK = 4
"""Steps of the first task."""


class Case(NamedTuple):
    """What is timed: one strategy with one network, in one run or a fleet."""

    strategy: str
    network: str
    runs: int


CASES = [Case(strategy, network, runs) for network in NETWORKS for runs in RUNS for strategy in STRATEGIES]


# ---- within the process of a checkout --------------------------------------------------------------------------------------


def stepper(case: Case, steps: int, folder: Path) -> Callable[[], Any]:
    """A function that takes a step of the case, in the second task of its runs; ``steps`` of them may be taken."""
    from clbench.training.fleet import Fleet
    from clbench.training.trainer import Trainer

    try:
        from clbench.compose import compose
        from clbench.set_up import set_up
    except ImportError:  # where they stood in checkouts before there were these modules
        from clbench.config import compose
        from clbench.run import set_up

    def begun(seed: int) -> Any:
        options = [f"strategy={case.strategy}", *STRATEGIES[case.strategy], *NETWORKS[case.network], f"seed={seed}"]
        loop = ["trainer.epochs=null", f"trainer.max_steps_per_task={FIRST_TASK}", "trainer.batch_size=32",
                "trainer.threads=1", "trainer.lr=0.001", "evaluator.every=0", "evaluator.subset=10"]  # fmt: skip
        stream = ["scenario=split_digits", "scenario.frozen=null", "scenario.tasks=2", "device=cpu"]
        setup = set_up(compose([*stream, *options, *loop]))
        parts = setup.config, setup.scenario, setup.learner, setup.inputs, setup.evaluator
        trainer = Trainer(*parts, folder / f"{'-'.join(map(str, case))}-{seed}" / "state.pt")
        trainer.begin()
        trainer.fit_task()
        trainer.config.trainer.max_steps_per_task = steps
        return trainer

    members = [begun(seed) for seed in range(case.runs)]
    if case.runs == 1:
        members[0].begin_task()
        return members[0].advance
    fleet = Fleet(members)
    fleet.begin_task()
    return fleet.train_step


class Measurements:
    """Times steps of cases, whose runs it keeps.

    Args:
        folder: for checkpoints.
        most: steps of a case that may be asked for, in all.
    """

    def __init__(self, folder: Path, most: int) -> None:
        self._folder, self._most = folder, most
        self._steppers: dict[Case, Callable[[], Any]] = {}

    def microseconds(self, case: Case, steps: int) -> float:
        """Processor time of a step, the mean over ``steps``; of the whole fleet, where it is one."""
        if case not in self._steppers:
            self._steppers[case] = stepper(case, self._most + WARM_UP + 1, self._folder)
            for _ in range(WARM_UP):
                self._steppers[case]()
        step = self._steppers[case]
        gc.collect()
        gc.disable()
        try:
            started = time.process_time()
            for _ in range(steps):
                step()
            return 1e6 * (time.process_time() - started) / steps
        finally:
            gc.enable()


def serve(requests: Iterable[str], answers: TextIO, most: int) -> None:
    """Say where clbench lies, then answer each line ``[strategy, network, runs, steps]`` with microseconds."""
    import clbench

    with tempfile.TemporaryDirectory() as folder:
        measurements = Measurements(Path(folder), most)
        print(json.dumps(str(Path(clbench.__file__).resolve().parents[1])), file=answers, flush=True)
        for request in requests:
            *case, steps = json.loads(request)
            print(json.dumps(measurements.microseconds(Case(*case), steps)), file=answers, flush=True)


# ---- the checkouts in turn -------------------------------------------------------------------------------------------------


class Checkout:
    """A process that measures the clbench of a folder.

    Raises:
        SystemExit: there is none in it.
    """

    def __init__(self, folder: Path, most: int) -> None:
        if not (folder / "clbench" / "__init__.py").is_file():
            sys.exit(f"--against={folder} is not the root of a checkout: it has no folder clbench")
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve()), "--serve", str(most)],
            env={**os.environ, **threads, "PYTHONPATH": str(folder)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        measured = Path(self._answer())
        if measured != folder.resolve():
            sys.exit(f"Python takes clbench from {measured}, and not from {folder}")

    def microseconds(self, case: Case, steps: int) -> float:
        """See :meth:`Measurements.microseconds`."""
        assert self._process.stdin is not None
        print(json.dumps([*case, steps]), file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            sys.exit(f"the process that measures has ended with status {self._process.wait()}; its errors are above")
        return json.loads(line)

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


def measure(
    sides: Sequence[Checkout | Measurements], cases: Sequence[Case], repetitions: int, steps_of: Callable[[Case], int]
) -> dict[Case, list[tuple[float, ...]]]:
    """Microseconds of every side, by case and repetition; sides take turns, in alternating order."""
    times: dict[Case, list[tuple[float, ...]]] = {case: [] for case in cases}
    for repetition in range(repetitions):
        for case in cases:
            order = list(range(len(sides)))[:: -1 if repetition % 2 else 1]
            found = {side: sides[side].microseconds(case, steps_of(case)) for side in order}
            times[case].append(tuple(found[side] for side in range(len(sides))))
    return times


def rows_of(times: dict[Case, list[tuple[float, ...]]]) -> list[dict[str, str | int | float]]:
    """One row a case: medians, and where there are two sides their ratio with its extremes."""
    rows = []
    for case, repetitions in times.items():
        row: dict[str, str | int | float] = {**case._asdict()}
        row["step_us"] = statistics.median(this for this, *_ in repetitions)
        row["step_us_of_a_run"] = row["step_us"] / case.runs
        if len(repetitions[0]) == 2:
            ratios = [this / other for this, other in repetitions]
            row["other_step_us"] = statistics.median(other for _, other in repetitions)
            row |= {"ratio": statistics.median(ratios), "ratio_min": min(ratios), "ratio_max": max(ratios)}
        rows.append(row)
    return rows


def print_table(rows: list[dict[str, str | int | float]]) -> None:
    """The rows as a table on the terminal."""
    print(
        f"{'network':14s} {'runs':>4s} {'strategy':10s} {'µs a step':>10s} {'other':>10s}  ratio (smallest to largest)"
    )
    for row in rows:
        line = f"{row['network']:14s} {row['runs']:4d} {row['strategy']:10s} {row['step_us']:10.0f}"
        if "ratio" in row:
            line += (
                f" {row['other_step_us']:10.0f}  {row['ratio']:.3f} ({row['ratio_min']:.3f} to {row['ratio_max']:.3f})"
            )
        print(line)


def main(arguments: list[str]) -> None:
    """Measure, print and write ``loop_cost.csv``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, help="root of the other checkout")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--steps", type=float, default=1.0, help="factor of the number of steps in a measurement")
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=list(STRATEGIES))
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument(
        "--dry-run", action="store_true", help="one step of everything, in one repetition; writes no file"
    )
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--serve", type=int, metavar="STEPS", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.serve is not None:
        serve(sys.stdin, sys.stdout, options.serve)
        return
    repetitions = 1 if options.dry_run else options.repetitions
    cases = [case for case in CASES if case.strategy in options.strategies and case.network in options.networks]

    def steps_of(case: Case) -> int:
        return 1 if options.dry_run else max(1, round(options.steps * STEPS[case.network, case.runs]))

    most = repetitions * max(map(steps_of, cases))
    folders = [HERE.parent, *([options.against] if options.against else [])]
    sides = [Checkout(folder, most) for folder in folders]
    try:
        rows = rows_of(measure(sides, cases, repetitions, steps_of))
    finally:
        for side in sides:
            side.close()
    print_table(rows)
    if options.dry_run:
        return
    from continual_eval import describe, origin

    where = origin("loop_cost", arguments, "cpu", 1)
    print(describe(where))
    options.out.mkdir(parents=True, exist_ok=True)
    with (options.out / "loop_cost.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*rows[0], "repetitions", *where], lineterminator="\n")
        writer.writeheader()
        for row in rows:
            rounded = {key: f"{value:.4g}" if isinstance(value, float) else value for key, value in row.items()}
            writer.writerow({**rounded, "repetitions": repetitions, **where})


if __name__ == "__main__":
    main(sys.argv[1:])
