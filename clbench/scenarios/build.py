"""From a scenario's configuration to index tensors: the only place where data are split."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch

from clbench.config import DataConfig, ScenarioConfig
from clbench.data.images import ImageSet, SourceData
from clbench.data.store import Store
from clbench.errors import ConfigError
from clbench.registry import SCENARIOS, SOURCES
from clbench.scenarios.scenario import Scenario, Split
from clbench.seeding import numpy_generator


@dataclass(frozen=True)
class Part:
    """What one task takes from the source.

    Attributes:
        classes: source class → label in the model's label space.
        domain: only images of this domain, or None for all.
        render: changes the pixels, uint8 (n, C, H, W) → the same shape (a rotation), or None.
        permutation: int64 (C·H·W,), the order in which this task shows the pixels, or None.
    """

    classes: dict[int, int]
    domain: int | None = None
    render: Callable[[np.ndarray], np.ndarray] | None = None
    permutation: np.ndarray | None = None


@dataclass(frozen=True)
class StreamPlan:
    """What a scenario kind decides; :func:`build` turns it into splits."""

    setting: str
    class_names: list[str]
    task_names: list[str]
    task_classes: list[list[int]]
    parts: list[Part]
    recipe: dict = field(default_factory=dict)


def build(config: ScenarioConfig, data_config: DataConfig, seed: int, device: torch.device) -> Scenario:
    """Load the source, plan the stream and cut the splits.

    Args:
        config: the scenario's options.
        data_config: where data lie and where they are held.
        seed: the run's seed; a class order or permutation that is drawn comes from it.
        device: the training device.
    """
    kind = SCENARIOS[config.kind]
    data = resized(SOURCES[config.source](data_config), config.image_size)
    plan = kind.plan(config, data, seed)
    fit, held_out = _hold_out(data.train, config.validation, seed)
    place = data_config.placement
    train = _cut(plan, data.train, fit, device, place)
    validation = _cut(plan, data.train, held_out, device, place, like=train) if config.validation else None
    test = _cut(plan, data.test, np.arange(len(data.test)), device, place)
    for split_name, split in (("training", train), ("test", test)):
        for name, (start, stop) in zip(plan.task_names, split.bounds, strict=True):
            if start == stop:
                raise ConfigError(f"task {name!r} of scenario {config.name} has no {split_name} samples")
    return Scenario(
        name=config.name,
        setting=plan.setting,
        class_names=plan.class_names,
        task_names=plan.task_names,
        task_classes=plan.task_classes,
        input_shape=tuple(data.train.pixels.shape[1:]),
        mean=tuple(config.mean) if config.mean else data.mean,
        std=tuple(config.std) if config.std else data.std,
        train=train,
        validation=validation,
        _test=test,
        recipe={"kind": config.kind, "image_size": config.image_size, **plan.recipe},
        note=data.note,
    )


def resized(data: SourceData, size: int | None) -> SourceData:
    """The same data at ``size`` × ``size`` pixels (antialiased bilinear), or unchanged for None."""
    if size is None or data.train.pixels.shape[-2:] == (size, size):
        return data
    from dataclasses import replace

    def shrink(images: ImageSet) -> ImageSet:
        from torchvision.transforms.v2.functional import resize

        parts = [
            resize(torch.from_numpy(np.array(images.pixels[i : i + 1024])), [size, size], antialias=True).numpy()
            for i in range(0, len(images), 1024)
        ]
        return ImageSet(np.concatenate(parts), images.labels, images.domains)

    return replace(data, train=shrink(data.train), test=shrink(data.test))


def _hold_out(images: ImageSet, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers kept for training and held out: ``fraction`` of every class (rounded), drawn from the seed."""
    rng = numpy_generator(seed, "validation_split")
    held_out = np.zeros(len(images), bool)
    if fraction:
        for label in np.unique(images.labels):
            members = np.flatnonzero(images.labels == label)
            held_out[rng.permutation(members)[: round(fraction * len(members))]] = True
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def _cut(
    plan: StreamPlan,
    images: ImageSet,
    usable: np.ndarray,
    device: torch.device,
    placement: str,
    like: Split | None = None,
) -> Split:
    """Collect the samples of every task. Rendered tasks get rows of their own, appended task by task.

    ``like`` shares the store of a split cut from the same images (train and validation), where nothing is rendered.
    """
    rows, labels, tasks, rendered, digests = [], [], [], [], []
    renders = any(part.render for part in plan.parts)
    for task, part in enumerate(plan.parts):
        chosen = usable[np.isin(images.labels[usable], list(part.classes))]
        if part.domain is not None:
            assert images.domains is not None
            chosen = chosen[images.domains[chosen] == part.domain]
        if renders:
            pixels = np.asarray(images.pixels[chosen])
            rendered.append(part.render(pixels) if part.render else pixels)
            digests.append(images.digests[chosen])
            rows.append(np.arange(len(chosen)) + sum(len(r) for r in rows))
        else:
            rows.append(chosen)
        labels.append(np.array([part.classes[int(c)] for c in images.labels[chosen]], np.int64))
        tasks.append(np.full(len(chosen), task))
    permutations = None
    if any(part.permutation is not None for part in plan.parts):
        identity = np.arange(np.prod(images.pixels.shape[1:]))
        permutations = np.stack([identity if p.permutation is None else p.permutation for p in plan.parts])
    if renders:
        store = Store(np.concatenate(rendered), device, placement)
    else:
        store = like.store if like is not None else Store(images.pixels, device, placement)
    return Split(
        store,
        np.concatenate(rows),
        np.concatenate(labels),
        np.concatenate(tasks),
        np.concatenate(digests) if renders else images.digests,
        len(plan.parts),
        permutations,
    )
