"""What only a GPU can show and no test does: what compiling costs and gives, memory of evaluations, precisions.

    python benchmarks/on_gpu.py [CHECK ...] [--device cuda|cpu] [--tiny] [--seconds 120] [--out benchmarks/results/on_gpu.jsonl]

Every check runs in a process of its own, for ``--seconds`` at most, and appends one JSON line to ``--out``: its name, whether it
came to its end, seconds, and what it found or the error's last lines. Without names all are run, in the order below. ``--tiny``
takes networks and numbers so small that a processor ends in seconds: it tries the checks, and its figures mean nothing.
benchmarks/on_gpu.sh runs these checks beside the GPU tests and the other benchmarks.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch._dynamo
from continual_eval import now  # the import registers sources of random images

from clbench.compose import compose
from clbench.set_up import set_up
from clbench.training.fleet import Fleet
from clbench.training.trainer import Trainer

CHECKS: dict[str, Callable[["Scale"], dict[str, Any]]] = {}


class Scale:
    """Where the checks run, and how large."""

    def __init__(self, device: str, tiny: bool) -> None:
        self.device, self.tiny = device, tiny

    def trainer(self, folder: str, *overrides: str) -> Trainer:
        """A trainer of random images, without checkpoints."""
        common = ["scenario=split_digits", "scenario.frozen=null", "scenario.increment=5", "trainer.epochs=null"]
        common += ["record.checkpoint_seconds=1e9", f"device={self.device}", "progress=false"]
        setup = set_up(compose([*common, *overrides]))
        file = Path(folder) / f"{setup.config.seed}" / "state.pt"
        trainer = Trainer(setup.config, setup.scenario, setup.learner, setup.inputs, setup.evaluator, file)
        trainer.save = lambda: None  # type: ignore[method-assign]
        return trainer

    @property
    def peak_bytes(self) -> int:
        """Of the GPU's memory, since the last time it was asked."""
        if self.device != "cuda":
            return 0
        peak = torch.cuda.max_memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        return peak


# ---- compiling ----------------------------------------------------------------------------------------------------------

VIT = ["model=small_vit", "model.width=64", "model.depth=2", "model.heads=4", "model.image_size=8"]
RESNET = ["scenario.source=random_slim_resnet18", "model=slim_resnet18"]
COMPILED = {
    "mlp_er": ["strategy=er", "strategy.memory_size=40", "model=mlp"],
    "mlp_ewc": ["strategy=ewc", "model=mlp"],
    "slim_resnet18_er": ["strategy=er", "strategy.memory_size=40", *RESNET],
    "small_vit_l2p": ["strategy=l2p", "strategy.blocks=[0,1]", *VIT],
    "fleet_of_8_mlp_ewc": ["strategy=ewc", "model=mlp"],
}


def trained(scale: Scale, folder: str, runs: int, *overrides: str) -> dict[str, Any]:
    """One or more runs of two tasks of a few steps: losses, seconds until the first step is done, and of a later one."""
    steps = 6 if scale.tiny else 30
    more = [f"trainer.max_steps_per_task={steps}", "trainer.lr=0.01", "evaluator.subset=50", "evaluator.every=10"]
    more += ["model.width=8"] if scale.tiny and "model=slim_resnet18" in overrides else []
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    members = [scale.trainer(folder, *overrides, *more, f"seed={seed}") for seed in range(runs)]
    first: Any = members[0] if runs == 1 else Fleet(members)
    step = first.advance if runs == 1 else first.train_step
    taken: list[float] = []

    def timed() -> None:
        started = now(scale.device)
        step()
        taken.append(now(scale.device) - started)

    setattr(first, "advance" if runs == 1 else "train_step", timed)
    first.fit()
    counters = torch._dynamo.utils.counters
    late = sorted(taken[len(taken) // 2 + 2 :])
    return {
        "losses": members[0].training.loss.tolist(),
        "what": members[0].learner.compilation.done,
        "seconds_first_step": taken[0],
        "seconds_first_step_of_second_task": taken[steps],
        "milliseconds_later": 1000 * late[len(late) // 2],
        "graphs": counters["stats"]["unique_graphs"],
        "graph_breaks": sum(counters["graph_break"].values()),
    }


def compared(scale: Scale, case: str, setting: str, *overrides: str) -> dict[str, Any]:
    """A case eagerly and compiled, and how far their losses are apart."""
    runs = (2 if scale.tiny else 8) if case.startswith("fleet") else 1
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for how in ("off", setting):
            found[how] = trained(scale, folder, runs, *COMPILED[case], f"trainer.compile={how}", *overrides)
    pairs = zip(found["off"].pop("losses"), found[setting].pop("losses"), strict=True)
    return {"eager": found["off"], "compiled": found[setting], "largest_deviation": max(abs(a - b) for a, b in pairs)}


for name in COMPILED:
    CHECKS[f"compile_auto_{name}"] = lambda scale, name=name: compared(scale, name, "auto")
for name, extra in {
    "mlp_er": [],
    "mlp_ewc": ["evaluator.diagnostics_every=1"],  # gradients are taken twice through a step's graph
    "slim_resnet18_er": [],
    "fleet_of_8_mlp_ewc": [],
}.items():
    CHECKS[f"compile_max_{name}"] = lambda scale, name=name, extra=extra: compared(scale, name, "max", *extra)


def without_compiler(scale: Scale) -> dict[str, Any]:
    """Where kernels cannot be built, ``auto`` goes on eagerly."""
    with tempfile.TemporaryDirectory() as cache:
        os.environ |= {
            "CC": "/nonexistent",
            "CXX": "/nonexistent",
            "TRITON_CACHE_DIR": cache,
            "TORCHINDUCTOR_CACHE_DIR": cache,
        }
        found = trained(scale, cache, 1, *COMPILED["mlp_er"], "trainer.compile=auto")
    assert found["what"] == "eager", found["what"]
    return {"what": found["what"]}


CHECKS["without_compiler"] = without_compiler


# ---- memory and precision -----------------------------------------------------------------------------------------------


def evaluation_memory(scale: Scale, runs: int) -> dict[str, Any]:
    """Peak memory and milliseconds of an evaluation of a ViT-B/16 at 224 pixels, with as many samples at once as it takes."""
    network = "vit_tiny_patch16_224" if scale.tiny else "vit_base_patch16_224"
    more = [
        "scenario.source=random_slim_resnet18",
        "model=timm",
        f"model.name={network}",
        "trainer.max_steps_per_task=1",
    ]
    more += ["strategy=finetune", "trainer.batch_size=8", "trainer.compile=off", "evaluator.every=0"]
    more += ["evaluator.subset=4" if scale.tiny else "evaluator.subset=2048"]
    with tempfile.TemporaryDirectory() as folder:
        members = [scale.trainer(folder, *more, f"seed={seed}") for seed in range(runs)]
        evaluator = members[0].evaluator
        if runs == 1:
            evaluate: Callable[[], Any] = lambda: evaluator.evaluate(1, 0)  # noqa: E731
        else:
            fleet = Fleet(members)
            fleet.begin_task()
            evaluate = lambda: fleet.evaluate(1)  # noqa: E731
        evaluate()  # finds what fits
        before = scale.peak_bytes
        started = now(scale.device)
        evaluate()
        seconds = now(scale.device) - started
    parts = evaluator.parts(sum(evaluator.sizes), -(-runs // 16))
    return {
        "runs": runs,
        "samples_at_once": max(part.stop - part.start for part in parts),
        "halvings": evaluator._halvings,
        "milliseconds": 1000 * seconds,
        "peak_bytes": scale.peak_bytes,
        "peak_bytes_while_it_was_found": before,
    }


for runs in (1, 2, 4, 8):
    CHECKS[f"evaluation_memory_{runs}"] = lambda scale, runs=runs: evaluation_memory(scale, runs)


def precisions(scale: Scale) -> dict[str, Any]:
    """Milliseconds a step of slim ResNet-18, batch 256."""
    steps, found = (3 if scale.tiny else 60), {}
    batch = 8 if scale.tiny else 256
    ways = {
        "fp32": [],
        "tf32": ["trainer.tf32=true"],
        "bf16": ["trainer.precision=bf16"],
        "fp16": ["trainer.precision=fp16"],
    }
    for way, overrides in ways.items():
        more = [*RESNET, "strategy=finetune", f"trainer.batch_size={batch}", "trainer.compile=off", "evaluator.every=0"]
        more += [f"trainer.max_steps_per_task={2 * steps}", "evaluator.subset=10", *overrides]
        more += ["model.width=8"] if scale.tiny else []
        with tempfile.TemporaryDirectory() as folder:
            trainer = scale.trainer(folder, *more)
            trainer.begin()
            trainer.begin_task()
            for _ in range(2):
                trainer.advance()
            started = now(scale.device)
            for _ in range(min(steps, len(trainer.steps) - 2)):
                trainer.advance()
            found[way] = 1000 * (now(scale.device) - started) / min(steps, len(trainer.steps) - 2)
    return {"milliseconds_per_step": found}


CHECKS["precisions"] = precisions


# ---- running them -------------------------------------------------------------------------------------------------------


def record(check: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run a check in a process of its own; the line about it."""
    command = [sys.executable, __file__, check, "--inside", f"--device={arguments.device}"]
    started = time.time()
    try:
        done = subprocess.run(
            command + ["--tiny"] * arguments.tiny, capture_output=True, text=True, timeout=arguments.seconds
        )
        lines = done.stdout.strip().splitlines()
        ok = done.returncode == 0 and bool(lines)
        found = json.loads(lines[-1]) if ok else (done.stderr.strip().splitlines() or ["no word"])[-8:]
    except subprocess.TimeoutExpired:
        ok, found = False, [f"not done after {arguments.seconds} seconds"]
    line = {"check": check, "ok": ok, "seconds": round(time.time() - started, 1), "device": arguments.device}
    return line | ({"tiny": True} if arguments.tiny else {}) | {"found" if ok else "error": found}


def main(words: list[str]) -> None:
    """Run the checks that are named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checks", nargs="*", metavar="CHECK", help=f"any of {', '.join(CHECKS)}")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--seconds", type=float, default=120.0, help="that a check may take")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent / "results" / "on_gpu.jsonl")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args(words)
    unknown = set(arguments.checks) - CHECKS.keys()
    if unknown:
        parser.error(f"unknown checks {', '.join(sorted(unknown))}: choose from {', '.join(CHECKS)}")
    if arguments.inside:
        print(json.dumps(CHECKS[arguments.checks[0]](Scale(arguments.device, arguments.tiny))))
        return
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    for check in arguments.checks or CHECKS:
        line = record(check, arguments)
        with arguments.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        print(f"{check}: {'ok' if line['ok'] else line['error'][-1]} ({line['seconds']} s)", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
