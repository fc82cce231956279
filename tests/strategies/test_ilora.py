"""I-LoRA's slow weights, consistency and replay against their equations."""

import copy

import pytest
import torch
from torch.func import functional_call

from clbench.learning.base import Outputs
from clbench.learning.parts.memory import EMPTY
from clbench.strategies import ilora
from clbench.testing.small_runs import small_network

ILORA = ["strategy=ilora", "strategy.rank=2", "strategy.memory_size=40", *small_network("ilora"), "trainer.optimizer=adam",
         "trainer.lr=0.01"]  # fmt: skip


def copied(weights):
    return {name: weight.detach().clone() for name, weight in weights.items()}


def drawn_like(weights, seed):
    """Weights of the same shapes; those of adapters and head are small, of norm about 1."""
    generator = torch.Generator().manual_seed(seed)
    return {name: 0.4 * torch.randn(weight.shape, generator=generator) for name, weight in weights.items()}


def put(target, values):
    with torch.no_grad():
        for name, value in values.items():
            target[name].copy_(value)


def recorded(trainer):
    """A list that fills with (task, fast weights, slow weights): as a task begins, and after each of its steps."""
    strategy, rows = trainer.learner.strategies[0], []
    begin_task, after_step = strategy.begin_task, strategy.after_step

    def note():
        rows.append((trainer.task, copied(trainer.learner.model.trained()), copied(strategy.slow.weights())))

    def begun(task):
        begin_task(task)
        note()

    def stepped(step, batch):
        after_step(step, batch)
        note()

    strategy.begin_task, strategy.after_step = begun, stepped
    return rows


def of_task(rows, task):
    return [(fast, slow) for t, fast, slow in rows if t == task]


# ---- slow weights -----------------------------------------------------------------------------------------------------


def test_slow_weights_are_the_moving_average_of_the_fast_trajectory(small_trainer, learn_tasks):
    """In closed form, with a = ½, ⅔, 0.7, 0.7 in the four steps of every task, for A, B and head each by itself."""
    trainer = small_trainer(*ILORA, "strategy.rho=0.7")
    rows = recorded(trainer)
    learn_tasks(trainer, 2)
    a = torch.tensor([1 / 2, 2 / 3, 0.7, 0.7])
    weights = [(1 - a[s]) * a[s + 1 :].prod() for s in range(4)]
    for task in (0, 1):
        (_, start), *steps = of_task(rows, task)
        assert len(steps) == 4
        for name, slow in steps[-1][1].items():
            expected = a.prod() * start[name]
            for weight, (fast, _) in zip(weights, steps, strict=True):
                expected = expected + weight * fast[name]
            torch.testing.assert_close(slow, expected, rtol=1e-5, atol=1e-6)
            assert not torch.equal(slow, steps[-1][0][name])


def test_without_weight_on_the_old_value_slow_is_fast(small_trainer, learn_tasks):
    trainer = small_trainer(*ILORA, "strategy.rho=0.0")
    rows = recorded(trainer)
    learn_tasks(trainer, 1)
    assert all(torch.equal(slow[name], fast[name]) for fast, slow in of_task(rows, 0)[1:] for name in fast)


def test_with_all_weight_on_the_old_value_slow_is_the_running_mean(small_trainer, learn_tasks):
    """a = 1 − 1/(s + 1): the mean of the weights at the task's start and after each step so far."""
    trainer = small_trainer(*ILORA, "strategy.rho=1.0")
    rows = recorded(trainer)
    learn_tasks(trainer, 1)
    visited = of_task(rows, 0)
    for s, (_, slow) in enumerate(visited):
        for name in slow:
            mean = torch.stack([fast[name] for fast, _ in visited[: s + 1]]).mean(0)
            torch.testing.assert_close(slow[name], mean, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("scope", "enter"), [("seen", True), ("all", False)])
def test_rows_of_new_classes_enter_the_slow_head_where_they_are_drawn(scope, enter, small_trainer, learn_tasks):
    """With scenario.logit_scope=all they have been there, and in training, from the start."""
    trainer = small_trainer(*ILORA, "strategy.rho=0.7", f"scenario.logit_scope={scope}")
    rows = recorded(trainer)
    learn_tasks(trainer, 2)
    before = of_task(rows, 0)[-1][1]
    fast, slow = of_task(rows, 1)[0]
    for name in slow:
        changed = (slow[name] != before[name]).flatten(1).any(1) if slow[name].dim() > 1 else slow[name] != before[name]
        of_new = (torch.arange(10) // 2 == 1) if name.startswith("head") and enter else torch.zeros(len(changed))
        assert torch.equal(changed, of_new.bool()), name
        if of_new.any():
            assert torch.equal(slow[name][2:4], fast[name][2:4])


def test_slow_weights_are_not_trained(small_trainer):
    trainer = small_trainer(*ILORA)
    slow = list(trainer.learner.strategies[0].slow.weights().values())
    optimised = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert {name.rpartition(".")[2] for name in trainer.learner.trainable()} == {"A", "B", "weight", "bias"}
    assert len(optimised) == len(slow) == 2 * 2 * 2 + 2
    assert optimised.isdisjoint(id(weight) for weight in slow)
    assert not any(weight.requires_grad for weight in slow)


@pytest.mark.parametrize("evaluated", ["slow", "fast"])
def test_which_adapter_predicts(evaluated, small_setup):
    setup = small_setup(*ILORA, f"strategy.evaluated={evaluated}")
    strategy, model = setup.learner.strategies[0], setup.learner.model
    put(model.trained(), drawn_like(model.trained(), 1))
    put(strategy.slow.weights(), drawn_like(model.trained(), 2))
    x = setup.inputs.plain(setup.scenario.test, setup.scenario.test.ids(0)[:6]).x
    setup.learner.eval()
    with torch.no_grad():
        expected = functional_call(model, strategy.slow.weights(), (x,)) if evaluated == "slow" else model(x)
        logits = setup.learner.predict(x, None)
    torch.testing.assert_close(logits[:, :2], expected[:, :2])
    assert (logits[:, 2:] == -torch.inf).all()  # of classes not seen yet


def test_slow_distance(small_setup):
    strategy = (setup := small_setup(*ILORA)).learner.strategies[0]
    fast, slow = setup.learner.model.trained(), strategy.slow.weights()
    put(fast, drawn_like(fast, 1))
    put(slow, drawn_like(fast, 2))
    flat = [torch.cat([weight.detach().flatten() for weight in weights.values()]) for weights in (fast, slow)]
    reported = {measurement.quantity: measurement.value for measurement in strategy.measurements()}
    assert reported["slow_distance"] == pytest.approx(((flat[0] - flat[1]).norm() / flat[0].norm()).item(), rel=1e-5)


# ---- consistency ------------------------------------------------------------------------------------------------------


def in_second_task(setup, task_of):
    for index in (0, 1):
        setup.learner.begin_task(task_of(setup, index))
    return setup.learner.train()


def hidden_states(model, layers, x):
    """Block by block: hidden states (B, N, D) of the embedding and of every block, or the features (B, D)."""
    if layers == "last":
        return [model.features(x)]
    tokens = model.backbone.embed(x)
    states = [tokens]
    for block in model.backbone.transformer.blocks:
        states.append(block(states[-1]))
    return states


def entries(states):
    """Numbers one by one, a list per layer."""
    return [[float(entry) for entry in state.detach().flatten()] for state in states]


@pytest.mark.parametrize("layers", ["all", "last"])
@pytest.mark.parametrize("consistency", ["one_sided", "mse"])
def test_consistency_entry_by_entry(consistency, layers, small_setup, task_of, batch_of):
    setup = small_setup(
        *ILORA, f"strategy.consistency={consistency}", f"strategy.layers={layers}", "strategy.gamma=3.0"
    )
    learner = in_second_task(setup, task_of)
    strategy, model = learner.strategies[0], learner.model
    slow_model = copy.deepcopy(model).eval()
    put(model.trained(), drawn_like(model.trained(), 1))
    put(strategy.slow.weights(), drawn_like(model.trained(), 2))
    put(slow_model.trained(), strategy.slow.weights())
    fast_model = copy.deepcopy(model).eval()
    batch = batch_of(setup, setup.scenario.train.ids(1)[:5], setup.scenario.train.ids(0)[:3])
    term = learner.loss(batch)["ilora"]

    x = batch.samples.x[5:]
    means = []
    for fast, slow in zip(*(entries(hidden_states(m, layers, x)) for m in (fast_model, slow_model)), strict=True):
        squares = [
            (f - max(f, s)) ** 2 if consistency == "one_sided" else (f - s) ** 2
            for f, s in zip(fast, slow, strict=True)
        ]
        means.append(sum(squares) / len(squares))
    assert len(means) == (3 if layers == "all" else 1)
    assert term.item() == pytest.approx(3 * sum(means) / len(means), rel=1e-4)
    gradients = torch.autograd.grad(term, list(model.trained().values()), allow_unused=True)
    named = dict(zip(model.trained(), gradients, strict=True))
    assert named["head.weight"] is None
    assert all(gradient.abs().sum() > 0 for name, gradient in named.items() if not name.startswith("head"))


@pytest.mark.parametrize(("consistency", "lowered", "raised"), [("one_sided", 0.25, 0.0), ("mse", 0.25, 0.25)])
def test_one_sided_pulls_up_only(consistency, lowered, raised, small_setup, task_of, batch_of):
    """One of 3 · 8 entries of the replayed samples' features, moved by ½."""
    setup = small_setup(*ILORA, f"strategy.consistency={consistency}", "strategy.layers=last", "strategy.gamma=1.0")
    learner = in_second_task(setup, task_of)
    batch = batch_of(setup, setup.scenario.train.ids(1)[:5], setup.scenario.train.ids(0)[:3])
    outputs = learner.strategies[0].outputs(batch)
    for change, expected in ((0, 0), (-0.5, lowered), (0.5, raised)):
        features = outputs.features.detach().clone()
        features[0] += 10  # of a new sample, which is not compared
        features[6, 2] += change
        term = learner.strategies[0].penalty(batch, Outputs(features, outputs.logits))
        assert term.item() == pytest.approx(expected / 24, abs=1e-7)


def test_hidden_states_are_those_of_the_last_pass_over_the_batch(small_setup, task_of, batch_of):
    """Whatever has been sent through the network before, in training mode too."""
    setup = small_setup(*ILORA)
    learner = in_second_task(setup, task_of)
    put(learner.model.trained(), drawn_like(learner.model.trained(), 1))
    batch = batch_of(setup, setup.scenario.train.ids(1)[:5], setup.scenario.train.ids(0)[:3])
    first = learner.loss(batch)["ilora"]
    learner.model(batch.samples.x.flip(0))
    learner.eval()
    learner.predict(batch.samples.x.flip(0), None)
    learner.train()
    assert first > 0
    torch.testing.assert_close(learner.loss(batch)["ilora"], first, rtol=0, atol=0)


# ---- replay -----------------------------------------------------------------------------------------------------------


def test_losses_are_plain_in_the_first_task_and_halved_later(small_trainer, learn_tasks, batch_of):
    trainer = small_trainer(*ILORA)
    learn_tasks(trainer, 2)
    terms = {task: set(rows.term) for task, rows in trainer.training.groupby("task_learning")}
    assert terms == {0: {"new"}, 1: {"new", "replay", "ilora"}}
    learner, ids = trainer.learner.train(), trainer.scenario.train.ids
    alone, both = batch_of(trainer, ids(1)[:5]), batch_of(trainer, ids(1)[:5], ids(0)[:3])
    losses = learner.strategies[0].cross_entropy(learner.model(both.samples.x), both.samples)
    assert set(learner.loss(alone)) == {"new"}
    torch.testing.assert_close(learner.loss(alone)["new"], losses[:5].mean())
    torch.testing.assert_close(learner.loss(both)["new"], losses[:5].mean() / 2)
    torch.testing.assert_close(learner.loss(both)["replay"], losses[5:].mean() / 2)


def test_samples_are_offered_once_and_before_they_are_trained_on(small_setup, task_of, monkeypatch):
    """To a reservoir with room for all: at every step it holds all samples of this step and of those before."""
    setup = small_setup(*ILORA, "strategy.memory_size=1000", "trainer.max_steps_per_task=null", "trainer.epochs=2",
                        "trainer.batch_size=64")  # fmt: skip
    strategy, held, draw = setup.learner.strategies[0], [], ilora.draw_uniform

    def spy(memory, n, rng):
        held.append(set(memory.tolist()))
        return draw(memory, n, rng)

    monkeypatch.setattr(ilora, "draw_uniform", spy)
    seen = set()
    for index in (0, 1):
        task = task_of(setup, index)
        setup.learner.begin_task(task)
        held.clear()
        plan = setup.learner.plan(task)
        assert len(plan.new) == 2 * -(-len(task.ids) // 64)
        for new, replayed, memory in zip(plan.new, plan.replay, held, strict=True):
            seen.update(new.tolist())
            assert memory == (seen if index else set())
            assert len(replayed) == len(set(replayed.tolist())) == (len(new) if index else 0)
            assert set(replayed.tolist()) <= memory
        setup.learner.end_task(task)
        assert strategy.n_seen == len(seen)
    assert set(strategy.memory[strategy.memory != EMPTY].tolist()) == seen


def test_memory_keeps_its_size(small_trainer, learn_tasks):
    """40 of the 2 · 4 · 8 samples of two tasks, of both of them."""
    trainer = small_trainer(*ILORA)
    learn_tasks(trainer, 1)
    strategy = trainer.learner.strategies[0]
    assert (strategy.memory != EMPTY).sum() == strategy.n_seen == 32
    learn_tasks(trainer, 1)
    assert strategy.n_seen == 64
    assert len(set(strategy.memory.tolist()) - {EMPTY}) == 40
    assert set(trainer.scenario.train.tasks[strategy.memory].tolist()) == {0, 1}
