"""PredKD: every variant of its loss against sums over samples and classes, and what the variants have in common."""

import math

import pytest
import torch
import torch.nn.functional as F

from clbench.errors import ConfigError
from clbench.strategies.predkd import binary_distillation

DISTILLING = ("bce_kd", "balanced_bce", "softmax_kd")
SMALL = ["strategy=predkd", "model.hidden=[6]"]


@pytest.fixture
def in_third_task(small_setup, task_of, batch_of):
    """A function: overrides → (learner whose weights have moved since the third task began, a batch, teacher's logits).

    There are four old classes and two new ones, so that their numbers cannot be mistaken for each other.
    """

    def make(*overrides):
        setup = small_setup(*SMALL, *overrides)
        learner = setup.learner
        for index in range(3):
            learner.train()
            learner.begin_task(task_of(setup, index))
            if index < 2:
                learner.end_task(task_of(setup, index))
        batch = batch_of(setup, task_of(setup, 2).ids[:5])
        teacher = learner.model(batch.samples.x).detach()
        with torch.no_grad():
            for p in learner.model.parameters():
                p.add_(0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
        return learner, batch, teacher

    return make


def bce(logit, target):
    p = 1 / (1 + math.exp(-logit))
    return -target * math.log(p) - (1 - target) * math.log(1 - p)


def softmax(logits, temperature=1.0):
    weights = [math.exp(z / temperature) for z in logits]
    return [w / sum(weights) for w in weights]


def by_hand(loss, z, teacher, y, old, own):
    """The terms (new, predkd) of one sample, from lists of logits; as the authors' code computes them."""
    seen = old + own
    hit = {c: float(c == y) for c in seen}
    sigmoid = {c: 1 / (1 + math.exp(-teacher[c])) for c in old}
    distilled = sum(bce(z[c], sigmoid[c]) for c in old)
    if loss == "bce_kd":
        return 5 * sum(bce(z[c], hit[c]) for c in own) / len(seen), 5 * distilled / len(seen)
    if loss == "balanced_bce":
        k = len(own)
        mean = sum((hit[c] * (k - 1) + 1) / k * bce(z[c], hit[c]) for c in own) / k
        balanced = mean * 2 * k / (1 + 1 / k)
        return balanced * k / len(seen), distilled / len(old) * len(old) / len(seen)
    if loss == "bce_local":
        return 5 * sum(bce(z[c], hit[c]) for c in own) / len(own), 0.0
    if loss == "bce_all":
        return 5 * sum(bce(z[c], hit[c]) for c in seen) / len(seen), 0.0
    new = -math.log(softmax([z[c] for c in seen])[seen.index(y)])
    p, q = softmax([teacher[c] for c in old], 2.0), softmax([z[c] for c in old], 2.0)
    divergence = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    return new, divergence if loss == "softmax_kd" else 0.0


@pytest.mark.parametrize("scope", ["seen", "all"])
@pytest.mark.parametrize("loss", [*DISTILLING, "bce_local", "bce_all", "softmax"])
def test_loss_equals_sums_over_samples_and_classes(loss, scope, in_third_task):
    learner, batch, teacher = in_third_task(f"strategy.loss={loss}", f"scenario.logit_scope={scope}")
    z = learner.model(batch.samples.x).tolist()
    own = [4, 5] if scope == "seen" else [4, 5, 6, 7, 8, 9]
    samples = [
        by_hand(loss, z[i], teacher[i].tolist(), int(batch.samples.y[i]), [0, 1, 2, 3], own) for i in range(len(z))
    ]
    terms = learner.loss(batch)
    assert set(terms) == ({"new", "predkd"} if loss in DISTILLING else {"new"})
    for name, values in zip(("new", "predkd"), zip(*samples, strict=True), strict=True):
        if name in terms:
            assert terms[name].item() == pytest.approx(sum(values) / len(values), rel=1e-5)


def test_without_old_classes_it_is_a_plain_binary_cross_entropy(small_setup, task_of, batch_of):
    setup = small_setup(*SMALL)
    setup.learner.begin_task(task_of(setup, 0))
    batch = batch_of(setup, task_of(setup, 0).ids[:6])
    logits = setup.learner.model(batch.samples.x)[:, :2]
    plain = F.binary_cross_entropy_with_logits(logits, F.one_hot(batch.samples.y, 2).float())
    terms = setup.learner.loss(batch)
    assert set(terms) == {"new"}
    torch.testing.assert_close(terms["new"], 5 * plain)


def test_softmax_distillation_is_lwf(in_third_task, small_setup):
    learner, batch, _ = in_third_task("strategy.loss=softmax_kd")
    lwf = small_setup("strategy=lwf", "model.hidden=[6]").learner
    lwf.model.load_state_dict(learner.model.state_dict())
    lwf.strategies[0].teacher.load_state_dict(learner.strategies[0].teacher.state_dict())
    lwf.resume_at(2)
    ours, theirs = learner.loss(batch), lwf.loss(batch)
    torch.testing.assert_close(ours["new"], theirs["new"])
    torch.testing.assert_close(ours["predkd"], theirs["lwf"])


@pytest.mark.parametrize("loss", DISTILLING)
def test_distillation_pulls_nowhere_at_a_tasks_first_step(loss, small_trainer, learn_tasks, record_terms):
    trainer = small_trainer(*SMALL, f"strategy.loss={loss}", "trainer.lr=0.1")
    rows = record_terms(trainer)
    learn_tasks(trainer, 3)
    norms = {(task, step): terms["predkd"].norm().item() for task, step, terms in rows if "predkd" in terms}
    assert {task for task, _ in norms} == {1, 2}
    assert [norms[task, 0] for task in (1, 2)] == [0, 0]
    assert min(norm for (_, step), norm in norms.items() if step) > 0


def test_gradient_that_is_written_down_is_autograds():
    generator = torch.Generator().manual_seed(0)
    student, teacher = (5 * torch.randn(7, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    student.requires_grad_()
    ours = binary_distillation(student, teacher)
    autograds = F.binary_cross_entropy_with_logits(student, teacher.sigmoid(), reduction="none")
    torch.testing.assert_close(ours, autograds)
    gradients = [torch.autograd.grad(value.square().sum(), student)[0] for value in (ours, autograds)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradient_is_exactly_zero_for_equal_logits(dtype):
    logits = (10 * torch.randn(16, 9)).to(dtype).requires_grad_()
    (gradient,) = torch.autograd.grad(binary_distillation(logits, logits.detach().clone()).sum(), logits)
    assert (gradient == 0).all()


def test_keeps_a_teacher_where_it_distils_only(small_setup):
    kept = {
        loss: small_setup(*SMALL, f"strategy.loss={loss}").learner.extra_bytes() for loss in ("bce_kd", "bce_local")
    }
    model = small_setup(*SMALL).learner.model.state_dict().values()
    assert kept["bce_kd"] - kept["bce_local"] == sum(t.numel() * t.element_size() for t in model)


def test_refused_where_its_equations_say_nothing(small_setup):
    with pytest.raises(ConfigError, match="predkd is not defined for task-incremental scenarios"):
        small_setup("strategy=predkd", "scenario=split_digits_task")
    with pytest.raises(ConfigError, match=r"scenario\.logit_scope=current hides the logits of old classes"):
        small_setup("strategy=predkd", "scenario.logit_scope=current")
