"""RanPAC: random projections and class prototypes without correlations (McDonnell et al. 2023, arXiv:2307.02251).

    h = ReLU(φ W_r)          W_r (D, M): standard normal, frozen; without projection h = φ
    G ← G + Hᵀ H,  Q ← Q + Hᵀ Y
    W = (G + λI)⁻¹ Q         at the end of every task
    score = h W

λ is chosen anew at the end of every task, among 10⁻⁸, 10⁻⁷, …, 10⁸: ridge regression is fitted to the first 80 % of the current
task's samples, in the order of its pass, and λ has the smallest squared error on the other 20 %. G and Q of the two parts,
which are added up as the samples come, are enough for that::

    ‖H W − Y‖² = tr(Wᵀ G W) − 2 tr(Wᵀ Q) + tr(Yᵀ Y)

The head is solved at task ends alone, as in the paper: within a task, curves show the head of the tasks before, for which the
new classes score 0.

The paper first adapts a pretrained transformer to the first task by parameter-efficient tuning (phase 1). That is
``extractor=first_task`` beside a strategy that freezes the network and trains what it puts in: ``strategy=lora
strategy.plus=[ranpac] +plus.ranpac.extractor=first_task`` (also ``l2p`` and ``oneprompt``), with another kind of adapter than the
authors' (``experiment=cifar100_ranpac_lora``). Without such a strategy ``first_task`` trains the whole network, and
``extractor=frozen`` is the paper's ablation without phase 1. Its ablation without random projection is ``projection=null``.

The recorded loss of a batch is the squared error of the head as it is. Stores 3 M² numbers: G of earlier tasks and of the two
parts of the current one. The authors hold the current task's features instead.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from clbench.learning.base import Measurement, Needs, Plan
from clbench.learning.parts.frozen_features import FrozenFeatures, FrozenFeaturesConfig
from clbench.learning.parts.least_squares import ridge
from clbench.models.continual import ContinualModel
from clbench.options import option
from clbench.registry import STRATEGIES
from clbench.scenarios.scenario import Scenario
from clbench.scenarios.task import Task

CANDIDATES = [10.0**exponent for exponent in range(-8, 9)]
"""Values of λ that are tried."""

FITTED = 0.8
"""Share of the task's samples to which they are fitted."""


@dataclass
class RanPACConfig(FrozenFeaturesConfig):
    """Options of ``strategy=ranpac``."""

    projection: int | None = option(
        help="number M of random features, each task's end costs 6 M³; null: the extractor's features", at_least=1
    )
    lam: float | None = option(help="penalty λ of the ridge regression; null: chosen at every task's end", above=0)


@STRATEGIES.register("ranpac")
class RanPAC(FrozenFeatures):
    """Ridge regression on random projections of a frozen extractor's features, with a penalty chosen per task."""

    config = RanPACConfig
    needs = Needs()
    learns_at_task_end = True
    options: RanPACConfig
    projected: Tensor
    G: Tensor
    Q: Tensor
    G_task: Tensor
    Q_task: Tensor
    W: Tensor
    n_absorbed: Tensor
    n_fitted: Tensor
    used_lam: Tensor

    def __init__(self, config: RanPACConfig, model: ContinualModel, scenario: Scenario) -> None:
        super().__init__(config, model, scenario)
        n_features, n_classes = model.head.in_features, model.head.out_features
        m = config.projection or n_features
        if config.projection:
            self.register_buffer("projected", torch.randn(n_features, m, dtype=torch.float64))
        of_earlier_tasks = {"G": (m, m), "Q": (m, n_classes)}
        of_the_two_parts = {"G_task": (2, m, m), "Q_task": (2, m, n_classes)}
        for name, shape in {**of_earlier_tasks, **of_the_two_parts, "W": (m, n_classes), "used_lam": ()}.items():
            self.register_buffer(name, torch.zeros(shape, dtype=torch.float64))
        for name in ("n_absorbed", "n_fitted"):  # samples of the current task: so far; in its first part
            self.register_buffer(name, torch.zeros((), dtype=torch.int64))

    def begin_task(self, task: Task) -> None:
        self.n_absorbed.zero_()

    def plan(self, task: Task, plan: Plan) -> Plan:
        plan = super().plan(task, plan)
        n = len(task.ids) if self.learns_by_gradient else sum(len(ids) for ids in plan.new)
        self.n_fitted.fill_(int(FITTED * n))
        return plan

    def absorb(self, features: Tensor, labels: Tensor) -> Tensor:
        H, Y = self.expand(features), self.targets(labels)
        position = self.n_absorbed + torch.arange(len(H), device=H.device)
        fitted = position < self.n_fitted
        of_parts = torch.stack([fitted, ~fitted])[:, :, None] * H  # (2, B, M), zeros for samples of the other part
        self.G_task.add_(of_parts.mT @ H)
        self.Q_task.add_(of_parts.mT @ Y)
        self.n_absorbed.add_(len(H))
        return (Y - H @ self.W).square().sum(1).mean()

    @torch.no_grad()
    def end_task(self, task: Task) -> None:
        candidates = self._best_first() if self.options.lam is None else [self.options.lam]
        self.G.add_(self.G_task.sum(0))
        self.Q.add_(self.Q_task.sum(0))
        self.G_task.zero_()
        self.Q_task.zero_()
        for lam in candidates:
            self.W.copy_(ridge(self.G, self.Q, lam))
            self.used_lam.fill_(lam)
            if self.W.isfinite().all():  # else λ is lost in the rounding of G, and the next best is taken
                return

    def scores(self, features: Tensor, task: Tensor | None = None) -> Tensor:
        return self.expand(features) @ self.W

    def expand(self, features: Tensor) -> Tensor:
        """h (B, M) of φ (B, D)."""
        return (features @ self.projected).relu() if self.options.projection else features

    def measurements(self) -> list[Measurement]:
        """λ of the head in use."""
        return [Measurement("ridge_penalty", "", float(self.used_lam))]

    def notes(self) -> list[str]:
        chosen = "a penalty is chosen per task on its training data; " if self.options.lam is None else ""
        trained = {
            "frozen": "without the paper's parameter-efficient tuning (phase 1)",
            "first_task": "the paper's phase 1 is the training on the first task by gradient, of what the network has to train",
        }
        return [f"{chosen}the head is solved at task ends only; {trained[self.options.extractor]}"]

    def _best_first(self) -> list[float]:
        """The candidates for λ, the smallest error on the current task's second part first."""
        (fit_G, held_out_G), (fit_Q, held_out_Q) = self.G_task, self.Q_task
        errors = []
        for lam in CANDIDATES:
            W = ridge(fit_G, fit_Q, lam)
            errors.append((W * (held_out_G @ W - 2 * held_out_Q)).sum())  # but for tr(YᵀY), which all have
        order = torch.stack(errors).nan_to_num(torch.inf).argsort(stable=True)
        return [CANDIDATES[i] for i in order.tolist()]
