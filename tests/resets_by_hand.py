"""Networks in double precision, and what it means to reset a unit, written out weight by weight."""

from types import SimpleNamespace

import numpy as np
import torch

from clbench.learning.base import Batch, Strategy
from clbench.models.cnn import CNN, CNNConfig
from clbench.models.continual import ContinualModel
from clbench.models.mlp import MLP, MLPConfig
from clbench.models.resnet18 import ResNet18, ResNet18Config
from clbench.scenarios.scenario import Samples

SHAPE = (1, 8, 8)
CONVOLUTIONS = {"channels": [5, 6], "kernel_sizes": [3, 2], "hidden": [7]}

BACKBONES = {
    "mlp": lambda: MLP(MLPConfig("mlp", "mlp", hidden=[12, 9]), SHAPE),
    "mlp_norm": lambda: MLP(MLPConfig("mlp", "mlp", hidden=[12, 9], norm="layer"), SHAPE),
    "cnn": lambda: CNN(CNNConfig("cnn", "cnn", **CONVOLUTIONS), SHAPE),
    "cnn_norm": lambda: CNN(CNNConfig("cnn", "cnn", norm="layer", **CONVOLUTIONS), SHAPE),
    "resnet": lambda: ResNet18(ResNet18Config("resnet18", "resnet18", width=4, pool=None), SHAPE),
}


def network(name: str, seed: int = 0, frozen: int = 0) -> ContinualModel:
    """A network with a head of three classes; no weight or statistic has a value that a mistake could hide behind."""
    torch.manual_seed(seed)
    model = ContinualModel(BACKBONES[name](), [[0, 1, 2]], "domain", frozen=frozen).double()
    disturb(model)
    return model


def disturb(model: ContinualModel) -> None:
    """Move all parameters and statistics, as training does."""
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.add_(0.1 * torch.rand_like(tensor))


def batch_of(n: int = 6, seed: int = 0, n_new: int | None = None) -> Batch:
    """A batch of random images."""
    x = torch.randn(n, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    labels = torch.zeros(n, dtype=torch.int64)
    return Batch(Samples(x, labels, labels), torch.arange(n), n if n_new is None else n_new)


def begun(strategy: Strategy, task: int = 0, seed: int = 3) -> Strategy:
    """The strategy, in double precision, at the start of a task."""
    strategy.double()
    strategy.tasks_learned = task
    strategy.begin_task(SimpleNamespace(seed=seed, index=task))
    return strategy


def state_of(model: ContinualModel) -> dict[str, np.ndarray]:
    """A copy of parameters and buffers by name."""
    return {name: tensor.detach().numpy().copy() for name, tensor in model.state_dict().items()}


def activations_of(model: ContinualModel, batch: Batch) -> dict[str, np.ndarray]:
    """(B, U) or (B, U, H, W) by layer; the model's buffers stay as they are."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        found = {name: h.numpy() for name, h in model.activations(batch.samples.x)[1].items()}
    model.load_state_dict(before)
    return found


def layers_of(model: ContinualModel) -> list:
    """The layers whose units can be reset."""
    return [layer for layer in model.hidden_layers() if layer.incoming is not None]


def outgoing_columns(state: dict[str, np.ndarray], layer, unit: int, n_units: int) -> np.ndarray:
    """A view of one unit's outgoing weights: (n_out, n)."""
    weight = state[f"{layer.outgoing}.weight"]
    n = int(np.prod(weight.shape[1:])) // n_units  # a kernel's pixels, or those behind a flattening
    return weight.reshape(len(weight), -1)[:, unit * n : (unit + 1) * n]


def reset_by_hand(
    state: dict[str, np.ndarray], renewed: dict[str, np.ndarray], layer, unit: int, row, bias: float
) -> None:
    """Reset one unit in ``state``; mark in ``renewed`` (bool, by parameter) what was drawn anew."""
    n_units = len(state[f"{layer.incoming}.weight"])
    values = {f"{layer.incoming}.weight": row, f"{layer.incoming}.bias": bias}
    if layer.norm is not None:
        values |= {f"{layer.norm}.weight": 1, f"{layer.norm}.bias": 0}
        for statistic, value in (("running_mean", 0), ("running_var", 1)):
            if f"{layer.norm}.{statistic}" in state:
                state[f"{layer.norm}.{statistic}"][unit] = value
    for name, value in values.items():
        if name in state:
            state[name][unit] = value
            renewed[name][unit] = True
    outgoing_columns(state, layer, unit, n_units)[:] = 0
    outgoing_columns(renewed, layer, unit, n_units)[:] = True


def nothing_renewed(model: ContinualModel) -> dict[str, np.ndarray]:
    """False for every weight, by parameter."""
    return {name: np.zeros(p.shape, dtype=bool) for name, p in model.named_parameters()}


def assert_state(model: ContinualModel, expected: dict[str, np.ndarray]) -> None:
    for name, value in state_of(model).items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-10, atol=1e-13, err_msg=name)


def flat(renewed: dict[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([part.reshape(-1) for part in renewed.values()])
