"""``data.cache_prefix``: the same run, without the frozen stages being computed again."""

import numpy as np
import pytest
import torch

from clbench.errors import ConfigError

VIT = [
    "scenario=split_digits",
    "model=small_vit",
    "model.patch_size=4",
    "model.width=16",
    "model.depth=2",
    "model.heads=2",
]
MLP = ["scenario=split_digits", "model.hidden=[16,12,8]"]


@pytest.mark.parametrize(
    "options",
    [
        [*MLP, "model.frozen=1", "strategy=finetune"],
        [*MLP, "model.frozen=3", "strategy=er", "strategy.memory_size=20"],
        [*MLP, "model.frozen=2", "strategy=icarl", "strategy.memory_size=20"],
        [*VIT, "model.frozen=2", "strategy=ewc"],
        [*VIT, "model.frozen=2", "strategy=l2", "strategy.where=attention"],
        [*MLP, "model.frozen=3", "strategy=slda"],
        ["scenario=split_digits", "model=slim_resnet18", "model.width=2", "model.frozen=2", "strategy=finetune"],
    ],
    ids=lambda options: f"{options[-2] if 'memory' in options[-1] else options[-1]}",
)
def test_the_run_is_the_same(options, small_trainer):
    cached = small_trainer(*options, "data.cache_prefix=true", checkpoint="cached")
    plain = small_trainer(*options, checkpoint="plain")
    for trainer in (cached, plain):
        trainer.fit_task()
        trainer.fit_task()
    for name in ("task_eval", "iteration", "correct"):
        assert cached.curve[name].tolist() == plain.curve[name].tolist()
    np.testing.assert_allclose(cached.curve.loss, plain.curve.loss, rtol=1e-4)
    assert cached.scenario.hash == plain.scenario.hash
    torch.testing.assert_close(cached.learner.model.head.weight, plain.learner.model.head.weight, rtol=1e-4, atol=1e-6)


def test_frozen_stages_are_not_run_while_training(small_trainer, monkeypatch):
    trainer = small_trainer(*MLP, "model.frozen=2", "strategy=finetune", "data.cache_prefix=true")
    assert trainer.scenario.reads == "features"
    assert trainer.scenario.input_shape == (12,)
    names = [name for name, _ in trainer.learner.model.named_parameters()]
    assert len(names) == 4  # of the stage that is left, and the head
    assert len(trainer.parameters) == 4


def test_attention_alone_is_trained_in_the_stages_that_are_left(small_trainer):
    asked = [*VIT, "model.frozen=2", "strategy=ewc", "strategy.where=attention"]  # the embedding and the first block
    cached = small_trainer(*asked, "data.cache_prefix=true", checkpoint="cached").learner.model
    plain = small_trainer(*asked, checkpoint="plain").learner.model
    names = {name.rpartition("attn.")[2] for name in cached.trained()}
    assert names == {"qkv.weight", "qkv.bias", "head.weight", "head.bias"}
    assert [p.shape for p in cached.trained().values()] == [p.shape for p in plain.trained().values()]


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ([*MLP], "set model.frozen above 0"),
        ([*MLP, "model.frozen=1", "scenario.augment.flip=true"], "leave out one"),
        (["scenario=permuted_mnist", "scenario.source=digits", "scenario.frozen=null", "scenario.n_tasks=3", "model=mlp",
          "model.frozen=1"], "permute its pixels"),
    ],
)  # fmt: skip
def test_what_changes_inputs_is_refused(options, part, small_setup):
    with pytest.raises(ConfigError) as error:
        small_setup(*options, "strategy=finetune", "data.cache_prefix=true")
    assert part in str(error.value)
