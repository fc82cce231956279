"""The steps of a plan, as the trainer takes them."""

from collections.abc import Callable
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
        replay_slots, reference_slots: int64 (n,), on the training device, or None.
        reference_sizes, columns: see :class:`clbench.learning.base.Plan`.
    """

    ids: Tensor
    n_new: int
    reference: Tensor | None = None
    reference_sizes: tuple[int, ...] = ()
    replay_slots: Tensor | None = None
    reference_slots: Tensor | None = None
    columns: dict[str, Tensor] = {}  # noqa: RUF012 - never changed in place

    def recalled(self, recall: Callable[[Tensor], Tensor]) -> "Step":
        """The step with ids for its slots, as ``recall`` gives them."""
        step = self
        if step.replay_slots is not None:
            replayed = recall(step.replay_slots).to(step.ids.device, non_blocking=step.ids.is_cuda)
            step = step._replace(ids=torch.cat([step.ids, replayed]), replay_slots=None)
        if step.reference_slots is not None:
            looked_at = recall(step.reference_slots).to(step.ids.device, non_blocking=step.ids.is_cuda)
            step = step._replace(reference=looked_at, reference_slots=None)
        return step

    @property
    def shape(self) -> tuple[Any, ...]:
        """What has to be equal for steps of several runs to be one computation."""
        named = (self.reference, self.replay_slots, self.reference_slots)
        lengths = tuple(None if tensor is None else len(tensor) for tensor in named)
        columns = tuple((name, column.shape) for name, column in self.columns.items())
        return len(self.ids), self.n_new, lengths, self.reference_sizes, columns


def steps_of(plan: Plan, index_device: torch.device, device: torch.device) -> list[Step]:
    """The steps of a plan: ids on ``index_device``, where the store of the samples wants them, columns on ``device``."""
    nothing = [None] * len(plan.new)
    reference = plan.reference or nothing
    moved = {id(r): r.to(index_device) for r in reference if r is not None}  # GEM names one tensor for every step

    def slots(of_steps: list[Tensor] | None, place: int) -> Tensor | None:
        return None if of_steps is None else of_steps[place].to(device)

    steps = []
    for place, (new, replayed, looked_at) in enumerate(zip(plan.new, plan.replay or nothing, reference, strict=True)):
        ids = new if replayed is None else torch.cat([new, replayed])
        steps.append(
            Step(
                ids.to(index_device),
                len(new),
                None if looked_at is None else moved[id(looked_at)],
                plan.reference_sizes,
                slots(plan.replay_slots, place),
                slots(plan.reference_slots, place),
                {name: of_steps[place].to(device) for name, of_steps in plan.columns.items()},
            )
        )
    return steps
