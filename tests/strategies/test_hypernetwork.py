"""Hypernetwork learning: its regulariser and look-ahead against loops, its networks against the target network's own."""

import copy
import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from clbench.errors import ConfigError
from clbench.learning.base import Batch
from clbench.scenarios.task import Task
from clbench.seeding import torch_generator

SMALL = ["strategy=hypernetwork", "strategy.chunk_size=300", "strategy.hidden=[5]", "strategy.embedding_size=4",
         "strategy.chunk_embedding_size=3", "strategy.state_size=6"]  # fmt: skip
TASK = [*SMALL, "scenario=split_digits_task", "model.hidden=[16]"]
KINDS = {
    "chunked": [],
    "recurrent": ["strategy.kind=recurrent"],
    "growing": ["strategy.kind=recurrent", "strategy.growth=true"],
    "magnitude_invariant": ["strategy.magnitude_invariant=true"],
    "importance": ["strategy.regulariser=importance", "strategy.importance_samples=40"],
    "online": ["strategy.targets=online"],
}


@pytest.fixture
def learning(small_trainer, learn_tasks):
    """A function: number of tasks, overrides → (trainer that has learned them and begun the next, its strategy)."""

    def make(n_tasks, *overrides, checkpoint="unused"):
        trainer = small_trainer(*TASK, *overrides, checkpoint=checkpoint)
        trainer.config.trainer.max_steps_per_task = 4
        learn_tasks(trainer, n_tasks)
        trainer.begin_task()
        return trainer, trainer.learner.strategies[0]

    return make


def batch(trainer, step=0):
    """The batch of a step of the task being learned."""
    ids = trainer.steps[step].ids
    return Batch(
        trainer.inputs.training(trainer.scenario.train, ids, trainer.task, step), ids, trainer.steps[step].n_new
    )


def moved(strategy, scale=0.1):
    """Parameters θ of h, away from where they are."""
    generator = torch.Generator().manual_seed(3)
    theta = strategy.parameters_of_h()
    return {name: t.detach() + scale * torch.randn(t.shape, generator=generator) for name, t in theta.items()}


def brute_force_penalty(strategy, theta, targets, importance=None, tasks=None):
    """The module docstring's sum, weight by weight, of a copy of h with parameters ``theta``."""
    total = 0.0
    tasks = range(strategy.tasks_learned) if tasks is None else tasks
    for j in tasks:
        h = copy.deepcopy(strategy.hypernetwork)
        own = {name: strategy.get_buffer(f"own_{name.replace('.', '_')}")[j]
               for name in theta if strategy.options.growth and name.split(".")[0] in ("input_maps", "output_map")}  # fmt: skip
        h.load_state_dict({**theta, **own})
        made = h(strategy.embeddings[j]).tolist()
        for k, (now, before) in enumerate(zip(made, targets[j].tolist(), strict=True)):
            total += (1.0 if importance is None else float(importance[j, k])) * (before - now) ** 2
    return total / len(tasks)


# ---- generated weights ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [["model.hidden=[16,7]"], ["model=resnet32", "model.depth=8"]])
def test_generated_weights_are_the_targets_parameters_one_for_one(model, small_setup):
    setup = small_setup(*SMALL, "scenario=split_digits_task", "strategy.chunk_size=997", *model)
    strategy, model = setup.learner.strategies[0], setup.learner.model
    made = strategy._named(strategy._made_now())
    own = dict(model.named_parameters())
    assert list(made) == list(own)
    assert {name: t.shape for name, t in made.items()} == {name: p.shape for name, p in own.items()}
    assert sum(t.numel() for t in made.values()) == strategy.hypernetwork.n_weights == strategy._made_now().numel()
    assert torch.equal(torch.cat([t.flatten() for t in made.values()]), strategy._made_now())
    # The network they make is the target network with these parameters.
    twin = copy.deepcopy(model)
    twin.load_state_dict({**model.state_dict(), **{name: t.detach() for name, t in made.items()}})
    x = torch.randn(6, *setup.scenario.input_shape)
    features, logits = model.eval().with_weights(made, x)
    torch.testing.assert_close(logits, twin.eval()(x))
    torch.testing.assert_close(features, twin.features(x))


def test_only_the_hypernetwork_and_one_embedding_are_trained(small_setup):
    setup = small_setup(*TASK)
    strategy = setup.learner.strategies[0]
    trained = setup.learner.trainable()
    assert not setup.learner.model.trained()
    assert sum(p.numel() for p in trained.values()) == 4 + sum(p.numel() for p in strategy.hypernetwork.parameters())


def test_frozen_stages_are_not_made(small_setup):
    setup = small_setup(*SMALL, "scenario=split_digits_task", "model.hidden=[16,7]", "model.frozen=1")
    strategy = setup.learner.strategies[0]
    assert list(strategy._named(strategy._made_now())) == [
        "backbone.layers.3.weight",
        "backbone.layers.3.bias",
        "head.weight",
        "head.bias",
    ]


def test_initial_weights_come_from_the_seed(small_setup):
    first, again, other = (small_setup(*TASK, f"seed={seed}").learner.strategies[0] for seed in (0, 0, 1))
    assert torch.equal(first._made_now(), again._made_now())
    assert not torch.equal(first._made_now(), other._made_now())


# ---- the regulariser --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lookahead", ["true", "false"])
def test_nothing_is_regularised_in_the_first_task(lookahead, learning):
    trainer, strategy = learning(0, f"strategy.lookahead={lookahead}")
    assert set(trainer.learner.loss(batch(trainer))) == {"new"}
    gradient = torch.randn(sum(p.numel() for p in trainer.parameters))
    assert torch.equal(trainer.learner.edit_gradients(gradient, batch(trainer)), gradient)
    assert not strategy.looks_ahead


@pytest.mark.parametrize("kind", KINDS)
def test_without_look_ahead_it_is_zero_at_a_tasks_first_step(kind, learning, record_terms):
    trainer, _ = learning(0, "strategy.lookahead=false", *KINDS[kind])
    trainer._run_task()
    trainer.end_task()
    rows = record_terms(trainer)
    trainer.fit_task()
    gradients = [terms["hypernetwork"] for task, _, terms in rows if task == 1]
    assert not gradients[0].any()
    assert gradients[1].any()


@pytest.mark.parametrize("kind", KINDS)
def test_the_regulariser_is_its_equation(kind, learning):
    trainer, strategy = learning(3, *KINDS[kind])
    assert strategy.tasks_learned == 3
    targets = strategy.made_for(torch.arange(3), strategy.parameters_of_h()).detach()
    assert strategy.output_change(strategy.parameters_of_h()) == 0
    theta = moved(strategy)
    importance = strategy.importance if kind == "importance" else None
    expected = brute_force_penalty(strategy, theta, targets, importance)
    assert strategy.output_change(theta).item() == pytest.approx(expected, rel=1e-4)
    assert expected > 0
    # As a loss term it is β times that.
    strategy.options.lookahead = False
    with torch.no_grad():
        for name, parameter in strategy.hypernetwork.named_parameters():
            parameter.copy_(theta[name])
    if kind == "growing":  # whose core stays what it was
        expected = brute_force_penalty(strategy, strategy.parameters_of_h(), targets)
    term = strategy.penalty(batch(trainer), None)
    assert term.item() == pytest.approx(float(strategy.beta) * expected, rel=1e-4)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("kind", ["chunked", "recurrent", "importance"])
def test_the_look_ahead_takes_the_gradient_where_the_optimizer_would_go(kind, optimizer, learning):
    """Brute force: step a copy with the task's gradient alone, and differentiate the penalty there."""
    trainer, strategy = learning(
        2, f"trainer.optimizer={optimizer}", "trainer.lr=0.002", "strategy.beta=3.0", *KINDS[kind]
    )
    trainer.advance()  # so that the optimizer has a momentum
    targets = strategy.targets[:2].clone()
    loss = strategy.data_loss(batch(trainer, 1), strategy.outputs(batch(trainer, 1)))["new"]
    task_gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, trainer.parameters)])
    applied = {}
    step = trainer.optimizer.step

    def spy():
        applied["gradient"] = torch.cat([p.grad.flatten() for p in trainer.parameters])
        step()

    trainer.optimizer.step = spy

    twin = copy.deepcopy(strategy)
    twin_optimizer = copy.deepcopy(trainer.optimizer)
    of_twin = list(twin.parameters())
    before = [p.detach().clone() for p in of_twin]
    own = (
        torch.optim.SGD(of_twin, lr=0.002, momentum=0.9) if optimizer == "sgd" else torch.optim.Adam(of_twin, lr=0.002)
    )
    own.load_state_dict(twin_optimizer.state_dict())
    for p, g in zip(of_twin, task_gradient.split([p.numel() for p in of_twin]), strict=True):
        p.grad = g.view_as(p).clone()
    own.step()
    assert any(not torch.equal(p, b) for p, b in zip(of_twin, before, strict=True))
    change = 0.0
    for j in range(2):
        squares = (twin.hypernetwork(twin.embeddings[j]) - targets[j]).square()
        change = change + (squares * strategy.importance[j] if kind == "importance" else squares).sum()
    penalty = 3.0 / 2 * change
    parts = torch.autograd.grad(penalty, of_twin, materialize_grads=True)
    expected = task_gradient + torch.cat([part.flatten() for part in parts])

    trainer.advance()
    torch.testing.assert_close(applied["gradient"], expected, rtol=1e-3, atol=1e-5 * expected.abs().max().item())
    assert not torch.allclose(applied["gradient"], task_gradient, rtol=0.01)
    assert not applied["gradient"][:4].sub(task_gradient[:4]).any()  # e_T sees only the task's loss


def test_the_look_ahead_changes_the_gradient(learning):
    """At a task's first step the plain penalty has none; the look-ahead one has."""
    gradients = {}
    for lookahead in ("true", "false"):
        trainer, _ = learning(1, f"strategy.lookahead={lookahead}", "strategy.beta=5.0", checkpoint=lookahead)
        trainer.advance()
        gradients[lookahead] = torch.cat([p.grad.flatten() for p in trainer.parameters])
    assert not torch.allclose(gradients["true"], gradients["false"], rtol=0.01)
    assert torch.equal(gradients["true"][:4], gradients["false"][:4])


def test_kept_and_computed_targets_train_the_same(small_trainer):
    cached, online = (small_trainer(*TASK, f"strategy.targets={t}", checkpoint=t) for t in ("cached", "online"))
    for trainer in (cached, online):
        trainer.fit()
    for mine, its in zip(cached.parameters, online.parameters, strict=True):
        torch.testing.assert_close(mine, its)


def test_a_large_beta_keeps_old_outputs(small_trainer):
    """β decides how far the weights of earlier tasks move."""
    drift = {}
    for beta in (0.0, 10.0):
        trainer = small_trainer(*TASK, f"strategy.beta={beta}", "trainer.max_steps_per_task=30", "trainer.optimizer=adam",
                                "trainer.lr=0.003", checkpoint=str(beta))  # fmt: skip
        trainer.fit()
        table = trainer.method
        drift[beta] = table[(table.quantity == "output_drift") & (table.task_learning == 4)].value.mean()
    assert drift[10.0] < drift[0.0] / 3


def test_some_of_the_earlier_tasks_by_chance(learning):
    """Every pair of four tasks comes equally often, and a step's penalty is the mean over its pair."""
    _, strategy = learning(4, "strategy.regularised_tasks=2")
    theta = moved(strategy)
    counts = dict.fromkeys(itertools.combinations(range(4), 2), 0)
    for _ in range(600):
        tasks = strategy._regularised_tasks()
        counts[tuple(sorted(tasks.tolist()))] += 1
        strategy.after_step(1, None)
    assert sum((n - 100) ** 2 / 100 for n in counts.values()) < 20.5  # χ², 5 degrees of freedom, p = 0.001
    tasks = strategy._regularised_tasks().tolist()
    targets = strategy.targets
    assert strategy.output_change(theta).item() == pytest.approx(
        brute_force_penalty(strategy, theta, targets, tasks=tasks), rel=1e-4
    )


def test_importance_is_the_scaled_fisher_information(learning):
    trainer, strategy = learning(1, *KINDS["importance"], "trainer.max_steps_per_task=2")
    task = Task(0, 5, [0, 1], trainer.config.trainer, trainer.config.seed, trainer.scenario.train, trainer.inputs)
    drawn = torch.randperm(len(task.ids), generator=torch_generator(trainer.config.seed, "importance", 0))[:40]
    x, y, _ = task.samples(task.ids[drawn])
    learned = strategy.parameters_of_h()
    weights = strategy._run(strategy.embeddings[0], learned).detach().requires_grad_()
    total = torch.zeros_like(weights)
    for image, label in zip(x, y, strict=True):
        logits = trainer.learner.model.with_weights(strategy._named(weights), image[None])[1][:, :2]
        (gradient,) = torch.autograd.grad(F.cross_entropy(logits, label[None]), weights)
        total += gradient.square()
    torch.testing.assert_close(strategy.importance[0], total / total.mean(), rtol=1e-3, atol=1e-5)
    assert strategy.importance[0].mean().item() == pytest.approx(1, rel=1e-4)


# ---- embeddings, growth, statistics -------------------------------------------------------------------------------------------


def test_embeddings_are_drawn_for_every_task_and_kept(small_trainer, learn_tasks):
    trainer = small_trainer(
        *TASK, "trainer.reset_optimizer=false", "trainer.optimizer=adam", "trainer.weight_decay=0.1"
    )
    strategy = trainer.learner.strategies[0]
    learn_tasks(trainer, 2)
    kept = strategy.embeddings[:2].clone()
    trainer.begin_task()
    drawn = torch.randn(4, generator=torch_generator(0, "task_embedding", 2))
    assert torch.equal(strategy.embedding.detach(), drawn)
    trainer._run_task()
    trainer.end_task()
    assert torch.equal(strategy.embeddings[:2], kept)
    assert torch.equal(strategy.embeddings[2], strategy.embedding.detach())
    assert not torch.equal(strategy.embeddings[2], drawn)


def test_growth_fixes_the_core_and_gives_every_task_its_maps(small_trainer, learn_tasks):
    trainer = small_trainer(*TASK, *KINDS["growing"], "trainer.weight_decay=0.1", "strategy.beta=0.0")
    strategy = trainer.learner.strategies[0]
    learn_tasks(trainer, 1)
    core = {name: t.detach().clone() for name, t in strategy.parameters_of_h().items() if "state_maps" in name}
    assert torch.equal(core["state_maps.weight"], strategy.hypernetwork.state_maps.weight)
    maps = strategy.own_output_map_weight[0].clone()
    learn_tasks(trainer, 2)
    for name, kept in core.items():
        assert torch.equal(strategy.parameters_of_h()[name], kept)
    assert torch.equal(strategy.own_output_map_weight[0], maps)
    assert not torch.equal(strategy.own_output_map_weight[1], maps)
    # The first task's network: its own maps, the core, and the chunk embeddings as they are now.
    h = copy.deepcopy(strategy.hypernetwork)
    own = {f"{layer}.{part}": getattr(strategy, f"own_{layer}_{part}")[0]
           for layer in ("input_maps", "output_map") for part in ("weight", "bias")}  # fmt: skip
    h.load_state_dict({**dict(h.named_parameters()), **core, **own})
    torch.testing.assert_close(
        strategy.made_for(torch.tensor([0]), strategy.parameters_of_h())[0], h(strategy.embeddings[0])
    )
    H, d_in, chunk = 6, 7, 300
    table = trainer.method
    per_task = table[(table.quantity == "parameters_per_task")].value.unique()
    assert per_task.tolist() == [4 + 4 * (d_in + 1) * H + (H + 1) * chunk]


def test_every_task_has_its_batch_norm_statistics(small_trainer, learn_tasks):
    trainer = small_trainer(*SMALL, "scenario=split_digits_task", "model=resnet32", "model.depth=8")
    strategy = trainer.learner.strategies[0]
    learn_tasks(trainer, 2)
    trainer.learner.eval()
    x = trainer.inputs.plain(trainer.scenario.test, torch.arange(5)).x
    kept = {name: strategy.statistics.of(0)[name].clone() for name in strategy.statistics.of(0)}
    assert any(not torch.equal(t, strategy.statistics.of(1)[name]) for name, t in kept.items())
    before = strategy.predict_task(x, 0)
    for name in kept:
        trainer.learner.model.get_buffer(name).add_(7)
    assert torch.equal(strategy.predict_task(x, 0), before)
    twin = copy.deepcopy(trainer.learner.model)
    made = strategy._named(strategy._run(strategy.embeddings[0], strategy.parameters_of_h()).detach())
    twin.load_state_dict({**twin.state_dict(), **made, **kept})
    torch.testing.assert_close(before[:, :2], twin(x)[:, :2])


# ---- predictions ----------------------------------------------------------------------------------------------------------


def networks_logits(strategy, x, n):
    return [strategy._logits(x, j).double() for j in range(n)]


@pytest.mark.parametrize("stream", [["scenario=split_digits"], ["scenario=permuted_mnist", "scenario.source=digits",
                                    "scenario.frozen=null", "scenario.n_tasks=3", "model=mlp"]])  # fmt: skip
def test_the_task_with_the_lowest_entropy_is_believed(stream, small_trainer):
    trainer = small_trainer(*SMALL, *stream, "model.hidden=[16]", "strategy.temperature=0.5")
    trainer.fit()
    strategy = trainer.learner.eval().strategies[0]
    n, domain = trainer.scenario.n_tasks, trainer.scenario.setting == "domain"
    x = trainer.inputs.plain(trainer.scenario.test, torch.arange(0, 300, 7)).x
    with torch.no_grad():
        logits = networks_logits(strategy, x, n)
        predicted = trainer.learner.predict(x, torch.zeros(len(x), dtype=torch.int64))
    chosen = []
    for b in range(len(x)):
        entropies, beliefs = [], []
        for j in range(n):
            own = logits[j][b] if domain else logits[j][b, 2 * j : 2 * j + 2]
            p = (own / 0.5).softmax(0)
            entropies.append(-(p * p.log()).sum().item())
            beliefs.append(own.softmax(0))
        best = min(range(n), key=entropies.__getitem__)
        chosen.append(best)
        expected = torch.zeros(10, dtype=torch.float64)
        for j in range(n):
            weight = 1 - 1e-4 if j == best else 1e-4 / (n - 1)
            expected[slice(None) if domain else slice(2 * j, 2 * j + 2)] += weight * beliefs[j]
        torch.testing.assert_close(predicted[b].double().exp(), expected, rtol=1e-3, atol=1e-6)
    assert len(set(chosen)) > 1
    assert predicted.isfinite().all()


def test_it_infers_the_task_where_networks_are_sure_of_their_own_images(small_trainer):
    trainer = small_trainer(*SMALL, "scenario=split_digits", "model.hidden=[16]")
    trainer.fit()
    strategy = trainer.learner.eval().strategies[0]
    sure, unsure = torch.tensor([8.0, -8.0]), torch.tensor([0.1, 0.0])

    def logits(x, task):
        own = torch.stack([sure if int(image.sum()) == task else unsure for image in x])
        return F.pad(
            own, (2 * task, 8 - 2 * task), value=50.0
        )  # other heads' outputs, however large, are not looked at

    strategy._logits = logits
    x = torch.zeros(5, 1, 8, 8)
    x[:, 0, 0, 0] = torch.arange(5.0)
    assert trainer.learner.predict(x, None).argmax(1).tolist() == [0, 2, 4, 6, 8]


@pytest.mark.parametrize(("temperature", "believed"), [(1.0, 0), (4.0, 1)])
def test_the_temperature_can_decide_which_network_is_believed(temperature, believed, small_trainer):
    """Of logits (−1, 1, −2) and (1, 1, −6) the first have the lower entropy at T = 1 (0.52, 0.70), not at T = 4 (1.05, 0.92)."""
    trainer = small_trainer(*SMALL, "scenario=split_digits", "scenario.classes=[0,1,2,3,4,5]", "scenario.increment=3",
                            "scenario.class_order=[0,1,2,3,4,5]", f"strategy.temperature={temperature}")  # fmt: skip
    trainer.fit()
    own = torch.tensor([[-1.0, 1.0, -2.0], [1.0, 1.0, -6.0]])
    trainer.learner.strategies[0]._logits = lambda x, task: F.pad(own[task].expand(len(x), 3), (3 * task, 3 - 3 * task))
    chosen = trainer.learner.eval().predict(torch.zeros(2, 1, 8, 8), None).argmax(1)
    assert (chosen // 3 == believed).all()


def test_a_given_task_takes_its_network_alone_or_in_a_mixed_batch(small_trainer):
    trainer = small_trainer(*TASK)
    trainer.fit()
    learner = trainer.learner.eval()
    assert learner.separates_tasks
    samples = trainer.inputs.plain(trainer.scenario.test, torch.arange(0, 355, 31))
    with torch.no_grad():
        mixed = learner.predict(samples.x, samples.task)
        for row, (image, task) in enumerate(zip(samples.x, samples.task.tolist(), strict=True)):
            alone = learner.predict_task(image[None], task)[0]
            torch.testing.assert_close(mixed[row], alone)
            own = learner.strategies[0]._logits(image[None], task)[0, 2 * task : 2 * task + 2]
            torch.testing.assert_close(alone[2 * task : 2 * task + 2], own)
            assert alone.isfinite().sum() == 2
    assert mixed.isfinite().sum(1).tolist() == [2] * len(mixed)


def test_training_looks_at_the_tasks_own_classes_whatever_the_scope(small_trainer):
    trainer = small_trainer(*SMALL, "scenario=split_digits", "scenario.logit_scope=all", "model.hidden=[16]")
    trainer.fit_task()
    trainer.begin_task()
    strategy, now = trainer.learner.strategies[0], batch(trainer)
    outputs = strategy.outputs(now)
    expected = F.cross_entropy(outputs.logits[:, 2:4], now.samples.y - 2)
    torch.testing.assert_close(strategy.data_loss(now, outputs)["new"], expected)


# ---- what is refused, what is said --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (
            ["scenario=split_digits", "scenario.increment=1"],
            "split_digits has tasks of a single class, of which every network",
        ),
        (["strategy.growth=true"], r"strategy\.growth=true needs strategy\.kind=recurrent, not chunked"),
        (
            ["strategy.plus=[ewc]"],
            "hypernetwork and ewc cannot be combined: hypernetwork makes all weights of the network, and leaves none",
        ),
        (
            ["strategy.plus=[l2]"],
            "hypernetwork and l2 cannot be combined: hypernetwork makes all weights of the network",
        ),
        (
            ["strategy.plus=[lwf]"],
            "hypernetwork and lwf cannot be combined: hypernetwork makes a network for every task",
        ),
        (["strategy.beta=-1"], r"strategy\.beta=-1\.0 is out of range"),
    ],
)
def test_refused(overrides, reason, small_setup):
    with pytest.raises(ConfigError, match=reason):
        small_setup(*TASK, *overrides)


def test_measurements(learning):
    _, strategy = learning(3)
    reported = {m.quantity: m.value for m in strategy.measurements() if not m.part}
    n = 64 * 16 + 16 + 16 * 10 + 10
    h = (7 + 1) * 5 + (5 + 1) * 300 + math.ceil(n / 300) * 3
    assert reported == {
        "generated_parameters": n,
        "hypernetwork_parameters": h,
        "parameters_per_task": 4,
        "parameters_to_predict": h + 3 * 4,
        "compression": pytest.approx((h + 12) / n),
    }
    with torch.no_grad():
        for name, parameter in strategy.hypernetwork.named_parameters():
            parameter.copy_(moved(strategy)[name])
    drifts = {m.part: m.value for m in strategy.measurements() if m.quantity == "output_drift"}
    assert list(drifts) == ["task 0", "task 1"]
    for j in range(2):
        now, before = strategy.hypernetwork(strategy.embeddings[j]), strategy.targets[j]
        assert drifts[f"task {j}"] == pytest.approx(((now - before).norm() / before.norm()).item(), rel=1e-4)


def test_readings_that_were_not_checked_are_named(small_setup):
    def notes(*overrides):
        return " ".join(small_setup(*TASK, *overrides).learner.notes())

    assert notes() == ""
    assert "arXiv:2209.07712" in notes("strategy.kind=recurrent")
    assert "strategy.growth is a reading" in notes(*KINDS["growing"])
    assert "strategy.regulariser=importance is a reading" in notes(*KINDS["importance"])
    assert "sigmoid" in notes(*KINDS["magnitude_invariant"])
