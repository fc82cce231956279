"""InfLoRA: low-rank updates within the directions that earlier tasks' inputs leave free (Liang & Li 2024, arXiv:2404.00228).

    y = W x + b + (α / r) · Σ_{i ≤ t} B_i A_i x        B_t and the head are trained; A_t is fixed before task t

Training B_t alone is training W along the rows of A_t. These are chosen per layer, from G = mean of x xᵀ over all of the task's
inputs (tokens) x, and the projector P onto the free directions, P = I at first:

* before the task, under the network so far: A_t = Uᵀ / √3, where U are the r directions of range(P) with the largest energy
  uᵀ M u, M = Pᵀ G² P;
* after it, under the trained network, for M of the new G: as many of the directions with the largest energy leave P as it takes
  until what lies outside of it has the share ε_t = ε + (1 − ε) t / T of tr G², t from 0.

So the updates of later tasks do nothing to inputs that lie outside of range(P). 1/√3 is the mean length of a row that is drawn as
usual. Queries, keys and values have one input, and so the same A.

``energy=eigen_squared`` is that of the authors' code (liangyanshuo/InfLoRA), which takes singular values of G where the paper has
those of the inputs: the eigenvalues of G count squared, so that fewer directions are kept. ``energy=eigen`` is the paper's:
G in place of G².

Differences from their code: the inputs are those of images as they are, there of randomly cropped ones. The first task protects
as many directions as reach ε_0, there one fewer; where that is more than half of them the code keeps the wrong half and stops.
DualGPM, which stores the smaller of two bases of P, is a matter of memory: here P is stored, n_in² numbers a layer in double
precision, of a shape that never changes. Where fewer than r directions are left free, the other rows of A_t are 0. Finished
updates are merged (:mod:`clbench.strategies.inc_lora`). Their loss is over the current task's classes
(``scenario.logit_scope=current``).

Reported after every task: ``adapter_parameters``; ``free_share``, trace(P) / n_in of every layer.
"""

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from clbench.learning.base import Measurement, Needs, buffer_name
from clbench.models.continual import ContinualModel
from clbench.models.lora import AdaptedLinear, adapted_layers
from clbench.options import option
from clbench.registry import STRATEGIES
from clbench.scenarios.scenario import Scenario
from clbench.scenarios.task import Task
from clbench.strategies.inc_lora import IncLoRA
from clbench.strategies.lora import LoRAConfig

SAMPLES_AT_ONCE = 256
"""Of which inputs are looked at in one forward pass."""


@dataclass
class InfLoRAConfig(LoRAConfig):
    """Options of ``strategy=inflora``."""

    retained: float = option(
        help="ε: share of the energy of the first task's inputs that is protected", above=0, at_most=1
    )
    energy: str = option(
        help="what weighs directions of inputs: squared eigenvalues of their second moments, or these",
        choices=("eigen_squared", "eigen"),
    )


@STRATEGIES.register("inflora")
class InfLoRA(IncLoRA):
    """A fresh adapter a task, whose A is fixed where earlier inputs are not."""

    config = InfLoRAConfig
    needs = Needs(transformer=True, traits=frozenset({"redraws weights"}))
    options: InfLoRAConfig
    retained: Tensor

    def __init__(self, config: InfLoRAConfig, model: ContinualModel, scenario: Scenario) -> None:
        super().__init__(config, model, scenario)
        for name, layer in self._layers().items():
            self.register_buffer(buffer_name("free", name), torch.eye(layer.base.in_features, dtype=torch.float64))
            for adapter in layer.adapters.values():
                adapter.A.requires_grad_(False)

    def begin_task(self, task: Task) -> Tensor | None:
        """Choose A; B is 0. The directions of what B means are others now: it counts as drawn anew."""
        moments = self._moments(task)
        renewed = {}
        for name, layer in self._layers().items():
            U, _ = directions(moments[name], self._free(name), self.options.energy)
            A = torch.zeros_like(next(iter(layer.adapters.values())).get_parameter("A"))
            rows = min(len(A), U.shape[1])
            A[:rows] = U[:, :rows].T / math.sqrt(3)
            for part, adapter in layer.adapters.items():
                # A tensor of its own: members of a fleet may have shared the one before.
                adapter.A = nn.Parameter(A.clone(), requires_grad=False)
                renewed[f"backbone.{name}.adapters.{part}.B"] = torch.ones_like(
                    adapter.get_parameter("B"), dtype=torch.bool
                )
        return self.model.flat_mask(renewed) if task.index else None

    def end_task(self, task: Task) -> None:
        """Merge, and take what the task's inputs need from the free directions."""
        super().end_task(task)
        share = self.options.retained + (1 - self.options.retained) * task.index / task.n_tasks
        for name, G in self._moments(task).items():
            free = self._free(name)
            free.copy_(protected(G, free, share, self.options.energy))

    def measurements(self) -> list[Measurement]:
        """Also the share of directions that is left to learn in."""
        shares = {name: self._free(name).trace() / layer.base.in_features for name, layer in self._layers().items()}
        return [*super().measurements(), *(Measurement("free_share", name, float(s)) for name, s in shares.items())]

    @torch.no_grad()
    def _moments(self, task: Task) -> dict[str, Tensor]:
        """For every adapted layer G, the mean of x xᵀ over its inputs in the task, float64 (n_in, n_in)."""
        sums = {name: torch.zeros_like(self._free(name)) for name in self._layers()}
        counts = dict.fromkeys(sums, 0)

        def add(name: str, _layer: nn.Module, inputs: tuple[Tensor]) -> None:
            x = inputs[0].flatten(0, -2).double()
            sums[name] += x.T @ x
            counts[name] += len(x)

        hooks = [layer.register_forward_pre_hook(partial(add, name)) for name, layer in self._layers().items()]
        try:
            with self.model.in_evaluation_mode():
                for samples in task.batches(task.ids, SAMPLES_AT_ONCE):
                    self.model.features(samples.x)
        finally:
            for hook in hooks:
                hook.remove()
        return {name: total / counts[name] for name, total in sums.items()}

    def _layers(self) -> dict[str, AdaptedLinear]:
        return adapted_layers(self.model.backbone)

    def _free(self, layer: str) -> Tensor:
        """P of a layer."""
        return self.get_buffer(buffer_name("free", layer))


def directions(G: Tensor, free: Tensor, energy: str) -> tuple[Tensor, Tensor]:
    """Orthonormal free directions (n_in, k) as columns, and their energies (k,), the largest first.

    Args:
        G: second moments (n_in, n_in) of inputs.
        free: the projector (n_in, n_in) onto the k free directions.
        energy: ``eigen_squared`` or ``eigen``.
    """
    values, vectors = torch.linalg.eigh(free)
    basis = vectors[:, values > 0.5]  # a projector's eigenvalues are 0 and 1
    M = basis.T @ (G @ G if energy == "eigen_squared" else G) @ basis
    energies, within = torch.linalg.eigh(M)
    U = basis @ within
    largest = U.gather(0, U.abs().argmax(0, keepdim=True))
    return (U * largest.sign()).flip(1), energies.flip(0)  # of two signs the one that rounding does not change


def protected(G: Tensor, free: Tensor, share: float, energy: str) -> Tensor:
    """The projector ``free`` without the fewest directions whose loss leaves at most 1 − ``share`` of G's energy in it."""
    U, energies = directions(G, free, energy)
    total = G.square().sum() if energy == "eigen_squared" else G.trace()
    left = energies.sum() - torch.cat([energies.new_zeros(1), energies.cumsum(0)])  # with 0, 1, … directions taken
    n = min(int((left > (1 - share) * total).sum()), len(energies))
    return free - U[:, :n] @ U[:, :n].T
