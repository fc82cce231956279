"""Stages: together they are the network; frozen ones do not move; what they compute need not be computed again."""

import copy
import functools
from itertools import accumulate

import pytest
import torch
from torch import nn
from torch.func import functional_call, stack_module_state

from clbench.errors import ConfigError
from clbench.models.continual import ContinualModel
from clbench.options import to_dataclass
from clbench.registry import MODELS
from clbench.set_up import set_up
from clbench.testing.small_runs import composed
from clbench.training.trainer import Trainer

NETWORKS = {
    "mlp": ["model=mlp", "model.hidden=[12,8,6]"],
    "mlp_norm_crelu": ["model=mlp", "model.hidden=[12,8,6]", "model.norm=layer", "model.activation=crelu"],
    "mlp_without_layers": ["model=mlp", "model.hidden=[]"],
    "cnn": ["model=cnn", "model.channels=[4,6,8]", "model.hidden=[8]", "model.norm=layer"],
    "resnet18": ["model=resnet18", "model.width=4"],
    "slim_resnet18": ["model=slim_resnet18", "model.width=2"],
    "resnet32": ["model=resnet32", "model.depth=14"],
    "timm_vit": ["model=timm", "model.name=vit_tiny_patch16_224", "model.image_size=32"],
    "timm_vit_resized": ["model=timm", "model.name=test_vit"],
    "timm_vit_registers": ["model=timm", "model.name=test_vit2", "model.image_size=32"],
    "timm_vit_attention_pool": ["model=timm", "model.name=test_vit3", "model.image_size=32"],
    "timm_resnet": ["model=timm", "model.name=resnet18", "model.image_size=48"],
    "timm_bottlenecks": ["model=timm", "model.name=test_resnet"],
    "timm_convnext": ["model=timm", "model.name=convnext_atto"],
    "timm_efficientnet": ["model=timm", "model.name=test_efficientnet"],
    "timm_mobilenet": ["model=timm", "model.name=mobilenetv3_small_050"],
    "timm_other": ["model=timm", "model.name=regnetx_002"],
}

N_STAGES = {
    "mlp": 3,
    "mlp_norm_crelu": 3,
    "cnn": 3 + 1,
    "mlp_without_layers": 1,
    "resnet18": 1 + 8 + 1,
    "slim_resnet18": 1 + 8 + 1,
    "resnet32": 1 + 6 + 1,
    "timm_vit": 1 + 12 + 1,
    "timm_resnet": 1 + 8 + 1,
    "timm_convnext": 1 + 4 + 1,
    "timm_other": 1,
}


SLIM = [
    "strategy=finetune",
    "model=slim_resnet18",
    "model.width=2",
    "trainer.epochs=null",
    "trainer.max_steps_per_task=4",
    "trainer.batch_size=8",
    "evaluator.subset=20",
    "device=cpu",
]


@functools.cache
def backbone_of(name: str) -> nn.Module:
    """With arbitrary weights and statistics, so that nothing is zero or one that a mistake could hide behind."""
    torch.manual_seed(0)
    config = to_dataclass(composed(*NETWORKS[name])).model
    backbone = MODELS[config.kind](config, (3, 32, 32))
    with torch.no_grad():
        for tensor in (*backbone.parameters(), *backbone.buffers()):
            if tensor.is_floating_point():
                tensor.add_(torch.rand_like(tensor), alpha=0.02)
    return backbone


def network(name: str, frozen: int = 0) -> ContinualModel:
    """A copy of the backbone, with a head."""
    backbone = copy.deepcopy(backbone_of(name))
    torch.manual_seed(1)
    return ContinualModel(backbone, [[0, 1], [2, 3]], "class", frozen=frozen)


def whole_network(backbone: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return backbone.network(backbone._resized(x)) if hasattr(backbone, "network") else backbone(x)


@pytest.mark.parametrize("name", NETWORKS)
def test_stages_compose_to_the_network_bit_for_bit(name):
    model, x = network(name), torch.randn(3, 3, 32, 32)
    stages = model.stages()
    assert len(stages) == N_STAGES.get(name, len(stages))
    for training in (True, False):  # in training mode BatchNorm normalises by the batch; statistics do not enter
        model.train(training)
        *_, last = accumulate(stages.values(), lambda h, stage: stage(h), initial=x)
        assert torch.equal(last, whole_network(model.backbone, x))
        assert torch.equal(last, model.features(x))


def test_a_vit_with_normalised_tokens():
    """As in CLIP's, which are too large to be built here."""
    model, x = network("timm_vit_resized"), torch.randn(3, 3, 32, 32)
    model.backbone.network.norm_pre = nn.LayerNorm(64)
    nn.init.normal_(model.backbone.network.norm_pre.weight)
    assert torch.equal(model.prefix(x, len(model.stages())), whole_network(model.backbone, x))


@pytest.mark.parametrize("name", NETWORKS)
def test_every_parameter_is_in_one_stage(name):
    model = network(name)
    held = [p for stage in model.stages().values() for p in stage.parameters()]
    assert len(held) == len(list(model.backbone.parameters()))
    assert {id(p) for p in held} == {id(p) for p in model.backbone.parameters()}


@pytest.mark.parametrize(
    "name", ["mlp", "slim_resnet18", "resnet32", "timm_vit_registers", "timm_convnext", "timm_other"]
)
def test_prefix_and_rest_are_the_whole(name):
    model, x = network(name).eval(), torch.randn(3, 3, 32, 32)
    for n in range(len(model.stages()) + 1):
        h = model.prefix(x, n)
        with model.after_prefix(n):
            logits, features = model(h), model.features(h)
        assert torch.equal(logits, model(x))
        assert torch.equal(features, model.features(x))


def test_images_are_taken_again_after_an_error():
    model, x = network("mlp").eval(), torch.randn(3, 3, 32, 32)
    with pytest.raises(RuntimeError), model.after_prefix(2):
        model(x)
    assert model(x).shape == (3, 4)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("name", ["mlp", "slim_resnet18", "timm_vit_registers"])
def test_rest_of_stacked_members(name):
    """Under functional_call and vmap: several heads and last stages after one frozen prefix."""
    model = network(name).eval()
    n = len(model.stages()) - 1
    members = [model, copy.deepcopy(model)]
    last = list(members[1].stages().values())[n]
    with torch.no_grad():
        for tensor in (*last.parameters(), *members[1].head.parameters()):
            tensor.mul_(1.5)
    x = torch.randn(3, 3, 32, 32)
    h = model.prefix(x, n)
    state = stack_module_state(members)
    with model.after_prefix(n), torch.no_grad():
        together = torch.vmap(lambda parameters, buffers: functional_call(model, (parameters, buffers), h))(*state)
        one = functional_call(model, dict(members[1].named_parameters()), h)
    assert torch.equal(one, members[1](x))
    torch.testing.assert_close(together, torch.stack([member(x) for member in members]), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(together[0], together[1])
    images = torch.vmap(lambda parameters, buffers: functional_call(model, (parameters, buffers), x))(*state)
    torch.testing.assert_close(images, together, atol=1e-5, rtol=1e-5)


def test_frozen_stages_stay_in_evaluation_mode():
    model = network("slim_resnet18", frozen=3)
    x = torch.randn(4, 3, 32, 32)
    for call in (lambda: model.train(), lambda: nn.ModuleList([model]).train(), lambda: model.eval().train()):
        call()
        for index, stage in enumerate(model.stages().values()):
            norms = [module for module in stage.modules() if isinstance(module, nn.BatchNorm2d)]
            assert all(norm.training == (index >= 3) for norm in norms)
    before = {name: value.clone() for name, value in model.backbone.state_dict().items()}
    h = model.prefix(x, 3)
    model(x).square().sum().backward()
    assert torch.equal(h, model.eval().prefix(x, 3))
    after = model.backbone.state_dict()
    frozen = ("conv1", "bn1", "layer1")
    for name, value in before.items():
        if "num_batches_tracked" in name or "running" in name:
            assert torch.equal(after[name], value) == name.startswith(frozen)
    for name, parameter in model.backbone.named_parameters():
        assert (parameter.grad is None) == name.startswith(frozen)


class WithDropout(nn.Module):
    """A user's backbone with a method ``stages``."""

    n_features = 8

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.Dropout(0.5))
        self.second = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5))
        self.scale = nn.Parameter(torch.ones(8))

    def forward(self, x):
        return self.second(self.first(x))

    def stages(self):
        return {"first": self.first, "second": self.second}


class WithALayerCalledStages(nn.Module):
    """A user's backbone without the method."""

    n_features = 8

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.BatchNorm1d(8))

    def forward(self, x):
        return self.stages(x)


def test_dropout_of_a_frozen_stage_does_not_act():
    backbone = WithDropout()
    del backbone.scale
    model, x = ContinualModel(backbone, [[0, 1]], "class", frozen=1), torch.randn(5, 3, 2, 2)
    assert torch.equal(model.prefix(x, 1), model.prefix(x, 1))
    assert not torch.equal(model.features(x), model.features(x))
    assert model.frozen_prefix() == 1


def test_stages_that_leave_a_parameter_out_are_refused():
    with pytest.raises(ConfigError, match=r"stages\(\) of WithDropout leaves out scale: every parameter"):
        ContinualModel(WithDropout(), [[0, 1]], "class")


def test_a_backbone_without_the_method_is_one_stage():
    x = torch.randn(5, 3, 2, 2)
    model = ContinualModel(WithALayerCalledStages(), [[0, 1]], "class", frozen=1)
    assert list(model.stages()) == ["backbone"]
    assert model.frozen_prefix() == 1
    assert not any(module.training for module in model.backbone.modules())
    assert [name for name, p in model.named_parameters() if p.requires_grad] == ["head.weight", "head.bias"]
    h = model.eval().prefix(x, 1)
    with model.after_prefix(1):
        logits = model(h)
    assert torch.equal(logits, model(x))


def test_frozen_prefix_ends_where_something_moves():
    model = network("slim_resnet18")
    assert model.frozen_prefix() == 0
    model.backbone.requires_grad_(False)
    assert model.frozen_prefix() == 0  # statistics of BatchNorm move
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    assert model.frozen_prefix() == 10
    model.backbone.layer2[1].conv2.weight.requires_grad_()
    assert model.frozen_prefix() == 4
    model.backbone.layer1[1].bn1.train()
    assert model.frozen_prefix() == 2


@pytest.mark.parametrize("name", ["mlp", "resnet32", "timm_vit_registers", "timm_efficientnet", "timm_other"])
def test_frozen_prefix_of_frozen_stages(name):
    """Stages without parameters, such as pooling, count with the frozen ones before them."""
    n_stages = len(network(name).stages())
    for frozen in range(n_stages + 1):
        model = network(name, frozen)
        rest = list(model.stages().values())[frozen:]
        without_parameters = all(not list(stage.parameters()) for stage in rest)
        assert model.frozen_prefix() == (n_stages if frozen and without_parameters else frozen)
        assert {id(p) for p in model.trained().values()} == {
            *(id(p) for stage in rest for p in stage.parameters()),
            *(id(p) for p in model.head.parameters()),
        }


def test_too_many_frozen_stages():
    with pytest.raises(
        ConfigError, match=r"at most 3, the number of stages of this network \(hidden1, hidden2, hidden3\)"
    ):
        network("mlp", frozen=4)


def test_negative_number_of_frozen_stages(small_setup):
    with pytest.raises(ConfigError, match=r"model\.frozen=-1 is out of range"):
        small_setup("strategy=finetune", "model.frozen=-1")


@pytest.mark.parametrize("batch_norm", ["train", "freeze_after_first_task", "frozen"])
def test_training_leaves_frozen_stages_as_they_are(batch_norm, tmp_path):
    setup = set_up(
        copy.deepcopy(composed(*SLIM, "scenario.tasks=2", "model.frozen=3", f"trainer.batch_norm={batch_norm}"))
    )
    trainer = Trainer(setup.config, setup.scenario, setup.learner, setup.inputs, setup.evaluator, tmp_path / "state.pt")
    model = trainer.learner.model
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    in_optimizer = [names[id(p)] for group in trainer.optimizer.param_groups for p in group["params"]]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trainer.fit()
    trainer.train_mode()
    assert model.frozen_prefix() == 3
    moved = [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]
    frozen = tuple(f"backbone.{name}" for name in ("conv1", "bn1", "layer1"))
    assert set(in_optimizer) <= set(moved)
    for name in names.values():
        assert (name in in_optimizer) != name.startswith(frozen)
    assert not [name for name in moved if name.startswith(frozen)]


@pytest.mark.parametrize("strategy", ["ewc", "gem", "lwf", "l2"])
def test_strategies_train_what_is_not_frozen(strategy, small_trainer):
    """Penalties, anchors and projected gradients cover the trained parameters alone; two runs agree bit for bit."""
    memory = ["strategy.memory_size=40"] if strategy == "gem" else []
    weights = []
    for run in range(2):
        options = [f"strategy={strategy}", *memory, "model.hidden=[16,8]", "model.frozen=1", "scenario.tasks=3"]
        trainer = small_trainer(*options, checkpoint=f"run{run}")
        before = {name: value.clone() for name, value in trainer.learner.model.state_dict().items()}
        trainer.fit()
        assert trainer.learner.strategies[0].flat_parameters().numel() == sum(p.numel() for p in trainer.parameters)
        weights.append({name: value.clone() for name, value in trainer.learner.model.state_dict().items()})
    for name in ("backbone.layers.1.weight", "backbone.layers.1.bias"):
        assert torch.equal(weights[0][name], before[name])
    assert not torch.equal(weights[0]["backbone.layers.3.weight"], before["backbone.layers.3.weight"])
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in before)
