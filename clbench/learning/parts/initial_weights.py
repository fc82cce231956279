"""The weights with which a run begins, for methods that begin with them again."""

import torch
from torch import Tensor

from clbench.config import StrategyConfig
from clbench.learning.base import Strategy, buffer_name
from clbench.learning.parts.task_statistics import norm_statistics
from clbench.models.continual import ContinualModel
from clbench.scenarios.scenario import Scenario


class FromInitialWeights(Strategy):
    """Base of methods that start tasks from scratch: from the initial trained weights and statistics of BatchNorm.

    The initial values of what is drawn only when its task begins, such as prompts, are that draw.
    """

    initial: Tensor

    def __init__(self, config: StrategyConfig, model: ContinualModel, scenario: Scenario) -> None:
        super().__init__(config, model, scenario)
        if self.goes_back:
            self.register_buffer("initial", self.flat_parameters().detach().clone())
            for name, tensor in norm_statistics(model).items():
                self.register_buffer(buffer_name("initial", name), tensor.clone())

    @property
    def goes_back(self) -> bool:
        """Whether the method has a use for the initial weights with the options that it is given."""
        return True

    @torch.no_grad()
    def go_back(self) -> Tensor:
        """Be as at the start; returns which trained weights (P,) are new by that: all."""
        trained = self.model.trained().values()
        for parameter, value in zip(trained, self.initial.split([p.numel() for p in trained]), strict=True):
            parameter.copy_(value.view(parameter.shape))
        for name, tensor in norm_statistics(self.model).items():
            tensor.copy_(self.get_buffer(buffer_name("initial", name)))
        return torch.ones_like(self.initial, dtype=torch.bool)

    @torch.no_grad()
    def weights_renewed(self, renewed: Tensor) -> None:
        """Take in what has been drawn for the first time."""
        if self.goes_back:
            self.initial.copy_(self.first_drawn(self.initial, renewed))
