"""Exemplars: a few images of every class, chosen by the network at the end of the class's task (iCaRL, Rebuffi et al. 2017).

``size // n_classes`` exemplars of every class seen so far, in the order of herding: the k-th makes the mean of the first k
closest to the class's mean feature. So a class whose share shrinks keeps the first ones. While a class's task is being learned, a
random draw of its samples stands in for its exemplars, since means of classes are asked for at every evaluation.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clbench.learning.base import Plan
from clbench.learning.parts.memory import EMPTY, check_memory_size
from clbench.models.continual import ContinualModel
from clbench.scenarios.scenario import Scenario
from clbench.scenarios.task import Task

AT_ONCE = 256
"""Images that go through the network together when exemplars are chosen."""


class ExemplarMemory(nn.Module):
    """The exemplars' ids, labels and images.

    Images are uint8, as the data are held, so that features of the present network can be had within an evaluation, which has no
    other way to data. There is room for twice ``size``: for the exemplars of earlier classes, and the draw of the current ones.

    Args:
        size: exemplars in all.
        scenario: the stream.

    Raises:
        ConfigError: the memory is smaller than the number of classes.
    """

    ids: Tensor
    labels: Tensor
    images: Tensor
    scale: Tensor
    shift: Tensor

    def __init__(self, size: int, scenario: Scenario) -> None:
        super().__init__()
        check_memory_size(size, scenario)
        self.size, self.task_classes, self.n_classes = size, scenario.task_classes, scenario.n_classes
        self.register_buffer("ids", torch.full((2 * size,), EMPTY))
        self.register_buffer("labels", torch.full((2 * size,), EMPTY))
        self.register_buffer("images", torch.zeros(2 * size, *scenario.input_shape, dtype=scenario.train.store.dtype))
        std = torch.tensor(scenario.std)
        self.register_buffer("scale", (1 / (255 * std)).view(-1, 1, 1))
        self.register_buffer("shift", (-torch.tensor(scenario.mean) / std).view(-1, 1, 1))

    def quota(self, task: Task) -> int:
        """Exemplars of every class, once the classes of ``task`` are among them."""
        return self.size // len({label for classes in self.task_classes[: task.index + 1] for label in classes})

    def begin_task(self, task: Task) -> None:
        """Let a random draw stand in for the exemplars of the task's classes."""
        order = torch.randperm(len(task.ids), generator=task.torch_generator("exemplars"))
        drawn = task.ids[order]
        labels = task.labels_of(drawn)
        self._keep(task, self.of_classes(), {c: drawn[labels == c][: self.quota(task)] for c in task.classes})

    @torch.no_grad()
    def choose(self, task: Task, model: ContinualModel) -> None:
        """Choose the task's exemplars by herding, and shorten the lists of earlier classes; in evaluation mode."""
        quota = self.quota(task)
        kept = {c: ids[:quota] for c, ids in self.of_classes().items() if c not in task.classes}
        labels, chosen = task.labels_of(task.ids), {}
        for c in task.classes:
            ids = task.ids[labels == c]
            features = torch.cat([model.features(samples.x) for samples in task.batches(ids, AT_ONCE)])
            chosen[c] = ids[herding(F.normalize(features.double()), quota).cpu()]
        self._keep(task, kept, chosen)

    def of_classes(self) -> dict[int, Tensor]:
        """The ids of every class's exemplars, on the CPU."""
        ids, labels = self.ids.cpu(), self.labels.cpu()
        return {c: ids[labels == c] for c in range(self.n_classes) if (labels == c).any()}

    def of_earlier(self, task: Task) -> Tensor:
        """The ids of the exemplars of earlier tasks, on the CPU."""
        earlier = [ids for c, ids in self.of_classes().items() if c not in task.classes]
        return torch.cat(earlier) if earlier else torch.empty(0, dtype=torch.int64)

    def mixed(self, task: Task, plan: Plan) -> Plan:
        """Batches of the task's samples and the earlier classes' exemplars together, for the task's whole budget."""
        exemplars = self.of_earlier(task)
        return plan._replace(new=task.shuffled_batches(torch.cat([task.ids, exemplars]))) if len(exemplars) else plan

    def balanced(self, task: Task, plan: Plan) -> Plan:
        """Batches of all exemplars, equally many of every class, for the budget of a stage after the task's plan."""
        return Plan(new=task.shuffled_batches(torch.cat([*self.of_classes().values()])))

    def _keep(self, task: Task, earlier: dict[int, Tensor], current: dict[int, Tensor]) -> None:
        """Hold these exemplars: of earlier classes those that are held already, of the current ones from the task's data."""
        place = {sample: row for row, sample in enumerate(self.ids.tolist())}
        ids = torch.cat([*earlier.values(), *current.values()])
        n_earlier = sum(map(len, earlier.values()))
        rows = torch.tensor([place[sample] for sample in ids[:n_earlier].tolist()], dtype=torch.int64)
        new, _, _ = task.split.take(ids[n_earlier:])
        images = torch.cat([self.images[rows.to(self.images.device)], new.to(self.images.device)])
        labels = torch.cat([torch.full((len(kept),), c) for c, kept in {**earlier, **current}.items()])
        for buffer, values, empty in ((self.ids, ids, EMPTY), (self.labels, labels, EMPTY), (self.images, images, 0)):
            buffer.fill_(empty)
            buffer[: len(values)] = values.to(buffer.device)

    @torch.no_grad()
    def means(self, model: ContinualModel) -> Tensor:
        """The mean (n_classes, n_features) of every class's normalised features, normalised; 0 without exemplars. Pure."""
        of_images = self.images.dtype == torch.uint8
        x = torch.addcmul(self.shift, self.images.to(self.scale), self.scale) if of_images else self.images
        features = F.normalize(model.features(x))
        of_class = (self.labels == torch.arange(self.n_classes, device=self.labels.device)[:, None]).to(features)
        return F.normalize(of_class @ features)


def herding(features: Tensor, n: int) -> Tensor:
    """The rows of ``features`` (N, D) whose means stay closest to the mean of all, in the order in which they are taken.

    p_k = argmin over x not taken of ‖ μ − (φ(x) + Σ_{j<k} φ(p_j)) / k ‖. Returns ``n`` indices, or N where that is less.
    """
    mean, total = features.mean(0), torch.zeros_like(features[0])
    free = torch.ones(len(features), dtype=torch.bool, device=features.device)
    taken = []
    for k in range(1, min(n, len(features)) + 1):
        distances = (mean - (features + total) / k).square().sum(1).masked_fill(~free, torch.inf)
        chosen = distances.argmin()
        taken.append(chosen)
        free[chosen] = False
        total = total + features[chosen]
    return torch.stack(taken)
