"""The optimizers without torch's compiler: the same bits as torch's own."""

import copy

import pytest
import torch
from torch import nn

from clbench.training import eager_optimizers


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("SGD", {"momentum": 0.9, "weight_decay": 0.01}),
        ("Adam", {"weight_decay": 0.01}),
        ("AdamW", {}),
        ("Adagrad", {"weight_decay": 0.01}),
    ],
)
def test_the_same_bits_and_states_as_torchs(name, options, fused):
    networks = [nn.Linear(5, 3)]
    networks.append(copy.deepcopy(networks[0]))
    kinds = (getattr(eager_optimizers, name), getattr(torch.optim, name))
    ours, torchs = (
        kind(n.parameters(), lr=0.1, fused=fused, **options) for kind, n in zip(kinds, networks, strict=True)
    )
    for step in range(4):
        x = torch.randn(7, 5)
        for network, optimizer in zip(networks, (ours, torchs), strict=True):
            optimizer.zero_grad()
            network(x).square().sum().backward()
            optimizer.step()
        if step == 1:  # each goes on from the state of the other
            states = [copy.deepcopy(optimizer.state_dict()) for optimizer in (ours, torchs)]
            ours.load_state_dict(states[1])
            torchs.load_state_dict(states[0])
    assert all(map(torch.equal, networks[0].parameters(), networks[1].parameters()))
    assert all(not parameter.grad_fn for parameter in networks[0].parameters())
