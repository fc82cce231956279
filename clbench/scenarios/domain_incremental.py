"""Streams whose tasks show the same classes in different domains: rotated, with permuted pixels, from different folders,
through different subclasses, or classes of their own under the same labels.

Every kind here takes ``setting``. With ``domain`` the labels are shared and the task is hidden, which is
domain-incremental learning; with ``task`` or ``class`` each task's classes count as classes of their own, so that the
same images make a task-incremental or a class-incremental stream (van de Ven, Tuytelaars & Tolias 2022).
"""

import dataclasses
import hashlib
import math
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from clbench.config import ScenarioConfig
from clbench.data.images import SourceData
from clbench.errors import ConfigError, choose_from
from clbench.options import option
from clbench.registry import SCENARIOS
from clbench.scenarios.build import Part, StreamPlan
from clbench.scenarios.class_incremental import range_of_names, used_classes
from clbench.seeding import numpy_generator

ROTATED_AT_ONCE = 4096
"""Images rotated in one call, which bounds the memory taken by their float copies."""


@dataclass
class DomainIncrementalConfig(ScenarioConfig):
    """The options that all kinds of this file share."""

    setting: str = option(
        "domain",
        help="domain: labels are shared and the task is hidden; task: the task is given, a head per task; class: the task "
        "is hidden and every task's classes count as new ones",
        choices=("domain", "task", "class"),
    )
    classes: list[int] | None = option(
        None, help="use only these classes of the source (kind=superclass: these superclasses); null: all"
    )
    images: int | None = option(
        None,
        help="training images of each task, a fixed subset that is drawn once and that tasks of the same images share, unless "
        "images_anew; null: all",
        at_least=1,
    )
    images_seed: int | None = option(None, help="seed of that draw; null: the run's seed", at_least=0)
    images_anew: bool | None = option(
        None,
        help="true: every task draws its images by itself, as in GEM's streams; null: tasks of the same images share them",
    )


@dataclass
class RotationConfig(DomainIncrementalConfig):
    """Options of ``kind: rotation``."""

    angles: list[float] | None = option(
        help="one task per angle, in degrees counter-clockwise; null: n_tasks angles are drawn from angle_range"
    )
    n_tasks: int | None = option(None, help="angles=null: number of tasks", at_least=1)
    angle_range: list[float] | None = option(None, help="angles=null: lowest and highest angle, e.g. [0,180]")
    angle_draw: str | None = option(
        None,
        help="angles=null: each task's angle anywhere in the range (uniform, as Mammoth), or in bin t of n_tasks equal bins, "
        "ascending (bins, as GEM)",
        choices=(None, "uniform", "bins"),
    )
    angle_seed: int | None = option(
        None, help="seed of that draw; null: the run's seed, so that every seed has other angles", at_least=0
    )
    interpolation: str = option("bilinear", help="how pixels are resampled", choices=("bilinear", "nearest"))


@SCENARIOS.register("rotation")
class Rotation:
    """All classes in every task, the images turned by the task's angle (Rotated MNIST, Lopez-Paz & Ranzato 2017)."""

    config = RotationConfig

    @staticmethod
    def plan(config: RotationConfig, data: SourceData, seed: int) -> StreamPlan:
        """One task per angle; nothing is random but angles that are to be drawn.

        Raises:
            ConfigError: there are no angles, one is not a number, or what angles are drawn from is not given, or given in vain.
        """
        angles = angles_of(config, seed)
        pool = used_classes(config.classes, len(data.class_names))
        labels = {source_class: label for label, source_class in enumerate(pool)}
        parts = []
        for angle in angles:
            render = partial(rotated, angle=angle, interpolation=config.interpolation) if angle % 360 else None
            parts.append(Part(labels, render=render))
        names = [f"{angle:g}°" for angle in angles]
        recipe = {"angles": angles, "interpolation": config.interpolation}
        return shared_labels(config, [data.class_names[c] for c in pool], names, parts, recipe)


def angles_of(config: RotationConfig, seed: int) -> list[float]:
    """The angles in degrees that ``angles`` lists, or as many as there are tasks, drawn from ``angle_range``.

    Task t's comes from the stream (seed, "angle", t): uniform in the whole range, or in the t-th of ``n_tasks`` equal bins.
    """
    drawn = {name: getattr(config, name) for name in ("n_tasks", "angle_range", "angle_draw", "angle_seed")}
    if config.angles is not None:
        given = next((f"scenario.{name}={value}" for name, value in drawn.items() if value is not None), None)
        if given is not None:
            raise ConfigError(
                f"{given} is for angles that are drawn, and scenario.angles lists them: set angles to null"
            )
        if not config.angles or not all(math.isfinite(angle) for angle in config.angles):
            raise ConfigError(
                f"scenario.angles={config.angles} has to list one angle in degrees per task, e.g. [0,80,160]"
            )
        return list(config.angles)
    if config.n_tasks is None or config.angle_range is None or config.angle_draw is None:
        raise ConfigError(
            "scenario.angles=null draws the angles: set scenario.n_tasks, scenario.angle_range (e.g. [0,180]) and "
            "scenario.angle_draw (uniform or bins) as well"
        )
    if len(config.angle_range) != 2 or not -math.inf < config.angle_range[0] < config.angle_range[1] < math.inf:
        raise ConfigError(
            f"scenario.angle_range={config.angle_range} has to be the lowest and the highest angle in degrees, e.g. [0,180]"
        )
    low, high = config.angle_range
    angle_seed = seed if config.angle_seed is None else config.angle_seed
    angles = []
    for task in range(config.n_tasks):
        part = numpy_generator(angle_seed, "angle", task).uniform()  # of the range, or of the bin
        if config.angle_draw == "bins":
            part = (task + part) / config.n_tasks
        angles.append(float(low + part * (high - low)))
    return angles


@dataclass
class PermutationConfig(DomainIncrementalConfig):
    """Options of ``kind: permutation``."""

    n_tasks: int = option(help="number of tasks", at_least=1)
    identity_first: bool = option(help="the first task shows the pixels in their own order")
    permutation_seed: int | None = option(
        None, help="seed of the permutations; null: the run's seed, so that every seed has other tasks", at_least=0
    )


@SCENARIOS.register("permutation")
class Permutation:
    """All classes in every task, the pixels in an order of the task's own (Permuted MNIST, Goodfellow et al. 2013).

    The channels of a pixel stay together. Task t's order comes from the stream (seed, "permutation", t), so that it
    does not depend on the number of tasks.
    """

    config = PermutationConfig

    @staticmethod
    def plan(config: PermutationConfig, data: SourceData, seed: int) -> StreamPlan:
        """One random order of the pixels per task."""
        channels, height, width = data.train.pixels.shape[1:]
        permutation_seed = seed if config.permutation_seed is None else config.permutation_seed
        pool = used_classes(config.classes, len(data.class_names))
        labels = {source_class: label for label, source_class in enumerate(pool)}
        parts, names, orders = [], [], []
        for task in range(config.n_tasks):
            if task == 0 and config.identity_first:
                parts.append(Part(labels))
                names.append("identity")
                orders.append("identity")
                continue
            order = numpy_generator(permutation_seed, "permutation", task).permutation(height * width)
            parts.append(
                Part(labels, permutation=np.concatenate([order + c * height * width for c in range(channels)]))
            )
            names.append(f"permutation {task}")
            orders.append(hashlib.blake2b(order.astype("<i8").tobytes(), digest_size=16).hexdigest())
        return shared_labels(config, [data.class_names[c] for c in pool], names, parts, {"permutations": orders})


@dataclass
class DomainsConfig(DomainIncrementalConfig):
    """Options of ``kind: domains``."""

    domains: list[str] | None = option(None, help="names of the domains, one task each, in this order; null: all")


@SCENARIOS.register("domains")
class Domains:
    """All classes in every task, the images from the task's own domain (PACS, DomainNet)."""

    config = DomainsConfig

    @staticmethod
    def plan(config: DomainsConfig, data: SourceData, seed: int) -> StreamPlan:
        """One task per domain; nothing is random.

        Raises:
            ConfigError: the source has no domains, or one that is named does not exist or is named twice.
        """
        if not data.domain_names:
            raise ConfigError(
                f"scenario.source={config.source} has no domains: kind=domains needs a source with domains, such as pacs"
            )
        names = data.domain_names if config.domains is None else config.domains
        for name in names:
            if name not in data.domain_names:
                raise ConfigError(choose_from(f"domain of {config.source}", name, data.domain_names))
        if not names or len(set(names)) != len(names):
            raise ConfigError(
                f"scenario.domains={names} has to name at least one domain, and none twice. "
                f"Valid choices: {', '.join(data.domain_names)}"
            )
        pool = used_classes(config.classes, len(data.class_names))
        labels = {source_class: label for label, source_class in enumerate(pool)}
        parts = [Part(labels, domain=data.domain_names.index(name)) for name in names]
        return shared_labels(config, [data.class_names[c] for c in pool], list(names), parts, {"domains": list(names)})


@dataclass
class SuperclassConfig(DomainIncrementalConfig):
    """Options of ``kind: superclass``."""

    class_order: str = option(
        "natural",
        help="order of the classes within their superclass: natural (as the source numbers them) or shuffled (drawn from "
        "the run's seed)",
        choices=("natural", "shuffled"),
    )


@SCENARIOS.register("superclass")
class Superclass:
    """The labels are superclasses, and task t shows the t-th class of each (Domain CIFAR-100, Hess et al. 2023)."""

    config = SuperclassConfig

    @staticmethod
    def plan(config: SuperclassConfig, data: SourceData, seed: int) -> StreamPlan:
        """As many tasks as a superclass has classes.

        Raises:
            ConfigError: the source has no superclasses, or they differ in size.
        """
        if data.superclass is None:
            raise ConfigError(
                f"scenario.source={config.source} has no superclasses: kind=superclass needs a source with superclasses, "
                "such as cifar100"
            )
        pool = used_classes(config.classes, int(data.superclass.max()) + 1)
        members = [np.flatnonzero(data.superclass == s) for s in pool]
        if config.class_order == "shuffled":
            members = [numpy_generator(seed, "class_order", label).permutation(m) for label, m in enumerate(members)]
        sizes = {len(m) for m in members}
        if len(sizes) > 1:
            raise ConfigError(
                f"the superclasses of {config.source} have {sorted(sizes)} classes, but all have to have equally many"
            )
        shown = np.stack(members, axis=1)  # (tasks, superclasses): the class that stands for each superclass
        fine_names = [[data.class_names[c] for c in classes] for classes in shown]
        return shared_labels(
            config,
            [", ".join(data.class_names[c] for c in sorted(m)) for m in members],
            [range_of_names(names) for names in fine_names],
            [Part({int(c): label for label, c in enumerate(classes)}) for classes in shown],
            {"classes_shown": fine_names},
        )


@dataclass
class ClassGroupsConfig(DomainIncrementalConfig):
    """Options of ``kind: class_groups``."""

    n_tasks: int = option(help="number of tasks", at_least=1)
    classes_per_task: int = option(2, help="classes that a task shows, and outputs of the head", at_least=2)
    class_order: str = option(
        "shuffled",
        help="order in which the classes are dealt out, again and again: natural (as the source numbers them, in every round) or "
        "shuffled (drawn from the run's seed, anew for every round)",
        choices=("natural", "shuffled"),
    )


@SCENARIOS.register("class_groups")
class ClassGroups:
    """Task t tells a few classes of its own apart, always under the labels 0, 1, … (Continual ImageNet, Dohare et al. 2024).

    The classes are dealt out in rounds. Within a round no class comes twice, and one that does not fill a task is left out.
    Round r's order comes from the stream (seed, "class_order", r), so that it does not depend on the number of tasks.
    """

    config = ClassGroupsConfig

    @staticmethod
    def plan(config: ClassGroupsConfig, data: SourceData, seed: int) -> StreamPlan:
        """As many rounds as the tasks need.

        Raises:
            ConfigError: there are fewer classes than one task shows.
        """
        pool = used_classes(config.classes, len(data.class_names))
        size = config.classes_per_task
        if size > len(pool):
            raise ConfigError(
                f"scenario.classes_per_task={size} is out of range: it has to be at most {len(pool)}, the number of classes"
            )
        groups: list[list[int]] = []
        while len(groups) < config.n_tasks:
            order = pool
            if config.class_order == "shuffled":
                order = (
                    numpy_generator(seed, "class_order", len(groups) // (len(pool) // size)).permutation(pool).tolist()
                )
            groups += [order[i : i + size] for i in range(0, len(order) - size + 1, size)]
        groups = groups[: config.n_tasks]
        names = [[data.class_names[c] for c in group] for group in groups]
        return shared_labels(
            config,
            [f"class {label + 1} of the task" for label in range(size)],
            [range_of_names(of_task) for of_task in names],
            [Part({c: label for label, c in enumerate(group)}) for group in groups],
            {"classes_shown": names},
        )


def rotated(images: np.ndarray, angle: float, interpolation: str) -> np.ndarray:
    """The images turned counter-clockwise about their centre; what comes from outside is 0.

    Args:
        images: uint8 (n, C, H, W).
        angle: degrees.
        interpolation: ``bilinear`` or ``nearest``.

    Returns:
        uint8 (n, C, H, W), rounded to the nearest integer (torchvision's ``rotate`` on tensors).
    """
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2.functional import rotate

    mode = InterpolationMode(interpolation)
    parts = [
        rotate(torch.from_numpy(np.array(images[i : i + ROTATED_AT_ONCE])), angle, interpolation=mode).numpy()
        for i in range(0, len(images), ROTATED_AT_ONCE)
    ]
    return np.concatenate(parts) if parts else images


def shared_labels(
    config: DomainIncrementalConfig, class_names: list[str], task_names: list[str], parts: list[Part], recipe: dict
) -> StreamPlan:
    """The plan of a stream whose parts share labels, numbered anew for every task unless the setting is ``domain``."""
    if config.images_anew and config.images is None:
        raise ConfigError(
            "scenario.images_anew=true draws scenario.images anew for every task, which is null: set scenario.images, e.g. 1000"
        )
    n = len(class_names)
    task_classes = [list(range(n)) for _ in parts]
    if config.setting != "domain":
        task_classes = [[label + task * n for label in range(n)] for task in range(len(parts))]
        class_names = [f"{name} ({task})" for task in task_names for name in class_names]
        parts = [
            dataclasses.replace(part, classes={c: label + task * n for c, label in part.classes.items()})
            for task, part in enumerate(parts)
        ]
    return StreamPlan(
        config.setting,
        class_names,
        task_names,
        task_classes,
        parts,
        recipe,
        images=config.images,
        images_seed=config.images_seed,
        images_anew=bool(config.images_anew),
    )
