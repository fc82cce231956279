"""EWC: the Fisher information against loops and closed forms, the penalty against explicit sums."""

from functools import cache

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from clbench.compose import compose
from clbench.errors import ConfigError
from clbench.learning.parts import fisher
from clbench.set_up import set_up
from clbench.testing.small_runs import in_double_precision
from clbench.testing.stepping import finish_task


def fisher_diagonal(strategy, task):
    """The estimate that the strategy's options ask for."""
    options = strategy.options
    return fisher.fisher_diagonal(strategy, task, options.fisher, options.fisher_samples, options.fisher_batch_size)


@pytest.fixture
def learning(small_setup, task_of):
    """A function: overrides, index → (double-precision setup in evaluation mode that is learning this task, the task)."""

    def make(*overrides, index=1):
        setup = small_setup("strategy=ewc", *overrides)
        setup.learner.double()
        setup.inputs._scale, setup.inputs._shift = setup.inputs._scale.double(), setup.inputs._shift.double()
        for earlier in range(index + 1):
            setup.learner.begin_task(task_of(setup, earlier))
        setup.learner.eval()
        return setup, task_of(setup, index)

    return make


def visible_classes(setting, index):
    return {"class": range(2 * index + 2), "task": [2 * index, 2 * index + 1], "domain": range(10)}[setting]


def log_probabilities(setup, samples, index):
    """log p (B, visible classes) by slicing, without the masks of the package."""
    logits = setup.learner.model(samples.x)[:, list(visible_classes(setup.scenario.setting, index))]
    return F.log_softmax(logits, dim=1)


def squared_gradient(setup, scalar):
    parts = torch.autograd.grad(scalar, list(setup.learner.model.parameters()), retain_graph=True)
    return torch.cat([part.reshape(-1) for part in parts]).square()


@pytest.mark.parametrize("fisher", fisher.ESTIMATORS)
def test_fisher_equals_a_loop_over_samples(fisher, setting, learning):
    setup, task = learning(f"strategy.fisher={fisher}", "strategy.fisher_batch_size=7", *setting, "model.hidden=[6]",
                           "strategy.fisher_samples=30")  # fmt: skip
    estimate = fisher_diagonal(setup.learner.strategies[0], task)

    generator = task.torch_generator("fisher")
    ids = task.ids[torch.randperm(len(task.ids), generator=generator)][:30]
    samples = task.samples(ids)
    classes = list(visible_classes(setup.scenario.setting, 1))
    log_p = log_probabilities(setup, samples, 1)
    label = torch.tensor([classes.index(y) for y in samples.y.tolist()])
    if fisher == "sample":
        p_of_all = torch.zeros(30, setup.scenario.n_classes, dtype=torch.float64)
        p_of_all[:, classes] = log_p.detach().exp()
        label = torch.tensor([classes.index(y) for y in torch.multinomial(p_of_all, 1, generator=generator)[:, 0]])
    if fisher == "predicted":
        label = log_p.argmax(1)
    total = 0
    if fisher == "batched":
        for part in range(0, 30, 7):
            chosen = range(part, min(part + 7, 30))
            mean = torch.stack([log_p[i, label[i]] for i in chosen]).mean()
            total = total + squared_gradient(setup, mean)
        expected = total / 5
    else:
        for i in range(30):
            for c in range(len(classes)) if fisher == "exact" else [label[i]]:
                weight = log_p[i, c].exp().detach() if fisher == "exact" else 1
                total = total + weight * squared_gradient(setup, log_p[i, c])
        expected = total / 30
    torch.testing.assert_close(estimate, expected, atol=1e-12, rtol=1e-9)


def test_predicted_labels_are_visible_ones_of_single_samples(learning):
    """Not those of outputs to come, and not of a batch's mean gradient, which is about 1/|b| of it (CIFAR-100 of Hsu et al.)."""
    setup, task = learning("strategy.fisher=predicted", "model.hidden=[]", "strategy.fisher_samples=64")
    with torch.no_grad():
        setup.learner.model.head.bias[5] = 100.0  # of a class to come
    strategy = setup.learner.strategies[0]
    ids = task.ids[torch.randperm(len(task.ids), generator=task.torch_generator("fisher"))][:64]
    samples = task.samples(ids)
    p = log_probabilities(setup, samples, 1).exp()  # of classes 0 to 3
    difference = p - F.one_hot(p.argmax(1), 4)
    estimate = fisher_diagonal(strategy, task)
    bias = estimate[-10:]
    torch.testing.assert_close(bias[:4], difference.square().mean(0), atol=1e-12, rtol=1e-9)
    assert not bias[4:].any()
    assert bias.sum() > 2 * difference.mean(0).square().sum()


def test_exact_fisher_of_logistic_regression_is_analytic(learning):
    """For a linear softmax classifier F(W_cj) = mean_x p_c (1 − p_c) x_j² and F(b_c) = mean_x p_c (1 − p_c)."""
    setup, task = learning("strategy.fisher=exact", "model.hidden=[]")
    estimate = fisher_diagonal(setup.learner.strategies[0], task)
    samples = task.samples(task.ids)
    p = torch.zeros(len(task.ids), 10, dtype=torch.float64)
    p[:, :4] = log_probabilities(setup, samples, 1).exp()
    variance = p * (1 - p)
    weights = variance.T @ samples.x.flatten(1).square() / len(p)
    expected = torch.cat([weights.flatten(), variance.mean(0)])
    torch.testing.assert_close(estimate, expected, atol=1e-12, rtol=1e-9)


def test_sampled_labels_come_from_the_model(learning, monkeypatch):
    """Averaged over draws, the sampled estimate is the exact one."""
    setup, task = learning("strategy.fisher=sample", "model.hidden=[4]")
    strategy = setup.learner.strategies[0]
    draws = []
    for seed in range(40):
        monkeypatch.setitem(task.__dict__, "seed", seed)
        draws.append(fisher_diagonal(strategy, task))
    strategy.options.fisher = "exact"
    exact = fisher_diagonal(strategy, task)
    total = torch.stack(draws).sum(1)
    assert abs(total.mean() - exact.sum()) < 4 * total.std() / 40**0.5
    assert total.std() > 0


def test_batch_size_scales_the_batched_estimate_only(learning):
    """At a minimum the gradients of n samples average to 0, so batches of b of them have mean squares of about 1/b."""
    setup, task = learning("strategy.fisher=batched", "strategy.fisher_samples=288", "model.hidden=[]", index=0)
    strategy, model = setup.learner.strategies[0], setup.learner.model
    samples = task.samples(task.ids)
    samples = samples._replace(y=torch.randint(0, 2, samples.y.shape, generator=torch.Generator().manual_seed(0)))
    task.split.labels[task.ids] = samples.y  # noise: fitted to the minimum, its gradients do not vanish one by one
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = strategy.cross_entropy(model(samples.x), samples).mean()
        loss.backward()
        return loss

    optimizer.step(closure)

    def estimate(fisher, batch_size):
        strategy.options.fisher, strategy.options.fisher_batch_size = fisher, batch_size
        return fisher_diagonal(strategy, task)

    per_sample = estimate("empirical", 8)
    torch.testing.assert_close(estimate("batched", 1), per_sample, atol=1e-12, rtol=1e-9)
    assert torch.equal(estimate("empirical", 4), per_sample)
    n = 288
    for b in (4, 8):
        without_replacement = (n - b) / (n - 1) / b
        assert estimate("batched", b).sum() / per_sample.sum() == pytest.approx(without_replacement, rel=0.25)


@cache
def tiny_learner():
    return set_up(compose(["strategy=ewc", "strategy.lam=3", "model.hidden=[3]", "device=cpu"])).learner.double()


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**20), n_tasks=st.integers(1, 5))
def test_sum_over_tasks_in_constant_memory(seed, n_tasks):
    """A (θ − m)² + r equals Σ_i F_i (θ − θ*_i)² from an explicit list, in value and gradient."""
    learner = tiny_learner()
    strategy = learner.strategies[0]
    for buffer in (strategy.importance, strategy.anchor, strategy.remainder):
        buffer.zero_()
    strategy.tasks_learned = 0
    generator = torch.Generator().manual_seed(seed)
    theta = strategy.flat_parameters()
    anchors, fishers = [], []
    for _ in range(n_tasks):
        fisher = torch.rand(theta.shape, generator=generator, dtype=torch.float64)
        fisher[torch.rand(theta.shape, generator=generator) < 0.3] = 0  # parameters no sample depends on
        anchors.append(torch.randn(theta.shape, generator=generator, dtype=torch.float64))
        fishers.append(10 ** float(torch.randn((), generator=generator)) * fisher)
        strategy._add_anchor(fishers[-1], anchors[-1])
        strategy.tasks_learned += 1
    explicit = 1.5 * sum((f * (theta - a).square()).sum() for f, a in zip(fishers, anchors, strict=True))
    penalty = strategy.penalty(None, None)
    torch.testing.assert_close(penalty, explicit)
    parameters = list(learner.model.parameters())
    for ours, listed in zip(
        torch.autograd.grad(penalty, parameters), torch.autograd.grad(explicit, parameters), strict=True
    ):
        torch.testing.assert_close(ours, listed, atol=1e-9, rtol=1e-7)


@pytest.mark.parametrize("mode", ["separate", "online", "average"])
def test_penalty_after_real_tasks(mode, small_trainer, monkeypatch):
    """λ/2 Σ F (θ − θ*)², with the estimates and weights recorded at every task's end."""
    trainer = small_trainer("strategy=ewc", f"strategy.mode={mode}", "strategy.lam=3", "strategy.decay=0.6")
    strategy = trainer.learner.strategies[0]
    recorded = []

    def record(strategy, task, *options):
        recorded.append((fisher_diagonal(strategy, task), strategy.flat_parameters().detach().clone()))
        return recorded[-1][0]

    monkeypatch.setattr("clbench.strategies.ewc.fisher_diagonal", record)
    trainer.fit()
    with torch.no_grad():
        for p in trainer.learner.model.parameters():
            p.add_(0.01 * torch.randn_like(p))
    theta = strategy.flat_parameters()
    fishers, anchors = zip(*recorded, strict=True)
    if mode == "separate":
        expected = 1.5 * sum((f * (theta - a).square()).sum() for f, a in recorded)
    elif mode == "online":
        fisher = sum(0.6 ** (len(fishers) - 1 - i) * f for i, f in enumerate(fishers))
        expected = 1.5 * (fisher * (theta - anchors[-1]).square()).sum()
    else:
        expected = 1.5 * (torch.stack(fishers).mean(0) * (theta - anchors[-1]).square()).sum()
    torch.testing.assert_close(strategy.penalty(None, None), expected, rtol=1e-4, atol=1e-6)


def test_normalised_fisher_has_a_largest_entry_of_one(small_trainer, learn_tasks):
    trainer = small_trainer("strategy=ewc", "strategy.normalise=max", "strategy.mode=online", "strategy.decay=0")
    learn_tasks(trainer, 2)
    assert trainer.learner.strategies[0].importance.max() == 1


def test_backbone_only_leaves_the_head_free(small_trainer, learn_tasks):
    everywhere = small_trainer("strategy=ewc", checkpoint="all")
    backbone = small_trainer("strategy=ewc", "strategy.where=backbone", checkpoint="backbone")
    learn_tasks(everywhere, 1)
    learn_tasks(backbone, 1)
    importance = backbone.learner.strategies[0].importance
    n_backbone = sum(p.numel() for p in backbone.learner.model.backbone.parameters())
    assert importance.shape == (n_backbone,)
    torch.testing.assert_close(importance, everywhere.learner.strategies[0].importance[:n_backbone])


def test_fisher_leaves_batch_norm_alone(small_trainer_with_batch_norm, learn_tasks, monkeypatch):
    trainer = small_trainer_with_batch_norm("strategy=ewc", "strategy.fisher_samples=16")
    before = {}

    def record(strategy, task, *options):
        before.update({name: value.clone() for name, value in trainer.learner.model.state_dict().items()})
        return fisher_diagonal(strategy, task)

    monkeypatch.setattr("clbench.strategies.ewc.fisher_diagonal", record)
    learn_tasks(trainer, 1)
    after = trainer.learner.model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_size_of_the_fisher_information_is_logged(small_trainer, learn_tasks, caplog):
    caplog.set_level("INFO", logger="clbench.strategies.ewc")
    learn_tasks(small_trainer("strategy=ewc"), 1)
    assert "Fisher information (empirical) after task 0: mean" in caplog.text


def test_negative_weight_is_refused(small_setup):
    with pytest.raises(ConfigError, match=r"strategy\.lam=-1\.0 is out of range: it has to be at least 0"):
        small_setup("strategy=ewc", "strategy.lam=-1")


def test_attention_only_of_a_vision_transformer(small_trainer, learn_tasks):
    """Importance is the mean of squared gradients with respect to queries, keys and values, in the order of the network."""
    trainer = small_trainer("strategy=ewc", "strategy.where=attention", "strategy.fisher_samples=6", "model=small_vit",
                            "model.width=8", "model.depth=2", "model.heads=2", "model.image_size=8")  # fmt: skip
    learn_tasks(trainer, 1)
    learner, task = trainer.learner.eval(), trainer._task
    ids = task.ids[torch.randperm(len(task.ids), generator=task.torch_generator("fisher"))][:6]
    samples = task.samples(ids)
    blocks = learner.model.backbone.network.blocks
    attention = [p for block in blocks for p in (block.attn.qkv.weight, block.attn.qkv.bias)]
    total = 0
    for i in range(6):
        log_p = log_probabilities(trainer, samples, 0)[i, samples.y[i]]
        total = total + torch.cat([g.flatten() for g in torch.autograd.grad(log_p, attention)]).square()
    torch.testing.assert_close(learner.strategies[0].importance, total / 6)


# ---- along training -----------------------------------------------------------------------------------------------------------


def flat(trainer):
    return torch.cat([p.detach().reshape(-1) for p in trainer.learner.model.parameters()]).clone()


@pytest.mark.parametrize(
    ("every", "options"),
    [
        (1, []),
        (3, ["strategy.normalise=min_max"]),
        (3, ["strategy.prior_variance=0.01", "strategy.mode=separate"]),
        (2, ["strategy.where=backbone"]),
    ],
)
def test_running_fisher_written_out(every, options, small_trainer, monkeypatch):
    """F ← α mean g² + (1 − α) F with g of the loss on samples alone; it goes on over tasks (EWC++; the A-GEM paper's EWC)."""
    trainer = in_double_precision(
        small_trainer("strategy=ewc", "strategy.fisher=running", "strategy.mode=online", "strategy.decay=0", "trainer.lr=0.3",
                      "strategy.lam=5", f"strategy.running_every={every}", "strategy.running_rate=0.75",
                      "trainer.max_steps_per_task=7", *options)
    )  # fmt: skip
    strategy, model, seen = trainer.learner.strategies[0], trainer.learner.model, []
    loss = trainer.learner.loss_and_outputs

    def remember(batch):
        terms, outputs = loss(batch)
        parts = torch.autograd.grad(terms["new"], list(model.parameters()), retain_graph=True)
        seen.append(torch.cat([g.reshape(-1) for g in parts]))
        return terms, outputs

    monkeypatch.setattr(trainer.learner, "loss_and_outputs", remember)
    running = torch.zeros_like(flat(trainer))
    for _ in range(3):
        seen.clear()
        before_task = flat(trainer)
        trainer.begin_task()
        running = torch.where(flat(trainer) != before_task, 0.0, running)  # rows of new classes
        finish_task(trainer)
        for first in range(0, 7, every):
            running = 0.75 * torch.stack(seen[first : first + every]).square().mean(0) + 0.25 * running
        of_penalised = running[: len(strategy.anchor)]  # the backbone's come first
        torch.testing.assert_close(strategy.running.value, of_penalised, rtol=1e-7, atol=1e-12)
        if "strategy.mode=separate" in options:
            continue
        least, greatest = of_penalised.min(), of_penalised.max()
        is_scaled = "strategy.normalise=min_max" in options
        expected = (of_penalised - least) / (greatest - least) if is_scaled else of_penalised
        torch.testing.assert_close(strategy.importance, expected, rtol=1e-7, atol=1e-12)
        assert torch.equal(strategy.anchor, flat(trainer)[: len(strategy.anchor)])


def test_decayed_penalty(small_trainer, learn_tasks):
    """λ/2 γ F (θ − θ*)² with F ← γ F + F_new: γ is in the penalty as well, and in F not twice."""
    penalties, importances = [], []
    for decayed in (False, True):
        options = ["strategy=ewc", "strategy.mode=online", "strategy.decay=0.6", f"strategy.decayed_penalty={decayed}"]
        trainer = small_trainer(*options, "scenario.tasks=2", "scenario.frozen=null", checkpoint=str(decayed))
        learn_tasks(trainer, 1)
        strategy = trainer.learner.strategies[0]
        with torch.no_grad():
            for p in trainer.learner.model.parameters():
                p.add_(0.1)
        penalties.append(strategy.penalty(None, None))
        importances.append(strategy.importance.clone())
    assert torch.equal(*importances)  # after one task, nothing of it has been decayed
    torch.testing.assert_close(penalties[1], 0.6 * penalties[0])


@pytest.mark.parametrize("mode", ["separate", "online"])
def test_gaussian_prior(mode, small_trainer, monkeypatch):
    """1/(2 σ² n) ‖θ‖² in the first task, and for new rows of the head later; F + 1/(σ² n) where it has been learned."""
    trainer = small_trainer("strategy=ewc", "strategy.prior_variance=0.02", "strategy.lam=3", f"strategy.mode={mode}",
                            "trainer.lr=0.1")  # fmt: skip
    strategy = trainer.learner.strategies[0]
    recorded = []

    def record(strategy, task, *options):
        recorded.append((fisher_diagonal(strategy, task), flat(trainer)))
        return recorded[-1][0]

    monkeypatch.setattr("clbench.strategies.ewc.fisher_diagonal", record)
    trainer.begin_task()
    p = 1 / (0.02 * len(trainer._task.ids))
    torch.testing.assert_close(strategy.penalty(None, None), p / 2 * flat(trainer).square().sum())
    finish_task(trainer)
    torch.testing.assert_close(strategy.importance, recorded[0][0] + p)
    before = flat(trainer)
    trainer.begin_task()
    new = flat(trainer) != before
    assert 0 < new.sum() < len(new) / 2
    with torch.no_grad():
        for parameter in trainer.learner.model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    p_now = 1 / (0.02 * len(trainer._task.ids))
    theta = flat(trainer)
    held = torch.where(new, 0.0, (recorded[0][0] + p) * (theta - recorded[0][1]).square())
    expected = 1.5 * held.sum() + p_now / 2 * theta[new].square().sum()
    torch.testing.assert_close(strategy.penalty(None, None), expected)
    finish_task(trainer)
    old = torch.where(new, 0.0, recorded[0][0] + p)
    torch.testing.assert_close(strategy.importance, old + recorded[1][0] + torch.where(new, p_now, 0.0))


def test_options_that_contradict_each_other_are_refused(small_setup):
    with pytest.raises(ConfigError, match=r"decayed_penalty=true has no meaning with strategy\.mode=separate"):
        small_setup("strategy=ewc", "strategy.decayed_penalty=true")
    with pytest.raises(ConfigError, match=r"prior_variance has no meaning with strategy\.mode=average"):
        small_setup("strategy=ewc", "strategy.prior_variance=1", "strategy.mode=average")


def test_scaled():
    """The smallest value is not always 0, as it is where a pixel never changes."""
    values = torch.tensor([2.0, 4.0, 6.0])
    assert torch.equal(fisher.scaled(values, "none"), values)
    torch.testing.assert_close(fisher.scaled(values, "max"), torch.tensor([1 / 3, 2 / 3, 1.0]))
    torch.testing.assert_close(fisher.scaled(values, "min_max"), torch.tensor([0.0, 0.5, 1.0]))
    for how in ("max", "min_max"):  # nothing was learned
        assert torch.equal(fisher.scaled(torch.zeros(3), how), torch.zeros(3))
