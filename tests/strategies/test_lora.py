"""LoRA as the main strategy: what it trains, and what composes with it."""

import pytest
import torch

from clbench.errors import ConfigError
from clbench.models.lora import adapters
from clbench.testing.small_runs import small_network

VIT = ["strategy.rank=2", "strategy.targets=[q,v]", *small_network("lora"), "trainer.optimizer=adam", "trainer.lr=0.01"]


def test_adapters_and_head_are_trained_and_nothing_else(small_trainer, learn_tasks):
    trainer = small_trainer("strategy=lora", *VIT)
    names = {f"backbone.{name}.{matrix}" for name, _ in adapters(trainer.learner.model.backbone) for matrix in "AB"}
    assert len(names) == 2 * 2 * 2  # matrices, targets, blocks
    assert set(trainer.learner.trainable()) == names | {"head.weight", "head.bias"}
    before = {name: tensor.clone() for name, tensor in trainer.learner.model.named_parameters()}
    learn_tasks(trainer, 2)
    moved = {name for name, tensor in trainer.learner.model.named_parameters() if not torch.equal(tensor, before[name])}
    assert moved == set(trainer.learner.trainable())
    assert {(row.quantity, row.value) for row in trainer.method.itertuples()} == {
        ("adapter_parameters", 2 * 2 * 2 * (8 + 8))  # blocks, targets, rank
    }


@pytest.mark.parametrize(
    ("plus", "options", "losses"),
    [
        ("er", ["+plus.er.memory_size=40"], {"new", "replay"}),
        ("joint", [], {"new", "earlier"}),
        ("ewc", [], {"new", "ewc"}),
        ("lwf", [], {"new", "lwf"}),
        ("spectral", [], {"new", "spectral"}),
    ],
)
def test_another_strategy_trains_the_adapter_in_place_of_the_network(plus, options, losses, small_trainer, learn_tasks):
    trainer = small_trainer("strategy=lora", f"strategy.plus=[{plus}]", *VIT, *options)
    frozen = {name: p.clone() for name, p in trainer.learner.model.named_parameters() if not p.requires_grad}
    learn_tasks(trainer, 2)
    assert set(trainer.training[trainer.training.task_learning == 1].term) == losses
    assert all(torch.equal(trainer.learner.model.get_parameter(name), p) for name, p in frozen.items())
    if plus == "ewc":  # one importance for every trained weight, none for the network's own
        assert trainer.learner.strategies[1].flat_parameters().numel() == sum(p.numel() for p in trainer.parameters)


def test_ridge_regression_on_features_that_the_adapter_learned_in_the_first_task(small_trainer, learn_tasks):
    trainer = small_trainer("strategy=lora", "strategy.plus=[ranpac]", *VIT, "+plus.ranpac.extractor=first_task",
                            "+plus.ranpac.projection=30")  # fmt: skip
    drawn = [adapter.A.clone() for _, adapter in adapters(trainer.learner.model.backbone)]
    learn_tasks(trainer, 1)
    learned = [adapter.A.clone() for _, adapter in adapters(trainer.learner.model.backbone)]
    assert not any(torch.equal(before, after) for before, after in zip(drawn, learned, strict=True))
    learn_tasks(trainer, 1)
    now = [adapter.A for _, adapter in adapters(trainer.learner.model.backbone)]
    assert all(torch.equal(before, after) for before, after in zip(learned, now, strict=True))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (
            ["strategy=er", "strategy.plus=[lora]", *small_network("lora")],
            r"make it the main strategy, strategy=lora strategy\.plus=\[er\]",
        ),
        (["strategy=lora", "model.hidden=[16]"], "lora acts within a vision transformer, which this network is not"),
        (
            ["strategy=lora", *VIT, "model.frozen=3"],
            r"model\.frozen leaves no block of the transformer to put adapters into: set it lower",
        ),
        (
            ["strategy=lora", *VIT, "model.trained=attention"],
            r"model\.trained=attention has no meaning with strategy=lora",
        ),
        (["strategy=lora", *VIT, "strategy.targets=[q,head]"], r"strategy\.targets=\['q', 'head'\]"),
        (["strategy=lora", *VIT, "strategy.rank=0"], r"strategy\.rank=0"),
    ],
)
def test_refused(options, reason, small_setup):
    with pytest.raises(ConfigError, match=reason):
        small_setup(*options)
