"""Prefix tuning of a frozen vision transformer (Li & Liang 2021, arXiv:2101.00190; in this form Wang et al. 2022, DualPrompt,
arXiv:2204.04799): learned vectors stand in front of a block's keys and values,

    softmax( q [P_K; k]ᵀ / √d ) [P_V; v]

P_K and P_V (n, D) are split into heads as k and v are, and do not go through the block's projections. Queries, and with them the
length of the sequence, stay as they are. Every method that prompts chooses (P_K, P_V) for a block in its own way, some of them by
a query q(x): the features of the frozen network without prompts.
"""

from collections.abc import Iterable
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clbench.models.stages import Stage
from clbench.models.timm_backbone import TimmBackbone


class Prompt(nn.Module):
    """What stands in front of the keys and values of one block; a method's own says which.

    Per sample: what stands in front of one image's tokens never depends on the other images.
    """

    uses_query = False

    def keys_and_values(self, query: Tensor | None) -> tuple[Tensor, Tensor]:
        """Keys and values, (n, D) or (B, n, D) each, for queries (B, D), which are None unless ``uses_query``."""
        raise NotImplementedError

    def begin_task(self, task: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Called once before a task's first step; returns which entries it has drawn anew: a boolean for each such parameter."""
        return {}

    def matching_loss(self, query: Tensor) -> Tensor:
        """How far the chosen keys are from the queries (B, D), a scalar; only of prompts that are found by keys."""
        raise NotImplementedError


class Prefix(Prompt):
    """One prompt for every sample: the first half of its vectors are keys, the second half values.

    Args:
        length: vectors L, an even number.
        width: D.
    """

    def __init__(self, length: int, width: int) -> None:
        super().__init__()
        self.vectors = nn.Parameter(torch.rand(length, width))

    def keys_and_values(self, query: Tensor | None) -> tuple[Tensor, Tensor]:
        """(L / 2, D) each."""
        keys, values = self.vectors.chunk(2)
        return keys, values


class PromptedTransformer(nn.Module):
    """A frozen vision transformer with prompts at some of its blocks, in place of a backbone.

    Its stages hand on one more token than the transformer's where the prompts are found by a query: the query, which is thus
    part of what an evaluation computes once (see :mod:`clbench.models.stages`). The transformer is always in evaluation mode.

    Args:
        backbone: holds timm's transformer; is frozen.
        prompts: by the number of their block, from 0.
    """

    def __init__(self, backbone: TimmBackbone, prompts: dict[int, Prompt]) -> None:
        super().__init__()
        self.backbone = backbone.requires_grad_(False)
        self.prompts = nn.ModuleDict({str(block): prompt for block, prompt in prompts.items()})
        self.n_features = backbone.n_features
        self.uses_query = any(prompt.uses_query for prompt in prompts.values())
        self.query: Tensor | None = None
        """(B, D) of the images that were last sent through :meth:`forward`."""

    @property
    def network(self) -> Any:
        """timm's network."""
        return self.backbone.network

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, n_features) of images (B, C, H, W)."""
        h = self._stem(x)
        self.query = h[:, -1] if self.uses_query else None
        for index in range(len(self.network.blocks)):
            h = self._block(index, h)
        return self._final(h)

    def train(self, mode: bool = True) -> "PromptedTransformer":
        """The prompts' mode; the transformer stays in evaluation mode."""
        super().train(mode)
        self.backbone.eval()
        return self

    def stages(self) -> dict[str, nn.Module]:
        """Those of the transformer, with the prompts in their blocks."""
        stages = self.backbone.stages()
        for index, block in enumerate(self.network.blocks):
            prompt = dict(self.prompts.named_children()).get(str(index))
            stages[f"blocks.{index}"] = Stage(partial(self._block, index), block=block, prompt=prompt)
        own = {"stem": self._stem, "final": self._final}
        return {
            name: Stage(own[name], **dict(stage.named_children()), **dict(stage.named_parameters(recurse=False)))
            if name in own
            else stage
            for name, stage in stages.items()
        }

    def of_blocks(self) -> Iterable[Prompt]:
        """The prompts, from the input on."""
        return cast(Iterable[Prompt], self.prompts.values())

    def matching_loss(self) -> Tensor:
        """The mean over blocks of how far the keys chosen in the last forward pass are from the queries, a scalar."""
        assert self.query is not None
        losses = [prompt.matching_loss(self.query) for prompt in self.of_blocks() if prompt.uses_query]
        return torch.stack(losses).mean()

    def _stem(self, x: Tensor) -> Tensor:
        """Tokens (B, N, D) of images; with the query (B, N + 1, D)."""
        tokens = self.backbone.embed(x)
        if not self.uses_query:
            return tokens
        with torch.no_grad():
            query = self.backbone.pool(self.network.blocks(tokens))
        return torch.cat([tokens, query[:, None].to(tokens.dtype)], 1)

    def _block(self, index: int, h: Tensor) -> Tensor:
        """The block's output for its input, the query passed on."""
        tokens, query = (h[:, :-1], h[:, -1:]) if self.uses_query else (h, h[:, :0])
        block = self.network.blocks[index]
        if str(index) not in self.prompts:
            tokens = block(tokens)
        else:
            prompt = cast(Prompt, self.prompts[str(index)])
            keys, values = prompt.keys_and_values(query[:, 0] if self.uses_query else None)
            attended = attend(block.attn, block.norm1(tokens), keys, values)
            tokens = tokens + block.drop_path1(block.ls1(attended))
            tokens = tokens + block.drop_path2(block.ls2(block.mlp(block.norm2(tokens))))
        return torch.cat([tokens, query], 1) if self.uses_query else tokens

    def _final(self, h: Tensor) -> Tensor:
        return self.backbone.pool(h[:, :-1] if self.uses_query else h)


def attend(attention: Any, x: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """timm's multi-head self-attention of tokens x (B, N, D) with further keys and values in front of their own.

    Args:
        attention: timm's layer.
        x: (B, N, D).
        keys: (n, D) or (B, n, D), already projected.
        values: as keys.
    """
    batch, n_tokens, _ = x.shape
    heads = attention.num_heads

    def split(vectors: Tensor) -> Tensor:
        """(B, heads, n, D / heads)"""
        return vectors.expand(batch, *vectors.shape[-2:]).unflatten(-1, (heads, -1)).transpose(1, 2)

    q, k, v = attention.qkv(x).reshape(batch, n_tokens, 3, heads, -1).permute(2, 0, 3, 1, 4)
    q, k = attention.q_norm(q), attention.k_norm(k)
    k = torch.cat([split(keys).to(k.dtype), k], 2)
    v = torch.cat([split(values).to(v.dtype), v], 2)
    if attention.fused_attn:
        attended = F.scaled_dot_product_attention(q, k, v)
    else:
        attended = ((q * attention.scale) @ k.transpose(-2, -1)).softmax(-1) @ v
    return attention.proj(attention.norm(attended.transpose(1, 2).flatten(2)))
