"""timm's networks by name."""

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from clbench.compose import compose
from clbench.errors import ConfigError
from clbench.models.weights import load_backbone
from clbench.options import to_dataclass
from clbench.registry import MODELS
from clbench.set_up import set_up

VIT = "model.name=vit_tiny_patch16_224"


def backbone(shape, *overrides):
    config = to_dataclass(compose(["model=timm", *overrides])).model
    return MODELS[config.kind](config, shape)


def test_the_command_line_of_the_readme_builds_a_vit():
    """model=timm model.name=vit_tiny_patch16_224 runs on images of any size: they are resized on the way in."""
    setup = set_up(compose(["model=timm", VIT, "strategy=finetune", "device=cpu"]))
    backbone = setup.learner.model.backbone
    assert backbone.n_features == 192
    assert backbone.image_size == 224
    x = setup.inputs.plain(setup.scenario.train, torch.arange(2)).x
    assert setup.learner.model(x).shape == (2, 10)
    network = timm.create_model("vit_tiny_patch16_224", num_classes=0, in_chans=1).eval()
    network.load_state_dict(backbone.network.state_dict())
    upscaled = F.interpolate(x, (224, 224), mode="bilinear", align_corners=False)
    torch.testing.assert_close(backbone.eval()(x), network(upscaled))


@pytest.mark.parametrize(
    ("name", "channels", "side"), [("resnet18", 3, 32), ("resnet18", 1, 28), ("convnext_atto", 3, 40)]
)
def test_convolutional_networks_take_images_as_they_are(name, channels, side):
    model = backbone((channels, side, side), f"model.name={name}").eval()
    assert model.image_size is None
    x = torch.randn(2, channels, side, side)
    torch.testing.assert_close(model(x), model.network(x))
    assert model(x).shape == (2, model.n_features)


def test_image_size_is_passed_to_a_network_of_fixed_size():
    model = backbone((3, 32, 32), VIT, "model.image_size=32").eval()
    assert model.network.patch_embed.img_size == (32, 32)
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(model(x), model.network(x))


def test_shrinking_is_antialiased():
    model = backbone((3, 64, 64), "model.name=resnet18", "model.image_size=32").eval()
    x = torch.randn(1, 3, 64, 64)
    expected = F.interpolate(x, (32, 32), mode="bilinear", antialias=True)
    torch.testing.assert_close(model(x), model.network(expected))


def test_number_of_features_is_that_of_the_forward_pass():
    """mobilenetv3 has a hidden layer after pooling, so that timm's num_features is not what comes out."""
    model = backbone((3, 32, 32), "model.name=mobilenetv3_small_050")
    assert model.n_features == model.eval()(torch.randn(1, 3, 32, 32)).shape[1] != model.network.num_features


def test_unknown_name():
    with pytest.raises(
        ConfigError, match="unknown timm model 'vit_tny_patch16_224': did you mean vit_tiny_patch16_224"
    ):
        backbone((3, 32, 32), "model.name=vit_tny_patch16_224")


def test_images_too_small_for_the_network():
    with pytest.raises(
        ConfigError, match=r"inception_v3 cannot take images of 8×8 pixels .* e\.g\. model\.image_size=299"
    ):
        backbone((3, 8, 8), "model.name=inception_v3")


def test_pretrained_weights_offline_fail_with_one_sentence(monkeypatch, tmp_path):
    from huggingface_hub import constants

    offline_before = constants.HF_HUB_OFFLINE
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("socket.getaddrinfo", lambda *_: (_ for _ in ()).throw(OSError("no network")))
    monkeypatch.setattr("urllib.request.getproxies", dict)
    with pytest.raises(
        ConfigError, match=r"pretrained weights of timm model vit_tiny_patch16_224 cannot be had"
    ) as error:
        backbone((3, 32, 32), VIT, "model.pretrained=true")
    assert "model.safetensors of timm/vit_tiny_patch16_224" in str(error.value)
    assert "model.checkpoint=<that file>" in str(error.value)
    assert "\n" not in str(error.value)
    assert constants.HF_HUB_OFFLINE is offline_before


def test_model_without_published_weights():
    with pytest.raises(ConfigError, match=r"pretrained weights of timm model mixer_s32_224 cannot be had"):
        backbone((3, 32, 32), "model.name=mixer_s32_224", "model.pretrained=true")


def test_pretrained_and_checkpoint_contradict_each_other():
    with pytest.raises(ConfigError, match="both name weights: choose one of them"):
        backbone((3, 32, 32), VIT, "model.pretrained=true", "model.checkpoint=weights.pth")


@pytest.mark.parametrize(("name", "classifier"), [("vit_tiny_patch16_224", "head"), ("resnet18", "fc")])
def test_checkpoint_with_a_classifier(name, classifier, tmp_path):
    torch.manual_seed(3)
    source = timm.create_model(name, num_classes=7)
    assert f"{classifier}.weight" in source.state_dict()
    save_file({k: v.contiguous() for k, v in source.state_dict().items()}, tmp_path / "model.safetensors")
    model = backbone((3, 224, 224), f"model.name={name}")
    load_backbone(model, str(tmp_path / "model.safetensors"))
    x = torch.randn(1, 3, 224, 224)
    torch.testing.assert_close(model.eval()(x), source.eval().forward_head(source.forward_features(x), pre_logits=True))


def test_checkpoint_is_adapted_to_grey_images_and_another_size(tmp_path):
    source = timm.create_model("vit_tiny_patch16_224", num_classes=7)
    torch.save(source.state_dict(), tmp_path / "vit.pth")
    model = backbone((1, 64, 64), VIT, "model.image_size=64")
    load_backbone(model, str(tmp_path / "vit.pth"))
    grey = model.network.patch_embed.proj.weight
    torch.testing.assert_close(grey, source.patch_embed.proj.weight.sum(1, keepdim=True))
    assert model.network.pos_embed.shape == (1, 17, 192)
    torch.testing.assert_close(model.network.blocks[3].attn.qkv.weight, source.blocks[3].attn.qkv.weight)


def test_checkpoint_of_another_network_is_refused(tmp_path):
    torch.save(timm.create_model("resnet18").state_dict(), tmp_path / "resnet.pth")
    with pytest.raises(ConfigError, match="does not fit the network"):
        load_backbone(backbone((3, 224, 224), VIT), str(tmp_path / "resnet.pth"))


@pytest.mark.filterwarnings("error:There is a performance drop")
def test_per_sample_gradients_of_a_vit():
    """EWC's Fisher information works through attention layers."""
    from clbench.learning.parts.fisher import fisher_diagonal
    from clbench.scenarios.task import Task

    setup = set_up(compose(["model=timm", VIT, "model.image_size=32", "strategy=ewc", "device=cpu"]))
    scenario = setup.scenario
    task = Task(0, 5, scenario.task_classes[0], setup.config.trainer, 0, scenario.train, setup.inputs)
    setup.learner.begin_task(task)
    setup.learner.eval()
    estimate = fisher_diagonal(setup.learner.strategies[0], task, "empirical", 3)
    assert estimate.isfinite().all()
    assert (estimate > 0).float().mean() > 0.9


def test_small_vit_takes_images_of_another_size():
    """Those of the weights it starts from: images are scaled to them."""
    config = to_dataclass(compose(["model=small_vit", "model.width=12", "model.depth=1", "model.image_size=16"])).model
    model = MODELS["small_vit"](config, (1, 8, 8)).eval()
    x = torch.rand(2, 1, 8, 8)
    assert model.embed(x).shape == (2, 1 + 16, 12)
    upscaled = F.interpolate(x, (16, 16), mode="bilinear", align_corners=False)
    torch.testing.assert_close(model(x), model.network(upscaled))


@pytest.mark.parametrize(
    ("option", "sentence"), [("patch_size=3", "does not divide images"), ("heads=5", "does not divide")]
)
def test_small_vit_that_does_not_divide(option, sentence):
    config = to_dataclass(compose(["model=small_vit", f"model.{option}"])).model
    with pytest.raises(ConfigError, match=sentence):
        MODELS["small_vit"](config, (3, 32, 32))


def test_attention_is_written_out_on_a_processor():
    """Fleets batch it there, and the fused kernel is slower in bfloat16."""
    model = set_up(compose(["model=small_vit", "model.depth=1", "strategy=finetune", "device=cpu"])).learner.model
    assert [module.fused_attn for module in model.modules() if hasattr(module, "fused_attn")] == [False]
