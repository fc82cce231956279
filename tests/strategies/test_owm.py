"""OWM: projectors and projected gradients against loops over single numbers and against closed forms."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from clbench.errors import ConfigError
from clbench.learning.base import Batch
from clbench.learning.parts.least_squares import update_ridge
from clbench.models.continual import ContinualModel
from clbench.scenarios.scenario import Samples
from clbench.strategies.owm import OWM, OWMConfig, mean_rows
from clbench.testing.small_runs import in_double_precision
from clbench.training.fleet import Fleet

OPTIONS = {"alpha": 0.75, "alpha_decay": 2.0**-8, "head_alpha": 0.5, "head_alpha_decay": 1.0, "layers": "all",
           "projector": "running"}  # fmt: skip
"""With numbers that single precision, in which options are held, has exactly."""


class Convolutional(nn.Module):
    """A convolution that strides and pads, a linear layer without a bias, and a head."""

    n_features = 6

    def __init__(self, **convolution) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, kernel_size=(3, 2), stride=2, padding=1, **convolution)
        self.linear = nn.Linear(4 * 3 * 4, 6, bias=False)

    def forward(self, x):
        return self.linear(self.conv(x).relu().flatten(1)).relu()


class FullyConnected(nn.Module):
    n_features = 16

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(60, 16)

    def forward(self, x):
        return self.linear(x.flatten(1)).relu()


def build(backbone: nn.Module, **options) -> OWM:
    """The method with a network of four classes, in double precision."""
    torch.manual_seed(0)
    for parameter in backbone.parameters():
        parameter.data.normal_()
    model = ContinualModel(backbone, [[0, 1], [2, 3]], "class").double()
    return OWM(OWMConfig(name="owm", **{**OPTIONS, **options}), model, None).double()


def batch(n: int, seed: int = 0) -> Batch:
    """n images of 2×5×6 pixels."""
    x = torch.randn(n, 2, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    zeros = torch.zeros(n, dtype=torch.int64)
    return Batch(Samples(x, zeros, zeros), torch.arange(n), n)


def random_gradient(owm: OWM, seed: int = 0) -> torch.Tensor:
    shape = owm.flat_parameters().shape
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def take_in(owm: OWM, b: Batch, step: int = 1) -> torch.Tensor:
    """One step without an optimizer; returns the edited gradient."""
    edited = owm.edit_gradients(random_gradient(owm, step), b)
    owm.after_step(step, b)
    return edited


def patches(x: np.ndarray) -> list[np.ndarray]:
    """What each position of the kernel of Convolutional sees of one padded map (2, 5, 6)."""
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1)))
    return [padded[:, i : i + 3, j : j + 2].ravel() for i in range(0, 5, 2) for j in range(0, 7, 2)]


@pytest.mark.parametrize("projector", ["running", "previous"])
def test_three_steps_of_two_tasks_against_a_loop(projector):
    """Every r by itself and one rank-one update after the other, with α as it decays; gradients row by row."""
    owm = build(Convolutional(), projector=projector)
    network = owm.model.backbone
    P = {"conv": np.eye(13), "linear": np.eye(48), "head": np.eye(7)}
    owm.n_steps.fill_(3)
    for task in range(2):
        owm.begin_task(None)
        began = {name: p.copy() for name, p in P.items()}
        for step in range(3):
            b = batch(5, seed=10 * task + step)
            gradient = random_gradient(owm, step + 1)
            edited = take_in(owm, b, step + 1)
            with torch.no_grad():
                h = network.conv(b.samples.x).relu()
                features = network(b.samples.x)
            inputs = {
                "conv": [np.append(r, 1) for r in patches(b.samples.x.mean(0).numpy())],
                "linear": [h.flatten(1).mean(0).numpy()],
                "head": [np.append(features.mean(0).numpy(), 1)],
            }
            for name, rows in inputs.items():
                alpha = 0.5 if name == "head" else 0.75 * 2.0 ** (-8 * step / 3)
                for r in rows:
                    k = P[name] @ r
                    P[name] = P[name] - np.outer(k, k) / (alpha + r @ k)
            by = P if projector == "running" else began
            conv, conv_bias, linear, head, head_bias = gradient.split([48, 4, 288, 24, 4])
            expected = []
            for weight, bias, name in ((conv, conv_bias, "conv"), (linear, None, "linear"), (head, head_bias, "head")):
                n_out = {"conv": 4, "linear": 6, "head": 4}[name]
                rows = weight.view(n_out, -1).numpy()
                if bias is not None:
                    rows = np.concatenate([rows, bias.numpy()[:, None]], axis=1)
                rows = np.stack([by[name] @ row for row in rows])
                expected += [rows.ravel()] if bias is None else [rows[:, :-1].ravel(), rows[:, -1]]
            np.testing.assert_allclose(edited, np.concatenate(expected), rtol=1e-7, atol=1e-9)
    for name, buffer in (("conv", "backbone_conv"), ("linear", "backbone_linear"), ("head", "head")):
        np.testing.assert_allclose(owm.get_buffer(f"P_{buffer}"), P[name], rtol=1e-7, atol=1e-9)
    shares = {m.part: m.value for m in owm.measurements()}
    assert shares["backbone.linear"] == pytest.approx(np.trace(P["linear"]) / 48)


def test_many_patches_become_few_rows_with_the_same_moments():
    module = nn.Conv2d(2, 4, kernel_size=(3, 2), stride=1, padding=1).double()
    x = batch(3).samples.x
    rows = mean_rows(module, x, True)
    assert rows.shape == (13, 13)  # of 5 × 7 patches
    padded = np.pad(x.mean(0).numpy(), ((0, 0), (1, 1), (1, 1)))
    seen = [np.append(padded[:, i : i + 3, j : j + 2].ravel(), 1) for i in range(5) for j in range(7)]
    np.testing.assert_allclose(rows.T @ rows, np.stack(seen).T @ np.stack(seen), rtol=1e-10)


def test_inputs_of_several_tokens_count_one_by_one():
    x = torch.arange(24, dtype=torch.float64).view(2, 3, 4)
    assert torch.equal(mean_rows(nn.Linear(4, 1), x, False), x.mean(0))


def test_a_constant_alpha_gives_the_closed_form(small_trainer):
    """P = α (RᵀR + αI)⁻¹ over all mini-batches of two tasks of a run, whose inputs are looked at from outside."""
    trainer = in_double_precision(small_trainer(
        "strategy=owm", "strategy.alpha=0.25", "strategy.alpha_decay=1", "strategy.head_alpha=2", "scenario.tasks=2",
        "trainer.lr=0.05"))  # fmt: skip
    owm, model = trainer.learner.strategies[0], trainer.learner.model
    rows = {"P_backbone_layers_1": [], "P_head": []}
    step = trainer._follow_gradient

    def spy(task, b):
        with torch.no_grad():
            layer = model.backbone.layers[1]
            x = b.samples.x.flatten(1)
            h = (x @ layer.weight.T + layer.bias).clamp(min=0)
        for name, inputs in zip(rows, (x, h), strict=True):
            rows[name].append(torch.cat([inputs.mean(0), torch.ones(1)]))
        return step(task, b)

    trainer._follow_gradient = spy
    trainer.fit()
    for (name, seen), alpha in zip(rows.items(), (0.25, 2.0), strict=True):
        R = torch.stack(seen)
        assert len(R) == 8
        closed = alpha * torch.linalg.inv(R.T @ R + alpha * torch.eye(R.shape[1]))
        torch.testing.assert_close(owm.get_buffer(name), closed, rtol=1e-8, atol=1e-10)


def test_an_exact_projector_leaves_old_outputs_as_they_are():
    """α → 0, and as many mini-batches as old images: weights that move by projected gradients change no old output."""
    owm = build(FullyConnected(), alpha=1e-10, alpha_decay=1.0, head_alpha=1e-10, projector="previous")
    old, new = batch(10), batch(6, seed=5)
    for i in range(10):
        take_in(owm, Batch(Samples(*(t[i : i + 1] for t in old.samples)), old.ids[i : i + 1], 1))
    owm.begin_task(None)
    with torch.no_grad():
        before = [owm.model(b.samples.x) for b in (old, new)]
        for step in range(3):
            change = take_in(owm, new, step + 1)
            for parameter, part in zip(owm.model.parameters(), change.split([960, 16, 64, 4]), strict=True):
                parameter -= 0.1 * part.view_as(parameter)
        after = [owm.model(b.samples.x) for b in (old, new)]
    torch.testing.assert_close(after[0], before[0], rtol=0, atol=1e-5)
    assert (after[1] - before[1]).abs().mean() > 0.1


def test_of_the_last_layer_it_is_alpha_times_the_matrix_of_least_squares():
    owm = build(FullyConnected(), layers="last", head_alpha=0.25)
    gradient = random_gradient(owm, 1)
    R, W = torch.eye(17, dtype=torch.float64) / 0.25, torch.zeros(17, 1, dtype=torch.float64)
    for i in range(20):
        b = batch(1, seed=i)
        edited = take_in(owm, b)
        h = torch.cat([owm.model.features(b.samples.x).detach(), torch.ones(1, 1)], dim=1).double()
        R, W = update_ridge(R, W, h, torch.zeros(1, 1, dtype=torch.float64))
    torch.testing.assert_close(owm.P_head, 0.25 * R)
    assert torch.equal(edited[:976], gradient[:976])  # of the hidden layer: untouched
    assert not torch.equal(edited[976:], gradient[976:])
    assert [m.part for m in owm.measurements()] == ["head"]
    assert "2 trained tensors of the network are not projected: backbone.linear.weight" in owm.notes()[0]


def test_frozen_layers_have_no_projector():
    backbone = Convolutional()
    backbone.conv.requires_grad_(False)
    owm = build(backbone)
    assert [layer.name for layer in owm.projected] == ["backbone.linear", "head"]
    assert owm.notes() == []


# ---- in a run ---------------------------------------------------------------------------------------------------------


def test_looking_at_inputs_leaves_no_trace_in_batch_norm(small_trainer_with_batch_norm, monkeypatch):
    trainer = small_trainer_with_batch_norm("strategy=owm", "scenario.increment=5")
    owm, model = trainer.learner.strategies[0], trainer.learner.model
    edit = owm.edit_gradients
    compared = []

    def spy(gradient, b):
        before = {name: buffer.clone() for name, buffer in model.named_buffers()}
        edited = edit(gradient, b)
        assert model.training
        compared.append(all(torch.equal(before[name], buffer) for name, buffer in model.named_buffers()))
        return edited

    monkeypatch.setattr(owm, "edit_gradients", spy)
    trainer.fit()
    assert compared == [True] * 8
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_fleet_of_convolutional_networks(small_trainer_with_batch_norm):
    """Members of other seeds and α have the projectors and the curve that they have alone."""
    members = [["strategy=owm", "scenario.increment=5", "trainer.max_steps_per_task=2", f"seed={seed}", f"strategy.alpha={alpha}"]
               for seed, alpha in ((0, 0.9), (1, 3.0))]  # fmt: skip
    together, alone = (
        [small_trainer_with_batch_norm(*member, checkpoint=f"{tag}{i}") for i, member in enumerate(members)]
        for tag in ("fleet", "alone")
    )
    for trainer in (*together, *alone):
        in_double_precision(trainer)
    Fleet(together).fit()
    for member, trainer in zip(together, alone, strict=True):
        trainer.fit()
        for name, mine in member.learner.state_dict().items():
            torch.testing.assert_close(mine, trainer.learner.state_dict()[name], rtol=1e-6, atol=1e-7)
        pd.testing.assert_frame_equal(member.curve, trainer.curve, rtol=1e-6)


@pytest.mark.parametrize("convolution", [{"groups": 2}, {"padding_mode": "reflect"}])
def test_convolutions_that_see_no_plain_patches_are_refused(convolution):
    with pytest.raises(ConfigError, match=r"owm is not defined for the convolution backbone\.conv"):
        build(Convolutional(**convolution))
    assert build(Convolutional(**convolution), layers="last").projected[0].name == "head"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["strategy.plus=[gem]"], "owm and gem cannot be combined: each of them decides the gradient's projection"),
        (["strategy.alpha=0"], r"strategy\.alpha=0\.0 is out of range: it has to be above 0"),
        (["strategy.alpha_decay=1.5"], r"strategy\.alpha_decay=1\.5 is out of range: it has to be at most 1"),
    ],
)
def test_nonsense_is_refused(overrides, message, small_setup):
    with pytest.raises(ConfigError, match=message):
        small_setup("strategy=owm", *overrides)
