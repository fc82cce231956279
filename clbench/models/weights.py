"""Pretrained weights of a backbone from a file: ``model.checkpoint=<file>``."""

import pickle
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from clbench.errors import ConfigError

CONTAINERS = ("state_dict", "model")
"""Keys under which training scripts put a network's weights in their checkpoints."""

PREFIX = "module."
"""What ``DataParallel`` puts before every name."""


def read_weights(path: str) -> dict[str, Tensor]:
    """The named tensors in a ``.safetensors`` file, or in anything ``torch.load`` reads without running code.

    Raises:
        ConfigError: there is no such file, or it holds no named tensors.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise ConfigError(f"model.checkpoint={path} does not exist")
    try:
        is_safetensors = file.suffix == ".safetensors"
        content = load_file(file) if is_safetensors else torch.load(file, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, EOFError, RuntimeError, ValueError, OSError) as error:
        raise ConfigError(f"model.checkpoint={path} cannot be read: {str(error).splitlines()[0]}") from error
    for key in CONTAINERS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ConfigError(f"model.checkpoint={path} holds no named tensors: it has to be the state_dict of a network")
    return {name.removeprefix(PREFIX): value for name, value in content.items()}


def load_backbone(backbone: nn.Module, path: str) -> None:
    """Load a checkpoint into ``backbone``; the checkpoint's classifier is left out, everything else has to fit.

    A backbone may name the classifier's modules in an attribute ``classifier``, and may rename and reshape what it is given
    in a method ``adapt_weights``.

    Raises:
        ConfigError: tensors are missing, unknown or of another shape.
    """
    weights = read_weights(path)
    adapt = getattr(backbone, "adapt_weights", None)
    if adapt is not None:
        weights = adapt(weights)
    classifier = getattr(backbone, "classifier", ())
    weights = {name: value for name, value in weights.items() if name.split(".")[0] not in classifier}
    own = backbone.state_dict()
    # Counters that older checkpoints lack and that nothing is computed from.
    missing = [name for name in own if name not in weights and not name.endswith("num_batches_tracked")]
    unknown = [name for name in weights if name not in own]
    misshapen = [name for name in weights if name in own and weights[name].shape != own[name].shape]
    faults = []
    if missing:
        faults.append(f"it lacks {len(missing)} of {len(own)} tensors such as {missing[0]}")
    if unknown:
        faults.append(f"it has {len(unknown)} tensors the network lacks such as {unknown[0]}")
    if misshapen:
        name = misshapen[0]
        faults.append(f"{name} has shape {tuple(weights[name].shape)} instead of {tuple(own[name].shape)}")
    if faults:
        raise ConfigError(f"model.checkpoint={path} does not fit the network: {', '.join(faults)}")
    backbone.load_state_dict(weights, strict=False)
