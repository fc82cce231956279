"""A variational autoencoder of fully connected layers (Kingma & Welling 2014, arXiv:1312.6114).

    log p(x) ≥ E_q(z|x) [ log p(x|z) ] − KL( q(z|x) ‖ N(0, 1) ),    q(z|x) = N( μ(x), diag σ²(x) )

with Bernoulli pixels p(x|z), x in [0, 1].
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class VAE(nn.Module):
    """An encoder and a decoder, mirror images of each other.

    Args:
        n_pixels: numbers of an image.
        hidden: widths of the encoder's hidden ReLU layers, from the image on.
        latent: numbers of a code z.
    """

    def __init__(self, n_pixels: int, hidden: Sequence[int], latent: int) -> None:
        super().__init__()
        self.encoder = _layers([n_pixels, *hidden])
        self.mean, self.log_variance = (nn.Linear([n_pixels, *hidden][-1], latent) for _ in range(2))
        self.decoder = nn.Sequential(
            *_layers([latent, *reversed(hidden)]), nn.Linear([latent, *reversed(hidden)][-1], n_pixels)
        )

    def losses(self, pixels: Tensor, noise: Tensor) -> Tensor:
        """The negative bound (B,) of every image, by one sample of its code, divided by the number of pixels.

        Args:
            pixels: (B, n_pixels) in [0, 1].
            noise: (B, latent), of N(0, 1).
        """
        # Without autocast: variances are exponentials, which fp16 does not hold.
        with torch.autocast(pixels.device.type, enabled=False):
            h = self.encoder(pixels)
            mean, log_variance = self.mean(h), self.log_variance(h)
            logits = self.decoder(mean + noise * (log_variance / 2).exp())
            reconstruction = F.binary_cross_entropy_with_logits(logits, pixels, reduction="none").sum(1)
            divergence = (mean.square() + log_variance.exp() - 1 - log_variance).sum(1) / 2
            return (reconstruction + divergence) / pixels.shape[1]


def _layers(widths: Sequence[int]) -> nn.Sequential:
    return nn.Sequential(*(layer for n, m in pairwise(widths) for layer in (nn.Linear(n, m), nn.ReLU())))
