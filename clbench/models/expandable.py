"""A backbone that grows: one extractor per task, of which the last is trained."""

import copy

import torch
from torch import Tensor, nn


class ExpandableBackbone(nn.Module):
    """Extractors of the same kind beside one another; their features follow one another.

    The extractor that is made for a task begins as a copy of the one before. From then on, that one is neither trained nor put
    into training mode.

    Args:
        extractor: of the first task, (B, …) → (B, n_features of its own).
    """

    def __init__(self, extractor: nn.Module) -> None:
        super().__init__()
        self.extractors = nn.ModuleList([extractor])
        self.width = int(extractor.n_features)  # type: ignore[arg-type]

    @property
    def n_features(self) -> int:
        """Features of all extractors together."""
        return self.width * len(self.extractors)

    def grow(self, task: int) -> None:
        """Have an extractor for ``task``, and for every task before it."""
        while len(self.extractors) <= task:
            extractor = copy.deepcopy(self.extractors[-1])
            self.extractors[-1].requires_grad_(False).eval()
            self.extractors.append(extractor)

    def train(self, mode: bool = True) -> "ExpandableBackbone":
        """The last extractor alone enters training mode."""
        super().train(mode)
        for extractor in self.extractors[:-1]:
            extractor.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, n_features) of all extractors, the first task's first."""
        return torch.cat([extractor(x) for extractor in self.extractors], dim=1)
