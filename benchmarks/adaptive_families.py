"""The runs that ``benchmarks/adaptive_error.py`` judges the adaptive evaluator on: recorded at every iteration, of many kinds.

A family is a stream with a network, a method with its options, a batch size, a number of steps a task, an optimizer and a
learning rate. :func:`families` draws them at random, so that nobody chose them. Families that differ in the learning rate alone
are a group; each family is run with two seeds, and a group is trained as one fleet.

Whole groups are held out: the policy's constants were fixed on the other, the development families, alone. Held out are all
families on FashionMNIST and on rotated digits, all with the small CNN, with batches of 8 or with 2,000 steps a task, and a
tenth of the other groups by a hash of their name (:attr:`Family.held_out`). The rule was written down before the first run.

There is no strategy yet that replays stored logits (DER); ``er50+lwf``, replay with distillation, stands in for it.
"""

import math
import random
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby, product
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
from omegaconf import DictConfig

from clbench.compose import compose
from clbench.scenarios.build import sources_kept
from clbench.set_up import set_up
from clbench.training.fleet import Fleet
from clbench.training.trainer import Trainer

N_GROUPS = 46
RATES = 4
"""Learning rates, and so families, of a group."""
SEEDS = (0, 1)

STREAMS = {  # name → how often it is drawn, overrides
    "digits": (3, ["scenario=split_digits"]),
    "digits_small": (8, ["scenario=split_digits", "model=mlp_small"]),
    "digits_two_tasks": (2, ["scenario=split_digits", "scenario.increment=5", "model=mlp_small"]),
    "digits_task_il": (2, ["scenario=split_digits_task", "model=mlp_small"]),
    "mnist": (5, ["scenario=split_mnist", "scenario.tasks=3", "model=mlp_small", "evaluator.subset=200"]),
    "mnist_500": (2, ["scenario=split_mnist", "scenario.tasks=3", "model=mlp_small", "evaluator.subset=500"]),
    "fashion": (4, ["scenario=split_fashion", "scenario.tasks=3", "model=mlp_small", "evaluator.subset=200"]),
    "rotated": (1, ["scenario=rotated_mnist", "scenario.tasks=3", "model=mlp_small", "evaluator.subset=200"]),
    "mnist_cnn": (2, ["scenario=split_mnist", "scenario.tasks=3", "model=cnn_small", "evaluator.subset=100"]),
}
METHODS = {
    "er20": (2, ["strategy=er", "strategy.memory_size=20"]),
    "er50": (4, ["strategy=er", "strategy.memory_size=50"]),
    "er200": (3, ["strategy=er", "strategy.memory_size=200"]),
    "er1000": (2, ["strategy=er", "strategy.memory_size=1000"]),
    "er50_half": (2, ["strategy=er", "strategy.memory_size=50", "strategy.new_weight=0.5"]),
    "er100_reservoir": (2, ["strategy=er", "strategy.memory_size=100", "strategy.selection=reservoir", "strategy.update=step"]),
    "er50+lwf": (3, ["strategy=er", "strategy.memory_size=50", "strategy.plus=[lwf]"]),
    "gem20": (2, ["strategy=gem", "strategy.memory_size=20"]),
    "gem50": (3, ["strategy=gem", "strategy.memory_size=50"]),
    "gem500": (1, ["strategy=gem", "strategy.memory_size=500"]),
    "agem50": (1, ["strategy=agem", "strategy.memory_size=50"]),
    "ewc10": (1, ["strategy=ewc", "strategy.lam=10", "strategy.fisher_samples=100"]),
    "ewc100": (1, ["strategy=ewc", "strategy.lam=100", "strategy.fisher_samples=100"]),
    "lwf": (2, ["strategy=lwf"]),
    "predkd": (1, ["strategy=predkd"]),
    "joint": (2, ["strategy=joint"]),
    "finetune": (1, ["strategy=finetune"]),
}  # fmt: skip
BATCHES = {8: 1, 16: 1, 32: 3, 64: 4, 128: 3, 256: 2}
STEPS = {20: 3, 40: 4, 80: 4, 150: 4, 300: 2, 600: 0.6, 2000: 0.2}
OPTIMIZERS = {  # name → how often, smallest and largest learning rate, overrides
    "sgd": (5, (0.002, 0.2), []),
    "plain": (2, (0.02, 0.5), ["trainer.momentum=0"]),
    "adam": (2, (0.0002, 0.005), ["trainer.optimizer=adam"]),
}
LONGEST_CNN = 80
"""Steps a task of the CNN at most; only for the time it takes."""


@dataclass(frozen=True)
class Family:
    """What the runs of a family have in common."""

    stream: str
    method: str
    batch: int
    steps: int
    optimizer: str
    lr: float

    @property
    def group(self) -> str:
        """What it shares with the families that differ in the learning rate alone."""
        return f"{self.stream}-{self.method}-b{self.batch}-s{self.steps}-{self.optimizer}"

    def __str__(self) -> str:
        return f"{self.group}-lr{self.lr:g}"

    @property
    def held_out(self) -> bool:
        """Whether no constant was fixed on it; the rule of the module docstring."""
        by_kind = self.stream in ("fashion", "rotated", "mnist_cnn") or self.batch == 8 or self.steps == 2000
        return by_kind or zlib.crc32(self.group.encode()) % 10 == 0

    @property
    def overrides(self) -> list[str]:
        """What to append to ``python -m clbench``, beside ``seed``, for one of its runs."""
        return [
            *STREAMS[self.stream][1],
            *METHODS[self.method][1],
            *OPTIMIZERS[self.optimizer][2],
            f"trainer.lr={self.lr:g}",
            f"trainer.batch_size={self.batch}",
            "trainer.epochs=null",
            f"trainer.max_steps_per_task={self.steps}",
        ]


def families() -> list[Family]:
    """The families, group after group, those with few steps a task first."""
    rng = random.Random(480)  # a draw with every kind of method and stream on either side

    def draw(table: dict) -> str | int:
        weights = [entry[0] if isinstance(entry, tuple) else entry for entry in table.values()]
        return rng.choices(list(table), weights)[0]

    found: dict[str, list[Family]] = {}
    while len(found) < N_GROUPS:
        stream, method, batch, steps, optimizer = (draw(t) for t in (STREAMS, METHODS, BATCHES, STEPS, OPTIMIZERS))
        steps = min(steps, LONGEST_CNN) if stream == "mnist_cnn" else steps
        low, high = (math.log(lr) for lr in OPTIMIZERS[optimizer][1])
        rates = [float(f"{math.exp(rng.uniform(low, high)):.2g}") for _ in range(RATES)]
        members = [Family(stream, method, batch, steps, optimizer, lr) for lr in rates]
        if len(set(rates)) == RATES:
            found.setdefault(members[0].group, members)
    return [family for group in sorted(found.values(), key=lambda group: group[0].steps) for family in group]


def make(folder: Path, part: int = 0, parts: int = 1) -> None:
    """Train the groups missing in ``folder``, with an evaluation at every iteration; a file per run, empty where it diverged."""
    folder.mkdir(parents=True, exist_ok=True)
    groups = [list(members) for _, members in groupby(families(), key=lambda family: family.group)]
    with sources_kept():
        for group in groups[part::parts]:
            runs = list(product(group, SEEDS))
            paths = [folder / f"{family}-seed{seed}.parquet" for family, seed in runs]
            if all(path.exists() for path in paths):
                continue
            composed = compose([*group[0].overrides, "trainer.threads=1", "device=cpu", "progress=false"])
            with TemporaryDirectory() as unused:
                members = [_trainer(composed, family, seed, Path(unused)) for family, seed in runs]
                if group[0].stream == "mnist_cnn":  # grouped convolutions are slower than one run after another
                    diverged = {}
                    for number, member in enumerate(members):
                        alone = Fleet([member])
                        alone.fit()
                        if alone.diverged:
                            diverged[number] = alone.diverged[0]
                else:
                    fleet = Fleet(members)
                    fleet.fit()
                    diverged = fleet.diverged
            for number, (member, path) in enumerate(zip(members, paths, strict=True)):
                curve = member.curve.iloc[:0] if number in diverged else member.curve
                curve[~curve.consolidated].drop(columns=["loss", "consolidated"]).to_parquet(path)
            print(group[0].group, f"{len(diverged)} of {len(runs)} diverged" if diverged else "", flush=True)


def _trainer(group: DictConfig, family: Family, seed: int, folder: Path) -> Trainer:
    config = group.copy()
    config.trainer.lr, config.seed = family.lr, seed
    setup = set_up(config)
    checkpoint = folder / f"{family}-seed{seed}" / "state.pt"
    return Trainer(setup.config, setup.scenario, setup.learner, setup.inputs, setup.evaluator, checkpoint)


def load(folder: Path) -> Iterator[tuple[Family, int, pd.DataFrame]]:
    """The runs in ``folder`` that did not diverge: family, seed, curve."""
    for family, seed in product(families(), SEEDS):
        path = folder / f"{family}-seed{seed}.parquet"
        if path.exists() and len(curve := pd.read_parquet(path)):
            yield family, seed, curve.assign(consolidated=False)
