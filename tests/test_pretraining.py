"""``python -m clbench pretrain`` and what may start from its weights."""

import hashlib
from unittest.mock import Mock

import pytest
import torch
from safetensors import safe_open

from clbench.compose import compose
from clbench.errors import ConfigError
from clbench.models.weights import SEEN_IMAGES, read_weights
from clbench.pretraining import class_numbers, pretrain
from clbench.run import Run
from clbench.set_up import set_up

SMALL = ["model.width=16", "model.depth=2", "model.heads=2"]
STREAM = ["scenario=split_digits", "scenario.frozen=null", "strategy=finetune", "model=small_vit", *SMALL, "device=cpu"]
FEW_STEPS = [*SMALL, "trainer.epochs=null", "trainer.max_steps_per_task=3", "evaluator.every=0", "evaluator.subset=20",
             "progress=false", "record.figure=false", "device=cpu", "scenario.augment.saturation=0"]  # fmt: skip


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Weights of a few steps on the digits 0 to 4."""
    folder = tmp_path_factory.mktemp("pretrained")
    return pretrain(["data=digits", "classes=0-4", f"folder={folder / 'run'}", *FEW_STEPS])


def test_a_stream_of_other_classes_starts_from_the_weights(weights):
    stored = read_weights(str(weights))
    setup = set_up(
        compose([*STREAM, "scenario.classes=[5,6,7,8,9]", "scenario.increment=1", f"model.checkpoint={weights}"])
    )
    own = setup.learner.model.backbone.network.state_dict()
    assert own.keys() == stored.keys() - {SEEN_IMAGES}
    assert all(torch.equal(own[name], stored[name]) for name in own)
    assert setup.pretrained == {
        "file": "backbone.safetensors",
        "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
    }


def test_a_stream_with_classes_that_were_seen_is_refused(weights):
    """By their images: the stream calls class 4 another number."""
    with pytest.raises(ConfigError, match=r"was pretrained on images of 1 of the stream's 2 classes \(4\)"):
        set_up(compose([*STREAM, "scenario.classes=[4,9]", "scenario.increment=1", f"model.checkpoint={weights}"]))


def test_the_file_says_what_it_holds(weights):
    with safe_open(weights, "pt") as file:
        said = file.metadata()
    assert (said["source"], said["classes"]) == ("digits", "0, 1, 2, 3, 4")
    assert 0 <= float(said["accuracy"]) <= 1
    n_seen = len(read_weights(str(weights))[SEEN_IMAGES])
    assert n_seen == len(
        set_up(compose([*STREAM, "scenario.classes=[0,1,2,3,4]", "scenario.increment=1"])).scenario.train
    )


def test_class_numbers():
    assert class_numbers("0-3,7") == [0, 1, 2, 3, 7]
    assert class_numbers("[5,2]") == [2, 5]


@pytest.mark.parametrize("text", ["a", "3-", "1,1", "5-2", ""])
def test_class_numbers_that_mean_nothing(text):
    with pytest.raises(ConfigError, match="classes="):
        class_numbers(text)


@pytest.mark.parametrize("arguments", [["classes=0-4"], ["data=digits"], []])
def test_usage(arguments):
    with pytest.raises(ConfigError, match="usage: python -m clbench pretrain data="):
        pretrain(arguments)


def test_a_misspelt_option():
    with pytest.raises(ConfigError, match="did you mean 'epochs'"):
        pretrain(["data=digits", "classes=0-4", "trainer.epoch=3"])


def test_a_second_run_says_where_the_weights_are(weights):
    with pytest.raises(ConfigError, match=r"backbone\.safetensors has been made already: .* or give another folder="):
        pretrain(["data=digits", "classes=0-4", f"folder={weights.parent}", *FEW_STEPS])


def test_stopped_at_its_very_end_it_can_be_repeated(tmp_path, monkeypatch, weights):
    command = ["data=digits", "classes=0-4", f"folder={tmp_path}", *FEW_STEPS]
    with monkeypatch.context() as patched:
        patched.setattr(Run, "finish", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            pretrain(list(command))
    again, once = (read_weights(str(file)) for file in (pretrain(list(command)), weights))
    assert all(torch.equal(again[name], once[name]) for name in once)
