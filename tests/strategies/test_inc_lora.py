"""IncLoRA: the sum of all tasks' updates, of which one is trained at a time."""

import pytest
import torch

from clbench.models.lora import adapted_layers
from clbench.testing.small_runs import small_network

SMALL = ["strategy.rank=2", "strategy.targets=[q,v,mlp]", "strategy.alpha=6", *small_network("inc_lora"),
         "trainer.optimizer=adam", "trainer.lr=0.01", "evaluator.every=0"]  # fmt: skip


def weights(model) -> dict[str, torch.Tensor]:
    """What every adapted layer multiplies its input by, update included."""
    found = {}
    for name, layer in adapted_layers(model.backbone).items():
        n_out = len(layer.base.weight) // len(layer.parts)
        found[name] = layer.base.weight.clone()
        for part, adapter in layer.adapters.items():
            place = layer.parts.index(part) * n_out
            found[name][place : place + n_out] += 3 * (adapter.B @ adapter.A).detach()  # α / r
    return found


def test_network_is_the_first_one_with_the_sum_of_all_updates(small_trainer):
    """Each of which is as it was when its task ended, whatever came after."""
    trainer = small_trainer("strategy=inc_lora", *SMALL)
    expected, updates = weights(trainer.learner.model), []
    end_task = trainer.learner.end_task

    def note_and_end(task):
        now = weights(trainer.learner.model)
        frozen = {name: layer.base.weight for name, layer in adapted_layers(trainer.learner.model.backbone).items()}
        updates.append({name: weight - frozen[name] for name, weight in now.items()})
        end_task(task)

    trainer.learner.end_task = note_and_end
    trainer.fit()
    assert len(updates) == trainer.scenario.n_tasks == 5
    for update in updates:
        assert all(change.abs().max() > 0.01 for change in update.values())
        expected = {name: weight + update[name] for name, weight in expected.items()}
    now = weights(trainer.learner.model)
    for name, weight in expected.items():
        torch.testing.assert_close(now[name], weight, rtol=1e-5, atol=1e-6)


def test_a_task_begins_with_the_network_that_the_one_before_has_left(small_trainer, learn_tasks):
    trainer = small_trainer("strategy=inc_lora", *SMALL)
    learn_tasks(trainer, 1)
    x = trainer.inputs.plain(trainer.scenario.test, trainer.scenario.test.ids(0)[:6]).x
    model, before = (
        trainer.learner.model.eval(),
        [a.A.clone() for a in trainer.learner.strategies[0].adapters().values()],
    )
    features = model.features(x)
    trainer.begin_task()
    torch.testing.assert_close(model.eval().features(x), features, rtol=1e-6, atol=1e-6)
    drawn = [adapter.A for adapter in trainer.learner.strategies[0].adapters().values()]
    assert all((a != b).all() for a, b in zip(before, drawn, strict=True))


@pytest.mark.parametrize(
    ("other", "without_penalty", "n_tasks"),
    [
        ("lora", [], 1),
        ("reglora", ["strategy.lam=0", "strategy.top_fraction=0.1"], 3),
        ("o_lora", ["strategy.lam=0"], 3),
        ("n_lora", ["strategy.lam=0"], 3),
    ],
)
def test_the_same_bit_for_bit(other, without_penalty, n_tasks, small_trainer, learn_tasks):
    """As plain LoRA in the first task, and always as the methods that add a penalty, without it."""
    mine = small_trainer("strategy=inc_lora", *SMALL, checkpoint="mine")
    its = small_trainer(f"strategy={other}", *SMALL, *without_penalty, checkpoint="its")
    for trainer in (mine, its):
        learn_tasks(trainer, n_tasks)
    losses = [t.training[t.training.term == "new"].loss.tolist() for t in (mine, its)]
    assert losses[0] == losses[1]
    for name, weight in weights(its.learner.model).items():
        torch.testing.assert_close(weights(mine.learner.model)[name], weight, rtol=1e-6, atol=1e-7)
