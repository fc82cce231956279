"""Dynamic sparse training: masks, frozen weights, and what it reports, against brute force."""

import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from clbench.errors import ConfigError
from clbench.learning.parts.sparsity import layer_counts
from clbench.strategies import dst
from clbench.testing.small_runs import in_double_precision
from clbench.training.fleet import Fleet

DST = ["strategy=dst", "scenario=split_digits_task", "trainer.lr=0.05", "strategy.update_every=1"]
MLP = [*DST, "model.hidden=[16]"]
RULES = ["random", "unfired", "gradient", "momentum"]


def strategy_of(trainer):
    return trainer.learner.strategies[0]


def counts_of(strategy, mask):
    return [int((mask[layer.part] > 0).sum()) for layer in strategy.layers]


@pytest.fixture
def make(small_trainer, small_trainer_with_batch_norm):
    """A function: name of a network, overrides → a trainer."""
    networks = {
        "mlp": (small_trainer, MLP),
        "resnet32": (small_trainer, [*DST, "model=resnet32", "model.depth=8"]),
        "slim_resnet18": (small_trainer_with_batch_norm, DST),
    }

    def of(network: str, *overrides: str, checkpoint: str = "unused"):
        function, common = networks[network]
        return function(*common, *overrides, checkpoint=checkpoint)

    return of


@pytest.fixture
def after_every_step(monkeypatch):
    """A function: calls another one with the trainer after every step it takes."""

    def watch(trainer, look):
        step = trainer._train_step

        def step_and_look(*arguments):
            step(*arguments)
            look(trainer)

        monkeypatch.setattr(trainer, "_train_step", step_and_look)

    return watch


# ---- masks while training ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("growth", "init"), [*((rule, "erk") for rule in RULES), ("random", "uniform")])
def test_every_layer_keeps_its_number_of_weights(growth, init, make, after_every_step):
    """Exactly, and weights that nobody uses are exactly 0."""
    trainer = make("mlp", f"strategy.growth={growth}", f"strategy.init={init}", "strategy.density=0.3")
    expected = layer_counts([(16, 64), (2, 16)], 0.3, init)
    masks = []

    def look(trainer):
        strategy = strategy_of(trainer)
        assert counts_of(strategy, strategy.active) == expected
        theta = strategy.flat_parameters()
        unused = (strategy.active == 0) & ~strategy.owned
        assert (theta[unused] == 0).all()
        masks.append(strategy.active.clone())

    after_every_step(trainer, look)
    trainer.fit()
    assert len(masks) == 20
    assert not torch.equal(masks[0], masks[2])
    assert torch.equal(masks[2], masks[3])  # not after the last step of a task


@pytest.mark.parametrize("growth", ["gradient", "momentum"])
def test_topology_update_by_brute_force(growth, make, monkeypatch):
    """From magnitudes, and from gradients of the masked network written down with autograd, through two tasks."""
    # So that there are no ties: random images, since digits have pixels that are always empty; and more than two classes a
    # task, since the gradients of two logits are opposite.
    options = [
        "scenario.increment=5",
        "trainer.batch_size=64",
        "strategy.on_grow_owned=forbid",
        "strategy.new_weights=kaiming",
    ]
    trainer = in_double_precision(make("mlp", f"strategy.growth={growth}", *options))
    strategy, model = strategy_of(trainer), trainer.learner.model
    edit, update, inputs = strategy.edit_gradients, strategy._updated, trainer.inputs.training
    gradients, changes = {}, []
    generator = torch.Generator().manual_seed(0)

    def random_images(*arguments):
        samples = inputs(*arguments)
        return samples._replace(x=torch.randn(samples.x.shape, generator=generator, dtype=torch.float64))

    def edit_and_remember(gradient, batch):
        w1, b1, w2, b2 = (p.detach().clone() for p in model.parameters())
        w1, w2 = (
            (w * strategy.active[layer.part].view(layer.shape)).requires_grad_()
            for w, layer in zip((w1, w2), strategy.layers, strict=True)
        )
        x, y, _ = batch.samples
        logits = F.linear(F.relu(F.linear(x.flatten(1), w1, b1)), w2, b2)
        first = 5 * trainer.task
        loss = F.cross_entropy(logits[:, first : first + 5], y - first)
        for layer, g in zip(strategy.layers, torch.autograd.grad(loss, [w1, w2]), strict=True):
            average = gradients.get(layer.name, 0) if trainer.step else 0
            gradients[layer.name] = g if growth == "gradient" else 0.9 * average + 0.1 * g
        return edit(gradient, batch)

    def update_and_check(step):
        theta = strategy.flat_parameters().abs().numpy()
        before, owned = strategy.active.numpy() > 0, strategy.owned.numpy()
        after = update(step)
        rho = 0.0 if step == 4 else 0.005 + 0.495 * (1 + math.cos(math.pi * step / 4)) / 2
        for layer in strategy.layers:
            mask, taken = before[layer.part], owned[layer.part]
            strength = np.where(taken, 0, gradients[layer.name].abs().flatten().numpy())
            reachable = np.ones(layer.shape, bool)
            if layer.name == "head.weight":
                reachable[:] = (np.arange(10) // 5 == trainer.task)[:, None]
            active = np.flatnonzero(mask)
            n = math.ceil(rho * len(active))
            dropped = active[np.argsort(theta[layer.part][active])[:n]]
            kept = np.setdiff1d(active, dropped)
            candidates = np.union1d(dropped, np.flatnonzero(reachable.flatten() & ~mask & ~taken))
            grown = candidates[np.argsort(-strength[candidates])[:n]]
            assert (strength[grown] > 0).all()  # no ties
            assert np.flatnonzero(after[layer.part]).tolist() == sorted([*kept, *grown])
            changes.append(len(np.setdiff1d(grown, dropped)))
        return after

    monkeypatch.setattr(trainer.inputs, "training", random_images)
    monkeypatch.setattr(strategy, "edit_gradients", edit_and_remember)
    monkeypatch.setattr(strategy, "_updated", update_and_check)
    for _ in range(2):
        trainer.fit_task()
    assert len(changes) == 16
    assert sum(changes) > 100


def test_gradients_of_frozen_and_of_inactive_weights_are_zero(make, learn_tasks):
    """Not only are these weights put back after the step: they take no part in the gradient's norm, which may be clipped."""
    trainer = make("mlp", "strategy.density=0.4", "strategy.growth=gradient")
    learn_tasks(trainer, 1)
    trainer.begin_task()
    strategy = strategy_of(trainer)
    gradient = torch.randn(len(strategy.flat_parameters()))
    edited = strategy.edit_gradients(gradient, None)
    trained = (strategy.active > 0) & ~strategy.owned
    assert ((strategy.active > 0) & strategy.owned).any()
    assert torch.equal(edited, torch.where(trained, gradient, 0))
    assert torch.equal(strategy.dense_gradient, gradient)


def test_whatever_was_active_in_a_task_has_fired(make, after_every_step):
    """A weight that was grown and dropped again has fired as one has that was there from the beginning."""
    trainer = make("mlp", "strategy.growth=unfired", "strategy.density=0.2", "strategy.update_every=1",
                   "trainer.max_steps_per_task=6")  # fmt: skip
    strategy, seen = strategy_of(trainer), {}

    def look(trainer):
        seen[trainer.task] = seen.get(trainer.task, torch.zeros_like(strategy.owned)) | (strategy.active > 0)
        assert torch.equal(strategy.fired & seen[trainer.task], seen[trainer.task])
        gone = seen[trainer.task] & ~(strategy.active > 0)
        counts.append(int(gone.sum()))

    counts = []
    after_every_step(trainer, look)
    trainer.fit_task()
    trainer.fit_task()
    assert max(counts) > 100  # many were dropped


def test_drop_fraction_over_a_task(make, monkeypatch):
    """ρ follows the schedule over the task's steps, up to stop_fraction."""
    taken = []
    update_mask = dst.update_mask

    def spy(mask, n, *others):
        taken.append((int(mask.sum()), int(n)))
        return update_mask(mask, n, *others)

    monkeypatch.setattr(dst, "update_mask", spy)
    trainer = make("mlp", "trainer.max_steps_per_task=10", "strategy.update_every=2", "strategy.stop_fraction=0.75",
                   "strategy.drop_schedule=linear")  # fmt: skip
    trainer.fit_task()
    expected = [0.5 + (0.005 - 0.5) * step / 10 if step < 7.5 else 0 for step in (2, 4, 6, 8, 10)]
    assert [n for _, n in taken[::2]] == [math.ceil(rho * taken[0][0]) for rho in expected]


@pytest.mark.parametrize("init", ["uniform", "erk"])
def test_a_mask_is_drawn_at_random(init, make, task_of):
    """Exact counts in every layer of the task, the rest of the head out of reach; other places for other tasks and seeds."""
    masks = {}
    for seed in (0, 1):
        trainer = make("slim_resnet18", f"strategy.init={init}", f"seed={seed}", "strategy.density=0.1")
        strategy = strategy_of(trainer)
        shapes = [tuple(layer.shape) for layer in strategy.layers]
        shapes[-1] = (2, shapes[-1][1])
        for task in (0, 1):
            trainer.learner.begin_task(task_of(trainer, task))
            assert counts_of(strategy, strategy.active) == layer_counts(shapes, 0.1, init)
            head = strategy.active[strategy.layers[-1].part].view(strategy.layers[-1].shape)
            assert head[2 * task : 2 * task + 2].sum() == head.sum()
            masks[seed, task] = strategy.active.clone()
    assert len({tuple(mask.tolist()) for mask in masks.values()}) == 4


def test_dense_first_layer_and_head(make, learn_tasks):
    trainer = make("slim_resnet18", "strategy.mask_first_last=false", "strategy.density=0.1", "strategy.init=erk")
    learn_tasks(trainer, 2)
    strategy = strategy_of(trainer)
    shapes = [tuple(layer.shape) for layer in strategy.layers]
    n_outputs, n_features = shapes[-1]
    assert counts_of(strategy, strategy.masks[1]) == [
        math.prod(shapes[0]), *layer_counts(shapes[1:-1], 0.1, "erk"), 2 * n_features,
    ]  # fmt: skip
    assert n_outputs == 10


@pytest.mark.parametrize("growth", ["random", "gradient"])
def test_at_density_one_the_first_task_is_finetuning(growth, small_trainer):
    """Everything that is dropped grows again, with the value it had."""
    sparse = small_trainer(*MLP, f"strategy.growth={growth}", "strategy.density=1")
    without = [option for option in MLP if not option.startswith("strategy")]
    dense = small_trainer("strategy=finetune", *without, checkpoint="dense")
    for trainer in (sparse, dense):
        trainer.fit_task()
    pd.testing.assert_frame_equal(sparse.training, dense.training, check_exact=True)


# ---- nothing is forgotten ---------------------------------------------------------------------------------------------

OPTIMIZERS = {
    "sgd": ["trainer.optimizer=sgd", "trainer.momentum=0.9", "trainer.weight_decay=0.01", "trainer.reset_optimizer=false"],
    "adamw": ["trainer.optimizer=adamw", "trainer.weight_decay=0.1", "trainer.lr=0.01", "trainer.reset_optimizer=false"],
    "adam": ["trainer.optimizer=adam", "trainer.weight_decay=0.01", "trainer.lr=0.01", "trainer.clip_grad_norm=1"],
}  # fmt: skip


@pytest.mark.parametrize(
    ("network", "optimizer", "more"),
    [
        ("mlp", "sgd", []),
        ("mlp", "adamw", ["strategy.growth=unfired"]),
        ("resnet32", "adam", ["strategy.growth=gradient", "strategy.norm_affine=true"]),
        ("slim_resnet18", "sgd", ["strategy.norm_affine=true", "strategy.new_weights=kaiming"]),
        ("slim_resnet18", "adamw", ["strategy.reuse=none", "strategy.new_weights=kaiming", "strategy.init=erk"]),
    ],
)
def test_old_tasks_are_bit_identical(network, optimizer, more, make, after_every_step):
    """Outputs of every old task after every step of every later one, and the recorded curve."""
    trainer = make(network, *OPTIMIZERS[optimizer], *more, "strategy.density=0.3", "scenario.tasks=3")
    split = trainer.scenario.test
    images = [trainer.inputs.plain(split, split.ids(task)[:5]).x for task in range(3)]
    outputs = {}

    def look(trainer):
        with trainer.evaluator.undisturbed():
            now = [trainer.learner.predict_task(images[task], task) for task in range(trainer.task)]
        for task, logits in enumerate(now):
            assert torch.equal(outputs.setdefault(task, logits), logits)
            assert logits[:, 2 * task : 2 * task + 2].isfinite().all()
            assert logits.isinf().sum() == logits.numel() * 2 / 3

    after_every_step(trainer, look)
    trainer.fit()
    assert len(outputs) == 2
    for table in (trainer.curve, trainer.tasks):
        old = table[table.task_eval < table.task_learning]
        assert len(old) >= 3
        assert (old.groupby("task_eval")[["correct", "loss"]].nunique() == 1).all(axis=None)
    own_last = trainer.tasks[trainer.tasks.task_eval == trainer.tasks.task_learning]
    final = trainer.tasks[trainer.tasks.task_learning == 2]
    assert own_last.loss.tolist() == final.loss.tolist()


@pytest.mark.parametrize("more", [[], ["strategy.on_grow_owned=forbid"]])
@pytest.mark.parametrize("network", ["mlp", "slim_resnet18"])
def test_storing_a_task_does_not_change_its_network(network, more, make, after_every_step):
    """What was trained, with weights of earlier tasks grown on the way, is what is predicted with afterwards."""
    trainer = make(network, "strategy.norm_affine=true", *more)
    strategy, split = strategy_of(trainer), trainer.scenario.test
    for task in range(3):
        trainer.begin_task()
        trainer._run_task()
        x = trainer.inputs.plain(split, split.ids(task)[:20]).x
        with trainer.evaluator.undisturbed():
            before = trainer.learner.predict_task(x, task)
        assert task == 0 or (int(strategy.grown_from_earlier) > 0) == (not more)
        trainer.end_task()
        with trainer.evaluator.undisturbed():
            assert torch.equal(trainer.learner.predict_task(x, task), before)


def test_grown_weights_of_earlier_tasks_have_their_value_at_once(make, after_every_step):
    trainer = make("mlp", "strategy.density=0.4")
    strategy, layers, seen = strategy_of(trainer), strategy_of(trainer).layers, []
    previous = {}

    def look(trainer):
        active = strategy.active.clone()
        grown = (active > previous.get("active", active)) & strategy.owned
        weights = strategy._current()
        for layer in layers:
            here = grown[layer.part]
            effective = weights[layer.name].detach().flatten()[here]
            assert torch.equal(effective, strategy.merged[layer.part][here])
            seen.append(int((effective != 0).sum()))
        previous["active"] = active

    after_every_step(trainer, look)
    trainer.fit_task()
    previous.clear()
    trainer.fit_task()
    assert sum(seen) > 20


def test_masked_weights_have_no_influence(make, learn_tasks):
    """Neither on the task being learned nor on those stored: its complement may hold anything."""
    trainer = make("slim_resnet18", "strategy.norm_affine=true", "strategy.density=0.6", "strategy.new_weights=kaiming")
    learn_tasks(trainer, 1)
    trainer.begin_task()
    strategy, split = strategy_of(trainer), trainer.scenario.test
    learner = trainer.learner.eval()
    for task, mask in ((0, strategy.masks[0]), (1, strategy.active > 0)):
        x = trainer.inputs.plain(split, split.ids(task)[:6]).x
        with torch.no_grad():
            before = learner.predict_task(x, task)
            state = {name: p.clone() for name, p in learner.model.named_parameters()}
            for layer in strategy.layers:
                learner.model.get_parameter(layer.name).masked_fill_(~mask[layer.part].view(layer.shape), 7.0)
            assert torch.equal(learner.predict_task(x, task), before)
            layer = strategy.layers[3]
            learner.model.get_parameter(layer.name).add_(0.1)  # the active ones have
            assert not torch.equal(learner.predict_task(x, task), before)
            for name, p in learner.model.named_parameters():
                p.copy_(state[name])


def test_mixed_batches_take_every_samples_network(make, learn_tasks):
    trainer = make("slim_resnet18", "strategy.norm_affine=true")
    learn_tasks(trainer, 3)
    trainer.begin_task()
    learner, split = trainer.learner.eval(), trainer.scenario.test
    samples = trainer.inputs.plain(split, torch.cat([split.ids(task)[:4] for task in (2, 0, 3, 1, 0, 4)]))
    with torch.no_grad():
        mixed = learner.predict(samples.x, samples.task)
        for task in range(5):
            rows = samples.task == task
            torch.testing.assert_close(mixed[rows], learner.predict_task(samples.x[rows], task))


def test_without_reuse_no_weight_has_two_tasks(make, caplog, after_every_step):
    trainer = make("mlp", "strategy.reuse=none", "strategy.new_weights=kaiming", "strategy.density=0.23")
    strategy = strategy_of(trainer)
    after_every_step(trainer, lambda trainer: shared.append(bool(((strategy.active > 0) & strategy.owned).any())))
    shared = []
    trainer.fit()
    assert len(shared) == 20
    assert not any(shared)
    hidden = strategy.masks[:, strategy.layers[0].part]
    assert (hidden.sum(0) == 1).all()  # five times 0.23 of it: it has run out
    warnings = [record.getMessage() for record in caplog.records if "are free" in record.getMessage()]
    size = strategy.layers[0].shape.numel()
    left = size - 4 * round(0.23 * size)
    assert warnings == [
        f"task 4: only {left} weights of backbone.layers.1.weight are free, {round(0.23 * size)} are wanted "
        "(strategy.reuse=none)"
    ]


def test_capacity_without_topology_updates(make):
    """After T tasks a share 1 − (1 − d)ᵀ of the weights is used, within the error of sampling."""
    trainer = make("mlp", "model.hidden=[64,64]", "strategy.stop_fraction=0", "trainer.max_steps_per_task=2")
    trainer.fit()
    method = trainer.method
    free = method[(method.quantity == "free") & method.part.str.startswith("backbone")]
    assert free.part.nunique() == 2
    for task, share in zip(free.task_learning, free.value, strict=True):
        used = 1 - 0.8 ** (task + 1)
        # Draws of exactly d N weights: an error below that of independent draws, sqrt(p (1 - p) / N).
        assert 1 - share == pytest.approx(used, abs=4 * math.sqrt(used * (1 - used) / 4096) + 1e-3)


# ---- what a task starts from ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("new_weights", ["zero", "kaiming"])
def test_new_weights(new_weights, make, learn_tasks):
    trainer = make("mlp", f"strategy.new_weights={new_weights}", "strategy.density=0.3")
    strategy = strategy_of(trainer)
    initial = strategy.flat_parameters().detach().clone()
    trainer.begin_task()
    assert torch.equal(strategy.flat_parameters(), initial * strategy.active)
    trainer._run_task()
    trainer.end_task()
    learned = strategy.flat_parameters().detach().clone()
    trainer.begin_task()
    for layer in strategy.layers:
        theta = strategy.flat_parameters().detach()[layer.part]
        owned, active = strategy.owned[layer.part], strategy.active[layer.part] > 0
        assert torch.equal(theta[owned], learned[layer.part][owned])
        assert (theta[~owned & ~active] == 0).all()
        new = theta[active & ~owned]
        if new_weights == "zero":
            assert (new == 0).all()
        else:
            bound = 1 / math.sqrt(layer.shape[1])
            assert new.abs().max() <= bound
            assert new.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.4)


@pytest.mark.parametrize("affine", [False, True])
def test_normalisation_parameters(affine, make, learn_tasks):
    """Each task's own, or 1 and 0 throughout; the statistics are each task's own in both cases."""
    trainer = make("slim_resnet18", f"strategy.norm_affine={str(affine).lower()}")
    learn_tasks(trainer, 2)
    strategy, layer = strategy_of(trainer), trainer.learner.model.backbone.bn1
    if affine:
        first, second = (strategy._stored(task)["backbone.bn1.weight"] for task in (0, 1))
        assert not torch.equal(first, second)
        assert torch.equal(second, layer.weight)
    else:
        assert not layer.weight.requires_grad
        assert (layer.weight == 1).all()
        assert (layer.bias == 0).all()
    first, second = (strategy._stored(task)["backbone.bn1.running_mean"] for task in (0, 1))
    assert not torch.equal(first, second)
    assert torch.equal(second, layer.running_mean)


def test_switch_when_little_is_free(make):
    """From the first task at whose start less is free, and not before."""
    trainer = make("mlp", "strategy.switch_below=0.6", "strategy.init=uniform", "strategy.late_init=erk",
                   "strategy.growth=gradient", "strategy.late_growth=unfired", "strategy.density=0.3")  # fmt: skip
    strategy = strategy_of(trainer)
    used = []
    priority = strategy._growth_priority
    strategy._growth_priority = lambda rule, draws: used.append(rule) or priority(rule, draws)
    trainer.fit()
    method = trainer.method
    free = [1.0, *method[(method.quantity == "free") & (method.part == "")].value]
    late = [share < 0.6 for share in free[:5]]
    assert late == sorted(late)
    assert 0 < sum(late) < 5
    shapes = [(16, 64), (2, 16)]
    for task in range(5):
        assert counts_of(strategy, strategy.masks[task]) == layer_counts(
            shapes, 0.3, "erk" if late[task] else "uniform"
        )
    assert set(used) == {"gradient", "unfired"}  # both are computed, a tensor chooses
    assert "not the paper's" in trainer.learner.notes()[0]


@pytest.mark.parametrize("late", [False, True])
def test_the_late_rule_is_the_one_that_is_used(late, make, task_of):
    """Growth by the rule that the buffer chooses, in two strategies with the same state."""
    both = make("mlp", "strategy.switch_below=0.5", "strategy.growth=gradient", "strategy.late_growth=random")
    one = make("mlp", f"strategy.growth={'random' if late else 'gradient'}")
    masks = []
    for trainer in (both, one):
        trainer.begin_task()
        strategy_of(trainer).late.fill_(late)
        trainer._run_task()
        masks.append(strategy_of(trainer).active.clone())
    assert torch.equal(*masks)


# ---- reporting --------------------------------------------------------------------------------------------------------


def test_measurements_by_brute_force(make, after_every_step):
    trainer = make("slim_resnet18", "strategy.density=0.25", "strategy.init=erk")
    strategy = strategy_of(trainer)
    grown = np.zeros((5, 2))
    previous = {}

    def look(trainer):
        active = strategy.active.numpy() > 0
        if trainer.step > 0:
            new = active & ~previous["active"]
            grown[trainer.task] += new.sum(), (new & strategy.owned.numpy()).sum()
        else:
            drawn = previous.pop("drawn")
            new = active & ~drawn
            grown[trainer.task] += new.sum(), (new & strategy.owned.numpy()).sum()
        previous["active"] = active

    after_every_step(trainer, look)
    begin = trainer.learner.begin_task

    def begin_and_look(task):
        begin(task)
        previous["drawn"] = strategy.active.numpy() > 0

    trainer.learner.begin_task = begin_and_look
    trainer.fit()
    found = {(row.task_learning, row.quantity, row.part): row.value for row in trainer.method.itertuples()}
    masks = {layer.name: strategy.masks[:, layer.part].numpy() for layer in strategy.layers}
    everything = np.concatenate(list(masks.values()), axis=1)
    n_all = everything.shape[1]
    reachable = {name: mask.shape[1] for name, mask in masks.items()}
    reachable["head.weight"] //= 5
    expected = {}
    for t in range(5):
        mask, earlier = everything[t], everything[:t].any(0)
        expected[t, "density", ""] = mask.sum() / sum(reachable.values())
        expected[t, "reuse", ""] = (mask & earlier).sum() / mask.sum()
        expected[t, "grown_from_earlier", ""] = grown[t, 1] / grown[t, 0]
        expected[t, "free", ""] = 1 - (mask | earlier).sum() / n_all
        expected[t, "used", ""] = (mask | earlier).sum() / n_all
        expected[t, "mask_bits", ""] = (t + 1) * n_all
        for j in range(t):
            expected[t, "overlap", f"task {j}"] = (mask & everything[j]).sum() / mask.sum()
        for name, of_layer in masks.items():
            expected[t, "density", name] = of_layer[t].sum() / reachable[name]
            expected[t, "free", name] = 1 - of_layer[: t + 1].any(0).mean()
        flops = {"dense_forward_flops": 0, "forward_flops": 0}
        for name, of_layer in masks.items():
            pixels = 64 if "layer1" in name or name == "backbone.conv1.weight" else 1
            for stage, side in ((2, 4), (3, 2), (4, 1)):
                pixels = side**2 if f"layer{stage}" in name else pixels
            flops["forward_flops"] += 2 * pixels * of_layer[t].sum()
            flops["dense_forward_flops"] += 2 * pixels * reachable[name]
        expected |= {(t, name, ""): value for name, value in flops.items()}
    assert found.keys() == expected.keys()
    assert all(found[key] == pytest.approx(expected[key], abs=1e-12) for key in expected)
    assert grown[1:, 1].min() > 0
    json.dumps(list(found.values()))  # plain numbers


# ---- as the run would be alone ----------------------------------------------------------------------------------------


# At a low density a narrow ResNet has channels with one input, the gradient of which BatchNorm makes 0 but for rounding.
@pytest.mark.parametrize(
    ("network", "growth"), [("mlp", "unfired"), ("mlp", "gradient"), ("mlp", "momentum"), ("resnet32", "random")]
)
def test_a_fleet_with_topology_updates(network, growth, make):
    """Members of other seeds and densities have the masks and curves that they have alone."""
    densities = (0.2, 0.3) if network == "mlp" else (0.5, 0.6)
    common = [f"strategy.growth={growth}", "trainer.max_steps_per_task=3", "strategy.norm_affine=true",
              "strategy.switch_below=0.7", "strategy.late_growth=random", "scenario.tasks=3"]  # fmt: skip
    members = [[*common, "seed=0", f"strategy.density={densities[0]}"],
               [*common, "seed=1", f"strategy.density={densities[1]}"]]  # fmt: skip
    together, alone = (
        [in_double_precision(make(network, *member, checkpoint=f"{tag}{i}")) for i, member in enumerate(members)]
        for tag in ("fleet", "alone")
    )
    Fleet(together).fit()
    for member, trainer in zip(together, alone, strict=True):
        trainer.fit()
        assert torch.equal(strategy_of(member).masks, strategy_of(trainer).masks)
        for name, mine in member.learner.state_dict().items():
            torch.testing.assert_close(mine, trainer.learner.state_dict()[name], rtol=1e-6, atol=1e-7)
        pd.testing.assert_frame_equal(member.curve, trainer.curve, rtol=1e-6)
        pd.testing.assert_frame_equal(member.method, trainer.method)
    assert not torch.equal(strategy_of(alone[0]).masks, strategy_of(alone[1]).masks)


@pytest.mark.parametrize("growth", ["unfired", "momentum"])
def test_resumes_within_a_task(growth, make, monkeypatch):
    """Killed between two topology updates, a run ends in the same masks and weights; and so does a second run."""
    common = ["mlp", f"strategy.growth={growth}", "strategy.update_every=2", "trainer.max_steps_per_task=7"]
    whole, again = make(*common, checkpoint="whole"), make(*common, checkpoint="again")
    killed = make(*common, "record.checkpoint_seconds=0", checkpoint="killed")
    step = killed._train_step

    def step_or_die(*arguments):
        if killed.iteration == 10:
            raise KeyboardInterrupt
        step(*arguments)

    monkeypatch.setattr(killed, "_train_step", step_or_die)
    with pytest.raises(KeyboardInterrupt):
        killed.fit()
    resumed = make(*common, checkpoint="killed")
    for trainer in (whole, again, resumed):
        trainer.fit()
    for other in (again, resumed):
        for name, tensor in whole.learner.state_dict().items():
            assert torch.equal(tensor, other.learner.state_dict()[name]), name
        pd.testing.assert_frame_equal(whole.method, other.method)


# ---- checks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["strategy.density=0"], r"strategy\.density=0\.0 is out of range: it has to be above 0"),
        (["strategy.density=1.5"], r"strategy\.density=1\.5 is out of range: it has to be at most 1"),
        (["strategy.update_every=0"], r"strategy\.update_every=0 is out of range"),
        (["strategy.growth=best"], "unknown value for strategy.growth 'best'"),
        (["strategy.reuse=none"], "reuse=none with strategy.new_weights=zero"),
        (["strategy.reuse=none", "strategy.new_weights=kaiming", "strategy.mask_first_last=false"],
         "reuse=none with strategy.mask_first_last=false"),
        (["strategy.drop_fraction=0.1", "strategy.drop_fraction_end=0.2"], "it has to be at most drop_fraction=0.1"),
        (["strategy.density=0.001"], r"strategy\.density=0\.001 is too low: it leaves no weight to head\.weight"),
        (["scenario=split_digits"], r"dst is not defined for class-.* task-incremental, e\.g\. scenario=split_digits_task"),
        (["strategy.plus=[er]"], "dst and er cannot be combined"),
    ],
)  # fmt: skip
def test_nonsense_is_refused(overrides, message, small_setup):
    with pytest.raises(ConfigError, match=message):
        small_setup("strategy=dst", "scenario=split_digits_task", "model.hidden=[16]", *overrides)


def test_regularisers_compose(make):
    """A penalty on the weights does not move frozen ones either."""
    trainer = make("mlp", "strategy.plus=[l2]")
    trainer.fit()
    assert set(trainer.training.term) == {"new", "l2"}
    old = trainer.curve[trainer.curve.task_eval < trainer.curve.task_learning]
    assert (old.groupby("task_eval")[["correct", "loss"]].nunique() == 1).all(axis=None)
