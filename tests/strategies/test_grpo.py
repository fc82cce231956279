"""GRPO against plain loops, against closed forms of its expected gradient, and against what implementations get wrong."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from clbench.errors import ConfigError
from clbench.learning.base import Batch, Outputs
from clbench.learning.parts import rollouts
from clbench.options import to_dataclass
from clbench.scenarios.scenario import Samples
from clbench.strategies import grpo
from clbench.testing.small_runs import composed, in_double_precision
from clbench.testing.stepping import finish_task

ON_POLICY = [
    "strategy.steps_per_rollout=1",
    "strategy.clip_low=null",
    "strategy.clip_high=null",
    "strategy.dual_clip=null",
]
STREAM = ["scenario.tasks=3", "scenario.frozen=null", "trainer.lr=0.5"]
GRPO = ["strategy=grpo", *STREAM]


def expected(kind, n, right):
    """Advantages of a group of which the first ``right`` of ``n`` answers are right, written out."""
    rewards = [1.0] * right + [0.0] * (n - right)
    mean = sum(rewards) / n
    found = []
    for i, reward in enumerate(rewards):
        if kind == "grpo":
            std = math.sqrt(sum((r - mean) ** 2 for r in rewards) / (n - 1))
            found.append((reward - mean) / (std + 1e-6))
        elif kind == "rloo":
            found.append(reward - (sum(rewards) - reward) / (n - 1))
        else:
            found.append(reward - 1.0)
        assert i < n
    return rewards, found


@pytest.mark.parametrize("kind", ["grpo", "rloo", "remax"])
@pytest.mark.parametrize("right", [0, 1, 4, 8])
def test_advantages_are_those_of_a_loop(kind, right):
    rewards, found = expected(kind, 8, right)
    made = grpo.advantages(kind, torch.tensor([rewards], dtype=torch.float64), torch.ones(1, dtype=torch.float64))
    torch.testing.assert_close(made[0], torch.tensor(found, dtype=torch.float64))


def test_the_std_is_that_of_a_sample():
    """With n instead of n − 1, one right answer of 8 would count 2.646."""
    made = grpo.advantages("grpo", torch.tensor([[1.0, *[0.0] * 7]]), torch.zeros(1))[0]
    assert made[:2].tolist() == pytest.approx([2.4749, -0.3536], abs=1e-4)


def gradient_of(strategy, logits, y, answers, monkeypatch):
    """The gradient with respect to the logits (1, C) of the loss terms where these answers (n,) are drawn."""
    monkeypatch.setattr(grpo, "drawn", lambda policy, uniforms: answers[None])
    x = torch.zeros(1, 1, 8, 8, dtype=logits.dtype)
    samples = Samples(x, torch.tensor([y]), torch.zeros(1, dtype=torch.int64))
    batch = Batch(samples, torch.zeros(1, dtype=torch.int64), 1, columns={"grpo.key": torch.tensor(1)})
    leaf = logits.clone().requires_grad_()
    terms = strategy.data_loss(batch, Outputs(x, leaf))
    return {name: torch.autograd.grad(term, leaf, retain_graph=True)[0][0] for name, term in terms.items()}


def on_a_single_sample(small_trainer, kind, *overrides):
    trainer = in_double_precision(
        small_trainer(*GRPO, *ON_POLICY, f"strategy.advantage={kind}", "strategy.group_size=3", *overrides)
    )
    trainer.begin_task()
    return trainer.learner.strategies[0], torch.tensor([[0.7, -0.4, *[3.0] * 4]], dtype=torch.float64)


def expectation(strategy, logits, y, visible, monkeypatch):
    """Expected gradients (C,) by term, by brute force over all tuples of three answers out of the visible ones."""
    policy = logits[0, visible].softmax(0)
    total = {}
    for tuple_ in itertools.product(range(len(visible)), repeat=3):
        probability = policy[list(tuple_)].prod()
        answers = torch.tensor([visible[a] for a in tuple_])
        for name, gradient in gradient_of(strategy, logits, y, answers, monkeypatch).items():
            total[name] = total.get(name, 0) + probability * gradient
    return total


@pytest.mark.parametrize("kind", ["grpo", "rloo", "remax"])
def test_the_expected_gradient_is_the_closed_form(kind, small_trainer, monkeypatch):
    """−∂π(y)/∂z; with the division by the std times a factor that is a sum over how many answers are right."""
    strategy, logits = on_a_single_sample(small_trainer, kind, "scenario.logit_scope=all", "strategy.kl=null")
    logits = logits[:, :6] * 0.5
    y, n = 1, 3
    leaf = logits.clone().requires_grad_()
    right = leaf.softmax(1)[0, y]
    (towards,) = torch.autograd.grad(right, leaf)
    p, factor = right.item(), 1.0
    if kind == "grpo":
        factor = 0.0
        for k in range(n + 1):
            std = math.sqrt(k * (n - k) / (n * (n - 1)))
            of_right, of_wrong = (1 - k / n) / (std + 1e-6), -(k / n) / (std + 1e-6)
            weight = math.comb(n, k) * p**k * (1 - p) ** (n - k)
            factor += weight * (k * of_right / (n * p) - (n - k) * of_wrong / (n * (1 - p)))
    found = expectation(strategy, logits, y, list(range(6)), monkeypatch)
    torch.testing.assert_close(found["new"], -factor * towards[0])
    assert kind != "grpo" or factor > 1.1


def test_the_kl_terms_expected_gradient_is_that_of_the_other_direction(small_trainer, monkeypatch):
    """As a loss on drawn answers k3 follows KL(π_ref ‖ π), whatever it estimates."""
    strategy, logits = on_a_single_sample(small_trainer, "rloo", "scenario.logit_scope=all", "strategy.kl=0.3")
    reference = torch.tensor([0.1, 0.5, -0.3, 0.2, -0.1, 0.4], dtype=torch.float64).log_softmax(0)[None]
    monkeypatch.setattr(strategy, "_of", lambda policy, samples: reference)
    logits = logits[:, :6] * 0.5
    leaf = logits.clone().requires_grad_()
    kl = (reference.exp() * (reference - leaf.log_softmax(1))).sum()
    (towards,) = torch.autograd.grad(0.3 * kl, leaf)
    found = expectation(strategy, logits, 1, list(range(6)), monkeypatch)
    torch.testing.assert_close(found["kl"], towards[0])


def test_groups_without_variance_have_no_gradient(small_trainer, monkeypatch):
    for kind in ("grpo", "rloo"):
        strategy, logits = on_a_single_sample(small_trainer, kind, "strategy.kl=null")
        for answer in (0, 1):
            gradients = gradient_of(strategy, logits, 1, torch.tensor([answer] * 3), monkeypatch)
            assert gradients["new"].abs().max() == 0


@pytest.mark.parametrize(("greedy", "moves"), [(1, False), (0, True)])
def test_remax_compares_with_the_most_probable_answer(greedy, moves, small_trainer, monkeypatch):
    """Any baseline has the same expected gradient; where all answers are right, only that of a wrong greedy one leaves any."""
    strategy, _ = on_a_single_sample(small_trainer, "remax", "strategy.kl=null")
    logits = torch.zeros(1, 6, dtype=torch.float64)
    logits[0, greedy] = 0.5
    gradient = gradient_of(strategy, logits, 1, torch.tensor([1, 1, 1]), monkeypatch)["new"]
    assert (gradient.abs().max() > 0) == moves


def test_kl_estimate_is_never_negative_and_zero_where_policies_agree():
    p, q = torch.meshgrid(*[torch.linspace(-9, -0.01, 40).double()] * 2, indexing="ij")
    kl = grpo.kl_estimate(p, q)
    assert (kl >= 0).all()
    assert (kl.diagonal() == 0).all()
    assert kl.max() == 10
    assert float(grpo.kl_estimate(torch.tensor(-1.0), torch.tensor(-0.5))) == pytest.approx(math.exp(0.5) - 1.5)


def test_draws_follow_the_policy_and_never_reach_a_hidden_class(small_trainer):
    policy = torch.tensor([[-math.inf, 0.2, -math.inf, 0.5, 0.3, -math.inf]]).clone()
    policy[0, [1, 3, 4]] = policy[0, [1, 3, 4]].log()
    largest = 1 - 2.0**-53
    edges = torch.tensor([[0.0, 0.19, 0.21, 0.69, 0.71, largest]], dtype=torch.float64)
    assert rollouts.drawn(policy, edges).tolist() == [[1, 1, 3, 3, 4, 4]]
    uniforms = (torch.arange(1000, dtype=torch.float64)[None] + 0.5) / 1000
    assert rollouts.drawn(policy, uniforms)[0].bincount(minlength=6).tolist() == [0, 200, 0, 500, 300, 0]
    trainer = small_trainer(*GRPO)
    trainer.begin_task()
    batch = trainer._batch_of(trainer.steps[0], 0)
    logits = torch.zeros(len(batch.ids), trainer.learner.model.answer.n_classes)
    answers = rollouts.drawn(
        rollouts.log_policy(trainer.learner.model.answer, logits, batch.samples),
        torch.rand(len(batch.ids), 50).double(),
    )
    assert set(answers.flatten().tolist()) == {0, 1}


def loss_of_a_loop(strategy, log_now, log_old, log_reference, y, answers):
    """Policy loss and KL of a batch, answer by answer, with the options of the paper."""
    policy, kl, n = 0.0, 0.0, len(answers[0])
    for i, group in enumerate(answers):
        rewards = [float(a == y[i]) for a in group]
        mean = sum(rewards) / n
        std = math.sqrt(sum((r - mean) ** 2 for r in rewards) / (n - 1))
        for a, reward in zip(group, rewards, strict=True):
            advantage = (reward - mean) / (std + 1e-6)
            ratio = math.exp(log_now[i][a] - log_old[i][a])
            gain = min(ratio * advantage, min(max(ratio, 0.8), 1.3) * advantage)
            if advantage < 0:
                gain = max(gain, 3 * advantage)
            policy -= gain
            d = log_reference[i][a] - log_now[i][a]
            kl += min(math.exp(d) - d - 1, 10)
    return policy / (n * len(y)), 0.01 * kl / (n * len(y))


def test_the_loss_is_that_of_a_loop_over_answers(small_trainer, monkeypatch):
    """Away from the policy that has drawn them, where some ratios are clipped, low, high and twice."""
    trainer = in_double_precision(small_trainer(*GRPO, "trainer.batch_size=16"))
    trainer.begin_task()
    strategy, model = trainer.learner.strategies[0], trainer.learner.model
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.6 * torch.randn(weight.shape, generator=generator))
    batch = trainer._batch_of(trainer.steps[1], 0)
    x, y = batch.samples.x, batch.samples.y.tolist()
    drawn, chosen = grpo.drawn, []

    def watched(policy, uniforms):
        chosen.append((policy.tolist(), drawn(policy, uniforms)))
        return chosen[-1][1]

    monkeypatch.setattr(grpo, "drawn", watched)
    values = []
    clipped = grpo.GRPO._clipped
    monkeypatch.setattr(grpo.GRPO, "_clipped", lambda self, *a: values.append(clipped(self, *a)) or values[-1])
    terms = trainer.learner.loss(batch)
    (old, answers) = chosen[0]
    policies = [
        torch.func.functional_call(model, weights, (x,))[:, :2].log_softmax(1).tolist()
        for weights in ({}, strategy.rollout.weights(), strategy.reference.weights())
    ]
    assert torch.tensor(policies[1]).allclose(torch.tensor(old)[:, :2])
    policy, kl = loss_of_a_loop(strategy, *policies, y, answers.tolist())
    assert values[0].mean().item() == pytest.approx(policy, rel=1e-6)
    assert terms["kl"].item() == pytest.approx(kl, rel=1e-6)
    assert terms["new"].item() == pytest.approx(-(answers == batch.samples.y[:, None]).double().mean().item())
    ratios = (torch.tensor(policies[0]).gather(1, answers) - torch.tensor(policies[1]).gather(1, answers)).exp()
    right = answers == batch.samples.y[:, None]
    assert (ratios[right] > 1.3).any()
    assert (ratios[~right] < 0.8).any()
    assert (ratios[~right] > 3).any()


def test_a_rollout_lasts_as_long_as_it_says(small_trainer):
    """Its policy is that before every third step, and of no step between."""
    options = ["strategy.steps_per_rollout=3", "trainer.max_steps_per_task=8"]
    trainer = small_trainer(*GRPO, *options)
    trainer.begin_task()
    strategy, model = trainer.learner.strategies[0], trainer.learner.model
    while trainer.step < 8:
        same = all(torch.equal(w, model.trained()[n]) for n, w in strategy.rollout.weights().items())
        assert same == (trainer.step % 3 == 0)
        trainer.advance()
    trainer.end_task()
    trainer.begin_task()
    assert all(torch.equal(w, model.trained()[n]) for n, w in strategy.rollout.weights().items())


def test_a_batch_that_is_trained_on_several_times_keeps_its_answers_within_a_rollout(small_trainer):
    trainer = small_trainer(*GRPO, "trainer.steps_per_batch=3", "trainer.max_steps_per_task=9")
    trainer.begin_task()
    keys = [int(step.columns["grpo.key"]) for step in trainer.steps]
    assert keys[0] == keys[1] == keys[2]
    assert keys[4] == keys[5]
    assert len(set(keys)) == 5  # steps 0-2, 3, 4-5, 6-7 and 8: rollouts begin with 0, 4 and 8
    assert keys[6] == keys[7]


def test_ratios_are_one_where_a_rollout_begins_with_batch_norm_too(small_trainer_with_batch_norm, monkeypatch):
    """An earlier policy in evaluation mode would normalise otherwise than the network does in training."""
    trainer = small_trainer_with_batch_norm("strategy=grpo")
    seen = []
    clipped = grpo.GRPO._clipped

    def watched(self, log_ratio, advantage):
        seen.append(log_ratio.detach().abs().max().item())
        return clipped(self, log_ratio, advantage)

    monkeypatch.setattr(grpo.GRPO, "_clipped", watched)
    trainer.begin_task()
    finish_task(trainer)
    assert seen[0] == 0
    assert min(seen[1:4]) > 0


@pytest.mark.parametrize(("reference", "moves"), [("task", True), ("start", False)])
def test_what_the_reference_is(reference, moves, small_trainer):
    trainer = small_trainer(*GRPO, f"strategy.reference={reference}")
    strategy, model = trainer.learner.strategies[0], trainer.learner.model
    at_start = {n: w.clone() for n, w in strategy.reference.weights().items()}
    trainer.fit_task()
    after = {n: w.detach().clone() for n, w in model.trained().items()}
    trainer.begin_task()
    name = next(n for n in after if n.startswith("backbone"))
    assert torch.equal(strategy.reference.weights()[name], after[name] if moves else at_start[name])
    new = model.answer.first_seen == 1  # rows that are drawn for the task's classes
    assert torch.equal(strategy.reference.weights()["head.weight"][new], model.head.weight[new])


def test_sees_the_batches_of_its_supervised_twin(small_trainer):
    """finetune on the same stream: the same samples, step by step, from the same weights."""
    first, second = (small_trainer(f"strategy={name}", *STREAM, checkpoint=name) for name in ("grpo", "finetune"))
    for name, weight in first.learner.model.state_dict().items():
        assert torch.equal(weight, second.learner.model.state_dict()[name])
    for _ in range(3):
        seen = []
        for trainer in (first, second):
            trainer.begin_task()
            seen.append([trainer._batch_of(step, trainer.task).samples.x for step in trainer.steps])
            finish_task(trainer)
        assert len(seen[0]) == 4
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(*seen, strict=True))


def test_what_it_reports(small_trainer):
    """Means over the task's steps of closed forms of the probabilities before each step."""
    trainer = in_double_precision(small_trainer(*GRPO, "strategy.group_size=4"))
    for _ in range(2):
        trainer.begin_task()
        means = []
        while trainer.step < len(trainer.steps):
            batch = trainer._batch_of(trainer.steps[trainer.step], trainer.task)
            seen = 2 * (trainer.task + 1)
            policy = trainer.learner.model(batch.samples.x).detach()[:, :seen].softmax(1)
            right = [float(row[y]) for row, y in zip(policy, batch.samples.y, strict=True)]
            entropy = float(-(policy * policy.log()).sum(1).mean())
            means.append((sum(right) / len(right), sum(p**4 + (1 - p) ** 4 for p in right) / len(right), entropy))
            trainer.advance()
        trainer.end_task()
    reported = {m.quantity: m.value for m in trainer.learner.strategies[0].measurements()}
    expected = [sum(values) / len(values) for values in zip(*means, strict=True)]
    assert list(reported) == ["expected_reward", "zero_variance_share", "policy_entropy"]
    assert list(reported.values()) == pytest.approx(expected, rel=1e-5)


def test_learns_from_rewards_alone(small_trainer):
    trainer = small_trainer(*GRPO, "trainer.max_steps_per_task=60", "trainer.lr=0.1", "evaluator.every=0")
    trainer.fit_task()
    samples = trainer.inputs.plain(trainer.scenario.train, trainer.scenario.train.ids(0))
    logits = trainer.learner.model(samples.x)[:, :2]
    assert F.cross_entropy(logits, samples.y) < 0.2


def test_options_without_effect_are_refused(small_setup):
    with pytest.raises(
        ConfigError, match=r"strategy.clip_low=0.2 .* set strategy.clip_low=null strategy.clip_high=null "
    ):
        small_setup("strategy=grpo", "strategy.steps_per_rollout=1")
    small_setup("strategy=grpo", *ON_POLICY)
    with pytest.raises(ConfigError, match=r"strategy.reference=start .* strategy.kl=null has none"):
        small_setup("strategy=grpo", "strategy.kl=null", "strategy.reference=start")


def test_a_warm_start_is_finetuning_and_the_reference_follows_it(small_trainer):
    warm = ["strategy.warm_start=true", "strategy.reference=start"]
    trainer, twin = small_trainer(*GRPO, *warm), small_trainer("strategy=finetune", *STREAM, checkpoint="twin")
    for one in (trainer, twin):
        one.fit_task()
    for a, b in zip(trainer.learner.model.parameters(), twin.learner.model.parameters(), strict=True):
        assert torch.equal(a, b)
    trainer.begin_task()
    model, reference = trainer.learner.model, trainer.learner.strategies[0].reference
    at_start = {n: w.clone() for n, w in reference.weights().items()}
    assert all(torch.equal(w, model.trained()[n]) for n, w in at_start.items())
    finish_task(trainer)
    assert set(trainer.training.term[trainer.training.task_learning == 1]) == {"new", "kl"}
    trainer.begin_task()
    rows = [n for n in at_start if n.startswith("backbone")]
    assert all(torch.equal(reference.weights()[n], at_start[n]) for n in rows)


def test_the_pair_of_experiments_differs_in_the_strategy_alone():
    name = "experiment=rotated_mnist_reinforcement"
    ours, twin = (to_dataclass(composed(f"{name}_{strategy}")) for strategy in ("grpo", "finetune"))
    for group in ("scenario", "model", "trainer", "evaluator", "data"):
        assert getattr(ours, group) == getattr(twin, group)
    assert ours.strategy.warm_start
