"""OSFT's decomposition against numpy's, its steps against projected gradients written out, and what no optimizer may touch."""

import numpy as np
import pytest
import torch
from torch import nn

from clbench.errors import ConfigError
from clbench.models.lora import adapted_layers
from clbench.models.singular_parts import LowPart
from clbench.strategies.osft import low_parts
from clbench.testing.small_runs import small_network
from clbench.testing.stepping import finish_stage

OSFT = ["strategy=osft", "strategy.targets=[q,v,mlp]", *small_network("osft"), "trainer.optimizer=adam",
        "trainer.lr=0.01", "evaluator.every=0"]  # fmt: skip


def parts_of(trainer):
    """(kept, low, module) of every trained weight of the network, in float64."""
    return [
        (layer.base.weight[rows].detach().double(), low.product().detach().double(), low)
        for layer in adapted_layers(trainer.learner.model.backbone).values()
        for _, rows, low in low_parts(layer)
    ]


def check_decomposed(kept, whole):
    """The largest four of eight singular values and their directions, and nothing of the others."""
    U, s, Vt = np.linalg.svd(whole.numpy(), full_matrices=False)
    np.testing.assert_allclose(kept, U[:, :4] * s[:4] @ Vt[:4], rtol=0, atol=1e-6)


def test_every_task_decomposes_what_the_one_before_has_made(small_trainer):
    """Queries and values by themselves, though the network computes them by one layer; and the network stays the same."""
    trainer = small_trainer(*OSFT)
    x = trainer.inputs.plain(trainer.scenario.test, trainer.scenario.test.ids(0)[:6]).x
    for _ in range(2):
        features = trainer.learner.model.eval().features(x)
        before = [kept + low for kept, low, _ in parts_of(trainer)]
        assert len(before) == 2 * 4
        trainer.begin_task()
        torch.testing.assert_close(trainer.learner.model.eval().features(x), features, rtol=1e-5, atol=1e-5)
        for whole, (kept, low, _) in zip(before, parts_of(trainer), strict=True):
            check_decomposed(kept, whole)
            torch.testing.assert_close(kept + low, whole, rtol=0, atol=1e-6)
        finish_stage(trainer)
        trainer.end_task()


def test_adam_moves_nothing_in_the_kept_directions(small_trainer):
    """On neither side: its step is not along its gradient, and with projected gradients alone it leaves the directions."""
    trainer = small_trainer(*OSFT, "trainer.weight_decay=0.1", "trainer.optimizer=adamw")
    trainer.begin_task()
    start = [(kept, kept + low) for kept, low, _ in parts_of(trainer)]
    finish_stage(trainer)
    trainer.end_task()
    for (kept, whole), (kept_now, low_now, low) in zip(start, parts_of(trainer), strict=True):
        assert torch.equal(kept, kept_now)
        change = kept_now + low_now - whole
        assert change.abs().max() > 0.003
        assert (low.U_kept.double().T @ change).abs().max() < 1e-6
        assert (change @ low.V_kept.double().T).abs().max() < 1e-6
        assert (low.U_kept.T @ low.U).abs().max() > 1e-3  # what the optimizer itself has made of it
    rows = trainer.method[trainer.method.quantity == "kept_energy"]
    shares = [kept.square().sum() / (kept + low).square().sum() for kept, low, _ in parts_of(trainer)]
    assert rows.value.tolist() == pytest.approx([share.item() for share in shares], rel=1e-5)


@pytest.mark.parametrize("shape", [(7, 5), (5, 7)])
def test_steps_are_those_with_projected_gradients(shape):
    """The published rule, on factors that nothing stands before, over steps of SGD with momentum."""
    generator = torch.Generator().manual_seed(0)
    W, X, Y = (
        torch.randn(*size, generator=generator, dtype=torch.float64) for size in (shape, (9, shape[1]), (9, shape[0]))
    )
    low = LowPart(shape[1], shape[0], 2).double()
    kept = low.split(W)
    factors = [parameter.detach().clone().requires_grad_() for parameter in low.parameters()]
    ours, theirs = (torch.optim.SGD(p, lr=0.01, momentum=0.9) for p in (low.parameters(), factors))
    for _ in range(6):
        ours.zero_grad()
        (X @ kept.T + low(X) - Y).square().mean().backward()
        ours.step()
        theirs.zero_grad()
        U, S, V = factors
        (X @ (kept + U * S @ V).T - Y).square().mean().backward()
        U.grad -= low.U_kept @ (low.U_kept.T @ U.grad)
        V.grad -= (V.grad @ low.V_kept.T) @ low.V_kept
        theirs.step()
    torch.testing.assert_close(low.product(), U * S @ V)
    assert (low.product() + kept - W).abs().max() > 0.05


def test_only_small_directions_and_the_head_are_trained(small_trainer):
    trainer = small_trainer(*OSFT, "strategy.targets=[q,proj]", "strategy.kept_percent=70")  # ⌊0.7 · 8⌋ = 5
    trained = trainer.learner.trainable()
    assert {name.rpartition(".")[2] for name in trained if not name.startswith("head")} == {"U", "S", "V"}
    assert sum(p.numel() for n, p in trained.items() if not n.startswith("head")) == 2 * 2 * 3 * (8 + 1 + 8)
    assert all(not isinstance(p, nn.Parameter) or p.requires_grad for p in trained.values())


def test_refused_where_nothing_would_be_trained(small_setup):
    with pytest.raises(
        ConfigError, match=r"strategy\.kept_percent=100 leaves no direction to train of the 8×8 weight of .*qkv"
    ):
        small_setup(*OSFT, "strategy.kept_percent=100")
