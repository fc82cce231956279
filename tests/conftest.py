"""Shared fixtures: real data where there are any, and small runs built as a user's run is built."""

import gc
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hydra.core.config_store import ConfigStore
from torch import Tensor

from clbench.__main__ import status_of
from clbench.learning.base import Batch
from clbench.scenarios.task import Task
from clbench.set_up import Setup, set_up
from clbench.testing.small_runs import composed
from clbench.training.trainer import Trainer

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))

SMALL = [
    "model.hidden=[16]",
    "trainer.epochs=null",
    "trainer.max_steps_per_task=4",
    "trainer.batch_size=8",
    "evaluator.subset=20",
    "record.figure=false",
    "progress=false",
    "device=cpu",
]
"""Overrides that shrink the default run to a fraction of a second."""


@pytest.fixture(scope="session", autouse=True)
def no_waiting_for_the_disk() -> Iterator[None]:
    """Files reach the disk when the machine likes: no test cuts its power, and runs and studies write thousands of small ones."""
    with patch("os.fsync"):
        yield


@pytest.fixture(scope="session", autouse=True)
def no_copies_of_all_schemas() -> Iterator[None]:
    """Hydra copies every registered schema for each configuration it composes. It only reads them, and copies what it takes."""
    with patch.object(ConfigStore, "__deepcopy__", lambda self, memo: self, create=True):
        yield


@pytest.fixture(scope="session", autouse=True)
def few_collections_of_garbage() -> Iterator[None]:
    """Modules and configurations are many small objects, which need not be searched for garbage again and again."""
    thresholds = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
    yield
    gc.set_threshold(*thresholds)
    gc.unfreeze()


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with real data sets, or skip."""
    root = os.environ.get("CLBENCH_DATA")
    if not root or not Path(root).is_dir():
        pytest.skip("needs real data sets: set CLBENCH_DATA to their folder")
    return Path(root)


@pytest.fixture(scope="session")
def small_setup() -> Callable[..., Setup]:
    """A function: overrides → everything a small run on digits needs, built but not trained."""

    def make(*overrides: str) -> Setup:
        is_mlp = all(override == "model=mlp" for override in overrides if override.startswith("model="))
        small = [option for option in SMALL if is_mlp or not option.startswith("model.")]
        return set_up(composed(*small, *overrides))

    return make


@pytest.fixture
def small_trainer(small_setup: Callable[..., Setup], tmp_path: Path) -> Callable[..., Trainer]:
    """A function: overrides → a trainer of a small run; ``checkpoint`` names its file within the test's folder."""

    def make(*overrides: str, checkpoint: str = "unused") -> Trainer:
        setup = small_setup(*overrides)
        return Trainer(
            setup.config,
            setup.scenario,
            setup.learner,
            setup.inputs,
            setup.evaluator,
            tmp_path / checkpoint / "state.pt",
        )

    return make


@pytest.fixture(autouse=True)
def log_as_before() -> Iterator[None]:
    """Take away what a command has set up for its log, which would go on writing to an output that is closed by then."""
    handlers, level = list(logging.root.handlers), logging.root.level
    yield
    for handler in logging.root.handlers[:]:
        if handler not in handlers:
            logging.root.removeHandler(handler)
    logging.root.setLevel(level)


@pytest.fixture
def clb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Callable[..., tuple]:
    """A function: the words of a command → its exit status, what it printed, and its errors.

    In this process, and in an empty folder: starting another takes seconds.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("clbench.conf_files._added_dirs", [])
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr("sys.argv", ["clbench"])

    def call(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        status = status_of(list(words))
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return call


@pytest.fixture
def task_of() -> Callable[[Setup, int], Task]:
    """A function: the task with an index, as the trainer gives it to the hooks (of a setup or a trainer)."""

    def make(setup: Setup | Trainer, index: int) -> Task:
        scenario = setup.scenario
        return Task(
            index,
            scenario.n_tasks,
            scenario.task_classes[index],
            setup.config.trainer,
            setup.config.seed,
            scenario.train,
            setup.inputs,
        )

    return make


SETTINGS = {
    "class": ["scenario=split_digits"],
    "task": ["scenario=split_digits_task"],
    "domain": [
        "scenario=permuted_mnist",
        "scenario.source=digits",
        "scenario.frozen=null",
        "scenario.n_tasks=3",
        "model=mlp",
    ],
}
"""Overrides for a small stream of every setting."""

WITH_BATCH_NORM = [
    "model=slim_resnet18",
    "model.width=2",
    "trainer.epochs=null",
    "trainer.max_steps_per_task=4",
    "trainer.batch_size=8",
    "trainer.lr=0.05",
    "evaluator.subset=20",
    "device=cpu",
]


@pytest.fixture(params=SETTINGS)
def setting(request: pytest.FixtureRequest) -> list[str]:
    """The overrides of each setting in turn."""
    return [*SETTINGS[request.param], "model.hidden=[16]"]


@pytest.fixture
def small_trainer_with_batch_norm(tmp_path: Path) -> Callable[..., Trainer]:
    """A function: overrides → a trainer of a small run of a narrow slim ResNet-18."""

    def make(*overrides: str, checkpoint: str = "unused") -> Trainer:
        setup = set_up(composed(*WITH_BATCH_NORM, *overrides))
        file = tmp_path / checkpoint / "state.pt"
        return Trainer(setup.config, setup.scenario, setup.learner, setup.inputs, setup.evaluator, file)

    return make


@pytest.fixture
def batch_of() -> Callable[..., Batch]:
    """A function: a batch of training samples, without augmentation."""

    def make(
        setup: Setup, new: Tensor, replayed: Tensor | None = None, reference: Tensor | None = None, **further: Any
    ) -> Batch:
        split = setup.scenario.train
        ids = new if replayed is None else torch.cat([new, replayed])
        looked_at = None if reference is None else setup.inputs.plain(split, reference)
        return Batch(setup.inputs.plain(split, ids), ids, len(new), looked_at, **further)

    return make


@pytest.fixture
def learn_tasks() -> Callable[[Trainer, int], None]:
    """A function: train on the stream's first tasks only."""

    def learn(trainer: Trainer, n_tasks: int) -> None:
        for _ in range(n_tasks):
            trainer.fit_task()

    return learn


@pytest.fixture
def record_terms(monkeypatch: pytest.MonkeyPatch) -> Callable[[Trainer], list[tuple[int, int, dict[str, Tensor]]]]:
    """A function: trainer → a list that fills, as it trains, with (task, step, gradient of every loss term)."""

    def record(trainer: Trainer) -> list[tuple[int, int, dict[str, Tensor]]]:
        rows: list[tuple[int, int, dict[str, Tensor]]] = []
        loss = trainer.learner.loss_and_outputs

        def spy(batch: Batch) -> tuple[dict[str, Tensor], Any]:
            terms, outputs = loss(batch)
            gradients = {}
            for name, term in terms.items():
                parts = torch.autograd.grad(term, trainer.parameters, retain_graph=True, materialize_grads=True)
                gradients[name] = torch.cat([part.reshape(-1) for part in parts])
            rows.append((trainer.task, trainer.step, gradients))
            return terms, outputs

        monkeypatch.setattr(trainer.learner, "loss_and_outputs", spy)
        return rows

    return record
