"""A small vision transformer for small images, which ``python -m clbench pretrain`` trains: ``model=small_vit``."""

from dataclasses import dataclass

from torch import Tensor, nn

from clbench.config import ModelConfig
from clbench.errors import ConfigError
from clbench.models.timm_backbone import TimmBackbone
from clbench.options import option
from clbench.registry import MODELS


@dataclass
class SmallViTConfig(ModelConfig):
    """Options of ``model=small_vit``."""

    patch_size: int = option(help="side of a patch in pixels", at_least=1)
    width: int = option(help="entries of a token, and features", at_least=1)
    depth: int = option(help="transformer blocks", at_least=1)
    heads: int = option(help="attention heads of a block; they divide the width", at_least=1)
    image_size: int | None = option(
        None,
        help="side in pixels to which images are resized on the device, such as that of the weights in model.checkpoint; null: "
        "that of the scenario",
        at_least=1,
    )


@MODELS.register("small_vit")
class SmallViT(TimmBackbone):
    """timm's vision transformer (Dosovitskiy et al. 2021, arXiv:2010.11929) at sizes that it has no names for.

    Its features are the class token after the last LayerNorm. It is a :class:`TimmBackbone` but for where its weights come
    from: those that ``python -m clbench pretrain`` writes, by ``model.checkpoint``.

    Args:
        config: the sizes.
        input_shape: (C, H, W), of square images.

    Raises:
        ConfigError: the patches do not tile the image, or the heads do not divide the width.
    """

    config = SmallViTConfig

    def __init__(self, config: SmallViTConfig, input_shape: tuple[int, int, int]) -> None:
        from timm.models.vision_transformer import VisionTransformer

        nn.Module.__init__(self)
        side = config.image_size or input_shape[-1]
        if side % config.patch_size:
            raise ConfigError(
                f"model.patch_size={config.patch_size} does not divide images of {side}×{side} pixels: choose a divisor, or "
                "another model.image_size"
            )
        if config.width % config.heads:
            raise ConfigError(f"model.heads={config.heads} does not divide model.width={config.width}")
        self.image_size = side
        self.network = VisionTransformer(
            img_size=side,
            patch_size=config.patch_size,
            in_chans=input_shape[0],
            num_classes=0,
            embed_dim=config.width,
            depth=config.depth,
            num_heads=config.heads,
        )
        self.n_features = config.width

    def adapt_weights(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """The names that this network has for a checkpoint's tensors."""
        return {f"network.{name}": value for name, value in weights.items()}
