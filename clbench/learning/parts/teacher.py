"""What methods share that compare the network with what it was before the task, the teacher."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from clbench.config import StrategyConfig
from clbench.learning.base import Strategy, buffer_name
from clbench.models.continual import ContinualModel
from clbench.scenarios.scenario import Scenario
from clbench.scenarios.task import Task


class Teacher(nn.Module):
    """A network as it was when :meth:`remember` was last called, in evaluation mode.

    It keeps copies of what can change, the trained parameters and all buffers, and looks up in the network the parameters that
    are frozen when it is made, so that a pretrained backbone is held once. Whoever changes frozen weights (a merged adapter)
    does so between tasks, before the teacher is told to remember.

    Args:
        model: the network, with all modules that will be in it.
    """

    _structure: ContinualModel
    _model: ContinualModel

    def __init__(self, model: ContinualModel) -> None:
        super().__init__()
        frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
        named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        self._shared, self._own = sorted(frozen), [name for name in named if name not in frozen]
        for name in self._own:
            self.register_buffer(buffer_name("own", name), named[name].detach().clone())
        # Modules without values, which are put in before every call: in a fleet, others stand in for those of this learner.
        empty = {id(t): torch.empty_like(t, device="meta") for t in named.values()}
        empty |= {id(p): nn.Parameter(empty[id(p)], requires_grad=False) for p in model.parameters()}
        structure = copy.deepcopy(model, empty).eval()
        source = {id(named[name]): _place(self, buffer_name("own", name)) for name in self._own}
        source |= {id(named[name]): _place(model, name) for name in self._shared}
        every_name = (
            *model.named_parameters(remove_duplicate=False),
            *model.named_buffers(remove_duplicate=False),
        )
        self._places = [(_place(structure, name), source[id(t)], empty[id(t)]) for name, t in every_name]
        # Not registered: the one is no state, the other belongs to the learner.
        object.__setattr__(self, "_structure", structure)
        object.__setattr__(self, "_model", model)

    @torch.no_grad()
    def remember(self) -> None:
        """Be the network as it is now."""
        now = {**dict(self._model.named_parameters()), **dict(self._model.named_buffers())}
        trained = [name for name in self._shared if now[name].requires_grad]
        assert not trained, f"{trained} are trained, which were frozen when the teacher was made"
        for name in self._own:
            self.get_buffer(buffer_name("own", name)).copy_(now[name])

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, n_classes) of images."""
        with self._values_put_in():
            return self._structure(x)

    def features(self, x: Tensor) -> Tensor:
        """Features (B, n_features) of images."""
        with self._values_put_in():
            return self._structure.features(x)

    def weights(self) -> dict[str, Tensor]:
        """All parameters and buffers by their names in the network."""
        with self._values_put_in():
            return {**dict(self._structure.named_parameters()), **dict(self._structure.named_buffers())}

    @contextmanager
    def _values_put_in(self) -> Iterator[None]:
        # As functional_call does, which would take a tenth of a small transformer's time to find the places again.
        for (tensors, name), (source, source_name), _ in self._places:
            tensors[name] = source[source_name]
        try:
            yield
        finally:
            for (tensors, name), _, empty in self._places:
                tensors[name] = empty

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        """Also from older checkpoints, which hold a copy of the whole network under its names."""
        for name in self._own:
            if prefix + name in state_dict:
                state_dict[prefix + buffer_name("own", name)] = state_dict.pop(prefix + name)
        for name in self._shared:
            state_dict.pop(prefix + name, None)
        super()._load_from_state_dict(state_dict, prefix, *arguments)


def _place(network: nn.Module, name: str) -> tuple[dict[str, Any], str]:
    """Where a module keeps the parameter or buffer ``name``: its dictionary, and the name in it."""
    path, _, own = name.rpartition(".")
    module = network.get_submodule(path)
    return (module._parameters if own in module._parameters else module._buffers), own


class WithTeacher(Strategy):
    """Base of methods that distil: ``teacher`` is the network at the start of the task, always in evaluation mode.

    In the first task it is the initial network. It takes images, and normalises with BatchNorm's running statistics: a student
    that normalises with those of its batch differs from it even with equal weights, unless ``trainer.batch_norm`` freezes them.
    """

    def __init__(self, config: StrategyConfig, model: ContinualModel, scenario: Scenario) -> None:
        super().__init__(config, model, scenario)
        self.teacher: Teacher | None = Teacher(model) if self.distils else None

    @property
    def distils(self) -> bool:
        """Whether the method has a use for a teacher with the options that it is given."""
        return True

    def begin_task(self, task: Task) -> None:
        if self.teacher is not None:
            self.teacher.remember()


def heads_of_earlier_tasks(model: ContinualModel, n_tasks: int) -> tuple[Tensor, Tensor]:
    """The outputs of every task of the stream, boolean (T, n_classes), and which of the tasks are earlier ones, boolean (T,).

    All tasks are there, so that a step costs the same in each; the rows of those that are no earlier ones are the first task's.
    """
    tasks = torch.arange(n_tasks, device=model.answer.class_task.device)
    is_earlier = tasks < model.answer.current_task
    return model.answer.class_task == torch.where(is_earlier, tasks, 0)[:, None], is_earlier
