"""RegLoRA's key entries, penalty and merge against their equations."""

import pytest
import torch
from torch import nn

from clbench.errors import ConfigError
from clbench.models.lora import adapted_layers
from clbench.strategies.reglora import key_entries
from clbench.testing.small_runs import small_network

LORA = [
    "strategy.rank=2",
    "strategy.targets=[q,v,mlp]",
    *small_network("reglora"),
    "trainer.optimizer=adam",
    "trainer.lr=0.01",
]
REGLORA = ["strategy=reglora", *LORA, "strategy.top_fraction=0.1"]


def draw(strategy, seed):
    """Put weights into the adapters, as training might; the layers differ in scale."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for number, adapter in enumerate(strategy.adapters().values()):
            adapter.A.copy_(torch.randn(adapter.A.shape, generator=generator))
            adapter.B.copy_((1 + number) * torch.randn(adapter.B.shape, generator=generator))


def products(strategy):
    """B A of every adapter as lists of rows."""
    return [(adapter.B @ adapter.A).tolist() for adapter in strategy.adapters().values()]


def positions_of_largest(product, fraction):
    """(row, column) of the ⌊fraction · entries⌋ largest absolute entries, from a sort of all of them."""
    entries = [(abs(entry), i, j) for i, row in enumerate(product) for j, entry in enumerate(row)]
    return [(i, j) for _, i, j in sorted(entries, reverse=True)[: int(fraction * len(entries))]]


@pytest.mark.parametrize("fraction", [0.02, 0.1, 0.5, 1.0])
def test_key_entries_are_those_of_a_sort(fraction):
    update = torch.randn(9, 13, generator=torch.Generator().manual_seed(0))
    expected = torch.zeros(9, 13, dtype=torch.bool)
    for i, j in positions_of_largest(update.tolist(), fraction):
        expected[i, j] = True
    assert expected.sum() == int(fraction * 9 * 13)
    assert torch.equal(key_entries(update, fraction), expected)


@pytest.mark.parametrize("accumulate", ["concat", "union"])
def test_penalty_from_the_list_of_positions(accumulate, small_setup, task_of, batch_of):
    """The authors' form: a list of positions per layer that grows by a task's, and a mean over the list and over layers."""
    fraction = 0.4
    setup = small_setup(
        *REGLORA, f"strategy.top_fraction={fraction}", f"strategy.accumulate={accumulate}", "strategy.lam=7.0"
    )
    learner = setup.learner
    strategy, batch = learner.strategies[0], batch_of(setup, setup.scenario.train.ids(0)[:4])
    lists = [[] for _ in strategy.adapters()]
    assert len(lists) == 2 * 4
    for index in range(3):
        learner.begin_task(task_of(setup, index))
        draw(strategy, index)
        if index:
            means = []
            for positions, product in zip(lists, products(strategy), strict=True):
                counted = positions if accumulate == "concat" else set(positions)
                means.append(sum(abs(product[i][j]) for i, j in counted) / len(counted))
            penalty = learner.loss(batch)["reglora"]
            assert penalty.item() == pytest.approx(7 * sum(means) / len(lists), rel=1e-5)
        else:
            assert "reglora" not in learner.loss(batch)
        for positions, product in zip(lists, products(strategy), strict=True):
            positions.extend(positions_of_largest(product, fraction))
        learner.end_task(task_of(setup, index))
    shared = [len(positions) - len(set(positions)) for positions in lists]
    assert min(shared) > 0  # so that the two ways differ
    measured = {measurement.quantity: measurement.value for measurement in strategy.measurements()}
    n_entries = 2 * (2 * 8 * 8 + 2 * 8 * 32)
    assert measured["key_entries"] == pytest.approx(sum(len(set(positions)) for positions in lists) / n_entries)


def test_first_task_is_plain_lora_bit_for_bit(small_trainer, learn_tasks):
    trainers = {name: small_trainer(f"strategy={name}", *LORA, checkpoint=name) for name in ("lora", "reglora")}
    for trainer in trainers.values():
        learn_tasks(trainer, 1)
    plain, merged = (trainers[name].learner.model for name in ("lora", "reglora"))
    assert torch.equal(plain.head.weight, merged.head.weight)
    assert trainers["lora"].training.equals(trainers["reglora"].training)
    ours, theirs = adapted_layers(plain.backbone), adapted_layers(merged.backbone)
    for name, layer in ours.items():
        for part, adapter in layer.adapters.items():
            assert torch.equal(adapter.A, theirs[name].adapters[part].A)
        layer.merge()
        assert torch.equal(layer.base.weight, theirs[name].base.weight)


def test_every_later_task_starts_a_fresh_adapter(small_setup, task_of):
    setup = small_setup(*REGLORA)
    strategy = setup.learner.strategies[0]
    drawn = []
    for index in range(3):
        setup.learner.begin_task(task_of(setup, index))
        assert all((adapter.B == 0).all() for adapter in strategy.adapters().values())
        drawn.append(torch.cat([adapter.A.detach().flatten() for adapter in strategy.adapters().values()]))
        draw(strategy, index)
        setup.learner.end_task(task_of(setup, index))
    assert all((drawn[i] != drawn[j]).all() for i, j in ((0, 1), (0, 2), (1, 2)))
    again = small_setup(*REGLORA)
    again.learner.strategies[0].begin_task(task_of(again, 2))
    restarted = torch.cat([adapter.A.detach().flatten() for adapter in again.learner.strategies[0].adapters().values()])
    assert torch.equal(restarted, drawn[2])  # from the stream of the task, whatever came before


def test_logits_before_and_after_the_merge_agree(small_setup, task_of):
    setup = small_setup(*REGLORA)
    learner, task = setup.learner, task_of(setup, 0)
    learner.begin_task(task)
    x = setup.inputs.plain(setup.scenario.test, setup.scenario.test.ids(0)[:6]).x
    untouched = learner.eval().predict(x, None)
    draw(learner.strategies[0], 0)
    nn.init.normal_(learner.model.head.weight)
    before = learner.predict(x, None)
    learner.end_task(task)
    assert (before - untouched)[:, :2].abs().max() > 0.1
    torch.testing.assert_close(learner.predict(x, None), before, rtol=1e-5, atol=1e-5)


def test_penalty_pulls_from_a_tasks_second_step_on(small_trainer, learn_tasks, record_terms):
    """B = 0 when a task begins, and |0| has no slope."""
    trainer = small_trainer(*REGLORA)
    rows = record_terms(trainer)
    learn_tasks(trainer, 3)
    norms = {(task, step): terms["reglora"].norm().item() for task, step, terms in rows if "reglora" in terms}
    assert set(norms) == {(task, step) for task in (1, 2) for step in range(4)}
    assert norms[1, 0] == norms[2, 0] == 0
    assert min(norm for (_, step), norm in norms.items() if step) > 0


def test_large_weight_holds_key_entries_while_others_move(small_trainer, learn_tasks):
    change = {}
    for lam in (0.0, 300.0):
        trainer = small_trainer(*REGLORA, "strategy.rank=4", f"strategy.lam={lam}", "trainer.max_steps_per_task=60",
                                "evaluator.every=0", checkpoint=str(lam))  # fmt: skip
        learn_tasks(trainer, 1)
        strategy = trainer.learner.strategies[0]
        keys = [(buffer > 0).flatten() for name, buffer in strategy.named_buffers() if name.startswith("key")]
        before = [layer.base.weight.clone() for layer in adapted_layers(trainer.learner.model.backbone).values()]
        learn_tasks(trainer, 1)
        after = [layer.base.weight for layer in adapted_layers(trainer.learner.model.backbone).values()]
        moved = [(b - a).abs() for a, b in zip(before, after, strict=True)]
        # Of the fused layers the rows of queries and of values have adapters, in the order of the strategy's buffers.
        pieces = [p.flatten() for m in moved for p in ((m[:8], m[16:]) if m.shape == (24, 8) else (m,))]
        change[lam] = [
            torch.cat([p[k == on] for p, k in zip(pieces, keys, strict=True)]).mean() for on in (True, False)
        ]
    held, others = change[300.0]
    assert held < change[0.0][0] / 100
    assert others > change[0.0][1] / 2


def test_refused_where_no_entry_would_be_key(small_setup):
    with pytest.raises(
        ConfigError, match=r"strategy\.top_fraction=0\.01 leaves no key entry among the 8×8 of .*adapters\.q"
    ):
        small_setup(*REGLORA, "strategy.top_fraction=0.01")
