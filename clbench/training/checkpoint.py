"""Checkpoints: one file of tensors and plain values, written so that a kill at any instant leaves a whole one."""

import os
import pickle
from io import BufferedWriter
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch import Tensor, nn

from clbench.errors import DamagedRecord
from clbench.machine_errors import is_out_of_memory
from clbench.records.run_folder import replacing

BROKEN = (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError)
"""What torch makes of a file that is broken, whatever is wrong with it."""


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write ``state`` to ``path`` atomically: to a neighbouring file first, flushed to disk, then renamed.

    Raises:
        OSError: it cannot be written; what was there before is there still.
    """
    state = _without_surroundings(state)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as unfinished, unfinished.open("wb") as file:
        noting = _Noting(file)
        try:
            torch.save(state, cast(IO[bytes], noting))
        except RuntimeError as error:  # torch's writer makes one of whatever the file raises
            if noting.failure is not None:
                raise noting.failure from error
            raise
        file.flush()
        os.fsync(file.fileno())


class _Noting:
    """A file to write to that remembers why it could not be written."""

    def __init__(self, file: BufferedWriter) -> None:
        self._file = file
        self.failure: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self.failure = error
            raise

    def flush(self) -> None:
        self._file.flush()


def _without_surroundings(value: Any) -> Any:
    """The same, with tensors that are views into larger ones copied: torch.save writes a view's whole storage."""
    if isinstance(value, dict):
        return {key: _without_surroundings(part) for key, part in value.items()}
    if isinstance(value, Tensor) and value.untyped_storage().nbytes() > value.numel() * value.element_size():
        return value.clone()
    return value


def load_checkpoint(path: Path, device: torch.device) -> dict[str, Any] | None:
    """The state saved at ``path``, tensors on ``device``; None where there is none. Runs no code from the file.

    Raises:
        DamagedRecord: the file is cut off, or no checkpoint. It is left as it is.
    """
    if not path.exists():
        return None
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except BROKEN as error:
        if is_out_of_memory(error) or getattr(error, "filename", None) is not None:
            raise  # it could not be held, or not be opened
        raise DamagedRecord(_damaged(path, str(error))) from error
    if not isinstance(state, dict) or "position" not in state:
        raise DamagedRecord(_damaged(path, "it holds no state of a run"))
    return state


def position_in(state: dict[str, Any], path: Path) -> dict[str, int]:
    """Where in its run the ``state`` saved at ``path`` lies.

    Raises:
        DamagedRecord: it does not say.
    """
    position = state["position"]
    if not isinstance(position, dict) or not {"task", "step", "iteration"} <= position.keys():
        raise DamagedRecord(_damaged(path, "it holds no state of a run"))
    return position


def load_weights(learner: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    """Give ``learner`` the state that the checkpoint at ``path`` holds.

    Raises:
        DamagedRecord: it is that of another network or method.
    """
    try:
        learner.load_state_dict(state)
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        reason = " ".join(str(error).split()[:40])
        raise DamagedRecord(
            f"the checkpoint {path} does not fit the run, which another version of clbench may have begun ({reason}): go on with "
            "that version, or move it away to begin anew"
        ) from error


def _damaged(path: Path, reason: str) -> str:
    first = (reason.strip().splitlines() or ["it is empty"])[0]
    return (
        f"the checkpoint {path} is damaged ({first}): put a whole copy in its place, or move it away to begin the run anew by "
        "the same command"
    )
