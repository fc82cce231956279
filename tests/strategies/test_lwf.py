"""LwF against autograd on the textbook formula."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from clbench.strategies.lwf import distillation


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 2**20),
    n_old=st.integers(1, 6),
    n_new=st.integers(0, 4),
    temperature=st.floats(0.5, 5),
    scale=st.floats(0.1, 20),
)
def test_value_and_gradient_equal_autograd_on_the_kl_divergence(seed, n_old, n_new, temperature, scale):
    generator = torch.Generator().manual_seed(seed)
    student = scale * torch.randn(5, n_old + n_new, generator=generator, dtype=torch.float64)
    teacher = scale * torch.randn(5, n_old + n_new, generator=generator, dtype=torch.float64)
    old = torch.randperm(n_old + n_new, generator=generator) < n_old
    student.requires_grad_()
    value = distillation(student, teacher, old, torch.tensor(temperature, dtype=torch.float64))
    reference = F.kl_div(
        F.log_softmax(student[:, old] / temperature, dim=1),
        F.log_softmax(teacher[:, old] / temperature, dim=1),
        reduction="batchmean",
        log_target=True,
    )
    torch.testing.assert_close(value, reference, atol=1e-10, rtol=1e-8)
    ours, theirs = (torch.autograd.grad(v, student)[0] for v in (value, reference))
    torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=1e-8)
    assert (ours[:, ~old] == 0).all()


def test_gradient_is_exactly_zero_for_equal_logits():
    logits = (30 * torch.randn(16, 10)).requires_grad_()
    value = distillation(logits, logits.detach().clone(), torch.arange(10) < 7, torch.tensor(2.0))
    (gradient,) = torch.autograd.grad(value, logits)
    assert value == 0
    assert (gradient == 0).all()


@pytest.mark.parametrize("squared", [False, True])
def test_term_in_class_incremental_streams(squared, small_setup, task_of, batch_of):
    """λ T² KL over the outputs of earlier tasks, on the new samples, from a teacher that stays as it was."""
    setup = small_setup("strategy=lwf", "strategy.lam=0.7", f"strategy.scale_by_temperature={squared}")
    learner = setup.learner
    for index in (0, 1):
        learner.train()
        learner.begin_task(task_of(setup, index))
        if index == 0:
            learner.end_task(task_of(setup, 0))
    batch = batch_of(setup, task_of(setup, 1).ids[:6])
    target = learner.model(batch.samples.x).detach()[:, :2]
    with torch.no_grad():
        for p in learner.model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    student = learner.model(batch.samples.x)[:, :2]
    log_p, log_q = F.log_softmax(student / 2, 1), F.log_softmax(target / 2, 1)
    expected = 0.7 * (4 if squared else 1) * F.kl_div(log_p, log_q, log_target=True, reduction="batchmean")
    torch.testing.assert_close(learner.loss(batch)["lwf"], expected)


def test_term_in_task_incremental_streams_is_a_sum_over_earlier_heads(small_setup, task_of, batch_of):
    options = "scenario=split_digits_task", "strategy.lam=1.0"
    learner, batch, student, teacher = in_third_task(small_setup, task_of, batch_of, *options)
    expected = sum(
        F.kl_div(F.log_softmax(student[:, h] / 2, 1), F.log_softmax(teacher[:, h] / 2, 1), log_target=True,
                 reduction="batchmean")
        for h in ([0, 1], [2, 3])
    )  # fmt: skip
    torch.testing.assert_close(learner.loss(batch)["lwf"], expected)


def test_only_new_samples_are_distilled(small_setup, task_of, batch_of):
    setup = small_setup("strategy=lwf")
    learner = setup.learner
    learner.begin_task(task_of(setup, 0))
    learner.end_task(task_of(setup, 0))
    learner.train()
    learner.begin_task(task_of(setup, 1))
    with torch.no_grad():
        learner.model.head.weight.add_(0.3)
        learner.model.head.weight[0].mul_(3)
    new, old = task_of(setup, 1).ids[:6], task_of(setup, 0).ids[:5]
    torch.testing.assert_close(
        learner.loss(batch_of(setup, new, old))["lwf"], learner.loss(batch_of(setup, new))["lwf"]
    )


def test_teacher_does_not_change_within_a_task(small_trainer_with_batch_norm, learn_tasks, monkeypatch):
    """Neither its weights nor its BatchNorm statistics, and it is never in training mode."""
    trainer = small_trainer_with_batch_norm("strategy=lwf")
    teacher = trainer.learner.strategies[0].teacher
    learn_tasks(trainer, 1)
    snapshots = []
    images = trainer.inputs.plain(trainer.scenario.train, torch.arange(2)).x
    step = trainer._train_step

    def spy(*arguments):
        step(*arguments)
        snapshots.append({name: value.clone() for name, value in teacher.weights().items()})
        with torch.no_grad():  # BatchNorm in training would look at both images
            torch.testing.assert_close(teacher(images)[:1], teacher(images[:1]))

    monkeypatch.setattr(trainer, "_train_step", spy)
    at_start = {name: value.clone() for name, value in trainer.learner.model.backbone.state_dict().items()}
    trainer.task = 1
    trainer.fit_task()
    for snapshot in snapshots:
        assert all(torch.equal(snapshot[f"backbone.{name}"], value) for name, value in at_start.items())
    assert not torch.equal(trainer.learner.model.backbone.conv1.weight, teacher.weights()["backbone.conv1.weight"])


@pytest.mark.parametrize(("policy", "is_zero"), [("train", False), ("freeze_after_first_task", True)])
def test_batch_norm_decides_whether_the_first_gradient_is_zero(
    policy, is_zero, small_trainer_with_batch_norm, learn_tasks, record_terms
):
    """A student that normalises with batch statistics differs from its teacher even with equal weights."""
    trainer = small_trainer_with_batch_norm("strategy=lwf", f"trainer.batch_norm={policy}")
    rows = record_terms(trainer)
    learn_tasks(trainer, 2)
    first = next(terms for task, step, terms in rows if (task, step) == (1, 0))
    assert (first["lwf"].norm() == 0) == is_zero


# ---- other weights, other outputs ---------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**20), n_old=st.integers(1, 5), n_new=st.integers(1, 4), temperature=st.floats(0.5, 5))
def test_classes_that_the_teacher_does_not_know_have_probability_zero(seed, n_old, n_new, temperature):
    """Zeros appended to the targets, as in van de Ven's code, whose cross-entropy differs by the teacher's entropy."""
    generator = torch.Generator().manual_seed(seed)
    n, T = n_old + n_new, torch.tensor(temperature, dtype=torch.float64)
    student = (5 * torch.randn(6, n, generator=generator, dtype=torch.float64)).requires_grad_()
    teacher = 5 * torch.randn(6, n, generator=generator, dtype=torch.float64)
    old = torch.arange(n) < n_old
    ours = distillation(student, teacher, torch.ones(n, dtype=torch.bool), T, old)
    p = torch.cat([F.softmax(teacher[:, :n_old] / T, 1), torch.zeros(6, n_new, dtype=torch.float64)], 1)
    cross_entropy = -(p * F.log_softmax(student / T, 1)).sum(1).mean()
    entropy = torch.special.entr(p).sum(1).mean()
    torch.testing.assert_close(ours, cross_entropy - entropy, atol=1e-10, rtol=1e-8)
    gradients = (torch.autograd.grad(value, student)[0] for value in (ours, cross_entropy))
    torch.testing.assert_close(*gradients, atol=1e-10, rtol=1e-8)


def in_third_task(small_setup, task_of, batch_of, *overrides):
    """(learner, batch, logits of the student, logits of the teacher): two tasks are over, and the weights have moved since."""
    setup = small_setup("strategy=lwf", "strategy.lam=0.7", *overrides)
    learner = setup.learner
    for index in (0, 1):
        learner.begin_task(task_of(setup, index))
        learner.end_task(task_of(setup, index))
    learner.train()
    learner.begin_task(task_of(setup, 2))
    batch = batch_of(setup, task_of(setup, 2).ids[:6])
    teacher = learner.model(batch.samples.x).detach()
    with torch.no_grad():
        for p in learner.model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return learner, batch, learner.model(batch.samples.x), teacher


def divergence(student, of_student, teacher, of_teacher):
    """KL at T = 2 of softmaxes over lists of outputs."""
    log_q = F.log_softmax(student / 2, 1) if of_student is None else F.log_softmax(student[:, of_student] / 2, 1)
    log_p = F.log_softmax(teacher[:, of_teacher] / 2, 1)
    return (log_p.exp() * (log_p - log_q[:, : len(of_teacher)])).sum(1).mean()


@pytest.mark.parametrize(("scope", "student", "teacher"), [("seen", 6, 4), ("current", 6, 4), ("all", 10, 10)])
def test_distilled_over_all_outputs_seen(scope, student, teacher, small_setup, task_of, batch_of):
    learner, batch, z, target = in_third_task(
        small_setup, task_of, batch_of, "strategy.outputs=seen", f"scenario.logit_scope={scope}"
    )
    expected = 0.7 * divergence(z, list(range(student)), target, list(range(teacher)))
    torch.testing.assert_close(learner.loss(batch)["lwf"], expected)


DOMAINS = ["scenario=permuted_mnist", "scenario.source=digits", "scenario.frozen=null", "scenario.n_tasks=3"]


@pytest.mark.parametrize("weighting", ["one", "tasks"])
@pytest.mark.parametrize(
    ("stream", "heads"),
    [([], [range(4)]), (["scenario=split_digits_task"], [range(2), range(2, 4)]), (DOMAINS, [range(10)])],
    ids=["class", "task", "domain"],
)
def test_factors_of_the_third_task(stream, heads, weighting, small_setup, task_of, batch_of):
    """Two times the mean over earlier heads, and with weights 1/3 and 2/3: so that KD has 4/3, as in Avalanche's list."""
    options = ["strategy.factor=tasks", f"strategy.weighting={weighting}"]
    learner, batch, z, target = in_third_task(small_setup, task_of, batch_of, *stream, *options)
    mean = sum(divergence(z, list(head), target, list(head)) for head in heads) / len(heads)
    terms = learner.loss(batch)
    torch.testing.assert_close(terms["lwf"], 0.7 * (4 / 3 if weighting == "tasks" else 2) * mean)
    plain = learner.strategies[0].cross_entropy(z, batch.samples).mean()
    torch.testing.assert_close(terms["new"], plain / 3 if weighting == "tasks" else plain)


def test_the_loss_of_another_strategy_is_weighed_too(small_setup, task_of, batch_of):
    setup = small_setup("strategy=er", "strategy.memory_size=40", "strategy.plus=[lwf]", "+plus.lwf.weighting=tasks")
    learner = setup.learner
    learner.begin_task(task_of(setup, 0))
    batch = batch_of(setup, task_of(setup, 0).ids[:4], task_of(setup, 0).ids[4:7])
    alone = learner.strategies[0].data_loss(batch, learner.outputs(batch))
    assert learner.loss(batch) == alone  # 1/k of the first task
    learner.plan(task_of(setup, 0))
    learner.end_task(task_of(setup, 0))
    learner.begin_task(task_of(setup, 1))
    alone = learner.strategies[0].data_loss(batch, learner.outputs(batch))
    terms = learner.loss(batch)
    assert all(terms[name] == alone[name] / 2 for name in ("new", "replay"))
