"""The continual evaluator: what it measures, when, and that it leaves no trace."""

import numpy as np
import pandas as pd
import pytest
import torch

from clbench.evaluation.evaluator import CURVE_COLUMNS, as_table
from clbench.evaluation.metrics import summarise

OPTIONS = ["strategy=finetune", "trainer.max_steps_per_task=6"]


def test_subsets_are_drawn_once_from_their_own_generator(small_setup):
    """Equal for every run of a seed whatever else differs, distinct, sorted, and of the asked size."""
    first = small_setup("strategy=finetune").evaluator.subset_ids
    second = small_setup(
        "strategy=er", "strategy.memory_size=20", "trainer.lr=1", "evaluator.every=3"
    ).evaluator.subset_ids
    other_seed = small_setup("strategy=finetune", "seed=1").evaluator.subset_ids
    for task, ids in enumerate(first):
        assert torch.equal(ids, second[task])
        assert len(ids) == 20 == len(set(ids.tolist()))
        assert (ids.diff() > 0).all()
        assert not torch.equal(ids, other_seed[task])


def test_counts_equal_a_loop_over_single_samples(small_trainer):
    trainer = small_trainer(*OPTIONS)
    trainer.fit()
    curve, scenario, learner = trainer.curve, trainer.scenario, trainer.learner.eval()
    last = curve[curve.iteration == curve.iteration.max()].set_index("task_eval")
    for task, ids in enumerate(trainer.evaluator.subset_ids):
        correct, loss = 0, 0.0
        for sample in ids:
            samples = trainer.inputs.plain(scenario.test, sample[None])
            logits = learner.model(samples.x)
            correct += int(logits.argmax() == samples.y)
            loss += float(torch.nn.functional.cross_entropy(logits.detach(), samples.y))
        assert last.correct[task] == correct
        assert last.n[task] == len(ids)
        assert last.loss[task] == pytest.approx(loss, rel=1e-4)


def test_task_table_uses_the_full_test_sets(small_trainer):
    trainer = small_trainer(*OPTIONS)
    trainer.fit()
    sizes = [len(trainer.scenario.test.ids(task)) for task in range(5)]
    assert trainer.tasks.groupby("task_eval").n.first().tolist() == sizes
    assert trainer.tasks.groupby("task_learning").task_eval.apply(list).tolist() == [
        list(range(k + 1)) for k in range(5)
    ]


@pytest.mark.parametrize(("every", "in_task"), [(1, [1, 2, 3, 4, 5, 6]), (4, [1, 4, 6]), (0, [1, 6]), (100, [1, 6])])
def test_evaluates_periodically_and_around_every_switch(every, in_task, small_trainer):
    trainer = small_trainer(*OPTIONS, f"evaluator.every={every}")
    trainer.fit()
    expected = [0, *(6 * task + step for task in range(5) for step in in_task)]
    assert sorted(trainer.curve.iteration.unique()) == expected
    assert (trainer.curve.task_eval <= trainer.curve.task_learning).all()


@pytest.mark.parametrize("every", [1, 0])
def test_the_state_after_a_tasks_end_is_evaluated_too(every, small_trainer):
    """RanPAC's head is solved there: the second evaluation of the iteration agrees with the task table, the first does not."""
    trainer = small_trainer("strategy=ranpac", "strategy.projection=50", f"evaluator.every={every}",
                            "evaluator.subset=1000", "trainer.max_steps_per_task=20")  # fmt: skip
    trainer.fit()
    curve = trainer.curve
    after = curve[curve.consolidated].drop(columns="consolidated").reset_index(drop=True)
    assert after.iteration.tolist() == [20 * task for task in range(1, 6) for _ in range(task)]
    # The subsets are the whole test sets here.
    pd.testing.assert_frame_equal(after.drop(columns="loss"), trainer.tasks.drop(columns="loss"))
    before = curve[~curve.consolidated & curve.iteration.isin(after.iteration)].reset_index(drop=True)
    own = after.task_learning == after.task_eval
    assert (before.correct[own] < after.correct[own]).all()
    assert trainer.evaluator.latest() == (after.correct / after.n).tail(5).tolist()
    summary = summarise(curve, trainer.tasks, every, learns_at_task_end=trainer.learner.learns_at_task_end)
    assert summary["WC_ACC"] == pytest.approx(summary["ACC"], abs=0.1)
    assert 0 <= summary["gap_depth"] < 0.15
    assert {"LCA", "WP10", "recovery_iterations", "gap_area"} <= summary["undefined"].keys()


def test_hooks_that_change_no_prediction_change_no_metric(small_trainer):
    """EWC's only look at the weights: both evaluations of a task's last iteration are the same, and so are all metrics."""
    trainer = small_trainer("strategy=ewc", "trainer.max_steps_per_task=6")
    trainer.fit()
    curve = trainer.curve
    at_ends = curve[curve.iteration.isin(curve.iteration[curve.consolidated])]
    before, after = (
        at_ends[at_ends.consolidated == which].drop(columns="consolidated").reset_index(drop=True)
        for which in (False, True)
    )
    pd.testing.assert_frame_equal(before, after)
    assert summarise(curve, trainer.tasks, 1) == summarise(curve[~curve.consolidated], trainer.tasks, 1)


def test_a_method_without_hooks_is_evaluated_once(small_trainer):
    trainer = small_trainer(*OPTIONS)
    trainer.fit()
    assert not trainer.curve.consolidated.any()


def test_what_the_first_stages_make_is_computed_again_after_the_hooks(small_trainer):
    """A hook that changes frozen weights: its task's second evaluation sees the new ones."""
    trainer = small_trainer("strategy=ewc", "model.frozen=1", "evaluator.subset=1000")
    hook = trainer.learner.strategies[0].end_task

    @torch.no_grad()
    def and_shift(task):
        hook(task)
        next(iter(trainer.learner.model.backbone.parameters())).add_(0.5)

    trainer.learner.strategies[0].end_task = and_shift
    trainer.fit()
    after = trainer.curve[trainer.curve.consolidated].drop(columns="consolidated").reset_index(drop=True)
    pd.testing.assert_frame_equal(after, trainer.tasks)


def test_rows_of_older_checkpoints_are_not_consolidated(small_trainer):
    evaluator = small_trainer(*OPTIONS).evaluator
    evaluator.restore(np.array([[0, 1, 0, 20, 5, 1.5]]))
    assert as_table(evaluator.flush(), CURVE_COLUMNS).to_dict("records") == [
        {"task_learning": 0, "iteration": 1, "task_eval": 0, "n": 20, "correct": 5, "loss": 1.5, "consolidated": False}
    ]
    assert evaluator.latest() == [0.25]


def test_small_batches_give_the_same_curve(small_trainer):
    whole, parts = small_trainer(*OPTIONS), small_trainer(*OPTIONS, "evaluator.batch_size=7", checkpoint="other")
    whole.fit()
    parts.fit()
    columns = ["task_learning", "iteration", "task_eval", "n", "correct"]
    pd.testing.assert_frame_equal(whole.curve[columns], parts.curve[columns])


def test_uint8_inputs_give_the_same_curve(small_trainer, monkeypatch):
    whole = small_trainer(*OPTIONS)
    whole.fit()
    monkeypatch.setattr("clbench.evaluation.evaluator.LARGEST_CACHE", 0)
    lean = small_trainer(*OPTIONS, checkpoint="other")
    assert lean.evaluator._images.dtype == torch.uint8
    lean.fit()
    pd.testing.assert_frame_equal(whole.curve, lean.curve)


def test_module_modes_are_restored_one_by_one(small_trainer):
    """A frozen layer in evaluation mode is still frozen afterwards (a known defect of other harnesses)."""
    trainer = small_trainer(*OPTIONS)
    modules = list(trainer.learner.modules())
    for index, module in enumerate(modules):
        module.training = index % 2 == 0
    trainer.evaluator.evaluate(0, 0)
    assert [module.training for module in modules] == [index % 2 == 0 for index in range(len(modules))]


def test_no_host_sync_in_a_step(small_trainer, monkeypatch):
    """Neither a training step nor an evaluation reads a tensor's value on the host."""
    trainer = small_trainer("strategy=er", "strategy.memory_size=20", "strategy.plus=[ewc,lwf,l2]")
    inside = []

    def guard(owner, name):
        call = getattr(owner, name)

        def guarded(*arguments):
            inside.append(name)
            result = call(*arguments)
            inside.pop()
            return result

        monkeypatch.setattr(owner, name, guarded)

    def refuse(read):
        original = getattr(torch.Tensor, read)

        def checked(tensor, *arguments, **options):
            assert not inside, f"Tensor.{read} within {inside}"
            return original(tensor, *arguments, **options)

        monkeypatch.setattr(torch.Tensor, read, checked)

    guard(trainer, "_train_step")
    guard(trainer.evaluator, "evaluate")
    guard(trainer.evaluator, "evaluate_consolidated")
    for read in ("item", "tolist", "__bool__", "__int__", "__float__", "cpu", "numpy"):
        refuse(read)
    trainer.fit()


@pytest.mark.parametrize("strategy", ["lwf", "ewc", "l2"])
def test_protection_starts_at_exactly_zero(strategy, small_trainer):
    """The stability gradient is 0 at the first step of task 2 and positive afterwards: why the gap exists (spec, section 6)."""
    trainer = small_trainer(f"strategy={strategy}", "evaluator.diagnostics_every=1", "trainer.max_steps_per_task=5")
    trainer.fit()
    table = trainer.diagnostics.table()
    stability = table[table.quantity == "gradient_norm/stability"].set_index("iteration").value
    assert stability[6] == 0
    assert (stability.loc[7:10] > 0).all()
    plasticity = table[table.quantity == "gradient_norm/new"].set_index("iteration").value
    assert (plasticity > 0).all()


def test_diagnostics_leave_training_alone(small_trainer):
    plain = small_trainer("strategy=gem", "strategy.memory_size=20")
    looked_at = small_trainer(
        "strategy=gem", "strategy.memory_size=20", "evaluator.diagnostics_every=2", checkpoint="other"
    )
    plain.fit()
    looked_at.fit()
    for first, second in zip(plain.learner.parameters(), looked_at.learner.parameters(), strict=True):
        assert torch.equal(first, second)
    quantities = set(looked_at.diagnostics.table().quantity)
    assert {"gradient_norm/new", "gradient_norm/projection", "gradient_cosine", "feature_drift/0"} <= quantities


def test_a_network_for_every_task_is_asked_one_task_at_a_time(small_trainer, monkeypatch):
    """In passes of one task each, the same counts as a loop over single samples; also where the last pass is a smaller one."""
    trainer = small_trainer("strategy=hypernetwork", "strategy.chunk_size=500", "scenario=split_digits_task",
                            "evaluator.batch_size=7", "trainer.max_steps_per_task=2")  # fmt: skip
    asked = []
    predict_task = trainer.learner.predict_task
    monkeypatch.setattr(
        trainer.learner, "predict_task", lambda x, task: asked.append((len(x), task)) or predict_task(x, task)
    )
    trainer.fit()
    assert {task for _, task in asked} == set(range(5))
    assert max(n for n, _ in asked) <= 7
    assert trainer.evaluator.passes([20, 3]) == [
        (slice(0, 7), 0), (slice(7, 13), 0), (slice(13, 20), 0), (slice(20, 23), 1)]  # fmt: skip
    last = trainer.curve[(trainer.curve.iteration == 10) & trainer.curve.consolidated].set_index("task_eval")
    learner = trainer.learner.eval()
    for task, ids in enumerate(trainer.evaluator.subset_ids):
        samples = [trainer.inputs.plain(trainer.scenario.test, sample[None]) for sample in ids]
        assert last.correct[task] == sum(int(learner.predict(s.x, s.task).argmax() == s.y) for s in samples)


@pytest.mark.parametrize("kind", ["periodic", "adaptive"])
def test_killed_between_the_hooks_and_the_checkpoint(kind, small_trainer):
    """The resumed run does the hooks and the evaluation after them again, once."""
    options = ["strategy=ranpac", "strategy.projection=20", f"evaluator.kind={kind}", "trainer.max_steps_per_task=6"]
    whole = small_trainer(*options, checkpoint="whole")
    whole.fit()
    killed = small_trainer(*options, "record.checkpoint_seconds=0", checkpoint="killed")
    save = killed.save

    def save_or_die():
        if killed.task == 2 and killed.step == 0:
            raise KeyboardInterrupt
        save()

    killed.save = save_or_die
    with pytest.raises(KeyboardInterrupt):
        killed.fit()
    resumed = small_trainer(*options, checkpoint="killed")
    resumed.fit()
    pd.testing.assert_frame_equal(resumed.curve, whole.curve)
    assert resumed.curve.consolidated.sum() == 1 + 2 + 3 + 4 + 5
