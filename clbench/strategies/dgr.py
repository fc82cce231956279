"""DGR: deep generative replay (Shin et al. 2017, arXiv:1705.08690).

A generator G is trained beside the classifier. While the t-th task is learned, images x̂ = G_{t−1}(z), z ~ N(0, 1), of the
generator as it was before the task are replayed, with the labels ŷ that the classifier before the task gives them. Both minimise

    1/t · L(x, y) + (1 − 1/t) · L(x̂, ŷ)                                                          (equation 1, with r = 1/t)

L is the cross-entropy for the classifier, and for the generator the negative variational bound. There are as many x̂ as x. In
task-incremental streams every x̂ has a label for each earlier task, whose losses are averaged.

The paper's generator is a Wasserstein GAN; a variational autoencoder, see :mod:`clbench.models.vae`, has taken its place in the
literature (van de Ven & Tolias 2018, arXiv:1809.10635; Hsu et al. 2018, arXiv:1810.12488), whose equations and sizes stand here:
one sample of a code, sums over pixels and codes divided by the number of pixels, and for x̂ the probabilities of pixels. The
generator is not drawn anew for a task. Both networks have one optimizer and its learning rate.

Generated images are a second pass through the network, so that BatchNorm's statistics move twice in a step. Where images are
augmented, the generator learns augmented ones. Stores the previous classifier and the previous decoder, and no images.
"""

import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from clbench.config import StrategyConfig
from clbench.errors import ConfigError
from clbench.learning.base import Batch, Needs, Outputs, Plan
from clbench.learning.parts.teacher import Teacher, WithTeacher, heads_of_earlier_tasks
from clbench.models.continual import ContinualModel
from clbench.models.vae import VAE
from clbench.options import option
from clbench.registry import STRATEGIES
from clbench.scenarios.scenario import Scenario
from clbench.scenarios.task import Task
from clbench.seeding import hashed_normal


@dataclass
class DGRConfig(StrategyConfig):
    """Options of ``strategy=dgr``."""

    hidden: list[int] = option(help="widths of the generator's hidden layers, from the image on; [] makes it linear")
    latent: int = option(help="numbers of a code z", at_least=1)


@STRATEGIES.register("dgr")
class DGR(WithTeacher):
    """Replay of what a generator remembers."""

    config = DGRConfig
    needs = Needs(traits=frozenset({"remembers outputs"}))
    options: DGRConfig
    mean: Tensor
    std: Tensor
    teacher: Teacher

    def __init__(self, config: DGRConfig, model: ContinualModel, scenario: Scenario) -> None:
        super().__init__(config, model, scenario)
        if scenario.reads != "images":
            raise ConfigError(f"strategy dgr generates images, and the samples of {scenario.name} are {scenario.reads}")
        channels, height, width = scenario.input_shape
        self.generator = VAE(channels * height * width, config.hidden, config.latent)
        self.previous = copy.deepcopy(self.generator.decoder).requires_grad_(False)
        self.n_tasks = scenario.n_tasks
        self.register_buffer("mean", torch.tensor(scenario.mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(scenario.std).view(-1, 1, 1))

    def begin_task(self, task: Task) -> None:
        super().begin_task(task)
        self.previous.load_state_dict(self.generator.decoder.state_dict())

    def plan(self, task: Task, plan: Plan) -> Plan:
        """A key for every step, of which its noise is a function."""
        keys = torch.randint(2**62, (len(plan.new), 1), generator=task.torch_generator("generated"))
        return plan.with_columns(**{"dgr.key": list(keys)})

    def data_loss(self, batch: Batch, outputs: Outputs) -> dict[str, Tensor]:
        x, n = batch.samples.x, len(batch.samples.x)
        noise = hashed_normal(batch.columns["dgr.key"][0], 3 * n * self.options.latent).to(x).view(3, n, -1)
        share = 1 / (self.tasks_learned + 1)
        terms = {
            "new": share * self.cross_entropy(outputs.logits, batch.samples).mean(),
            "generator": share * self.generator.losses(self._pixels(x), noise[0]).mean(),
        }
        if self.tasks_learned > 0:
            with torch.no_grad():
                pixels = self.previous(noise[1]).to(x).sigmoid()  # in the precision of images, also under autocast
                generated = (pixels.view_as(x) - self.mean) / self.std
                teacher = self.teacher(generated)
            terms["replay"] = (1 - share) * self._replay_loss(self.model(generated), teacher)
            terms["generator"] = terms["generator"] + (1 - share) * self.generator.losses(pixels, noise[2]).mean()
        return terms

    def _pixels(self, x: Tensor) -> Tensor:
        """The images' pixels (B, C·H·W) in [0, 1]; augmentation may have left that range."""
        return (x * self.std + self.mean).clamp(0, 1).flatten(1)

    def _replay_loss(self, logits: Tensor, teacher: Tensor) -> Tensor:
        """Cross-entropy of generated images with the labels that the previous classifier gives them."""
        if self.model.answer.setting != "task":
            known = self.model.answer.learned_before()
            visible = self.model.answer.visible(None, predicting=True)
            return hard_distillation(logits, teacher, known, known.new_ones(()) if visible is None else visible)
        heads, is_earlier = heads_of_earlier_tasks(self.model, self.n_tasks)
        of_head = torch.vmap(hard_distillation, in_dims=(None, None, 0, 0))(logits, teacher, heads, heads)
        return (of_head * is_earlier).sum() / is_earlier.sum()


def hard_distillation(logits: Tensor, teacher: Tensor, known: Tensor, visible: Tensor) -> Tensor:
    """Mean cross-entropy over the ``visible`` classes with the teacher's first choice among the ``known`` ones.

    Args:
        logits: (B, n_classes).
        teacher: (B, n_classes).
        known, visible: boolean (n_classes,).
    """
    labels = teacher.masked_fill(~known, -torch.inf).argmax(1)
    return F.cross_entropy(logits.masked_fill(~visible, -torch.inf), labels)
