"""GRPO: reinforcement fine-tuning, with the network's softmax as the policy (as set up by Lai et al., arXiv:2507.05386).

A class is an answer. For every sample n answers a are drawn from the rollout policy π_old, over the classes that the sample may
see, and each is rewarded by R = 1 if it is the label, else 0. With r = π(a) / π_old(a) and the advantages A of the n rewards:

    L = − mean min( r A, clip(r, 1 − ε_low, 1 + ε_high) A )  +  β · mean( exp(q − p) − (q − p) − 1 )
    advantage=grpo    A = (R − mean) / (std + 1e-6)     std of the group with n − 1     (Shao et al., arXiv:2402.03300)
    advantage=rloo    A = R − mean of the other n − 1 rewards                           (Ahmadian et al., arXiv:2402.14740)
    advantage=remax   A = R − reward of the most probable answer                        (Li et al., arXiv:2310.10505)

p = log π(a), q = log π_ref(a). Where A < 0 the first term's min is at least c A (``dual_clip``). π_old is the network as it was
at the start of the rollout: every ``steps_per_rollout`` steps it is taken anew. With 1, r is 1 and nothing is clipped.
π_ref is the network at the start of the task, or of the run. A group of equal rewards has no gradient (grpo, rloo).

What that comes to for a single sample with π(y) the label's probability, and its logits z: with one step per rollout the
expected gradient of rloo is −∂π(y)/∂z, which is π(y) (1 − π(y)) in size where cross-entropy's is 1 − π(y): samples that are
solved, and those that are hopeless, move nothing. From a network that knows nothing most groups are all wrong; it is meant for
one that has been trained. The gradient of the KL term as it stands is, in expectation, that of KL(π_ref ‖ π), not KL(π ‖ π_ref).

With ``warm_start`` the first task is trained by cross-entropy, exactly as ``finetune`` does, and π_ref of ``reference=start`` is
the network after it.

This is a stand-in for a language model's whole answers: one draw is one answer, and there is no format to reward. With
``model.head=verbaliser`` the classes are the one-token answers of a language model, and the policy is over these alone.
Differences to the paper's code: exact label match is the reward; rollouts have no top-p. The supervised twin is ``finetune``,
which sees the same batches in the same order; ``rif`` filters samples for both.

Of the recorded loss, ``new`` is minus the mean reward of the drawn answers: the estimator gives the gradient, and its value says
nothing. Reported after every task, as means over its steps, from the network's probabilities: ``expected_reward`` π(y),
``zero_variance_share`` π(y)ⁿ + (1 − π(y))ⁿ, how likely a group's rewards are all equal, and ``policy_entropy`` in nats.

Stores a copy of the trained weights for π_old and one for π_ref, where it has them; each takes one more forward pass.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from clbench.config import StrategyConfig
from clbench.errors import ConfigError
from clbench.learning.base import Batch, Measurement, Needs, Outputs, Plan, Strategy
from clbench.learning.parts.rollouts import drawn, log_policy
from clbench.learning.parts.shadow_weights import ShadowWeights
from clbench.models.continual import ContinualModel
from clbench.options import option
from clbench.registry import STRATEGIES
from clbench.scenarios.scenario import Samples, Scenario
from clbench.scenarios.task import Task
from clbench.seeding import hashed_uniform

STD_OFFSET = 1e-6
LARGEST_KL = 10.0
"""Of one answer; what is larger counts as this, without a gradient."""


@dataclass
class GRPOConfig(StrategyConfig):
    """Options of ``strategy=grpo``."""

    advantage: str = option(
        help="what the rewards of a sample's answers are compared with", choices=("grpo", "rloo", "remax")
    )
    group_size: int = option(help="answers n that are drawn for every sample", at_least=2)
    steps_per_rollout: int = option(
        help="optimizer steps for which one policy draws the answers; 1: every step's own", at_least=1
    )
    clip_low: float | None = option(
        help="ε_low: ratios below 1 − ε_low gain nothing; null: no bound", above=0, at_most=1
    )
    clip_high: float | None = option(help="ε_high: ratios above 1 + ε_high gain nothing; null: no bound", above=0)
    dual_clip: float | None = option(
        help="c: bound of the loss at negative advantages, in units of them; null: none", above=1
    )
    kl: float | None = option(help="weight β of the KL term; null: none, and no reference is kept", above=0)
    warm_start: bool = option(
        False, help="train the first task by cross-entropy, so that there are right answers to reward in the next"
    )
    reference: str = option(
        help="the policy that KL is measured to: at the start of the task or of the run", choices=("task", "start")
    )


@STRATEGIES.register("grpo")
class GRPO(Strategy):
    """Rewards for drawn answers in place of cross-entropy."""

    config = GRPOConfig
    needs = Needs(traits=frozenset({"reads weights", "reads logits"}))
    options: GRPOConfig
    clip_low: Tensor
    clip_high: Tensor
    dual_clip: Tensor
    kl: Tensor
    sums: Tensor
    n_steps: Tensor

    def __init__(self, config: GRPOConfig, model: ContinualModel, scenario: Scenario) -> None:
        super().__init__(config, model, scenario)
        _refuse_options_without_effect(config)
        self.flat_parameters()  # raises where nothing is trained
        self.rollout = ShadowWeights(model) if config.steps_per_rollout > 1 else None
        self.reference = ShadowWeights(model) if config.kl is not None else None
        self.register_buffer("sums", torch.zeros(3))  # of what is reported, over the task's steps
        self.register_buffer("n_steps", torch.zeros((), dtype=torch.int64))

    @classmethod
    def traits(cls, options: GRPOConfig) -> frozenset[str]:
        keeps_start = options.kl is not None and options.reference == "start"
        return cls.needs.traits | ({"remembers weights"} if keeps_start else frozenset())

    def begin_task(self, task: Task) -> None:
        if self.rollout is not None:
            self.rollout.remember(self.model)
        starts = task.index == int(self.options.warm_start)
        if self.reference is not None and (self.options.reference == "task" or starts):
            self.reference.remember(self.model)
        self.sums.zero_()
        self.n_steps.zero_()

    def weights_renewed(self, renewed: Tensor) -> None:
        """Rows of new classes, say, begin in all policies with the same values."""
        for policy in (self.rollout, self.reference):
            if policy is not None:
                policy.renew(self.model, renewed)

    def plan(self, task: Task, plan: Plan) -> Plan:
        """A key for every step, which its draws are a function of; while a rollout lasts, the same batch has the same one."""
        rng = task.numpy_generator("rollouts")
        keys: list[Tensor] = []
        for step, new in enumerate(plan.new):
            goes_on = step % self.options.steps_per_rollout > 0 and new is plan.new[step - 1]
            keys.append(keys[-1] if goes_on else torch.tensor(int(rng.integers(2**62))))
        return plan.with_columns(**{"grpo.key": keys})

    def data_loss(self, batch: Batch, outputs: Outputs) -> dict[str, Tensor]:
        if self._supervised:
            return super().data_loss(batch, outputs)
        samples, n = batch.samples, self.options.group_size
        now = log_policy(self.model.answer, outputs.logits, samples)
        with torch.no_grad():
            old = now.detach() if self.rollout is None else self._of(self.rollout, samples)
            uniforms = hashed_uniform(batch.columns["grpo.key"], len(samples.y) * n).view(-1, n)
            answers = drawn(old, uniforms)
            rewards = (answers == samples.y[:, None]).to(old)
            greedy = (old.argmax(1) == samples.y).to(old)
            advantage = advantages(self.options.advantage, rewards, greedy)
        p = now.gather(1, answers)
        loss = self._clipped(p - old.gather(1, answers), advantage).mean()
        terms = {"new": loss - loss.detach() - rewards.mean()}
        if self.reference is not None:
            with torch.no_grad():
                q = self._of(self.reference, samples).gather(1, answers)
            terms["kl"] = self.kl * kl_estimate(p, q).mean()
        return terms

    @property
    def _supervised(self) -> bool:
        """Whether the task being learned is the one that warms the network up."""
        return self.options.warm_start and self.tasks_learned == 0

    def _of(self, policy: ShadowWeights, samples: Samples) -> Tensor:
        """log π (B, n_classes) of an earlier policy, in the mode that the network is in."""
        return log_policy(self.model.answer, policy.logits(self.model, samples.x), samples)

    def _clipped(self, log_ratio: Tensor, advantage: Tensor) -> Tensor:
        """The loss (B, n) of every answer."""
        ratio = log_ratio.exp()
        low = None if self.options.clip_low is None else 1 - self.clip_low
        high = None if self.options.clip_high is None else 1 + self.clip_high
        gain = ratio * advantage
        if low is not None or high is not None:
            gain = torch.minimum(gain, ratio.clamp(low, high) * advantage)
        if self.options.dual_clip is not None:
            gain = torch.where(advantage < 0, torch.maximum(gain, self.dual_clip * advantage), gain)
        return -gain

    @property
    def keeps_outputs(self) -> bool:
        return True

    def after_step(self, step: int, batch: Batch) -> None:
        """Add up what is reported, of the policy before the step; take the rollout policy anew where it is time."""
        assert batch.outputs is not None
        now = log_policy(self.model.answer, batch.outputs.logits, batch.samples)
        right = now.gather(1, batch.samples.y[:, None])[:, 0].exp()
        n = self.options.group_size
        entropy = torch.special.entr(now.exp()).sum(1)
        self.sums.add_(torch.stack([right, right**n + (1 - right) ** n, entropy]).mean(1).to(self.sums))
        self.n_steps.add_(1)
        if self.rollout is not None and step % self.options.steps_per_rollout == 0:
            self.rollout.remember(self.model)

    def measurements(self) -> list[Measurement]:
        """Means over the task's steps."""
        if not self.n_steps:
            return []
        names = ("expected_reward", "zero_variance_share", "policy_entropy")
        return [
            Measurement(name, "", value) for name, value in zip(names, (self.sums / self.n_steps).tolist(), strict=True)
        ]


def advantages(kind: str, rewards: Tensor, greedy: Tensor) -> Tensor:
    """A (B, n) of the rewards (B, n) of every sample's answers; ``greedy`` (B,) is the reward of its most probable one."""
    if kind == "remax":
        return rewards - greedy[:, None]
    centred = rewards - rewards.mean(1, keepdim=True)
    n = rewards.shape[1]
    return centred / (rewards.std(1, keepdim=True) + STD_OFFSET) if kind == "grpo" else centred * (n / (n - 1))


def kl_estimate(p: Tensor, q: Tensor) -> Tensor:
    """exp(q − p) − (q − p) − 1 of answers' log-probabilities by the policy and by the reference (k3; Schulman 2020).

    Never negative, and 0 where they agree. At most :data:`LARGEST_KL`.
    """
    difference = (q - p).clamp(-20, 20)
    return (difference.expm1() - difference).clamp(max=LARGEST_KL)


def _refuse_options_without_effect(config: GRPOConfig) -> None:
    """Refuse bounds where nothing moves away, and a reference that nothing is held to."""
    if config.kl is None and config.reference == "start":
        raise ConfigError(
            "strategy.reference=start is the policy that the KL term is measured to, and strategy.kl=null has none: set "
            "strategy.kl above 0, or leave strategy.reference at task"
        )
    given = [name for name in ("clip_low", "clip_high", "dual_clip") if getattr(config, name) is not None]
    if config.steps_per_rollout == 1 and given:
        raise ConfigError(
            f"strategy.{given[0]}={getattr(config, given[0])} bounds how far the policy moves from the one that has drawn the "
            "answers, which with strategy.steps_per_rollout=1 is the same: set "
            + " ".join(f"strategy.{name}=null" for name in given)
        )
