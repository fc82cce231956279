"""Weights that follow those that are trained, more slowly: exponential moving averages.

    s ← a · s + (1 − a) · θ      a in [0, 1], every tensor by itself

θ are all trained weights of the network. Of all else there is no second copy: BatchNorm's running statistics are the network's
own, which has seen the same batches.
"""

import torch
from torch import Tensor, nn

from clbench.learning.base import buffer_name
from clbench.models.continual import ContinualModel


class ShadowWeights(nn.Module):
    """A second set of the trained weights, as buffers.

    Args:
        model: the network, with all modules that will be in it. The shadow starts from its weights.
    """

    def __init__(self, model: ContinualModel) -> None:
        super().__init__()
        self._names = list(model.trained())
        for name, weight in model.trained().items():
            self.register_buffer(buffer_name("of", name), weight.detach().clone())

    def weights(self) -> dict[str, Tensor]:
        """All of them, by the names of the model's parameters."""
        return {name: self.get_buffer(buffer_name("of", name)) for name in self._names}

    def follow(self, model: ContinualModel, keep: Tensor) -> None:
        """Move towards the model's weights; a = ``keep`` (scalar) is the weight of what they were."""
        trained = model.trained()
        for name, shadow in self.weights().items():
            shadow.copy_(keep * shadow + (1 - keep) * trained[name])

    @torch.no_grad()
    def remember(self, model: ContinualModel) -> None:
        """Be the model's weights as they are now."""
        trained = model.trained()
        for name, shadow in self.weights().items():
            shadow.copy_(trained[name])

    @torch.no_grad()
    def renew(self, model: ContinualModel, renewed: Tensor) -> None:
        """Begin with the model's values where its weights have been drawn anew, boolean (P,)."""
        trained = model.trained()
        parts = renewed.split([weight.numel() for weight in trained.values()])
        for (name, shadow), part in zip(self.weights().items(), parts, strict=True):
            shadow.copy_(torch.where(part.view(shadow.shape), trained[name], shadow))

    def logits(self, model: ContinualModel, x: Tensor) -> Tensor:
        """Logits (B, n_classes) of images by the shadow, in the mode that the model is in; it leaves no trace in the model.

        In training mode BatchNorm normalises with the statistics of ``x``.
        """
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()} if model.training else {}
        return model.with_weights({**buffers, **self.weights()}, x)[1]
