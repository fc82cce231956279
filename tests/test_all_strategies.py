"""What every registered strategy has to satisfy, in every setting it is defined for."""

import numpy as np
import pandas as pd
import pytest
import torch
from streams import CASES, IN_TURN, STREAMS, setting_of, small_network, small_options
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from clbench.evaluation.evaluator import COLUMNS, as_table
from clbench.learning.base import Batch, Strategy
from clbench.registry import STRATEGIES
from clbench.training.optimizers import flatten_gradients
from clbench.training.trainer import Trainer


def options(name: str, setting: str) -> list[str]:
    return [*small_options(name), *STREAMS[setting], *small_network(name), "trainer.lr=0.05"]


def weights(trainer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.learner.state_dict().items()}


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert not different


@pytest.fixture(scope="module")
def trained(request, small_setup, tmp_path_factory) -> Trainer:
    """A finished run of one strategy in one setting, evaluated after every step; several tests look at it."""
    setup = small_setup(*options(*request.param), "trainer.scheduler=cosine", "evaluator.every=1")
    folder = tmp_path_factory.mktemp("trained")
    trainer = Trainer(setup.config, setup.scenario, setup.learner, setup.inputs, setup.evaluator, folder / "state.pt")
    trainer.fit()
    return trainer


# The second parameter goes to the fixture, so that all tests of one case follow each other and share its run.
EVERY_CASE = [pytest.param(*case.values, case.values, marks=case.marks, id="-".join(case.values)) for case in CASES]
in_every_case = pytest.mark.parametrize(
    ("name", "setting", "trained"), EVERY_CASE, indirect=["trained"], scope="module"
)


@in_every_case
def test_deterministic_and_undisturbed_by_evaluation(name, setting, trained, small_trainer):
    """Bit-identical weights with evaluation after every step, and at switches only."""
    trainer = small_trainer(*options(name, setting), "trainer.scheduler=cosine", "evaluator.every=0")
    torch.rand(1)  # whatever happened to torch's own generator before may not matter
    trainer.fit()
    assert_same(weights(trained), weights(trainer))
    pd.testing.assert_frame_equal(trained.tasks, trainer.tasks)
    merged = trainer.curve.merge(
        trained.curve,
        how="left",
        on=["iteration", "task_learning", "task_eval", "consolidated"],
        suffixes=("", "_dense"),
    )
    assert (merged.correct == merged.correct_dense).all()


class Killed(BaseException):
    """Stands for a process that ends between two steps."""


KILL_AT = (1, 5, 8, 10)
"""Steps, of tasks of four, before which a run is killed: within a task, right after its first step, and at its end."""


@in_every_case
def test_resumes_to_the_same_run(name, setting, trained, small_trainer):
    """Killed again and again, within a task, at its end and right after a checkpoint, it ends in the same weights and tables."""
    chosen = [*options(name, setting), "trainer.scheduler=cosine", "evaluator.every=1"]
    for kill_at in KILL_AT:
        killed = small_trainer(*chosen, "record.checkpoint_seconds=0", checkpoint="killed")
        kill_before_step(killed, kill_at)
        with pytest.raises(Killed):
            killed.fit()
        assert killed.iteration == kill_at
    last = small_trainer(*chosen, checkpoint="killed")
    last.fit()
    assert_same(weights(trained), weights(last))
    pd.testing.assert_frame_equal(trained.curve, last.curve)
    pd.testing.assert_frame_equal(trained.tasks, last.tasks)
    pd.testing.assert_frame_equal(trained.training, last.training)
    pd.testing.assert_frame_equal(trained.method, last.method)


def kill_before_step(trainer, iteration: int) -> None:
    train_step = trainer._train_step

    def step_or_die(*arguments):
        if trainer.iteration == iteration:
            raise Killed
        train_step(*arguments)

    trainer._train_step = step_or_die


@in_every_case
def test_prediction_is_per_sample_and_does_not_know_a_hidden_task(name, setting, trained):
    """The answer for an image depends neither on the batch it comes in nor, where the scenario hides it, on the task."""
    learner = trained.learner.eval()
    learner.prepare_for_eval()
    split = trained.scenario.test
    samples = trained.inputs.plain(split, torch.cat([split.ids(t)[:12] for t in range(3)]))
    with torch.no_grad():
        together = learner.predict(samples.x, samples.task)
        alone = torch.cat(
            [learner.predict(samples.x[i : i + 1], samples.task[i : i + 1]) for i in range(len(samples.x))]
        )
        order = torch.randperm(len(samples.x), generator=torch.Generator().manual_seed(0))
        shuffled = learner.predict(samples.x[order], samples.task[order])
        claimed = learner.predict(samples.x, samples.task + 1)
    torch.testing.assert_close(alone, together)
    torch.testing.assert_close(shuffled, together[order])
    assert setting == "task" or torch.equal(claimed, together)


class OperationCount(TorchDispatchMode):
    """Counts tensor operations."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", STRATEGIES.names())
def test_memory_and_step_cost_are_flat_over_12_tasks(name, small_trainer, monkeypatch):
    """Bytes kept, operations and FLOPs of a training step do not grow, unless the method is declared to grow."""
    is_domain = setting_of(name, "domain") == "domain"
    trainer = small_trainer(
        *options(name, "domain"),
        f"scenario.setting={setting_of(name, 'domain')}",
        "scenario.n_tasks=12",
        "trainer.max_steps_per_task=2",
        "trainer.batch_size=20",
        "evaluator.every=0",
        "evaluator.subset=2",
        # Room for a sample of every class, of which there are more where tasks have classes of their own.
        *([f"strategy.memory_size={100 if is_domain else 240}"] if STRATEGIES[name].needs.memory else []),
        *(["strategy.reference_size=2"] if name == "agem" else []),
    )
    costs, bytes_kept = {}, {}
    train_step = trainer._train_step

    def counted(task, *arguments):
        bytes_kept[task] = trainer.learner.extra_bytes()
        if task not in (2, 11):  # counting takes longer than the step
            train_step(task, *arguments)
            return
        with FlopCounterMode(display=False) as flops, OperationCount() as operations:
            train_step(task, *arguments)
        costs[task] = (operations.count, flops.get_total_flops())

    monkeypatch.setattr(trainer, "_train_step", counted)
    # With the task hidden, a method that runs a network per task takes 12³/2 passes for the full test sets at task ends.
    monkeypatch.setattr(trainer.evaluator, "evaluate_full", lambda *_: as_table(np.empty((0, len(COLUMNS)))))
    monkeypatch.setattr(trainer, "save", lambda: None)
    trainer.fit()
    assert len(set(bytes_kept.values())) == 1
    if STRATEGIES[name].needs.cost_grows:
        assert costs[11] > costs[2]
    else:
        assert costs[11] == costs[2]


@pytest.mark.parametrize(("name", "setting"), IN_TURN)
def test_term_gradients_add_up_to_the_applied_gradient(name, setting, small_trainer, monkeypatch):
    """The gradients of the named loss terms, and a projection's change, sum to what the optimizer gets."""
    trainer = small_trainer(*options(name, setting), "trainer.max_steps_per_task=3")
    checked = []
    loss, edit = trainer.learner.loss_and_outputs, trainer.learner.edit_gradients
    step = trainer.optimizer.__class__.step
    pieces = {}
    learned_by_gradient = []
    follow = trainer._follow_gradient

    def followed(*arguments):
        learned_by_gradient.append(trainer.task)
        return follow(*arguments)

    def loss_with_gradients(batch: Batch):
        terms, outputs = loss(batch)
        pieces["terms"] = [
            torch.cat([g.reshape(-1) for g in torch.autograd.grad(
                term, trainer.parameters, retain_graph=True, materialize_grads=True)])
            for term in terms.values() if term.requires_grad
        ]  # fmt: skip
        return terms, outputs

    def edit_and_remember(gradient, batch: Batch):
        pieces["batch"] = batch
        return edit(gradient, batch)

    def checked_step(optimizer, *arguments):
        if optimizer is not trainer.optimizer:  # a strategy looks where the next step would lead
            return step(optimizer, *arguments)
        applied = flatten_gradients(trainer.parameters)
        total = torch.stack(pieces["terms"]).sum(0)
        if trainer.learner.edits_gradients:
            total = edit(total, pieces["batch"])
        if trainer.held is not None:
            total = total.masked_fill(~trainer.held.trained, 0)
        torch.testing.assert_close(applied, total, atol=1e-5, rtol=1e-4)
        checked.append(applied.norm())
        return step(optimizer, *arguments)

    monkeypatch.setattr(trainer, "_follow_gradient", followed)
    monkeypatch.setattr(trainer.learner, "loss_and_outputs", loss_with_gradients)
    monkeypatch.setattr(trainer.learner, "edit_gradients", edit_and_remember)
    monkeypatch.setattr(trainer.optimizer.__class__, "step", checked_step)
    trainer.fit()
    assert len(checked) == len(learned_by_gradient)
    if STRATEGIES[name].learn is Strategy.learn:
        assert len(checked) == trainer.iteration >= 3 * trainer.scenario.n_tasks


@pytest.mark.parametrize("name", STRATEGIES.names())
def test_real_valued_options_are_buffers(name, small_setup):
    """A learner's state holds its real-valued options, so that learners with different ones can be stacked."""
    setup = small_setup(*options(name, setting_of(name, "class")))
    strategy = setup.learner.strategies[0]
    for field, value in vars(strategy.options).items():
        if isinstance(value, float):
            assert strategy.get_buffer(field).shape == ()
            assert strategy.get_buffer(field) == pytest.approx(value)
