"""``python -m clbench pretrain data=<source> classes=<numbers>``: train a network that streams of other classes start from.

It is a run of one task (``scenario=pretraining``, ``strategy=finetune``), so it takes every option of a run, is recorded in a run
folder, and is continued where it stopped when the command is repeated. What it adds is ``backbone.safetensors`` in that folder:
the backbone's weights, and a digest of every image that they have seen. A run that starts from this file
(``model.checkpoint``) is refused if its stream has classes of these images.
"""

import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from clbench.command_line.checks import check_overrides
from clbench.compose import compose
from clbench.errors import ConfigError, Diverged
from clbench.models.weights import SEEN_IMAGES
from clbench.records.log_file import log_files
from clbench.records.run_folder import RunFolder
from clbench.run import Run
from clbench.scenarios.scenario import Scenario

WEIGHTS_FILE = "backbone.safetensors"

USAGE = "usage: python -m clbench pretrain data=cifar100 classes=0-49 [folder=<folder>] [trainer.epochs=100 …]"


def pretrain(arguments: list[str]) -> Path:
    """Pretrain as the command line says; returns the file of the weights.

    Args:
        arguments: ``data=``, ``classes=`` (numbers and ranges: ``0-49,60``), optionally ``folder=``, and overrides of a run.

    Raises:
        ConfigError: an argument is missing or malformed, the weights are there already, or training diverged.
    """
    own = {name: _take(arguments, name) for name in ("data", "classes", "folder")}
    if own["data"] is None or own["classes"] is None:
        raise ConfigError(USAGE)
    for word in arguments:
        if "=" not in word:
            raise ConfigError(f"{word!r} is not of the form key=value; {USAGE}")
    classes = class_numbers(own["classes"])
    overrides = [
        "scenario=pretraining",
        "strategy=finetune",
        f"scenario.source={own['data']}",
        f"scenario.classes={classes}".replace(" ", ""),
        f"scenario.increment={len(classes)}",
        *(argument for argument in arguments if argument.split("=")[0] not in own),
    ]
    check_overrides(overrides)
    composed = compose(overrides)
    named = f"{own['data']}-{len(classes)}-classes-{composed.model.name}-seed{composed.seed}"
    folder = Path(own["folder"] or Path("outputs") / "pretraining" / named)
    file = folder / WEIGHTS_FILE
    if RunFolder(folder).status == "finished":
        raise ConfigError(f"{file} has been made already: use it as model.checkpoint, or give another folder=")
    with RunFolder(folder).owned(), log_files([folder]):
        job = Run(composed, folder)
        with job.recording_failure():
            try:
                trainer = job.train()
            except Diverged as error:
                job.finish(error)
                raise ConfigError(f"pretraining diverged, so that there are no weights to keep: {error}") from error
            test = trainer.tasks.iloc[-1]
            accuracy = float(test.correct / test.n)
            # Before the record says that it is finished: a run that is killed between the two can be repeated.
            write_weights(trainer.learner.model.backbone, trainer.scenario, composed, accuracy, file)
            job.finish()
    print(f"accuracy on the {len(classes)} classes {100 * accuracy:.1f} %; weights in {file}")
    return file


def class_numbers(text: str) -> list[int]:
    """The numbers that ``0-49,60`` stands for, ascending.

    Raises:
        ConfigError: it is not made of numbers and ranges, or names a class twice.
    """
    numbers: list[int] = []
    for part in text.strip("[]").split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        if match is None:
            raise ConfigError(f"classes={text} has to be made of numbers and ranges such as 0-49,60, not {part!r}")
        first, last = int(match[1]), int(match[2] or match[1])
        numbers += range(first, last + 1)
    if not numbers or len(set(numbers)) < len(numbers):
        raise ConfigError(f"classes={text} names {'a class twice' if numbers else 'no class'}")
    return sorted(numbers)


def write_weights(backbone: nn.Module, scenario: Scenario, composed: Any, accuracy: float, file: Path) -> None:
    """Write the backbone's weights with the digests of the training images; metadata say how they were made."""
    network = getattr(backbone, "network", backbone)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    tensors[SEEN_IMAGES] = torch.from_numpy(scenario.train.digests.view("int64"))
    metadata = {
        "model": str(composed.model.name),
        "source": str(composed.scenario.source),
        "classes": ", ".join(scenario.class_names),
        "mean": str(list(scenario.mean)),
        "std": str(list(scenario.std)),
        "epochs": str(composed.trainer.epochs),
        "seed": str(composed.seed),
        "accuracy": f"{accuracy:.4f}",
    }
    partial = file.with_suffix(".partial")
    save_file(tensors, partial, metadata)
    partial.replace(file)


def _take(arguments: list[str], name: str) -> str | None:
    values = [argument.partition("=")[2] for argument in arguments if argument.startswith(f"{name}=")]
    return values[-1] if values else None
