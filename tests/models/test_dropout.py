"""``model.dropout``: which units are left out is the run's own, whatever is evaluated, resumed or swept."""

import signal

import pytest
import torch
from torch import nn

from clbench.compose import compose
from clbench.errors import Interrupted
from clbench.sweeps.grouping import grouped, why_alone
from clbench.testing.properties import require_same_run
from clbench.training import trainer as trainer_module

DROPOUT = ["model.hidden=[32,16]", "model.dropout=0.5", "trainer.lr=0.05"]


def weights(trainer) -> torch.Tensor:
    return torch.cat([p.detach().reshape(-1) for p in trainer.parameters]).clone()


def test_it_follows_every_non_linearity_and_acts_in_training_alone(small_setup):
    model = small_setup("model.hidden=[32,16]", "model.dropout=0.25", "model.norm=layer").learner.model
    kinds = [type(module) for module in model.backbone.layers]
    assert kinds == [nn.Flatten, *[nn.Linear, nn.LayerNorm, nn.ReLU, nn.Dropout] * 2]
    assert [m.p for m in model.modules() if isinstance(m, nn.Dropout)] == [0.25] * 2
    x = torch.rand(64, 1, 8, 8)
    model.eval()
    assert torch.equal(model(x), model(x))
    model.train()
    torch.manual_seed(0)
    features = torch.cat([model.features(x) for _ in range(50)])
    share = (features == 0).double().mean()
    model.eval()
    silent = (model.features(x) == 0).double().mean()
    assert share > silent + 0.1


def test_stages_end_with_it(small_setup):
    """A stage is a layer with all that follows it; in evaluation mode one after another they are the network."""
    model = small_setup("model.hidden=[32,16]", "model.dropout=0.25", "model.norm=layer").learner.model.eval()
    stages = model.stages()
    assert list(stages) == ["hidden1", "hidden2"]
    assert all(isinstance(list(stage)[-1], nn.Dropout) for stage in stages.values())
    x = torch.rand(4, 1, 8, 8)
    h = x
    for stage in stages.values():
        h = stage(h)
    assert torch.equal(h, model.features(x))


def test_activations_are_those_of_all_units(small_setup):
    """Measures and resets of units look at what a layer has computed, not at what dropout has left of it."""
    model = small_setup("model.hidden=[32,16]", "model.dropout=0.5").learner.model.train()
    x = torch.rand(4, 1, 8, 8)
    layer = model.backbone.layers[1]
    expected = (x.flatten(1) @ layer.weight.T + layer.bias).relu()
    torch.testing.assert_close(model.activations(x)[1]["hidden1"], expected)


def test_evaluations_do_not_change_what_is_left_out(small_trainer):
    runs = []
    for options in (["evaluator.every=1"], ["evaluator.every=0"], ["evaluator=adaptive"]):
        trainer = small_trainer("strategy=ewc", *DROPOUT, *options, checkpoint=options[0])
        trainer.fit()
        runs.append(weights(trainer))
    assert torch.equal(runs[0], runs[1])
    assert torch.equal(runs[0], runs[2])


def test_every_seed_leaves_out_others(small_trainer):
    """From equal weights and over equal batches, losses of the first step differ with the seed alone."""
    first = []
    for seed in (0, 1, 0):
        trainer = small_trainer("strategy=finetune", *DROPOUT, "seed=0", checkpoint=f"{len(first)}")
        trainer.config.seed = seed  # what torch's generators start from
        trainer.begin()
        trainer.begin_task()
        trainer.advance()
        first.append(trainer.training.loss.iloc[0])
    assert first[0] == first[2] != first[1]


@pytest.mark.parametrize("strategy", ["finetune", "er", "gem", "si"])
def test_a_run_that_is_stopped_within_a_task_goes_on_the_same(strategy, small_trainer, monkeypatch):
    memory = ["strategy.memory_size=20"] if strategy in ("er", "gem") else []
    options = [f"strategy={strategy}", *memory, *DROPOUT, "scenario.tasks=2", "scenario.frozen=null"]
    whole = small_trainer(*options, checkpoint="whole")
    whole.fit()
    stopped = small_trainer(*options, checkpoint="stopped")
    monkeypatch.setattr(trainer_module, "noted", lambda: signal.SIGTERM if stopped.iteration == 6 else None)
    with pytest.raises(Interrupted):
        stopped.fit()
    monkeypatch.undo()
    torch.rand(3)  # whatever else has drawn
    resumed = small_trainer(*options, checkpoint="stopped")
    resumed.fit()
    require_same_run(resumed, whole, "these runs")
    assert torch.equal(weights(resumed), weights(whole))


def test_its_runs_are_not_stacked():
    """A stack draws from one generator for all, so that no member would be the run alone."""
    configs = [compose([*DROPOUT, f"seed={seed}"]) for seed in (0, 1)]
    assert why_alone(configs[0]) == "dropout draws from the one generator of a run"
    assert grouped(configs, 8) == [[0], [1]]
    without = [compose(["model.hidden=[32,16]", f"seed={seed}"]) for seed in (0, 1)]
    assert grouped(without, 8) == [[0, 1]]


def test_tanh_is_computed_in_hidden_layers(small_setup):
    model = small_setup("model.hidden=[16]", "model.activation=tanh").learner.model
    x = torch.rand(4, 1, 8, 8)
    layer = model.backbone.layers[1]
    torch.testing.assert_close(model.features(x), torch.tanh(x.flatten(1) @ layer.weight.T + layer.bias))
