"""A model and the strategies that train it, as one module: its ``state_dict()`` is the checkpoint.

Strategies compose: penalties add up, plans fill different columns, gradient edits and data losses may come from one
strategy each. Which may be combined is decided before they are built, see :mod:`clbench.learning.composition`.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn

from clbench.learning.base import Batch, Measurement, Outputs, Plan, Strategy
from clbench.learning.compilation import Compilation
from clbench.learning.stage import JointStage, Stage, joined
from clbench.learning.traits import EXCLUSIVE, overrides, predicts_by_itself
from clbench.models.continual import ContinualModel
from clbench.scenarios.task import Task


class Learner(nn.Module):
    """What is trained, evaluated and saved.

    Args:
        model: the network.
        strategies: the strategy named by ``strategy=`` and those of ``strategy.plus``.
        compilation: how losses and predictions are run.
    """

    def __init__(
        self, model: ContinualModel, strategies: Sequence[Strategy], compilation: Compilation | None = None
    ) -> None:
        super().__init__()
        self.compilation = compilation or Compilation("off", torch.device("cpu"))
        self.model = model
        self.strategies = nn.ModuleList(strategies)
        self.stage = self.main_stage
        self._owner = {hook: _owner(strategies, hook) for hook in EXCLUSIVE}
        # Counted once: under functional_call plain tensors, which cannot say whether they are trained, stand in for parameters.
        self._n_own = [sum(p.numel() for p in strategy.parameters() if p.requires_grad) for strategy in strategies]

    def __iter__(self) -> Iterator[Strategy]:
        return cast(Iterator[Strategy], iter(self.strategies))

    def begin_task(self, task: Task) -> Tensor | None:
        """Let the model grow and see the task's classes, then call every strategy's hook; all are told of weights drawn anew.

        Returns which of the trained weights these are, or None for none.
        """
        self.model.grow(task.index)
        for strategy in self:
            strategy.tasks_seen = task.index + 1
        drawn = [self.model.begin_task(task.index, task.torch_generator("head"))]
        self._tell(drawn[0])
        for strategy in self:
            drawn.append(strategy.begin_task(task))
            self._tell(drawn[-1])
        return self._of_all([renewed for renewed in drawn if renewed is not None])

    def _tell(self, renewed: Tensor | None) -> None:
        """Tell every strategy which weights (P,) have been drawn anew, where any have."""
        if renewed is not None:
            for strategy in self:
                strategy.weights_renewed(renewed)

    def plan(self, task: Task) -> Plan:
        """The samples of every step of the task."""
        plan = Plan(new=task.arriving_batches())
        owner = self._owner["data_loss"]

        def place(strategy: Strategy) -> int:
            """First those that may make other batches, to which the others add samples or columns."""
            chooses = "leaves out samples" in strategy.traits(strategy.options)
            return 0 if chooses else 1 if strategy is owner else 2

        for strategy in sorted(self, key=place):
            plan = strategy.plan(task, plan)
        return plan

    def recall(self, slots: Tensor) -> Tensor:
        """Sample ids (n,) in the planned slots (n,) of a memory, see :meth:`Strategy.recall`."""
        return self._owner["recall"].recall(slots)

    @property
    def main_stage(self) -> JointStage:
        """What a task begins with: everything is trained with the task's plan, by gradients or by :meth:`learn`."""
        parts = tuple(Stage(by_gradient=strategy.learns_by_gradient) for strategy in self)
        return JointStage(0, parts, (True,) * len(parts))

    def stages(self, task: Task, n_steps: int) -> tuple[list[JointStage], list[JointStage]]:
        """The stages within the task's plan of ``n_steps``, and those after it."""
        return joined([strategy.stages(task, n_steps) for strategy in self], self.main_stage)

    def enter(self, stage: JointStage) -> None:
        """Let every strategy be in its part of ``stage``."""
        self.stage = stage
        for strategy, part in zip(self, stage.parts, strict=True):
            strategy.stage = part

    def begin_stage(self, task: Task) -> None:
        """Let strategies act whose part of the present stage begins; all are told of weights that are drawn anew."""
        for renewed in self.stage.begin(task):
            self._tell(renewed)

    def trained_in_stage(self) -> Tensor | None:
        """Boolean (P,): which of the trained weights the present stage trains; None for all."""
        masks = []
        for part in self.stage.parts:
            if part.trains == "head":
                parameters = self.trainable().items()
                of_head = [torch.full((p.numel(),), n.startswith("head."), device=p.device) for n, p in parameters]
                masks.append(torch.cat(of_head))
            elif part.mask is not None:
                masks.append(part.mask())
        return torch.stack(masks).all(0) if masks else None

    def rate_factors(self, backbone_rate: float = 1.0) -> Tensor | None:
        """(P,): the factor of the learning rate for every trained weight; None where all are 1.

        ``backbone_rate`` is that of all weights of the network but the head's, before the strategies' own factors.
        """
        factors = {}
        for name in self.trainable():
            own = backbone_rate if name.startswith("backbone.") else 1.0
            factors[name] = math.prod([own, *(strategy.rate_factor(name) for strategy in self)])
        if all(factor == 1 for factor in factors.values()):
            return None
        return torch.cat([p.new_full((p.numel(),), factors[name]) for name, p in self.trainable().items()])

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """All loss terms by name: the data terms, and one per strategy with a penalty."""
        return self.loss_and_outputs(batch)[0]

    def loss_and_outputs(self, batch: Batch) -> tuple[dict[str, Tensor], Outputs | None]:
        """All loss terms by name, and what the batch's samples gave, detached, or None where no strategy ``keeps_outputs``."""
        outputs = self.outputs(batch)
        terms = self.terms(batch, outputs)
        kept = Outputs(outputs.features.detach(), outputs.logits.detach()) if self.keeps_outputs else None
        return terms, kept

    def outputs(self, batch: Batch) -> Outputs:
        """The forward pass over the batch's samples, see :meth:`Strategy.outputs`."""
        if self.stage.trains_head_only:
            with torch.no_grad():
                features = self.model.features(batch.samples.x)
            return Outputs(features, self.model.head(features))
        return self._owner["outputs"].outputs(batch)

    def terms(self, batch: Batch, outputs: Outputs) -> dict[str, Tensor]:
        """All loss terms by name, from the ``outputs`` of the batch's samples."""
        terms = dict(self._owner["data_loss"].data_loss(batch, outputs))
        weight = 1.0
        for strategy in self:  # not math.prod, at which torch.compile gives the graph up
            weight *= strategy.data_weight
        if weight != 1:
            terms = {name: weight * term for name, term in terms.items()}
        for strategy in self:
            penalty = strategy.penalty(batch, outputs)
            if penalty is not None:
                terms[strategy.name] = penalty
        return terms

    def forward(self, hook: str, *arguments: Any) -> Any:
        """Call the method ``hook``: what ``torch.func.functional_call`` needs to call it with another state."""
        return getattr(self, hook)(*arguments)

    @property
    def edits_gradients(self) -> bool:
        """Whether a strategy changes the gradient."""
        return _overrides(self._owner["edit_gradients"], "edit_gradients")

    def edit_gradients(self, gradient: Tensor, batch: Batch) -> Tensor:
        """The gradient (P,) the optimizer gets; that of weights which belong to other strategies alone stays as it is."""
        owner, n_own = self._owner["edit_gradients"], self._n_own
        bounds = [0, *accumulate([len(gradient) - sum(n_own), *n_own])]
        seen = [True, *(strategy is owner for strategy in self)]  # of the model's part and each strategy's
        if all(is_seen or not n for is_seen, n in zip(seen[1:], n_own, strict=True)):
            return owner.edit_gradients(gradient, batch)
        parts = [torch.arange(*part) for part, is_seen in zip(pairwise(bounds), seen, strict=True) if is_seen]
        index = torch.cat(parts).to(gradient.device)
        if batch.update is not None:
            batch = batch._replace(update=batch.update[index])
        return gradient.index_copy(0, index, owner.edit_gradients(gradient[index], batch))

    @property
    def keeps_outputs(self) -> bool:
        """Whether a strategy wants to see after a step what its samples gave."""
        return any(strategy.keeps_outputs for strategy in self)

    @property
    def keeps_gradient(self) -> bool:
        """Whether a strategy wants to see after a step the gradient of its loss."""
        return any(strategy.keeps_gradient for strategy in self)

    @property
    def looks_ahead(self) -> bool:
        """Whether ``edit_gradients`` wants to know the optimizer's update."""
        return self._owner["edit_gradients"].looks_ahead

    @property
    def acts_after_steps(self) -> bool:
        """Whether a strategy does anything after a step."""
        return any(_overrides(strategy, "after_step") for strategy in self)

    @property
    def renews_weights(self) -> bool:
        """Whether a strategy draws weights anew while training."""
        return any(strategy.renews_weights for strategy in self)

    def after_step(self, step: int, batch: Batch) -> Tensor | None:
        """Call every strategy's hook; returns of which trained weights the optimizer is to forget what it remembers, or None."""
        to_forget = []
        for strategy in self:
            renewed = strategy.after_step(step, batch)
            self._tell(renewed)
            if renewed is not None and strategy.renews_weights:
                to_forget.append(renewed)
        return self._of_all(to_forget)

    def _of_all(self, renewed: list[Tensor]) -> Tensor | None:
        """Which weights are True in any of ``renewed``, (P,) each, and the strategies' own weights, which never are; or None."""
        if not renewed:
            return None
        of_model = torch.stack(renewed).any(0)
        return torch.cat([of_model, of_model.new_zeros(sum(self._n_own))])

    @property
    def learns_by_gradient(self) -> bool:
        """Whether the present stage is trained by gradients; if not, by :meth:`learn`."""
        return self.stage.by_gradient

    def learn(self, batch: Batch) -> dict[str, Tensor]:
        """Learn from the batch without a gradient; named losses for the record."""
        return self._owner["learn"].learn(batch)

    def end_task(self, task: Task) -> None:
        """Call every strategy's hook, in evaluation mode."""
        self.eval()
        for strategy in self:
            strategy.end_task(task)
            strategy.tasks_learned = task.index + 1

    @property
    def consolidates(self) -> bool:
        """Whether a strategy may predict otherwise once a task is over."""
        return any(_overrides(strategy, "end_task") or strategy.takes_over_at_task_end for strategy in self)

    @property
    def learns_at_task_end(self) -> bool:
        """Whether nothing is learned until a task is over, see :attr:`Strategy.learns_at_task_end`."""
        return any(strategy.learns_at_task_end for strategy in self)

    @property
    def trains_once(self) -> bool:
        """Whether all tasks but the last have no steps."""
        return any("trains once" in strategy.traits(strategy.options) for strategy in self)

    def resume_at(self, task: int, begun: bool = False) -> None:
        """Be as after so many tasks, and in the midst of the next where that has begun; before ``load_state_dict``."""
        for grown_for in range(task + begun):
            self.model.grow(grown_for)
        for strategy in self:
            strategy.tasks_learned = task
            strategy.tasks_seen = task + begun

    def prepare_for_eval(self) -> None:
        """Call every strategy's hook."""
        for strategy in self:
            strategy.prepare_for_eval()

    def predict(self, x: Tensor, task: Tensor | None) -> Tensor:
        """Logits (B, n_classes) for prediction, see :meth:`Strategy.predict`."""
        return self._owner["predict"].predict(x, task if self.model.answer.setting == "task" else None)

    def predict_task(self, x: Tensor, task: int) -> Tensor:
        """Logits (B, n_classes) of images of one given task, see :meth:`Strategy.predict_task`."""
        return self._owner["predict"].predict_task(x, task)

    @property
    def separates_tasks(self) -> bool:
        """Whether predictions are to be asked of :meth:`predict_task`, a task at a time."""
        return self.model.answer.setting == "task" and _overrides(self._owner["predict"], "predict_task")

    @property
    def makes_weights(self) -> bool:
        """Whether a strategy makes the network's weights, so that the model's own are not what predicts."""
        return _overrides(self._owner["outputs"], "outputs")

    @property
    def predicts_by_model(self) -> bool:
        """Whether predictions depend on the model alone: no strategy prepares or makes them."""
        return not any(predicts_by_itself(type(strategy)) for strategy in self)

    @property
    def predicts_from_features(self) -> bool:
        """Whether predictions look at images through the model's features alone."""
        return self.predicts_by_model or self._owner["predict"].predicts_from_features

    def prepare_and_predict(self, x: Tensor, task: Tensor | int) -> Tensor:
        """Logits (B, n_classes), after :meth:`prepare_for_eval`; with a whole number for ``task``, of that task alone."""
        self.prepare_for_eval()
        return self.predict_task(x, task) if isinstance(task, int) else self.predict(x, task)

    def trainable(self) -> dict[str, nn.Parameter]:
        """The parameters that are trained, the model's first, in the order of the flat gradient."""
        own = {name: p for name, p in self.strategies.named_parameters() if p.requires_grad}
        return {**self.model.trained(), **own}  # type: ignore[dict-item]

    def measurements(self) -> list[tuple[str, Measurement]]:
        """What every strategy reports of itself, with its name."""
        return [(strategy.name, measurement) for strategy in self for measurement in strategy.measurements()]

    def notes(self) -> list[str]:
        """What a reader of the results has to know of the strategies."""
        return [f"{strategy.name}: {note}" for strategy in self for note in strategy.notes()]

    def extra_bytes(self) -> int:
        """Bytes the strategies keep beside the model (anchors, teachers, memory indices)."""
        tensors = [t for s in self for t in (*s.parameters(), *s.buffers())]
        return sum(t.numel() * t.element_size() for t in tensors if isinstance(t, torch.Tensor))


def _overrides(strategy: Strategy, hook: str) -> bool:
    return overrides(type(strategy), hook)


def _owner(strategies: Sequence[Strategy], hook: str) -> Strategy:
    """The one strategy that defines ``hook``, or the first where none does."""
    owners = [s for s in strategies if _overrides(s, hook)]
    assert len(owners) <= 1, f"{hook} has several owners, which clbench.learning.composition.refuse has let pass"
    return owners[0] if owners else strategies[0]
