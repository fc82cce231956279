"""Three ways to train a group of runs, and how fast each of them is here.

``stacked``    one computation for all (:class:`clbench.training.fleet.Fleet`)
``in_turn``    one run after another in this process, the data read once
``processes``  one run a process, as many at a time as there are processors (or, on a GPU, as :data:`PROCESSES_PER_GPU`)

Which is fastest depends on model, batch and device: many small networks on a GPU gain most from stacking, convolutions on a
processor lose (``vmap`` makes grouped convolutions of them). So a few steps of each are timed.
"""

import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from omegaconf import DictConfig, OmegaConf, open_dict

from clbench.config import FirstTaskConfig
from clbench.learning.stack import share_frozen
from clbench.set_up import set_up
from clbench.training.fleet import Fleet
from clbench.training.trainer import Trainer

WAYS = ("stacked", "in_turn", "processes")

TIMED_STEPS = 5
WARM_UP_STEPS = 2

WORTH_PROCESSES = 60.0
"""Seconds of training in turn below which processes, each of which loads everything anew, are not considered."""

PROCESSES_PER_GPU = 8


def n_processes(config: DictConfig, n_runs: int) -> int:
    """How many runs would train at a time in processes of their own."""
    if config.device == "cuda" or (config.device == "auto" and torch.cuda.is_available()):
        return min(n_runs, PROCESSES_PER_GPU)
    return min(n_runs, max(1, (os.cpu_count() or 1) // (config.trainer.threads or 1)))


def seconds_per_iteration(configs: list[DictConfig]) -> dict[str, float]:
    """Seconds that one iteration of all runs takes, with its share of evaluation, by way; measured on throwaway learners.

    The evaluation that is timed is that of the stream's middle task, how often it comes is the evaluator's. ``processes``
    are left out where the whole training in turn would take less than :data:`WORTH_PROCESSES` seconds, or where they would
    train one at a time.

    Raises:
        Exception: whatever keeps the runs from being stacked, out of memory included.
    """
    with TemporaryDirectory() as folder:
        stacked = _seconds_stacked(configs, Path(folder))
        alone, iterations = _seconds_alone(configs[0], Path(folder))
    seconds = {"stacked": stacked, "in_turn": len(configs) * alone}
    at_a_time = n_processes(configs[0], len(configs))
    if at_a_time > 1 and iterations * seconds["in_turn"] >= WORTH_PROCESSES:
        seconds["processes"] = len(configs) / at_a_time * _seconds_side_by_side(configs[:at_a_time])
    return seconds


def pool(n: int) -> ProcessPoolExecutor:
    """Workers that start afresh: a forked one would share the parent's threads and CUDA context."""
    return ProcessPoolExecutor(n, mp_context=get_context("spawn"))


def _seconds_stacked(configs: list[DictConfig], folder: Path) -> float:
    members: list[Trainer] = []
    for number, config in enumerate(configs):
        members.append(_trainer(config, folder / f"stacked{number}"))
        share_frozen(members[0].learner, members[-1].learner)
    fleet = Fleet(members)
    fleet.begin_task()
    step = _seconds(fleet.train_step, members[0].device)
    fleet.evaluate(members[0].scenario.n_tasks - 1)  # the largest there will be: if it does not fit, better now
    evaluation = _seconds(lambda: fleet.evaluate(_middle(members[0])), members[0].device)
    return step + _evaluations_per_step(configs[0]) * evaluation


def _seconds_alone(config: DictConfig, folder: Path) -> tuple[float, int]:
    """Seconds of one iteration, and how many iterations the run would have."""
    trainer = _trainer(config, folder / "alone")
    trainer.begin_task()

    step = _seconds(trainer.advance, trainer.device)
    evaluation = _seconds(lambda: trainer.evaluator.evaluate(_middle(trainer), 0), trainer.device)
    seconds = step + _evaluations_per_step(config) * evaluation
    limit = config.trainer.max_steps_per_task or 2**62
    epochs = config.trainer.epochs or 2**31
    batches = [-(-(stop - start) // config.trainer.batch_size) for start, stop in trainer.scenario.train.bounds]
    return seconds, sum(min(limit, epochs * n) for n in batches)


def _seconds_side_by_side(configs: list[DictConfig]) -> float:
    """Seconds of one iteration of a run while others train beside it; the slowest of them."""
    with pool(len(configs)) as workers:
        return max(workers.map(_seconds_in_worker, configs))


def _seconds_in_worker(config: DictConfig) -> float:
    with TemporaryDirectory() as folder:
        return _seconds_alone(config, Path(folder))[0]


def _trainer(config: DictConfig, folder: Path) -> Trainer:
    """A learner at the start of its first task, that does not evaluate by itself."""
    config = config.copy()
    with open_dict(config):
        config.evaluator.kind, config.evaluator.every = "periodic", 0
        config.trainer.epochs, config.trainer.max_steps_per_task = None, 1 + WARM_UP_STEPS + 2 * TIMED_STEPS
        config.trainer.first_task = OmegaConf.structured(FirstTaskConfig)
    setup = set_up(config)
    return Trainer(
        setup.config, setup.scenario, setup.learner, setup.inputs, setup.evaluator, folder / "checkpoint" / "state.pt"
    )


def _evaluations_per_step(config: DictConfig) -> float:
    if config.evaluator.kind == "adaptive":
        return config.evaluator.share
    return 1 / config.evaluator.every if config.evaluator.every else 0.0


def _middle(trainer: Trainer) -> int:
    return trainer.scenario.n_tasks // 2


def _seconds(action: Callable[[], object], device: torch.device) -> float:
    """The median of a few timings."""
    timings = []
    for number in range(WARM_UP_STEPS + TIMED_STEPS):
        _wait(device)
        started = time.perf_counter()
        action()
        _wait(device)
        if number >= WARM_UP_STEPS:
            timings.append(time.perf_counter() - started)
    return sorted(timings)[len(timings) // 2]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
