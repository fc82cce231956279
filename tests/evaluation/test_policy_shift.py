"""The KL from the start of the run against loops over samples and classes, and that it leaves no trace."""

import copy
import math

import pandas as pd
import pytest
import torch

from clbench.errors import ConfigError
from clbench.evaluation.policy_shift import kl_divergence
from clbench.training.fleet import Fleet

KL = "evaluator.kl_from=0"
OPTIONS = ["strategy=finetune", KL, "scenario.tasks=3", "scenario.frozen=null", "trainer.lr=0.05"]


def recorded(trainer, task):
    """(quantity, part) → value after a task."""
    rows = trainer.method[(trainer.method.strategy == "evaluator") & (trainer.method.task_learning == task)]
    return {(row.quantity, row.part): row.value for row in rows.itertuples()}


def mean_kl(p, q):
    """Mean over samples of KL(p ‖ q), from logits (n, C) and written out."""
    total = 0.0
    for one, other in zip(p.double().softmax(1).tolist(), q.double().softmax(1).tolist(), strict=True):
        total += sum(a * math.log(a / b) for a, b in zip(one, other, strict=True))
    return total / len(p)


def test_divergence_of_two_coins():
    p, q = torch.tensor([[0.25, 0.75]]).log(), torch.tensor([[0.5, 0.5]]).log()
    assert float(kl_divergence(p, q)) == pytest.approx(0.25 * math.log(0.5) + 0.75 * math.log(1.5))
    hidden = torch.tensor([[-math.inf]])
    together = kl_divergence(torch.cat([p, hidden], 1), torch.cat([q, hidden], 1))
    assert float(together) == pytest.approx(float(kl_divergence(p, q)))


@pytest.mark.parametrize(("scenario", "strategy"), [("split_digits", "er"), ("split_digits_task", "finetune")])
def test_both_directions_over_the_classes_seen(scenario, strategy, small_trainer):
    """The initial network on the classes that compete now, or on those of the sample's task; er predicts as it does."""
    memory = ["strategy.memory_size=40"] if strategy == "er" else []
    trainer = small_trainer(f"strategy={strategy}", *memory, f"scenario={scenario}", *OPTIONS[1:])
    start = copy.deepcopy(trainer.learner.model).eval()
    assert recorded(trainer, 0) == {}
    for task in range(2):
        trainer.fit_task()
        found = recorded(trainer, task)
        now = trainer.learner.model.eval()
        expected = {}
        for seen in range(task + 1):
            x = trainer.evaluator.first_images(seen, 1000).x
            of_task = slice(2 * seen, 2 * seen + 2) if "task" in scenario else slice(0, 2 * (task + 1))
            p, q = start(x)[:, of_task], now(x)[:, of_task]
            expected["kl_start_to_trained", f"task {seen}"] = mean_kl(p, q)
            expected["kl_trained_to_start", f"task {seen}"] = mean_kl(q, p)
        for name in ("kl_start_to_trained", "kl_trained_to_start"):
            of_tasks = [value for (quantity, _), value in expected.items() if quantity == name]
            expected[name, ""] = sum(of_tasks) / len(of_tasks)
        assert found == pytest.approx(expected, rel=1e-4)
        assert found["kl_start_to_trained", ""] != pytest.approx(found["kl_trained_to_start", ""], rel=1e-3)


def test_the_network_after_the_first_task_is_what_later_ones_are_compared_with(small_trainer):
    trainer = small_trainer(*OPTIONS, "scenario.logit_scope=all", "evaluator.kl_from=1")
    trainer.fit_task()
    assert recorded(trainer, 0) == {}
    start = copy.deepcopy(trainer.learner.model).eval()
    trainer.fit_task()
    x = trainer.evaluator.first_images(1, 1000).x
    expected = mean_kl(start(x), trainer.learner.model.eval()(x))
    assert recorded(trainer, 1)["kl_start_to_trained", "task 1"] == pytest.approx(expected, rel=1e-4)


def test_without_a_step_there_is_no_distance(small_trainer):
    trainer = small_trainer(*OPTIONS, "scenario=split_digits_task", "trainer.lr=1e-30", "trainer.optimizer=sgd")
    trainer.fit()
    assert set(recorded(trainer, 0).values()) == {0.0}


def test_it_does_not_disturb_a_run(small_trainer):
    options = ["model=slim_resnet18", "model.width=2", "scenario.tasks=2", "scenario.frozen=null"]
    looked, plain = small_trainer(KL, *options), small_trainer(*options, checkpoint="plain")
    for trainer in (looked, plain):
        torch.manual_seed(0)
        trainer.fit()
    for a, b in zip(looked.learner.state_dict().values(), plain.learner.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    pd.testing.assert_frame_equal(looked.curve, plain.curve)
    assert plain.method.empty


class Killed(BaseException):
    """Stands for a process that ends between two steps."""


def test_a_resumed_run_records_the_same(small_trainer):
    whole, first = (
        small_trainer(*OPTIONS, "record.checkpoint_seconds=0", checkpoint=name) for name in ("whole", "killed")
    )
    whole.fit()
    train_step = first._train_step

    def step_or_die(*arguments):
        if first.iteration == 6:
            raise Killed
        train_step(*arguments)

    first._train_step = step_or_die
    with pytest.raises(Killed):
        first.fit()
    second = small_trainer(*OPTIONS, checkpoint="killed")
    second.fit()
    pd.testing.assert_frame_equal(whole.method, second.method)


def test_a_fleet_records_the_same(small_trainer):
    alone = small_trainer(*OPTIONS, "seed=1")
    alone.fit()
    members = [small_trainer(*OPTIONS, f"seed={seed}", checkpoint=f"fleet{seed}") for seed in (0, 1)]
    Fleet(members).fit()
    pd.testing.assert_frame_equal(alone.method, members[1].method, rtol=1e-3)


@pytest.mark.parametrize("name", ["hypernetwork", "slda", "scr"])
def test_methods_whose_answers_are_not_the_networks_are_refused(name, small_setup):
    memory = ["strategy.memory_size=40"] if name == "scr" else []
    with pytest.raises(ConfigError, match=f"evaluator.kl_from looks at the softmax of the network, and {name} "):
        small_setup(f"strategy={name}", *memory, KL)


def test_a_number_of_tasks_that_leaves_none_is_refused(small_setup):
    with pytest.raises(ConfigError, match=r"evaluator.kl_from=3 leaves none of the 3 tasks .* at most 2"):
        small_setup("scenario.tasks=3", "scenario.frozen=null", "evaluator.kl_from=3")
