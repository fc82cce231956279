"""A causal language model that reads texts: Llama (Touvron et al. 2023, arXiv:2302.13971), small and random or from a folder.

Features are the hidden state, after the last norm, at the last token of the text: what the model would say the next token from.
Texts stand at the beginning of their rows, and no token sees those behind it, so that what fills a row up changes nothing.

What one stage hands on to the next is (B, L + 1, D): the hidden states of the L tokens, and a last row that is none, whose first
entry says where the text ends. transformers gives the layers; they are called one by one, without its masks and caches.
"""

import json
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from clbench.config import ModelConfig
from clbench.data.text import library, model_folder
from clbench.errors import ConfigError
from clbench.options import option
from clbench.registry import MODELS

POSITIONS = ("default", "linear", "llama3")
"""Kinds of rotary positions whose angles do not depend on how long a text is."""

TOKENS_AT_ONCE = {"cpu": 2**11, "cuda": 2**16}
"""Tokens that go through the network together where nothing is trained. Larger batches are no faster, and take memory."""


@dataclass
class CausalLMConfig(ModelConfig):
    """Options of ``model=causal_lm``."""

    path: str | None = option(
        None,
        help="folder with config.json and model.safetensors, as `python -m clbench fetch-lm` makes one, or package:<name> of an "
        "installed package; null: random weights",
    )
    vocabulary: int = option(256, help="path=null: how many tokens there are; 256 for bytes", at_least=1)
    width: int = option(32, help="path=null: entries of a token, and features", at_least=1)
    depth: int = option(3, help="path=null: transformer blocks", at_least=1)
    heads: int = option(4, help="path=null: attention heads of a block; they divide the width", at_least=1)
    kv_heads: int = option(2, help="path=null: heads that keys and values have; they divide the heads", at_least=1)


class Embedding(nn.Module):
    """The first stage: hidden states (B, L + 1, D) of texts, int32 (B, L) as :mod:`clbench.data.text` makes them."""

    def __init__(self, tokens: nn.Embedding) -> None:
        super().__init__()
        self.tokens = tokens

    def forward(self, x: Tensor) -> Tensor:
        """int32 (B, L) → (B, L + 1, D)."""
        h = self.tokens((x - 1).clamp(min=0).long())
        last = ((x > 0).sum(1) - 1).clamp(min=0)
        return torch.cat([h, last.to(h)[:, None, None].expand(-1, 1, h.shape[-1])], dim=1)


class Block(nn.Module):
    """One layer of transformers' Llama, with rotary positions and the causal mask.

    Args:
        layer: the layer, whose attention is written out (the fused ones cannot be vmap-ped).
        frequencies: (head width / 2,), angles in radians from one token to the next.
        scaling: factor of cosines and sines.
    """

    def __init__(self, layer: nn.Module, frequencies: Tensor, scaling: float) -> None:
        super().__init__()
        self.layer, self.scaling = layer, scaling
        # A parameter that is not trained and no buffer: buffers are taken for statistics that training moves.
        self.frequencies = nn.Parameter(frequencies.clone(), requires_grad=False)

    def forward(self, h: Tensor) -> Tensor:
        """(B, L + 1, D) → (B, L + 1, D)."""
        tokens, n = h[:, :-1], h.shape[1] - 1
        angles = torch.arange(n, device=h.device).float()[:, None] * self.frequencies
        angles = torch.cat([angles, angles], dim=-1)[None]
        mask = torch.full((n, n), torch.finfo(torch.float32).min, device=h.device).triu(1)[None, None]
        positions = angles.cos() * self.scaling, angles.sin() * self.scaling
        tokens = self.layer(tokens, attention_mask=mask, position_embeddings=positions)
        return torch.cat([tokens, h[:, -1:]], dim=1)


class LastToken(nn.Module):
    """The last stage: features (B, D), the normalised hidden state at the end of each text."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, h: Tensor) -> Tensor:
        """(B, L + 1, D) → (B, D)."""
        return self.norm(at_the_end(h))


def at_the_end(h: Tensor) -> Tensor:
    """The hidden state (B, D) of each text's last token, from those that a stage hands on, (B, L + 1, D)."""
    last = h[:, -1, 0].long()
    return h.gather(1, last[:, None, None].expand(-1, 1, h.shape[-1]))[:, 0]


@MODELS.register("causal_lm")
class CausalLM(nn.Module):
    """Llama without its output layer, which :class:`clbench.models.heads.VerbaliserHead` takes.

    Args:
        config: the sizes, or where the weights are.
        input_shape: (L,), of token numbers as :mod:`clbench.data.text` makes them.

    Raises:
        ConfigError: there are no weights, they are of another kind of network, sizes do not divide each other, or texts are
            longer than the network reads.
    """

    config = CausalLMConfig
    reads = "tokens"

    def __init__(self, config: CausalLMConfig, input_shape: tuple[int, ...]) -> None:
        super().__init__()
        whole = _random(config) if config.path is None else _from_folder(config.path)
        sizes, network = whole.config, whole.model
        longest = int(sizes.max_position_embeddings)
        if input_shape[0] > longest:
            raise ConfigError(f"data.length={input_shape[0]} is more than the {longest} tokens that the network reads")
        rotary = network.rotary_emb
        self.vocabulary, self.n_features = int(sizes.vocab_size), int(sizes.hidden_size)
        self.embed = Embedding(network.embed_tokens)
        self.blocks = nn.ModuleList(
            Block(layer, rotary.inv_freq, float(rotary.attention_scaling)) for layer in network.layers
        )
        self.final = LastToken(network.norm)
        self.tokens_at_once = TOKENS_AT_ONCE
        # Not a part of this network: a head that speaks takes it over, and otherwise nobody needs it.
        object.__setattr__(self, "output_weight", whole.lm_head.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, n_features) of texts, int32 (B, L), 0 behind the end of each."""
        h = self.embed(x)
        for block in self.blocks:
            h = block(h)
        return self.final(h)

    def stages(self) -> dict[str, nn.Module]:
        """The embedding, every block, and the last norm at the end of the text."""
        blocks = {f"blocks.{number}": block for number, block in enumerate(self.blocks)}
        return {"embed": self.embed, **blocks, "final": self.final}

    @property
    def transformer(self) -> "CausalLM":
        """What adapters are put into: itself, with its ``blocks``."""
        return self

    @staticmethod
    def notes(config: CausalLMConfig) -> list[str]:
        """What a reader of results has to know."""
        if config.path is None:
            return []
        file = model_folder(config.path, "model.path", "config.json") / "source.json"  # where fetch-lm made the folder
        source = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        said = f"language model {source['name']}: {source['note']}; " if source else ""
        return [
            f"{said}pretraining data unknown: what the language model at {config.path} was trained on may hold texts of this "
            "stream"
        ]


def _random(config: CausalLMConfig) -> Any:
    transformers = library("transformers")
    if config.width % config.heads or (config.width // config.heads) % 2:
        raise ConfigError(
            f"model.heads={config.heads} does not divide model.width={config.width} into heads of even width"
        )
    if config.heads % config.kv_heads:
        raise ConfigError(f"model.kv_heads={config.kv_heads} does not divide model.heads={config.heads}")
    sizes = transformers.LlamaConfig(
        vocab_size=config.vocabulary,
        hidden_size=config.width,
        num_hidden_layers=config.depth,
        num_attention_heads=config.heads,
        num_key_value_heads=config.kv_heads,
        intermediate_size=2 * config.width,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        attn_implementation="eager",
    )
    return transformers.LlamaForCausalLM(sizes)


def _from_folder(path: str) -> Any:
    transformers = library("transformers")
    folder = model_folder(path, "model.path", "config.json")
    sizes = transformers.AutoConfig.from_pretrained(folder)
    if sizes.model_type != "llama":
        raise ConfigError(f"model.path={path} holds a network of the kind {sizes.model_type!r}. Valid choices: llama")
    kind = sizes.rope_parameters["rope_type"]
    if kind not in POSITIONS:
        raise ConfigError(
            f"model.path={path} has rotary positions of the kind {kind!r}. Valid choices: {', '.join(POSITIONS)}"
        )
    model_folder(path, "model.path", "model.safetensors")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
