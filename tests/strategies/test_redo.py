"""ReDo against its rule, unit by unit."""

import copy
import re

import numpy as np
import pytest
import torch
from resets_by_hand import (
    SHAPE,
    activations_of,
    assert_state,
    batch_of,
    begun,
    disturb,
    flat,
    layers_of,
    network,
    nothing_renewed,
    reset_by_hand,
    state_of,
)
from scipy.stats import kstest

from clbench.errors import ConfigError
from clbench.models.continual import ContinualModel
from clbench.models.mlp import MLP, MLPConfig
from clbench.strategies.redo import ReDo, ReDoConfig


def redo(model: ContinualModel, threshold=0.0, period=1, period_unit="steps", reinit="xavier") -> ReDo:
    return ReDo(ReDoConfig("redo", [], {}, period, period_unit, threshold, reinit), model, None)


def dormant_by_hand(model: ContinualModel, batch, threshold: float) -> dict[str, list[int]]:
    found = {}
    for layer in layers_of(model):
        h = np.moveaxis(activations_of(model, batch)[layer.name], 1, 0)
        size = [np.abs(unit).sum() / unit.size for unit in h]
        mean = sum(size) / len(size)
        found[layer.name] = [unit for unit, s in enumerate(size) if s / (mean + 1e-9) <= threshold]
    return found


@pytest.mark.parametrize("reinit", ["xavier", "initial"])
@pytest.mark.parametrize("name", ["mlp", "mlp_norm", "cnn", "cnn_norm", "resnet"])
def test_which_units_are_reset_and_to_what(name, reinit):
    model = network(name)
    strategy, initial = redo(model, threshold=1.0, reinit=reinit).double(), state_of(model)
    disturb(model)
    begun(strategy)
    batch = batch_of()
    expected, renewed, dormant = state_of(model), nothing_renewed(model), dormant_by_hand(model, batch, 1.0)
    with torch.no_grad():
        mask = strategy.after_step(1, batch)
    after = state_of(model)
    for layer in layers_of(model):
        weight, bias = f"{layer.incoming}.weight", f"{layer.incoming}.bias"
        for unit in dormant[layer.name]:
            if reinit == "initial":
                row, of_bias = initial[weight][unit], initial[bias][unit] if bias in initial else 0
            else:
                row, of_bias = after[weight][unit], 0
                assert not np.isclose(row, expected[weight][unit]).any()
            reset_by_hand(expected, renewed, layer, unit, row, of_bias)
    assert_state(model, expected)
    np.testing.assert_array_equal(mask.numpy(), flat(renewed))
    counts = [len(units) for units in dormant.values()]
    assert 0 < sum(counts) < sum(len(model.get_submodule(layer.incoming).weight) for layer in layers_of(model))
    reported = {measurement.part: measurement.value for measurement in strategy.measurements()}
    assert reported == {"": sum(counts), **dict(zip(dormant, counts, strict=True))}
    assert strategy.measurements()[0].quantity == "units_reset"
    begun(strategy, task=1)
    assert strategy.measurements()[0].value == 0


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_resetting_dead_units_changes_no_output(name):
    """Outputs for the images that they are dead for."""
    model, batch = network(name), batch_of(40)
    with torch.no_grad():
        for layer in layers_of(model):
            model.get_submodule(layer.incoming).bias[[1, 3]] = -100
    before = model(batch.samples.x)
    strategy = begun(redo(model))
    incoming = model.get_submodule(layers_of(model)[0].incoming)
    old = incoming.weight.detach().clone()
    with torch.no_grad():
        mask = strategy.after_step(1, batch)
    assert mask.any()
    changed = (incoming.weight != old).flatten(1).any(1)
    assert changed[[1, 3]].all()
    torch.testing.assert_close(model(batch.samples.x), before, rtol=0, atol=1e-12)
    assert (activations_of(model, batch)[layers_of(model)[0].name][:, [1, 3]] != 0).any()  # and they live again


def test_a_layer_of_dead_units_is_reset_as_a_whole():
    model = network("mlp")
    with torch.no_grad():
        model.backbone.layers[1].bias.fill_(-100)
    strategy = begun(redo(model))
    with torch.no_grad():
        strategy.after_step(1, batch_of())
    assert strategy.n_reset[0] == 12
    assert all(bool(p.isfinite().all()) for p in model.parameters())


def test_replayed_samples_count():
    """A unit that only a replayed image excites is not dormant."""
    model = network("mlp")
    first = model.backbone.layers[1]
    with torch.no_grad():
        first.weight[4] = 0
        first.weight[4, 0] = 1
        first.bias[4] = 0
    batch = batch_of(4, n_new=3)
    batch.samples.x[:, 0, 0, 0] = torch.tensor([-1.0, -2.0, -1.0, 1.0])
    strategy = begun(redo(model))
    with torch.no_grad():
        strategy.after_step(1, batch)
        assert first.weight[4, 0] == 1
        batch.samples.x[3, 0, 0, 0] = -1
        strategy.after_step(2, batch)
        assert first.weight[4, 0] != 1


def test_looking_at_activations_leaves_no_trace():
    """They are those of a training pass; no statistic moves, no mode changes, no gradient is kept."""
    model, batch = network("resnet").train(), batch_of()
    before = copy.deepcopy(model)
    with torch.no_grad():
        found = begun(redo(model)).activations(batch.samples.x)
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), before.state_dict().values(), strict=True)
    )
    assert model.backbone.bn1.training
    expected = before.activations(batch.samples.x)[1]
    assert int(before.backbone.bn1.num_batches_tracked) == int(model.backbone.bn1.num_batches_tracked) + 1
    for layer, h in zip(layers_of(model), found, strict=True):
        torch.testing.assert_close(h, expected[layer.name])
        assert not h.requires_grad


@pytest.mark.parametrize(
    ("unit", "period", "due"),
    [
        ("steps", 3, {(0, 3), (0, 6), (1, 3), (1, 6), (2, 3), (2, 6), (3, 3), (3, 6), (4, 3), (4, 6)}),
        ("tasks", 1, {(1, 1), (2, 1), (3, 1), (4, 1)}),
        ("tasks", 2, {(2, 1), (4, 1)}),
    ],
)
def test_when_units_are_reset(unit, period, due):
    strategy, batch, acted = redo(network("mlp"), period=period, period_unit=unit), batch_of(), set()
    for task in range(5):
        begun(strategy, task)
        for step in range(1, 8):
            with torch.no_grad():
                if strategy.after_step(step, batch) is not None:
                    acted.add((task, step))
    assert acted == due


def test_weights_are_drawn_from_xaviers_distribution():
    """In a new draw for every seed, task, step and layer."""
    model = ContinualModel(MLP(MLPConfig("mlp", "mlp", hidden=[64, 64]), SHAPE), [[0, 1]], "domain")

    def drawn(step=1, task=0, seed=3) -> list[np.ndarray]:
        strategy = begun(redo(model.double(), threshold=1e9), task, seed)
        with torch.no_grad():
            strategy.after_step(step, batch_of())
        return [
            model.get_submodule(layer.incoming).weight.detach().numpy().reshape(-1).copy() for layer in layers_of(model)
        ]

    first = drawn()
    bound = np.sqrt(6 / 128)
    assert kstest(first[0], "uniform", args=(-bound, 2 * bound)).pvalue > 0.01
    assert all((a == b).all() for a, b in zip(first, drawn(), strict=True))
    others = [first[1], drawn(step=2)[0], drawn(task=1)[0], drawn(seed=4)[0]]
    assert all(abs(np.corrcoef(first[0], other)[0, 1]) < 0.06 for other in others)


def test_frozen_layers_are_left_alone():
    model = network("mlp", frozen=1)
    strategy = begun(redo(model, threshold=1e9))
    assert [layer.name for layer in strategy.layers] == ["hidden2"]
    before = state_of(model)
    with torch.no_grad():
        mask = strategy.after_step(1, batch_of())
    after = state_of(model)
    assert len(mask) == len(strategy.flat_parameters())
    assert (before["backbone.layers.1.weight"] == after["backbone.layers.1.weight"]).all()
    assert not (before["backbone.layers.3.weight"] == after["backbone.layers.3.weight"]).any()


@pytest.mark.parametrize("options", [{"hidden": []}, {"hidden": [5], "activation": "crelu"}])
def test_networks_without_such_units_are_refused(options):
    model = ContinualModel(MLP(MLPConfig("mlp", "mlp", **options), SHAPE), [[0, 1]], "domain")
    sentence = (
        "redo resets hidden units, and this MLP has none that can be reset: choose a network of the kinds cnn, mlp, "
    )
    with pytest.raises(ConfigError, match=sentence):
        redo(model)


IGNORED = "dst and {} cannot be combined: dst makes a network for every task, which {} knows nothing of"
NOTHING_TRAINED = "hypernetwork makes all weights of the network, and leaves none that are trained to {}"


@pytest.mark.parametrize(
    ("main", "added", "sentence"),
    [
        ("dst", "redo", IGNORED),
        ("dst", "shrink_perturb", IGNORED),
        ("hypernetwork", "continual_backprop", NOTHING_TRAINED),
        ("hypernetwork", "shrink_perturb", NOTHING_TRAINED),
    ],
)
def test_beside_methods_that_make_the_weights_they_are_refused(main, added, sentence, small_setup):
    with pytest.raises(ConfigError, match=re.escape(sentence.format(added, added))):
        small_setup(f"strategy={main}", f"strategy.plus=[{added}]", "scenario=split_digits_task")
