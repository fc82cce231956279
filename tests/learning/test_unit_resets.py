"""Resets in a stack of learners, of networks with BatchNorm and with a flattening, are those of each learner alone."""

import pytest
import torch
from resets_by_hand import batch_of, begun, network

from clbench.learning.base import Batch
from clbench.learning.learner import Learner
from clbench.learning.stack import Stack
from clbench.scenarios.scenario import Samples
from clbench.strategies.continual_backprop import ContinualBackprop, ContinualBackpropConfig
from clbench.strategies.redo import ReDo, ReDoConfig

STRATEGIES = {
    "redo": lambda model: ReDo(ReDoConfig("redo", [], {}, 2, "steps", 0.9, "xavier"), model, None),
    "continual_backprop": lambda model: ContinualBackprop(
        ContinualBackpropConfig("continual_backprop", [], {}, 0.1, 1, "adaptable_contribution"), model, None
    ),
}


def learners_of(name: str, backbone: str) -> list[Learner]:
    models = [network(backbone, seed) for seed in (0, 1)]
    return [Learner(model, [begun(STRATEGIES[name](model), seed=seed)]) for seed, model in enumerate(models)]


@pytest.mark.parametrize("backbone", ["resnet", "cnn_norm"])
@pytest.mark.parametrize("name", STRATEGIES)
def test_stacked_as_alone(name, backbone):
    alone, together = learners_of(name, backbone), learners_of(name, backbone)
    stack = Stack.of(together)
    for step in range(1, 5):
        batches = [batch_of(seed=10 * step + row) for row in (0, 1)]
        samples = Samples(*(torch.stack(parts) for parts in zip(*(batch.samples for batch in batches), strict=True)))
        with torch.no_grad():
            ids = torch.stack([batch.ids for batch in batches])
            renewed = stack.after_step(step, Batch(samples, ids, 6))
            expected = [learner.after_step(step, batch) for learner, batch in zip(alone, batches, strict=True)]
        assert (renewed is None) == (expected[0] is None)
        if renewed is not None:
            assert torch.equal(renewed, torch.stack(expected))
    for mine, its in zip(together, alone, strict=True):
        assert (its.strategies[0].n_reset > 0).any()
        for (key, value), other in zip(mine.state_dict().items(), its.state_dict().values(), strict=True):
            torch.testing.assert_close(value, other, rtol=1e-9, atol=1e-12, msg=lambda m, key=key: f"{key}: {m}")
