"""Shared fixtures: real data where there are any, and small runs built as a user's run is built."""

import copy
import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig

from clbench.config import compose
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


GROUPS = (
    "strategy",
    "scenario",
    "model",
    "evaluator",
    "experiment",
    "protocol",
    "debug",
    "training",
    "local",
    "search_space",
)
"""What chooses a file of the Hydra tree."""


@pytest.fixture(scope="session", autouse=True)
def no_waiting_for_the_disk() -> Iterator[None]:
    """Files reach the disk when the machine likes: no test cuts its power, and runs and studies write thousands of small ones."""
    with patch("os.fsync"):
        yield


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with real data sets, or skip."""
    root = os.environ.get("CLBENCH_DATA")
    if not root or not Path(root).is_dir():
        pytest.skip("needs real data sets: set CLBENCH_DATA to their folder")
    return Path(root)


@pytest.fixture
def small_setup() -> Callable[..., Setup]:
    """A function: overrides → everything a small run on digits needs, built but not trained."""

    def make(*overrides: str) -> Setup:
        is_mlp = all(override == "model=mlp" for override in overrides if override.startswith("model="))
        small = [option for option in SMALL if is_mlp or not option.startswith("model.")]
        return set_up(copy.deepcopy(composed(*small, *overrides)))

    return make


@functools.cache
def composed(*overrides: str) -> DictConfig:
    """The configuration of overrides, as :func:`clbench.config.compose` makes it. It is made once: nobody may change it.

    Composing takes longer than a small run, so that files are composed once for every choice of them; setting single values
    is what Hydra does last.
    """
    groups = [override for override in overrides if override.partition("=")[0] in GROUPS]
    values = [override for override in overrides if override not in groups]
    if not values:
        return compose(groups)
    config = composed(*groups).copy()
    ConfigLoaderImpl._apply_overrides_to_config(OverridesParser.create().parse_overrides(values), config)
    return config


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
