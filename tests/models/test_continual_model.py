"""One fixed head that behaves as the scenario says: growing, one per task, or shared."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from clbench.errors import ConfigError
from clbench.models.continual import ContinualModel
from clbench.models.timm_backbone import TimmBackbone, TimmConfig

TASKS = [[0, 1], [2, 3, 4], [5]]


class Identity(nn.Module):
    n_features = 3

    def forward(self, x):
        return x


def model_in(setting: str, scope: str = "seen", task: int = 1) -> ContinualModel:
    torch.manual_seed(0)
    model = ContinualModel(Identity(), TASKS, setting, scope)
    for index in range(task + 1):
        model.begin_task(index, torch.Generator().manual_seed(index))
    return model


@pytest.mark.parametrize(
    ("setting", "scope", "visible_in_training", "visible_in_prediction"),
    [
        ("class", "all", [range(6), range(6)], [range(6), range(6)]),
        ("class", "seen", [range(5), range(5)], [range(5), range(5)]),
        ("class", "current", [range(2), range(2, 5)], [range(5), range(5)]),
        ("task", "seen", [range(2), range(2, 5)], [range(2), range(2, 5)]),
        ("domain", "seen", [range(6), range(6)], [range(6), range(6)]),
    ],
)
def test_what_a_sample_sees_in_the_second_task(setting, scope, visible_in_training, visible_in_prediction):
    model = model_in(setting, scope)
    logits, task = torch.randn(2, 6), torch.tensor([0, 1])
    for predicting, visible in ((False, visible_in_training), (True, visible_in_prediction)):
        restricted = model.answer.restrict(logits, task, predicting)
        for row, classes in enumerate(visible):
            expected = torch.full((6,), -math.inf)
            expected[list(classes)] = logits[row, list(classes)]
            assert torch.equal(restricted[row], expected)


@pytest.mark.parametrize(("setting", "scope"), [("class", "all"), ("class", "seen"), ("domain", "seen")])
def test_prediction_needs_no_task_identity(setting, scope):
    model, logits = model_in(setting, scope), torch.randn(4, 6)
    assert torch.equal(
        model.answer.restrict(logits, None, predicting=True), model.answer.restrict(logits, torch.zeros(4).long(), True)
    )


@pytest.mark.parametrize(("setting", "expected"), [("class", [1, 1, 0, 0, 0, 0]), ("domain", [1] * 6)])
def test_outputs_learned_before(setting, expected):
    assert model_in(setting).answer.learned_before().tolist() == [bool(e) for e in expected]


def test_a_task_draws_its_own_head_weights_like_a_new_linear_layer():
    model = model_in("class", task=0)
    before = model.head.weight.detach().clone()
    model.begin_task(1, torch.Generator().manual_seed(7))
    drawn = model.head.weight[2:5]
    assert torch.equal(model.head.weight[[0, 1, 5]], before[[0, 1, 5]])
    assert not (drawn == before[2:5]).any()
    assert drawn.abs().max() <= 1 / math.sqrt(3)
    again = model_in("class", task=0)
    again.begin_task(1, torch.Generator().manual_seed(7))
    assert torch.equal(again.head.weight[2:5], drawn)


@pytest.mark.parametrize(("setting", "scope"), [("domain", "seen"), ("class", "all")])
def test_a_head_that_is_there_from_the_start_is_never_redrawn(setting, scope):
    model = model_in(setting, scope, task=0)
    before = model.head.weight.detach().clone()
    model.begin_task(1, torch.Generator())
    assert torch.equal(model.head.weight, before)


def test_heads_of_other_tasks_get_no_gradient():
    model = model_in("task")
    x, y, task = torch.randn(8, 3), torch.randint(2, 5, (8,)), torch.ones(8, dtype=torch.int64)
    F.cross_entropy(model.answer.restrict(model(x), task), y).backward()
    for parameter in (model.head.weight, model.head.bias):
        assert (parameter.grad[[0, 1, 5]] == 0).all()
        assert (parameter.grad[2:5] != 0).any()


class GrowingNetwork(nn.Module):
    """The textbook way: at every task the last layer is replaced by a larger one that keeps the old rows."""

    def __init__(self, backbone: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def grow(self, weight: torch.Tensor, bias: torch.Tensor) -> None:
        larger = nn.Linear(self.head.in_features, self.head.out_features + len(bias), dtype=weight.dtype)
        with torch.no_grad():
            larger.weight.copy_(torch.cat([self.head.weight, weight]))
            larger.bias.copy_(torch.cat([self.head.bias, bias]))
        self.head = larger

    def forward(self, x):
        return self.head(self.backbone(x))


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_the_masked_head_trains_as_a_growing_one(optimizer, small_setup):
    """With momentum and weight decay, over three tasks, in double precision: equal to rounding."""
    setup = small_setup("strategy=finetune", "model.hidden=[8]")
    learner, split = setup.learner, setup.scenario.train
    model = learner.model.double()
    head = nn.Linear(8, 2, dtype=torch.float64)
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(64, 8, dtype=torch.float64), nn.ReLU())
    growing = GrowingNetwork(backbone, head)
    backbone[1].load_state_dict(model.backbone.layers[1].state_dict())
    with torch.no_grad():
        head.weight.copy_(model.head.weight[:2])
        head.bias.copy_(model.head.bias[:2])

    def make_optimizer(parameters):
        if optimizer == "adam":
            return torch.optim.Adam(parameters, lr=0.01, weight_decay=0.1)
        return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.01)

    for task in range(3):
        model.begin_task(task, torch.Generator().manual_seed(task))
        if task:
            new = slice(2 * task, 2 * task + 2)
            growing.grow(model.head.weight[new].detach(), model.head.bias[new].detach())
        optimizers = make_optimizer(model.parameters()), make_optimizer(growing.parameters())
        for ids in split.ids(task)[:60].split(12):
            samples = setup.inputs.plain(split, ids)
            x = samples.x.double()
            losses = (
                F.cross_entropy(model.answer.restrict(model(x), samples.task), samples.y),
                F.cross_entropy(growing(x), samples.y),
            )
            for one, loss in zip(optimizers, losses, strict=True):
                one.zero_grad()
                loss.backward()
                one.step()
        seen = 2 * task + 2
        torch.testing.assert_close(model.head.weight[:seen], growing.head.weight, atol=1e-12, rtol=1e-9)
        torch.testing.assert_close(model.head.bias[:seen], growing.head.bias, atol=1e-12, rtol=1e-9)
        torch.testing.assert_close(model.backbone.layers[1].weight, growing.backbone[1].weight, atol=1e-12, rtol=1e-9)


def test_task_incremental_training_leaves_other_heads_untouched(small_trainer):
    trainer = small_trainer("strategy=finetune", "scenario=split_digits_task", "trainer.lr=0.1")
    trainer.task = 0
    trainer.fit_task()
    model = trainer.learner.model
    before = model.head.weight.detach().clone()
    trainer.task = 1
    trainer.fit_task()
    assert torch.equal(model.head.weight[:2], before[:2])
    assert torch.equal(model.head.weight[4:], before[4:])
    assert not torch.equal(model.head.weight[2:4], before[2:4])


@pytest.mark.parametrize(("frozen", "n_blocks"), [(0, 12), (3, 10)])
def test_training_attention_only(frozen, n_blocks):
    """Of a ViT of twelve blocks 12 × 2 tensors beside the head, less those of frozen stages (the embedding and two blocks)."""
    config = TimmConfig("timm", "vit_tiny_patch16_224", pretrained=False, image_size=32)
    backbone = TimmBackbone(config, (3, 32, 32))
    model = ContinualModel(backbone, TASKS, "class", frozen=frozen, trained="attention")
    blocks = range(12 - n_blocks, 12)
    attention = [f"backbone.network.blocks.{i}.attn.qkv.{part}" for i in blocks for part in ("weight", "bias")]
    assert list(model.trained()) == [*attention, "head.weight", "head.bias"]
    assert model.frozen_prefix() == max(frozen, 1)  # the embedding is frozen too


def test_training_attention_of_a_network_that_has_none():
    with pytest.raises(
        ConfigError, match=r"model\.trained=attention needs the weights blocks\.\*\.attn\.qkv of a vision"
    ):
        ContinualModel(Identity(), TASKS, "class", trained="attention")
