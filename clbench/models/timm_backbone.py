"""Any network of timm (Wightman, PyTorch Image Models), by name: ``model=timm model.name=vit_tiny_patch16_224``."""

import difflib
import socket
import sys
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import urlsplit

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clbench.config import ModelConfig
from clbench.errors import ConfigError
from clbench.models.stages import Stage, numbered
from clbench.options import option
from clbench.registry import MODELS

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer

TRUNKS = {
    "ConvNeXt": ("stages",),
    "EfficientNet": ("blocks",),
    "MobileNetV3": ("blocks",),
    "ResNet": ("layer1", "layer2", "layer3", "layer4"),
    "VisionTransformer": ("blocks",),
}
"""timm's classes that apply their children one after another (a ViT: but for its embedding and pooling), and which children
are sequences of blocks. Other classes, and classes derived from these, may do something else, and are one stage."""


@dataclass
class TimmConfig(ModelConfig):
    """Options of ``model=timm``."""

    pretrained: bool = option(
        help="start from the weights that timm publishes under this name (a download, then cached)"
    )
    image_size: int | None = option(
        help="side in pixels to which images are resized on the device; null: the size the architecture is fixed to, such "
        "as 224 for vit_tiny_patch16_224, and no resizing where it takes any size",
        at_least=1,
    )


@MODELS.register("timm")
class TimmBackbone(nn.Module):
    """A timm network without its classifier.

    Images of another size than the network's are resized (bilinearly) on the way in, so that a ViT made for 224×224 pixels
    runs on CIFAR; ``model.image_size`` asks for another size, for which position embeddings are interpolated. The number of
    input channels is the scenario's; pretrained filters are summed for one channel.

    Published weights expect their own normalisation of the images: timm's ViT weights mostly
    ``scenario.mean=[0.5,0.5,0.5] scenario.std=[0.5,0.5,0.5]``.

    Args:
        config: name, weights and image size.
        input_shape: (C, H, W).

    Raises:
        ConfigError: the name is unknown, its weights cannot be had, or it cannot take images of this size.
    """

    config: ClassVar[type[ModelConfig]] = TimmConfig

    def __init__(self, config: TimmConfig, input_shape: tuple[int, int, int]) -> None:
        super().__init__()
        import timm

        if not timm.is_model(config.name):
            near = difflib.get_close_matches(config.name, timm.list_models(), n=5)
            hint = f"did you mean {', '.join(near)}? " if near else ""
            raise ConfigError(f"unknown timm model {config.name!r}: {hint}Valid choices: all {len(timm.list_models())} names "
                              "of timm.list_models()")  # fmt: skip
        if config.pretrained and config.checkpoint is not None:
            raise ConfigError(
                f"model.pretrained=true and model.checkpoint={config.checkpoint} both name weights: choose one of them"
            )
        published = timm.get_pretrained_cfg(config.name)
        options: dict[str, Any] = {"num_classes": 0, "in_chans": input_shape[0]}
        self.image_size = config.image_size
        if published is not None and published.fixed_input_size:
            if config.image_size is None:
                self.image_size = published.input_size[-1]
            else:
                options["img_size"] = config.image_size
        self.network = _create(config, options)
        self.n_features = self._probe(config.name, input_shape)

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, n_features) of images (B, C, H, W) of any size."""
        return self.network(self._resized(x))

    def stages(self) -> dict[str, nn.Module]:
        """The stem (of a ViT: the embedding), every block, the rest; one stage where the class is not in TRUNKS."""
        kind = type(self.network).__name__
        if kind not in TRUNKS:
            return {"network": self}
        trunk = TRUNKS[kind]
        children = dict(self.network.named_children())
        names = list(children)
        stem = {name: children[name] for name in names[: names.index(trunk[0])]}
        final = {name: children[name] for name in names[names.index(trunk[-1]) + 1 :]}
        blocks = {name: block for part in trunk for name, block in numbered(part, children[part]).items()}
        if kind == "VisionTransformer":
            tokens = dict(self.network.named_parameters(recurse=False))
            return {"stem": Stage(self.embed, **stem, **tokens), **blocks, "final": Stage(self.pool, **final)}
        apply_stem = nn.Sequential(*stem.values())
        return {
            "stem": Stage(lambda x: apply_stem(self._resized(x)), **stem),
            **blocks,
            "final": nn.Sequential(*final.values()),
        }

    def embed(self, x: Tensor) -> Tensor:
        """The beginning of ``forward_features`` of timm's ViT: tokens (B, N, D) of every patch, with positions."""
        vit = self.network
        return vit.norm_pre(vit.patch_drop(vit._pos_embed(vit.patch_embed(self._resized(x)))))

    def pool(self, x: Tensor) -> Tensor:
        """The end of timm's ViT: features (B, n_features) of the last block's tokens (B, N, D)."""
        return self.network.forward_head(self.network.norm(x))

    def _resized(self, x: Tensor) -> Tensor:
        side = self.image_size
        if side is not None and x.shape[-2:] != (side, side):
            shrinks = side < max(x.shape[-2:])
            x = F.interpolate(x, (side, side), mode="bilinear", align_corners=False, antialias=shrinks)
        return x

    @property
    def transformer(self) -> "VisionTransformer | None":
        """The network where it is timm's plain vision transformer, into which prompts and adapters can be put; else None."""
        if type(self.network).__name__ != "VisionTransformer":
            return None
        parts = {(type(block).__name__, type(getattr(block, "attn", None)).__name__) for block in self.network.blocks}
        return self.network if parts == {("Block", "Attention")} else None

    def adapt_weights(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Rename and reshape a checkpoint as timm does for its own: position embeddings, input channels, no classifier."""
        from timm.models import adapt_input_conv

        spec = self.network.pretrained_cfg
        module = sys.modules[type(self.network).__module__]
        if hasattr(module, "checkpoint_filter_fn"):
            weights = dict(module.checkpoint_filter_fn(weights, self.network))
        classifiers = spec.get("classifier") or ()
        prefixes = [f"{c}." for c in ([classifiers] if isinstance(classifiers, str) else classifiers)]
        weights = {k: v for k, v in weights.items() if not k.startswith(tuple(prefixes))}
        first = spec.get("first_conv")
        for name in [first] if isinstance(first, str) else first or ():
            own, given = self.network.get_parameter(f"{name}.weight"), weights.get(f"{name}.weight")
            if given is not None and given.ndim == 4 and given.shape[1] != own.shape[1]:
                weights[f"{name}.weight"] = adapt_input_conv(own.shape[1], given)
        return {f"network.{name}": value for name, value in weights.items()}

    def _probe(self, name: str, input_shape: tuple[int, int, int]) -> int:
        """The number of features, from a forward pass over one empty image in evaluation mode."""
        self.eval()
        try:
            with torch.no_grad():
                features = self(torch.zeros(1, *input_shape))
        except (RuntimeError, AssertionError, ValueError) as error:
            size = "×".join(str(n) for n in input_shape[1:])
            made_for = self.network.pretrained_cfg.get("input_size", (3, 224, 224))[-1]
            raise ConfigError(
                f"timm model {name} cannot take images of {size} pixels ({str(error).splitlines()[0]}): "
                f"set model.image_size, e.g. model.image_size={made_for}"
            ) from error
        self.train()
        return features.shape[1]


def write_attention_out(model: nn.Module) -> None:
    """Let timm's attention layers multiply and take softmax one by one, instead of calling torch's fused kernel.

    On a processor the kernel is not one that ``torch.vmap`` batches, and in bfloat16 its gradient takes twice the time of all
    the rest (a ViT of six blocks, 96 wide, 65 tokens: 248 against 570 images a second; in single precision 285 against 221).
    """
    modules: Iterable[Any] = model.modules()
    for module in modules:
        if hasattr(module, "fused_attn"):
            module.fused_attn = False


def _create(config: TimmConfig, options: dict[str, Any]) -> Any:
    """The network, with timm's attributes."""
    import timm

    if not config.pretrained:
        try:
            return timm.create_model(config.name, pretrained=False, **options)
        except (AssertionError, TypeError, ValueError) as error:
            raise ConfigError(f"timm model {config.name} cannot be built with {options}: {error}") from error
    try:
        with _hub_answers_at_once():
            return timm.create_model(config.name, pretrained=True, **options)
    except Exception as error:  # timm, the hub's client and its HTTP library have no common base for "cannot be had"
        published = timm.get_pretrained_cfg(config.name)
        where = published.hf_hub_id if published is not None and published.hf_hub_id else "none published"
        raise ConfigError(
            f"the pretrained weights of timm model {config.name} cannot be had ({type(error).__name__}): run once where the "
            f"network is reachable, or fetch model.safetensors of {where} elsewhere and pass model.pretrained=false "
            "model.checkpoint=<that file>"
        ) from error


@contextmanager
def _hub_answers_at_once() -> Iterator[None]:
    """Where the hub's name does not resolve, let its client look in its cache only instead of retrying for a minute."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    if not urllib.request.getproxies():
        try:
            socket.getaddrinfo(urlsplit(constants.ENDPOINT).hostname, 443)
        except OSError:
            constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
