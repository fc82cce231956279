"""Hypernetwork: a network that makes each task's weights from a task embedding (von Oswald et al. 2020, arXiv:1906.00695).

The target network has no weights of its own. Those of task t are Θ_t = h(e_t; θ), with an embedding e_t that is learned in
task t and then kept; how h makes them, ``kind=chunked`` (an MLP, a chunk at a time) or ``kind=recurrent`` (an LSTM over the
chunks; Chandra et al. 2023, arXiv:2209.07712), is written in :mod:`clbench.models.hypernetworks`. Learning task T (counted
from 0),

    L = CE(Θ_T) + β/T · Σ_{j<T} Σ_k F_jk (h(e_j; θ*)_k − h(e_j; θ + Δθ)_k)²

θ* is θ before the task: what h made of the old embeddings is to stay. Δθ, with ``lookahead``, is the change that the
optimizer would make for the gradient of CE alone; the penalty's gradient is taken at θ + Δθ, with Δθ held constant. It is 0 at
Δθ = 0 and θ = θ*, so that without ``lookahead`` the penalty does nothing in a task's first step. The embedding e_T sees only
CE. CE runs over the classes of task T alone (in domain-incremental streams over all), whatever ``scenario.logit_scope`` says.

* ``regulariser=output``: F = 1. ``regulariser=importance``: F_j is the diagonal of the empirical Fisher information of Θ_j,
  scaled to a mean of 1. That is **our reading** of the "dependency-preserving" regularisation of Chandra et al., whose
  equation could not be checked; it is an option of von Oswald's code.
* ``targets=cached`` keeps h(e_j; θ*) of all tasks (T·N numbers), ``online`` keeps θ* and computes them at every step.
* ``regularised_tasks``: a random so many of the earlier tasks per step, drawn without replacement, instead of all.
* ``growth`` (recurrent only): after the first task the LSTM's state-to-state map is fixed, and each task has input-to-state
  and output maps of its own, which start from those of the task before. **Our reading** of the paper's network growth, from
  code that fits the paper's description and whose authors could not be identified.

Where the task is given, its network predicts. Where it is hidden (HNET+ENT), every learned network is run, and that with the
lowest entropy of its softmax at ``temperature``, over its own classes, is believed with probability 1 − ε, ε = 1e-4, so that
the loss of a wrong belief is finite: p(c|x) = Σ_j w_j(x) p_j(c|x). Each sample by itself.

BatchNorm's affine parameters are made by h; its running statistics are kept for every task. ``model.frozen`` stages are
neither made nor trained. Reported after every task:

=============================  ========================================================================================
``generated_parameters``       N, weights of the target network that h makes
``hypernetwork_parameters``    |θ|, without task embeddings
``parameters_per_task``        what every further task adds: its embedding, with ``growth`` also its maps
``parameters_to_predict``      of h and of all tasks so far: what their predictions need, BatchNorm's statistics apart
``compression``                ``parameters_to_predict`` / ``generated_parameters``; above 1 the target network is smaller
``output_drift`` of task j     ‖h(e_j; θ) − h(e_j; θ*)‖ / ‖h(e_j; θ*)‖, over the task that has just been learned
=============================  ========================================================================================
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from clbench.config import StrategyConfig
from clbench.errors import ConfigError
from clbench.learning.base import Batch, Measurement, Needs, Outputs, Strategy, buffer_name
from clbench.learning.parts.sample_gradients import gradients_at
from clbench.learning.parts.task_statistics import TaskStatistics
from clbench.models.continual import ContinualModel
from clbench.models.hypernetworks import ChunkedHypernetwork, Hypernetwork, Pieces, RecurrentHypernetwork
from clbench.options import option
from clbench.registry import STRATEGIES
from clbench.scenarios.scenario import Samples, Scenario
from clbench.scenarios.task import Task
from clbench.seeding import hashed_uniform, stream_seed

DOUBT = 1e-4
"""ε: the probability that is left to all tasks but the inferred one."""

OWN_OF_A_TASK = ("input_maps.weight", "input_maps.bias", "output_map.weight", "output_map.bias")
"""``growth``: the parameters of the recurrent hypernetwork that every task has for itself."""

FIXED_CORE = ("state_maps.weight", "state_maps.bias")
"""``growth``: those that stay as the first task has left them."""

SAMPLES_AT_ONCE = 32
"""Per-sample gradients held at a time, each as large as the target network."""


@dataclass
class HypernetworkConfig(StrategyConfig):
    """Options of ``strategy=hypernetwork``."""

    kind: str = option(
        help="how the weights are made: every chunk by itself, or by an LSTM", choices=("chunked", "recurrent")
    )
    hidden: list[int] = option(help="kind=chunked: units of its hidden layers; [] makes it linear")
    activation: str = option(
        help="kind=chunked: after every hidden layer (magnitude_invariant: LeakyReLU)",
        choices=("relu", "elu", "sigmoid"),
    )
    state_size: int = option(help="kind=recurrent: entries H of the LSTM's state", at_least=1)
    embedding_size: int = option(help="entries of a task embedding", at_least=1)
    chunk_embedding_size: int = option(help="entries of a chunk embedding", at_least=1)
    chunk_size: int = option(help="weights made at a time", at_least=1)
    chunk_embedding_std: float = option(help="standard deviation that chunk embeddings start with", at_least=0)
    beta: float = option(help="weight β of the output regulariser", at_least=0)
    regulariser: str = option(
        help="weights of its squares: equal, or by importance (our reading)", choices=("output", "importance")
    )
    importance_samples: int | None = option(
        help="regulariser=importance: training samples used; null: all of the task", at_least=1
    )
    lookahead: bool = option(help="take the penalty's gradient where the next step would lead")
    regularised_tasks: int | None = option(help="earlier tasks regularised per step; null: all", at_least=1)
    targets: str = option(
        help="outputs to be preserved: kept, or computed from the kept hypernetwork", choices=("cached", "online")
    )
    growth: bool = option(help="kind=recurrent: maps of its own for every task around a fixed core (our reading)")
    magnitude_invariant: bool = option(
        help="encode the inputs and add the outputs to learned weights (Ortiz et al. 2024)"
    )
    temperature: float = option(help="hidden task: temperature of the softmax whose entropy is compared", above=0)


@STRATEGIES.register("hypernetwork")
class HypernetworkLearning(Strategy):
    """Makes a network for every task; what it made for earlier ones is regularised to stay."""

    config = HypernetworkConfig
    needs = Needs(cost_grows=True, traits=frozenset({"makes all weights", "one task a class"}))
    options: HypernetworkConfig
    beta: Tensor
    temperature: Tensor
    embeddings: Tensor
    targets: Tensor
    importance: Tensor
    draw_key: Tensor

    def __init__(self, config: HypernetworkConfig, model: ContinualModel, scenario: Scenario) -> None:
        super().__init__(config, model, scenario)
        if config.growth and config.kind != "recurrent":
            raise ConfigError(f"strategy.growth=true needs strategy.kind=recurrent, not {config.kind}")
        if scenario.setting == "class" and scenario.n_tasks > 1 and min(map(len, scenario.task_classes)) == 1:
            raise ConfigError(
                f"{scenario.name} has tasks of a single class, of which every network is certain, so that strategy=hypernetwork "
                "cannot infer the task: choose scenario.increment of at least 2, or a task-incremental scenario"
            )
        own = model.trained()
        self._shapes = {name: parameter.shape for name, parameter in own.items()}
        start = self.flat_parameters().detach().clone() if config.magnitude_invariant else None
        model.requires_grad_(False)
        n, n_tasks = sum(parameter.numel() for parameter in own.values()), scenario.n_tasks
        pieces = Pieces(
            n_weights=n,
            chunk_size=config.chunk_size,
            embedding_size=config.embedding_size,
            chunk_embedding_size=config.chunk_embedding_size,
            chunk_embedding_std=config.chunk_embedding_std,
            start=start,
        )
        self.embedding = nn.Parameter(torch.randn(config.embedding_size))
        self.hypernetwork: Hypernetwork = (
            ChunkedHypernetwork(pieces, config.hidden, config.activation)
            if config.kind == "chunked"
            else RecurrentHypernetwork(pieces, config.state_size)
        )
        self.statistics = TaskStatistics(model, n_tasks)
        self.register_buffer("embeddings", torch.zeros(n_tasks, config.embedding_size))
        self.register_buffer("draw_key", torch.zeros((), dtype=torch.int64))
        if config.targets == "cached":
            self.register_buffer("targets", torch.zeros(n_tasks, n))
        if config.regulariser == "importance":
            self.register_buffer("importance", torch.zeros(n_tasks, n))
        for name, parameter in self.hypernetwork.named_parameters():
            if config.targets == "online":
                self.register_buffer(buffer_name("before", name), parameter.detach().clone())
            if config.growth and name in OWN_OF_A_TASK:
                self.register_buffer(buffer_name("own", name), torch.zeros(n_tasks, *parameter.shape))
            if config.growth and name in FIXED_CORE:
                self.register_buffer(buffer_name("core", name), torch.zeros_like(parameter))

    # ---- training -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def begin_task(self, task: Task) -> None:
        drawn = torch.randn(self.embedding.shape, generator=task.torch_generator("task_embedding"))
        self.embedding.copy_(drawn)
        self.draw_key.fill_(stream_seed(task.seed, "regularised_tasks", task.index))
        if self.options.targets == "online":
            for name, parameter in self.hypernetwork.named_parameters():
                self.get_buffer(buffer_name("before", name)).copy_(parameter)
        elif task.index:
            learned = torch.arange(task.index, device=self.embedding.device)
            self.targets[: task.index] = self.made_for(learned, self.parameters_of_h())

    def outputs(self, batch: Batch) -> Outputs:
        return Outputs(*self.model.with_weights(self._named(self._made_now()), batch.samples.x))

    def data_loss(self, batch: Batch, outputs: Outputs) -> dict[str, Tensor]:
        logits = self._own_classes(outputs.logits, batch.samples.task[:, None])
        return {"new": F.cross_entropy(logits, batch.samples.y)}

    def penalty(self, batch: Batch, outputs: Outputs) -> Tensor | None:
        if self.tasks_learned == 0 or self.options.lookahead:
            return None
        return self.beta * self.output_change(self.parameters_of_h())

    @property
    def looks_ahead(self) -> bool:
        return self.options.lookahead and self.tasks_learned > 0

    def edit_gradients(self, gradient: Tensor, batch: Batch) -> Tensor:
        """With ``lookahead`` the penalty is added here, where Δθ is known."""
        if not self.looks_ahead:
            return gradient
        assert batch.update is not None
        names, tensors = zip(*self.named_parameters(), strict=True)

        def penalty(flat: Tensor) -> Tensor:
            pieces = flat.split([tensor.numel() for tensor in tensors])
            ahead = {n: piece.view_as(t) for n, piece, t in zip(names, pieces, tensors, strict=True)}
            of_h = {n.removeprefix("hypernetwork."): t for n, t in ahead.items() if n != "embedding"}
            return self.beta * self.output_change(of_h)

        theta = torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
        return gradient + grad(penalty)(theta + batch.update)

    def after_step(self, step: int, batch: Batch) -> None:
        self.draw_key.add_(1)

    @torch.no_grad()
    def end_task(self, task: Task) -> None:
        self.embeddings[task.index] = self.embedding
        self.statistics.store(self.model, task.index)
        if self.options.growth:
            for name, parameter in self.hypernetwork.named_parameters():
                if name in OWN_OF_A_TASK:
                    self.get_buffer(buffer_name("own", name))[task.index] = parameter
                elif name in FIXED_CORE and task.index == 0:
                    self.get_buffer(buffer_name("core", name)).copy_(parameter)
        if self.options.regulariser == "importance":
            fisher = self._fisher(task)
            self.importance[task.index] = fisher / fisher.mean().clamp(min=torch.finfo(fisher.dtype).tiny)

    # ---- the regulariser ------------------------------------------------------------------------------------------------

    def output_change(self, theta: dict[str, Tensor]) -> Tensor:
        """(1/J) Σ_j Σ_k F_jk (h(e_j; θ*)_k − h(e_j; θ)_k)² over J earlier tasks, for parameters θ of h by name."""
        tasks = self._regularised_tasks()
        squares = (self.made_for(tasks, theta) - self.made_before(tasks)).square()
        if self.options.regulariser == "importance":
            squares = self.importance[tasks] * squares
        return squares.sum() / len(tasks)

    def made_for(self, tasks: Tensor, theta: dict[str, Tensor]) -> Tensor:
        """The weights (J, N) that parameters θ of h make for earlier tasks (J,)."""

        def made(embedding: Tensor, own: dict[str, Tensor]) -> Tensor:
            return self._run(embedding, {**theta, **own})

        return vmap(made)(self.embeddings[tasks], self._own_of(tasks))

    @torch.no_grad()
    def made_before(self, tasks: Tensor) -> Tensor:
        """The weights (J, N) that h made for earlier tasks (J,) when the last task began: h(e_j; θ*)."""
        return self.targets[tasks] if self.options.targets == "cached" else self.made_for(tasks, self._before())

    def _regularised_tasks(self) -> Tensor:
        """int64 (J,): the earlier tasks that this step regularises."""
        limit = self.options.regularised_tasks
        if limit is None or limit >= self.tasks_learned:
            return torch.arange(self.tasks_learned, device=self.embedding.device)
        return hashed_uniform(self.draw_key, self.tasks_learned).argsort()[:limit]

    # ---- making weights -------------------------------------------------------------------------------------------------

    def parameters_of_h(self) -> dict[str, Tensor]:
        """θ by name as it is now; with ``growth`` the fixed core in place of what is no longer trained."""
        theta: dict[str, Tensor] = dict(self.hypernetwork.named_parameters())
        return self._with_core(theta) if self.options.growth and self.tasks_learned else theta

    def _before(self) -> dict[str, Tensor]:
        """θ* by name."""
        names = [name for name, _ in self.hypernetwork.named_parameters()]
        theta = {name: self.get_buffer(buffer_name("before", name)) for name in names}
        return self._with_core(theta) if self.options.growth else theta

    def _with_core(self, theta: dict[str, Tensor]) -> dict[str, Tensor]:
        return {**theta, **{name: self.get_buffer(buffer_name("core", name)) for name in FIXED_CORE}}

    def _own_of(self, tasks: Tensor | int) -> dict[str, Tensor]:
        """With ``growth`` the parameters that earlier tasks have for themselves, else nothing."""
        names = OWN_OF_A_TASK if self.options.growth else ()
        return {name: self.get_buffer(buffer_name("own", name))[tasks] for name in names}

    def _made_now(self) -> Tensor:
        """The weights (N,) of the task being learned."""
        return self._run(self.embedding, self.parameters_of_h())

    def _run(self, embedding: Tensor, theta: dict[str, Tensor]) -> Tensor:
        """h(e; θ), always in full precision: rounded weights would be another network."""
        with torch.autocast(embedding.device.type, enabled=False):
            return functional_call(self.hypernetwork, theta, (embedding,))

    def _named(self, weights: Tensor) -> dict[str, Tensor]:
        """Flat weights (N,) as the target network's parameters by name."""
        pieces = weights.split([shape.numel() for shape in self._shapes.values()])
        return {name: piece.view(shape) for piece, (name, shape) in zip(pieces, self._shapes.items(), strict=True)}

    def _fisher(self, task: Task) -> Tensor:
        """Diagonal (N,) of the empirical Fisher information of the weights made for the task."""
        ids = task.ids[torch.randperm(len(task.ids), generator=task.torch_generator("importance"))]
        ids = ids[: self.options.importance_samples]

        def loss(weights: Tensor, sample: Samples) -> Tensor:
            logits = self.model.with_weights(self._named(weights), sample.x)[1]
            return F.cross_entropy(self._own_classes(logits, sample.task), sample.y)

        weights = self._made_now().detach()
        total = torch.zeros_like(weights)
        for samples in task.batches(ids, SAMPLES_AT_ONCE):
            total += gradients_at(weights, loss, samples).square().sum(0)
        return total / len(ids)

    # ---- predictions ----------------------------------------------------------------------------------------------------

    def predict_task(self, x: Tensor, task: int) -> Tensor:
        return self.model.answer.restrict(self._logits(x, task), torch.full((len(x),), task, device=x.device))

    def predict(self, x: Tensor, task: Tensor | None) -> Tensor:
        networks = range(max(1, self.tasks_seen))
        logits = torch.stack([self._logits(x, j) for j in networks])  # (T, B, n_classes)
        if task is not None:
            chosen = task.clamp(max=len(networks) - 1)[None, :, None].expand(1, -1, logits.shape[2])
            return self.model.answer.restrict(logits.gather(0, chosen)[0], task)
        own = torch.stack([self._own_classes(of_one, j) for j, of_one in zip(networks, logits, strict=True)])
        entropies = torch.special.entr((own / self.temperature).softmax(2)).sum(2)
        believed = F.one_hot(entropies.argmin(0), len(networks)).T  # (T, B)
        doubt = DOUBT if len(networks) > 1 else 0.0
        weight = believed * (1 - doubt) + (1 - believed) * doubt / max(1, len(networks) - 1)
        return (own.log_softmax(2) + weight.log()[:, :, None]).logsumexp(0)

    def _logits(self, x: Tensor, task: int) -> Tensor:
        """All logits (B, n_classes) of the network of ``task``; of a task not learned yet, of the one that is being learned."""
        if task >= self.tasks_learned:
            return self.model.with_weights(self._named(self._made_now()), x)[1]
        weights = self._run(self.embeddings[task], {**self.parameters_of_h(), **self._own_of(task)})
        return self.model.with_weights({**self._named(weights), **self.statistics.of(task)}, x)[1]

    def _own_classes(self, logits: Tensor, task: Tensor | int) -> Tensor:
        """Logits (B, n_classes) with −inf outside the classes of ``task``, whatever the setting; all in domain-incremental."""
        if self.model.answer.setting == "domain":
            return logits
        return logits.masked_fill(self.model.answer.class_task != task, -math.inf)

    # ---- reports ----------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def measurements(self) -> list[Measurement]:
        of_h = {name: parameter.numel() for name, parameter in self.hypernetwork.named_parameters()}
        grown = sum(of_h[name] for name in OWN_OF_A_TASK) if self.options.growth else 0
        per_task = self.embedding.numel() + grown
        in_all = sum(of_h.values()) - grown + self.tasks_learned * per_task
        n = self.hypernetwork.n_weights
        values = {
            "generated_parameters": n,
            "hypernetwork_parameters": sum(of_h.values()),
            "parameters_per_task": per_task,
            "parameters_to_predict": in_all,
            "compression": in_all / n,
        }
        reported = [Measurement(name, "", float(value)) for name, value in values.items()]
        earlier = torch.arange(self.tasks_learned - 1, device=self.embedding.device)
        if len(earlier):
            before = self.made_before(earlier)
            drift = (self.made_for(earlier, self.parameters_of_h()) - before).norm(dim=1) / before.norm(dim=1)
            reported += [Measurement("output_drift", f"task {j}", value) for j, value in enumerate(drift.tolist())]
        return reported

    def notes(self) -> list[str]:
        said = []
        if self.options.kind == "recurrent":
            said.append(
                "the recurrent hypernetwork follows code that fits the description of arXiv:2209.07712 and whose authors "
                "could not be identified; the paper's tables and hyperparameters were not checked"
            )
        if self.options.regulariser == "importance":
            said.append(
                "strategy.regulariser=importance is a reading of the dependency-preserving regularisation, its equation unchecked"
            )
        if self.options.growth:
            said.append(
                "strategy.growth is a reading of the network growth of arXiv:2209.07712, not checked against the paper"
            )
        if self.options.magnitude_invariant:
            said.append(
                "strategy.magnitude_invariant squashes embeddings by a sigmoid, which is not in arXiv:2304.07645"
            )
        return said
