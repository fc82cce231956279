"""IF2Net: innately forgetting-free networks (Li et al. 2023, arXiv:2306.10480).

A classifier that is linear in random features, which are tuned to data and then reused by all tasks:

    G(x)                       (L,) of :mod:`clbench.learning.parts.random_representation`
    scores = G(x) β            β (L, n_classes), learned from one-hot labels Y

Reconstruction: abstract + same-author code. The paper's equations, sizes and tables could not be read. Its abstract names
three parts: random weights are "tweaked" to the task and reused, updates of the output weights are projected into a space
orthogonal to what earlier tasks use, and one network serves all tasks without their identity. The first part is that of code
by the same first author. How the second is done is an option (``output_update``):

* ``rls``        recursive least squares: β is at every step the ridge solution on all samples so far. It depends neither on
                 their order nor on how they are split into tasks. Its R is OWM's projector of the output layer, P = reg · R.
* ``nullspace``  projected least squares, closest to the words of the abstract; ours in the details. With U (L, k) an
                 orthonormal basis of the features of earlier tasks and Π = I − UUᵀ,

                     β ← β + Π B,   B = argmin ‖G (β + Π B) − Y‖² + reg ‖B‖²   over the task's samples,

                 so that G β stays what it was for features within U. After the task, U is made of the leading left singular
                 vectors of [U diag(s), Gᵀ], with s the singular values kept, as few as hold the share ``energy`` of the sum
                 of squares. The rest is forgotten; L − k directions are left to learn in.

OWM by gradients on the output layer is ``strategy=owm strategy.layers=last``.

``representation`` says what G is fitted to:

* ``frozen``     the training data of the first task, once. The reference: β is then all that is learned.
* ``per_task``   the training data of every task by themselves, as the tweak is meant. A fit is kept for each task t, and
                 G_t(x) taken for its training samples. Which one a test image gets is decided for that image alone, unless
                 the scenario gives its task (``inference``): the mean of the scores G_t(x) β over t (``avg``), the t with the
                 largest score among its own classes (``max``), or the t whose tweaked weights reconstruct x best
                 (``recon``). These rules are ours.

Published code of this family fits the ranges, V and the scale to the *test* images of one task at a time, which gives the
task away: benchmarks/batch_leak.py measures how much. Here nothing is ever fitted to test images.

Every task's samples are seen once. Stores β, L × L numbers (``nullspace``: three times as many), the random weights and one fit
(``per_task``: one for each task of the stream). Reported after a task: ``fit_numbers``, what the fits so far hold; with
``nullspace`` also ``free_rank``, L − k.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from clbench.learning.base import Measurement, Needs
from clbench.learning.parts.frozen_features import FrozenFeatures, FrozenFeaturesConfig
from clbench.learning.parts.least_squares import update_ridge
from clbench.learning.parts.random_representation import Fit, RandomRepresentation
from clbench.models.continual import ContinualModel
from clbench.options import option
from clbench.registry import STRATEGIES
from clbench.scenarios.scenario import Scenario
from clbench.scenarios.task import Task

SAMPLES_AT_ONCE = 1024
"""Samples of a task that are looked at together while the representation is fitted."""


@dataclass
class IF2NetConfig(FrozenFeaturesConfig):
    """Options of ``strategy=if2net``."""

    extractor: str = option(
        help="what the random layers see: pixels; the features of the network as the run starts (pretrained, or random); or "
        "of the network trained on the first task and then frozen",
        choices=("pixels", "frozen", "first_task"),
    )
    representation: str = option(
        help="fit the random layers to the first task's data, or to each task's", choices=("frozen", "per_task")
    )
    inference: str = option(
        help="representation=per_task: which task's fit a test image gets; the mean of all, that with the largest score, or "
        "that with the least reconstruction error",
        choices=("avg", "max", "recon"),
    )
    output_update: str = option(
        help="recursive least squares on all samples, or least squares projected away from the features of earlier tasks",
        choices=("rls", "nullspace"),
    )
    n_windows: int = option(help="windows N2 of random weights", at_least=1)
    window: int = option(help="columns N1 of a window", at_least=1)
    n_expand: int = option(help="width N3 of the random orthonormal layer", at_least=1)
    n_out: int = option(help="width L of the last random layer", at_least=1)
    lam_l1: float = option(help="weight λ of the L1 norm in the tweak", at_least=0)
    admm_iter: int = option(help="steps of ADMM in the tweak", at_least=1)
    shrink: float = option(help="scale s before the tanh", above=0)
    alpha: float = option(help="weights of the last random layer are uniform in ±α", above=0)
    reg: float = option(help="weight of ‖β‖² in the least squares", above=0)
    energy: float = option(
        help="output_update=nullspace: share of the sum of squares of earlier features that is protected",
        above=0,
        at_most=1,
    )


@STRATEGIES.register("if2net")
class IF2Net(FrozenFeatures):
    """Least squares on random features that are tuned to the first task, or to each."""

    config = IF2NetConfig
    needs = Needs(traits=frozenset({"one task a class"}))
    options: IF2NetConfig
    beta: Tensor
    R: Tensor
    moments: Tensor
    free: Tensor

    def __init__(self, config: IF2NetConfig, model: ContinualModel, scenario: Scenario) -> None:
        super().__init__(config, model, scenario)
        if config.extractor == "pixels":
            model.backbone.requires_grad_(False)
            n_inputs = math.prod(scenario.input_shape)
        else:
            n_inputs = model.head.in_features
        self.representation = RandomRepresentation(
            n_inputs, config.n_windows, config.window, config.n_expand, config.n_out, config.alpha
        )
        n_fits = scenario.n_tasks if config.representation == "per_task" else 1
        for name, tensor in self.representation.blank._asdict().items():
            self.register_buffer(f"fit_{name}", tensor.expand(n_fits, *tensor.shape).clone())
        eye = torch.eye(config.n_out, dtype=torch.float64)
        self.register_buffer("R", eye / config.reg)
        self.register_buffer("beta", eye.new_zeros(config.n_out, scenario.n_classes))
        if config.output_update == "nullspace":
            self.register_buffer("moments", torch.zeros_like(eye))  # U diag(s²) Uᵀ + GᵀG of the task being learned
            self.register_buffer("free", eye.clone())  # Π

    # ---- task boundaries ------------------------------------------------------------------------------------------

    @torch.no_grad()
    def begin_task(self, task: Task) -> None:
        """Fit the representation, where its inputs are there already."""
        if not self.learns_by_gradient:
            self._fit(task)
        if self.options.output_update == "nullspace":
            self.R.copy_(torch.eye(len(self.R), dtype=self.R.dtype) / self.options.reg)

    @torch.no_grad()
    def end_task(self, task: Task) -> None:
        """Protect what the task uses."""
        if self.options.output_update == "nullspace":
            self._protect()

    @torch.no_grad()
    def before_absorbing(self, task: Task) -> None:
        """Fit the representation to features that have been trained."""
        self._fit(task)

    def _fit(self, task: Task) -> None:
        """Fit the representation to the task's training data."""
        if task.index > 0 and self.options.representation == "frozen":
            return
        self.model.eval()  # the trainer chooses the mode after this

        def batches() -> Iterator[Tensor]:
            return (self.features(samples.x) for samples in task.batches(task.ids, SAMPLES_AT_ONCE))

        options = self.options
        fit = self.representation.fit(batches, options.lam_l1, options.admm_iter, options.shrink)
        for name, tensor in fit._asdict().items():
            self.get_buffer(f"fit_{name}")[self._fit_of(task.index)] = tensor

    def _protect(self) -> None:
        """U from the moments of the features, and what is kept of them."""
        values, vectors = torch.linalg.eigh(self.moments)
        values, vectors = values.flip(0), vectors.flip(1)
        smallest = len(values) * torch.finfo(values.dtype).eps * values[0]
        values = torch.where(values > smallest, values, 0.0)
        before = values.cumsum(0) - values
        kept = (values > 0) & (before < self.options.energy * values.sum())
        U = vectors * kept
        self.moments.copy_((U * values) @ U.T)
        self.free.copy_(torch.eye(len(U), dtype=U.dtype, device=U.device) - U @ U.T)

    # ---- learning and predicting ------------------------------------------------------------------------------------

    def features(self, x: Tensor) -> Tensor:
        """Inputs of the random layers, float64 (B, d), of images (B, C, H, W)."""
        return x.flatten(1).double() if self.options.extractor == "pixels" else super().features(x)

    @property
    def predicts_from_features(self) -> bool:
        """Unless it sees the pixels."""
        return self.options.extractor != "pixels"

    def absorb(self, features: Tensor, labels: Tensor) -> Tensor:
        """One update of β; the loss is ‖G β − y‖² before it, averaged over the batch."""
        G = self.representation(features, self._fit_for(self.tasks_seen - 1))
        Y = self.targets(labels)
        loss = (Y - G @ self.beta).square().sum(1).mean()
        if self.options.output_update == "rls":
            R, beta = update_ridge(self.R, self.beta, G, Y)
        else:
            self.moments.add_(G.T @ G)
            # β is the old one and a change within Π, of which the update knows the projected features G Π alone.
            seen = G @ self.free
            R, beta = update_ridge(self.R, self.beta, seen, Y - (G - seen) @ self.beta)
        self.R.copy_(R)
        self.beta.copy_(beta)
        return loss

    def scores(self, features: Tensor, task: Tensor | None = None) -> Tensor:
        """G(x) β (B, n_classes), of the fit that ``task`` (B,) names where the scenario gives it, else ``inference``."""
        if self.options.representation == "frozen":
            return self.representation(features, self._fit_for(0)) @ self.beta
        tasks = range(max(1, self.tasks_seen))
        scores = torch.stack([self.representation(features, self._fit_for(t)) @ self.beta for t in tasks])  # (t, B, C)
        if task is not None:
            chosen = task.clamp(max=len(tasks) - 1)
        elif self.options.inference == "avg":
            return scores.mean(0)
        elif self.options.inference == "max":
            chosen = torch.stack([self._own(scores[t], t).amax(1) for t in tasks]).argmax(0)
        else:
            errors = [self.representation.reconstruction_error(features, self._fit_for(t)) for t in tasks]
            chosen = torch.stack(errors).argmin(0)
        return scores.gather(0, chosen[None, :, None].expand(1, -1, scores.shape[2]))[0]

    def _own(self, scores: Tensor, task: int) -> Tensor:
        """The scores with −inf at classes of other tasks."""
        if self.model.answer.setting == "domain":
            return scores
        return scores.masked_fill(self.model.answer.class_task != task, -torch.inf)

    def _fit_for(self, task: int) -> Fit:
        """The fit that the samples of ``task`` are learned with."""
        return Fit(*(self.get_buffer(f"fit_{name}")[self._fit_of(task)] for name in Fit._fields))

    def _fit_of(self, task: int) -> int:
        return task if self.options.representation == "per_task" else 0

    # ---- reports ----------------------------------------------------------------------------------------------------

    def measurements(self) -> list[Measurement]:
        per_fit = sum(tensor.numel() for tensor in self._fit_for(0))
        reported = [Measurement("fit_numbers", "", float(per_fit * (self._fit_of(self.tasks_seen - 1) + 1)))]
        if self.options.output_update == "nullspace":
            reported.append(Measurement("free_rank", "", float(self.free.trace().round())))
        return reported

    def notes(self) -> list[str]:
        return [
            "IF2Net (reconstruction: abstract + same-author code); the paper's equations, sizes and tables could not be read"
        ]
