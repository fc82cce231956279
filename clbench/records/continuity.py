"""Whether a run that is gone on with is still the one that was begun: its data, its first weights, its surroundings."""

import logging
import os
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, open_dict

from clbench.errors import DataError
from clbench.scenarios.frozen import first_difference

log = logging.getLogger(__name__)


def with_absolute_paths(composed: DictConfig, base: Path) -> DictConfig:
    """The same configuration with every path that is relative to ``base``, the user's working directory, made absolute.

    So a record says where the data were, whatever folder a run is continued from. What ``CLBENCH_DATA`` names is left to that
    variable, unless that is relative itself.
    """
    absolute, by_variable = composed.copy(), os.environ.get("CLBENCH_DATA")
    with open_dict(absolute):
        if absolute.data.root is None and by_variable and not Path(by_variable).expanduser().is_absolute():
            absolute.data.root = by_variable
        for group, name in (("data", "root"), ("model", "checkpoint")):
            path = absolute.get(group, {}).get(name)
            if path is not None:
                absolute[group][name] = str(base / Path(path).expanduser())
    return absolute


def refuse_other_stream(folder: Path, recorded: dict[str, Any] | None, now: dict[str, Any]) -> None:
    """Refuse to go on with a run on data that have changed.

    Args:
        folder: of the run, for the message.
        recorded: the content of its ``scenario.json``, or None where it has not got so far.
        now: what that would be now.

    Raises:
        DataError: the streams or the evaluation subsets differ; says in what.
    """
    if recorded is None:
        return
    advice = "bring back what it was begun with, or take another hydra.run.dir to begin anew"
    if recorded["hash"] != now["hash"]:
        difference = first_difference(now, recorded) or "its validation split is another one"
        raise DataError(f"the data of the run in {folder} have changed since it was begun: {difference}; {advice}")
    if recorded["evaluation_subsets"] != now["evaluation_subsets"]:
        raise DataError(
            f"the evaluation subsets of the run in {folder} would be drawn otherwise now than when it was begun: {advice}"
        )


def refuse_other_weights(folder: Path, recorded: dict[str, Any] | None, pretrained: dict[str, str] | None) -> None:
    """Refuse to go on with a run whose pretrained weights have changed.

    Raises:
        DataError: their SHA-256 is not the one in ``environment.json``.
    """
    before = (recorded or {}).get("pretrained")
    if before is not None and pretrained is not None and before["sha256"] != pretrained["sha256"]:
        raise DataError(
            f"the pretrained weights of the run in {folder} have changed since it was begun (SHA-256 {before['sha256'][:12]}…, "
            f"now {pretrained['sha256'][:12]}…): bring back the earlier ones, or take another hydra.run.dir to begin anew"
        )


def surroundings_before(folder: Path, recorded: dict[str, Any] | None, now: dict[str, Any]) -> list[dict[str, Any]]:
    """The environments in which a run was made so far, where that is another now; a warning says what has changed.

    Args:
        folder: of the run, for the message.
        recorded: the content of its ``environment.json``.
        now: what that is now.
    """
    if recorded is None:
        return []
    earlier = list(recorded.get("earlier", []))
    changes = [
        f"{what} {before} → {after}"
        for what, before, after in zip(*_of_interest(recorded), _of_interest(now)[1], strict=True)
        if before != after
    ]
    if not changes:
        return earlier
    log.warning(
        "the run in %s was begun elsewhere or otherwise, and the rest of it may differ by that: %s",
        folder,
        ", ".join(changes),
    )
    return [
        *earlier,
        {name: recorded.get(name) for name in ("clbench", "packages", "plug_ins", "device", "git", "command")},
    ]


def _of_interest(environment: dict[str, Any]) -> tuple[list[str], list[Any]]:
    """Names and values of what decides about results beside configuration and data."""
    packages = environment.get("packages", {})
    git = environment.get("git") or {}
    values = {
        "clbench": environment.get("clbench"),
        "commit": (git.get("commit") or "none")[:10] + (" with changes" if git.get("dirty") else ""),
        "torch": packages.get("torch"),
        "numpy": packages.get("numpy"),
        "device": environment.get("device"),
        "strategies of other packages": ", ".join(
            f"{name} {made['version'] or 'without a version'} (file {(made['sha256'] or 'unknown')[:10]})"
            for name, made in (environment.get("plug_ins") or {}).items()
        ),
    }
    return list(values), list(values.values())
