"""Shared fixtures: real data where there are any, and small runs built as a user's run is built."""

import gc
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from composed import composed
from hydra.core.config_store import ConfigStore

from clbench import config
from clbench.__main__ import status_of
from clbench.run import Setup, set_up
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
    monkeypatch.setattr(config, "_added_dirs", [])
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr("sys.argv", ["clbench"])

    def call(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        status = status_of(list(words))
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return call
