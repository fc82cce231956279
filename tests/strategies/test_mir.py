"""MIR against a ranking made by taking the optimizer's step, and looking at one candidate after another."""

import copy

import pytest
import torch
import torch.nn.functional as F

from clbench.errors import ConfigError
from clbench.strategies.mir import MIR
from clbench.testing.small_runs import in_double_precision
from clbench.training.optimizers import assign_gradients

OPTIONS = ["strategy=mir", "strategy.memory_size=40", "strategy.candidates=9", "strategy.replay_batch_size=3", "trainer.lr=0.2",
           "scenario.tasks=2", "scenario.frozen=null", "trainer.max_steps_per_task=6"]  # fmt: skip


def loss_of_one(model, samples, place: int) -> torch.Tensor:
    """Cross-entropy of one sample over the classes seen."""
    logits = model(samples.x[place : place + 1])[:, model.answer.visible(samples.task[place : place + 1])]
    return F.cross_entropy(logits, samples.y[place : place + 1])


@pytest.fixture
def edits(monkeypatch):
    """A list that fills with (gradient of the loss, batch, what has come of the gradient), step by step."""
    rows = []
    edit = MIR.edit_gradients

    def watched(self, gradient, batch):
        edited = edit(self, gradient, batch)
        rows.append((gradient, batch, edited))
        return edited

    monkeypatch.setattr(MIR, "edit_gradients", watched)
    return rows


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_replayed_are_those_that_the_real_step_harms_most(optimizer, small_trainer, edits):
    """With momentum, moments and weight decay, of which lr · gradient knows nothing."""
    trainer = in_double_precision(
        small_trainer(*OPTIONS, f"trainer.optimizer={optimizer}", "trainer.weight_decay=0.01", "trainer.lr=0.05")
    )
    trainer.fit_task()
    trainer.begin_task()
    model, chosen = trainer.learner.model, []
    while trainer.step < len(trainer.steps):
        later, twin = copy.deepcopy((model, trainer.optimizer))  # twin steps the weights of later
        before = copy.deepcopy(model)
        trainer.advance()
        gradient, batch, edited = edits[-1]
        assign_gradients(list(later.trained().values()), gradient)
        twin.step()
        looked_at = batch.reference
        rise = [(loss_of_one(later, looked_at, i) - loss_of_one(before, looked_at, i)).item() for i in range(9)]
        most = sorted(range(9), key=lambda i: -rise[i])[:3]
        loss = sum(loss_of_one(before, looked_at, i) for i in most) / 3
        added = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, list(before.trained().values()))])
        torch.testing.assert_close(edited - gradient, added, rtol=1e-8, atol=1e-10)
        chosen.append(sorted(most))
    assert any(most != [0, 1, 2] for most in chosen)


def test_where_all_candidates_are_replayed_it_is_replay(small_trainer, edits, monkeypatch):
    monkeypatch.setattr(MIR, "interference", lambda *_: pytest.fail("there is nothing to choose"))
    trainer = small_trainer(*OPTIONS, "strategy.candidates=3")
    trainer.fit()
    strategy = trainer.learner.strategies[0]
    gradient, batch, _ = edits[-1]
    assert len(batch.reference.y) == 3
    torch.testing.assert_close(
        strategy.edit_gradients(gradient, batch) - gradient, strategy.flat_gradient(batch.reference)
    )


def test_a_step_of_no_length_harms_nobody(small_trainer):
    trainer = small_trainer(*OPTIONS)
    samples = trainer.inputs.plain(trainer.scenario.train, torch.arange(5))
    strategy = trainer.learner.strategies[0]
    assert not strategy.interference(samples, torch.zeros_like(strategy.flat_parameters())).any()


def test_candidates_are_stored_samples_of_that_moment(small_trainer):
    """From the second step on, of the current task too, and not as late as after the task."""
    trainer = small_trainer(*OPTIONS)
    trainer.begin()
    trainer.begin_task()
    seen: set[int] = set()
    for step in trainer.steps:
        candidates = step.reference.tolist()
        assert set(candidates) <= seen
        assert len(set(candidates)) == len(candidates) == min(9, len(seen))
        seen |= set(step.ids.tolist())
    assert len(seen) == 6 * 8


def test_candidates_leave_no_trace_in_batch_norm(small_trainer_with_batch_norm):
    """Nor does a candidate's score depend on the others: they are looked at in evaluation mode."""
    trainer = small_trainer_with_batch_norm("strategy=mir", "strategy.memory_size=40")
    trainer.fit_task()
    trainer.train_mode()
    strategy, model = trainer.learner.strategies[0], trainer.learner.model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    samples = trainer.inputs.plain(trainer.scenario.train, torch.arange(7))
    update = 0.01 * torch.randn(len(strategy.flat_parameters()), generator=torch.Generator().manual_seed(0))
    together = strategy.interference(samples, update)
    alone = [strategy.interference(type(samples)(*(t[i : i + 1] for t in samples)), update) for i in range(7)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-5)
    assert together.any()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(module.training for module in model.modules())


def test_fewer_candidates_than_are_to_be_chosen_are_refused(small_setup):
    with pytest.raises(ConfigError, match=r"strategy\.candidates=2 is too few"):
        small_setup("strategy=mir", "strategy.candidates=2", "strategy.replay_batch_size=3")
