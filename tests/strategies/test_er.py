"""Experience replay: what is replayed when, and how it is weighted."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clbench.errors import ConfigError
from clbench.learning.parts.memory import EMPTY
from clbench.learning.parts.replay_policy import ClassReservoirs

ER = ["strategy=er", "strategy.memory_size=40"]
RESERVOIR = [*ER, "strategy.selection=reservoir"]


def kept(trainer):
    memory = trainer.learner.strategies[0].memory
    return memory[memory != EMPTY]


@pytest.mark.parametrize("n_tasks", [1, 2, 3, 5])
def test_class_balanced_memory_is_refilled_with_equal_counts(n_tasks, small_trainer, learn_tasks):
    trainer = small_trainer(*ER, "strategy.memory_size=43")
    learn_tasks(trainer, n_tasks)
    ids = kept(trainer)
    assert len(set(ids.tolist())) == 43
    counts = np.bincount(trainer.scenario.train.labels_of(ids), minlength=10)
    assert counts[: 2 * n_tasks].min() >= 43 // (2 * n_tasks)
    assert counts[: 2 * n_tasks].max() <= 43 // (2 * n_tasks) + 1
    assert counts[2 * n_tasks :].sum() == 0


def test_later_refills_keep_a_part_of_what_was_kept(small_trainer, learn_tasks):
    """Only the current task's data can be read, so earlier classes shrink to a subset of the memory."""
    trainer = small_trainer(*ER)
    learn_tasks(trainer, 1)
    before = set(kept(trainer).tolist())
    trainer.task = 1
    trainer.fit_task()
    of_first_task = kept(trainer)[trainer.scenario.train.tasks[kept(trainer)] == 0]
    assert set(of_first_task.tolist()) < before


def test_domain_incremental_memory_is_balanced_over_domains_and_classes(small_trainer, learn_tasks):
    trainer = small_trainer(
        "strategy=er", "strategy.memory_size=60", "scenario=permuted_mnist", "scenario.source=digits",
        "scenario.frozen=null", "scenario.n_tasks=3", "model.hidden=[16]",
    )  # fmt: skip
    learn_tasks(trainer, 3)
    ids, split = kept(trainer), trainer.scenario.train
    counts = np.zeros((3, 10), int)
    np.add.at(counts, (split.tasks[ids], split.labels_of(ids)), 1)
    assert (counts == 2).all()


@pytest.mark.parametrize(
    "overrides",
    [
        ER,
        [*RESERVOIR, "strategy.update=task"],
        [*RESERVOIR, "strategy.update=step"],
        [*ER, "strategy.update=step"],
        [*ER, "strategy.selection=task_balanced", "strategy.mixing=data_set", "strategy.weighting=samples"],
    ],
)
def test_plan_is_the_same_when_made_twice(overrides, small_trainer, learn_tasks, task_of):
    """A run that resumes within a task makes its plan again."""
    trainer = small_trainer(*overrides)
    learn_tasks(trainer, 1)
    strategy, task = trainer.learner.strategies[0], task_of(trainer, 1)
    first = trainer.learner.plan(task)
    after_first = strategy._memory_after_task
    second = trainer.learner.plan(task)
    for ours, again in zip(first.replay or first.new, second.replay or second.new, strict=True):
        assert torch.equal(ours, again)
    assert (after_first[0] == strategy._memory_after_task[0]).all()
    assert (after_first[1] == strategy._memory_after_task[1]).all()


@pytest.mark.parametrize("overrides", [ER, [*RESERVOIR, "strategy.update=task"]])
def test_updated_by_task_only_earlier_tasks_are_replayed(overrides, small_trainer, learn_tasks, task_of):
    trainer = small_trainer(*overrides)
    assert all(len(ids) == 0 for ids in trainer.learner.plan(task_of(trainer, 0)).replay)
    learn_tasks(trainer, 2)
    stored = set(kept(trainer).tolist())
    for new, replayed in zip(*trainer.learner.plan(task_of(trainer, 2))[:2], strict=True):
        assert len(replayed) == len(set(replayed.tolist())) == len(new)
        assert set(replayed.tolist()) <= stored
        assert (trainer.scenario.train.tasks[replayed] < 2).all()


def test_replay_draws_classes_equally_often(small_trainer, learn_tasks, task_of):
    trainer = small_trainer(*ER, "strategy.replay_batch_size=10")
    learn_tasks(trainer, 2)
    for replayed in trainer.learner.plan(task_of(trainer, 2)).replay:
        counts = np.bincount(trainer.scenario.train.labels_of(replayed), minlength=4)
        assert sorted(counts) == [2, 2, 3, 3]


def test_reservoir_updated_by_step_holds_what_has_been_seen(small_trainer, task_of):
    """A step draws from what earlier steps brought, each sample offered once however many epochs there are."""
    trainer = small_trainer(
        *RESERVOIR, "strategy.update=step", "trainer.max_steps_per_task=100", "trainer.batch_size=30"
    )
    trainer.learner.begin_task(task := task_of(trainer, 0))
    plan = trainer.learner.plan(task)
    seen: set[int] = set()
    for new, replayed in zip(plan.new, plan.replay, strict=True):
        assert set(replayed.tolist()) <= seen
        assert len(replayed) == len(set(replayed.tolist())) == min(len(new), len(seen), 40)
        seen |= set(new.tolist())
    trainer.learner.end_task(task)
    assert int(trainer.learner.strategies[0].n_seen) == len(task.ids)
    assert set(kept(trainer).tolist()) <= set(task.ids.tolist())


def losses_of(trainer, batch):
    """Cross-entropy of every sample over the classes seen so far, by slicing."""
    logits = trainer.learner.model(batch.samples.x)[:, : 2 * int(trainer.learner.model.answer.current_task) + 2]
    return F.cross_entropy(logits, batch.samples.y, reduction="none")


@pytest.mark.parametrize(
    ("weighting", "weight"), [("fixed", 0.3), ("tasks", 1 / 3), ("samples", 5 / 12)]
)  # in the third task, with 5 new and 7 replayed samples
def test_weighting(weighting, weight, small_trainer, learn_tasks, task_of, batch_of):
    trainer = small_trainer(*ER, f"strategy.weighting={weighting}", "strategy.new_weight=0.3")
    learn_tasks(trainer, 2)
    trainer.learner.begin_task(task_of(trainer, 2))
    batch = batch_of(trainer, task_of(trainer, 2).ids[:5], task_of(trainer, 0).ids[:7])
    losses = losses_of(trainer, batch)
    terms = trainer.learner.loss(batch)
    assert set(terms) == {"new", "replay"}
    torch.testing.assert_close(terms["new"], weight * losses[:5].mean())
    torch.testing.assert_close(terms["replay"], (1 - weight) * losses[5:].mean())
    if weighting == "samples":
        torch.testing.assert_close(terms["new"] + terms["replay"], losses.mean())


@pytest.mark.parametrize(("weighting", "weight"), [("fixed", 0.3), ("tasks", 1), ("samples", 1)])
def test_weighting_while_nothing_is_replayed(weighting, weight, small_trainer, task_of, batch_of):
    trainer = small_trainer(*ER, f"strategy.weighting={weighting}", "strategy.new_weight=0.3")
    trainer.learner.begin_task(task_of(trainer, 0))
    batch = batch_of(trainer, task_of(trainer, 0).ids[:5])
    terms = trainer.learner.loss(batch)
    assert set(terms) == {"new"}
    torch.testing.assert_close(terms["new"], weight * losses_of(trainer, batch).mean())


def test_options_that_contradict_each_other_are_refused(small_setup):
    for options, sentence in (
        (
            ["selection=task_balanced", "update=step"],
            r"update=step is not defined for strategy\.selection=task_balanced",
        ),
        (["selection=reservoir", "share=stream"], r"share=stream has no meaning with strategy\.selection=reservoir"),
        (["mixing=data_set"], r"strategy\.weighting=fixed contradicts: set strategy\.update=task"),
        (
            ["mixing=data_set", "weighting=samples", "replay_batch_size=3"],
            r"strategy\.replay_batch_size=3 contradicts",
        ),
    ):
        with pytest.raises(ConfigError, match=sentence):
            small_setup(*ER, *(f"strategy.{option}" for option in options))


# ---- shares -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_tasks", [1, 2, 5])
def test_share_of_the_stream_holds_from_the_first_task_on(n_tasks, small_trainer, learn_tasks):
    """100 a class for the first classes too, as in van de Ven's code, and not all the memory until others come."""
    trainer = small_trainer(*ER, "strategy.memory_size=43", "strategy.share=stream")
    learn_tasks(trainer, n_tasks)
    counts = np.bincount(trainer.scenario.train.labels_of(kept(trainer)), minlength=10)
    assert counts.tolist() == [4] * (2 * n_tasks) + [0] * (10 - 2 * n_tasks)


def test_share_of_the_stream_keeps_what_was_kept(small_trainer, learn_tasks):
    trainer = small_trainer(*ER, "strategy.share=stream")
    learn_tasks(trainer, 1)
    before = set(kept(trainer).tolist())
    trainer.task = 1
    trainer.fit_task()
    assert before < set(kept(trainer).tolist())


def test_share_of_a_domain(small_trainer, learn_tasks):
    options = ["strategy=er", "strategy.share=stream", "scenario=permuted_mnist", "scenario.source=digits",
               "scenario.frozen=null", "scenario.n_tasks=3", "model.hidden=[16]"]  # fmt: skip
    trainer = small_trainer(*options, "strategy.memory_size=60")
    learn_tasks(trainer, 1)
    assert np.bincount(trainer.scenario.train.labels_of(kept(trainer))).tolist() == [2] * 10
    with pytest.raises(
        ConfigError, match=r"memory_size=29 is too small for strategy\.share=stream: .* there are 30 shares"
    ):
        small_trainer(*options, "strategy.memory_size=29", checkpoint="small")


@pytest.mark.parametrize("share", ["seen", "stream"])
def test_task_balanced_memory_has_whole_shares_of_tasks(share, small_trainer, learn_tasks):
    """⌊M/t⌋ of every task, random within it: the classes of a task need not be equal."""
    trainer = small_trainer(
        *ER, "strategy.memory_size=43", "strategy.selection=task_balanced", f"strategy.share={share}"
    )
    for n_tasks in (1, 2, 3):
        trainer.task = n_tasks - 1
        trainer.fit_task()
        counts = np.bincount(trainer.scenario.train.tasks[kept(trainer)]).tolist()
        assert counts == [43 // (n_tasks if share == "seen" else 5)] * n_tasks
    drawn = trainer.learner.plan(trainer._task).replay
    assert all(max(np.bincount(trainer.scenario.train.tasks[ids])) - len(ids) / 3 < 1 for ids in drawn)


# ---- a reservoir for every class ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_shares", [None, 3])
def test_every_sample_of_a_class_is_as_likely_to_be_kept(n_shares):
    """Also those that came before the class had to give up room; Avalanche's online replay."""
    labels = [0] * 6 + [1] * 3 + [0] * 4 + [2] * 8 + [1] * 2
    stream, n_runs = np.arange(len(labels)), 1200
    times_kept = np.zeros(len(labels))
    for seed in range(n_runs):
        empty = np.full(7, EMPTY)
        reservoirs = ClassReservoirs(empty, empty, np.zeros(3, np.int64), n_shares, np.random.default_rng(seed))
        for start in range(0, len(labels), 5):
            reservoirs.offer(stream[start : start + 5].tolist(), labels[start : start + 5])
            if start == 10:  # a task ends here: what is held is all that is known of it
                labels_held = np.array([labels[i] for i in reservoirs.memory()])
                reservoirs = ClassReservoirs(
                    reservoirs.memory(), labels_held, reservoirs.n_seen, n_shares, np.random.default_rng(10_000 + seed)
                )
            share = 7 // (n_shares or len(set(labels[: start + 5])))
            seen = np.bincount(labels[: start + 5], minlength=3)
            held = np.bincount([labels[i] for i in reservoirs.memory() if i != EMPTY], minlength=3)
            assert (held == np.minimum(seen, share)).all()
        times_kept[reservoirs.memory()[reservoirs.memory() != EMPTY]] += 1
    for label in range(3):
        of_class = times_kept[np.array(labels) == label]
        expected = n_runs * 2 / len(of_class)
        chi_square = ((of_class - expected) ** 2 / (expected * (1 - 2 / len(of_class)))).sum()
        assert chi_square < 35, (label, of_class / n_runs)  # 10 samples at most: p < 0.0001


@pytest.mark.parametrize("share", ["seen", "stream"])
def test_class_balanced_memory_updated_by_step(share, small_trainer, learn_tasks, task_of):
    options = ["strategy.memory_size=43", "strategy.update=step", f"strategy.share={share}"]
    trainer = small_trainer(*ER, *options, "trainer.max_steps_per_task=100", "trainer.batch_size=30")
    trainer.learner.begin_task(task := task_of(trainer, 0))
    plan, seen = trainer.learner.plan(task), set()
    for new, replayed in zip(plan.new, plan.replay, strict=True):
        assert set(replayed.tolist()) <= seen
        seen |= set(new.tolist())
    for n_tasks in (1, 2, 3):
        trainer.task = n_tasks - 1
        trainer.fit_task()
        counts = np.bincount(trainer.scenario.train.labels_of(kept(trainer)), minlength=10)
        each = 43 // (2 * n_tasks if share == "seen" else 10)
        assert counts.tolist() == [each] * (2 * n_tasks) + [0] * (10 - 2 * n_tasks)
    n_seen = trainer.learner.strategies[0].n_seen
    arrived = torch.cat([trainer.scenario.train.labels_of(trainer.scenario.train.ids(t)) for t in range(3)])
    assert torch.equal(n_seen, torch.bincount(arrived, minlength=10))


def test_reservoirs_of_classes_need_no_boundaries(small_setup):
    options = [
        "scenario.boundaries=hidden",
        "trainer.zero_head=false",
        "trainer.reset_optimizer=false",
        "strategy.weighting=samples",
    ]
    assert small_setup(*ER, *options, "strategy.update=step").learner.strategies[0].n_seen.shape == (10,)
    with pytest.raises(ConfigError, match=r"strategy\.update=task .* set strategy\.update=step"):
        small_setup(*ER, *options)


# ---- memory mixed into the data ----------------------------------------------------------------------------------------------

MIXED = [*ER, "strategy.selection=task_balanced", "strategy.mixing=data_set", "strategy.weighting=samples",
         "trainer.epochs=1", "trainer.max_steps_per_task=null", "trainer.batch_size=16"]  # fmt: skip


def test_the_first_task_is_trained_with_full_batches(small_trainer, task_of):
    """Half a batch of new samples, with nothing beside them, is another method than naive rehearsal."""
    mixed, alone = small_trainer(*MIXED), small_trainer("strategy=finetune", *MIXED[5:], checkpoint="alone")
    plans = [trainer.learner.plan(task_of(trainer, 0)) for trainer in (mixed, alone)]
    assert plans[0].replay is None
    assert len(plans[0].new) == len(plans[1].new)
    assert all(torch.equal(*ids) for ids in zip(plans[0].new, plans[1].new, strict=True))


def test_memory_is_repeated_until_it_is_about_as_large_as_the_data(small_trainer, learn_tasks, task_of):
    trainer = small_trainer(*MIXED)
    learn_tasks(trainer, 2)
    task, stored = task_of(trainer, 2), kept(trainer)
    plan = trainer.learner.plan(task)
    copies = len(task.ids) // 40
    assert copies == 7
    ids, counts = torch.cat(plan.new).unique(return_counts=True)
    expected = {**dict.fromkeys(task.ids.tolist(), 1), **dict.fromkeys(stored.tolist(), copies)}
    assert dict(zip(ids.tolist(), counts.tolist(), strict=True)) == expected
    assert {len(batch) for batch in plan.new[:-1]} == {16}
    for batch, replayed in zip(plan.new, plan.columns["er.replayed"], strict=True):
        assert replayed.tolist() == [i in set(stored.tolist()) for i in batch.tolist()]


def test_the_loss_of_mixed_batches_is_one_mean(small_trainer, learn_tasks, task_of, batch_of):
    trainer = small_trainer(*MIXED)
    learn_tasks(trainer, 1)
    trainer.learner.begin_task(task_of(trainer, 1))
    ids = torch.cat([task_of(trainer, 1).ids[:5], kept(trainer)[:3]])[torch.randperm(8)]
    replayed = torch.isin(ids, kept(trainer))
    batch = batch_of(trainer, ids)._replace(columns={"er.replayed": replayed})
    losses, terms = losses_of(trainer, batch), trainer.learner.loss(batch)
    torch.testing.assert_close(terms["new"], losses[~replayed].sum() / 8)
    torch.testing.assert_close(terms["replay"], losses[replayed].sum() / 8)


@pytest.mark.parametrize("other", ["gem", "agem"])
def test_others_plan_for_the_batches_that_are_made(other, small_trainer, learn_tasks):
    """Whichever is named first: reference samples belong to steps, of which there are more with the memory among the data."""
    trainer = small_trainer(
        f"strategy={other}", "strategy.memory_size=40", "strategy.plus=[er]", "+plus.er.memory_size=40",
        "+plus.er.mixing=data_set", "+plus.er.weighting=samples", *MIXED[5:],
    )  # fmt: skip
    learn_tasks(trainer, 2)
    plan = trainer.learner.plan(trainer._task)
    assert len(plan.reference) == len(plan.new) > len(trainer._task.shuffled_batches(trainer._task.ids))


# ---- which classes compete ---------------------------------------------------------------------------------------------------


def written_out(logits, labels, classes):
    """−log softmax over these classes, sample by sample."""
    return torch.stack(
        [z[allowed].logsumexp(0) - z[y] for z, y, allowed in zip(logits, labels.tolist(), classes, strict=True)]
    )


def third_task(small_trainer, learn_tasks, task_of, *overrides):
    trainer = small_trainer(*ER, "strategy.weighting=samples", *overrides)
    learn_tasks(trainer, 2)
    trainer.learner.begin_task(task_of(trainer, 2))
    return trainer, trainer.learner.strategies[0]


@pytest.mark.parametrize("scope", ["label_trick", "separated"])
def test_loss_scopes_written_out(scope, small_trainer, learn_tasks, task_of, batch_of):
    trainer, _ = third_task(small_trainer, learn_tasks, task_of, f"strategy.loss_scope={scope}")
    split = trainer.scenario.train
    of_class = {c: (split.labels == c).nonzero()[:3, 0] for c in range(6)}
    batch = batch_of(trainer, of_class[4], torch.cat([of_class[0], of_class[3], of_class[1][:1]]))
    logits, labels = trainer.learner.model(batch.samples.x), batch.samples.y
    competing = {"label_trick": ([4], [0, 1, 3]), "separated": ([4, 5], [0, 1, 2, 3])}[scope]
    losses = written_out(logits, labels, [competing[0]] * 3 + [competing[1]] * 7)
    terms = trainer.learner.loss(batch)
    torch.testing.assert_close(terms["new"], losses[:3].sum() / 10)
    torch.testing.assert_close(terms["replay"], losses[3:].sum() / 10)
    (gradient,) = torch.autograd.grad(terms["new"], trainer.learner.model.head.bias, allow_unused=True)
    assert gradient is None or not gradient[:4].any()  # new samples push no earlier class aside


def test_a_replayed_sample_of_the_current_task_competes_with_new_classes(small_trainer, learn_tasks, task_of, batch_of):
    """What decides is the class, not the memory, from which by update=step samples of the task come as well (SS-IL)."""
    trainer, _ = third_task(small_trainer, learn_tasks, task_of, "strategy.loss_scope=separated", *RESERVOIR[2:],
                            "strategy.update=step")  # fmt: skip
    split = trainer.scenario.train
    batch = batch_of(trainer, (split.labels == 5).nonzero()[:2, 0], (split.labels == 4).nonzero()[:2, 0])
    logits = trainer.learner.model(batch.samples.x)
    losses = written_out(logits, batch.samples.y, [[4, 5]] * 4)
    torch.testing.assert_close(sum(trainer.learner.loss(batch).values()), losses.mean())


def test_separated_needs_one_head_with_new_classes(small_setup):
    for stream in (["scenario=split_digits_task"], ["scenario=permuted_mnist", "scenario.source=digits"]):
        with pytest.raises(ConfigError, match=r"loss_scope=separated .* Valid choices: visible, label_trick"):
            small_setup(*ER, "strategy.loss_scope=separated", "scenario.frozen=null", *stream)


def test_logit_adjustment_written_out(small_trainer, learn_tasks, task_of, batch_of):
    """CE(z + τ log π) with π from all that has been trained on, replayed samples and those of the batch included."""
    trainer, strategy = third_task(
        small_trainer, learn_tasks, task_of, "strategy.adjustment=1.5", "trainer.batch_size=7"
    )
    counts = np.zeros(10)
    for index in (0, 1):
        plan = trainer.learner.plan(task_of(trainer, index)) if index == 0 else trainer._plan
        for ids in (*plan.new, *(plan.replay if index else [])):
            counts += np.bincount(trainer.scenario.train.labels_of(ids), minlength=10)
    assert strategy.prior.counts.tolist() == counts.tolist()
    batch = batch_of(trainer, task_of(trainer, 2).ids[:5], task_of(trainer, 0).ids[:2])
    counts += np.bincount(batch.samples.y, minlength=10)
    log_pi = torch.from_numpy(np.log(counts / counts.sum(), where=counts > 0, out=np.full(10, -np.inf))).float()
    logits = trainer.learner.model(batch.samples.x) + 1.5 * log_pi
    losses = written_out(logits, batch.samples.y, [range(6)] * 7)
    torch.testing.assert_close(sum(trainer.learner.loss(batch).values()), losses.mean())


def test_equally_frequent_classes_need_no_adjustment(small_trainer, learn_tasks, task_of, batch_of):
    trainer, strategy = third_task(small_trainer, learn_tasks, task_of, "strategy.adjustment=2.0")
    ids = torch.cat([(trainer.scenario.train.labels == c).nonzero()[:1, 0] for c in range(6)])
    strategy.prior.counts.copy_(torch.tensor([9] * 6 + [0] * 4))
    batch = batch_of(trainer, ids)
    torch.testing.assert_close(trainer.learner.loss(batch)["new"], losses_of(trainer, batch).mean())
