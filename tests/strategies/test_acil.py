"""ACIL against the joint ridge regression on everything it has seen."""

import pytest
import torch
from given_features import clusters, on_given_features, shuffled

from clbench.strategies.acil import ACIL, ACILConfig


def make(width: int = 30, gamma: float = 0.1) -> ACIL:
    return on_given_features(
        ACIL, ACILConfig("acil", extractor="frozen", width=width, gamma=gamma), 6, [[0, 1], [2, 3]]
    )


def joint_ridge(H: torch.Tensor, y: torch.Tensor, gamma: float, n_classes: int) -> torch.Tensor:
    G = H.T @ H + gamma * torch.eye(H.shape[1], dtype=torch.float64)
    return torch.linalg.solve(G, H.T @ torch.eye(n_classes, dtype=torch.float64)[y])


@pytest.mark.parametrize("tasks", [[[0, 1], [2, 3]], [[2, 3], [0, 1]], [[3], [1], [0], [2]], [[0, 1, 2, 3]]])
def test_equals_the_joint_solution_whatever_the_tasks(tasks):
    x, y = clusters(12, 4, 6)
    strategy = make()
    for classes in tasks:
        of_task = shuffled(48, 1)
        of_task = of_task[torch.isin(y[of_task], torch.tensor(classes))]
        for ids in of_task.split(7):
            before = strategy.W.clone()
            loss = strategy.absorb(x[ids], y[ids])
            H = (x[ids] @ strategy.expansion).relu()
            torch.testing.assert_close(loss, (H @ before - torch.eye(4)[y[ids]]).square().sum(1).mean())
    expected = joint_ridge((x @ strategy.expansion).relu(), y, 0.1, 4)
    torch.testing.assert_close(strategy.W, expected, rtol=0, atol=1e-8)
    torch.testing.assert_close(strategy.scores(x), (x @ strategy.expansion).relu() @ expected)


def test_random_features_are_those_of_a_linear_layer_without_bias():
    expansion = make(width=2000).expansion
    bound = 6**-0.5
    assert expansion.shape == (6, 2000)
    assert expansion.abs().max() <= bound
    assert expansion.std() == pytest.approx(bound / 3**0.5, rel=0.02)
    assert make().scores(torch.zeros(1, 6, dtype=torch.float64)).abs().max() == 0
    assert not torch.equal(make().expansion, on_given_features(ACIL, make().options, 6, [[0, 1]], seed=1).expansion)


def test_a_run_ends_in_the_joint_solution_on_the_features_of_the_first_task(small_trainer):
    """Every sample once, although the first task, which trains the network, has three epochs."""
    trainer = small_trainer(
        "strategy=acil", "strategy.width=20", "trainer.epochs=3", "trainer.max_steps_per_task=null",
        "trainer.batch_size=50", "trainer.lr=0.05", "evaluator.every=0",
    )  # fmt: skip
    network = trainer.learner.model
    start = network.state_dict()["head.weight"].clone()
    trainer.fit_task()
    after_first = {name: tensor.clone() for name, tensor in network.backbone.state_dict().items()}
    assert not torch.equal(network.head.weight, start)
    while trainer.task < trainer.scenario.n_tasks:
        trainer.fit_task()
    for name, tensor in network.backbone.state_dict().items():
        assert torch.equal(tensor, after_first[name])
    train, strategy = trainer.scenario.train, trainer.learner.strategies[0]
    samples = trainer.inputs.plain(train, torch.cat([train.ids(t) for t in range(trainer.scenario.n_tasks)]))
    with torch.no_grad():
        H = (network.features(samples.x).double() @ strategy.expansion).relu()
    torch.testing.assert_close(strategy.W, joint_ridge(H, samples.y, 0.1, 10), rtol=0, atol=1e-6)
