"""Frozen scenario definitions: ``scenarios/<name>/<version>.json`` says which samples, classes and tasks make a stream.

A definition is compared with the stream that a run has built, task by task, by content hash. So two laboratories that
both match ``split_mnist/v1`` provably run the same stream, wherever their data come from. A stream that differs because
the user changed an option (another increment, a shuffled class order) is another stream on purpose: it runs, and its
record says that it is not the frozen one. A stream that differs although no option does has other data, and is refused.

Validation samples count as training data here: holding some of them out does not make another stream.
"""

import dataclasses
import json
from typing import Any

from clbench.conf_files import catalogue_dir
from clbench.config import ScenarioConfig
from clbench.errors import ConfigError, DataError, choose_from
from clbench.scenarios.scenario import Scenario

NOT_DEFINING = ("name", "validation", "logit_scope", "mean", "std", "augment", "frozen")
"""Options that do not change which samples a task consists of; all others define the stream."""


def check_frozen(config: ScenarioConfig, scenario: Scenario) -> Scenario:
    """The scenario with ``frozen`` set where it equals the definition that ``config.frozen`` names.

    Where options that the user changed make it another stream, ``frozen`` stays None and ``note`` says which options.

    Raises:
        ConfigError: there is no such definition.
        DataError: no option differs from the definition, but the stream does.
    """
    if config.frozen is None:
        return scenario
    definition = load_definition(config.frozen)
    difference = first_difference(stream_content(scenario), definition)
    if difference is None:
        return dataclasses.replace(scenario, frozen=config.frozen)
    frozen_options = definition["options"]
    options = stream_options(config)
    changed = [
        f"{n}={options.get(n)}" for n in {**options, **frozen_options} if options.get(n) != frozen_options.get(n)
    ]
    if changed:
        note = f"not the frozen stream {config.frozen}: {', '.join(changed)}"
        return dataclasses.replace(scenario, note=f"{scenario.note}; {note}" if scenario.note else note)
    raise DataError(
        f"the data of scenario {scenario.name} are not those that {config.frozen} was defined on: {difference} "
        "(scenario.frozen=null runs on them all the same)"
    )


def load_definition(name: str) -> dict[str, Any]:
    """The frozen definition ``<scenario>/<version>``.

    Raises:
        ConfigError: there is none of this name.
    """
    known = definitions()
    if name not in known:
        raise ConfigError(choose_from("frozen definition", name, known))
    return json.loads((catalogue_dir() / f"{name}.json").read_text(encoding="utf-8"))


def definitions() -> list[str]:
    """The names of all frozen definitions, sorted."""
    folder = catalogue_dir()
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.glob("*/*.json"))


def stream_options(config: ScenarioConfig) -> dict[str, Any]:
    """The options that decide which samples each task consists of; one that is null says nothing, and is left out.

    So an option that is added to clbench later does not change the definitions that are frozen already.
    """
    names = [spec.name for spec in dataclasses.fields(config) if spec.name not in NOT_DEFINING]
    return {name: getattr(config, name) for name in names if getattr(config, name) is not None}


def stream_content(scenario: Scenario) -> dict[str, Any]:
    """:attr:`Scenario.content` with the held-out samples counted as training samples."""
    content = scenario.content
    tasks = []
    for task in content["tasks"]:
        task = dict(task)
        task["n_train"] += task.pop("n_validation", 0)
        task["train_hash"] = _hash_of_union(task["train_hash"], task.pop("validation_hash", "0" * 32))
        tasks.append(task)
    return {**content, "tasks": tasks}


def first_difference(found: dict[str, Any], definition: dict[str, Any]) -> str | None:
    """In words, the first thing in which a stream's content differs from a definition, or None."""
    if len(found["tasks"]) != len(definition["tasks"]):
        return f"it has {len(found['tasks'])} tasks, expected {len(definition['tasks'])}"
    for number, (task, expected) in enumerate(zip(found["tasks"], definition["tasks"], strict=True), start=1):
        where = f"task {number} ({expected['name']})"
        if task["classes"] != expected["classes"]:
            return f"{where} has the classes {task['classes']}, expected {expected['classes']}"
        for split, kind in (("train", "training"), ("test", "test")):
            n, digest = task[f"n_{split}"], task[f"{split}_hash"]
            expected_n, expected_digest = expected[f"n_{split}"], expected[f"{split}_hash"]
            if (n, digest) != (expected_n, expected_digest):
                return f"{where} has {n} {kind} samples with hash {digest}, expected {expected_n} with hash {expected_digest}"
    for key in ("setting", "recipe"):
        if found[key] != definition[key]:
            return f"its {key} is {found[key]}, expected {definition[key]}"
    return None


def _hash_of_union(a: str, b: str) -> str:
    """The content hash of the union of two sets of samples: the sum of both 64-bit lanes, see clbench.data.images."""
    lanes = [(int(a[i : i + 16], 16) + int(b[i : i + 16], 16)) % 2**64 for i in (0, 16)]
    return "".join(f"{lane:016x}" for lane in lanes)
