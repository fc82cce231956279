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


VIT = ["model=small_vit", "model.width=8", "model.depth=2", "model.heads=2", "model.image_size=8"]


def attention_weights(model) -> list[str]:
    """The names of what ``where=attention`` trains of the backbone, for a ViT of two blocks."""
    names = [f"backbone.network.blocks.{i}.attn.qkv.{part}" for i in (0, 1) for part in ("weight", "bias")]
    assert set(names) <= dict(model.named_parameters()).keys()
    return names


def test_attention_only(small_trainer, learn_tasks, task_of, batch_of):
    """λ Σ (θ − θ*)² over queries, keys and values; nothing but these and the head moves."""
    trainer = small_trainer("strategy=l2", "strategy.where=attention", *VIT)
    model = trainer.learner.model
    penalised = attention_weights(model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    learn_tasks(trainer, 1)
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {*penalised, "head.weight", "head.bias"}

    trainer.learner.begin_task(task_of(trainer, 1))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1)
    term = trainer.learner.loss(batch_of(trainer, task_of(trainer, 1).ids[:4]))["l2"]
    n = 2 * (3 * 8 * 8 + 3 * 8)
    torch.testing.assert_close(term, torch.tensor(0.05 * n * 0.1**2), rtol=1e-4, atol=0)


def test_attention_is_penalised_on_top_of_whatever_method_trains_it(small_setup):
    """As an addition it would freeze what the main strategy counts on, which has to know before."""
    added = ["strategy.plus=[l2]", "+plus.l2.where=attention", *VIT]
    with pytest.raises(ConfigError, match=r"plus\.l2\.where=attention freezes weights .* set model\.trained=attention"):
        small_setup("strategy=ewc", *added)
    for extra in (["strategy=ewc", "model.trained=attention"], ["strategy=ewc", "strategy.where=attention"]):
        first, second = small_setup(*added, *extra).learner.strategies
        n_attention = 2 * (3 * 8 * 8 + 3 * 8)
        n_head = 0 if "strategy.where=attention" in extra else 8 * 10 + 10
        assert (len(first.importance), len(second.anchor)) == (n_attention + n_head, n_attention)


@pytest.mark.parametrize("name", ["l2", "ewc"])
def test_attention_where_there_is_none(name, small_setup):
    with pytest.raises(ConfigError, match=rf"where=attention of {name} needs the weights blocks\.\*\.attn\.qkv"):
        small_setup(f"strategy={name}", "strategy.where=attention")


def test_attention_that_is_frozen(small_setup):
    with pytest.raises(
        ConfigError, match=r"where=attention of l2 has nothing to train: all attention .* model\.frozen=3"
    ):
        small_setup("strategy=l2", "strategy.where=attention", "model.frozen=3", *VIT)


def test_in_the_first_task_only(small_trainer, learn_tasks, record_terms):
    """EWC with L2 start: the initial weights hold the first task, the Fisher information the later ones."""
    trainer = small_trainer("strategy=ewc", "strategy.plus=[l2]", "+plus.l2.tasks=first")
    rows = record_terms(trainer)
    learn_tasks(trainer, 3)
    assert {(task, name) for task, _, terms in rows for name in terms if name != "new"} == {
        (0, "l2"),
        (1, "ewc"),
        (2, "ewc"),
    }


def test_a_penalty_that_never_acts_is_refused(small_setup):
    with pytest.raises(ConfigError, match="tasks=first and from_start=false of l2 leave no task in which it acts"):
        small_setup("strategy=l2", "strategy.tasks=first", "strategy.from_start=false")
