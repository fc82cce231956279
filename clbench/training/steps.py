"""The steps of a plan, as the trainer takes them."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from clbench.learning.base import Plan


class Step(NamedTuple):
    """One step of a plan, with the ids where the store wants them and the columns on the training device.

    Attributes:
        ids: int64 (B,), sample ids, new ones first, then replayed ones.
        n_new: how many are new.
        reference: int64 (B_reference,), ids of the reference samples, or None.
        reference_sizes, columns: see :class:`clbench.learning.base.Plan`.
    """

    ids: Tensor
    n_new: int
    reference: Tensor | None = None
    reference_sizes: tuple[int, ...] = ()
    columns: dict[str, Tensor] = {}  # noqa: RUF012 - never changed in place

    @property
    def shape(self) -> tuple[Any, ...]:
        """What has to be equal for steps of several runs to be one computation."""
        n_reference = None if self.reference is None else len(self.reference)
        columns = tuple((name, column.shape) for name, column in self.columns.items())
        return len(self.ids), self.n_new, n_reference, self.reference_sizes, columns


def steps_of(plan: Plan, index_device: torch.device, device: torch.device) -> list[Step]:
    """The steps of a plan: ids on ``index_device``, where the store of the samples wants them, columns on ``device``."""
    nothing = [None] * len(plan.new)
    reference = plan.reference or nothing
    moved = {id(r): r.to(index_device) for r in reference if r is not None}  # GEM names one tensor for every step
    steps = []
    for place, (new, replayed, looked_at) in enumerate(zip(plan.new, plan.replay or nothing, reference, strict=True)):
        ids = new if replayed is None else torch.cat([new, replayed])
        columns = {name: of_steps[place].to(device) for name, of_steps in plan.columns.items()}
        if looked_at is None:
            steps.append(Step(ids.to(index_device), len(new), columns=columns))
        else:
            steps.append(Step(ids.to(index_device), len(new), moved[id(looked_at)], plan.reference_sizes, columns))
    return steps
