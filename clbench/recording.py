"""What is written of a run, from what it was built of and what came out of its training."""

import re
from pathlib import Path
from typing import Any

import torch

from clbench.config import RunConfig
from clbench.data.location import data_root
from clbench.errors import Diverged
from clbench.evaluation.connectivity import INTERPOLATED
from clbench.evaluation.metrics import summarise
from clbench.evaluation.spoken import summarise_answers
from clbench.models.weights import weights_hash
from clbench.records.plug_ins import is_plug_in, plug_in_record
from clbench.records.run_folder import RunFolder, environment
from clbench.records.summary import Costs, Summary
from clbench.registry import MODELS
from clbench.set_up import Setup
from clbench.training.trainer import Trainer


def stream_record(setup: Setup) -> dict[str, Any]:
    """The content of ``scenario.json``: the stream, and which of its samples are evaluated."""
    scenario = setup.scenario
    return {
        "name": scenario.name,
        "hash": scenario.hash,
        "frozen": scenario.frozen,
        "note": scenario.note,
        **scenario.content,
        "evaluation_subsets": [ids.tolist() for ids in setup.evaluator.subset_ids],
    }


def machine_record(setup: Setup) -> dict[str, Any]:
    """What of ``environment.json`` is the machine's, the code's and the command's: versions, device, git state."""
    device = setup.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"
    return environment(name) | {
        "plug_ins": {s.name: plug_in_record(type(s)) for s in setup.learner if is_plug_in(type(s))}
    }


def own_record(setup: Setup, fleet: dict[str, Any] | None) -> dict[str, Any]:
    """What of ``environment.json`` is the run's own, as far as it is known before the first step.

    Args:
        setup: the run.
        fleet: how many runs train together with this one and in which way.
    """
    config = setup.config
    return {
        "data_root": str(data_root(config.data)),
        "initial_weights_sha256": weights_hash(setup.learner.model),
        "tf32": {
            "products": torch.backends.cuda.matmul.allow_tf32,
            "convolutions": torch.backends.cudnn.allow_tf32,
        },
        "cuda": _cuda_versions() if setup.device.type == "cuda" else None,
        "pretrained": setup.pretrained,
        "fleet": fleet,
        "compiled": None,  # known at the end
        "interpolated": INTERPOLATED if config.evaluator.connectivity_points else None,
    }


def summary_record(
    setup: Setup, trainer: Trainer, diverged: Diverged | None, peak_memory: tuple[int | None, str | None]
) -> Summary:
    """The content of ``summary.json`` at the end of training.

    Args:
        setup: the run.
        trainer: after the last step.
        diverged: why training ended early.
        peak_memory: bytes, and whose they are; see :class:`Costs`.
    """
    config, scenario = setup.config, setup.scenario
    return {
        "status": "finished" if diverged is None else "diverged",
        "reason": None if diverged is None else str(diverged),
        "strategy": "+".join(s.name for s in setup.learner),
        "scenario": scenario.name,
        "scenario_hash": scenario.hash,
        "scenario_note": scenario.note,
        "notes": [*setup.learner.notes(), *trainer.notes(), *_notes_of_network(config), *_notes_of_cache(config)],
        "seed": config.seed,
        "split": config.evaluator.split,
        "metrics": summarise(
            trainer.curve,
            trainer.tasks,
            config.evaluator.every,
            config.evaluator.kind == "adaptive",
            setup.learner.learns_at_task_end,
            setup.evaluator.seen if setup.evaluator.classes_apart else None,
            trains_once=setup.learner.trains_once,
        )
        | (summarise_answers(setup.evaluator.answers, trainer.curve) if setup.evaluator.hears_answers else {}),
        "costs": _costs(setup, trainer, *peak_memory),
    }


def write_tables(folder: RunFolder, trainer: Trainer) -> None:
    """Write the curve, the task table and the training losses as they are now."""
    folder.write_table("curve.parquet", trainer.curve)
    folder.write_table("tasks.parquet", trainer.tasks)
    folder.write_table("training.parquet", trainer.training)
    if trainer.evaluator.hears_answers:
        folder.write_table("answers.parquet", trainer.evaluator.answers)
    if trainer.evaluator.counts_seen:
        folder.write_table("seen.parquet", trainer.evaluator.seen)
    if len(trainer.method):
        folder.write_table("method.parquet", trainer.method)
    if trainer.diagnostics.every:
        folder.write_table("diagnostics.parquet", trainer.diagnostics.table())
    if trainer.plasticity.every:
        folder.write_table("plasticity.parquet", trainer.plasticity.table())
    if trainer.connectivity.points:
        folder.write_table("connectivity.parquet", trainer.connectivity.table())


def _notes_of_network(config: RunConfig) -> list[str]:
    """What the kind of network has to say of itself."""
    notes = getattr(MODELS[config.model.kind], "notes", None)
    return notes(config.model) if notes is not None else []


def _notes_of_cache(config: RunConfig) -> list[str]:
    """What a reader has to know where the frozen stages are not part of the network that is trained."""
    if not config.data.cache_prefix:
        return []
    return [
        f"data.cache_prefix: what the frozen stages (model.frozen={config.model.frozen}) make of the samples was computed once; "
        "parameters and operations are those of the rest"
    ]


def _cuda_versions() -> dict[str, Any]:
    """Versions of CUDA and cuDNN that torch computes with, and of the kernel's driver (None where Linux does not tell)."""
    file = Path("/proc/driver/nvidia/version")
    driver = re.search(r"\d+\.[\d.]+\d", file.read_text()) if file.exists() else None
    return {
        "runtime": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "driver": driver and driver.group(),
    }


def _costs(setup: Setup, trainer: Trainer, peak_memory: int | None, of: str | None) -> Costs:
    """Seconds, sizes and floating-point operations."""
    from torch.utils.flop_counter import FlopCounterMode

    model = setup.learner.model.eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(setup.scenario.blank(setup.device))
    return {
        "seconds": trainer.seconds,
        "evaluation_seconds": setup.evaluator.seconds,
        "iterations": trainer.iteration,
        "parameters": sum(p.numel() for p in model.parameters()),
        "trainable_parameters": sum(p.numel() for p in trainer.parameters),
        "strategy_bytes": setup.learner.extra_bytes(),
        "forward_flops_per_sample": counter.get_total_flops(),
        "step_cost": trainer.step_cost,
        "peak_memory_bytes": peak_memory,
        "peak_memory_of": of,
    }
