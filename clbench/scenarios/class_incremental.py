"""Class- and task-incremental streams: the classes of one source, dealt out over tasks.

Both are cut the same way; they differ in whether the task's identity is given (van de Ven, Tuytelaars & Tolias 2022).
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from clbench.config import ScenarioConfig
from clbench.data.images import SourceData
from clbench.errors import ConfigError, choose_from
from clbench.options import option
from clbench.registry import SCENARIOS
from clbench.scenarios.build import Part, StreamPlan
from clbench.seeding import numpy_generator


@dataclass
class ClassIncrementalConfig(ScenarioConfig):
    """Options of ``kind: class_incremental`` and ``kind: task_incremental``."""

    increment: int | None = option(
        help="new classes per task; null: each task is one superclass of the source (an alphabet of Omniglot, say)",
        at_least=1,
    )
    base: int | None = option(None, help="classes of the first task; null: as many as increment", at_least=1)
    class_order: Any = option(
        "natural",
        help="natural (as the source numbers them), shuffled (drawn from the run's seed), an integer seed for "
        "numpy.random.RandomState (1993 is PyCIL's order), or a list of class numbers",
    )
    classes: list[int] | None = option(None, help="use only these classes of the source; null: all")
    superclasses: list[str] | None = option(
        None, help="increment=null: names of superclasses, one task each, in this order; null: all that the source has"
    )


@SCENARIOS.register("class_incremental")
class ClassIncremental:
    """Classes arrive in groups, and the task is hidden: all classes seen so far compete."""

    config = ClassIncrementalConfig
    setting = "class"

    @classmethod
    def plan(cls, config: ClassIncrementalConfig, data: SourceData, seed: int) -> StreamPlan:
        """Deal the classes out over tasks, in the class order.

        Raises:
            ConfigError: the classes do not divide, the class order names a class twice or one that does not exist, or
                tasks are to be superclasses of a source that has none, or not those that are named.
        """
        order = class_order(config, len(data.class_names), seed)
        if config.increment is not None and config.superclasses is not None:
            raise ConfigError(
                f"scenario.superclasses={config.superclasses} is for tasks of a superclass each: set scenario.increment=null, "
                f"which is {config.increment}"
            )
        groups = superclasses(config, data, order) if config.increment is None else increments(config, order)
        order = [c for group in groups for c in group]
        label_of = {source_class: label for label, source_class in enumerate(order)}
        return StreamPlan(
            setting=cls.setting,
            class_names=[data.class_names[c] for c in order],
            task_names=[_name(config, data, group) for group in groups],
            task_classes=[[label_of[c] for c in group] for group in groups],
            parts=[Part(classes={c: label_of[c] for c in group}) for group in groups],
            recipe={"tasks": "superclasses"} if config.increment is None else {},
        )


@SCENARIOS.register("task_incremental")
class TaskIncremental(ClassIncremental):
    """Classes arrive in groups, the task is given, and every task has its own head."""

    setting = "task"


def class_order(config: ClassIncrementalConfig, n_classes: int, seed: int) -> list[int]:
    """The source's class numbers in the order in which the stream brings them.

    Raises:
        ConfigError: ``class_order`` or ``classes`` is none of the valid choices.
    """
    pool = used_classes(config.classes, n_classes)
    match config.class_order:
        case "natural":
            return pool
        case "shuffled":
            return [int(c) for c in numpy_generator(seed, "class_order").permutation(pool)]
        case int() as order_seed if not isinstance(order_seed, bool) and 0 <= order_seed < 2**32:
            # Published orders were drawn with this generator, so it has to be the legacy one.
            legacy = np.random.RandomState(order_seed)
            return [int(c) for c in np.asarray(pool)[legacy.permutation(len(pool))]]
        case list() as order if all(isinstance(c, int) for c in order) and sorted(order) == sorted(pool):
            return list(order)
        case list() as order:
            raise ConfigError(
                f"scenario.class_order={order} has to name each of the {len(pool)} classes exactly once, out of "
                f"{_numbers(pool)}"
            )
    raise ConfigError(
        f"scenario.class_order={config.class_order!r} is unknown. Valid choices: natural, shuffled, an integer seed, "
        "a list of class numbers"
    )


def used_classes(classes: list[int] | None, n_classes: int) -> list[int]:
    """The class numbers that ``scenario.classes`` names, all ``n_classes`` for None.

    Raises:
        ConfigError: it names no class, one twice, or one that does not exist.
    """
    if classes is None:
        return list(range(n_classes))
    if not classes or len(set(classes)) != len(classes) or not set(classes) <= set(range(n_classes)):
        raise ConfigError(
            f"scenario.classes={classes} has to name at least one class and none twice, out of 0..{n_classes - 1}"
        )
    return list(classes)


def _numbers(pool: list[int]) -> str:
    """Class numbers for a message: a range where they are one."""
    return f"{pool[0]}..{pool[-1]}" if pool == list(range(pool[0], pool[0] + len(pool))) else str(pool)


def increments(config: ClassIncrementalConfig, order: list[int]) -> list[list[int]]:
    """The classes of every task: ``base`` first, then ``increment`` at a time.

    Raises:
        ConfigError: the classes do not divide.
    """
    assert config.increment is not None
    first = config.base if config.base is not None else config.increment
    rest = len(order) - first
    if rest < 0 or rest % config.increment:
        raise ConfigError(_does_not_divide(len(order), config))
    starts = [0, *range(first, len(order), config.increment), len(order)]
    return [order[a:b] for a, b in pairwise(starts)]


def superclasses(config: ClassIncrementalConfig, data: SourceData, order: list[int]) -> list[list[int]]:
    """The classes of every task: a superclass each, superclasses and their classes in the order in which ``order`` names them.

    ``config.superclasses`` takes some, in its own order.

    Raises:
        ConfigError: the source has no superclasses, or not those that are named, or ``base`` is set.
    """
    if data.superclass is None:
        raise ConfigError(
            f"scenario.increment=null makes a task of each superclass, but {config.source} has none: set scenario.increment"
        )
    if config.base is not None:
        raise ConfigError(f"scenario.base={config.base} needs scenario.increment, which is null here")
    groups: dict[int, list[int]] = {}
    for c in order:
        groups.setdefault(int(data.superclass[c]), []).append(c)
    if config.superclasses is None:
        return list(groups.values())
    if not data.superclass_names:
        raise ConfigError(
            f"scenario.superclasses={config.superclasses} are names, and the superclasses of {config.source} have none: "
            "set scenario.class_order instead"
        )
    names = [data.superclass_names[number] for number in groups]
    for name in config.superclasses:
        if name in data.refused:
            raise ConfigError(
                f"scenario.superclasses names {name}, {data.refused[name]}. Valid choices: {', '.join(names) or 'none'}"
            )
        if name not in names:
            raise ConfigError(choose_from(f"superclass of {config.source}", name, names))
    if not config.superclasses or len(set(config.superclasses)) != len(config.superclasses):
        raise ConfigError(
            f"scenario.superclasses={config.superclasses} has to name at least one superclass, and none twice. "
            f"Valid choices: {', '.join(names)}"
        )
    return [groups[data.superclass_names.index(name)] for name in config.superclasses]


def _name(config: ClassIncrementalConfig, data: SourceData, group: list[int]) -> str:
    """A task's name: that of its superclass where it is one and has a name, else by its classes."""
    if config.increment is None and data.superclass is not None and data.superclass_names:
        return data.superclass_names[int(data.superclass[group[0]])]
    return range_of_names([data.class_names[c] for c in group])


def _does_not_divide(n: int, config: ClassIncrementalConfig) -> str:
    base = config.base if config.base is not None else 0
    valid = [str(i) for i in range(1, n - base + 1) if (n - base) % i == 0]
    after = f" after base={base}" if base else ""
    return (
        f"scenario.increment={config.increment} does not divide the {n - base} classes of {config.source}{after}. "
        f"Valid choices: {', '.join(valid) or 'none: base is too large'}"
    )


def range_of_names(classes: list[str]) -> str:
    """A task's name from those of its classes: all of up to three, else the first and the last."""
    return ", ".join(classes) if len(classes) <= 3 else f"{classes[0]} … {classes[-1]}"
