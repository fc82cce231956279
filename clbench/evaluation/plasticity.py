"""Optional measures of plasticity: is the network still able to learn, and what has become of its units and weights?

The same word means different things across codebases ("stable rank" is ``srank_99_sigma`` in two of three), so that every
quantity here has a name that stands for one formula. Notation: H (N, d) are the activations of one hidden layer on N probe
samples, after the non-linearity, those of a channel averaged over its pixels; σ₁ ≥ σ₂ ≥ … are the singular values of H
(uncentred), p_i = σ_i / Σσ. A unit's entries are its values for all samples (and pixels).

==========================  ===========================================================================================
of each hidden layer on each probe
``dead_frac_exact``         share of units all of whose entries are 0 (Dohare et al. 2024, Permuted MNIST: "dead units")
``dormant_frac_fire``       share of units of whose entries fewer than 1 % are not 0 (Dohare et al., CIFAR-100: "dormant")
``dormant_frac_redo``       share of units with E|h_i| / (mean_k E|h_k| + 1e-9) ≤ 0.1 (ReDo, Sokar et al. 2023; τ = 0.1)
``active_entry_frac``       1 − share of entries that are 0 (for ReLU; Plasticine calls it the fraction of active units)
``erank_entropy``           exp(−Σ p_i ln p_i) (effective rank, Roy & Vetterli 2007)
``srank_99_sigma``          least k with Σ_{i≤k} σ_i / Σσ ≥ 0.99 (srank of Kumar et al. 2021)
``approx_rank_99_energy``   the same with σ²
``stable_rank``             Σσ² / σ₁²
``num_rank``                number of σ_i > ε σ₁ max(N, d), ε that of float32
``feature_norm``            mean over the samples of ‖h_n‖, of the penultimate layer only
of each probe
``train_accuracy``          accuracy on it; of the current task at its end: trainability
``grad_norm_probe``         ‖∇ mean cross-entropy‖ over the trained weights, in evaluation mode
of the network's weights
``weight_abs_mean``         Σ|θ| / #θ over all trained weights (Dohare et al.: "average weight magnitude")
``weight_rms``              ‖θ‖ / √#θ
``init_distance_rms``       ‖θ − θ₀‖ / √#θ, θ₀ the weights at the start of the run
``sigma_max``               of each weight matrix its largest singular value; a convolution's is reshaped to (out, rest)
``condition``               of each weight matrix σ_max / σ_min
==========================  ===========================================================================================

Probes are training images without augmentation, drawn once per task from a stream of their own and read in evaluation mode:
``current``, of the task being learned (at its start: before a step is taken on it), and ``earlier``, of all tasks before it. Each
has max(2000, 2d) samples, d the width of the widest layer, or as many as there are. Nothing here moves training.
"""

import math

import pandas as pd
import torch
from torch import Tensor

from clbench.evaluation.evaluator import ContinualEvaluator
from clbench.learning.learner import Learner
from clbench.scenarios.scenario import Samples
from clbench.seeding import torch_generator

COLUMNS = ["task_learning", "iteration", "probe", "quantity", "part", "value"]
"""``probe``: current, earlier, or empty for what concerns weights; ``part``: a layer, or empty for the whole."""

PROBE_SIZE = 2000
FIRING_RATE = 0.01
DORMANT_SCORE = 0.1
ENERGY = 0.99


class Plasticity:
    """Collects the quantities of the module docstring at every task's start and end, and every ``every`` steps between.

    Args:
        learner: what is looked at, with its initial weights.
        evaluator: knows the scenario and how to look without leaving a trace.
        every: steps between two looks; 0: never.
        seed: the run's seed; probes come from the stream (seed, "plasticity_probe", task).
    """

    def __init__(self, learner: Learner, evaluator: ContinualEvaluator, every: int, seed: int) -> None:
        self.learner, self.evaluator, self.every, self.seed = learner, evaluator, every, seed
        self._rows: list[tuple] = []
        self._probes: dict[str, Samples] = {}
        self._probes_of = -1
        if every:
            self._initial = self._weights().clone()

    def due(self, step: int, n_steps: int) -> bool:
        """Whether to look after ``step`` (0: before the first) of a task's ``n_steps``."""
        return self.every > 0 and (step in (0, n_steps) or step % self.every == 0)

    def look(self, task: int, iteration: int) -> None:
        """Measure everything as it is now, while ``task`` is learned."""
        self._at = task, iteration
        for probe, samples in self._probes_for(task).items():
            with self.evaluator.undisturbed(), self.evaluator.precision.autocast():
                self._add(probe, "train_accuracy", "", self._accuracy(samples))
                activations = {} if self.learner.makes_weights else self._activations(samples)
            for layer, h in activations.items():
                for quantity, value in of_activations(h).items():
                    self._add(probe, quantity, layer, value)
            for layer in list(activations)[-1:]:
                self._add(probe, "feature_norm", layer, by_sample(activations[layer]).norm(dim=1).mean())
            if self.learner.learns_by_gradient and not self.learner.makes_weights:
                with self.evaluator.undisturbed(inference=False):
                    self._add(probe, "grad_norm_probe", "", self._gradient(samples).norm())
        weights = self._weights()
        self._add("", "weight_abs_mean", "", weights.abs().mean())
        self._add("", "weight_rms", "", weights.square().mean().sqrt())
        if len(weights) == len(self._initial):  # of a network that has grown, not all weights have initial values
            self._add("", "init_distance_rms", "", (weights - self._initial).square().mean().sqrt())
        for name, matrix in self._matrices().items():
            singular = singular_values(matrix)
            self._add("", "sigma_max", name, singular[0])
            self._add("", "condition", name, singular[0] / singular[-1])

    def rows(self) -> list[tuple]:
        """Rows of :data:`COLUMNS` so far."""
        return list(self._rows)

    def table(self) -> pd.DataFrame:
        """The same as a table."""
        return pd.DataFrame(self._rows, columns=COLUMNS)

    def restore(self, rows: list) -> None:
        """Start from the rows of a checkpoint."""
        self._rows = [tuple(row) for row in rows]

    # ---- what is looked at ------------------------------------------------------------------------------------------

    def _add(self, probe: str, quantity: str, part: str, value: Tensor | float) -> None:
        self._rows.append((*self._at, probe, quantity, part, float(value)))

    def _probes_for(self, task: int) -> dict[str, Samples]:
        """The probes while ``task`` is learned; kept until another task is."""
        if self._probes_of != task:
            scenario = self.evaluator.scenario
            generator = torch_generator(self.seed, "plasticity_probe", task)
            size = max(PROBE_SIZE, 2 * self._widest())
            pools = {"current": scenario.arriving(task)}
            if task > 0:
                pools["earlier"] = torch.cat([scenario.arriving(earlier) for earlier in range(task)])
            self._probes = {}
            for name, ids in pools.items():
                drawn = ids[torch.randperm(len(ids), generator=generator)[:size].sort().values]
                self._probes[name] = self.evaluator.inputs.plain(scenario.train, drawn)
            self._probes_of = task
        return self._probes

    def _widest(self) -> int:
        return max(matrix.shape[0] for matrix in self._matrices().values())

    def _accuracy(self, samples: Samples) -> Tensor:
        correct = []
        for part in self._parts(samples):
            if self.learner.separates_tasks:
                for task in part.task.unique().tolist():
                    own = part.task == task
                    correct.append(self.learner.predict_task(part.x[own], task).argmax(1) == part.y[own])
            else:
                correct.append(self.learner.predict(part.x, part.task).argmax(1) == part.y)
        return torch.cat(correct).double().mean()

    def _gradient(self, samples: Samples) -> Tensor:
        """Gradient (P,) of the mean cross-entropy on the probe."""
        parts = [next(iter(self.learner)).flat_gradient(part) * len(part.y) for part in self._parts(samples)]
        return torch.stack(parts).sum(0) / len(samples.y)

    def _activations(self, samples: Samples) -> dict[str, Tensor]:
        """Every hidden layer's activations on the probe; of a network whose layers are not known, the features."""
        model = self.learner.model
        parts = []
        for part in self._parts(samples):
            known = model.hidden_layers()
            parts.append(model.activations(part.x)[1] if known else {"features": model.features(part.x)})
        return {layer: torch.cat([part[layer] for part in parts]).float() for layer in parts[0]}

    def _parts(self, samples: Samples) -> list[Samples]:
        """The probe in forward passes that suit the device."""
        return [Samples(*(column[part] for column in samples)) for part in self.evaluator.parts(len(samples.y))]

    def _weights(self) -> Tensor:
        return torch.cat([p.detach().reshape(-1) for p in self.learner.trainable().values()])

    def _matrices(self) -> dict[str, Tensor]:
        """Weight matrices (out, rest) of the network by the name of their layer."""
        return {
            name.removeprefix("backbone.").removesuffix(".weight"): parameter.detach().flatten(1)
            for name, parameter in self.learner.model.named_parameters()
            if parameter.dim() > 1 and name.endswith("weight")
        }


# ---- formulas -----------------------------------------------------------------------------------------------------------


def by_sample(h: Tensor) -> Tensor:
    """Activations (B, d) or (B, d, H, W) as (B, d), averaged over pixels."""
    return h.flatten(2).mean(2) if h.dim() > 2 else h


def of_activations(h: Tensor) -> dict[str, float]:
    """What the module docstring defines for a hidden layer, from its activations (N, d) or (N, d, H, W)."""
    units = h.transpose(0, 1).flatten(1)  # (d, entries)
    fires = (units != 0).double().mean(1)
    size = units.abs().double().mean(1)
    return {
        "dead_frac_exact": float((fires == 0).double().mean()),
        "dormant_frac_fire": float((fires < FIRING_RATE).double().mean()),
        "dormant_frac_redo": float((size / (size.mean() + 1e-9) <= DORMANT_SCORE).double().mean()),
        "active_entry_frac": float(fires.mean()),
        **ranks(singular_values(by_sample(h)), max(by_sample(h).shape)),
    }


def singular_values(matrix: Tensor) -> Tensor:
    """Singular values, descending, in double precision on the CPU; NaN where the matrix is not finite."""
    matrix = matrix.double().cpu()
    if not matrix.isfinite().all():
        return torch.full((min(matrix.shape),), math.nan, dtype=torch.float64)
    return torch.linalg.svdvals(matrix)


def ranks(singular: Tensor, longest: int) -> dict[str, float]:
    """The five ranks of a matrix from its singular values, descending; ``longest`` is the longer of its sides.

    All are 0 for a matrix of zeros, and NaN where the singular values are.
    """
    names = ("erank_entropy", "srank_99_sigma", "approx_rank_99_energy", "stable_rank", "num_rank")
    if singular[0] == 0 or singular[0].isnan():
        return {name: float(singular[0]) for name in names}
    energy = singular.square()
    p = singular / singular.sum()

    def count(parts: Tensor) -> float:
        # Rounding may leave the whole sum a little short of 1.
        return float((parts.cumsum(0) / parts.sum() < ENERGY * (1 - 1e-12)).sum() + 1)

    threshold = torch.finfo(torch.float32).eps * singular[0] * longest
    values = (
        float(torch.special.entr(p).sum().exp()),
        count(singular),
        count(energy),
        float(energy.sum() / energy[0]),
        float((singular > threshold).sum()),
    )
    return dict(zip(names, values, strict=True))
