"""From a scenario's configuration to index tensors: the only place where data are split."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass, field, replace
from typing import Any

import numpy as np
import torch

from clbench.config import DataConfig, ScenarioConfig
from clbench.data.image_folders import named
from clbench.data.images import ImageSet, SourceData
from clbench.data.store import shared_store
from clbench.data.text import TextSet
from clbench.errors import ConfigError
from clbench.registry import SCENARIOS, SOURCES
from clbench.scenarios.arrival import Arrival, cut_every, drifting
from clbench.scenarios.image_sizes import padded, resized
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
        relabel: labels (n,) of the task's images, ordered by their content → the labels (n,) that the task gives them
            instead, or None.
    """

    classes: dict[int, int]
    domain: int | None = None
    render: Callable[[np.ndarray], np.ndarray] | None = None
    permutation: np.ndarray | None = None
    relabel: Callable[[np.ndarray], np.ndarray] | None = None


@dataclass(frozen=True)
class StreamPlan:
    """What a scenario kind decides; :func:`build` turns it into splits.

    Attributes:
        images: training images of each task, a subset that is drawn once; None for all. A task's images are those among its
            own that come first in an order of all images, so that tasks with the same images have the same subset.
        images_seed: seed of that order; None for the run's seed.
        images_anew: whether every task has an order of its own.
        judged_on_training: evaluation shows the training samples, since there is nothing to generalise to.
        arrival: labels and tasks (N,) of the training samples → which of them arrive when; None: each with its task.
        boundaries: whether methods are told where a task begins.
    """

    setting: str
    class_names: list[str]
    task_names: list[str]
    task_classes: list[list[int]]
    parts: list[Part]
    recipe: dict = field(default_factory=dict)
    images: int | None = None
    images_seed: int | None = None
    images_anew: bool = False
    judged_on_training: bool = False
    arrival: Callable[[np.ndarray, np.ndarray], Arrival] | None = None
    boundaries: bool = True


def build(config: ScenarioConfig, data_config: DataConfig, seed: int, device: torch.device) -> Scenario:
    """Load the source, plan the stream and cut the splits.

    Args:
        config: the scenario's options.
        data_config: where data lie and where they are held.
        seed: the run's seed; a class order or permutation that is drawn comes from it.
        device: the training device.

    Raises:
        ConfigError: the options do not describe a stream of this source, or a task of it would have no samples.
        DataError: the source's data are missing or damaged.
    """
    kind = SCENARIOS[config.kind]
    if data_config.image_size is not None:
        raise ConfigError(
            f"data.image_size={data_config.image_size} is not for the command line: set scenario.image_size instead"
        )
    source, data = read_source(config, replace(data_config, image_size=config.image_size))
    plan = _with_boundaries(_some_tasks(kind.plan(config, data, seed), config), config, seed)
    _refuse_returning_classes(config, plan)
    shown = _shown(plan, source.train, seed)
    place = data_config.placement
    # The digests are those of the source's own images, so that they do not depend on how a library rounds when it resizes.
    if plan.judged_on_training:
        train = _cut(plan, data.train, source.train.digests, shown, device, place)
        validation, test = train if config.validation else None, train
    else:
        held_out = _held_out(source.train, plan, shown, config.validation, seed)
        fit, kept_back = ([rows[mask[rows]] for rows in shown] for mask in (~held_out, held_out))
        train = _cut(plan, data.train, source.train.digests, fit, device, place)
        validation = None
        if config.validation:
            validation = _cut(plan, data.train, source.train.digests, kept_back, device, place, like=train)
        test = _cut(plan, data.test, source.test.digests, _rows_of_tasks(plan, source.test), device, place)
    _refuse_empty_tasks(config, plan, train, "training samples")
    _refuse_empty_tasks(config, plan, test, "test samples")
    held_back = f", of which scenario.validation={config.validation} holds some out" if config.validation else ""
    _refuse_empty_classes(config, plan, train, f"training samples{held_back}")
    _refuse_empty_classes(config, plan, test, "test samples")
    note = data.note
    if validation is not None:
        _refuse_empty_tasks(
            config, plan, validation, f"validation samples: raise scenario.validation={config.validation}"
        )
        lacking = _classes_without(validation, plan)
        if lacking:
            why = f"scenario.validation={config.validation} of their training images is less than one"
            note = "; ".join(filter(None, [note, f"no validation samples of {named(lacking, 'class')}: {why}"]))
    if isinstance(data.train, TextSet):
        _refuse_for_texts(config)
    else:
        check_normalisation(config, data.train.pixels.shape[1])
    answers = _answers(plan, data)
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
        recipe={
            "kind": config.kind,
            "image_size": config.image_size,
            **({} if config.pad is None else {"pad": config.pad}),  # older definitions say nothing of it
            **plan.recipe,
            **_labelling(plan, train),
            **({} if answers is None else {"answers": list(answers)}),
        },
        note=note,
        boundaries=plan.boundaries,
        answers=answers,
        **_arrival(config, plan, train),
    )


def _with_boundaries(plan: StreamPlan, config: ScenarioConfig, seed: int) -> StreamPlan:
    """The plan with the drift and the boundaries that the scenario's options ask for.

    Raises:
        ConfigError: they ask for something else than the valid choices, or for what this kind of stream cannot have.
    """
    every = (
        config.boundaries if isinstance(config.boundaries, int) and not isinstance(config.boundaries, bool) else None
    )
    if (every is None and config.boundaries not in (None, "told", "hidden")) or (every is not None and every < 1):
        raise ConfigError(
            f"scenario.boundaries={config.boundaries} is unknown. Valid choices: told, hidden, null, or a number of samples "
            "from 1"
        )
    for option, value in (("drift", config.drift), ("boundaries", config.boundaries)):
        if plan.setting == "task" and value not in (None, "told"):
            raise ConfigError(
                f"scenario.{option}={value} has no meaning in the task-incremental {config.name}, where the task of every sample "
                "is given: leave it at null"
            )
    if config.drift is not None and plan.arrival is not None:
        raise ConfigError(
            f"scenario.drift={config.drift} has no meaning with scenario.kind={config.kind}, which says by itself when samples "
            "arrive: leave it at null"
        )

    def arrive(labels: np.ndarray, tasks: np.ndarray) -> Arrival:
        if config.drift is not None:
            found = drifting(tasks, config.drift, numpy_generator(seed, "drift"))
        elif plan.arrival is not None:
            found = plan.arrival(labels, tasks)
        else:
            found = Arrival([np.flatnonzero(tasks == task) for task in range(len(plan.parts))])
        return found if every is None else cut_every(found, every, numpy_generator(seed, "cuts"))

    told = plan.boundaries if config.boundaries is None else config.boundaries != "hidden"
    asked = {"drift": config.drift, "boundaries": config.boundaries}
    asked = {name: value for name, value in asked.items() if value is not None}
    if not asked:
        return plan
    return replace(plan, arrival=arrive, boundaries=told, recipe={**plan.recipe, **asked})


def _answers(plan: StreamPlan, data: SourceData) -> tuple[str, ...] | None:
    """For every label the answer of its class; None where the source has no answers, or some label not exactly one."""
    if data.answers is None:
        return None
    of_label: dict[int, set[str]] = {}
    for part in plan.parts:
        for source_class, label in part.classes.items():
            of_label.setdefault(label, set()).add(data.answers[source_class])
    found = [of_label.get(label, set()) for label in range(len(plan.class_names))]
    return tuple(answer for (answer,) in found) if all(len(answers) == 1 for answers in found) else None


def _arrival(config: ScenarioConfig, plan: StreamPlan, train: Split) -> dict[str, Any]:
    """The fields of the scenario that say which training samples arrive when, where those are not simply the task's own."""
    if plan.arrival is None:
        return {}
    arrival = plan.arrival(train.labels.cpu().numpy(), train.tasks.cpu().numpy())
    for number, ids in enumerate(arrival.segments):
        if not len(ids):
            raise ConfigError(
                f"no training sample of scenario {config.name} arrives while task {plan.task_names[number]!r} is learned"
            )
    segments = [torch.from_numpy(ids) for ids in arrival.segments]
    return {"segments": segments, "groups_at": arrival.groups_at, "ordered": arrival.ordered}


def _refuse_for_texts(config: ScenarioConfig) -> None:
    """Refuse options that are of images."""
    for name in ("mean", "std", "image_size", "pad"):
        if getattr(config, name) is not None:
            raise ConfigError(
                f"scenario.{name}={getattr(config, name)} is of images, and {config.name} has texts: set it to null"
            )


def check_normalisation(config: ScenarioConfig, n_channels: int) -> None:
    """Refuse means and deviations that are not those of pixels scaled to [0, 1], one for each channel or one for all.

    Raises:
        ConfigError: with the option's name.
    """
    for name, values in (("mean", config.mean), ("std", config.std)):
        if values is None:
            continue
        if len(values) not in (1, n_channels):
            channels = "one channel" if n_channels == 1 else f"{n_channels} channels"
            raise ConfigError(
                f"scenario.{name}={values} has {len(values)} values, and the images have {channels}: give one for each, or null "
                "for the source's own"
            )
        if not all(0 <= value <= 1 for value in values) or (name == "std" and 0 in values):
            bounds = "above 0 and at most 1" if name == "std" else "from 0 to 1"
            raise ConfigError(
                f"scenario.{name}={values} is of pixels scaled to [0, 1]: every value has to be {bounds} (divide "
                "by 255 where it is of levels from 0 to 255)"
            )


_KEPT: dict[tuple, tuple[SourceData, SourceData]] | None = None


@contextmanager
def sources_kept() -> Iterator[None]:
    """Within this context a source is read once, however many streams are built from it."""
    global _KEPT
    before, _KEPT = _KEPT, {} if _KEPT is None else _KEPT
    try:
        yield
    finally:
        _KEPT = before


def read_source(config: ScenarioConfig, data_config: DataConfig) -> tuple[SourceData, SourceData]:
    """The source as it is, and with images of the size that the scenario asks for, padding included."""
    key = (config.source, config.pad, *astuple(data_config))
    if _KEPT is not None and key in _KEPT:
        return _KEPT[key]
    source = SOURCES[config.source](data_config)
    both = source, padded(resized(source, config.image_size), config.pad)
    if _KEPT is not None:
        _KEPT[key] = both
    return both


def _some_tasks(plan: StreamPlan, config: ScenarioConfig) -> StreamPlan:
    """``scenario.tasks`` tasks of the stream after the first ``scenario.skip_tasks``, with the classes that occur in them.

    Labels stay as they are, but for those that only tasks left out have: the others move up.
    """
    start = config.skip_tasks or 0
    left = len(plan.parts) - start
    if left < 1:
        raise ConfigError(
            f"scenario.skip_tasks={start} leaves none of the {len(plan.parts)} tasks of {config.name}: it has to be less"
        )
    n = left if config.tasks is None else config.tasks
    if n > left:
        after = f" that scenario.skip_tasks={start} leaves" if start else ""
        raise ConfigError(f"scenario.tasks={n} is more than the {left} tasks of {config.name}{after}")
    if start == 0 and config.tasks is None:
        return plan
    chosen = slice(start, start + n)
    parts = plan.parts[chosen]
    used = sorted({label for part in parts for label in part.classes.values()})
    if not start:
        used = list(range(used[-1] + 1))
    moved = {label: new for new, label in enumerate(used)}
    if used != list(range(len(used))) and any(part.relabel for part in parts):
        raise ConfigError(
            f"scenario.skip_tasks={start} moves the labels of later tasks, which {config.name} gives to images at random: set "
            "scenario.setting=domain, or scenario.skip_tasks=null"
        )
    return replace(
        plan,
        class_names=[plan.class_names[label] for label in used],
        task_names=plan.task_names[chosen],
        task_classes=[[moved[label] for label in labels] for labels in plan.task_classes[chosen]],
        parts=[replace(part, classes={c: moved[label] for c, label in part.classes.items()}) for part in parts],
        recipe={
            k: v[chosen] if isinstance(v, list) and len(v) == len(plan.parts) else v for k, v in plan.recipe.items()
        },
    )


def _refuse_returning_classes(config: ScenarioConfig, plan: StreamPlan) -> None:
    """Refuse a class of several tasks where outputs belong to tasks: each output is seen by the samples of one."""
    if plan.setting == "domain":
        return
    first: dict[int, int] = {}
    for task, labels in enumerate(plan.task_classes):
        for label in labels:
            if label in first:
                raise ConfigError(
                    f"class {plan.class_names[label]!r} of scenario {config.name} is in the tasks {first[label]} and {task}, and "
                    f"in a {plan.setting}-incremental stream a class is of one task: give it to one, or let the setting be domain"
                )
            first[label] = task


def _by_content(images: ImageSet) -> np.ndarray:
    """Row numbers in an order that the images alone decide, so that every packing of them gives the same stream."""
    domains = np.zeros(len(images)) if images.domains is None else images.domains
    return np.lexsort((images.digests[:, 1], images.digests[:, 0], domains))


def _rows_of_tasks(plan: StreamPlan, images: ImageSet) -> list[np.ndarray]:
    """Row numbers of every task's images, in :func:`_by_content` order."""
    rows = _by_content(images)
    of_tasks = []
    for part in plan.parts:
        chosen = rows[np.isin(images.labels[rows], list(part.classes))]
        if part.domain is not None:
            assert images.domains is not None
            chosen = chosen[images.domains[chosen] == part.domain]
        of_tasks.append(chosen)
    return of_tasks


def _shown(plan: StreamPlan, images: ImageSet, seed: int) -> list[np.ndarray]:
    """Row numbers of the training images that every task shows, held out ones among them, in :func:`_by_content` order.

    Raises:
        ConfigError: a task has fewer images than ``plan.images``.
    """
    of_tasks = _rows_of_tasks(plan, images)
    if plan.images is None:
        return of_tasks
    images_seed = seed if plan.images_seed is None else plan.images_seed
    by_content = _by_content(images)
    place = np.empty(len(images), np.int64)  # of every image in the order that is drawn
    shown = []
    for task, (name, rows) in enumerate(zip(plan.task_names, of_tasks, strict=True)):
        if task == 0 or plan.images_anew:
            place[by_content] = numpy_generator(images_seed, "images", task).permutation(len(images))
        if plan.images > len(rows):
            raise ConfigError(
                f"scenario.images={plan.images} is more than the {len(rows)} training images of task {name!r}"
            )
        first = np.argsort(place[rows])[: plan.images]
        shown.append(rows[np.sort(first)])
    return shown


def _held_out(images: ImageSet, plan: StreamPlan, shown: list[np.ndarray], fraction: float, seed: int) -> np.ndarray:
    """Boolean (images,): those that are held out for validation.

    ``fraction`` (rounded) of every class, in every domain by itself, drawn from (seed, "validation_split"); where
    ``plan.images`` chooses among them, of the images that are shown.
    """
    rows = _by_content(images)
    if plan.images is not None:
        rows = rows[np.isin(rows, np.concatenate(shown))]
    rng = numpy_generator(seed, "validation_split")
    held_out = np.zeros(len(images), bool)
    if fraction:
        domains = np.zeros_like(images.labels) if images.domains is None else images.domains
        strata = (domains * (1 + images.labels.max()) + images.labels)[rows]
        for stratum in np.unique(strata):
            members = np.flatnonzero(strata == stratum)
            held_out[rows[rng.permutation(members)[: round(fraction * len(members))]]] = True
    return held_out


def _labelling(plan: StreamPlan, train: Split) -> dict[str, list[str]]:
    """For the recipe, where tasks give images other labels than their own: a digest of every task's labels."""
    if all(part.relabel is None for part in plan.parts):
        return {}
    labels = train.labels.cpu().numpy().astype("<i8")
    return {"labels": [hashlib.blake2b(labels[a:b].tobytes(), digest_size=16).hexdigest() for a, b in train.bounds]}


def _refuse_empty_tasks(config: ScenarioConfig, plan: StreamPlan, split: Split, what: str) -> None:
    for name, (start, stop) in zip(plan.task_names, split.bounds, strict=True):
        if start == stop:
            raise ConfigError(f"task {name!r} of scenario {config.name} has no {what}")


def _classes_without(split: Split, plan: StreamPlan) -> list[str]:
    """The classes of the stream that have no sample in ``split``."""
    counts = np.bincount(split.labels.cpu().numpy(), minlength=len(plan.class_names))
    return [plan.class_names[label] for label in np.flatnonzero(counts == 0)]


def _refuse_empty_classes(config: ScenarioConfig, plan: StreamPlan, split: Split, what: str) -> None:
    """Refuse a class without a sample, where the images decide which classes occur and not a draw."""
    if plan.images is not None or any(part.relabel for part in plan.parts):
        return
    lacking = _classes_without(split, plan)
    if lacking:
        raise ConfigError(f"{named(lacking, 'class')} of scenario {config.name} {_have(lacking)} no {what}")


def _have(names: list[str]) -> str:
    return "have" if len(names) > 1 else "has"


def _cut(
    plan: StreamPlan,
    images: ImageSet,
    image_digests: np.ndarray,
    shown: list[np.ndarray],
    device: torch.device,
    placement: str,
    like: Split | None = None,
) -> Split:
    """Collect the samples of every task, in the order of ``shown``. Rendered tasks get rows of their own.

    ``like`` shares the store of a split cut from the same images (train and validation), where nothing is rendered.
    """
    rows: list[np.ndarray] = []
    labels, tasks, rendered, digests = [], [], [], []
    renders = any(part.render for part in plan.parts)
    for task, (part, chosen) in enumerate(zip(plan.parts, shown, strict=True)):
        label_of = np.full(1 + max(int(images.labels.max()), *part.classes), -1)
        label_of[list(part.classes)] = list(part.classes.values())
        if renders:
            pixels = np.asarray(images.pixels[chosen])
            rendered.append(part.render(pixels) if part.render else pixels)
            digests.append(image_digests[chosen])
            rows.append(np.arange(len(chosen)) + sum(len(r) for r in rows))
        else:
            rows.append(chosen)
        own = label_of[images.labels[chosen]]
        labels.append(own if part.relabel is None else part.relabel(own))
        tasks.append(np.full(len(chosen), task))
    permutations = None
    if any(part.permutation is not None for part in plan.parts):
        identity = np.arange(np.prod(images.pixels.shape[1:]))
        permutations = np.stack([identity if p.permutation is None else p.permutation for p in plan.parts])
    if renders:
        store = shared_store(np.concatenate(rendered), device, placement)
    else:
        store = like.store if like is not None else shared_store(images.pixels, device, placement)
    return Split(
        store,
        np.concatenate(rows),
        np.concatenate(labels),
        np.concatenate(tasks),
        np.concatenate(digests) if renders else image_digests,
        len(plan.parts),
        permutations,
    )
