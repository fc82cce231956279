"""DST: continual learning with dynamic sparse training (Yildirim et al. 2024, arXiv:2308.14831).

Every task t trains a sparse subnetwork θ ⊙ M_t. Weights that an earlier task uses are frozen but may be in M_t (reuse):

    before      M_t random, d Σ N_l weights in all, by layer as ``init`` says (see clbench.learning.parts.sparsity)
    a step      θ ← optimizer, where M_t is 1 and no earlier mask is; every other weight keeps its value (0 if it is nobody's)
    every ΔT    in each layer, with ρ annealed over the task:
                drop   n = ⌈ρ |M_t|⌉ active weights, those of least |θ|
                grow   n inactive ones: ``random``; ``unfired``, never active in this task, then random; ``gradient``, largest
                       |∂L/∂(θ ⊙ M_t)|; ``momentum``, largest average of it, m ← 0.9 m + 0.1 ∂L/∂(θ ⊙ M_t)
    after       M_t is stored; its weights are frozen

Task j is predicted by θ ⊙ M_j, with biases, BatchNorm parameters and statistics of its own: it is never forgotten.

Masked are all weights but biases and normalisation layers; of the head a task's own rows (no other task sees them). As in the
authors' code weights just dropped may grow again, and then keep their value; others start at 0, and those of an earlier task
at that task's value. The gradient of frozen weights counts as 0 in growth. Differences from that code:

* A grown weight of an earlier task has its value at once. There training sees 0, and the merged network the old value.
* The head is one for each task; there it is a mask over the outputs of all tasks, and accuracy an argmax over all of them.
* Layers get an exact number of weights, and grow exactly as many as they drop; there these are Bernoulli draws.
* BatchNorm has running statistics for each task; there it uses those of the test batch.
* ``momentum`` averages the gradients itself; there it is the optimizer's momentum. Moments of masked weights stay 0.
* Nothing is dropped after a task's last step. Options that theirs has not: ``er``, ``linear`` and ``constant`` schedules,
  ``stop_fraction``, ``mask_first_last``, ``reuse=none``, ``on_grow_owned=forbid``, ``new_weights=kaiming``, ``switch_below``.

``switch_below`` is ours, after the paper's finding that erk is better at low and uniform at high sparsity: from the first task
at whose start less than that share of the weights is free, ``late_init`` and ``late_growth`` replace ``init`` and ``growth``.

Stores for each task its mask (a byte a weight), biases, normalisation parameters and statistics; beside them the frozen
weights and a few vectors of the network's size.

Reported after task t (|·| counts weights, U_t = M_0 ∪ … ∪ M_t; N: of the masked tensors, N_t: of those the task can reach):

==========================  ===========================================================================================
``density``                 |M_t| / N_t, in all and of every layer
``overlap``                 |M_t ∩ M_j| / |M_t|, for every earlier task j
``reuse``                   |M_t ∩ U_(t−1)| / |M_t|
``grown_from_earlier``      of the weights that became active in training, the share that earlier tasks use (0 of none)
``free``                    1 − |U_t| / N, in all and of every layer
``used``                    |U_t| / N
``mask_bits``               (t + 1) N, of all masks so far
``forward_flops``           of one image: Σ_l FLOPs_l |M_t ∩ l| / N_l, and what is done without masked weights
``dense_forward_flops``     the same with all of N_t active
==========================  ===========================================================================================
"""

import logging
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from clbench.config import StrategyConfig
from clbench.errors import ConfigError
from clbench.learning.base import Batch, Measurement, Needs, Outputs, Plan, Strategy
from clbench.learning.parts.masked_layers import fix_norm_layers, flops_by_layer, masked_layers
from clbench.learning.parts.sparsity import (
    GROWTH_RULES,
    INITIALISATIONS,
    SCHEDULES,
    annealed,
    growth_priority,
    layer_counts,
    ordered,
    update_mask,
)
from clbench.learning.parts.task_statistics import TaskStatistics
from clbench.models.continual import ContinualModel
from clbench.options import option
from clbench.registry import STRATEGIES
from clbench.scenarios.scenario import Scenario
from clbench.scenarios.task import Task
from clbench.seeding import hashed_uniform, stream_seed

log = logging.getLogger(__name__)

MOMENTUM = 0.9
"""Decay of the average of gradients that ``growth=momentum`` looks at."""


@dataclass
class DSTConfig(StrategyConfig):
    """Options of ``strategy=dst``."""

    init: str = option(help="how a task's active weights are spread over the layers", choices=INITIALISATIONS)
    growth: str = option(help="which weights become active", choices=GROWTH_RULES)
    density: float = option(help="share d of the weights that are active in a task", above=0, at_most=1)
    drop_fraction: float = option(
        help="share ρ of a layer's active weights dropped at a task's start", at_least=0, at_most=1
    )
    drop_fraction_end: float = option(help="the same at the task's end", at_least=0, at_most=1)
    drop_schedule: str = option(help="how ρ goes from the one to the other; constant: it stays", choices=SCHEDULES)
    update_every: int = option(help="steps ΔT between two changes of the mask", at_least=1)
    stop_fraction: float = option(
        help="share of the task's steps after which the mask stays; 0: as it was drawn", at_least=0, at_most=1
    )
    mask_first_last: bool = option(help="mask the first layer and the head as well, else they are dense")
    reuse: str = option(help="which weights of earlier tasks a mask may contain", choices=("all", "none"))
    on_grow_owned: str = option(
        help="a weight of an earlier task may grow, with its old value at once; or may not",
        choices=("restore_old", "forbid"),
    )
    new_weights: str = option(
        help="what weights of no task start from in later tasks: 0, or torch's initialisation of the layer (uniform in "
        "±1/√fan-in)",
        choices=("zero", "kaiming"),
    )
    norm_affine: bool = option(help="train scales and shifts of normalisation layers, each task its own; else 1 and 0")
    switch_below: float | None = option(
        help="share of free weights below which late_init and late_growth are used; null: never", above=0, at_most=1
    )
    late_init: str = option(help="init after the switch", choices=INITIALISATIONS)
    late_growth: str = option(help="growth after the switch", choices=GROWTH_RULES)


@STRATEGIES.register("dst")
class DST(Strategy):
    """A sparse subnetwork for each task, its connections found while it trains."""

    config = DSTConfig
    needs = Needs(settings=("task",), traits=frozenset({"linear head"}))
    options: DSTConfig
    drop_fraction: Tensor
    drop_fraction_end: Tensor
    stop_fraction: Tensor
    active: Tensor
    trainable: Tensor
    owned: Tensor
    growable: Tensor
    merged: Tensor
    masks: Tensor
    own: Tensor
    n_steps: Tensor
    key: Tensor
    late: Tensor
    grown: Tensor
    grown_from_earlier: Tensor
    fired: Tensor
    dense_gradient: Tensor
    momentum: Tensor

    def __init__(self, config: DSTConfig, model: ContinualModel, scenario: Scenario) -> None:
        super().__init__(config, model, scenario)
        if not config.norm_affine:
            fix_norm_layers(model)
        self._shapes = {name: parameter.shape for name, parameter in model.trained().items()}
        self.layers = masked_layers(self._shapes)
        self._masked = {layer.name for layer in self.layers}
        self._n_outputs = [len(classes) for classes in scenario.task_classes]
        self._refuse_nonsense()
        rules = {config.growth} if config.switch_below is None else {config.growth, config.late_growth}
        self._rules = rules
        self._needs_dense_gradient = bool(rules & {"gradient", "momentum"})
        self._flops, self._other_flops = flops_by_layer(model, scenario.blank(model.head.weight.device), self.layers)

        theta = self.flat_parameters().detach()
        n_own = sum(shape.numel() for name, shape in self._shapes.items() if name not in self._masked)
        # As numbers and not as bool, these are multiplied eight times as fast on a processor.
        self.register_buffer("active", torch.ones_like(theta))  # M_t; 1 where nothing is masked
        self.register_buffer("trainable", torch.ones_like(theta))  # M_t without what earlier tasks use
        self.register_buffer("owned", torch.zeros_like(theta, dtype=torch.bool))  # used by an earlier task
        self.register_buffer("growable", torch.zeros_like(theta, dtype=torch.bool))
        self.register_buffer("merged", torch.zeros_like(theta))  # values of owned weights, else 0
        self.register_buffer("masks", theta.new_zeros(scenario.n_tasks, len(theta), dtype=torch.bool))
        self.register_buffer("own", theta.new_zeros(scenario.n_tasks, n_own))  # biases and the like of every task
        self.register_buffer("n_steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("key", torch.zeros((), dtype=torch.int64))  # of the task's random numbers
        self.register_buffer("late", torch.zeros((), dtype=torch.bool))
        self.register_buffer("grown", torch.zeros((), dtype=torch.int64))
        self.register_buffer("grown_from_earlier", torch.zeros((), dtype=torch.int64))
        if "unfired" in rules:
            self.register_buffer("fired", torch.zeros_like(self.owned))
        if self._needs_dense_gradient:
            self.register_buffer("dense_gradient", torch.zeros_like(theta))
        if "momentum" in rules:
            self.register_buffer("momentum", torch.zeros_like(theta))
        self.statistics = TaskStatistics(model, scenario.n_tasks)

    # ---- task boundaries ------------------------------------------------------------------------------------------

    @torch.no_grad()
    def begin_task(self, task: Task) -> Tensor:
        """Draw the mask, and set the weights that are free; returns which of all weights are others than before."""
        before = self.flat_parameters()
        late = self.options.switch_below is not None and self._free(self._all_layers()) < self.options.switch_below
        self.late.fill_(late)
        reachable = self._reachable(task.index)
        shares = self.options.reuse == "all"
        mask = self._drawn(task, reachable if shares else reachable & ~self.owned)
        self.growable.copy_(
            reachable if shares and self.options.on_grow_owned == "restore_old" else reachable & ~self.owned
        )
        self._activate(mask)
        if task.index > 0:
            self._renew(task)
        self._hold()
        self.key.fill_(stream_seed(task.seed, "growth", task.index))
        self.grown.zero_()
        self.grown_from_earlier.zero_()
        if "unfired" in self._rules:
            self.fired.copy_(mask)
        if "momentum" in self._rules:
            self.momentum.zero_()
        return self.flat_parameters() != before

    def plan(self, task: Task, plan: Plan) -> Plan:
        """Take note of the number of steps, over which ρ is annealed."""
        self.n_steps.fill_(len(plan.new))
        return plan

    @torch.no_grad()
    def end_task(self, task: Task) -> None:
        """Store what makes up the task's network, and freeze its weights."""
        mask = self.active > 0
        self.masks[task.index] = mask
        self.own[task.index] = torch.cat(
            [p.reshape(-1) for name, p in self.model.trained().items() if name not in self._masked]
        )
        self.statistics.store(self.model, task.index)
        self.merged.copy_(self.flat_parameters())
        self.owned.logical_or_(mask & self._all_layers())

    def _drawn(self, task: Task, available: Tensor) -> Tensor:
        """A mask (P,) with the layers' numbers of weights, at random among those available (P,)."""
        init = self.options.late_init if self.late else self.options.init
        generator = task.torch_generator("mask")
        mask = torch.ones_like(self.owned)
        for layer, count in zip(self.layers, self._counts(init, task.index), strict=True):
            places = available[layer.part].nonzero()[:, 0]
            if len(places) < count:
                log.warning(
                    "task %d: only %d weights of %s are free, %d are wanted (strategy.reuse=none)",
                    task.index, len(places), layer.name, count,
                )  # fmt: skip
            chosen = torch.randperm(len(places), generator=generator)[:count]
            part = torch.zeros_like(mask[layer.part])
            part[places[chosen.to(places.device)]] = True
            mask[layer.part] = part
        return mask

    def _counts(self, init: str, task: int) -> list[int]:
        """Active weights of every layer."""
        shapes = self._reachable_shapes(task)
        if self.options.mask_first_last:
            return layer_counts(shapes, self.options.density, init)
        inner = layer_counts(shapes[1:-1], self.options.density, init)
        counts = [math.prod(shape) for shape in shapes]
        counts[1:-1] = inner
        return counts

    def _reachable_shapes(self, task: int) -> list[tuple[int, ...]]:
        """Dimensions of the layers, of the head's only the task's own rows."""
        head = self.layers[-1].shape
        return [*(tuple(layer.shape) for layer in self.layers[:-1]), (self._n_outputs[task], *head[1:])]

    def _reachable(self, task: int) -> Tensor:
        """bool (P,): the masked weights that samples of the task can depend on."""
        reachable = self._all_layers()
        head = self.layers[-1]
        own_rows = self.model.answer.class_task == task
        reachable[head.part] = own_rows[:, None].expand(head.shape).reshape(-1)
        return reachable

    def _all_layers(self) -> Tensor:
        """bool (P,): the masked weights."""
        masked = torch.zeros_like(self.owned)
        for layer in self.layers:
            masked[layer.part] = True
        return masked

    def _free(self, where: Tensor | slice) -> float:
        """Of some masked weights, bool (P,) or a slice, the share that no task uses."""
        return 1 - self.owned[where].double().mean().item()

    def _renew(self, task: Task) -> None:
        """Set the task's free weights to what new weights start from."""
        generator = task.torch_generator("new_weights")
        parameters = self.model.trained()
        for layer in self.layers:
            values = torch.zeros(layer.shape)
            if self.options.new_weights == "kaiming":
                bound = 1 / math.sqrt(math.prod(layer.shape[1:]))
                values.uniform_(-bound, bound, generator=generator)
            parameters[layer.name].copy_(values)  # _hold then restores those of earlier tasks

    # ---- within the loop ------------------------------------------------------------------------------------------

    def outputs(self, batch: Batch) -> Outputs:
        return Outputs(*self.model.with_weights(self._current(), batch.samples.x))

    def edit_gradients(self, gradient: Tensor, batch: Batch) -> Tensor:
        if self._needs_dense_gradient:
            self.dense_gradient.copy_(gradient)
        return gradient * self.trainable

    @torch.no_grad()
    def after_step(self, step: int, batch: Batch) -> Tensor | None:
        """Every ΔT steps another mask; returns which of the task's own weights have grown, from 0."""
        self._hold()
        if "momentum" in self._rules:
            self.momentum.mul_(MOMENTUM).add_(self.dense_gradient, alpha=1 - MOMENTUM)
        if step % self.options.update_every:
            return None
        before = self.trainable > 0
        self._activate(self._updated(step))
        self._hold()
        return (self.trainable > 0) & ~before

    def _current(self) -> dict[str, Tensor]:
        """The weights of the task being learned, by the names of the model's parameters."""
        weights = self.model.trained()
        for layer in self.layers:
            theta, mask = weights[layer.name], self.active[layer.part].view(layer.shape)
            if self._needs_dense_gradient:
                # θ ⊙ M exactly, as x + (−x) is 0 and x + 0 is x; but the gradient reaches masked weights too.
                weights[layer.name] = theta + (theta * mask - theta).detach()
            else:
                weights[layer.name] = theta * mask
        return weights

    def _activate(self, mask: Tensor) -> None:
        """Make ``mask`` (P,) that of the task being learned."""
        self.active.copy_(mask)
        self.trainable.copy_(mask & ~self.owned)

    def _hold(self) -> None:
        """Undo what the optimizer has done (momentum, weight decay) to weights that are not trained."""
        parameters = self.model.trained()
        for layer in self.layers:
            theta = parameters[layer.name]
            trainable, merged = (t[layer.part].view(layer.shape) for t in (self.trainable, self.merged))
            # merged is 0 where a weight is trained, so that this picks one of the two, exactly.
            theta.mul_(trainable).add_(merged)

    def _updated(self, step: int) -> Tensor:
        """The mask (P,) after dropping and growing; counts what has grown."""
        options = self.options
        rho = annealed(options.drop_schedule, self.drop_fraction, self.drop_fraction_end, step / self.n_steps.double())
        goes_on = step < self.stop_fraction.double() * self.n_steps  # with 1 too, not after the last step
        uniform = hashed_uniform(self.key ^ stream_seed(step, "growth"), len(self.owned)) * 2**30
        draws = uniform.to(torch.int32)
        more_draws = ((uniform - draws) * 2**23).to(torch.int32)  # 23 of the 53 bits, independent of the first 30
        growth = self._growth_priority(options.growth, draws)
        if options.switch_below is not None and options.late_growth != options.growth:
            growth = torch.where(self.late, self._growth_priority(options.late_growth, draws), growth)
        drop_keys = ordered(self.flat_parameters().abs(), more_draws)
        before = self.active > 0
        after = before.clone()
        for layer in self.layers:
            mask = before[layer.part]
            n = torch.where(goes_on, torch.ceil(rho * mask.sum()).long(), 0)
            after[layer.part].copy_(
                update_mask(mask, n, drop_keys[layer.part], growth[layer.part], self.growable[layer.part])
            )
        grown = after & ~before
        self.grown.add_(grown.sum())
        self.grown_from_earlier.add_((grown & self.owned).sum())
        if "unfired" in self._rules:
            self.fired.logical_or_(after)
        return after

    def _growth_priority(self, rule: str, draws: Tensor) -> Tensor:
        if rule in ("random", "unfired"):
            return growth_priority(rule, draws, fired=self.fired if rule == "unfired" else None)
        slope = self.dense_gradient if rule == "gradient" else self.momentum
        return growth_priority(rule, draws, strength=torch.where(self.owned, 0, slope.abs()))

    # ---- prediction -----------------------------------------------------------------------------------------------

    def predict(self, x: Tensor, task: Tensor | None) -> Tensor:
        """By the network of each sample's task: every network sees all samples."""
        assert task is not None, "the scenario gives each sample's task"
        logits = self.model.with_weights(self._current(), x)[1]
        for learned in range(self.tasks_learned):
            of_task = self.model.with_weights(self._stored(learned), x)[1]
            logits = torch.where((task == learned)[:, None], of_task, logits)
        return self.model.answer.restrict(logits, task, predicting=True)

    def predict_task(self, x: Tensor, task: int) -> Tensor:
        """By the network of the task; one that is not learned yet has that of the task being learned."""
        state = self._stored(task) if task < self.tasks_learned else self._current()
        of_task = torch.full((len(x),), task, device=x.device)
        return self.model.answer.restrict(self.model.with_weights(state, x)[1], of_task, predicting=True)

    def _stored(self, task: int) -> dict[str, Tensor]:
        """The network of a task that has been learned."""
        weights = self.model.trained()
        mask = self.masks[task].to(self.active.dtype)
        for layer in self.layers:
            weights[layer.name] = weights[layer.name] * mask[layer.part].view(layer.shape)
        names = [name for name in self._shapes if name not in self._masked]
        pieces = self.own[task].split([self._shapes[name].numel() for name in names])
        own = {name: piece.view(self._shapes[name]) for name, piece in zip(names, pieces, strict=True)}
        return weights | own | self.statistics.of(task)

    # ---- reporting ------------------------------------------------------------------------------------------------

    def measurements(self) -> list[Measurement]:
        task = self.tasks_learned - 1
        mask = self.masks[task] & self._all_layers()
        sizes = [math.prod(shape) for shape in self._reachable_shapes(task)]
        counts = [int(mask[layer.part].sum()) for layer in self.layers]
        n_active, n_all = sum(counts), int(self._all_layers().sum())
        earlier = self.masks[:task].any(0)
        reported = [Measurement("density", "", n_active / sum(sizes))]
        reported += [
            Measurement("density", layer.name, count / size)
            for layer, count, size in zip(self.layers, counts, sizes, strict=True)
        ]
        reported += [
            Measurement("overlap", f"task {other}", int((mask & self.masks[other]).sum()) / n_active)
            for other in range(task)
        ]
        reported += [
            Measurement("reuse", "", int((mask & earlier).sum()) / n_active),
            Measurement("grown_from_earlier", "", int(self.grown_from_earlier) / max(1, int(self.grown))),
            Measurement("free", "", self._free(self._all_layers())),
            *(Measurement("free", layer.name, self._free(layer.part)) for layer in self.layers),
            Measurement("used", "", 1 - self._free(self._all_layers())),
            Measurement("mask_bits", "", (task + 1) * n_all),
            Measurement("forward_flops", "", self._forward_flops(counts)),
            Measurement("dense_forward_flops", "", self._forward_flops(sizes)),
        ]
        return reported

    def _forward_flops(self, counts: list[int]) -> float:
        """Floating-point operations of one image's forward pass with so many active weights in the layers."""
        of_layers = zip(self._flops, counts, self.layers, strict=True)
        return self._other_flops + sum(flops * count / layer.shape.numel() for flops, count, layer in of_layers)

    def notes(self) -> list[str]:
        if self.options.switch_below is None:
            return []
        return ["the switch of initialisation and growth by the share of free weights is not the paper's"]

    # ---- checks ---------------------------------------------------------------------------------------------------

    def _refuse_nonsense(self) -> None:
        options = self.options
        if options.reuse == "none" and options.new_weights == "zero":
            raise ConfigError(
                "strategy.reuse=none with strategy.new_weights=zero starts every later task from a network of zeros, which has "
                "no gradient: choose new_weights=kaiming or reuse=all"
            )
        if options.reuse == "none" and not options.mask_first_last:
            raise ConfigError(
                "strategy.reuse=none with strategy.mask_first_last=false leaves nothing of the first layer to later tasks: "
                "choose mask_first_last=true or reuse=all"
            )
        if options.drop_schedule != "constant" and options.drop_fraction_end > options.drop_fraction:
            raise ConfigError(
                f"strategy.drop_fraction_end={options.drop_fraction_end} is out of range: it has to be at most "
                f"drop_fraction={options.drop_fraction}"
            )
        for init in [options.init] if options.switch_below is None else [options.init, options.late_init]:
            for task in range(len(self._n_outputs)):
                empty = [layer.name for layer, n in zip(self.layers, self._counts(init, task), strict=True) if not n]
                if empty:
                    raise ConfigError(
                        f"strategy.density={options.density} is too low: it leaves no weight to {', '.join(empty)} (init={init})"
                    )
