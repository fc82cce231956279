"""SCR: supervised contrastive replay (Mai et al. 2021, arXiv:2103.13885).

Every step takes the new samples and a draw from a reservoir, n in all, as they are and in a second, strongly augmented view. With
z_i (2n) the normalised outputs of a projection g of the features, and P(i) the other views of i's class,

    L = mean over i of  − 1/|P(i)| Σ_{p ∈ P(i)} log [ exp(z_i·z_p / τ) / Σ_{a ≠ i} exp(z_i·z_a / τ) ]

(Khosla et al. 2020). The network is classified with by the nearest mean of the memory: the logits are − ‖ φ(x) − μ_c ‖², φ the
features divided by their norm and μ_c the normalised mean of φ over the stored samples of class c, as the present network has
them. The network's own head is not trained; g is a hidden layer as wide as the features, ReLU, and ``projection`` outputs.

The second view is a random resized crop that keeps at least ``crop`` of the area, a flip, with probability 0.8 jitter of
brightness, contrast and saturation, and grey with probability ``grey``. The authors' jitter of hue, 0.1, is left out. Digits do
not stay what they are in a mirror: ``flip=false``.

Differences to other code: the authors take no step while the memory is empty, here the new samples are trained on alone. A view
without another of its class adds 0, where a division by |P(i)| = 0 gives NaN; with two views of every sample there is none.
Avalanche multiplies the loss by τ / 0.07, the "base temperature" of Khosla et al. Both views are a batch each for BatchNorm.
A class of which the memory holds no sample scores less than all others.

Stores M samples: ids, labels and images, as they were trained on.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clbench.config import AugmentConfig, StrategyConfig
from clbench.data.augment import Augmentation
from clbench.errors import ConfigError
from clbench.learning.base import Batch, Needs, Outputs, Plan, Strategy
from clbench.learning.parts.memory import EMPTY, check_memory_size, notes_of_room
from clbench.learning.parts.slot_memory import SlotMemory
from clbench.models.continual import ContinualModel
from clbench.options import option
from clbench.registry import STRATEGIES
from clbench.scenarios.scenario import Scenario
from clbench.scenarios.task import Task

JITTERED = 0.8
"""Probability with which an image's brightness, contrast and saturation are changed."""


@dataclass
class SCRConfig(StrategyConfig):
    """Options of ``strategy=scr``."""

    memory_size: int = option(help="samples in the memory, over all classes", at_least=1)
    replay_batch_size: int | None = option(help="replayed samples per step; null: as many as new ones", at_least=1)
    temperature: float = option(help="temperature τ of the contrastive loss", above=0)
    projection: int = option(help="outputs of the projection", at_least=1)
    crop: float | None = option(
        help="second view: smallest share of the image that a crop keeps; null: no crop", above=0, at_most=1
    )
    flip: bool = option(help="second view: left and right exchanged with probability ½")
    jitter: float = option(
        help="second view: brightness, contrast and saturation times 1 − jitter to 1 + jitter", at_least=0, at_most=1
    )
    grey: float = option(help="second view: probability of a grey image", at_least=0, at_most=1)


@STRATEGIES.register("scr")
class SCR(Strategy):
    """Features in which samples of a class are close, and the nearest mean of the memory."""

    config = SCRConfig
    needs = Needs(memory=True, boundaries=False, traits=frozenset({"trains no head"}))
    options: SCRConfig
    temperature: Tensor
    images: Tensor
    labels: Tensor
    scale: Tensor
    shift: Tensor
    means: Tensor
    present: Tensor

    def __init__(self, config: SCRConfig, model: ContinualModel, scenario: Scenario) -> None:
        super().__init__(config, model, scenario)
        check_memory_size(config.memory_size, scenario)
        if scenario.reads != "images":
            raise ConfigError(
                f"strategy scr makes a second view of images, and the samples of {scenario.name} are {scenario.reads}: choose a "
                "strategy with a memory that does not, such as er"
            )
        self.memory = SlotMemory(config.memory_size, self.name)
        self._notes = notes_of_room(config.memory_size, scenario)
        D, C = model.head.in_features, model.head.out_features
        self.projection = nn.Sequential(nn.Linear(D, D), nn.ReLU(), nn.Linear(D, config.projection))
        jitter = config.jitter
        self.augmentation = Augmentation(
            AugmentConfig(config.crop, flip=config.flip, brightness=jitter, contrast=jitter, saturation=jitter)
        )
        self._size = scenario.input_shape[-2:]
        # One row more than the memory has slots: what is not stored is written there.
        shape = (config.memory_size + 1, *scenario.input_shape)
        self.register_buffer("images", torch.zeros(shape, dtype=torch.uint8))
        self.register_buffer("labels", torch.full(shape[:1], EMPTY))
        std = torch.tensor(scenario.std)
        self.register_buffer("scale", (1 / (255 * std)).view(-1, 1, 1))
        self.register_buffer("shift", (-torch.tensor(scenario.mean) / std).view(-1, 1, 1))
        # Derived from the others by prepare_for_eval.
        self.register_buffer("means", torch.zeros(C, D), persistent=False)
        self.register_buffer("present", torch.zeros(C, dtype=torch.bool), persistent=False)

    # ---- what is known before the task ------------------------------------------------------------------------------

    def plan(self, task: Task, plan: Plan) -> Plan:
        """Replay, and the draws of every sample's second view."""
        plan = self.memory.plan(task, plan, 1, self.options.replay_batch_size)
        assert plan.replay is not None
        generator = task.torch_generator("second_view")
        steps = [self._draw(len(n) + len(r), generator) for n, r in zip(plan.new, plan.replay, strict=True)]
        return plan.with_columns(**{f"scr.view{i}": list(drawn) for i, drawn in enumerate(zip(*steps, strict=True))})

    def _draw(self, n: int, generator: torch.Generator) -> list[Tensor]:
        """Parameters of the augmentation of n images."""
        height, width = self._size
        drawn = self.augmentation.draw(n, height, width, generator)
        jittered = torch.rand(n, generator=generator) < JITTERED
        grey = torch.rand(n, generator=generator) < self.options.grey
        if (
            self.options.jitter
        ):  # brightness, contrast, saturation: without a change they are 1, and saturation 0 is grey
            drawn[-3:] = [torch.where(jittered, factor, 1.0) for factor in drawn[-3:]]
            drawn[-1] = torch.where(grey, 0.0, drawn[-1])
        return drawn

    # ---- a step -------------------------------------------------------------------------------------------------------

    def data_loss(self, batch: Batch, outputs: Outputs) -> dict[str, Tensor]:
        n = len(batch.samples.y)
        features = torch.cat([outputs.features, self.model.features(self.second_view(batch))])
        z = F.normalize(self.projection(features))
        losses = supervised_contrastive(z, batch.samples.y.repeat(2), self.temperature).view(2, n)
        # Gradients of 0 for the head: without any, optimizers leave it out alone, but not in a fleet.
        terms = {"new": losses[:, : batch.n_new].sum() / (2 * n) + 0 * outputs.logits.sum()}
        if n > batch.n_new:
            terms["replay"] = losses[:, batch.n_new :].sum() / (2 * n)
        return terms

    def second_view(self, batch: Batch) -> Tensor:
        """The batch's images (B, C, H, W), augmented as planned."""
        x, names = batch.samples.x, [name for name in batch.columns if name.startswith("scr.view")]
        if not names:
            return x
        images = self.augmentation.apply((x - self.shift) / self.scale, [batch.columns[name] for name in names])
        return torch.addcmul(self.shift, images.to(self.scale), self.scale).to(x)

    def after_step(self, step: int, batch: Batch) -> None:
        """Keep the new samples that have entered the memory."""
        slots, n = batch.columns[self.memory.write], batch.n_new
        pixels = ((batch.samples.x[:n] - self.shift) / self.scale).round().clamp(0, 255)
        self.images[slots] = pixels.to(torch.uint8)
        self.labels[slots] = batch.samples.y[:n]

    def end_task(self, task: Task) -> None:
        self.memory.end_task()

    # ---- prediction ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def prepare_for_eval(self) -> None:
        """The classes' means, as the present network has them."""
        images, labels = self.images[:-1], self.labels[:-1]
        x = torch.addcmul(self.shift, images.to(self.scale), self.scale)
        features = F.normalize(self.model.features(x))
        of_class = (labels == torch.arange(len(self.means), device=labels.device)[:, None]).to(features)
        self.means.copy_(F.normalize(of_class @ features))
        self.present.copy_(of_class.any(1))

    def predict(self, x: Tensor, task: Tensor | None) -> Tensor:
        features = F.normalize(self.model.features(x))
        squares = 1 + self.means.square().sum(1) - 2 * features @ self.means.T  # ‖φ‖ = 1
        scores = torch.where(self.present, -squares, -squares.amax(1, keepdim=True) - 1)
        return self.model.answer.restrict(scores, task, predicting=True)

    def notes(self) -> list[str]:
        return self._notes


def supervised_contrastive(z: Tensor, y: Tensor, temperature: Tensor | float) -> Tensor:
    """The loss (n,) of every view: the mean of − log p over the other views of its class; 0 where there are none.

    Args:
        z: (n, d), of norm 1.
        y: (n,), labels.
        temperature: τ.
    """
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
    similarities = (z @ z.T / temperature).masked_fill(itself, -torch.inf)
    log_p = similarities.log_softmax(1).masked_fill(itself, 0.0)
    positive = (y[:, None] == y) & ~itself
    return -(log_p * positive).sum(1) / positive.sum(1).clamp(min=1)
