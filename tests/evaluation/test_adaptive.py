"""The adaptive evaluator: the same curve where it looks, the same training, few evaluations."""

import pandas as pd
import pytest
import torch

from clbench.compose import compose
from clbench.errors import ConfigError
from clbench.evaluation.adaptive import AdaptiveEvaluator
from clbench.evaluation.refinement import allowance
from clbench.registry import STRATEGIES
from clbench.set_up import set_up
from clbench.testing.small_runs import in_double_precision
from clbench.training.fleet import Fleet

STEPS = 100


def options(name: str, *more: str) -> list[str]:
    memory = ["strategy.memory_size=40"] if STRATEGIES[name].needs.memory else []
    return [
        f"strategy={name}",
        f"trainer.max_steps_per_task={STEPS}",
        "trainer.lr=0.05",
        "scenario.increment=5",
        *memory,
        *more,
    ]


@pytest.mark.parametrize("name", ["er", "ewc", "lwf"])
def test_what_it_evaluates_equals_the_dense_curve(name, small_trainer):
    """The same training to the bit, and at every iteration it looks at, the same counts."""
    dense = small_trainer(*options(name), checkpoint="dense")
    sparse = small_trainer(*options(name, "evaluator=adaptive", "evaluator.window=16"), checkpoint="sparse")
    dense.fit()
    sparse.fit()
    for key, tensor in dense.learner.state_dict().items():
        assert torch.equal(tensor, sparse.learner.state_dict()[key]), key
    pd.testing.assert_frame_equal(dense.tasks, sparse.tasks)
    looked_at = dense.curve[dense.curve.iteration.isin(sparse.curve.iteration)].reset_index(drop=True)
    pd.testing.assert_frame_equal(looked_at, sparse.curve, rtol=1e-5)
    assert sparse.curve.iteration.is_monotonic_increasing
    # The end of every window, the steps 1 to 8, 16, 32 … after each switch, and what the budget allows.
    budget = allowance(STEPS, 1 / 8, 0) + allowance(STEPS, 1 / 8, 24)
    assert 2 * (-(-STEPS // 16)) <= sparse.curve.iteration.nunique() <= 2 * (-(-STEPS // 16) + 11) + budget
    assert {0, 1, STEPS, STEPS + 1, 2 * STEPS} <= set(sparse.curve.iteration)


def test_a_dip_between_two_window_ends_is_found(small_trainer):
    """The lowest accuracy on the first task lies within a window; looking at window ends alone would miss it."""
    more = ["trainer.lr=0.05", "trainer.batch_size=64", "evaluator.subset=500"]
    dense = small_trainer(*options("er", *more), checkpoint="dense")
    sparse = small_trainer(*options("er", *more, "evaluator=adaptive", "evaluator.window=50"), checkpoint="sparse")
    dense.fit()
    sparse.fit()

    def lowest(curve: pd.DataFrame) -> int:
        return curve[(curve.task_eval == 0) & (curve.task_learning == 1)].correct.min()

    coarse = dense.curve[dense.curve.iteration % 50 == 0]
    assert lowest(dense.curve) < lowest(coarse)
    assert lowest(sparse.curve) <= lowest(dense.curve) + 1


def test_in_a_fleet_every_member_has_its_own_curve(small_trainer):
    members = [options("er", "evaluator=adaptive", "evaluator.window=16", f"seed={seed}") for seed in (0, 1, 2)]
    together = [small_trainer(*member, checkpoint=f"fleet{i}") for i, member in enumerate(members)]
    alone = [small_trainer(*member, checkpoint=f"alone{i}") for i, member in enumerate(members)]
    for trainer in (*together, *alone):
        in_double_precision(trainer)
    Fleet(together).fit()
    for member, trainer in zip(together, alone, strict=True):
        trainer.fit()
        pd.testing.assert_frame_equal(member.curve, trainer.curve, rtol=1e-5)
    assert len({tuple(member.curve.iteration) for member in together}) > 1


class Killed(BaseException):
    """Stands for a process that ends between two steps."""


@pytest.mark.parametrize("kill_at", [30, 105])
def test_resumes_to_the_same_curve(kill_at, small_trainer, monkeypatch):
    chosen = options("er", "evaluator=adaptive", "evaluator.window=16", "record.checkpoint_seconds=0")
    whole, first = small_trainer(*chosen, checkpoint="whole"), small_trainer(*chosen, checkpoint="killed")
    whole.fit()
    step = first._train_step

    def step_or_die(*arguments):
        if first.iteration == kill_at:
            raise Killed
        step(*arguments)

    monkeypatch.setattr(first, "_train_step", step_or_die)
    with pytest.raises(Killed):
        first.fit()
    second = small_trainer(*chosen, checkpoint="killed")
    second.fit()
    pd.testing.assert_frame_equal(second.curve, whole.curve)


def test_the_policy_knows_what_the_curve_holds(small_trainer):
    """Every evaluation once, that after the hooks at a task's end included: it counts for min-ACC."""
    trainer = small_trainer(*options("ranpac", "strategy.projection=20", "evaluator=adaptive"))
    told, tell = [], trainer.evaluator.policy.tell
    trainer.evaluator.policy.tell = lambda i, correct, n: told.append((i, *correct)) or tell(i, correct, n)
    trainer.fit()
    assert trainer.curve.consolidated.any()
    evaluations = trainer.curve.groupby(["iteration", "consolidated"])
    assert sorted(told) == sorted((i, *rows.correct) for (i, _), rows in evaluations)
    after = trainer.curve[trainer.curve.task_eval < trainer.curve.task_learning]
    lowest = (after.correct / after.n).groupby(after.task_eval).min()
    assert trainer.evaluator.policy.state_dict()["minimum"][: len(lowest)] == pytest.approx(lowest.tolist())


def test_large_networks_get_shorter_windows(small_trainer, monkeypatch):
    monkeypatch.setattr("clbench.evaluation.adaptive.LARGEST_WINDOW_BYTES", 20_000)
    trainer = small_trainer(*options("finetune", "evaluator=adaptive"))
    trainer.begin()
    trainer.begin_task()
    trainer._train_step(0, trainer.steps[0])
    trainer.evaluator.after_step(0, 1, STEPS, 1)
    weights = sum(p.numel() for p in trainer.parameters)
    assert 2 <= trainer.evaluator._window._snapshots.capacity <= 20_000 // (4 * weights)


def test_a_period_makes_no_sense_with_it():
    with pytest.raises(ConfigError, match=r"evaluator\.every=5 has no meaning with evaluator=adaptive"):
        set_up(compose(["evaluator=adaptive", "evaluator.every=5"]))


def test_frozen_first_stages_are_computed_once(small_trainer, monkeypatch):
    """With a frozen prefix the same curve as without the cache, and the frozen stage is not run in any evaluation."""
    chosen = [
        "strategy=er",
        "strategy.memory_size=40",
        "model.hidden=[16,12]",
        "model.frozen=2",
        "trainer.max_steps_per_task=6",
    ]
    cached = small_trainer(*chosen, checkpoint="cached")
    plain = small_trainer(*chosen, checkpoint="plain")
    monkeypatch.setattr(plain.evaluator, "compute_prefix", lambda: None)
    first_layer = next(m for m in cached.learner.model.modules() if isinstance(m, torch.nn.Linear))
    runs = []
    first_layer.register_forward_hook(lambda module, inputs, output: runs.append(len(output)))
    evaluate = cached.evaluator.evaluate

    def counted(*arguments):
        before = len(runs)
        evaluate(*arguments)
        assert len(runs) == before

    monkeypatch.setattr(cached.evaluator, "evaluate", counted)
    cached.fit()
    plain.fit()
    assert runs
    pd.testing.assert_frame_equal(cached.curve, plain.curve, rtol=1e-5)
    adaptive = [small_trainer(*chosen, "evaluator=adaptive", f"seed={s}", checkpoint=f"adaptive{s}") for s in (0, 1)]
    Fleet(adaptive).fit()
    assert isinstance(adaptive[0].evaluator, AdaptiveEvaluator)
    both = plain.curve.merge(adaptive[0].curve, on=["iteration", "task_learning", "task_eval", "consolidated"])
    assert ((both.correct_x - both.correct_y).abs() <= 1).all()
