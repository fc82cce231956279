"""Virtual outliers (VOR of Huang, Chen & Hsu 2024, OVOR, arXiv:2402.04129): the head learns to score strangers low.

Where every task is trained with a softmax over its own classes, nothing teaches the head to score samples of other tasks low. In
the last ``share`` of a task, the regularised stage, synthetic features stand in for them, and the head alone is trained:

    L = data loss + λ · ( mean over u of H(relu(E(u) − τ_id)) + mean over v of H(relu(τ_ood − E(v))) )
    E(f) = −log Σ_c exp z_c(f)      over the classes c of the current task

with the features u of the batch's new samples, outliers v, and H the Huber loss with δ = 1. Features of samples are constants:
backbone, prompts and adapters are bit for bit what they were when the stage began. The data loss is that of the method that the
outliers are added to (``strategy=finetune``, ``l2p``, ``er``, … with ``strategy.plus=[outliers]``); its replayed samples are not
among u.

The outliers are made anew before every regularised epoch, out of the features f_i of all training images of the task, augmented:

1. r_i = distance of f_i / ‖f_i‖ to its K-th nearest among all f_j / ‖f_j‖, itself included. The boundary are the ``select``
   features with the largest r_i.
2. ε_1 … from N(0, I), ``sample_from`` of them, the same for every boundary feature f_b.
3. ``outlier_mode=paper``: candidates f_b + cov · ε, compared by their directions.
   ``outlier_mode=released``: candidates cov · ε, each once for every f_b, compared as they are. That is what the authors' code
   does (jpmorganchase/ovor): noise around the origin, of which at most one in ``select`` is distinct.
4. Kept are ``per_class`` candidates for every class of the task: those farthest from their K-th nearest f_j / ‖f_j‖.

A step sees as many of them as there are for every batch of an epoch, in random order. The stage is a whole number of epochs, or,
where the task is not more than one, so many of its steps. Its steps are iterations like others.

Where the code does otherwise, or leaves it open: candidates of ``paper`` are divided by their norm before they are compared;
samples go through the network in every step, with that step's augmentation, where the code goes on with the features that the
outliers were made of; its batches of outliers are sorted by distance.

**Thresholds are energies**, which grow with the norms of features and head: −15 and −3 belong to a pretrained ViT-B, and other
networks need others. What to choose them by is reported after every task: ``inlier_energy`` and ``outlier_energy``, the mean E of
all features and of all outliers as the last regularised epoch began.

Features should hardly change from task to task. On split digits with ``scenario.logit_scope=current``, in test accuracy at the
end, means of three seeds: a frozen layer of 400 random units had 0.67 without outliers, 0.66 with the default options, and 0.72
with the best of three others; an MLP trained from scratch had 0.55 without and at most 0.44 with outliers, of three settings.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from clbench.config import StrategyConfig
from clbench.learning.base import Batch, Measurement, Needs, Outputs, Plan, Strategy
from clbench.learning.stage import Stage
from clbench.models.continual import ContinualModel
from clbench.options import option
from clbench.registry import STRATEGIES
from clbench.scenarios.scenario import Scenario
from clbench.scenarios.task import Task

AT_ONCE = 256
"""Images, or features whose neighbours are looked for, that are held on the device together."""

ROWS = "outliers.rows"
"""The column of the plan that says which outliers a step sees."""

NO_BATCH = 2**40
"""Numbers of steps from here on are no batch's, so that the augmentation draws for them what it draws for no other."""


TRAITS = frozenset({"holds features", "one task a class", "reads current task", "reads logits", "virtual outliers"})


@dataclass
class OutliersConfig(StrategyConfig):
    """Options of ``strategy.plus=[outliers]``."""

    outlier_mode: str = option(
        help="candidates are noise around features at the boundary, or around the origin as in the authors' code",
        choices=("paper", "released"),
    )
    share: float = option(help="part of every task, at its end, that is the regularised stage", above=0, at_most=1)
    lam: float = option(help="weight λ of the energies' loss", at_least=0)
    tau_id: float = option(help="τ_id: energy below which features cost nothing")
    tau_ood: float = option(help="τ_ood: energy above which outliers cost nothing")
    cov: float = option(help="standard deviation of the noise; means another thing in either outlier_mode", above=0)
    neighbours: int = option(
        help="K: which nearest neighbour's distance counts; all features where there are fewer", at_least=1
    )
    select: int = option(help="features at the boundary", at_least=1)
    sample_from: int = option(help="draws of noise for each of these", at_least=1)
    per_class: int = option(help="outliers for every class of the task", at_least=1)


@STRATEGIES.register("outliers")
class Outliers(Strategy):
    """Trains the head alone against virtual outliers at the end of every task."""

    config: ClassVar[type[OutliersConfig]] = OutliersConfig
    needs = Needs(traits=TRAITS)
    options: OutliersConfig
    lam: Tensor
    tau_id: Tensor
    tau_ood: Tensor
    cov: Tensor
    outliers: Tensor
    n_outliers: Tensor
    energies: Tensor

    def __init__(self, config: OutliersConfig, model: ContinualModel, scenario: Scenario) -> None:
        super().__init__(config, model, scenario)
        most = config.per_class * max(len(labels) for labels in scenario.task_classes)
        self.register_buffer("outliers", torch.zeros(most, model.head.in_features))
        self.register_buffer("n_outliers", torch.ones((), dtype=torch.int64))  # rows of it that are in use
        self.register_buffer("energies", torch.zeros(2))  # of features and outliers

    # ---- the stage --------------------------------------------------------------------------------------------------

    def stages(self, task: Task, n_steps: int) -> list[Stage]:
        """A stage of the head alone for every regularised epoch."""
        per_epoch = self._batches_per_epoch(task)
        n_epochs = -(-n_steps // per_epoch)
        if n_epochs == 1:
            starts = [n_steps - self._regularised(n_steps)]
        else:
            starts = [epoch * per_epoch for epoch in range(n_epochs - self._regularised(n_epochs), n_epochs)]
        return [
            Stage(
                "outliers", start, trains="head", begin=partial(self.make_outliers, step=start), plan=self.plan_outliers
            )
            for start in starts
        ]

    @torch.no_grad()
    def make_outliers(self, task: Task, step: int) -> None:
        """Make the outliers of the epoch that begins with ``step``."""
        features = self._features(task, step)
        generator = task.torch_generator(f"outliers{step}")
        n = self.options.per_class * len(task.classes)
        made = self.synthesise(features, n, generator)
        order = torch.randperm(len(made), generator=generator).to(made.device)
        self.outliers[: len(made)] = made[order]
        self.n_outliers.fill_(len(made))
        self.energies.copy_(torch.stack([self.energy(self.model.head(f)).mean() for f in (features, made)]))

    def plan_outliers(self, task: Task, plan: Plan) -> Plan:
        """Every step takes the next outliers, so many that an epoch sees each of them about once."""
        n_made = int(self.n_outliers)
        per_step = max(1, n_made // self._batches_per_epoch(task))
        first = range(0, per_step * len(plan.new), per_step)
        return plan.with_columns(**{ROWS: [torch.arange(row, row + per_step) % n_made for row in first]})

    def penalty(self, batch: Batch, outputs: Outputs) -> Tensor | None:
        """The energies' loss, in the regularised stage."""
        if ROWS not in batch.columns:
            return None
        outliers = self.outliers.index_select(0, batch.columns[ROWS])
        too_high = huber(self.energy(outputs.logits[: batch.n_new]) - self.tau_id)
        too_low = huber(self.tau_ood - self.energy(self.model.head(outliers)))
        # Joint training has new samples of earlier tasks, too.
        current = batch.samples.task[: batch.n_new] == self.model.answer.current_task
        return self.lam * ((too_high * current).sum() / current.sum().clamp(min=1) + too_low.mean())

    def energy(self, logits: Tensor) -> Tensor:
        """E (B,) of logits (B, n_classes): over the current task's classes, in domain-incremental streams over all."""
        if self.model.answer.setting != "domain":
            logits = logits.masked_fill(self.model.answer.class_task != self.model.answer.current_task, -math.inf)
        return -logits.logsumexp(1)

    def synthesise(self, features: Tensor, n: int, generator: torch.Generator) -> Tensor:
        """``n`` outliers (n, n_features), or as many as there are candidates; see the module docstring."""
        o = self.options
        noise = torch.randn(o.sample_from, features.shape[1], generator=generator).to(features) * self.cov
        directions = F.normalize(features)
        n_boundary = min(o.select, len(features))
        if o.outlier_mode == "released":
            candidates = compared = noise.repeat(n_boundary, 1)
        else:
            farthest = kth_distances(directions, directions, o.neighbours).topk(n_boundary).indices
            candidates = (features[farthest, None] + noise).flatten(0, 1)
            compared = F.normalize(candidates)
        kept = kth_distances(compared, directions, o.neighbours).topk(min(n, len(candidates))).indices
        return candidates[kept]

    def _regularised(self, n: int) -> int:
        """How many of ``n`` epochs or steps are."""
        return max(1, round(self.options.share * n))

    def _batches_per_epoch(self, task: Task) -> int:
        return -(-len(task.ids) // task.budget.batch_size)

    def _features(self, task: Task, step: int) -> Tensor:
        """Features (n, n_features) of all training images of the task, with an augmentation drawn for this epoch."""
        parts, n_before = [], NO_BATCH + step * len(task.ids)
        for ids in task.ids.split(AT_ONCE):
            samples = task.inputs.training(task.split, ids, task.index, n_before)
            parts.append(self.model.features(samples.x))
            n_before += len(ids)
        return torch.cat(parts)

    # ---- reports ----------------------------------------------------------------------------------------------------

    def measurements(self) -> list[Measurement]:
        """Also the energies to choose thresholds by."""
        names = ("inlier_energy", "outlier_energy")
        energies = zip(names, self.energies.tolist(), strict=True)
        return [*super().measurements(), *(Measurement(name, "", value) for name, value in energies)]

    def notes(self) -> list[str]:
        what = {
            "paper": "virtual outliers are noise around features at the boundary of the task (outlier_mode=paper)",
            "released": "virtual outliers are noise around the origin, as in the authors' code and not as in their paper "
            "(outlier_mode=released)",
        }
        return [*super().notes(), what[self.options.outlier_mode]]


def huber(x: Tensor) -> Tensor:
    """The Huber loss of relu(x), δ = 1, entry by entry: x² / 2 from 0 to 1, x − 1 / 2 beyond."""
    x = x.relu()
    return F.huber_loss(x, torch.zeros_like(x), reduction="none")


def kth_distances(queries: Tensor, points: Tensor, k: int) -> Tensor:
    """The distance (n,) of every query (n, D) to its k-th nearest of points (m, D); to the farthest where m < k."""
    k = min(k, len(points))
    nearest = (torch.cdist(part, points).topk(k, largest=False).values for part in queries.split(AT_ONCE))
    return torch.cat([distances[:, -1] for distances in nearest])
