"""A tiny made-up source, and streams built from it."""

import numpy as np
import pytest
import torch

from clbench.config import DataConfig
from clbench.data.images import ImageSet, SourceData
from clbench.registry import SCENARIOS, SOURCES
from clbench.scenarios.scenario import Scenario


def images(n_classes: int, per_class: int, shape: tuple[int, int, int], n_domains: int, seed: int) -> ImageSet:
    """``per_class`` random images of every class in every domain, shuffled."""
    rng = np.random.default_rng(seed)
    n = n_classes * per_class * n_domains
    order = rng.permutation(n)
    return ImageSet(
        pixels=rng.integers(0, 256, (n, *shape), dtype=np.uint8),
        labels=(np.arange(n) % n_classes)[order],
        domains=(np.arange(n) // (n_classes * per_class))[order] if n_domains > 1 else None,
    )


@pytest.fixture
def make_source():
    """A function that makes a source: 10 training and 4 test images per class and domain."""

    def make(n_classes: int = 6, shape: tuple[int, int, int] = (1, 4, 4), n_domains: int = 1, **fields) -> SourceData:
        return SourceData(
            train=images(n_classes, 10, shape, n_domains, seed=1),
            test=images(n_classes, 4, shape, n_domains, seed=2),
            class_names=[f"c{c}" for c in range(n_classes)],
            mean=(0.5,) * shape[0],
            std=(0.25,) * shape[0],
            domain_names=[f"d{d}" for d in range(n_domains)] if n_domains > 1 else [],
            **fields,
        )

    return make


@pytest.fixture
def build_stream(monkeypatch):
    """A function: source, kind, seed and options → scenario, built as a run builds it."""
    from clbench.scenarios.build import build

    def make(data: SourceData, kind: str, seed: int = 0, **options) -> Scenario:
        SOURCES.names()  # import the real ones first
        monkeypatch.setitem(SOURCES._entries, "tiny", lambda _config: data)
        config = SCENARIOS[kind].config(name="tiny", kind=kind, source="tiny", **options)
        return build(config, DataConfig(), seed, torch.device("cpu"))

    return make
