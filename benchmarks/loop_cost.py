"""What the harness costs beside the tensor work: clbench's loop against a hand-written one, in one process.

    python benchmarks/loop_cost.py [--tasks 5] [--steps 60] [--repetitions 5] [--threads 2]

Split-MNIST shape (28×28 images in 5 tasks of 2 classes, batch 128, MLP 2×400, SGD with momentum, 1,000 evaluation samples per
task), on random images, since only time is measured. Repetitions are interleaved; medians and ratios are printed.

* training: clbench's whole loop with evaluation switched off (every=0; checkpoints left out) against a hand-written PyTorch
  loop of the same model, data and optimizer, which takes its batches from one float tensor in memory;
* evaluation: clbench's per-iteration evaluation (every=1) against the bare forward passes it needs: the same model on the
  same samples, all seen tasks at once, and nothing else.
"""

import argparse
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from clbench.config import DataConfig, compose
from clbench.data.images import ImageSet, SourceData
from clbench.registry import SOURCES
from clbench.run import set_up
from clbench.training.trainer import Trainer

BATCH, SUBSET, CLASSES = 128, 1000, 10


@SOURCES.register("random_mnist")
def random_mnist(config: DataConfig) -> SourceData:
    """Random images in the shape of MNIST: 12,000 training and 2,000 test images per pair of classes."""
    rng = np.random.default_rng(0)

    def images(per_class: int) -> ImageSet:
        labels = np.repeat(np.arange(CLASSES), per_class)
        return ImageSet(rng.integers(0, 256, (len(labels), 1, 28, 28), np.uint8), labels)

    return SourceData(images(1200), images(1000), [str(c) for c in range(CLASSES)], (0.1307,), (0.3081,))


def trainer(tasks: int, steps: int, every: int, folder: Path) -> Trainer:
    """A clbench run that has not begun."""
    setup = set_up(
        compose(
            [
                "strategy=finetune",
                "scenario=split_digits",
                "scenario.source=random_mnist",
                f"scenario.increment={CLASSES // tasks}",
                "trainer.epochs=null",
                f"trainer.max_steps_per_task={steps}",
                f"trainer.batch_size={BATCH}",
                "trainer.lr=0.01",
                f"evaluator.every={every}",
                f"evaluator.subset={SUBSET}",
                "record.checkpoint_seconds=1e9",
                "device=cpu",
            ]
        )
    )
    return Trainer(setup.config, setup.scenario, setup.learner, setup.inputs, setup.evaluator, folder / "state.pt")


def clbench_seconds(tasks: int, steps: int, every: int) -> tuple[float, float]:
    """Seconds an iteration of the whole loop without evaluation and checkpoints, and of the per-iteration evaluation."""
    with tempfile.TemporaryDirectory() as folder:
        run = trainer(tasks, steps, every, Path(folder))
        seconds = {"evaluate_full": 0.0, "save": 0.0}

        def timed(owner: object, name: str) -> None:
            call = getattr(owner, name)

            def wrapper(*arguments: int) -> object:
                started = time.perf_counter()
                result = call(*arguments)
                seconds[name] += time.perf_counter() - started
                return result

            setattr(owner, name, wrapper)

        timed(run.evaluator, "evaluate_full")
        timed(run, "save")
        started = time.perf_counter()
        run.fit()
        whole = time.perf_counter() - started
        n = tasks * steps
        evaluation = run.evaluator.seconds - seconds["evaluate_full"]
        return (whole - run.evaluator.seconds - seconds["save"]) / n, evaluation / n


def model() -> nn.Module:
    """The MLP, as plain PyTorch."""
    layers = [nn.Flatten(), nn.Linear(784, 400), nn.ReLU(), nn.Linear(400, 400), nn.ReLU(), nn.Linear(400, CLASSES)]
    return nn.Sequential(*layers)


def handwritten_seconds(tasks: int, steps: int) -> float:
    """Seconds an iteration of the loop one would write by hand."""
    network = model()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    images = torch.randn(12000, 1, 28, 28)
    labels = torch.randint(0, CLASSES, (12000,))
    spent = 0.0
    for _ in range(tasks):
        order = torch.randperm(len(images))
        batches = [order.roll(-BATCH * step)[:BATCH] for step in range(steps)]
        started = time.perf_counter()
        for batch in batches:
            loss = F.cross_entropy(network(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        spent += time.perf_counter() - started
    return spent / (tasks * steps)


def bare_forward_seconds(tasks: int, steps: int) -> float:
    """Seconds an iteration of the forward passes that per-iteration evaluation needs."""
    network = model().eval()
    images = torch.randn(tasks * SUBSET, 1, 28, 28)
    spent = 0.0
    with torch.inference_mode():
        for task in range(tasks):
            seen = images[: (task + 1) * SUBSET]
            started = time.perf_counter()
            for _ in range(steps):
                network(seen)
            spent += time.perf_counter() - started
    return spent / (tasks * steps)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=5)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    times: dict[str, list[float]] = {"training": [], "hand-written": [], "evaluation": [], "bare forward": []}
    for repetition in range(options.repetitions + 1):
        training, _ = clbench_seconds(options.tasks, options.steps, every=0)
        handwritten = handwritten_seconds(options.tasks, options.steps)
        _, evaluation = clbench_seconds(options.tasks, options.steps, every=1)
        bare = bare_forward_seconds(options.tasks, options.steps)
        if repetition == 0:
            continue  # warm-up
        for name, value in zip(times, (training, handwritten, evaluation, bare), strict=True):
            times[name].append(1000 * value)
    print(
        f"python {platform.python_version()}, torch {torch.__version__}, {options.threads} threads, {' '.join(sys.argv)}"
    )
    for name, values in times.items():
        print(f"{name:14s} {statistics.median(values):7.3f} ms an iteration   ({min(values):.3f} to {max(values):.3f})")
    for name, base in (("training", "hand-written"), ("evaluation", "bare forward")):
        ratios = [a / b for a, b in zip(times[name], times[base], strict=True)]
        print(f"{name} / {base}: {statistics.median(ratios):.2f}   ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
