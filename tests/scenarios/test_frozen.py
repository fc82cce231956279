"""Frozen definitions: a run matches one, is another stream on purpose, or is refused."""

import dataclasses
import hashlib
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from clbench.compose import compose
from clbench.conf_files import catalogue_dir
from clbench.config import DataConfig
from clbench.data.images import ImageSet
from clbench.errors import ConfigError, DataError
from clbench.options import to_dataclass
from clbench.registry import SOURCES
from clbench.scenarios import freeze as freezing
from clbench.scenarios import frozen as freezer
from clbench.scenarios.frozen import definitions, first_difference, load_definition, stream_content, stream_options


@pytest.fixture
def digits():
    return SOURCES["digits"](DataConfig())


@pytest.fixture
def replace_digits(monkeypatch):
    """A function that makes the source ``digits`` deliver something else."""

    def replace(data):
        monkeypatch.setitem(SOURCES._entries, "digits", lambda _config: data)

    return replace


def with_train(data, rows, labels=None, pixels=None):
    train = data.train
    pixels, labels = train.pixels if pixels is None else pixels, train.labels if labels is None else labels
    return dataclasses.replace(data, train=ImageSet(pixels[rows], labels[rows]))


# ---- what a run does ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "override", ["seed=3", "scenario.validation=0.2", "scenario.logit_scope=all", "trainer.lr=0.1"]
)
def test_a_run_says_which_definition_it_matched(small_setup, override):
    scenario = small_setup(override).scenario
    assert scenario.frozen == "split_digits/v1"
    assert scenario.note == ""


def test_an_order_that_spells_out_the_natural_one_is_the_same_stream(small_setup):
    assert small_setup("scenario.class_order=[0,1,2,3,4,5,6,7,8,9]").scenario.frozen == "split_digits/v1"


@pytest.mark.parametrize(
    ("override", "note"),
    [
        ("scenario.increment=5", "not the frozen stream split_digits/v1: increment=5"),
        ("scenario.class_order=shuffled", "not the frozen stream split_digits/v1: class_order=shuffled"),
        ("scenario.classes=[0,1,2,3]", "not the frozen stream split_digits/v1: classes=[0, 1, 2, 3]"),
        ("scenario.image_size=6", "not the frozen stream split_digits/v1: image_size=6"),
    ],
)
def test_another_stream_on_purpose_runs_and_is_noted(small_setup, override, note):
    scenario = small_setup(override).scenario
    assert scenario.frozen is None
    assert scenario.note == note


def test_a_repacked_copy_of_the_data_matches(small_setup, digits, replace_digits):
    replace_digits(with_train(digits, np.random.default_rng(0).permutation(len(digits.train))))
    assert small_setup().scenario.frozen == "split_digits/v1"


def test_one_changed_pixel_is_refused_by_task_and_hash(small_setup, digits, replace_digits):
    pixels = digits.train.pixels.copy()
    row = int(np.flatnonzero(digits.train.labels == 5)[0])
    pixels[row, 0, 0, 0] ^= 1
    replace_digits(with_train(digits, slice(None), pixels=pixels))
    expected = load_definition("split_digits/v1")["tasks"][2]
    with pytest.raises(DataError) as error:
        small_setup()
    message = str(error.value)
    assert message.startswith(
        "the data of scenario split_digits are not those that split_digits/v1 was defined on: task 3 (4, 5)"
    )
    assert f"expected {expected['n_train']} with hash {expected['train_hash']}" in message
    assert "scenario.frozen=null" in message
    assert "\n" not in message


def test_damaged_data_are_refused_while_tuning_too(small_setup, digits, replace_digits):
    replace_digits(with_train(digits, slice(1, None)))
    with pytest.raises(DataError, match="samples with hash"):
        small_setup("scenario.validation=0.2", "evaluator.split=validation")


def test_without_a_definition_the_same_data_run(small_setup, digits, replace_digits):
    replace_digits(with_train(digits, slice(1, None)))
    scenario = small_setup("scenario.frozen=null").scenario
    assert scenario.frozen is None


def test_an_unknown_definition_is_answered_with_the_choices(small_setup):
    with pytest.raises(
        ConfigError, match="unknown frozen definition 'split_digits/v9': did you mean 'split_digits/v1'"
    ):
        small_setup("scenario.frozen=split_digits/v9")


def test_the_record_names_the_definition(tmp_path):
    from clbench.run import run

    overrides = ["trainer.epochs=null", "trainer.max_steps_per_task=1", "evaluator.subset=10", "record.figure=false"]
    for folder, extra, frozen in (("a", [], "split_digits/v1"), ("b", ["scenario.increment=5"], None)):
        run(compose([*overrides, "strategy=finetune", "progress=false", "device=cpu", *extra]), tmp_path / folder)
        record = json.loads((tmp_path / folder / "scenario.json").read_text())
        assert record["frozen"] == frozen
        assert bool(record["note"]) == (frozen is None)


# ---- what is compared -----------------------------------------------------------------------------------------------


def test_held_out_samples_count_as_training_samples(make_source, build_stream):
    whole = stream_content(build_stream(make_source(), "class_incremental", increment=2))
    split = build_stream(make_source(), "class_incremental", increment=2, validation=0.3)
    assert split.content != whole
    assert stream_content(split) == whole


def test_every_part_of_a_definition_is_compared(make_source, build_stream):
    content = stream_content(build_stream(make_source(), "rotation", angles=[0.0, 30.0]))
    assert first_difference(content, content) is None
    changes = {
        "it has 2 tasks, expected 1": {"tasks": content["tasks"][:1]},
        "its setting is domain": {"setting": "task"},
        "its recipe is": {"recipe": {}},
        "task 1 .* has the classes": {"tasks": [{**content["tasks"][0], "classes": ["x"]}, content["tasks"][1]]},
        "task 2 .* training samples": {"tasks": [content["tasks"][0], {**content["tasks"][1], "train_hash": "0" * 32}]},
        "task 2 .* test samples": {"tasks": [content["tasks"][0], {**content["tasks"][1], "n_test": 1}]},
    }
    for message, change in changes.items():
        assert re.search(message, first_difference(content, {**content, **change}))


# ---- the catalogue --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", definitions())
def test_a_definition_is_whole(name):
    definition = load_definition(name)
    scenario, _ = name.split("/")
    assert definition["name"] == name
    content = {key: definition[key] for key in ("setting", "tasks", "recipe")}
    text = json.dumps(content, sort_keys=True)
    assert definition["hash"] == hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
    config = to_dataclass(compose([f"scenario={scenario}", "model=mlp"])).scenario
    if config.frozen == name:
        assert definition["options"] == stream_options(config)


@pytest.mark.slow
@pytest.mark.parametrize("name", definitions())
def test_real_data_match_their_definition(real_data, name):
    from clbench.set_up import set_up

    scenario = name.split("/")[0]
    small = ["model=mlp"]
    if compose([f"scenario={scenario}"]).data.tokenizer is not None:  # texts, whose hashes do not depend on it
        small = ["model=text_encoder", "model.frozen=0", "data.tokenizer=null", "data.cache_prefix=false"]
    setup = set_up(
        compose([f"scenario={scenario}", f"data.root={real_data}", "device=cpu", "evaluator.subset=1", *small])
    )
    assert setup.scenario.frozen == name


def test_the_table_is_up_to_date():
    assert freezing.catalogue_table() in (catalogue_dir() / "README.md").read_text(encoding="utf-8")


@pytest.fixture
def own_catalogue(tmp_path, monkeypatch) -> Path:
    """A copy of the catalogue that may be written to."""
    folder = tmp_path / "scenarios"
    shutil.copytree(catalogue_dir(), folder)
    monkeypatch.setattr(freezer, "catalogue_dir", lambda: folder)
    monkeypatch.setattr(freezing, "catalogue_dir", lambda: folder)
    return folder


def test_freezing_again_writes_the_same_bytes(own_catalogue):
    for path in ("split_digits/v1.json", "README.md"):
        (own_catalogue / path).rename(own_catalogue / f"{path}.before")
    shutil.copy(own_catalogue / "README.md.before", own_catalogue / "README.md")
    freezing.main(["split_digits"])
    for path in ("split_digits/v1.json", "README.md"):
        assert (own_catalogue / path).read_bytes() == (own_catalogue / f"{path}.before").read_bytes()


def test_a_published_version_is_not_overwritten(own_catalogue, digits, replace_digits):
    replace_digits(with_train(digits, slice(1, None)))
    before = (own_catalogue / "split_digits/v1.json").read_bytes()
    with pytest.raises(
        ConfigError, match="split_digits/v1 exists and is another stream: freeze this one under a new version"
    ):
        freezing.freeze("split_digits")
    assert (own_catalogue / "split_digits/v1.json").read_bytes() == before


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("scenario.class_order=shuffled", "depends on the run's seed"),
        ("scenario.frozen=null", "names no version to freeze"),
    ],
)
def test_what_cannot_be_frozen_is_refused(own_catalogue, monkeypatch, override, message):
    monkeypatch.setattr(freezing, "compose", lambda overrides: compose([*overrides, override]))
    with pytest.raises(ConfigError, match=message):
        freezing.freeze("split_digits")


def test_a_source_without_citation_cannot_be_frozen(own_catalogue, monkeypatch):
    monkeypatch.delitem(freezing.CITATIONS, "digits")
    with pytest.raises(ConfigError, match=r"no citation for source digits\. Valid choices: banking77, cifar100, "):
        freezing.freeze("split_digits")
