"""What training with an evaluation after every iteration costs: clbench, a hand-written loop, bare forward passes, Avalanche.

    python benchmarks/continual_eval.py [--model mlp|slim_resnet18] [--device cpu|cuda] [--tasks 5] [--steps N]
        [--subset N] [--repetitions N] [--compile off|auto|max] [--threads 2] [--out benchmarks/results]

Everything is measured in one process on the same random images (in the shape of MNIST for the MLP 2×400, of CIFAR-10 for slim
ResNet-18), since only time is measured: ten classes in tasks, batch 128, SGD with learning rate 0.01 and momentum 0.9, one head
of ten classes from the start, a fixed evaluation subset of every task, all tasks seen so far evaluated.

* clbench: ``Trainer.fit``, from laying out the batches to the finished table on the host. Left out are checkpoints and the
  evaluations on full test sets at task ends, which have no counterpart in the other loops.
* clbench adaptive: the same with ``evaluator=adaptive``, where that choice exists. The share of the iterations it evaluates
  is reported beside its time: it always takes the first few iterations of a task, so that it saves little where tasks are as
  short as the default for slim ResNet-18 on a CPU.
* hand-written: the PyTorch loop one would write, its batches taken from one float tensor on the device; its evaluation is a
  forward pass per task and one number read from each.
* bare forwards: the forward passes that the evaluation needs, all seen tasks at once, and nothing else: the limit.
* Avalanche: ``Naive`` with ``eval_every=1``, ``peval_mode="iteration"`` and the accuracy on every experience, no loggers,
  evaluation batches of a whole subset; its data are float tensors on the CPU, read by its data loader without workers. Two
  rows: with a stream from ``nc_benchmark``, which its own SplitMNIST and SplitCIFAR10 are made by and its users run, and from
  ``benchmark_from_datasets``, the quickest way it offers. Where it is installed (``pip install -e '.[peers]'``).

Training is timed with evaluation off, and the total with an evaluation after every iteration. On a CPU evaluation is timed
within that run, call by call. On a GPU, where work is queued, the clock is read only at the beginning and the end of a run,
after the queue has emptied, and evaluation is the difference between the two runs. Avalanche also evaluates before and after
every task; that is switched off, so that each loop makes one evaluation an iteration. Repetitions are interleaved; a first
one is thrown away as warm-up. Medians over the repetitions are reported, and ratios taken within a repetition.

Avalanche 0.6.0 runs with torch 2.15 as it is. The warning that qpsolvers finds no solver concerns its GEM, not ``Naive``.
"""

import argparse
import copy
import csv
import importlib.util
import os
import platform
import shlex
import statistics
import sys
import tempfile
import textwrap
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor, nn

from clbench.compose import compose
from clbench.conf_files import group_choices
from clbench.config import DataConfig
from clbench.data.images import ImageSet, SourceData
from clbench.evaluation.evaluator import as_table
from clbench.registry import SOURCES
from clbench.set_up import set_up
from clbench.training.trainer import Trainer

BATCH, CLASSES, TRAIN_PER_CLASS, TEST_PER_CLASS = 128, 10, 1280, 1000
SHAPES = {"mlp": (1, 28, 28), "slim_resnet18": (3, 32, 32)}
DEFAULTS = {
    ("mlp", "cpu"): {"steps": 60, "subset": 1000, "repetitions": 5},
    ("mlp", "cuda"): {"steps": 200, "subset": 1000, "repetitions": 5},
    ("slim_resnet18", "cpu"): {"steps": 4, "subset": 100, "repetitions": 3},  # 1,000 samples a task would take seconds
    ("slim_resnet18", "cuda"): {"steps": 60, "subset": 1000, "repetitions": 5},
}
"""Steps per task, evaluation samples per task and repetitions that keep the whole benchmark within minutes."""

QUICK = "Avalanche, from datasets"

RATIOS = [
    (("clbench", "training"), ("hand-written", "training")),
    (("clbench", "evaluation"), ("bare forwards", "evaluation")),
    (("Avalanche", "total"), ("clbench", "total")),
    (("Avalanche", "total"), ("clbench adaptive", "total")),
    ((QUICK, "total"), ("clbench", "total")),
    ((QUICK, "total"), ("clbench adaptive", "total")),
]

Times = dict[tuple[str, str], float]
"""(what, part) → milliseconds an iteration; the parts are training, evaluation and total. The part ``share`` is that of the
iterations evaluated."""


@dataclass(frozen=True)
class Cost:
    """Milliseconds an iteration of a whole run, and of the evaluation calls in it (on a GPU: of queueing their work)."""

    whole: float
    evaluation: float


@dataclass(frozen=True)
class Workload:
    """What every loop has to do."""

    model: str
    device: str
    tasks: int
    steps: int
    subset: int
    threads: int
    compile: str = "off"

    @property
    def iterations(self) -> int:
        """Optimizer steps of the whole stream."""
        return self.tasks * self.steps

    def cost(self, whole: float, evaluation: float) -> Cost:
        """The cost of a run that took so many seconds."""
        return Cost(1000 * whole / self.iterations, 1000 * evaluation / self.iterations)


@dataclass(frozen=True)
class Material:
    """The network and the data of clbench's run, for the loops without clbench.

    Attributes:
        network: backbone and head, untrained; to be copied.
        train: for each task the normalised images (n, C, H, W) and labels (n,), on the device.
        subsets: the same of the evaluation subsets.
    """

    network: nn.Module
    train: list[tuple[Tensor, Tensor]]
    subsets: list[tuple[Tensor, Tensor]]

    def new_network(self) -> tuple[nn.Module, torch.optim.Optimizer]:
        """A fresh copy of the network and its optimizer."""
        network = copy.deepcopy(self.network)
        return network, torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)


@cache
def random_images(model: str) -> SourceData:
    """Random images of ten classes in the shape that ``model`` is trained on."""
    rng = np.random.default_rng(0)

    def images(per_class: int) -> ImageSet:
        labels = np.repeat(np.arange(CLASSES), per_class)
        return ImageSet(rng.integers(0, 256, (len(labels), *SHAPES[model]), np.uint8), labels)

    moments = (0.5,) * SHAPES[model][0], (0.29,) * SHAPES[model][0]
    return SourceData(images(TRAIN_PER_CLASS), images(TEST_PER_CLASS), [str(c) for c in range(CLASSES)], *moments)


@SOURCES.register("random_mlp")
def random_mlp(config: DataConfig) -> SourceData:
    """Random images in the shape of MNIST."""
    return random_images("mlp")


@SOURCES.register("random_slim_resnet18")
def random_slim_resnet18(config: DataConfig) -> SourceData:
    """Random images in the shape of CIFAR-10."""
    return random_images("slim_resnet18")


def configuration(work: Workload, *overrides: str) -> list[str]:
    """The overrides that make a clbench run of the workload."""
    return [
        "strategy=finetune",
        "scenario=split_digits",
        f"scenario.source=random_{work.model}",
        f"scenario.increment={CLASSES // work.tasks}",
        "scenario.logit_scope=all",
        "scenario.frozen=null",
        f"model={work.model}",
        "trainer.epochs=null",
        f"trainer.max_steps_per_task={work.steps}",
        f"trainer.batch_size={BATCH}",
        "trainer.lr=0.01",
        f"trainer.threads={work.threads}",
        f"trainer.compile={work.compile}",
        "record.checkpoint_seconds=1e9",
        f"device={work.device}",
        *overrides,
        f"evaluator.subset={work.subset}",
    ]


def prepare(work: Workload) -> Material:
    """Network and data as clbench sets them up."""
    setup = set_up(compose(configuration(work)))

    def tensors(split, ids: Tensor) -> tuple[Tensor, Tensor]:
        samples = setup.inputs.plain(split, ids)
        return samples.x, samples.y

    scenario, model = setup.scenario, setup.learner.model
    return Material(
        nn.Sequential(model.backbone, model.head),
        [tensors(scenario.train, scenario.train.ids(task)) for task in range(work.tasks)],
        [tensors(scenario.test, ids) for ids in setup.evaluator.subset_ids],
    )


def now(device: str) -> float:
    """Seconds on a clock, after all work has been done."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


class Stopwatch:
    """Adds up the seconds spent in its ``with`` blocks. Doesn't wait for a GPU."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __enter__(self) -> None:
        self._started = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.seconds += time.perf_counter() - self._started

    def timed(self, call: Callable) -> Callable:
        """``call``, timed."""

        def wrapper(*arguments: object, **named: object) -> object:
            with self:
                return call(*arguments, **named)

        return wrapper


# ---- the loops ----------------------------------------------------------------------------------------------------------


def time_clbench(work: Workload, evaluation: str | None) -> tuple[Cost, float]:
    """clbench's loop, with ``evaluation`` an override such as ``evaluator.every=1``, or None for no evaluation at all.

    Returns:
        The cost, and the share of the iterations that were evaluated.
    """
    setup = set_up(compose(configuration(work, evaluation or "evaluator.every=0")))
    evaluator, watch = setup.evaluator, Stopwatch()
    if evaluation is None:  # every=0 still evaluates around task switches
        evaluator.evaluate = lambda task_learning, iteration: None  # type: ignore[method-assign]
    evaluator.after_step = watch.timed(evaluator.after_step)  # type: ignore[method-assign]
    evaluator.evaluate_full = lambda task_learning, iteration: as_table(np.empty((0, 6)))  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "state.pt"
        run = Trainer(setup.config, setup.scenario, setup.learner, setup.inputs, evaluator, checkpoint)
        run.save = lambda: None  # type: ignore[method-assign]
        started = now(work.device)
        run.fit()
        with watch:
            curve = run.curve
        cost = work.cost(now(work.device) - started, watch.seconds)
    return cost, curve[curve.iteration > 0].iteration.nunique() / work.iterations


def time_handwritten(work: Workload, material: Material, evaluate: bool) -> Cost:
    """The loop one would write by hand."""
    network, optimizer = material.new_network()
    accuracies, watch = [], Stopwatch()
    started = now(work.device)
    for task in range(work.tasks):
        images, labels = material.train[task]
        batches: list[Tensor] = []
        while len(batches) < work.steps:
            batches += torch.randperm(len(images), device=work.device).split(BATCH)
        for batch in batches[: work.steps]:
            loss = F.cross_entropy(network(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if evaluate:
                with watch, torch.no_grad():
                    network.eval()
                    for x, y in material.subsets[: task + 1]:
                        accuracies.append((network(x).argmax(1) == y).float().mean().item())
                    network.train()
    return work.cost(now(work.device) - started, watch.seconds)


def time_bare_forwards(work: Workload, material: Material) -> float:
    """The forward passes of an evaluation after every iteration: milliseconds an iteration."""
    network = material.new_network()[0].eval()
    spent = 0.0
    with torch.inference_mode():
        for task in range(work.tasks):
            seen = torch.cat([x for x, _ in material.subsets[: task + 1]])
            started = now(work.device)
            for _ in range(work.steps):
                network(seen)
            spent += now(work.device) - started
    return 1000 * spent / work.iterations


def time_avalanche(work: Workload, material: Material, evaluate: bool, quick: bool) -> Cost:
    """Avalanche's loop, on a stream made the usual or the quick way."""
    with warnings.catch_warnings():  # no QP solver, no loggers
        warnings.simplefilter("ignore", UserWarning)
        from avalanche.benchmarks import benchmark_from_datasets, nc_benchmark
        from avalanche.benchmarks.utils import as_classification_dataset
        from avalanche.core import SupervisedPlugin
        from avalanche.evaluation.metrics import accuracy_metrics
        from avalanche.training.plugins import EvaluationPlugin
        from avalanche.training.supervised import Naive
        from avalanche.training.templates.base_sgd import PeriodicEval

        evaluator = EvaluationPlugin(accuracy_metrics(experience=True), loggers=[])

    class Exactly(SupervisedPlugin):
        """Ends a task after its steps, since Avalanche counts epochs, and leaves out the evaluation at its end."""

        def __init__(self) -> None:
            super().__init__()
            self.steps = self.evaluations = 0

        def after_training_iteration(self, strategy, **kwargs) -> None:
            self.steps += 1
            periodic.do_final = False
            if self.steps % work.steps == 0:
                strategy.stop_training()

        def after_eval(self, strategy, **kwargs) -> None:
            self.evaluations += 1

    def datasets(parts: list[tuple[Tensor, Tensor]]) -> list:
        return [as_classification_dataset(TensorsWithTargets(x.cpu(), y.cpu())) for x, y in parts]

    if quick:
        stream = benchmark_from_datasets(train=datasets(material.train), test=datasets(material.subsets))
    else:
        whole = [TensorsWithTargets(*(torch.cat(of_all).cpu() for of_all in zip(*parts, strict=True)))
                 for parts in (material.train, material.subsets)]  # fmt: skip
        order = list(range(CLASSES))
        stream = nc_benchmark(*whole, n_experiences=work.tasks, task_labels=False, fixed_class_order=order)
    network, optimizer = material.new_network()
    exactly, watch = Exactly(), Stopwatch()
    strategy = Naive(
        model=network,
        optimizer=optimizer,
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=BATCH,
        train_epochs=work.steps,  # more than enough: the plugin stops it
        eval_mb_size=work.subset,
        device=work.device,
        plugins=[exactly],
        evaluator=evaluator,
        eval_every=1 if evaluate else -1,
        peval_mode="iteration",
    )
    periodic = next(plugin for plugin in strategy.plugins if isinstance(plugin, PeriodicEval))
    periodic.do_initial = False
    strategy.eval = watch.timed(strategy.eval)
    started = now(work.device)
    for task, experience in enumerate(stream.train_stream):
        strategy.train(experience, eval_streams=[stream.test_stream[: task + 1]] if evaluate else [])
    cost = work.cost(now(work.device) - started, watch.seconds)
    assert exactly.steps == work.iterations
    assert exactly.evaluations == (work.iterations if evaluate else 0)
    return cost


class TensorsWithTargets(torch.utils.data.TensorDataset):
    """Images and labels, with the attribute in which Avalanche looks for labels."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        super().__init__(images, labels)
        self.targets = labels.tolist()


# ---- measuring ----------------------------------------------------------------------------------------------------------


def repetition(work: Workload, material: Material, with_avalanche: bool) -> Times:
    """Every loop once, neighbours in time where a ratio compares them."""
    times: Times = {}

    def record(what: str, off: Cost, on: Cost) -> None:
        times[what, "training"] = off.whole
        times[what, "evaluation"] = on.evaluation if work.device == "cpu" else on.whole - off.whole
        times[what, "total"] = on.whole

    off, share = time_clbench(work, None)
    assert share == 0
    off_by_hand = time_handwritten(work, material, evaluate=False)
    on, share = time_clbench(work, "evaluator.every=1")
    assert share == 1
    times["bare forwards", "evaluation"] = time_bare_forwards(work, material)
    record("clbench", off, on)
    if "adaptive" in group_choices("evaluator"):
        on, share = time_clbench(work, "evaluator=adaptive")
        record("clbench adaptive", off, on)
        times["clbench adaptive", "share"] = share
    record("hand-written", off_by_hand, time_handwritten(work, material, evaluate=True))
    if with_avalanche:
        for name, quick in (("Avalanche", False), (QUICK, True)):
            off = time_avalanche(work, material, evaluate=False, quick=quick)
            record(name, off, time_avalanche(work, material, evaluate=True, quick=quick))
    return times


def spread(values: list[float]) -> dict[str, float]:
    """Median, least and largest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def result_rows(times: list[Times]) -> list[dict]:
    """The lines of the CSV file: first times, then ratios."""
    rows = []
    for what, part in times[0]:
        periodic = "adaptive" if what == "clbench adaptive" else "every=1"
        unit = "of_iterations" if part == "share" else "milliseconds_per_iteration"
        rows.append({"what": what, "evaluation": "none" if part == "training" else periodic, "part": part, "unit": unit,
                     **spread([t[what, part] for t in times])})  # fmt: skip
    for above, below in RATIOS:
        if above in times[0] and below in times[0]:
            rows.append({"what": f"{above[0]} / {below[0]}", "evaluation": "", "part": above[1], "unit": "ratio",
                         **spread([t[above] / t[below] for t in times])})  # fmt: skip
    return rows


def avalanche_version() -> str | None:
    """The version installed, or None."""
    return version("avalanche-lib") if importlib.util.find_spec("avalanche") else None


def processor() -> str:
    """The processor's name, with the GPU's where there is one in use."""
    info = Path("/proc/cpuinfo")  # Linux; platform.processor() is empty or vague there
    names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def origin(script: str, arguments: list[str], device: str, threads: int) -> dict[str, str | int]:
    """Where the figures of a benchmark come from: machine, versions, command."""
    return {
        "processor": processor(),
        "cores": os.cpu_count() or 0,
        "threads": threads,
        "gpu": torch.cuda.get_device_name() if device == "cuda" else "",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "command": f"python benchmarks/{script}.py {shlex.join(arguments)}".strip(),
    }


# ---- reporting ----------------------------------------------------------------------------------------------------------


def print_table(rows: list[dict]) -> None:
    """The rows as a table on the terminal."""
    for row in rows:
        unit = {"milliseconds_per_iteration": "ms an iteration", "ratio": "×"}.get(row["unit"], "of the iterations")
        low, high = f"{row['min']:.2f}", f"{row['max']:.2f}"
        name = f"{row['what']}, {row['part']}"
        print(f"{name:42s} {row['evaluation']:9s} {row['median']:9.2f} {unit:18s} ({low} to {high})")


def write_csv(path: Path, work: Workload, repetitions: int, rows: list[dict], where: dict) -> None:
    """One line per figure, each with everything needed to read it alone."""
    settings = {
        "repetitions": repetitions,
        "tasks": work.tasks,
        "steps": work.steps,
        "batch": BATCH,
        "subset": work.subset,
    }
    with path.open("w", newline="", encoding="utf-8") as file:
        head = {"model": work.model, "device": work.device}
        writer = csv.DictWriter(file, [*head, *rows[0], *settings, *where], lineterminator="\n")
        writer.writeheader()
        for row in rows:
            figures = {key: f"{row[key]:.4g}" for key in ("median", "min", "max")}
            writer.writerow({**head, **row, **figures, **settings, **where})


def draw(path: Path, work: Workload, rows: list[dict], where: dict) -> None:
    """A bar for every loop: its total, split into evaluation and the rest."""
    of = {(row["what"], row["part"]): row for row in rows}
    order = ["clbench adaptive", "clbench", "hand-written", "Avalanche", QUICK, "bare forwards"]
    shown = [what for what in order if (what, "evaluation") in of]
    total = {what: of.get((what, "total"), of[what, "evaluation"]) for what in shown}
    rest = {what: total[what]["median"] - of[what, "evaluation"]["median"] for what in shown}
    figure = Figure(figsize=(8.5, 2.1 + 0.5 * len(shown)), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    style = {"height": 0.62, "edgecolor": "black", "linewidth": 0.6}  # colours of Okabe & Ito (2008)
    axes.barh(shown, list(rest.values()), color="#0072B2", label="training", **style)
    evaluation = [of[what, "evaluation"]["median"] for what in shown]
    axes.barh(shown, evaluation, left=list(rest.values()), color="#E69F00", hatch="///", label="evaluation", **style)
    for what, whole in total.items():
        axes.plot([whole["min"], whole["max"]], [what, what], color="black", linewidth=1.6, marker="|", markersize=7)
        ratio = whole["median"] / total["clbench"]["median"]
        compared = "" if what in ("clbench", "bare forwards") else f" ({ratio:.2g}× clbench)"
        label, place = f"{whole['median']:.3g} ms{compared}", {"xytext": (6, 0), "textcoords": "offset points"}
        axes.annotate(label, (whole["max"], what), va="center", fontsize=9, **place)
    names = {"bare forwards": "bare forwards\n(evaluation only)", QUICK: "Avalanche, stream\nfrom datasets"}
    if "clbench adaptive" in shown:
        share = of["clbench adaptive", "share"]["median"]
        names["clbench adaptive"] = f"clbench, adaptive\n({100 * share:.0f}% of iterations)"
    axes.set_yticks(range(len(shown)), [names.get(what, what) for what in shown])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.3 * max(whole["max"] for whole in total.values()))
    axes.set_xlabel("milliseconds an iteration (median; line: least to largest)")
    axes.spines[["top", "right"]].set_visible(False)
    title = (
        f"{work.model} on {work.device}: evaluating {work.subset:,} samples of every seen task after every iteration"
    )
    axes.set_title(f"{title}\n{work.tasks} tasks of {work.steps} iterations, batch {BATCH}", loc="left", fontsize=10)
    figure.legend(loc="outside upper right", ncols=2, frameon=False, fontsize=9)
    figure.supxlabel("\n".join(textwrap.wrap(describe(where), 125)), x=0.01, ha="left", fontsize=7, color="0.25")
    figure.savefig(path)


def describe(where: dict) -> str:
    """Machine, versions and command in one line."""
    avalanche = f", avalanche {where['avalanche'] or 'not installed'}" if "avalanche" in where else ""
    return (
        f"{where['processor']}, {where['cores']} cores, {where['threads']} threads{', ' * bool(where['gpu'])}{where['gpu']}; "
        f"python {where['python']}, torch {where['torch']}{avalanche}; {where['command']}"
    )


def main(arguments: list[str]) -> None:
    """Measure, print and write ``continual_eval_<model>_<device>.csv`` and ``.png``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=SHAPES, default="mlp")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--tasks", type=int, choices=(2, 5, 10), default=5)
    parser.add_argument("--steps", type=int, help="iterations per task; default by model and device")
    parser.add_argument("--subset", type=int, help="evaluation samples per task; default by model and device")
    parser.add_argument("--repetitions", type=int, help="default by model and device")
    parser.add_argument("--compile", choices=("off", "auto", "max"), default="off", help="of clbench's loops")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent / "results")
    options = parser.parse_args(arguments)
    default = DEFAULTS[options.model, options.device]
    work = Workload(options.model, options.device, options.tasks, options.steps or default["steps"],
                    options.subset or default["subset"], options.threads, options.compile)  # fmt: skip
    repetitions = options.repetitions or default["repetitions"]
    where = origin("continual_eval", arguments, work.device, work.threads) | {"avalanche": avalanche_version() or ""}
    print(describe(where))
    print(f"{work}, {repetitions} repetitions after a warm-up")
    if not where["avalanche"]:
        print("Avalanche is not installed (pip install -e '.[peers]'): its row is left out")
    material = prepare(work)
    times = [repetition(work, material, bool(where["avalanche"])) for _ in range(repetitions + 1)][1:]
    rows = result_rows(times)
    how = "timed call by call within the run of the total" if work.device == "cpu" else "total less training"
    print(f"training: evaluation off; evaluation: {how} (bare forwards: timed alone)")
    print_table(rows)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"continual_eval_{work.model}_{work.device}"
    write_csv(path.with_suffix(".csv"), work, repetitions, rows, where)
    draw(path.with_suffix(".png"), work, rows, where)
    print(f"written: {path.name}.csv, {path.name}.png")


if __name__ == "__main__":
    main(sys.argv[1:])
