"""A stream of what a network's frozen stages make of the samples, computed once (``data.cache_prefix``).

What nothing in training changes need not be computed again in every step and every evaluation. The stream's samples become
what the stages that ``model.frozen`` names make of them, and the network begins with the stage after those. Texts and images
keep their digests, so that the stream keeps its hash.

Exact but for the last bits: a matrix product may round otherwise in batches of another size.
"""

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from clbench.data.store import Store, shared_store
from clbench.errors import ConfigError
from clbench.precision import Precision
from clbench.scenarios.inputs import InputPipeline
from clbench.scenarios.scenario import Scenario, Split

AT_ONCE = 256
"""Samples that go through the stages together."""


class RemainingStages(nn.Module):
    """The stages of a backbone that are left, one after another; none of them passes its input on.

    Args:
        names: names of the stages.
        modules: the stages.
        n_features: of the backbone.
        of_transformer: whether the backbone is a transformer that adapters may be put into.
    """

    def __init__(
        self, names: Sequence[str], modules: Sequence[nn.Module], n_features: int, of_transformer: bool = False
    ) -> None:
        super().__init__()
        self.names, self.n_features, self.of_transformer = list(names), n_features, of_transformer
        self.tokens_at_once: dict[str, int] | None = None  # of a language model, in evaluations
        self.remaining = nn.ModuleList(modules)

    def stages(self) -> dict[str, nn.Module]:
        """The stages that are left, by name."""
        return dict(zip(self.names, self.remaining, strict=True))

    @property
    def transformer(self) -> "RemainingStages | None":
        """Itself, with the ``blocks`` that are left, where the backbone is a transformer; else None."""
        return self if self.of_transformer else None

    @property
    def blocks(self) -> list[nn.Module]:
        """A transformer's blocks that are left."""
        return [stage for name, stage in self.stages().items() if name.startswith("blocks.")]

    def forward(self, h: Tensor) -> Tensor:
        """Features (B, n_features) from what the frozen stages have made of the samples."""
        for stage in self.remaining:
            h = stage(h)
        return h


def refuse_cache(scenario: Scenario, inputs: InputPipeline, frozen: int) -> None:
    """Refuse to cache what training changes.

    Raises:
        ConfigError: with what is in the way.
    """
    if not frozen:
        raise ConfigError(
            "data.cache_prefix=true keeps what frozen stages make of the samples: set model.frozen above 0"
        )
    if inputs.augmentation is not None:
        raise ConfigError(
            "data.cache_prefix=true keeps samples as they are, and scenario.augment changes them: leave out one"
        )
    if scenario.train.permutations is not None:
        raise ConfigError(
            f"data.cache_prefix=true keeps one input of each image, and tasks of {scenario.name} permute its pixels"
        )


@torch.no_grad()
def cached(
    scenario: Scenario, backbone: Any, frozen: int, inputs: InputPipeline, precision: Precision
) -> tuple[Scenario, nn.Module]:
    """The stream of what the first ``frozen`` stages make of the samples, and the stages that are left as a network."""
    stages = backbone.stages() if hasattr(type(backbone), "stages") else {"backbone": backbone}
    names, modules = list(stages), list(stages.values())
    device = next(backbone.parameters()).device
    stores: dict[int, Store] = {}

    def store_of(store: Store) -> Store:
        if id(store) not in stores:
            made, order = [], torch.arange(len(store), device=store.index_device)
            short_first = scenario.reads == "tokens" and frozen == len(modules)  # then the padding leaves no trace
            if short_first:
                order = torch.cat([(store.take(rows) > 0).sum(1) for rows in order.split(AT_ONCE)]).argsort().to(order)
            for rows in order.split(AT_ONCE):
                h = inputs.normalise(store.take(rows))
                if short_first:
                    h = h[:, : max(1, int((h > 0).sum(1).max()))]
                with precision.autocast():
                    for stage in modules[:frozen]:
                        h = stage.eval()(h)
                made.append(h.float().cpu())
            stores[id(store)] = shared_store(torch.cat(made)[order.cpu().argsort()].numpy(), device, "auto")
        return stores[id(store)]

    def split_of(split: Split | None) -> Split | None:
        if split is None:
            return None
        made = copy.copy(split)
        made.store = store_of(split.store)
        made.rows = split.rows.to(made.store.index_device)
        return made

    train = split_of(scenario.train)
    test = (
        scenario._test if scenario.test_locked else split_of(scenario._test)
    )  # what tuning may not see is not read either
    assert train is not None
    assert test is not None
    shape = train.store.shape[1:]
    is_transformer = getattr(backbone, "transformer", None) is not None
    rest = RemainingStages(names[frozen:], modules[frozen:], int(backbone.n_features), is_transformer)
    rest.tokens_at_once = getattr(backbone, "tokens_at_once", None)
    scenario = replace(scenario, train=train, validation=split_of(scenario.validation), _test=test, input_shape=shape)
    return scenario, rest
