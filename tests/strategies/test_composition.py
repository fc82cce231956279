"""Strategies combined through ``strategy.plus``, and what every strategy shares."""

import pytest
import torch

from clbench.errors import ConfigError
from clbench.registry import STRATEGIES
from clbench.strategies.base import Needs

PAIRS = [
    ("er", "ewc", ["strategy.memory_size=40"], ["+plus.ewc.lam=7"]),
    ("er", "lwf", ["strategy.memory_size=40"], []),
    ("er", "gem", ["strategy.memory_size=40"], ["+plus.gem.memory_size=40"]),
    ("er", "agem", ["strategy.memory_size=40"], ["+plus.agem.memory_size=40", "+plus.agem.reference_size=8"]),
    ("ewc", "l2", [], ["+plus.l2.from_start=false"]),
    ("gem", "ewc", ["strategy.memory_size=40"], []),
    ("joint", "gem", [], ["+plus.gem.memory_size=40"]),
    ("ewc", "spectral", [], ["+plus.spectral.lam=0.1"]),
    ("predkd", "l2", [], []),
    ("predkd", "ewc", [], []),
    ("predkd", "featkd", [], []),
]

OTHER_PAIRS = [
    ("er", "continual_backprop", ["strategy.memory_size=40"], ["+plus.continual_backprop.maturity=1"]),
    ("gem", "shrink_perturb", ["strategy.memory_size=40"], []),
    ("acil", "spectral", ["strategy.width=20"], []),
]
"""Of which one adds no term to the loss, or adds it in the first task only."""


@pytest.mark.parametrize(("first", "second", "options", "plus"), PAIRS)
def test_terms_are_those_of_the_separate_strategies(
    first, second, options, plus, small_trainer, learn_tasks, task_of, batch_of
):
    """Two learners with one strategy each, given the same weights and memories, name the same terms together."""
    both = small_trainer(f"strategy={first}", f"strategy.plus=[{second}]", *options, *plus, checkpoint="both")
    learn_tasks(both, 2)
    both.learner.begin_task(task_of(both, 2))
    task = task_of(both, 2)
    plan = both.learner.plan(task)
    batch = batch_of(
        both,
        plan.new[0],
        None if plan.replay is None else plan.replay[0],
        None if plan.reference is None else plan.reference[0],
    )
    with torch.no_grad():
        for p in both.learner.model.parameters():
            p.add_(0.05 * torch.randn_like(p))
    terms = both.learner.loss(batch)
    gradient = torch.randn_like(both.learner.strategies[0].flat_parameters())
    edited = both.learner.edit_gradients(gradient, batch)

    expected = {}
    for index, name in enumerate((first, second)):
        chosen = options if index == 0 else [o.replace(f"+plus.{second}", "strategy") for o in plus]
        alone = small_trainer(f"strategy={name}", *chosen, checkpoint=name)
        learner = alone.learner
        learner.model.load_state_dict(both.learner.model.state_dict())
        learner.strategies[0].load_state_dict(both.learner.strategies[index].state_dict())
        learner.resume_at(2)
        learner.train()
        separate = learner.loss(batch)
        expected |= separate if index == 0 else {k: v for k, v in separate.items() if k == name}
        if name in ("gem", "agem"):
            torch.testing.assert_close(edited, learner.edit_gradients(gradient, batch))
        alone_plan = learner.plan(task)
        for ours, theirs in ((plan.replay, alone_plan.replay), (plan.reference, alone_plan.reference)):
            assert theirs is None or all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert terms.keys() == expected.keys()
    for name, term in terms.items():
        torch.testing.assert_close(term, expected[name])


@pytest.mark.parametrize(("first", "second", "options", "plus"), [*PAIRS, *OTHER_PAIRS])
def test_pairs_run(first, second, options, plus, small_trainer):
    trainer = small_trainer(f"strategy={first}", f"strategy.plus=[{second}]", *options, *plus)
    trainer.fit()
    assert trainer.iteration == 20


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [
        ("er", "joint", "er and joint cannot be combined: each of them decides the loss on the batch's samples"),
        (
            "l2",
            "dst",
            r"dst makes a network for every task and has to be the main strategy: strategy=dst strategy\.plus=\[l2\]",
        ),
        (
            "dst",
            "ewc",
            "dst and ewc cannot be combined: dst makes a network for every task, which ewc knows nothing of",
        ),
        ("gem", "agem", "gem and agem cannot be combined: each of them decides the gradient's projection"),
        ("acil", "er", "acil and er cannot be combined: acil learns without gradients and in one pass"),
        ("ranpac", "spectral", "ranpac and spectral cannot be combined"),  # no network is trained
        ("dst", "redo", "dst and redo cannot be combined"),
    ],
)
def test_pairs_that_contradict_each_other_are_refused(first, second, reason, small_setup):
    with pytest.raises(ConfigError, match=reason):
        small_setup(f"strategy={first}", f"strategy.plus=[{second}]", "scenario=split_digits_task")


def test_options_of_an_added_strategy(small_setup):
    setup = small_setup("strategy=er", "strategy.plus=[ewc]", "+plus.ewc.lam=5")
    er, ewc = setup.learner.strategies
    assert (er.name, ewc.name) == ("er", "ewc")
    assert ewc.lam == 5
    assert ewc.options.fisher == "empirical"  # the rest is from its YAML file
    with pytest.raises(ConfigError, match=r"plus\.ewc: Key 'lamda' not in 'EWCConfig'"):
        small_setup("strategy=er", "strategy.plus=[ewc]", "+plus.ewc.lamda=5")


@pytest.mark.parametrize("name", STRATEGIES.names())
def test_every_strategy_declares_what_it_needs(name):
    cls = STRATEGIES[name]
    assert isinstance(vars(cls)["needs"], Needs)
    assert cls.needs.memory == ("memory_size" in cls.config.__dataclass_fields__)
    assert set(cls.needs.settings) <= {"class", "task", "domain"}


@pytest.mark.parametrize("setting", ["class", "task"])
def test_flat_gradient_is_autograds_and_leaves_no_trace(setting, small_trainer_with_batch_norm, learn_tasks):
    """In training mode: batch statistics normalise, running statistics stay; the result is cut off from the graph."""
    scenario = {"class": "split_digits", "task": "split_digits_task"}[setting]
    trainer = small_trainer_with_batch_norm(
        "strategy=gem", f"scenario={scenario}", "model=slim_resnet18", "model.width=2"
    )
    learn_tasks(trainer, 1)
    trainer.task = 1
    trainer.train_mode()
    strategy, model = trainer.learner.strategies[0], trainer.learner.model
    samples = trainer.inputs.plain(trainer.scenario.train, trainer.scenario.train.ids(0)[:12])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    gradient = strategy.flat_gradient(samples)
    assert not gradient.requires_grad
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    loss = strategy.cross_entropy(model(samples.x), samples).mean()
    expected = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, trainer.parameters)])
    torch.testing.assert_close(gradient, expected)
    assert not torch.equal(model.backbone.bn1.running_mean, before["backbone.bn1.running_mean"])


@pytest.mark.parametrize("name", ["gem", "agem", "ewc", "l2", "lwf"])
def test_batch_norm_statistics_are_a_function_of_the_training_batches(name, small_trainer_with_batch_norm, learn_tasks):
    """Whatever a strategy looks at beside its batch: after the first step of task 2 they equal finetuning's."""
    statistics = {}
    for strategy in ("finetune", name):
        memory = ["strategy.memory_size=40"] if strategy in ("gem", "agem") else []
        weights = ["strategy.from_start=false"] if strategy == "l2" else []
        trainer = small_trainer_with_batch_norm(f"strategy={strategy}", *memory, *weights, checkpoint=strategy)
        learn_tasks(trainer, 1)
        trainer.config.trainer.max_steps_per_task = 1
        trainer.task = 1
        trainer.fit_task()
        state = trainer.learner.model.state_dict()
        statistics[strategy] = {key: value for key, value in state.items() if "running" in key or "tracked" in key}
    assert len(statistics[name]) == 60
    for key, value in statistics["finetune"].items():
        assert torch.equal(statistics[name][key], value), key
