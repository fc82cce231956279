"""OWM: orthogonal weights modification (Zeng et al. 2019, arXiv:1810.01256).

Every linear layer and convolution keeps a projector P onto the directions that the inputs seen so far leave free. Its gradient
is multiplied by P on the input side, so that the layer's outputs for those inputs hardly change:

    ∇W ← ∇W P                       W (n_out, n_in), its bias as one column more, for an input that is always 1
    P  ← P − k kᵀ / (α + rᵀ k),  k = P r        r (n_in,): the mean input of a mini-batch; P = I at first

For a convolution r is in turn every patch that its kernel sees of the mean feature map. Together the updates make
P = α (RᵀR + αI)⁻¹ with the r of all mini-batches as rows of R, where α is constant. The update is that of
:mod:`clbench.learning.parts.least_squares`.

α = α₀ γ^ρ, with ρ the share of the task's steps that have been taken, so that P hears more of inputs late in a task; α₀ and γ
of the head are options of their own.

``projector`` says which P the gradient is multiplied by:

* ``running``  the one that has taken in this mini-batch already, from the first mini-batch of the first task on: the authors'
               code. So the mean direction of a task's inputs is damped while that task is being learned.
* ``previous`` as it was when the task began, which protects earlier tasks alone (the first is learned without projection).

Facts of the authors' code (beijixiong3510/OWM): every mini-batch updates P and not the task's last pass alone, before the
projection; biases are a weight of the constant 1 (disjoint MNIST), fixed at random values (shuffled MNIST) or absent (CIFAR-10);
the optimizer is SGD with momentum, which is kept from task to task (disjoint MNIST) or started anew (CIFAR-10). Differences:

* Gradients are clipped, where that is asked for, after the projection and together; on disjoint MNIST theirs are clipped
  before it and layer by layer.
* Convolutions take every patch that they see; there every second one in both directions.
* The shuffled-MNIST code starts from P = I/α and has 1 in place of α, which scales every P by 1/α, a learning rate. Its
  dropout is ``model.dropout=0.2``, its initial weights are ``model.init=xavier_normal``; the unprojected norm penalty and its
  fixed biases are not there.

Other parameters (of normalisation layers) are trained without projection. Adam scales every weight's step by a factor of its own,
so that its steps are not orthogonal to anything, and weight decay goes beside the gradient: both are refused, and
conf/training/owm.yaml chooses SGD. Its momentum is a sum of projected gradients, those of earlier steps by the P of then; it
leaves the directions of earlier tasks alone where it starts anew with each (``trainer.reset_optimizer``). With ``layers=last``
only the head is projected, which is meant for a network that is frozen apart from it (``model.frozen``).

Stores P twice for each layer, in double precision, 2 n_in² numbers (``previous``: three times), however many tasks there are.
Reported after a task: ``free_share``, trace(P) / n_in of every layer, the share of directions that is left to learn in.
"""

import math
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from clbench.config import StrategyConfig
from clbench.errors import ConfigError
from clbench.learning.base import Batch, Measurement, Needs, Plan, Strategy
from clbench.learning.parts.least_squares import downdate
from clbench.models.continual import ContinualModel
from clbench.options import option
from clbench.registry import STRATEGIES
from clbench.scenarios.scenario import Scenario
from clbench.scenarios.task import Task


@dataclass
class OWMConfig(StrategyConfig):
    """Options of ``strategy=owm``."""

    alpha: float = option(help="α₀ of hidden layers: α at a task's start", above=0)
    alpha_decay: float = option(help="γ of hidden layers: α is α₀ γ at a task's end", above=0, at_most=1)
    head_alpha: float = option(help="α₀ of the head", above=0)
    head_alpha_decay: float = option(help="γ of the head", above=0, at_most=1)
    layers: str = option(help="layers that are projected: all, or the head alone", choices=("all", "last"))
    projector: str = option(
        help="the gradient is multiplied by P with this mini-batch taken in, or by P as it was when the task began",
        choices=("running", "previous"),
    )


@dataclass(frozen=True)
class ProjectedLayer:
    """A layer and where its weights are.

    Attributes:
        name: of the module.
        weight: its weight (n_out, …) in the flat parameters.
        bias: its bias there, or None where it has none that is trained.
        n_out: rows of the weight.
        n_in: columns of the weight with one for the bias: the length of r.
    """

    name: str
    weight: slice
    bias: slice | None
    n_out: int
    n_in: int

    @property
    def buffer(self) -> str:
        """The name in names of buffers, which may not have dots."""
        return self.name.replace(".", "_")


@STRATEGIES.register("owm")
class OWM(Strategy):
    """Keeps gradients orthogonal to the inputs that the layers have seen."""

    config = OWMConfig
    needs = Needs(
        traits=frozenset({"linear head", "reads weights", "remembers weights", "projects layers"}),
        optimizers=("sgd",),
        weight_decay=False,
    )
    options: OWMConfig
    alpha: Tensor
    alpha_decay: Tensor
    head_alpha: Tensor
    head_alpha_decay: Tensor
    n_steps: Tensor
    taken: Tensor

    def __init__(self, config: OWMConfig, model: ContinualModel, scenario: Scenario) -> None:
        super().__init__(config, model, scenario)
        self.projected = projected_layers(model, config.layers)
        self.register_buffer("n_steps", torch.ones((), dtype=torch.int64))
        self.register_buffer("taken", torch.zeros((), dtype=torch.int64))  # of the task's steps
        # P, P with the mini-batch of this step, and P when the task began
        self._kept = ("P", "next") if config.projector == "running" else ("P", "next", "previous")
        for layer in self.projected:
            for kept in self._kept:
                self.register_buffer(f"{kept}_{layer.buffer}", torch.eye(layer.n_in, dtype=torch.float64))

    def begin_task(self, task: Task) -> None:
        self.taken.zero_()
        if self.options.projector == "previous":
            for layer in self.projected:
                self._of("previous", layer).copy_(self._of("P", layer))

    def plan(self, task: Task, plan: Plan) -> Plan:
        """Take note of the number of steps, over which α decays."""
        self.n_steps.fill_(len(plan.new))
        return plan

    @torch.no_grad()
    def edit_gradients(self, gradient: Tensor, batch: Batch) -> Tensor:
        inputs = self.mean_inputs(batch.samples.x)
        edited = gradient.clone()
        for layer in self.projected:
            self._of("next", layer).copy_(downdate(self._of("P", layer), inputs[layer.name], self._alpha(layer)))
            P = self._of("next" if self.options.projector == "running" else "previous", layer)
            parts = [gradient[layer.weight].view(layer.n_out, -1)]
            if layer.bias is not None:
                parts.append(gradient[layer.bias, None])
            G = torch.cat(parts, dim=1)
            G = G @ P.to(G.dtype)
            of_weight = layer.weight.stop - layer.weight.start
            edited[layer.weight] = G[:, : of_weight // layer.n_out].reshape(-1)
            if layer.bias is not None:
                edited[layer.bias] = G[:, -1]
        return edited

    @torch.no_grad()
    def after_step(self, step: int, batch: Batch) -> None:
        for layer in self.projected:
            self._of("P", layer).copy_(self._of("next", layer))
        self.taken.fill_(step)

    def mean_inputs(self, x: Tensor) -> dict[str, Tensor]:
        """For every projected layer, float64 (n, n_in) rows whose RᵀR is that of the r of images x (B, C, H, W).

        From one forward pass of the network as it is, which leaves no trace in the statistics of BatchNorm.
        """
        found: dict[str, Tensor] = {}

        def keep(layer: ProjectedLayer, module: nn.Module, inputs: tuple[Tensor]) -> None:
            found[layer.name] = mean_rows(module, inputs[0], layer.bias is not None)

        hooks = [
            self.model.get_submodule(layer.name).register_forward_pre_hook(partial(keep, layer))
            for layer in self.projected
        ]
        try:
            functional_call(self.model, {name: buffer.clone() for name, buffer in self.model.named_buffers()}, (x,))
        finally:
            for hook in hooks:
                hook.remove()
        return found

    def measurements(self) -> list[Measurement]:
        return [
            Measurement("free_share", layer.name, float(self._of("P", layer).trace()) / layer.n_in)
            for layer in self.projected
        ]

    def notes(self) -> list[str]:
        covered = {f"{layer.name}.{kind}" for layer in self.projected for kind in ("weight", "bias")}
        others = [name for name in self.model.trained() if name not in covered]
        if not others:
            return []
        return [f"{len(others)} trained tensors of the network are not projected: {', '.join(others[:3])}, …"]

    def _alpha(self, layer: ProjectedLayer) -> Tensor:
        """α of the layer at this step."""
        is_head = layer.name == "head"
        alpha, decay = (self.head_alpha, self.head_alpha_decay) if is_head else (self.alpha, self.alpha_decay)
        return alpha.double() * decay.double() ** (self.taken.double() / self.n_steps)

    def _of(self, kept: str, layer: ProjectedLayer) -> Tensor:
        return self.get_buffer(f"{kept}_{layer.buffer}")


def projected_layers(model: ContinualModel, layers: str) -> list[ProjectedLayer]:
    """The linear layers and convolutions whose weights are trained, or the head alone for ``layers="last"``.

    Raises:
        ConfigError: there are none, or a convolution does not see each image's patches by a plain kernel.
    """
    place, parts = 0, {}
    for name, parameter in model.trained().items():
        parts[name] = slice(place, place := place + parameter.numel())
    found = []
    for name, module in model.named_modules():
        chosen = name == "head" or layers == "all"
        if not (chosen and isinstance(module, nn.Linear | nn.Conv2d) and f"{name}.weight" in parts):
            continue
        plain = isinstance(module, nn.Linear) or (
            module.groups == 1 and module.padding_mode == "zeros" and not isinstance(module.padding, str)
        )
        if not plain:
            raise ConfigError(
                f"owm is not defined for the convolution {name} of this network: it has groups, or pads with something else "
                "than zeros. Choose strategy.layers=last, or another model"
            )
        bias = parts.get(f"{name}.bias")
        n_in = math.prod(module.weight.shape[1:]) + (bias is not None)
        found.append(ProjectedLayer(name, parts[f"{name}.weight"], bias, len(module.weight), n_in))
    if not found:
        raise ConfigError(
            "owm projects gradients of linear layers and convolutions, of which no weight is trained here"
        )
    return found


def mean_rows(module: nn.Module, h: Tensor, with_constant: bool) -> Tensor:
    """float64 (n, n_in): the layer's r for a mini-batch of inputs h (B, …), or at most n_in rows with the same RᵀR.

    A patch of the mean is the mean of the patches, so that one map is unfolded. ``with_constant`` appends 1 to every r.
    """
    mean = h.double().mean(0)
    if isinstance(module, nn.Conv2d):
        rows = F.unfold(mean[None], module.kernel_size, module.dilation, module.padding, module.stride)[0].T  # type: ignore[arg-type]
    else:
        rows = mean.reshape(-1, mean.shape[-1])
    if with_constant:
        rows = torch.cat([rows, torch.ones_like(rows[:, :1])], dim=1)
    if rows.shape[0] > rows.shape[1]:
        # RᵀR is all that the update depends on, and its cost grows with the cube of the rows.
        rows = torch.linalg.qr(rows, mode="r").R
    return rows
