"""Every class of a stream has training and test samples, or a sentence says which has none."""

import numpy as np
import pytest
import torch

from clbench.config import DataConfig
from clbench.data.images import ImageSet, SourceData
from clbench.errors import ConfigError
from clbench.registry import SOURCES
from clbench.scenarios.build import build
from clbench.scenarios.class_incremental import ClassIncrementalConfig
from clbench.scenarios.domain_incremental import RotationConfig


@pytest.fixture
def source(monkeypatch):
    """A function: how many training and test images each class has → the name of a source of random images."""

    def make(train: list[int], test: list[int]) -> str:
        rng = np.random.default_rng(0)
        sets = [
            ImageSet(rng.integers(0, 256, (sum(counts), 1, 4, 4), np.uint8), np.repeat(np.arange(len(counts)), counts))
            for counts in (train, test)
        ]
        data = SourceData(*sets, [f"class {c}" for c in range(len(train))], (0.5,), (0.5,))
        monkeypatch.setitem(SOURCES._entries, "made", lambda config: data)
        return "made"

    return make


def stream(source: str, **options):
    config = ClassIncrementalConfig(name="s", kind="class_incremental", source=source, increment=2, **options)
    return build(config, DataConfig(), 0, torch.device("cpu"))


def test_a_class_that_is_in_one_split_alone_is_refused(source):
    with pytest.raises(ConfigError, match="the class class 3 of scenario s has no test samples"):
        stream(source([4, 4, 4, 4], [2, 2, 2, 0]))
    with pytest.raises(ConfigError, match=r"the classes class 0, class 2 of scenario s have no training samples$"):
        stream(source([0, 4, 0, 4], [2, 2, 2, 2]))
    assert stream(source([4, 4, 0, 0], [2, 2, 0, 0]), classes=[0, 1]).n_tasks == 1  # classes that are not used


def test_a_validation_split_that_takes_all_of_a_class_is_refused(source):
    with pytest.raises(
        ConfigError, match=r"class 1 .* no training samples, of which scenario\.validation=0\.9 holds some"
    ):
        stream(source([20, 1, 20, 20], [2, 2, 2, 2]), validation=0.9)


def test_a_class_that_validation_does_not_see_is_noted(source):
    scenario = stream(source([20, 4, 20, 20], [2, 2, 2, 2]), validation=0.1)
    assert scenario.note == (
        "no validation samples of the class class 1: scenario.validation=0.1 of their training images is less than one"
    )
    assert stream(source([20, 20, 20, 20], [2, 2, 2, 2]), validation=0.1).note == ""


def test_images_that_the_scenario_draws_may_leave_a_class_out(source):
    config = RotationConfig(name="s", kind="rotation", source=source([30, 1], [2, 2]), angles=[0.0], images=3)
    assert build(config, DataConfig(), 1, torch.device("cpu")).n_tasks == 1
