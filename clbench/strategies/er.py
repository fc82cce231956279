"""ER: experience replay (Chaudhry et al. 2019, arXiv:1902.10486).

A memory of M samples; every step trains on B new and B replayed samples in one forward pass:

    L = w · mean CE(new) + (1 − w) · mean CE(replayed)

* ``weighting=fixed``: w = new_weight (De Lange et al. 2023, their Lw_new). As in their code it holds from the first task
  on, where nothing is replayed yet and L = w · mean CE(new).
* ``weighting=tasks``: w = 1/k while learning the k-th task, so that all tasks count equally (van de Ven et al. 2020; Hess et
  al. 2023).
* ``weighting=samples``: w = B_new / (B_new + B_replayed), one mean over all samples (Avalanche, Mammoth).

``loss_scope`` and ``adjustment`` choose the cross-entropy, see :mod:`clbench.learning.parts.replay_losses`.

Stores the ids of the M samples. Variants, which give different results and are not interchangeable:

* ``selection=class_balanced``, ``update=task`` (De Lange et al.): refilled from all classes so far at the end of each task
  with equal counts; replay draws classes equally often, and samples without replacement within a step. ``task_balanced`` is the
  same with tasks in place of classes, each with ⌊M/t⌋ samples (Hsu et al. 2018, arXiv:1810.12488).
* ``selection=reservoir``, ``update=step`` (Chaudhry et al.; Mammoth): a uniform sample of all samples seen so far, those of
  the current task included. A sample counts when it is seen first, not once per epoch (Mammoth counts every epoch).
* ``selection=class_balanced``, ``update=step`` (online replay of Avalanche): a reservoir for every class, which gives up a random
  part as classes come; in domain-incremental streams too it is the class that counts, whatever the domain.
* ``share=stream`` (van de Ven et al. 2022): from the start a class, or task, has only the share that it will have in the end;
  with ``share=seen`` the first ones have all the memory, until others come.
* ``mixing=data_set`` (naive rehearsal of Hsu et al.): instead of adding replayed samples to every step, the memory is put into
  the task's data, max(⌊n/M⌋, 1) times for n samples, so that the two are about as large. Batches of ``trainer.batch_size`` are
  drawn from both: the first task trains with full batches, and later ones, with ``trainer.epochs``, take more steps.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from clbench.config import StrategyConfig
from clbench.errors import ConfigError
from clbench.learning.base import Batch, Needs, Outputs, Plan, Strategy
from clbench.learning.parts.memory import EMPTY
from clbench.learning.parts.replay_losses import SCOPES, ClassPrior, check_scope, cross_entropies
from clbench.learning.parts.replay_policy import ReplayPolicy
from clbench.models.continual import ContinualModel
from clbench.options import option
from clbench.registry import STRATEGIES
from clbench.scenarios.scenario import Scenario
from clbench.scenarios.task import Task


@dataclass
class ERConfig(StrategyConfig):
    """Options of ``strategy=er``."""

    memory_size: int = option(help="samples in the memory, over all classes", at_least=1)
    selection: str = option(help="which samples are kept", choices=("reservoir", "class_balanced", "task_balanced"))
    share: str = option(
        "seen",
        help="selection=class_balanced or task_balanced: the memory is divided among classes or tasks seen so far, or among all "
        "of the stream from the start",
        choices=("seen", "stream"),
    )
    update: str = option(
        help="when the memory changes: after every step, or at the end of each task", choices=("step", "task")
    )
    replay_batch_size: int | None = option(
        None, help="replayed samples per step; null: as many as new ones", at_least=1
    )
    mixing: str = option(
        "batch",
        help="replayed samples are added to the batch of every step, or the memory to the task's data, as many times as makes it "
        "about as large",
        choices=("batch", "data_set"),
    )
    weighting: str = option(
        help="weights of the losses on new and replayed samples: new_weight and 1 - new_weight; 1/k and 1 - 1/k in the k-th "
        "task; or one mean over all samples",
        choices=("fixed", "tasks", "samples"),
    )
    new_weight: float = option(help="weighting=fixed: weight of the new samples' loss", at_least=0, at_most=1)
    loss_scope: str = option(
        "visible",
        help="classes that compete for a sample: all it may see; those present among the new samples of the batch, or among the "
        "replayed ones; or those of earlier tasks, or of the current one",
        choices=SCOPES,
    )
    adjustment: float | None = option(
        None, help="τ, by which logits are adjusted to how often classes have been trained on; null: not", above=0
    )


@STRATEGIES.register("er")
class ER(Strategy):
    """Replay of stored samples beside the new ones."""

    config = ERConfig
    needs = Needs(memory=True, boundaries=False)
    options: ERConfig
    new_weight: Tensor
    adjustment: Tensor
    memory: Tensor
    n_seen: Tensor

    def __init__(self, config: ERConfig, model: ContinualModel, scenario: Scenario) -> None:
        super().__init__(config, model, scenario)
        self.policy = ReplayPolicy(config.memory_size, config.selection, config.share, config.update, scenario)
        _check(config, scenario)
        check_scope(config.loss_scope, scenario)
        self.prior = None if config.adjustment is None else ClassPrior(scenario.n_classes)
        self.register_buffer("memory", torch.full((config.memory_size,), EMPTY))
        self.register_buffer("n_seen", torch.zeros(self.policy.counted, dtype=torch.int64))
        # What end_task puts into the memory; plan() makes it, and makes it again when a run resumes.
        self._memory_after_task: tuple[np.ndarray, np.ndarray] | None = None

    @classmethod
    def traits(cls, options: ERConfig) -> frozenset[str]:
        return cls.needs.traits | ({"trains on all data"} if options.mixing == "data_set" else frozenset())

    def plan(self, task: Task, plan: Plan) -> Plan:
        """Draw what every step replays, from the memory as it then is."""
        memory, n_seen = self.memory.cpu().numpy().copy(), self.n_seen.cpu().numpy().copy()
        if self.options.mixing == "data_set":
            plan = self._mixed(task, plan, memory)
            self._memory_after_task = self.policy.after_task(task, memory, n_seen, task.numpy_generator("replay"))
            return plan
        replay, *after = self.policy.walk(task, plan.new, memory, n_seen, self.options.replay_batch_size)
        self._memory_after_task = after[0], after[1]
        return plan._replace(replay=replay)

    def _mixed(self, task: Task, plan: Plan, memory: np.ndarray) -> Plan:
        """Batches of the task's samples and those of the memory together."""
        stored = torch.from_numpy(memory[memory != EMPTY])
        copies = max(len(task.ids) // len(memory), 1)
        new = task.shuffled_batches(torch.cat([task.ids, stored.repeat(copies)])) if len(stored) else plan.new
        replayed = {f"{self.name}.replayed": [torch.isin(ids, stored) for ids in new]}
        return plan._replace(new=new).with_columns(**replayed)

    def data_loss(self, batch: Batch, outputs: Outputs) -> dict[str, Tensor]:
        mixed = self.options.mixing == "data_set"
        positions = torch.arange(len(batch.samples.y), device=batch.samples.y.device)
        is_replayed = batch.columns[f"{self.name}.replayed"] if mixed else positions >= batch.n_new
        scope = self.options.loss_scope
        offset = None if self.prior is None else self.adjustment * self.prior.log(batch.samples.y)
        losses = cross_entropies(self.model.answer, outputs.logits, batch.samples, is_replayed, scope, offset)
        if mixed:
            new = torch.where(is_replayed, 0.0, losses).sum() / len(losses)
            return {"new": new, "replay": torch.where(is_replayed, losses, 0.0).sum() / len(losses)}
        new, replayed = losses[: batch.n_new], losses[batch.n_new :]
        weights: dict[str, Tensor | float] = {
            "fixed": self.new_weight,
            "tasks": 1 / (self.tasks_learned + 1),
            "samples": batch.n_new / len(losses),
        }
        weight = weights[self.options.weighting]
        terms = {"new": weight * new.mean()}
        if len(replayed):
            terms["replay"] = (1 - weight) * replayed.mean()
        return terms

    def after_step(self, step: int, batch: Batch) -> None:
        if self.prior is not None:
            self.prior.count(batch.samples.y)

    def end_task(self, task: Task) -> None:
        assert self._memory_after_task is not None
        memory, n_seen = self._memory_after_task
        self.memory.copy_(torch.from_numpy(memory))
        self.n_seen.copy_(torch.as_tensor(n_seen))

    def notes(self) -> list[str]:
        return self.policy.notes


def _check(config: ERConfig, scenario: Scenario) -> None:
    """Refuse options that contradict each other, or the stream."""
    if not scenario.boundaries and (config.update == "task" or config.weighting == "tasks"):
        raise ConfigError(
            f"strategy.update={config.update} with strategy.weighting={config.weighting} needs to know where a task ends, "
            f"which {scenario.name} does not tell: set strategy.update=step, and weighting=samples"
        )
    mixed = {"update": "task", "weighting": "samples", "replay_batch_size": None}
    wrong = [name for name, value in mixed.items() if getattr(config, name) != value]
    if config.mixing == "data_set" and wrong:
        raise ConfigError(
            f"strategy.mixing=data_set mixes the memory into the task's data before the first step, which strategy.{wrong[0]}="
            f"{getattr(config, wrong[0])} contradicts: set strategy.update=task strategy.weighting=samples "
            "strategy.replay_batch_size=null"
        )
