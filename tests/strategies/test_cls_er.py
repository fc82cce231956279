"""CLS-ER: how its two copies follow, and what the network is held near."""

import math

import pytest
import torch

from clbench.testing.small_runs import in_double_precision

CLS = ["strategy=cls_er", "strategy.memory_size=12", "trainer.lr=0.1", "scenario.tasks=3", "scenario.frozen=null"]


def copied(weights) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in weights.items()}


def differ(first, second) -> bool:
    return any(not torch.equal(first[name], second[name]) for name in first)


def drawn_like(weights, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(weight.shape, generator=generator) for name, weight in weights.items()}


def test_copies_are_moving_averages_of_the_trajectory(small_trainer, monkeypatch):
    """Counted over the whole stream; a copy moves where its draw is below its rate, and not at all else."""
    trainer = in_double_precision(
        small_trainer(*CLS, "strategy.plastic_rate=0.8", "strategy.stable_rate=0.3", "strategy.plastic_alpha=0.6",
                      "strategy.stable_alpha=0.9", "scenario.logit_scope=all")
    )  # fmt: skip
    strategy, model = trainer.learner.strategies[0], trainer.learner.model
    expected = {"plastic": copied(model.trained()), "stable": copied(model.trained())}
    rates, alphas = {"plastic": 0.8, "stable": 0.3}, {"plastic": 0.6, "stable": 0.9}
    n, moves = 0, {"plastic": 0, "stable": 0}
    after_step = trainer.learner.after_step

    def watched(step, batch):
        nonlocal n
        after_step(step, batch)
        n += 1
        for place, name in enumerate(expected):
            if batch.columns["cls_er.draws"][place] < rates[name]:
                moves[name] += 1
                a = min(1 - 1 / (n + 1), alphas[name])
                for key, weight in model.trained().items():
                    expected[name][key] = a * expected[name][key] + (1 - a) * weight.detach()
            for key, weight in getattr(strategy, name).weights().items():
                torch.testing.assert_close(weight, expected[name][key], rtol=1e-6, atol=1e-7)

    monkeypatch.setattr(trainer.learner, "after_step", watched)
    trainer.fit()
    assert n == strategy.n_steps == 12
    assert 0 < moves["stable"] < moves["plastic"] < 12


def test_rows_of_new_classes_enter_both_copies_as_they_are_drawn(small_trainer, learn_tasks, task_of):
    trainer = small_trainer(*CLS)
    learn_tasks(trainer, 1)
    strategy, model = trainer.learner.strategies[0], trainer.learner.model
    before = copied(strategy.stable.weights())
    trainer.learner.begin_task(task_of(trainer, 1))
    for copy in (strategy.plastic, strategy.stable):
        assert torch.equal(copy.weights()["head.weight"][2:4], model.head.weight[2:4])
    after = strategy.stable.weights()
    assert torch.equal(after["head.weight"][:2], before["head.weight"][:2])
    assert not differ({n: w for n, w in after.items() if "backbone" in n}, before)


def test_copies_that_are_the_network_hold_nothing(small_trainer):
    trainer = small_trainer(*CLS, "strategy.plastic_rate=1.0", "strategy.stable_rate=1.0", "strategy.plastic_alpha=0.0",
                            "strategy.stable_alpha=0.0", "strategy.lam=1.0")  # fmt: skip
    trainer.fit()
    strategy = trainer.learner.strategies[0]
    assert not differ(strategy.stable.weights(), trainer.learner.model.trained())
    terms = trainer.training
    assert terms.loss[terms.term == "consistency"].abs().max() < 1e-10
    assert (terms.term == "consistency").sum() == 11


@pytest.mark.parametrize(("scope", "seen"), [("all", 6), ("seen", 4)])
def test_the_loss_is_that_of_the_paper(scope, seen, small_trainer, batch_of):
    """One mean over new and replayed samples; and the distance to the copy that gives the label more, sample by sample."""
    trainer = small_trainer(*CLS, "strategy.lam=0.7", f"scenario.logit_scope={scope}")
    trainer.fit_task()
    trainer.begin_task()
    strategy, model = trainer.learner.strategies[0], trainer.learner.model
    logits = {}
    for seed, name in enumerate(("plastic", "stable")):
        copy = getattr(strategy, name)
        for key, weight in drawn_like(copy.weights(), seed).items():
            copy.weights()[key].copy_(0.2 * weight)
    split = trainer.scenario.train
    batch = batch_of(trainer, split.ids(1)[:3], torch.cat([split.ids(0)[:5], split.ids(1)[5:8]]))
    x, y = batch.samples.x, batch.samples.y
    for name in ("plastic", "stable"):
        logits[name] = torch.func.functional_call(model, getattr(strategy, name).weights(), (x,))
    z = model(x)

    def probability(of, place):
        return float(of[place, :seen].softmax(0)[y[place]])

    squares, chosen = [], set()
    for place in range(3, 11):
        better = max(logits, key=lambda name: probability(logits[name], place))
        chosen.add(better)
        squares += [float((z[place, c] - logits[better][place, c]) ** 2) for c in range(seen)]
    assert chosen == {"plastic", "stable"}
    losses = [-math.log(probability(z, place)) for place in range(11)]
    terms = trainer.learner.loss(batch)
    assert terms["new"].item() == pytest.approx(sum(losses[:3]) / 11, rel=1e-4)
    assert terms["replay"].item() == pytest.approx(sum(losses[3:]) / 11, rel=1e-4)
    assert terms["consistency"].item() == pytest.approx(0.7 * sum(squares) / len(squares), rel=1e-4)


@pytest.mark.parametrize("evaluated", ["stable", "plastic", "trained"])
def test_which_network_predicts(evaluated, small_trainer):
    trainer = small_trainer(*CLS, f"strategy.evaluated={evaluated}", "scenario.logit_scope=all")
    strategy, model = trainer.learner.strategies[0], trainer.learner.model
    for seed, name in enumerate(("plastic", "stable")):
        copy = getattr(strategy, name)
        for key, weight in drawn_like(copy.weights(), seed).items():
            copy.weights()[key].copy_(weight)
    model.eval()
    x = trainer.inputs.plain(trainer.scenario.train, torch.arange(5)).x
    weights = {} if evaluated == "trained" else getattr(strategy, evaluated).weights()
    torch.testing.assert_close(strategy.predict(x, None), torch.func.functional_call(model, weights, (x,)))


def test_copies_leave_no_trace_in_batch_norm(small_trainer_with_batch_norm, batch_of):
    """Its running statistics are those of finetuning on the same batch: of one pass, of the trained network."""
    trainer = small_trainer_with_batch_norm("strategy=cls_er", "strategy.memory_size=40")
    trainer.fit_task()
    trainer.train_mode()
    learner = trainer.learner
    batch = batch_of(trainer, torch.arange(8), torch.arange(20, 26))
    before = copied(dict(learner.model.named_buffers()))
    learner.model(batch.samples.x)
    once = copied(dict(learner.model.named_buffers()))
    learner.model.load_state_dict(before, strict=False)
    assert differ(before, once)
    learner.loss(batch)
    assert not differ(once, dict(learner.model.named_buffers()))
