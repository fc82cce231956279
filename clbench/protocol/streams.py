"""The streams that a protocol tunes on and evaluates on.

All kinds are evaluated on the same stream, so that what they find can be compared. They differ in what tuning sees:

* ``two_phase``     other classes than are evaluated: one half for tuning, the other for evaluation (``halves``), or another
                    scenario (``tune_on``). Same number of tasks, classes per task, network and schedule (Cha & Cho,
                    arXiv:2403.09066).
* ``conventional``  the evaluated stream itself, all of its tasks: a validation split of its training data.
* ``first_task``    a validation split of the evaluated stream's first task (Lee et al., arXiv:2404.06466).
* ``first_k``       the same of its first tasks (three in A-GEM, Chaudhry et al. 2019).

Tuning never sees test data: it is judged on the validation split, with the test split locked.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf

from clbench.conf_files import require_choice
from clbench.config import ScenarioConfig, typed
from clbench.data.images import SourceData
from clbench.errors import ConfigError
from clbench.options import override_value
from clbench.protocol.options import CHEAP_METRICS, ProtocolConfig
from clbench.scenarios.build import build, read_source
from clbench.scenarios.scenario import Scenario, Split
from clbench.seeding import numpy_generator

Compose = Callable[[list[str]], DictConfig]
"""Overrides → configuration, with Hydra's own part."""

COMMON_IMAGES = 0.001
"""Share of the smaller stream's images that may occur in both: CIFAR-100 holds a few images under two different labels."""


@dataclass(frozen=True)
class Streams:
    """The overrides that turn a method's configuration into a run on one of the streams.

    Attributes:
        tuning: by kind.
        evaluation: of the stream that is reported on.
        note: what a reader has to know, or empty.
    """

    tuning: dict[str, list[str]]
    evaluation: list[str]
    note: str = ""


def plan_streams(overrides: list[str], options: ProtocolConfig, compose: Compose) -> Streams:
    """The streams for the scenario that ``overrides`` choose.

    Raises:
        ConfigError: the classes cannot be halved, or the scenario to tune on does not exist.
    """
    composed = compose(overrides)
    scenario = composed.scenario
    order = []
    if options.shuffle_classes and scenario.get("class_order") == "natural":
        order = ["scenario.class_order=shuffled"]
    if scenario.get("class_order") == "shuffled" and {"first_task", "first_k"} & set(options.kinds):
        raise ConfigError(
            "scenario.class_order=shuffled gives every seed other first tasks, so that first_task and first_k would tune on "
            "tasks that the evaluation does not begin with: choose natural or an integer seed"
        )
    note = ""
    tuning_half, evaluation_half = list(order), list(order)
    if options.halves is not None:
        config = typed(composed)
        data, _ = read_source(config.scenario, config.data)
        first, second, note = halves(config.scenario, data, options)
        tuning_half = _only(first, scenario, order)
        evaluation_half = _only(second, scenario, order)
    locked = ["evaluator.split=validation", f"scenario.validation={options.validation}"]
    if options.metric in CHEAP_METRICS:
        locked += ["evaluator=periodic", "evaluator.every=0"]
    tuning = {
        "two_phase": tuning_half,
        "conventional": evaluation_half,
        "first_task": [*evaluation_half, "scenario.tasks=1"],
        "first_k": [*evaluation_half, f"scenario.tasks={options.first_tasks}"],
    }
    if options.tune_on is not None:
        tuning["two_phase"] = [*_on_scenario(options.tune_on, overrides, composed, compose), *order]
    return Streams({kind: [*tuning[kind], *locked] for kind in options.kinds}, evaluation_half, note)


def halves(config: ScenarioConfig, data: SourceData, options: ProtocolConfig) -> tuple[list[int], list[int], str]:
    """Two disjoint sets of classes that make streams of the same configuration, and a note on what is in neither.

    Of each half as many classes are used as fill whole tasks. What is halved are superclasses where the scenario's tasks or
    labels are superclasses; tasks of superclasses of different sizes then differ in size.

    Raises:
        ConfigError: half of the classes does not make two tasks.
    """
    pool = _pool(config, data)
    if options.halves == "seeded":
        pool = [int(c) for c in numpy_generator(options.halves_seed, "halves").permutation(pool)]
    half = used = len(pool) // 2
    increment = getattr(config, "increment", None)
    if increment is not None:
        first = getattr(config, "base", None) or increment
        n_tasks = 1 + (half - first) // increment if half >= first else 0
        if n_tasks < 2:
            raise ConfigError(
                f"half of the {len(pool)} classes of {config.source} does not make two tasks of {config.name} (first task "
                f"{first} classes, then {increment} each): set scenario.increment to at most {half // 2}"
                + (" and scenario.base accordingly" if first != increment else "")
            )
        used = first + (n_tasks - 1) * increment
    elif half < 2:
        raise ConfigError(f"the {len(pool)} classes of {config.source} cannot be halved")
    unit = "superclass" if _has_superclass_units(config, data) else "class"
    left_out = len(pool) - 2 * used
    counted = f"{left_out} {unit}es are" if left_out > 1 else f"1 {unit} is"
    note = f"{counted} in neither half, since halves of equal tasks do not hold them"
    parts = [pool[:used], pool[half : half + used]]
    if unit == "superclass" and config.kind != "superclass":  # tasks are superclasses, scenario.classes names classes
        given = getattr(config, "classes", None)
        members = np.arange(len(data.class_names)) if given is None else np.array(sorted(given))
        parts = [[int(c) for c in members if data.superclass[c] in part] for part in parts]  # type: ignore[index]
    return sorted(parts[0]), sorted(parts[1]), note if left_out else ""


def _has_superclass_units(config: ScenarioConfig, data: SourceData) -> bool:
    """Whether the scenario's labels (kind=superclass) or tasks (increment=null) are superclasses."""
    tasks_are = hasattr(config, "increment") and config.increment is None
    return data.superclass is not None and (config.kind == "superclass" or tasks_are)


def _pool(config: ScenarioConfig, data: SourceData) -> list[int]:
    """What is halved: class numbers, or numbers of superclasses."""
    given = getattr(config, "classes", None)
    if not _has_superclass_units(config, data):
        return list(range(len(data.class_names))) if given is None else sorted(given)
    if given is not None and config.kind == "superclass":
        return sorted(given)
    assert data.superclass is not None
    return sorted({int(s) for s in (data.superclass if given is None else data.superclass[given])})


def _only(classes: list[int], scenario: DictConfig, order: list[str]) -> list[str]:
    """Overrides for a stream of these classes; an explicit class order keeps those that are left."""
    given = scenario.get("class_order")
    if OmegaConf.is_list(given):
        order = [f"scenario.class_order=[{','.join(str(c) for c in given if c in classes)}]"]
    return [f"scenario.classes=[{','.join(str(c) for c in classes)}]", *order]


def _on_scenario(name: str, overrides: list[str], composed: DictConfig, compose: Compose) -> list[str]:
    """Overrides that exchange the scenario and keep network, schedule and evaluation as they are with the evaluated one."""
    require_choice("scenario", name)
    model = composed.hydra.runtime.choices["model"]
    exchanged = [f"scenario={name}", f"model={model}"]
    other = compose([*(o for o in overrides if not o.startswith("scenario=")), *exchanged])
    kept = []
    for group in ("model", "trainer", "evaluator"):
        before, after = _leaves(other[group]), _leaves(composed[group])
        kept += [f"{group}.{key}={value}" for key, value in after.items() if before.get(key) != value]
    if other.scenario.logit_scope != composed.scenario.logit_scope:
        kept.append(f"scenario.logit_scope={composed.scenario.logit_scope}")
    return [*exchanged, *kept]


def _leaves(node: DictConfig) -> dict[str, str]:
    """Option → value as it is written on the command line."""
    values = OmegaConf.to_container(node, resolve=True)
    assert isinstance(values, dict)
    return {str(key): override_value(value) for key, value in values.items()}


@dataclass(frozen=True)
class Overlap:
    """What two streams have in common.

    Attributes:
        classes: names of classes that occur in both.
        images: images (by their pixels) that occur in both, whatever their labels.
        n_images: different images of the smaller stream.
    """

    classes: list[str]
    images: int
    n_images: int


def overlap(tuning: Scenario, evaluation: Scenario) -> Overlap:
    """Compare the classes and the images of two streams, all splits of each; neither is trained on or looked into otherwise."""
    known = set(classes_of(tuning))
    ours, theirs = _image_digests(tuning), _image_digests(evaluation)
    return Overlap(
        [name for name in classes_of(evaluation) if name in known], len(ours & theirs), min(len(ours), len(theirs))
    )


def refuse_leak(tuning: Scenario, evaluation: Scenario) -> Overlap:
    """What two streams have in common, if that is as good as nothing.

    Raises:
        ConfigError: they share a class, more than :data:`COMMON_IMAGES` of the images, or are not of the same configuration.
    """
    sizes = _sizes(tuning), _sizes(evaluation)
    # Superclasses (alphabets, say) differ in size; then it has to be as many of them.
    are_superclasses = all(stream.recipe.get("tasks") == "superclasses" for stream in (tuning, evaluation))
    same_sizes = len(sizes[0]) == len(sizes[1]) if are_superclasses else sizes[0] == sizes[1]
    if tuning.setting != evaluation.setting or not same_sizes:
        raise ConfigError(
            f"the tuning stream {tuning.name} ({tuning.setting}-incremental, classes per task {_sizes(tuning)}) is not of the "
            f"same configuration as the evaluation stream {evaluation.name} ({evaluation.setting}-incremental, "
            f"{_sizes(evaluation)})"
        )
    common = overlap(tuning, evaluation)
    if common.classes:
        raise ConfigError(
            f"the tuning stream has classes of the evaluation stream, {', '.join(common.classes[:5])}"
            f"{' …' if len(common.classes) > 5 else ''}: choose protocol.halves=index, or a protocol.tune_on with other classes"
        )
    if common.images > COMMON_IMAGES * common.n_images:
        raise ConfigError(
            f"{common.images} of {common.n_images} images of the tuning stream are in the evaluation stream as well, under "
            "names of other classes: tune on other data"
        )
    return common


def scenario_of(composed: DictConfig, seed: int) -> Scenario:
    """The stream of a configuration, held by the processor."""
    config = typed(composed)
    return build(config.scenario, config.data, seed, torch.device("cpu"))


def classes_of(scenario: Scenario) -> list[str]:
    """Names of the classes that a stream shows, without the task that a domain-incremental one adds to labels of its own.

    Where a label stands for another class in every task, they are the classes that the tasks show.
    """
    if "classes_shown" in scenario.recipe:
        return sorted({name for of_task in scenario.recipe["classes_shown"] for name in of_task})
    names = scenario.class_names
    for task in scenario.task_names:
        names = [name.removesuffix(f" ({task})") for name in names]
    return list(dict.fromkeys(names))


def _sizes(scenario: Scenario) -> list[int]:
    return [len(classes) for classes in scenario.task_classes]


def _image_digests(scenario: Scenario) -> set[bytes]:
    """A digest of the pixels of every image of a stream; of permuted pixels the order does not count."""
    splits = [scenario.train, scenario.validation, scenario._test]
    return {digest for split in splits if split is not None for digest in _pixel_digests(split)}


def _pixel_digests(split: Split) -> set[bytes]:
    rows = split.rows.unique()
    found = set()
    for part in rows.split(1024):
        for image in split.store.take(part).cpu().numpy():
            found.add(hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=16).digest())
    return found
