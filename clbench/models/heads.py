"""The layer that makes logits of features f (D,): one row of weights, or several, for every class of the stream.

``linear``   z_c = ⟨f, w_c⟩ + b_c
``cosine``   z_c = η cos(f, w_c), as in LUCIR (Hou et al. 2019); with k proxies a class, as in PODNet (Douillard et al. 2020,
             arXiv:2004.13513, equation 5), the mean of the proxies' cosines that their own softmax weighs:
             z_c = η Σ_k softmax_k(s_ck) s_ck with s_ck = cos(f, w_ck)
``fixed``    z_c = η cos(f, w_c) with w_c that are not trained: the corners of a regular simplex, as far from one another as can
             be (Pernici et al. 2021, arXiv:2103.00436; Yang et al. 2022, arXiv:2203.09081). Needs D ≥ C − 1.
``verbaliser``  z_c = ⟨f, u_a(c)⟩ − log Σ_v exp ⟨f, u_v⟩, the log-probability that a language model, whose output layer has a row
             u_v for every token v of its vocabulary, goes on with the one token a(c) that is the class's answer. Not trained.

η is learned from 1 on, as LUCIR's, or given.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clbench.errors import ConfigError

HEADS = ("linear", "cosine", "fixed", "verbaliser")


class CosineHead(nn.Module):
    """Cosines to the classes' weights, times η.

    Args:
        in_features: D.
        out_features: C.
        proxies: k, rows of weights of a class.
        scale: η; None: learned.
    """

    scale: Tensor

    def __init__(self, in_features: int, out_features: int, proxies: int = 1, scale: float | None = None) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.weight = nn.Parameter(torch.empty(out_features, proxies, in_features))
        bound = in_features**-0.5
        nn.init.uniform_(self.weight, -bound, bound)
        if scale is None:
            self.scale = nn.Parameter(torch.ones(()))
        else:
            self.register_buffer("scale", torch.tensor(scale))

    def forward(self, features: Tensor) -> Tensor:
        """Logits (B, C) of features (B, D)."""
        rows = F.normalize(self.weight, dim=-1).flatten(0, 1)
        cosines = F.linear(F.normalize(features, dim=-1), rows)
        if self.weight.shape[1] == 1:
            return self.scale * cosines
        of_proxies = cosines.unflatten(-1, self.weight.shape[:2])
        return self.scale * (of_proxies.softmax(-1) * of_proxies).sum(-1)


class FixedHead(CosineHead):
    """Cosines to the corners of a regular simplex, which are not trained.

    Raises:
        ConfigError: there are too few features for so many corners.
    """

    def __init__(self, in_features: int, out_features: int, scale: float | None = None) -> None:
        if in_features < out_features - 1:
            raise ConfigError(
                f"model.head=fixed needs a feature for every class but one, {out_features - 1}, and this network has "
                f"{in_features}: choose a wider network, or model.head=cosine"
            )
        super().__init__(in_features, out_features, 1, scale)
        self.weight.requires_grad_(False).copy_(simplex(out_features, in_features)[:, None])


class VerbaliserHead(nn.Module):
    """Log-probabilities of the classes' answers, a token each, among all tokens of a language model.

    So any loss that asks for logits of classes gets some, which are right up to what they have in common; and −z_c is the
    language model's own loss on the answer, over its whole vocabulary.

    Args:
        output: (V, D), the output layer of the language model. Often it is the embedding of its tokens as well, which then is
            not trained either.
        tokens: the answer's token, from 0, of every class.
    """

    tokens: Tensor

    def __init__(self, output: nn.Parameter, tokens: list[int]) -> None:
        super().__init__()
        self.in_features, self.out_features = output.shape[1], len(tokens)
        self.output = nn.utils.skip_init(nn.Linear, *output.shape[::-1], bias=False)
        self.output.weight = output.requires_grad_(False)
        self.register_buffer("tokens", torch.tensor(tokens))
        self.shows_likeliest = False
        """Whether a last column says how likely the likeliest of all tokens is, see :meth:`ContinualModel.judged`."""

    @property
    def weight(self) -> nn.Parameter:
        """(V, D), the rows of all tokens."""
        return self.output.weight

    def forward(self, features: Tensor) -> Tensor:
        """Log-probabilities (B, C) of features (B, D); (B, C + 1) with the likeliest token's."""
        of_all = self.output(features).float()
        of_all = of_all - of_all.logsumexp(-1, keepdim=True)
        of_answers = of_all[..., self.tokens]
        return torch.cat([of_answers, of_all.amax(-1, keepdim=True)], -1) if self.shows_likeliest else of_answers


def simplex(n: int, n_dimensions: int) -> Tensor:
    """The n corners (n, n_dimensions) of a regular simplex around 0, randomly turned: unit vectors with cosines −1 / (n − 1).

    A random direction involves all features, of which most networks have none below 0.
    """
    if n == 1:
        return F.normalize(torch.randn(1, n_dimensions), dim=1)
    centred = torch.eye(n, dtype=torch.float64) - 1 / n  # in n dimensions, of which they take n − 1
    coordinates = torch.linalg.svd(centred).U[:, : n - 1]
    directions = torch.linalg.qr(torch.randn(n_dimensions, n - 1, dtype=torch.float64)).Q
    return F.normalize(centred @ coordinates @ directions.T, dim=1).float()


def make_head(
    kind: str, n_features: int, n_classes: int, scale: float | None = None, proxies: int = 1
) -> nn.Linear | CosineHead:
    """The head that ``model.head`` names.

    Raises:
        ConfigError: an option has no meaning for it.
    """
    if kind == "linear" and scale is not None:
        raise ConfigError(
            f"model.head_scale={scale} has no meaning with model.head=linear: leave it at null, or choose cosine"
        )
    if kind != "cosine" and proxies != 1:
        raise ConfigError(
            f"model.head_proxies={proxies} has no meaning with model.head={kind}: leave it at 1, or choose cosine"
        )
    match kind:
        case "linear":
            return nn.Linear(n_features, n_classes)
        case "cosine":
            return CosineHead(n_features, n_classes, proxies, scale)
        case "fixed":
            return FixedHead(n_features, n_classes, scale)
    raise ConfigError(f"unknown head {kind!r}. Valid choices: {', '.join(HEADS)}")
