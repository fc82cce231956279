"""How much memory a fleet of learners with adapters or prompts takes: its members hold one copy of their frozen backbone.

    python benchmarks/shared_backbone.py [--network vit_base_patch16_224] [--runs 1 8] [--batch 2] [--out benchmarks/results]

R learners of LoRA or OnePrompt on a vision transformer at 224 pixels (random weights from one file, as pretrained ones would
be), in a process for each measurement: the bytes of all distinct tensors that the learners hold, and the largest resident
memory of the process, after building them and one training step of all. ``separate`` builds the same learners without
sharing.
"""

import argparse
import csv
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

from clbench.compose import compose
from clbench.learning.stack import share_frozen, state_of
from clbench.set_up import set_up
from clbench.training.fleet import Fleet
from clbench.training.trainer import Trainer

COLUMNS = ["network", "strategy", "runs", "way", "tensor_mib", "resident_mib"]
MIB = 2**20


def trainers(
    network: str, weights: Path, strategy: str, runs: int, batch: int, share: bool, folder: Path
) -> list[Trainer]:
    """R runs at their beginning."""
    made: list[Trainer] = []
    for seed in range(runs):
        overrides = [f"strategy={strategy}", "scenario=split_digits", "model=timm", f"model.name={network}",
                     f"model.checkpoint={weights}", f"trainer.batch_size={batch}", "evaluator.subset=1", f"seed={seed}",
                     "trainer.epochs=null", "trainer.max_steps_per_task=1", "device=cpu"]  # fmt: skip
        setup = set_up(compose(overrides))
        checkpoint = folder / f"{seed}" / "state.pt"
        made.append(Trainer(setup.config, setup.scenario, setup.learner, setup.inputs, setup.evaluator, checkpoint))
        if share:
            share_frozen(made[0].learner, made[-1].learner)
    return made


def measure(network: str, weights: Path, strategy: str, runs: int, batch: int, way: str) -> tuple[float, float]:
    """MiB of distinct tensors, and of the process at its largest."""
    with tempfile.TemporaryDirectory() as folder:
        members = trainers(network, weights, strategy, runs, batch, way == "shared", Path(folder))
        if way == "shared":
            fleet = Fleet(members)
            fleet.begin_task()
            fleet.train_step()
        else:
            for member in members:
                member.begin_task()
                member.advance()
        storages = {
            tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
            for member in members
            for _, tensor in state_of(member.learner)
        }
    return sum(storages.values()) / MIB, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MIB


def write_random_weights(network: str, file: Path) -> None:
    """The network's initial weights as a checkpoint."""
    import timm

    torch.manual_seed(0)
    save_file(timm.create_model(network, num_classes=0, in_chans=1).state_dict(), file)


def main(arguments: list[str] | None = None) -> None:
    """Measure every case in a process of its own, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="vit_base_patch16_224")
    parser.add_argument("--strategies", nargs="+", default=["lora", "oneprompt"])
    parser.add_argument("--runs", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--case", nargs=4, help=argparse.SUPPRESS)  # weights, strategy, runs, way: one measurement
    options = parser.parse_args(arguments)
    if options.case:
        weights, strategy, runs, way = options.case
        print(*measure(options.network, Path(weights), strategy, int(runs), options.batch, way))
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "weights.safetensors"
        write_random_weights(options.network, weights)
        for strategy in options.strategies:
            for runs in options.runs:
                for way in ("shared", "separate"):
                    case = ["--case", str(weights), strategy, str(runs), way]
                    command = [
                        sys.executable,
                        __file__,
                        "--network",
                        options.network,
                        "--batch",
                        str(options.batch),
                        *case,
                    ]
                    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
                    rows.append([options.network, strategy, runs, way, *(round(float(mib), 1) for mib in said[-2:])])
                    print(dict(zip(COLUMNS, rows[-1], strict=True)))
    options.out.mkdir(parents=True, exist_ok=True)
    with (options.out / "shared_backbone.csv").open("w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *rows])


if __name__ == "__main__":
    main()
