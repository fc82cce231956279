"""Weights from files: whatever does not fit is refused with one sentence."""

import pytest
import torch
from safetensors.torch import save_file

from clbench.compose import compose
from clbench.errors import ConfigError
from clbench.models.weights import load_backbone, read_weights
from clbench.options import to_dataclass
from clbench.registry import MODELS
from clbench.set_up import set_up

SLIM = ["model=slim_resnet18", "model.width=2", "strategy=finetune", "device=cpu"]


def slim():
    config = to_dataclass(compose(SLIM)).model
    return MODELS[config.kind](config, (1, 8, 8))


def saved(tmp_path, state, kind):
    path = tmp_path / f"weights.{kind}"
    if kind == "safetensors":
        save_file({name: value.contiguous() for name, value in state.items()}, path)
    elif kind == "pth":
        torch.save(state, path)
    else:  # as training scripts write it: wrapped, with DataParallel's prefix and other entries
        torch.save({"state_dict": {f"module.{n}": v for n, v in state.items()}, "epoch": 7}, path)
    return path


@pytest.mark.parametrize("kind", ["safetensors", "pth", "tar"])
def test_model_checkpoint_is_loaded_without_its_classifier(kind, tmp_path):
    torch.manual_seed(1)
    source = slim()
    state = {**source.state_dict(), "fc.weight": torch.randn(1000, 16), "fc.bias": torch.randn(1000)}
    path = saved(tmp_path, state, kind)
    model = set_up(compose([*SLIM, f"model.checkpoint={path}"])).learner.model
    for name, value in model.backbone.state_dict().items():
        assert torch.equal(value, state[name])
    fresh = set_up(compose(SLIM)).learner.model
    assert torch.equal(model.head.weight, fresh.head.weight)
    assert not torch.equal(model.backbone.conv1.weight, fresh.backbone.conv1.weight)


def test_counters_of_batch_norm_may_be_missing(tmp_path):
    state = {name: value for name, value in slim().state_dict().items() if "num_batches_tracked" not in name}
    target = slim()
    load_backbone(target, str(saved(tmp_path, state, "pth")))
    assert torch.equal(target.conv1.weight, state["conv1.weight"])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda s: s.pop("conv1.weight"), r"it lacks 1 of 120 tensors such as conv1\.weight"),
        (lambda s: s.update(extra=torch.zeros(1)), r"it has 1 tensors the network lacks such as extra"),
        (
            lambda s: s.update({"conv1.weight": torch.zeros(2, 3, 3, 3)}),
            r"conv1\.weight has shape \(2, 3, 3, 3\) instead of \(2, 1, 3, 3\)",
        ),
    ],
)
def test_what_does_not_fit_is_refused(change, sentence, tmp_path):
    state = dict(slim().state_dict())
    change(state)
    path = saved(tmp_path, state, "pth")
    with pytest.raises(ConfigError, match=f"does not fit the network: {sentence}") as error:
        load_backbone(slim(), str(path))
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_files_that_hold_no_weights_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"absent\.pth does not exist"):
        read_weights(str(tmp_path / "absent.pth"))
    for name in ("text.pth", "text.safetensors"):
        (tmp_path / name).write_text("not weights")
        with pytest.raises(ConfigError, match=rf"{name} cannot be read: ") as error:
            read_weights(str(tmp_path / name))
        assert "\n" not in str(error.value)
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ConfigError, match="holds no named tensors"):
        read_weights(str(tmp_path / "list.pth"))
