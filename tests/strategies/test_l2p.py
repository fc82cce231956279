"""L2P within the loop: its loss, keys that come nearer, what composes with it. The pool: tests/models/test_prompts.py."""

import pytest
import torch

from clbench.errors import ConfigError
from clbench.testing.small_runs import small_network, small_options

SMALL = [*small_options("l2p"), *small_network("l2p")]


def test_the_penalty_sample_by_sample(small_setup, task_of, batch_of):
    """pull · mean over blocks, samples and chosen keys of 1 − cos(q, k), with q of the network without prompts."""
    setup = small_setup(*SMALL, "strategy.pull=0.3")
    learner = setup.learner
    learner.begin_task(task_of(setup, 0))
    batch = batch_of(setup, setup.scenario.train.ids(0)[:6])
    network = learner.model.backbone
    losses = []
    with torch.no_grad():
        queries = network.backbone.eval()(batch.samples.x)
        for prompt in network.prompts.values():
            for q in queries:
                cosines = torch.stack([q @ k / (q.norm() * k.norm()) for k in prompt.keys])
                losses += [1 - c for c in cosines.sort(descending=True).values[:2]]
    assert len(losses) == 2 * 6 * 2
    torch.testing.assert_close(learner.loss(batch)["l2p"], 0.3 * torch.stack(losses).mean())


def test_keys_come_nearer_to_the_queries(small_trainer, learn_tasks):
    trainer = small_trainer(*SMALL, "trainer.lr=0.05")
    network = trainer.learner.model.backbone
    x = trainer.inputs.plain(trainer.scenario.train, trainer.scenario.train.ids(0)).x
    distances = []
    for n_tasks in (0, 1):
        learn_tasks(trainer, n_tasks)
        with torch.no_grad():
            network(x)
            distances.append(float(network.matching_loss()))
    assert distances[1] < distances[0] - 0.05


def test_with_adam_the_pull_is_as_strong_whatever_its_weight(small_trainer, learn_tasks):
    """Keys have no other gradient. So a search over it would be wasted; with SGD it would not."""
    keys = {}
    for optimizer in ("adam", "sgd"):
        for pull in (0.1, 1.0):
            trainer = small_trainer(
                *SMALL, f"strategy.pull={pull}", f"trainer.optimizer={optimizer}", "trainer.lr=0.01"
            )
            learn_tasks(trainer, 1)
            keys[optimizer, pull] = trainer.learner.model.backbone.prompts["0"].keys.detach()
    torch.testing.assert_close(keys["adam", 0.1], keys["adam", 1.0], atol=1e-5, rtol=0)
    assert (keys["sgd", 0.1] - keys["sgd", 1.0]).abs().max() > 1e-4


def test_replay_composes_with_it(small_trainer, learn_tasks):
    """strategy=l2p strategy.plus=[er]: replayed samples pass through their own prompts and pull their own keys."""
    trainer = small_trainer(*SMALL, "strategy.plus=[er]", "+plus.er.memory_size=40")
    seen = []
    loss = trainer.learner.loss_and_outputs

    def spy(batch):
        terms, outputs = loss(batch)
        seen.append((batch.n_new, len(batch.samples.y), len(trainer.learner.model.backbone.query), set(terms)))
        return terms, outputs

    trainer.learner.loss_and_outputs = spy
    learn_tasks(trainer, 2)
    assert seen[:4] == [(8, 8, 8, {"new", "l2p"})] * 4
    assert seen[4:] == [(8, 16, 16, {"new", "replay", "l2p"})] * 4


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["strategy.top_k=6"], r"strategy\.top_k=6 has to be at most strategy\.pool=5"),
        (["strategy.length=3"], r"strategy\.length=3 has to be even"),
        (["strategy.blocks=[1,1]"], r"strategy\.blocks=\[1, 1\] has to name at least one block, and none twice"),
        (["strategy.blocks=[]"], r"strategy\.blocks=\[\] has to name at least one block"),
        (["strategy.blocks=[-1]"], r"strategy l2p prompts block -1 of a network that has the blocks 0 to 1"),
        (["strategy.plus=[lora]"], r"l2p and lora cannot be combined: each of them freezes the network"),
    ],
)
def test_refusals(wrong, message, small_setup):
    with pytest.raises(ConfigError, match=message):
        small_setup(*SMALL, *wrong)
