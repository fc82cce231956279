"""Mode connectivity against lines in closed form and by hand, and that it leaves no trace."""

import contextlib

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from clbench.errors import ConfigError
from clbench.evaluation.connectivity import COLUMNS, Connectivity, between
from clbench.reports.connectivity_tables import along_lines, barriers
from clbench.training.fleet import Fleet

POINTS = "evaluator.connectivity_points=5"
ALL = "evaluator.subset=1000"  # more than any task of digits has: subsets are the whole test split
TASK = "scenario=split_digits_task"


# ---- the line -----------------------------------------------------------------------------------------------------------


class Toy(nn.Module):
    """Two weights w, v, and whole numbers that nothing may interpolate."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.v = nn.Parameter(torch.tensor(-1.0)), nn.Parameter(torch.tensor(0.0))
        self.register_buffer("seen", torch.tensor(1))


class ToyEvaluator:
    """Ten samples a task; task 0 has the loss (w² − 1)² + v, the others v."""

    def __init__(self, learner: Toy) -> None:
        self.learner, self.seconds = learner, 0.0
        self.subset_ids = [torch.arange(10)] * 3
        self.seen_whole_numbers = set()

    @contextlib.contextmanager
    def undisturbed(self):
        yield

    def sums_of(self, task: int, ids: torch.Tensor) -> tuple[int, float]:
        w, v = self.learner.w.item(), self.learner.v.item()
        self.seen_whole_numbers.add(int(self.learner.seen))
        return 5, len(ids) * (((w * w - 1) ** 2 if task == 0 else 0.0) + v)


def test_barrier_of_a_double_well_in_closed_form():
    """w from −1 to 1, then to 3, v from 0 to 6: (w² − 1)² is ((2λ − 1)² − 1)², highest in the middle, where it is 1; what is
    linear, as v, makes no barrier. On the second way ((1 + 2λ)² − 1)² is convex."""
    learner = Toy()
    evaluator = ToyEvaluator(learner)
    connectivity = Connectivity(learner, evaluator, 11)
    connectivity.look(0)
    for task, (w, v) in enumerate([(1.0, 6.0), (3.0, 6.0)], start=1):
        with torch.no_grad():
            learner.w.fill_(w), learner.v.fill_(v), learner.seen.fill_(task + 1)
        evaluator.seen_whole_numbers.clear()
        connectivity.look(task)
        assert (learner.w.item(), learner.v.item()) == (w, v)
        assert evaluator.seen_whole_numbers == {task + 1}  # those after the later task, for every λ
    table = connectivity.table()
    assert list(table) == COLUMNS
    assert (
        table[table.task_learning == 1].groupby("task_eval").lam.apply(list).tolist()
        == [[i / 10 for i in range(11)]] * 2
    )
    first = table[(table.task_learning == 1) & (table.task_eval == 0)]
    lam = first.lam.to_numpy()
    np.testing.assert_allclose(first.loss / first.n, ((2 * lam - 1) ** 2 - 1) ** 2 + 6 * lam, rtol=1e-5, atol=1e-6)
    lines = along_lines(table).assign(folder="run")
    of_first = barriers(lines[lines.task_learning == 1]).loc["run"]
    assert of_first.to_dict() == pytest.approx({"current": 0, "earlier": 1}, abs=1e-5)
    # On the second way the barrier is 0; a run's barrier is the mean over its pairs.
    assert barriers(lines).loc["run"].to_dict() == pytest.approx({"current": 0, "earlier": 0.5}, abs=1e-5)


def test_an_evaluation_that_fails_leaves_the_learner_as_it_was():
    learner = Toy()
    evaluator = ToyEvaluator(learner)
    connectivity = Connectivity(learner, evaluator, 3)
    connectivity.look(0)
    with torch.no_grad():
        learner.w.fill_(0.7)
    evaluator.sums_of = None
    with pytest.raises(TypeError):
        connectivity.look(1)
    assert learner.w.item() == torch.tensor(0.7).item()


def test_what_does_not_change_stays_bit_for_bit_and_so_do_the_ends():
    before = torch.rand(1000, generator=torch.Generator().manual_seed(0))
    after = before.clone()
    before[0], after[0], after[1] = 1.0, 2.0, torch.inf
    assert torch.equal(between(before, after, 0.3)[2:], after[2:])
    assert float(between(before, after, 0.3)[0]) == pytest.approx(1.3)
    assert torch.equal(between(before, after, 0.0), before)
    assert torch.equal(between(before, after, 1.0), after)


# ---- in a run -----------------------------------------------------------------------------------------------------------


def rows_at(table: pd.DataFrame, task: int, lam: float) -> list[tuple[int, int, int, float]]:
    """(task_eval, n, correct, loss) at one point."""
    chosen = table[(table.task_learning == task) & (table.lam == lam)]
    return list(chosen[["task_eval", "n", "correct", "loss"]].itertuples(index=False, name=None))


@pytest.mark.parametrize(
    "options",
    [
        ["strategy=finetune", TASK],
        ["strategy=finetune", TASK, "model=slim_resnet18", "model.width=2"],  # with BatchNorm
        ["strategy=hypernetwork", TASK, "strategy.chunk_size=300"],
        ["strategy=slda"],
    ],
    ids=["finetune", "batch_norm", "hypernetwork", "slda"],
)
def test_ends_are_the_recorded_accuracies_at_task_ends(options, small_trainer):
    """λ = 1 is the network as it was evaluated; where the task is given, λ = 0 is that of the task before, on its tasks."""
    trainer = small_trainer(*options, POINTS, ALL, "scenario.tasks=3", "trainer.lr=0.05")
    trainer.fit()
    table, tasks = trainer.connectivity.table(), trainer.tasks
    assert set(table.task_learning) == {1, 2}
    for task in (1, 2):
        now, before = (
            list(rows[["task_eval", "n", "correct", "loss"]].itertuples(index=False, name=None))
            for rows in (tasks[tasks.task_learning == task], tasks[tasks.task_learning == task - 1])
        )
        assert rows_at(table, task, 1.0) == now[: task + 1]
        if TASK in options:
            assert rows_at(table, task, 0.0)[:task] == before[:task]
            assert rows_at(table, task, 0.0) != rows_at(table, task, 1.0)


def test_a_point_between_is_the_network_with_interpolated_weights_and_the_later_classes(small_trainer):
    """Class-incremental, by hand: weights of a quarter of the way, logits of the four classes seen after the second task."""
    trainer = small_trainer("strategy=finetune", POINTS, ALL, "scenario.tasks=3", "trainer.lr=0.05")
    trainer.begin()
    states = []
    for _ in range(2):
        trainer.fit_task()
        states.append({name: tensor.clone() for name, tensor in trainer.learner.model.named_parameters()})
    for lam in (0.0, 0.25):
        weights = {name: (1 - lam) * states[0][name] + lam * states[1][name] for name in states[0]}
        for seen, _, correct, loss in rows_at(trainer.connectivity.table(), 1, lam):
            test = trainer.scenario.test
            samples = trainer.inputs.plain(test, test.ids(seen))
            logits = torch.func.functional_call(trainer.learner.model.eval(), weights, (samples.x,))
            classes = trainer.scenario.task_classes[0] + trainer.scenario.task_classes[1]
            place = torch.tensor([classes.index(int(y)) for y in samples.y])
            assert correct == (logits[:, classes].argmax(1) == place).sum()
            assert loss == pytest.approx(F.cross_entropy(logits[:, classes], place, reduction="sum").item(), rel=1e-5)


def test_it_does_not_disturb_a_run_and_costs_nothing_when_off(small_trainer):
    """Weights, buffers, tables and torch's generator are the same bit for bit with and without."""
    options = ["strategy=finetune", "model=slim_resnet18", "model.width=2", "scenario.tasks=2"]
    looked, plain = small_trainer(*options, POINTS), small_trainer(*options, checkpoint="plain")
    ends = []
    for trainer in (looked, plain):
        torch.manual_seed(0)
        trainer.fit()
        ends.append(torch.get_rng_state())
    assert torch.equal(*ends)
    for a, b in zip(looked.learner.state_dict().values(), plain.learner.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    for name in ("curve", "tasks", "training"):
        pd.testing.assert_frame_equal(getattr(looked, name), getattr(plain, name))
    assert len(looked.connectivity.table()) == 5 * 2
    assert plain.connectivity.table().empty
    assert plain.connectivity.state_dict() == {"rows": [], "changed": {}}
    assert not plain.connectivity._before


class Killed(BaseException):
    """Stands for a process that ends between two steps."""


@pytest.mark.parametrize("kill_at", [6, 8])  # of tasks of four steps: within the second, and at its end
def test_a_resumed_run_has_the_same_table(kill_at, small_trainer):
    options = ["strategy=finetune", POINTS, "model.hidden=[16,8]", "model.frozen=1", "scenario.tasks=3"]
    whole, first = small_trainer(*options), small_trainer(*options, "record.checkpoint_seconds=0", checkpoint="killed")
    whole.fit()
    train_step = first._train_step

    def step_or_die(*arguments):
        if first.iteration == kill_at:
            raise Killed
        train_step(*arguments)

    first._train_step = step_or_die
    with pytest.raises(Killed):
        first.fit()
    changed = torch.load(first.checkpoint, weights_only=True)["connectivity"]["changed"]
    trained = set(first.learner.trainable())
    assert len(trained) < len(list(first.learner.parameters()))
    # Frozen weights are in the checkpoint once, and at a task's end so is everything.
    assert {name.removeprefix("model.") for name in changed} == (trained if kill_at == 6 else set())
    second = small_trainer(*options, checkpoint="killed")
    second.fit()
    pd.testing.assert_frame_equal(whole.connectivity.table(), second.connectivity.table())


def test_a_fleet_records_the_same(small_trainer):
    options = ["strategy=ewc", POINTS, "scenario.tasks=2"]
    alone = small_trainer(*options, "seed=1")
    alone.fit()
    members = [small_trainer(*options, f"seed={seed}", checkpoint=f"fleet{seed}") for seed in (0, 1)]
    Fleet(members).fit()
    pd.testing.assert_frame_equal(alone.connectivity.table(), members[1].connectivity.table(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("points", [1, 2])
def test_ends_alone_are_refused(points, small_setup):
    with pytest.raises(ConfigError, match=f"connectivity_points={points} has no point between"):
        small_setup(f"evaluator.connectivity_points={points}")
