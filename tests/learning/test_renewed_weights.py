"""Weights that are drawn anew: every strategy is told which, and goes by what they have become."""

import dataclasses

import pytest
import torch
from torch import Tensor

from clbench.config import StrategyConfig
from clbench.learning.base import Needs, Strategy
from clbench.learning.learner import Learner
from clbench.testing.pairs import options_of, trainer_of
from clbench.training.trainer import Trainer


class Witness(Strategy):
    """Notes what it is told, and the weights as they are then."""

    needs = Needs(weights_only=True)

    def __init__(self, model) -> None:
        super().__init__(StrategyConfig(name="witness"), model, None)
        self.forget()

    def forget(self) -> None:
        """Begin anew."""
        self.renewed = torch.zeros_like(self.flat_parameters(), dtype=torch.bool)
        self.values = self.flat_parameters().detach().clone()

    def weights_renewed(self, renewed: Tensor) -> None:
        self.renewed |= renewed
        self.values[renewed] = self.flat_parameters().detach()[renewed]


def make(*names: str, network: str, setting: str = "class", place: int = -1, **changes) -> tuple[Trainer, Witness]:
    """A trainer of some strategies, with a witness among them; ``changes`` are those of the options that have such fields."""
    chosen = [options_of(name) for name in names]
    for field, value in changes.items():
        chosen = [dataclasses.replace(o, **{field: value}) if hasattr(o, field) else o for o in chosen]
    trainer = trainer_of(*chosen, setting=setting, network=network)
    witness = Witness(trainer.learner.model)
    strategies = list(trainer.learner.strategies)
    strategies.insert(place if place >= 0 else len(strategies), witness)
    trainer.learner = Learner(trainer.learner.model, strategies)
    return trainer, witness


def weights(trainer: Trainer) -> Tensor:
    """All trained ones, (P,)."""
    return trainer.learner.strategies[0].flat_parameters().detach().clone()


def finish(trainer: Trainer) -> None:
    """Take the task's steps and end it."""
    while trainer.step < len(trainer.steps):
        trainer.advance()
    trainer.learner.end_task(trainer._task)
    trainer.task, trainer.step = trainer.task + 1, 0


def named(trainer: Trainer, flat: Tensor) -> dict[str, Tensor]:
    """Entries of (P,) by the name of the parameter."""
    trained = trainer.learner.model.trained()
    parts = flat.split([p.numel() for p in trained.values()])
    return {name: part.view(p.shape) for (name, p), part in zip(trained.items(), parts, strict=True)}


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize(
    ("name", "network", "setting", "drawn"),
    [
        ("finetune", "mlp", "class", {}),
        ("finetune", "mlp", "task", {}),
        ("dualprompt", "vit", "class", {}),
        ("coda_prompt", "vit", "class", {"prompts": "two of six rows"}),
        ("reglora", "vit", "class", {"adapters": "all rows"}),
        ("joint", "mlp", "class", {"": "all rows"}),
        ("dst", "mlp", "task", {"": "what has changed"}),
    ],
)
def test_what_is_drawn_as_a_task_begins_is_told(name, network, setting, drawn, place):
    """That and no more, wherever the strategy that is told stands; and it has its new value already."""
    trainer, witness = make(name, network=network, setting=setting, place=place, from_scratch=True)
    for task in range(3):
        before = weights(trainer)
        witness.forget()
        trainer.begin_task()
        after = weights(trainer)
        assert torch.equal(witness.values[witness.renewed], after[witness.renewed])
        assert not (before != after)[~witness.renewed].any()
        own = torch.arange(6) // 2 == task
        for parameter, renewed in named(trainer, witness.renewed).items():
            rule = next((rule for part, rule in drawn.items() if part in parameter), None)
            rows = renewed.reshape(len(renewed), -1)
            if rule == "all rows":
                assert rows.all() or (name, task) == ("reglora", 0)
            elif rule == "two of six rows":
                assert torch.equal(rows, own[:, None].expand_as(rows))
            elif rule == "what has changed":
                assert torch.equal(renewed, named(trainer, before != after)[parameter]) or parameter.startswith("head")
            elif parameter.startswith("head") and task:
                assert torch.equal(rows, own[:, None].expand_as(rows))
            else:
                assert not renewed.any()
        finish(trainer)


def test_a_head_of_zeros_is_told_and_a_fixed_head_is_not(small_setup, task_of):
    for options, expected in ((["trainer.zero_head=true"], True), (["scenario.logit_scope=all"], None)):
        setup = small_setup("strategy=finetune", *options)
        model = setup.learner.model
        renewed = model.begin_task(1, task_of(setup, 1).torch_generator("head"))
        if expected is None:
            assert renewed is None
        else:
            n_head = model.head.weight.numel() + model.head.bias.numel()
            assert renewed[-n_head:].all()
            assert not renewed[:-n_head].any()


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize(("name", "setting"), [("redo", "class"), ("continual_backprop", "class"), ("dst", "task")])
def test_what_is_drawn_after_a_step_is_told(name, setting, place, monkeypatch):
    trainer, witness = make(name, network="mlp", setting=setting, place=place)
    strategy = next(s for s in trainer.learner if s is not witness)
    acted, n_renewed = strategy.after_step, 0

    def after_step(step, batch):
        nonlocal n_renewed
        renewed = acted(step, batch)
        if renewed is not None:
            n_renewed += int(renewed.sum())
        witness.expected = renewed
        return renewed

    monkeypatch.setattr(strategy, "after_step", after_step)
    trainer.begin_task()
    for _ in range(len(trainer.steps)):
        witness.forget()
        trainer.advance()
        assert torch.equal(witness.renewed, witness.expected)
        assert torch.equal(witness.values[witness.renewed], weights(trainer)[witness.renewed])
    assert n_renewed


def test_a_mask_that_grows_is_told_at_0(monkeypatch):
    """The weights that a sparse network grows start from 0, and are no others than those that it begins to train."""
    trainer, witness = make("dst", network="mlp", setting="task")
    dst = trainer.learner.strategies[0]
    trainer.begin_task()
    before = dst.trainable.clone()
    witness.forget()
    trainer.advance()
    assert witness.renewed.any()
    assert torch.equal(witness.renewed, (dst.trainable > 0) & (before == 0))
    assert (witness.values[witness.renewed] == 0).all()


def test_the_optimizer_forgets_units_that_are_reset():
    trainer, witness = make("redo", network="mlp")
    trainer.begin_task()
    witness.forget()
    trainer.advance()
    momentum = torch.cat([trainer.optimizer.state[p]["momentum_buffer"].flatten() for p in trainer.parameters])
    assert witness.renewed.any()
    assert not momentum[witness.renewed].any()
    assert momentum[~witness.renewed].any()


def test_the_optimizer_does_not_forget_what_a_mask_grows():
    trainer, witness = make("dst", network="mlp", setting="task")
    trainer.begin_task()
    witness.forget()
    with torch.no_grad():
        assert trainer.learner.after_step(1, None) is None
    assert witness.renewed.any()


# ---- what strategies do with it -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["l2_init", "wasserstein", "shrink_perturb", "joint"])
def test_components_are_at_their_initial_values_when_their_task_begins(name):
    """CODA-Prompt draws a task's components when it begins: that draw is their initial value, not the 0 of before."""
    trainer, _ = make("coda_prompt", name, network="vit", from_scratch=True, every="step")
    strategy = trainer.learner.strategies[1]
    drawn: dict[str, Tensor] = {}
    for task in range(3):
        trainer.begin_task()
        initial = named(trainer, strategy.initial)
        now = named(trainer, weights(trainer))
        for parameter in (p for p in now if ".prompts." in p):
            own, later = slice(2 * task, 2 * task + 2), slice(2 * task + 2, None)
            assert torch.equal(initial[parameter][own], now[parameter][own])
            assert (now[parameter][own].flatten(1).norm(dim=1) > 0.99).all()
            assert (initial[parameter][later] == 0).all()
            earlier = drawn.get(parameter, now[parameter][:0])
            assert torch.equal(initial[parameter][: 2 * task], earlier)
            drawn[parameter] = torch.cat([earlier, now[parameter][own]])
        if name in ("l2_init", "wasserstein"):
            of_head = named(trainer, weights(trainer) - strategy.initial)["head.weight"]
            assert name == "wasserstein" or (of_head[2 * task : 2 * task + 2] == 0).all()
        finish(trainer)


def test_the_distribution_of_initial_weights_keeps_its_first_draw_of_the_head():
    for name in ("wasserstein", "shrink_perturb", "joint"):
        trainer, _ = make(name, network="mlp", from_scratch=True)
        strategy = trainer.learner.strategies[0]
        initial = strategy.initial.clone()
        for _ in range(2):
            trainer.begin_task()
            finish(trainer)
        assert torch.equal(strategy.initial, initial)


def test_wasserstein_compares_with_what_is_drawn():
    """At a task's first step the components of earlier tasks alone are elsewhere than they were drawn."""
    trainer, _ = make("coda_prompt", "wasserstein", network="vit")
    wasserstein = trainer.learner.strategies[1]
    trainer.begin_task()
    assert wasserstein.penalty(None, None) == 0
    finish(trainer)
    trainer.begin_task()
    sorted_now = named(trainer, wasserstein._sorted(weights(trainer)))
    targets = named(trainer, wasserstein.targets)
    for parameter in (p for p in targets if ".prompts." in p):
        assert (targets[parameter].flatten() != 0).sum() == 4 * targets[parameter][0].numel()
        assert sorted_now[parameter].shape == targets[parameter].shape


@pytest.mark.parametrize("name", ["l2_init", "l2"])
def test_units_that_are_reset_are_pulled_to_what_they_became(name):
    trainer, witness = make(name, "redo", network="mlp", where="backbone")
    strategy = trainer.learner.strategies[0]
    kept = "initial" if name == "l2_init" else "anchor"
    trainer.begin_task()
    before = getattr(strategy, kept).clone()
    witness.forget()
    trainer.advance()
    now, n = getattr(strategy, kept), len(before)
    assert witness.renewed[:n].any()
    assert not witness.renewed[:n].all()
    assert torch.equal(now, torch.where(witness.renewed[:n], weights(trainer)[:n], before))


def test_what_is_reset_is_no_longer_important_to_ewc():
    trainer, witness = make("ewc", "redo", network="mlp")
    ewc = trainer.learner.strategies[0]
    trainer.begin_task()
    finish(trainer)
    trainer.begin_task()
    before = ewc.importance.clone()
    witness.forget()
    trainer.advance()
    assert before[witness.renewed].any()
    assert torch.equal(ewc.importance, torch.where(witness.renewed, 0.0, before))


def test_a_zeroed_head_is_let_go_by_ewc(small_trainer, learn_tasks, task_of):
    trainer = small_trainer("strategy=ewc", "trainer.zero_head=true", "scenario=split_digits")
    learn_tasks(trainer, 1)
    ewc = trainer.learner.strategies[0]
    n_head = sum(p.numel() for p in trainer.learner.model.head.parameters())
    assert ewc.importance[-n_head:].any()
    before = ewc.importance.clone()
    trainer.learner.begin_task(task_of(trainer, 1))
    assert not ewc.importance[-n_head:].any()
    assert torch.equal(ewc.importance[:-n_head], before[:-n_head])


@pytest.mark.parametrize("name", ["dualprompt", "coda_prompt"])
def test_joint_training_from_scratch_trains_the_prompts_of_every_task(name):
    trainer, _ = make(name, "joint", network="vit", from_scratch=True)
    for task in range(3):
        trainer.begin_task()
        assert torch.equal(trainer.learner.strategies[1].initial, weights(trainer))
        before = named(trainer, weights(trainer))
        prompts = [
            module for module in trainer.learner.model.modules() if hasattr(module, "task") and hasattr(module, "keys")
        ]
        assert prompts
        assert all(int(prompt.task) == task for prompt in prompts)
        finish(trainer)
        after = named(trainer, weights(trainer))
        moved = {p: (before[p] != after[p]).flatten(1).any(1) for p in before if p.endswith((".vectors", ".keys"))}
        for parameter, rows in moved.items():
            if len(rows) not in (3, 6):
                continue  # a prompt for all tasks
            per_task = len(rows) // 3
            expected = torch.arange(len(rows)) // per_task == task
            assert torch.equal(rows, expected), parameter


def test_the_slow_adapter_begins_with_the_new_rows_of_the_head():
    trainer, _ = make("ilora", network="vit")
    ilora = trainer.learner.strategies[0]
    trainer.begin_task()
    finish(trainer)
    slow = {name: weight.clone() for name, weight in ilora.slow.weights().items()}
    trainer.begin_task()
    fast = trainer.learner.model.trained()
    for name, weight in ilora.slow.weights().items():
        if name.startswith("head."):
            assert torch.equal(weight[2:4], fast[name][2:4])
            assert torch.equal(weight[:2], slow[name][:2])
            assert torch.equal(weight[4:], slow[name][4:])
        else:
            assert torch.equal(weight, slow[name])


RESUMED = {
    "components": ["coda_prompt", "wasserstein", "l2_init", "shrink_perturb"],
    "joint": ["coda_prompt", "joint"],
    "resets": ["ewc", "l2_init", "wasserstein", "redo"],
    "network per task": ["dst", "l2_init"],
}


@pytest.mark.parametrize("case", RESUMED)
def test_a_run_that_is_stopped_within_a_task_goes_on_the_same(case, tmp_path):
    names = RESUMED[case]
    chosen = [options_of(name) for name in names]
    chosen = [dataclasses.replace(o, from_scratch=True) if hasattr(o, "from_scratch") else o for o in chosen]
    where = {"setting": "task" if "dst" in names else "class", "network": "vit" if "coda_prompt" in names else "mlp"}
    whole = trainer_of(*chosen, **where)
    stopped = trainer_of(*chosen, **where, checkpoint=tmp_path / "state.pt")
    for trainer in (whole, stopped):
        for _ in range(2):
            trainer.begin_task()
            finish(trainer)
        trainer.begin_task()
        trainer.advance()
    Trainer.save(stopped)
    resumed = trainer_of(*chosen, **where, checkpoint=tmp_path / "state.pt")
    resumed.begin()
    resumed.begin_task()
    for trainer in (whole, resumed):
        finish(trainer)
    for name, value in whole.learner.state_dict().items():
        assert torch.equal(value, resumed.learner.state_dict()[name]), name
