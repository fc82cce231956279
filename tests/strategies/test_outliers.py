"""Virtual outliers: how they are chosen and what they cost, against loops; and that nothing moves in their stage but the head."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from clbench.strategies import outliers as module
from clbench.strategies.outliers import ROWS, huber, kth_distances
from clbench.testing.small_runs import SMALL_OPTIONS, small_network, small_options
from clbench.training.fleet import Fleet

ADDED = ["strategy.plus=[outliers]", *(o.replace("strategy", "+plus.outliers") for o in SMALL_OPTIONS["outliers"])]
"""The stage of three steps out of four, in small, for any strategy."""


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


# ---- which outliers -------------------------------------------------------------------------------------------------


def kth_distance(query, points, k):
    return sorted(math.dist(query, point) for point in points)[k - 1]


@pytest.mark.parametrize("mode", ["paper", "released"])
def test_outliers_are_those_of_a_loop(mode, small_setup, monkeypatch):
    monkeypatch.setattr(module, "AT_ONCE", 7)  # 20 features, in parts
    k, n_boundary, n_draws, n_kept, cov = 3, 4, 6, 9, 0.4
    setup = small_setup("strategy=outliers", f"strategy.outlier_mode={mode}", f"strategy.neighbours={k}", f"strategy.cov={cov}",
                        f"strategy.select={n_boundary}", f"strategy.sample_from={n_draws}")  # fmt: skip
    features = 3 * torch.randn(20, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 1
    strategy = setup.learner.strategies[0].double()
    outliers = strategy.synthesise(features, n_kept, generator()).numpy()

    noise = cov * torch.randn(n_draws, 5, generator=generator()).double().numpy()
    directions = [f / np.linalg.norm(f) for f in features.numpy()]
    r = [kth_distance(direction, directions, k) for direction in directions]
    boundary = sorted(range(20), key=lambda i: -r[i])[:n_boundary]
    candidates = [(features[b].numpy() + e, e)[mode == "released"] for b in boundary for e in noise]
    compared = [(c / np.linalg.norm(c), c)[mode == "released"] for c in candidates]
    distances = [kth_distance(c, directions, k) for c in compared]
    kept = sorted(range(len(candidates)), key=lambda i: -distances[i])[:n_kept]
    expected = np.array([candidates[i] for i in kept])
    np.testing.assert_allclose(outliers, expected, rtol=1e-5, atol=1e-6)
    n_distinct = len(np.unique(outliers, axis=0))
    assert n_distinct == (n_kept if mode == "paper" else math.ceil(n_kept / n_boundary))


def test_few_features(small_setup):
    """Neighbours and boundary are no more than there are features, outliers no more than candidates."""
    strategy = small_setup("strategy=outliers", "strategy.sample_from=2").learner.strategies[0]
    features = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-3.0, 0.0]])
    assert strategy.synthesise(features, 40, generator()).shape == (6, 2)
    points = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    assert kth_distances(points[:2], points, 50).tolist() == pytest.approx([2.0, math.sqrt(2)])  # to the farthest


@pytest.fixture
def in_stage(small_setup, task_of):
    """A function: overrides → (setup, strategy, task) at the first step of the second task's stage, of unequal tasks."""

    def make(*overrides):
        setup = small_setup(
            *small_options("outliers"),
            "scenario.base=4",
            "scenario.increment=3",
            "scenario.logit_scope=current",
            *overrides,
        )
        learner, task = setup.learner, task_of(setup, 1)
        for index in range(2):
            learner.begin_task(task_of(setup, index))
        within, _ = learner.stages(task, len(learner.plan(task).new))
        learner.enter(within[1])
        learner.eval()
        learner.stage.begin(task)
        return setup, learner.strategies[0], task

    return make


def test_outliers_come_from_all_images_of_the_task(in_stage, monkeypatch):
    setup, strategy, task = in_stage()
    assert len(task.ids) % 50
    monkeypatch.setattr(module, "AT_ONCE", 50)
    with torch.no_grad():
        features = setup.learner.model.features(task.samples(task.ids).x)
        torch.testing.assert_close(strategy._features(task, 1), features)
    made = strategy.synthesise(features, 12 * 3, task.torch_generator("outliers1"))
    assert strategy.outliers.shape == (12 * 4, 16)  # for the largest task
    assert strategy.n_outliers == len(made) == 5 * 6  # there are no more candidates
    rows = {tuple(row) for row in strategy.outliers[:30].tolist()}
    assert rows == {tuple(row) for row in made.tolist()}
    assert not torch.equal(strategy.outliers[:30], made)  # but in random order


def test_images_are_augmented_as_no_batch_is(in_stage):
    setup, strategy, task = in_stage("scenario.augment.crop_padding=2")
    drawn = []
    draw = setup.inputs.draw

    def spy(shape, index, step):
        drawn.append((index, step))
        return draw(shape, index, step)

    setup.inputs.draw = spy
    with torch.no_grad():
        first, again, later = (strategy._features(task, step) for step in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, later)
    assert {index for index, _ in drawn} == {1}
    steps = [step for _, step in drawn]
    assert min(steps) >= module.NO_BATCH
    assert len(set(steps)) == 2 * len(steps) // 3  # twice the same pause


# ---- what they cost -------------------------------------------------------------------------------------------------


def energy_by_hand(logits, classes):
    return -math.log(sum(math.exp(logits[c]) for c in classes))


def huber_by_hand(x):
    x = max(x, 0.0)
    return x * x / 2 if x <= 1 else x - 1 / 2


def test_loss_of_a_step_by_hand(in_stage, batch_of, task_of):
    """Energies over classes [4, 7) of new samples only, and of two steps' outliers one after another."""
    setup, strategy, task = in_stage("strategy.tau_id=-3.5", "strategy.tau_ood=-2.5", "strategy.lam=0.7")
    model, learner = setup.learner.model.double(), setup.learner.double()
    with torch.no_grad():
        model.head.weight.mul_(20)
    columns = {ROWS: torch.tensor([28, 29, 0, 1])}
    batch = batch_of(setup, task.ids[::40], task_of(setup, 0).ids[:3], columns=columns)
    batch = batch._replace(samples=batch.samples._replace(x=batch.samples.x.double()))
    logits = model(batch.samples.x).tolist()
    terms = learner.loss(batch)
    own = [4, 5, 6]
    for_inliers = [huber_by_hand(energy_by_hand(z, own) + 3.5) for z in logits[: batch.n_new]]
    outliers = strategy.outliers[[28, 29, 0, 1]]  # 30 of them
    for_outliers = [huber_by_hand(-2.5 - energy_by_hand(z, own)) for z in model.head(outliers).tolist()]
    assert 0 < sum(value > 0 for value in for_inliers) < len(for_inliers)
    assert 0 < sum(value > 0 for value in for_outliers) < len(for_outliers)
    expected = 0.7 * (np.mean(for_inliers) + np.mean(for_outliers))
    assert terms["outliers"].item() == pytest.approx(expected)
    assert terms.keys() == {"new", "outliers"}
    trained = model.trained()
    for term, rows in [("new", range(7)), ("outliers", own)]:  # features are constants
        gradients = torch.autograd.grad(terms[term], list(trained.values()), retain_graph=True, materialize_grads=True)
        moved = dict(
            zip(trained, [g.reshape(len(g), -1).any(1).nonzero().flatten().tolist() for g in gradients], strict=True)
        )
        assert moved.pop("head.weight") == moved.pop("head.bias") == list(rows)
        assert not any(moved.values())


def test_huber():
    x = torch.tensor([-2.0, 0.0, 0.5, 1.0, 3.0])
    assert huber(x).tolist() == [huber_by_hand(value) for value in x.tolist()]


def test_reported_energies(in_stage):
    setup, strategy, task = in_stage()
    model = setup.learner.model
    with torch.no_grad():
        inliers = model.head(strategy._features(task, 1)).tolist()
        outliers = model.head(strategy.outliers[:30]).tolist()
    expected = [np.mean([energy_by_hand(z, [4, 5, 6]) for z in logits]) for logits in (inliers, outliers)]
    reported = {m.quantity: m.value for m in strategy.measurements()}
    assert list(reported) == ["inlier_energy", "outlier_energy"]
    assert list(reported.values()) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("n_images", "n_steps", "share", "expected"),
    [
        (50, 100, 0.2, [80, 85, 90, 95]),  # 16 + 4 epochs
        (41, 50, 0.2, [40, 45]),  # an epoch's last batch is smaller
        (50, 52, 0.2, [45, 50]),  # cut off by trainer.max_steps_per_task: two of eleven epochs
        (50, 10, 0.2, [5]),  # never none
        (50, 10, 1.0, [0, 5]),
        (50, 5, 0.4, [3]),  # one epoch: two of its steps
        (500, 4, 0.2, [3]),
    ],
)
def test_when_the_stage_begins(n_images, n_steps, share, expected, small_setup):
    strategy = small_setup("strategy=outliers", f"strategy.share={share}").learner.strategies[0]
    task = SimpleNamespace(ids=range(n_images), budget=SimpleNamespace(batch_size=10))
    assert [stage.start for stage in strategy.stages(task, n_steps)] == expected


def test_outliers_per_step(small_trainer):
    """As many as there are for every batch of an epoch, at least one; new ones in every regularised epoch."""
    trainer = small_trainer(*small_options("outliers"), "trainer.epochs=4", "trainer.max_steps_per_task=null",
                            "trainer.batch_size=60", "strategy.share=0.5", "strategy.sample_from=40")  # fmt: skip
    trainer.begin()
    trainer.begin_task()
    strategy, seen = trainer.learner.strategies[0], []
    per_epoch = len(trainer.steps) // 4
    while trainer.step < len(trainer.steps):
        trainer.advance()
        rows = trainer.steps[trainer.step - 1].columns.get(ROWS)
        seen.append((strategy.stage.name, None if rows is None else rows.tolist(), strategy.outliers.sum().item()))
    assert {(name, rows) for name, rows, _ in seen[: 2 * per_epoch]} == {("main", None)}
    n = 12 * 2 // per_epoch
    assert n > 1
    every_epoch = [("outliers", [(n * i + j) % 24 for j in range(n)]) for i in range(per_epoch)]
    assert [seen[i][:2] for i in range(2 * per_epoch, 4 * per_epoch)] == 2 * every_epoch
    assert len({made for _, _, made in seen[2 * per_epoch :]}) == 2


# ---- what does not move ---------------------------------------------------------------------------------------------

HOSTS = {
    "ovor": [*small_options("ovor"), *small_network("ovor")],
    "l2p": [*small_options("l2p"), *small_network("l2p"), *ADDED],
    "lora": [*small_options("lora"), *small_network("lora"), *ADDED],
    "finetune": ["strategy=finetune", *ADDED, "trainer.optimizer=adamw", "trainer.weight_decay=0.1"],
    "er": ["strategy=er", "strategy.memory_size=40", *ADDED, "trainer.optimizer=adam"],
    "ewc": ["strategy=ewc", *ADDED, "trainer.momentum=0.9"],
    "batch norm": ["strategy=finetune", "model=slim_resnet18", "model.width=2", *ADDED],
}


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("together", [False, True], ids=["alone", "fleet"])
def test_the_head_alone_moves_in_the_stage(host, together, small_trainer):
    """Weights and statistics behind the features are bit-identical through it, whatever the optimizer remembers."""
    common = [*HOSTS[host], "scenario.classes=[0,1,2,3]", "trainer.reset_optimizer=false"]
    trainers = [small_trainer(*common, f"seed={seed}", checkpoint=str(seed)) for seed in range(1 + together)]
    moved = []

    def watched(take_step):
        def step():
            before = [states(trainer.learner.model) for trainer in trainers]
            take_step()
            after = [states(trainer.learner.model) for trainer in trainers]
            moved.append([[a != b for a, b in zip(*pair, strict=True)] for pair in zip(before, after, strict=True)])

        return step

    fleet = Fleet(trainers)
    if together:
        fleet.train_step = watched(fleet.train_step)
        fleet.fit()
    else:
        trainers[0].advance = watched(trainers[0].advance)
        trainers[0].fit()
    all_of_it, the_head = [len(trainers) * [moves] for moves in ([True, True], [False, True])]
    assert moved == 2 * [all_of_it, the_head, the_head, the_head]
    terms = trainers[0].training.groupby("iteration").term.agg(set)
    name = trainers[0].learner.strategies[-1].name
    assert [name in of_step for of_step in terms] == 2 * [False, True, True, True]
    if host == "er":
        assert terms.iloc[-1] == {"new", "replay", "outliers"}
    assert trainers[0].curve.iteration.unique().tolist() == list(range(9))  # steps of the stage are iterations


def states(model) -> list[list[bytes]]:
    """Weights and buffers of backbone and head, bit for bit."""
    return [[t.numpy().tobytes() for t in part.state_dict().values()] for part in (model.backbone, model.head)]


def test_rows_of_earlier_classes_stay(small_trainer):
    """With a softmax over the task's own classes, Adam anew in every task, and energies over these classes."""
    trainer = small_trainer(*HOSTS["ovor"], "scenario.base=4", "scenario.increment=3")
    assert (trainer.config.trainer.optimizer, trainer.config.scenario.logit_scope) == ("adam", "current")
    trainer.begin()
    head, before = trainer.learner.model.head, None
    for first, end in [(0, 4), (4, 7), (7, 10)]:
        trainer.fit_task()
        weights = torch.cat([head.weight, head.bias[:, None]], 1).detach().clone()
        if before is not None:
            assert torch.equal(weights[:first], before[:first])
            assert not (weights[first:end] == before[first:end]).any()
        before = weights


@pytest.mark.parametrize("mode", ["paper", "released"])
def test_a_note_says_which_outliers(mode, small_setup):
    learner = small_setup("strategy=l2", *ADDED, f"+plus.outliers.outlier_mode={mode}").learner
    (note,) = learner.notes()
    assert note.startswith("outliers: ")
    assert note.endswith(f"(outlier_mode={mode})")


def test_ovor_is_oneprompt_with_outliers(small_trainer):
    """The same losses and weights, but for names."""
    common = ["strategy.blocks=[0,1]", "strategy.lengths=[2,4]", *small_network("ovor"), "scenario.logit_scope=current",
              "trainer.optimizer=adam", "trainer.lr=0.01", "trainer.scheduler=cosine"]  # fmt: skip
    one = small_trainer(*small_options("ovor"), *common, checkpoint="one")
    two = small_trainer("strategy=oneprompt", *ADDED, *common, checkpoint="two")
    for trainer in (one, two):
        trainer.fit()
    for a, b in zip(one.learner.model.state_dict().values(), two.learner.model.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert one.training.loss.tolist() == two.training.loss.tolist()
    reported = {measurement.quantity for measurement in one.learner.strategies[0].measurements()}
    assert reported == {"prompt_parameters", "inlier_energy", "outlier_energy"}
