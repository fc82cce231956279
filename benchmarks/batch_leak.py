"""What fitting a representation to the test images of one task at a time is worth: the task's identity.

    python benchmarks/batch_leak.py [--source fashion_mnist] [--per-class 1500] [--orders 3] [--out benchmarks/results]
                                    [strategy.shrink=200 …]

The representation of ``strategy=if2net`` (clbench/learning/parts/random_representation.py, default sizes) with a ridge
classifier on top, on
five tasks of two classes in the order of the labels, the tasks themselves in random orders. All test images are judged
class-incrementally: ten classes compete. What differs is which data the representation is fitted to, in training and at test:

* ``first task``: the first task's training images, for everything. ``strategy.representation=frozen``, the product's default, and
  the exact joint ridge solution on these features.
* ``last task``: in training to every task by itself, at test that of the last task.
* ``pooled test set``: in training to every task by itself, at test to all test images together.
* ``each task's test set``: in training to every task by itself, at test to the test images of one task at a time. So does the
  published code of this family (toil2sweet/CLSNet), which then reports the mean over tasks as class-incremental accuracy.
* ``avg``, ``max``, ``recon``: in training to every task by itself, at test one of these fits for every image alone
  (``strategy.representation=per_task``, ``strategy.inference``), which no batch tells.

Writes ``if2net_batch_leak.csv``: mean and standard deviation (n − 1) of the accuracy in percent over the orders. The product
refuses runs whose predictions depend on the batch (clbench/evaluation/per_sample.py), so that fits to test images are made here.
"""

import argparse
import platform
import statistics
import sys
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from clbench.compose import compose
from clbench.learning.parts.least_squares import ridge
from clbench.learning.parts.random_representation import Fit
from clbench.set_up import set_up
from clbench.strategies.if2net import SAMPLES_AT_ONCE, IF2Net

RESULTS = Path(__file__).resolve().parent / "results"


class Study:
    """Images of every task and the representation, of one seed.

    Args:
        source: a data source with ten classes.
        per_class: training images of every class, drawn at random.
        seed: of that draw, the random weights and the order of the tasks.
        options: options of the strategy, as on clbench's command line.
    """

    def __init__(self, source: str, per_class: int, seed: int, options: list[str]) -> None:
        setup = set_up(compose(["scenario=split_fashion", f"scenario.source={source}", "scenario.frozen=null", "strategy=if2net",
                                "device=cpu", f"seed={seed}", *options]))  # fmt: skip
        strategy = setup.learner.strategies[0]
        assert isinstance(strategy, IF2Net)
        self.options, self.representation = strategy.options, strategy.representation
        self.n_classes = setup.scenario.n_classes
        generator = torch.Generator().manual_seed(seed)
        self.train, self.test = [], []  # inputs (n, d) and labels (n,) of every task
        for task in torch.randperm(setup.scenario.n_tasks, generator=generator).tolist():
            ids = setup.scenario.train.ids(task)
            labels = setup.scenario.train.labels_of(ids)
            of_class = [ids[labels == label] for label in setup.scenario.task_classes[task]]
            drawn = torch.cat([part[torch.randperm(len(part), generator=generator)[:per_class]] for part in of_class])
            for into, split, chosen in (
                (self.train, setup.scenario.train, drawn),
                (self.test, setup.scenario.test, setup.scenario.test.ids(task)),
            ):
                samples = setup.inputs.plain(split, chosen)
                into.append((strategy.features(samples.x), samples.y))

    def fit(self, *inputs: Tensor) -> Fit:
        """The representation fitted to these inputs."""
        options = self.options
        together = torch.cat(inputs)
        return self.representation.fit(
            lambda: iter(together.split(SAMPLES_AT_ONCE)), options.lam_l1, options.admm_iter, options.shrink
        )

    def features(self, inputs: Tensor, fit: Fit) -> Tensor:
        """G (n, L)."""
        return torch.cat([self.representation(part, fit) for part in inputs.split(SAMPLES_AT_ONCE)])

    def classifier(self, fits: list[Fit]) -> Tensor:
        """β (L, C) on all training images, those of task t with fit t."""
        moments, targets = 0, 0
        for (inputs, labels), fit in zip(self.train, fits, strict=True):
            G = self.features(inputs, fit)
            moments, targets = moments + G.T @ G, targets + G.T @ F.one_hot(labels, self.n_classes).double()
        return ridge(moments, targets, self.options.reg)

    def accuracy(self, beta: Tensor, fits: list[Fit]) -> float:
        """Percent of all test images, those of task t with fit t."""
        pairs = zip(self.test, fits, strict=True)
        return self.percent([(self.features(inputs, fit) @ beta).argmax(1) for (inputs, _), fit in pairs])

    def percent(self, predicted: list[Tensor]) -> float:
        """Percent of all test images whose class, given task by task, is right."""
        labels = torch.cat([labels for _, labels in self.test])
        return 100 * (torch.cat(predicted) == labels).double().mean().item()

    def accuracies(self) -> dict[str, float]:
        """Percent for every row of the table."""
        n_tasks = len(self.train)
        of_task = [self.fit(inputs) for inputs, _ in self.train]
        frozen = [of_task[0]] * n_tasks
        per_task = self.classifier(of_task)
        tests = [inputs for inputs, _ in self.test]
        rows = {
            "first task": self.accuracy(self.classifier(frozen), frozen),
            "last task": self.accuracy(per_task, [of_task[-1]] * n_tasks),
            "pooled test set": self.accuracy(per_task, [self.fit(*tests)] * n_tasks),
            "each task's test set": self.accuracy(per_task, [self.fit(inputs) for inputs in tests]),
        }
        classes = [labels.unique() for _, labels in self.train]
        predicted: dict[str, list[Tensor]] = {"avg": [], "max": [], "recon": []}
        for inputs in tests:
            scores = torch.stack([self.features(inputs, fit) @ per_task for fit in of_task])  # (tasks, n, C)
            best = torch.stack([of_fit[:, own].amax(1) for of_fit, own in zip(scores, classes, strict=True)])
            errors = torch.stack([self.representation.reconstruction_error(inputs, fit) for fit in of_task])
            predicted["avg"].append(scores.mean(0).argmax(1))
            for rule, chosen in (("max", best.argmax(0)), ("recon", errors.argmin(0))):
                predicted[rule].append(scores.argmax(2).gather(0, chosen[None])[0])
        return rows | {rule: self.percent(of_rule) for rule, of_rule in predicted.items()}


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default="fashion_mnist", help="data source, of clbench")
    parser.add_argument("--per-class", type=int, default=1500, help="training images of every class")
    parser.add_argument("--orders", type=int, default=3, help="random orders of the tasks")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("options", nargs="*", help="options of the strategy, e.g. strategy.shrink=200")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(chosen.threads)
    with torch.no_grad():
        runs = [
            Study(chosen.source, chosen.per_class, seed, chosen.options).accuracies() for seed in range(chosen.orders)
        ]
    table = pd.DataFrame(
        {
            "fitted at test to": list(runs[0]),
            "accuracy_percent": [round(statistics.mean(run[row] for run in runs), 2) for row in runs[0]],
            "std": [round(statistics.stdev(run[row] for run in runs), 2) if len(runs) > 1 else 0.0 for row in runs[0]],
            "orders": len(runs),
            "source": chosen.source,
            "train_images_per_class": chosen.per_class,
        }
    )
    print(table.to_string(index=False))
    chosen.out.mkdir(parents=True, exist_ok=True)
    with (chosen.out / "if2net_batch_leak.csv").open("w") as file:
        command = " ".join(["python benchmarks/batch_leak.py", *arguments])
        file.write(f"# python {platform.python_version()}, torch {torch.__version__}; {command}\n")
        table.to_csv(file, index=False)


if __name__ == "__main__":
    main(sys.argv[1:])
