"""What a training step of every method costs in processor time, in units of a step of finetuning.

    python benchmarks/step_times.py [--networks mlp slim_resnet18] [--strategies er derpp …] [--repetitions 5] [--dry-run]

One process, one thread. Images are scikit-learn's digits at MNIST's 28×28 pixels for the MLP (2×400), and at 32×32 for slim
ResNet-18; batches of 128 and of 32 new samples. Timed are steps of the second of two tasks, in which memories are replayed and
penalties act, without evaluations; methods with options as they are, but for memories of 500 samples. A method takes turns with
finetuning, and the figure is the median over repetitions of its time by finetuning's, as processor time counts what is computed
and not what the machine does beside it. What a method does at a task's end is not in it, and stages after the plan are not.

A method that is not defined for such a network or stream is left out, and the reason is printed.
"""

import argparse
import csv
import gc
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from clbench.compose import compose
from clbench.errors import ConfigError
from clbench.registry import STRATEGIES
from clbench.set_up import set_up
from clbench.training.trainer import Trainer

HERE = Path(__file__).resolve().parent

NETWORKS = {
    "mlp": ["model=mlp", "model.hidden=[400,400]", "scenario.image_size=28", "trainer.batch_size=128"],
    "slim_resnet18": ["model=slim_resnet18", "scenario.image_size=32", "trainer.batch_size=32"],
}
STEPS = {"mlp": 20, "slim_resnet18": 3}
"""Steps in a measurement."""

STREAMS = {
    "class": ["scenario=split_digits"],
    "task": ["scenario=split_digits_task"],
    "domain": ["scenario=permuted_mnist", "scenario.source=digits"],
}
WARM_UP = 3
FIRST_TASK = 4
"""Steps of the first task."""


def stepper(strategy: str, network: str, folder: Path, most: int) -> Callable[[], Any]:
    """A function that takes a step of the method in its second task; ``most`` of them may be taken.

    Raises:
        ConfigError: the method is not defined for this network.
    """
    setting = STRATEGIES[strategy].needs.settings[0]
    options = [*STREAMS[setting], "scenario.frozen=null", *NETWORKS[network], f"strategy={strategy}"]
    if STRATEGIES[strategy].needs.memory:
        options.append("strategy.memory_size=500")
    if "sgd" not in STRATEGIES[strategy].needs.optimizers:
        options.append(f"trainer.optimizer={STRATEGIES[strategy].needs.optimizers[0]}")
    loop = ["trainer.epochs=null", f"trainer.max_steps_per_task={FIRST_TASK}", "trainer.lr=0.001", "trainer.threads=1",
            "evaluator.every=0", "evaluator.subset=10", "device=cpu"]  # fmt: skip
    length = "scenario.n_tasks=2" if setting == "domain" else "scenario.tasks=2"
    setup = set_up(compose([*options, length, *loop]))
    parts = setup.config, setup.scenario, setup.learner, setup.inputs, setup.evaluator
    trainer = Trainer(*parts, folder / f"{strategy}-{network}" / "state.pt")
    trainer.begin()
    trainer.fit_task()
    trainer.config.trainer.max_steps_per_task = most
    trainer.begin_task()
    if len(trainer.steps) < most:
        raise ConfigError(f"strategy {strategy} takes {len(trainer.steps)} steps in a task, whatever it may take")
    return trainer.advance


def seconds(step: Callable[[], Any], n: int) -> float:
    """Processor time of ``n`` steps."""
    gc.collect()
    gc.disable()
    try:
        started = time.process_time()
        for _ in range(n):
            step()
        return time.process_time() - started
    finally:
        gc.enable()


def measure(strategy: str, network: str, folder: Path, repetitions: int, n: int) -> dict[str, str | float]:
    """A row of the table: the step in microseconds, and by finetuning's the median, smallest and largest."""
    most = WARM_UP + repetitions * n
    steps = [stepper(name, network, folder / str(place), most) for place, name in enumerate(("finetune", strategy))]
    for step in steps:
        seconds(step, WARM_UP)
    times = [[seconds(step, n) for step in steps] for _ in range(repetitions)]
    ratios = [own / plain for plain, own in times]
    return {
        "network": network,
        "strategy": strategy,
        "step_us": round(1e6 * statistics.median(own for _, own in times) / n, 1),
        "ratio": round(statistics.median(ratios), 3),
        "ratio_min": round(min(ratios), 3),
        "ratio_max": round(max(ratios), 3),
    }


def main(arguments: list[str]) -> None:
    """Measure, print and write ``step_times.csv``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES.names(), default=STRATEGIES.names())
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--dry-run", action="store_true", help="one step of everything; writes no file")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    options = parser.parse_args(arguments)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for network in options.networks:
            for strategy in options.strategies:
                place = Path(folder) / f"{network}-{strategy}"
                repetitions, n = (1, 1) if options.dry_run else (options.repetitions, STEPS[network])
                try:
                    row = measure(strategy, network, place, repetitions, n)
                except ConfigError as error:
                    print(f"{network:14s} {strategy:20s} left out: {error}", flush=True)
                    continue
                rows.append(row)
                print(f"{network:14s} {strategy:20s} {row['step_us']:10.0f} µs  {row['ratio']:.2f}× "
                      f"({row['ratio_min']:.2f} to {row['ratio_max']:.2f})", flush=True)  # fmt: skip
    if options.dry_run:
        return
    from continual_eval import describe, origin

    where = origin("step_times", arguments, "cpu", 1)
    print(describe(where))
    options.out.mkdir(parents=True, exist_ok=True)
    with (options.out / "step_times.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*rows[0], *where], lineterminator="\n")
        writer.writeheader()
        writer.writerows({**row, **where} for row in rows)


if __name__ == "__main__":
    main(sys.argv[1:])
