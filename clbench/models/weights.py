"""Pretrained weights of a backbone from a file: ``model.checkpoint=<file>``."""

import hashlib
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from clbench.errors import ConfigError
from clbench.scenarios.scenario import Scenario

CONTAINERS = ("state_dict", "model")
"""Keys under which training scripts put a network's weights in their checkpoints."""

SEEN_IMAGES = "clbench.seen_images"
"""The tensor, int64 (n, 2), in a file of ``python -m clbench pretrain`` that holds a digest of every image trained on."""

LARGEST_SHARE_SEEN = 0.01
"""Of a class of the stream; some data sets hold a few images twice, under different classes too."""

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
    weights.pop(SEEN_IMAGES, None)
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


def refuse_seen_classes(path: str, scenario: Scenario) -> None:
    """Refuse a stream whose classes the weights in ``path`` were pretrained on, where the file says on which images they were.

    Images are compared by their digests, so that it does not matter what the classes are called.

    Raises:
        ConfigError: more than a few training images of a class of the stream have been seen.
    """
    seen = read_weights(path).get(SEEN_IMAGES)
    if seen is None:
        return
    known = np.unique(seen.numpy()[:, 0])
    was_seen = np.isin(scenario.train.digests.view("int64")[:, 0], known)
    labels = scenario.train.labels.cpu().numpy()
    shares = {name: was_seen[labels == label].mean() for label, name in enumerate(scenario.class_names)}
    names = [name for name, share in shares.items() if share > LARGEST_SHARE_SEEN]
    if names:
        raise ConfigError(
            f"model.checkpoint={path} was pretrained on images of {len(names)} of the stream's {len(shares)} classes "
            f"({', '.join(names[:3])}{', …' if len(names) > 3 else ''}), which would then be no news: choose other classes by "
            "scenario.classes"
        )


def origin(config: Any, backbone: Any) -> dict[str, str] | None:
    """Where a network's weights come from; None for random weights.

    The checkpoint file and its SHA-256; or the folder or package of a text encoder, or timm's name with its tag and the
    repository they lie in, with the SHA-256 of the names and values of the tensors as they were loaded (adapters and prompts are
    not there yet, a classifier never is).
    """
    if config.checkpoint is not None:
        content = Path(config.checkpoint).expanduser().read_bytes()
        return {"file": Path(config.checkpoint).name, "sha256": hashlib.sha256(content).hexdigest()}
    if getattr(config, "path", None) is not None:
        return {"path": config.path, "sha256": weights_hash(backbone)}
    if getattr(config, "pretrained", False):
        published = backbone.network.pretrained_cfg
        return {
            "timm": f"{published['architecture']}.{published['tag']}",
            "hub": str(published.get("hf_hub_id")),
            "sha256": weights_hash(backbone),
        }
    return None


def weights_hash(module: nn.Module) -> str:
    """SHA-256 of the names and values of a module's parameters and buffers."""
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
