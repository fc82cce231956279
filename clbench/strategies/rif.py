"""RIF: rollout-based instance filtering (Lai et al., arXiv:2507.05386), for any method that trains on the task's samples.

Before a task's first step, n answers are drawn for each of its samples from the network's softmax over the classes that the
sample may see. Only samples with at least ``min_correct`` right answers, and at most ``max_correct``, are trained on:

    keep x  if  min ≤ #{ a_i = y } ≤ max,    a_1 … a_n ~ π(· | x) at the start of the task

The paper keeps what is solved at least once in 8 draws, and what is always solved too, though it gives GRPO no gradient;
``max_correct`` is ours. Once per task, and not again; with ``unfiltered_tasks=1`` the first task is trained on in full. Where
nothing would be kept, all is, and a note says so. An epoch is a pass over what is kept: for as many steps as without the filter
set ``trainer.max_steps_per_task``. Answers are drawn in evaluation mode, of samples without augmentation; the paper's code
filters by one checkpoint, which may have been the untrained model.

``strategy=grpo strategy.plus=[rif]`` is RIF-RFT, ``strategy=finetune strategy.plus=[rif]`` its supervised twin.

Reported after every task: ``kept_share`` of the task's samples, and ``correct_share``, the share of samples with k of n right
answers, for every k. Stores one bit per training sample. A task costs one more forward pass of its samples.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from clbench.config import StrategyConfig
from clbench.errors import ConfigError
from clbench.learning.base import Measurement, Needs, Plan, Strategy
from clbench.learning.parts.rollouts import drawn, log_policy
from clbench.models.continual import ContinualModel
from clbench.options import option
from clbench.registry import STRATEGIES
from clbench.scenarios.scenario import Scenario
from clbench.scenarios.task import Task

SAMPLES_AT_ONCE = 256


@dataclass
class RIFConfig(StrategyConfig):
    """Options of ``strategy=rif``."""

    rollouts: int = option(help="answers n that are drawn for every sample", at_least=1)
    min_correct: int = option(help="right answers that a sample needs to be kept", at_least=0)
    max_correct: int | None = option(None, help="right answers that it may have; null: all", at_least=0)
    unfiltered_tasks: int = option(
        0,
        help="tasks at the start that are trained on in full, e.g. 1 where the first warms the network up",
        at_least=0,
    )


@STRATEGIES.register("rif")
class RIF(Strategy):
    """Trains on those samples of a task that the network solves now and then."""

    config = RIFConfig
    needs = Needs(traits=frozenset({"reads logits", "leaves out samples"}))
    options: RIFConfig
    kept: Tensor
    counts: Tensor
    tasks_without: Tensor

    def __init__(self, config: RIFConfig, model: ContinualModel, scenario: Scenario) -> None:
        super().__init__(config, model, scenario)
        most = config.rollouts if config.max_correct is None else config.max_correct
        if not config.min_correct <= most <= config.rollouts:
            raise ConfigError(
                f"strategy.min_correct={config.min_correct} and strategy.max_correct={config.max_correct} of strategy.rollouts="
                f"{config.rollouts} right answers keep nothing, or ask for more than are drawn: it has to be min_correct ≤ "
                "max_correct ≤ rollouts"
            )
        if config.unfiltered_tasks >= scenario.n_tasks:
            raise ConfigError(
                f"strategy.unfiltered_tasks={config.unfiltered_tasks} leaves none of the {scenario.n_tasks} tasks of "
                f"{scenario.name} to be filtered: it has to be at most {scenario.n_tasks - 1}"
            )
        self._most = most
        self.register_buffer("kept", torch.zeros(len(scenario.train.labels), dtype=torch.bool))
        self.register_buffer("counts", torch.zeros(config.rollouts + 1, dtype=torch.int64))  # samples by right answers
        self.register_buffer("tasks_without", torch.zeros(scenario.n_tasks, dtype=torch.bool))

    @torch.no_grad()
    def begin_task(self, task: Task) -> None:
        ids = task.ids
        self.counts.zero_()
        if not self._filters(task):
            return
        right = self._right_answers(task, ids)
        keep = (right >= self.options.min_correct) & (right <= self._most)
        self.tasks_without[task.index] = ~keep.any()
        self.kept.zero_()
        self.kept[ids.to(self.kept.device)] = keep | ~keep.any()
        self.counts.copy_(torch.bincount(right, minlength=len(self.counts)))

    def _filters(self, task: Task) -> bool:
        return task.index >= self.options.unfiltered_tasks

    def _right_answers(self, task: Task, ids: Tensor) -> Tensor:
        """How many of the answers that are drawn for samples (n,) are right, int64 (n,)."""
        rng, n = task.numpy_generator("rollouts of the filter"), self.options.rollouts
        found = []
        with self.model.in_evaluation_mode():
            for samples in task.batches(ids, SAMPLES_AT_ONCE):
                policy = log_policy(self.model.answer, self.model(samples.x), samples)
                uniforms = torch.from_numpy(rng.random((len(samples.y), n))).to(policy.device)
                found.append((drawn(policy, uniforms) == samples.y[:, None]).sum(1))
        return torch.cat(found)

    def plan(self, task: Task, plan: Plan) -> Plan:
        """Batches of what is kept, in place of those of all."""
        if not self._filters(task):
            return plan
        kept = task.ids[self.kept.cpu()[task.ids]]
        return plan._replace(new=task.shuffled_batches(kept, in_order=task.ordered))

    def measurements(self) -> list[Measurement]:
        """What has been kept of the last task."""
        n = int(self.counts.sum())
        if not n:
            return []
        shares = [
            Measurement("correct_share", f"{k} of {self.options.rollouts}", count / n)
            for k, count in enumerate(self.counts.tolist())
        ]
        return [Measurement("kept_share", "", int(self.kept.sum()) / n), *shares]

    def notes(self) -> list[str]:
        tasks = [str(task + 1) for task in self.tasks_without.nonzero().flatten().tolist()]
        if not tasks:
            return []
        return [
            f"no sample of task {', '.join(tasks)} had between {self.options.min_correct} and {self._most} right answers of "
            f"{self.options.rollouts}: all of its samples were trained on"
        ]
