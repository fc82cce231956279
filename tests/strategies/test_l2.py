"""L2 against its formula."""

import pytest
import torch

from clbench.errors import ConfigError


def test_value_and_gradient(small_setup, task_of, batch_of):
    setup = small_setup("strategy=l2", "strategy.lam=0.3")
    learner, task = setup.learner, task_of(setup, 0)
    learner.begin_task(task)
    anchor = {name: p.detach().clone() for name, p in learner.model.named_parameters()}
    with torch.no_grad():
        for p in learner.model.parameters():
            p.add_(torch.randn_like(p))
    term = learner.loss(batch_of(setup, task.ids[:4]))["l2"]
    backbone = [(p, anchor[name]) for name, p in learner.model.named_parameters() if name.startswith("backbone")]
    torch.testing.assert_close(term, 0.3 * sum((p - a).square().sum() for p, a in backbone))
    gradients = torch.autograd.grad(term, [p for p, _ in backbone] + [learner.model.head.weight], allow_unused=True)
    for (p, a), gradient in zip(backbone, gradients, strict=False):
        torch.testing.assert_close(gradient, 2 * 0.3 * (p - a).detach())
    assert gradients[-1] is None  # where=backbone leaves the classifier free


@pytest.mark.parametrize("setting", [["scenario=split_digits"]])
def test_large_weight_keeps_the_backbone(setting, small_trainer, learn_tasks):
    """λ → ∞ freezes the backbone to 1e-6 within a step size that gradient descent on λ ‖θ − θ*‖² bears."""
    moved = {}
    for lam in (0, 100000):
        trainer = small_trainer("strategy=l2", f"strategy.lam={lam}", *setting, "trainer.max_steps_per_task=100",
                                "trainer.lr=4e-6", "trainer.momentum=0", "evaluator.every=0", checkpoint=str(lam))  # fmt: skip
        before = torch.cat([p.detach().flatten() for p in trainer.learner.model.backbone.parameters()])
        learn_tasks(trainer, 1)
        after = torch.cat([p.detach().flatten() for p in trainer.learner.model.backbone.parameters()])
        moved[lam] = (after - before).abs().max().item()
    assert moved[100000] <= 1e-6
    assert moved[0] > 1e-5


def test_negative_weight_is_refused(small_setup):
    with pytest.raises(ConfigError, match=r"strategy\.lam=-0\.1 is out of range: it has to be at least 0"):
        small_setup("strategy=l2", "strategy.lam=-0.1")


def test_towards_zero(small_setup, task_of, batch_of):
    """λ ‖θ‖² of all weights, in the first task as in later ones."""
    setup = small_setup(
        "strategy=l2", "strategy.towards=zero", "strategy.where=all", "strategy.from_start=false", "strategy.lam=0.3"
    )
    learner = setup.learner
    for index in (0, 1):
        task = task_of(setup, index)
        learner.begin_task(task)
        term = learner.loss(batch_of(setup, task.ids[:4]))["l2"]
        torch.testing.assert_close(term, 0.3 * sum(p.square().sum() for p in learner.model.parameters()))
        learner.end_task(task)
