"""Checkpoints: one file of tensors and plain values, written so that a kill at any instant leaves a whole one."""

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write ``state`` to ``path`` atomically: to a neighbouring file first, flushed to disk, then renamed."""
    state = _without_surroundings(state)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    with unfinished.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)


def _without_surroundings(value: Any) -> Any:
    """The same, with tensors that are views into larger ones copied: torch.save writes a view's whole storage."""
    if isinstance(value, dict):
        return {key: _without_surroundings(part) for key, part in value.items()}
    if isinstance(value, Tensor) and value.untyped_storage().nbytes() > value.numel() * value.element_size():
        return value.clone()
    return value


def load_checkpoint(path: Path, device: torch.device) -> dict[str, Any] | None:
    """The state saved at ``path``, tensors on ``device``; None where there is none. Runs no code from the file."""
    if not path.exists():
        return None
    return torch.load(path, map_location=device, weights_only=True)
