"""A transformer that reads texts: BERT (Devlin et al. 2019, arXiv:1810.04805), of any size or from a folder of weights."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from clbench.config import ModelConfig
from clbench.data.text import library, model_folder
from clbench.errors import ConfigError
from clbench.options import option
from clbench.registry import MODELS


@dataclass
class TextEncoderConfig(ModelConfig):
    """Options of ``model=text_encoder``."""

    path: str | None = option(
        None,
        help="folder with config.json and model.safetensors, or package:<name> of an installed package; null: random weights",
    )
    vocabulary: int = option(256, help="path=null: how many tokens there are; 256 for bytes", at_least=1)
    width: int = option(32, help="path=null: entries of a token, and features", at_least=1)
    depth: int = option(2, help="path=null: transformer blocks", at_least=1)
    heads: int = option(2, help="path=null: attention heads of a block; they divide the width", at_least=1)


@MODELS.register("text_encoder")
class TextEncoder(nn.Module):
    """Features are the mean over a text's tokens after the last block, as sentence encoders take them.

    Args:
        config: the sizes, or where the weights are.
        input_shape: (L,), of token numbers as :mod:`clbench.data.text` makes them.

    Raises:
        ConfigError: there are no weights, the heads do not divide the width, or texts are longer than the network reads.
    """

    config = TextEncoderConfig
    reads = "tokens"
    hides_padding = True
    """Its blocks do not say which of their tokens stand behind the end of a text."""

    def __init__(self, config: TextEncoderConfig, input_shape: tuple[int, ...]) -> None:
        super().__init__()
        transformers = library("transformers")
        if config.path is None:
            if config.width % config.heads:
                raise ConfigError(f"model.heads={config.heads} does not divide model.width={config.width}")
            sizes = transformers.BertConfig(
                vocab_size=config.vocabulary,
                hidden_size=config.width,
                num_hidden_layers=config.depth,
                num_attention_heads=config.heads,
                intermediate_size=4 * config.width,
                hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0,
                attn_implementation="eager",
            )
            self.network = transformers.BertModel(sizes, add_pooling_layer=False)
        else:
            transformers.utils.logging.set_verbosity_error()  # it lists the weights of a pooling layer, which nothing uses
            transformers.utils.logging.disable_progress_bar()
            folder = model_folder(config.path, "model.path", "model.safetensors")
            self.network = transformers.BertModel.from_pretrained(
                folder,
                add_pooling_layer=False,
                attn_implementation="eager",  # the others cannot be vmap-ped
                hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0,
            )
        longest = self.network.config.max_position_embeddings
        if input_shape[0] > longest:
            raise ConfigError(f"data.length={input_shape[0]} is more than the {longest} tokens that the network reads")
        self.vocabulary = int(self.network.config.vocab_size)
        self.n_features = int(self.network.config.hidden_size)

    @property
    def transformer(self) -> "TextEncoder":
        """What adapters are put into: itself, with its ``blocks``."""
        return self

    @property
    def blocks(self) -> nn.ModuleList:
        """BERT's layers."""
        return self.network.encoder.layer

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, n_features) of texts, int32 (B, L), 0 behind the end of each."""
        is_token = x > 0
        mask = torch.where(is_token, 0.0, torch.finfo(torch.float32).min)[:, None, None, :]
        h = self.network.embeddings(input_ids=(x - 1).clamp(min=0).long())
        for block in self.network.encoder.layer:
            h = block(h, attention_mask=mask)
            h = h[0] if isinstance(h, tuple) else h
        weights = is_token.to(h)[:, :, None]
        return (h * weights).sum(1) / weights.sum(1).clamp(min=1)
