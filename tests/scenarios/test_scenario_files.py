"""Every file in conf/scenario: it describes itself, composes, and with real data at hand builds the stream it names."""

import json
import re

import pytest
import torch

from clbench.conf_files import conf_dir
from clbench.data.images import SourceData
from clbench.options import check_fields, to_dataclass
from clbench.registry import SOURCES
from clbench.scenarios.build import build
from clbench.testing.small_runs import composed

FILES = sorted((conf_dir() / "scenario").glob("*.yaml"))


def configured(name, *overrides):
    return to_dataclass(composed(f"scenario={name}", *overrides))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_scenario_file_composes_and_says_what_it_is(file):
    first, second = file.read_text(encoding="utf-8").splitlines()[:2]
    assert first == "# @package _global_"
    assert re.match(r"# \S.{20,118}\.$", second), "the line that `python -m clbench list` prints"
    config = configured(file.stem)
    check_fields(config, "")
    assert config.scenario.name == file.stem
    assert config.trainer.epochs is None or config.trainer.max_steps_per_task is None
    if config.scenario.frozen is not None:
        assert config.scenario.frozen.startswith(f"{file.stem}/v")


@pytest.mark.parametrize("angles", ["[0,10,20]", "[0,40,80]", "[0,80,160,240]"])
def test_the_angles_of_rotated_mnist_can_be_swept(angles):
    assert configured("rotated_mnist", f"scenario.angles={angles}").scenario.angles == json.loads(angles)


EXACT = {
    # name: (setting, tasks, classes, training images per task, test images per task), facts of the published streams
    "split_mnist": ("class", 5, 10, [12665, 12089, 11263, 12183, 11800], [2115, 2042, 1874, 1986, 1983]),
    "split_fashion": ("class", 5, 10, [12000] * 5, [2000] * 5),
    "rotated_mnist": ("domain", 3, 10, [60000] * 3, [10000] * 3),
    "permuted_mnist": ("domain", 10, 10, [60000] * 10, [10000] * 10),
    "cifar100": ("class", 10, 100, [5000] * 10, [1000] * 10),
    "cifar100_pretrained": ("class", 10, 100, [5000] * 10, [1000] * 10),
    "split_mnist_task": ("task", 5, 10, [12665, 12089, 11263, 12183, 11800], [2115, 2042, 1874, 1986, 1983]),
    "cifar100_task": ("task", 10, 100, [5000] * 10, [1000] * 10),
    "cifar100_20x5": ("class", 20, 100, [2500] * 20, [500] * 20),
    "cifar100_b50_10x5": ("class", 11, 100, [25000] + [2500] * 10, [5000] + [500] * 10),
    "cifar100_superclass": ("domain", 5, 20, [10000] * 5, [2000] * 5),
    "random_label_mnist": ("domain", 50, 10, [1200] * 50, [1200] * 50),
    "permuted_mnist_short": ("domain", 500, 10, [10000] * 500, [10000] * 500),
    "binary_cifar100": ("domain", 200, 2, [1000] * 200, [200] * 200),
}


@pytest.fixture(scope="module")
def read_once():
    """A function: name of a source → the function that reads it; several streams are made of one source."""
    read: dict[str, SourceData] = {}

    def reader(name):
        load = SOURCES[name]

        def load_once(config):
            if name not in read:
                read.clear()  # the streams of a source follow each other
                read[name] = load(config)
            return read[name]

        return load_once

    return reader


@pytest.mark.parametrize("name", sorted(EXACT, key=lambda name: configured(name).scenario.source))
def test_real_streams_have_the_published_sizes(real_data, name, read_once, monkeypatch):
    config = configured(name, f"data.root={real_data}", "model=mlp")
    monkeypatch.setitem(SOURCES._entries, config.scenario.source, read_once(config.scenario.source))
    scenario = build(config.scenario, config.data, 0, torch.device("cpu"))
    sizes = [[stop - start for start, stop in split.bounds] for split in (scenario.train, scenario.test)]
    assert (scenario.setting, scenario.n_tasks, scenario.n_classes, *sizes) == EXACT[name]
