"""Whether a change of the code leaves every curve as it was, to the bit.

    python benchmarks/same_bits.py record before.csv     # before the change
    python benchmarks/same_bits.py record after.csv      # after it, on the same machine with the same torch
    python benchmarks/same_bits.py compare before.csv after.csv

Short runs of every strategy in every setting, plain and under options of the loop, two of each as a fleet, and every pair of
strategies that may be combined. Of each a digest is kept of the weights and buffers, of the curve and of the losses. Digests
are of this processor and this torch: no file of them is worth keeping.
"""

import argparse
import copy
import hashlib
import io
import itertools
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pandas as pd
import torch

from clbench.errors import ConfigError, Diverged
from clbench.registry import STRATEGIES
from clbench.set_up import set_up
from clbench.testing import pairs
from clbench.testing.small_runs import STREAMS, composed, small_network, small_options
from clbench.training.fleet import Fleet
from clbench.training.trainer import Trainer

SMALL = [
    "trainer.epochs=null",
    "trainer.max_steps_per_task=5",
    "trainer.batch_size=8",
    "evaluator.subset=20",
    "evaluator.every=2",
    "device=cpu",
]
CONVOLUTION = ["model=slim_resnet18", "model.width=4", "scenario.increment=3"]
LOOPS = {
    "plain": [],
    "adam": ["trainer.optimizer=adam", "trainer.lr=0.002", "trainer.scheduler=cosine", "trainer.clip_grad_norm=1.0"],
    "decay": ["trainer.weight_decay=0.01", "trainer.momentum=0.9", "trainer.reset_optimizer=false"],
    "scope": ["scenario.logit_scope=current", "trainer.momentum=0.5"],
    "epochs": ["trainer.epochs=2", "trainer.max_steps_per_task=null", "trainer.batch_size=100", "evaluator.every=0"],
    "adaptive": ["evaluator=adaptive", "evaluator.subset=20"],
    "resnet": ["trainer.batch_norm=freeze_after_first_task", "scenario.augment.crop_padding=1"],
    "fleet": ["trainer.momentum=0.9"],
}
"""Options of the loop; ``resnet`` is on another network, ``fleet`` trains two seeds together."""


def cases() -> Iterator[tuple[str, ...]]:
    """What is run: (strategy, setting, loop), and (strategy, strategy) of pairs."""
    for name in STRATEGIES.names():
        for setting in STRATEGIES[name].needs.settings:
            yield from ((name, setting, loop) for loop in LOOPS)
    yield from itertools.permutations(STRATEGIES.names(), 2)


def digests(case: tuple[str, ...]) -> dict[str, str]:
    """The digests of one run, or the sentence that refuses it or ends it."""
    torch.set_num_threads(1)
    try:
        return _of_pair(*case) if len(case) == 2 else _of_run(*case)
    except (ConfigError, Diverged) as error:
        return {"refused": str(error)}


def _of_pair(first: str, second: str) -> dict[str, str]:
    names = first, second
    setting, network = pairs.setting_for(names), pairs.network_for(names)
    result = pairs.trained(*map(pairs.options_of, names), setting=setting, network=network)
    return {
        "weights": _digest(sorted(result.state.items())),
        "curve": _digest(result.logits),
        "losses": _digest(result.losses),
    }


def _of_run(name: str, setting: str, loop: str) -> dict[str, str]:
    if loop == "resnet" and STRATEGIES[name].needs.transformer:
        return {"refused": "not run: it acts within a transformer"}
    network = CONVOLUTION if loop == "resnet" else small_network(name)
    options = [*STREAMS[setting], *small_options(name), *network, "trainer.lr=0.05", *SMALL, *LOOPS[loop]]
    if setting == "domain":
        options = [option for option in options if option != "scenario.increment=3"]
    with tempfile.TemporaryDirectory() as folder:
        seeds = (0, 1) if loop == "fleet" else (3,)
        trainers = [_trainer([*options, f"seed={seed}"], Path(folder) / str(seed)) for seed in seeds]
        if loop == "fleet":
            Fleet(trainers).fit()
        else:
            trainers[0].fit()
    return {
        "weights": _digest([sorted(trainer.learner.state_dict().items()) for trainer in trainers]),
        "curve": _digest([(trainer.curve.to_csv(), trainer.tasks.to_csv()) for trainer in trainers]),
        "losses": _digest([(trainer.training.to_csv(), trainer.method.to_csv()) for trainer in trainers]),
    }


def _trainer(options: list[str], folder: Path) -> Trainer:
    setup = set_up(copy.deepcopy(composed(*options)))
    parts = (setup.config, setup.scenario, setup.learner, setup.inputs, setup.evaluator)
    return Trainer(*parts, folder / "checkpoint" / "state.pt")


def _digest(value: object) -> str:
    buffer = io.BytesIO()
    for part in _flat(value):
        is_tensor = torch.is_tensor(part)
        buffer.write(part.detach().cpu().numpy().tobytes() if is_tensor else repr(part).encode())
    return hashlib.sha256(buffer.getvalue()).hexdigest()[:16]


def _flat(value: object) -> Iterator[object]:
    if isinstance(value, list | tuple):
        for part in value:
            yield from _flat(part)
    else:
        yield value


def record(file: Path, processes: int, only: str) -> None:
    """Make the runs, and write their digests."""
    chosen = [case for case in cases() if only in "+".join(case)]
    with ProcessPoolExecutor(processes) as pool:
        results = list(pool.map(digests, chosen, chunksize=8))
    rows = [{"run": "+".join(case), **result} for case, result in zip(chosen, results, strict=True)]
    pd.DataFrame(rows).to_csv(file, index=False)
    print(f"{len(rows)} cases, {sum('refused' in row for row in rows)} of them refused: {file}")


def compare(before: Path, after: Path) -> int:
    """Print the runs that differ; returns how many."""
    columns = ["weights", "curve", "losses", "refused"]
    tables = (pd.read_csv(file, dtype=str).set_index("run") for file in (before, after))
    first, second = (table.reindex(columns=columns).fillna("") for table in tables)
    common = first.index.intersection(second.index)
    differs = (first.loc[common] != second.loc[common]).any(axis=1)
    for run in common[differs]:
        changed = [column for column in first if first.loc[run, column] != second.loc[run, column]]
        print(f"{run}: {', '.join(changed)}")
    print(
        f"{len(common)} runs compared, {int(differs.sum())} differ; "
        f"{len(first) - len(common)} only before, {len(second) - len(common)} only after"
    )
    return int(differs.sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    recording = commands.add_parser("record")
    recording.add_argument("file", type=Path)
    recording.add_argument("--processes", type=int, default=2)
    recording.add_argument("--only", default="", help="only cases with this in their name")
    comparing = commands.add_parser("compare")
    comparing.add_argument("before", type=Path)
    comparing.add_argument("after", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "record":
        record(arguments.file, arguments.processes, arguments.only)
    else:
        sys.exit(bool(compare(arguments.before, arguments.after)))


if __name__ == "__main__":
    main()
