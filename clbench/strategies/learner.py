"""A model and the strategies that train it, as one module: its ``state_dict()`` is the checkpoint.

Strategies compose: penalties add up, plans fill different columns, gradient edits and data losses may come from one
strategy each.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from clbench.errors import ConfigError
from clbench.models.continual import ContinualModel
from clbench.scenarios.task import Task
from clbench.strategies.base import Batch, Outputs, Plan, Strategy
from clbench.strategies.compilation import Compilation

EXCLUSIVE = {
    "data_loss": "the loss on the batch's samples",
    "edit_gradients": "the gradient's projection",
    "predict": "the prediction",
}


class Learner(nn.Module):
    """What is trained, evaluated and saved.

    Args:
        model: the network.
        strategies: the strategy named by ``strategy=`` and those of ``strategy.plus``.
        compilation: how losses and predictions are run.

    Raises:
        ConfigError: two strategies cannot be combined.
    """

    def __init__(
        self, model: ContinualModel, strategies: Sequence[Strategy], compilation: Compilation | None = None
    ) -> None:
        super().__init__()
        self.compilation = compilation or Compilation("off", torch.device("cpu"))
        self.model = model
        self.strategies = nn.ModuleList(strategies)
        self._owner = {hook: _owner(strategies, hook) for hook in EXCLUSIVE}

    def __iter__(self):
        return iter(self.strategies)

    def begin_task(self, task: Task) -> None:
        """Let the model see the task's classes, then call every strategy's hook."""
        self.model.begin_task(task.index, task.torch_generator("head"))
        for strategy in self:
            strategy.begin_task(task)

    def plan(self, task: Task) -> Plan:
        """The samples of every step of the task."""
        plan = Plan(new=task.shuffled_batches(task.ids))
        for strategy in self:
            plan = strategy.plan(task, plan)
        return plan

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """All loss terms by name: the data terms, and one per strategy with a penalty."""
        features = self.model.features(batch.samples.x)
        outputs = Outputs(features, self.model.head(features))
        terms = dict(self._owner["data_loss"].data_loss(batch, outputs))
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
        """The gradient (P,) the optimizer gets."""
        return self._owner["edit_gradients"].edit_gradients(gradient, batch)

    @property
    def acts_after_steps(self) -> bool:
        """Whether a strategy does anything after a step."""
        return any(_overrides(strategy, "after_step") for strategy in self)

    def after_step(self) -> None:
        """Call every strategy's hook."""
        for strategy in self:
            strategy.after_step()

    def end_task(self, task: Task) -> None:
        """Call every strategy's hook, in evaluation mode."""
        self.eval()
        for strategy in self:
            strategy.end_task(task)
            strategy.tasks_learned = task.index + 1

    def resume_at(self, task: int) -> None:
        """Tell every strategy how many tasks it has learned; called after ``load_state_dict``."""
        for strategy in self:
            strategy.tasks_learned = task

    def prepare_for_eval(self) -> None:
        """Call every strategy's hook."""
        for strategy in self:
            strategy.prepare_for_eval()

    def predict(self, x: Tensor, task: Tensor | None) -> Tensor:
        """Logits (B, n_classes) for prediction, see :meth:`Strategy.predict`."""
        return self._owner["predict"].predict(x, task if self.model.setting == "task" else None)

    @property
    def predicts_by_model(self) -> bool:
        """Whether predictions depend on the model alone: no strategy prepares or makes them."""
        hooks = ("prepare_for_eval", "predict")
        return not any(_overrides(strategy, hook) for strategy in self for hook in hooks)

    def prepare_and_predict(self, x: Tensor, task: Tensor | None) -> Tensor:
        """Logits (B, n_classes), after :meth:`prepare_for_eval`."""
        self.prepare_for_eval()
        return self.predict(x, task)

    def trainable(self) -> dict[str, nn.Parameter]:
        """The model's trainable parameters, in the order of the flat gradient."""
        return self.model.trained()  # type: ignore[return-value]

    def extra_bytes(self) -> int:
        """Bytes the strategies keep beside the model (anchors, teachers, memory indices)."""
        tensors = [t for s in self for t in (*s.parameters(), *s.buffers())]
        return sum(t.numel() * t.element_size() for t in tensors if isinstance(t, torch.Tensor))


def _overrides(strategy: Strategy, hook: str) -> bool:
    return getattr(type(strategy), hook) is not getattr(Strategy, hook)


def _owner(strategies: Sequence[Strategy], hook: str) -> Strategy:
    """The one strategy that defines ``hook``, or the first where none does."""
    owners = [s for s in strategies if _overrides(s, hook)]
    if len(owners) > 1:
        names = " and ".join(s.name for s in owners)
        raise ConfigError(f"{names} cannot be combined: each of them decides {EXCLUSIVE[hook]}")
    return owners[0] if owners else strategies[0]
