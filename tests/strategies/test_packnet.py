"""PackNet: who owns which weight, and that earlier tasks keep their networks."""

import pytest
import torch

from clbench.errors import ConfigError
from clbench.testing.stepping import finish_stage

PACKNET = ["strategy=packnet", "scenario=split_digits_task", "strategy.prune=0.4", "strategy.retrain_epochs=1",
           "trainer.momentum=0.9", "trainer.weight_decay=0.01"]  # fmt: skip


def logits_of(trainer, task):
    split = trainer.scenario.test
    x = trainer.inputs.plain(split, split.ids(task)).x
    with torch.no_grad():
        return trainer.learner.eval().predict_task(x, task)


@pytest.mark.parametrize("network", [["model=mlp", "model.hidden=[16]"], ["model=slim_resnet18", "model.width=2"]])
def test_outputs_of_earlier_tasks_stay_bit_identical(network, small_trainer):
    """With momentum, weight decay and BatchNorm, over all stages of later tasks."""
    trainer = small_trainer(*PACKNET, *network, "scenario.tasks=3", "scenario.frozen=null")
    kept = []
    for task in range(3):
        trainer.fit_task()
        kept.append(logits_of(trainer, task))
        split = trainer.scenario.test  # nothing later has come yet: the network as it stands is the task's
        x = trainer.inputs.plain(split, split.ids(task)).x
        with torch.no_grad():
            now = trainer.learner.model(x)[:, 2 * task : 2 * task + 2]
        assert torch.equal(kept[task][:, 2 * task : 2 * task + 2], now)
        for earlier in range(task):
            assert torch.equal(logits_of(trainer, earlier), kept[earlier])


def test_a_tasks_share_is_the_largest_of_what_was_free(small_trainer):
    trainer = small_trainer(*PACKNET, "scenario.tasks=3", "scenario.frozen=null")
    strategy = trainer.learner.strategies[0]
    trainer.begin()
    free = {layer.name: layer.shape.numel() for layer in strategy.layers}
    for task in range(3):
        trainer.begin_task()
        owner_before = strategy.owner.clone()
        finish_stage(trainer)
        weights = {name: p.detach().clone().view(-1) for name, p in trainer.learner.model.trained().items()}
        assert trainer.begin_stage()
        for layer in strategy.layers:
            before, owner = owner_before[layer.part], strategy.owner[layer.part]
            mine, given_back = owner == task + 1, owner == 0
            assert int(mine.sum()) == free[layer.name] - round(0.4 * free[layer.name])
            free[layer.name] -= int(mine.sum())
            assert torch.equal(owner[before > 0], before[before > 0])
            trained = weights[layer.name]
            assert trained[mine].abs().min() >= trained[given_back].abs().max()
            pruned = trainer.learner.model.trained()[layer.name].view(-1)
            assert not pruned[given_back].any()
            assert torch.equal(pruned[~given_back], trained[~given_back])
        finish_stage(trainer)
        assert not trainer.begin_stage()
        trainer.end_task()
    assert sum(free.values()) == int(sum((strategy.owner[layer.part] == 0).sum() for layer in strategy.layers))


def test_what_every_stage_trains(small_trainer):
    """First all, then what was kept; in later tasks free weights and the task's rows of the head, no biases."""
    trainer = small_trainer(*PACKNET, "scenario.tasks=2", "scenario.frozen=null")
    strategy, model = trainer.learner.strategies[0], trainer.learner.model
    trainer.begin()
    for task in range(2):
        trainer.begin_task()
        for stage in range(2):
            if stage:
                assert trainer.begin_stage()
            before = {name: p.detach().clone() for name, p in model.trained().items()}
            owner = strategy.owner.clone()
            finish_stage(trainer)
            for name, p in model.trained().items():
                moved = before[name] != p
                if name.startswith("head."):
                    assert set(moved.nonzero()[:, 0].tolist()) == {2 * task, 2 * task + 1}
                elif p.dim() == 1:
                    assert bool(moved.any()) == (task == 0)
                else:
                    (layer,) = (layer for layer in strategy.layers if layer.name == name)
                    may = owner[layer.part].view_as(p) == (task + 1 if stage else 0)
                    assert not moved[~may].any()
                    assert moved[may].float().mean() > 0.5  # some inputs are 0 in all samples
        trainer.end_task()


def test_to_prune_everything_is_refused(small_setup):
    with pytest.raises(ConfigError, match=r"strategy\.prune=1\.0 leaves no weight"):
        small_setup(*PACKNET, "strategy.prune=1.0")
