"""``summary.json``: its fields, its format, and what is refused when it is read. :class:`RunFolder` writes and reads it."""

from pathlib import Path
from typing import Any, Literal, Required, TypedDict, cast, get_args

from clbench.errors import DamagedRecord

FORMAT = 1
"""The format that is written. It goes up when a field changes its meaning or goes away, not when one is added."""

Status = Literal["running", "finished", "diverged", "failed", "interrupted"]

STATUSES: tuple[str, ...] = get_args(Status)


class Costs(TypedDict):
    """What a run has cost. Records from before there was a format may lack some."""

    seconds: float
    """Of training and evaluation."""
    evaluation_seconds: float
    iterations: int
    """Optimizer steps."""
    parameters: int
    trainable_parameters: int
    strategy_bytes: int
    """Buffers that the strategies keep beside the network."""
    forward_flops_per_sample: int
    step_cost: float | None
    """Floating-point operations of a step of the last task in units of a step of finetuning; None where they were not counted."""
    peak_memory_bytes: int | None
    """None where it cannot be measured."""
    peak_memory_of: str | None
    """``run``, or ``fleet`` where it is that of all runs trained together."""


class Summary(TypedDict, total=False):
    """Content of ``summary.json``: at first the status alone, of a run that has failed its reason, and at the end all fields."""

    format: int
    """:data:`FORMAT` when it was written; missing in records from before there was one, which are read all the same."""
    status: Required[Status]
    reason: str | None
    """Why the run failed, diverged or was interrupted."""
    strategy: str
    """Names of the main strategy and of those added to it, with ``+`` between."""
    scenario: str
    scenario_hash: str
    scenario_note: str | None
    notes: list[str]
    seed: int
    split: str
    """``test`` or ``validation``."""
    metrics: dict[str, Any]
    """Those of :func:`clbench.evaluation.metrics.summarise`."""
    costs: Costs


def readable(content: Any, file: Path) -> Summary:
    """The content of a ``summary.json``, where this version of clbench knows what its fields mean.

    Raises:
        DamagedRecord: it is of a newer format, or not what a run writes.
    """
    if not isinstance(content, dict) or content.get("status") not in STATUSES:
        found = repr(content.get("status")) if isinstance(content, dict) else f"a {type(content).__name__}"
        raise DamagedRecord(f"{file} is damaged: its status is {found}, none of {', '.join(STATUSES)}")
    written = content.get("format", FORMAT)
    if type(written) is not int or written < 1:
        raise DamagedRecord(f"{file} is damaged: its format is {written!r}, which is no number from 1 on")
    if written > FORMAT:
        raise DamagedRecord(
            f"{file} has format {written}, and this version of clbench knows formats up to {FORMAT}: read it with the version "
            "that wrote it, or a newer one"
        )
    return cast(Summary, content)
