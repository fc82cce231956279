"""I-LoRA: a fast and a slow low-rank adapter (Ren et al. 2024, arXiv:2402.18865).

The fast adapter is trained, with replay; the slow one follows it, and holds the replayed samples' hidden states in place:

    L = CE(new)                                                         in the first task
    L = ½ CE(new) + ½ CE(replayed) + γ · C(replayed)                    later
    slow ← a · slow + (1 − a) · fast,   a = min(1 − 1/(s + 1), ρ)       after step s of the task, every tensor by itself

C compares hidden states h of fast and slow on the replayed samples, a mean over layers, samples, tokens and entries:

* ``consistency=one_sided``: relu(h_slow − h_fast)², only what lies below the slow one's is pulled up (the authors' code);
* ``consistency=mse``: (h_slow − h_fast)².

``layers=all`` are the outputs of the embedding (frozen, so that it adds 0 to the sum and 1 to the count, as in the code) and
of every block; ``layers=last`` the features. As many samples are replayed as are new, from a reservoir over the stream into
which samples go before they are trained on.

**What this is not.** The released code (which47/LLMCL) never moves its slow adapter and cannot start a second task, so that
it tells nothing about numbers; this is the abstract's method with the code's constants. ρ is the weight on the *old* slow
value; at the code's 0.25 the slow adapter is hardly slower than the fast one, so that ρ is to be tuned. Three points are
**ours**, since a classifier has what a language model has not: the head takes part in the interpolation; the rows of a task's
new classes enter it as they are drawn; which adapter predicts (``evaluated``) is the slow one by default, which the paper's
code leaves open. There is no dropout before A.

Reported after every task: ``adapter_parameters``; ``slow_distance``, ‖fast − slow‖ / ‖fast‖ over adapters and head.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from clbench.errors import ConfigError
from clbench.learning.base import Batch, Measurement, Needs, Outputs, Plan, buffer_name
from clbench.learning.parts.memory import EMPTY, check_memory_size, draw_uniform, notes_of_room, reservoir_step
from clbench.learning.parts.shadow_weights import ShadowWeights
from clbench.models.causal_lm import Block, at_the_end
from clbench.models.continual import ContinualModel
from clbench.options import option
from clbench.registry import STRATEGIES
from clbench.scenarios.scenario import Scenario
from clbench.scenarios.task import Task
from clbench.strategies.lora import LoRA, LoRAConfig


@dataclass
class ILoRAConfig(LoRAConfig):
    """Options of ``strategy=ilora``."""

    memory_size: int = option(help="samples in the reservoir, over all classes", at_least=1)
    gamma: float = option(help="weight γ of the consistency of hidden states", at_least=0)
    rho: float = option(help="ρ: largest weight of the slow adapter's old value", at_least=0, at_most=1)
    consistency: str = option(
        help="hidden states are pulled towards the slow adapter's, or only up to them", choices=("one_sided", "mse")
    )
    layers: str = option(help="whose hidden states: all blocks', or the last one's features", choices=("all", "last"))
    evaluated: str = option(help="the adapter that predicts", choices=("slow", "fast"))


@STRATEGIES.register("ilora")
class ILoRA(LoRA):
    """Replay into a fast adapter that is held near a slow one."""

    config = ILoRAConfig
    needs = Needs(memory=True, transformer=True)
    options: ILoRAConfig
    gamma: Tensor
    rho: Tensor
    memory: Tensor
    n_seen: Tensor

    @classmethod
    def traits(cls, options: ILoRAConfig) -> frozenset[str]:
        return cls.needs.traits | ({"reads the forward pass"} if options.layers == "all" else frozenset())

    def __init__(self, config: ILoRAConfig, model: ContinualModel, scenario: Scenario) -> None:
        super().__init__(config, model, scenario)
        check_memory_size(config.memory_size, scenario)
        self._notes = notes_of_room(config.memory_size, scenario)
        self.register_buffer("memory", torch.full((config.memory_size,), EMPTY))
        self.register_buffer("n_seen", torch.zeros((), dtype=torch.int64))
        if config.layers == "all" and getattr(model.backbone, "hides_padding", False):
            raise ConfigError(
                "strategy.layers=all compares the hidden states of all tokens, and those behind the end of a text are none: set "
                "strategy.layers=last"
            )
        self.slow = ShadowWeights(model)
        self.states = BlockOutputs(model.backbone.transformer.blocks) if config.layers == "all" else None
        self._memory_after_task: tuple[np.ndarray, int] | None = None  # made by plan(), taken over by end_task()

    # ---- hooks ----------------------------------------------------------------------------------------------------

    def weights_renewed(self, renewed: Tensor) -> None:
        """Let the slow weights begin from the same values: the rows of a task's classes."""
        self.slow.renew(self.model, renewed)

    def plan(self, task: Task, plan: Plan) -> Plan:
        """Walk through the task's steps: offer the new samples to the reservoir, then draw from it."""
        rng = task.numpy_generator("replay")
        memory, n_seen = self.memory.cpu().numpy().copy(), int(self.n_seen)
        not_seen_yet = set(task.ids.tolist())  # a sample is offered once, not once per epoch
        replay = []
        for ids in plan.new:
            arriving = [i for i in ids.tolist() if i in not_seen_yet]
            not_seen_yet.difference_update(arriving)
            n_seen = reservoir_step(memory, n_seen, np.array(arriving, np.int64), rng)
            filled = memory[memory != EMPTY] if task.index else np.empty(0, np.int64)
            replay.append(torch.from_numpy(draw_uniform(filled, len(ids), rng)))
        self._memory_after_task = memory, n_seen
        return plan._replace(replay=replay)

    def data_loss(self, batch: Batch, outputs: Outputs) -> dict[str, Tensor]:
        losses = self.cross_entropy(outputs.logits, batch.samples)
        new, replayed = losses[: batch.n_new], losses[batch.n_new :]
        return {"new": new.mean() / 2, "replay": replayed.mean() / 2} if len(replayed) else {"new": new.mean()}

    def penalty(self, batch: Batch, outputs: Outputs) -> Tensor | None:
        """γ · C(replayed), from the forward pass that ``outputs`` come from and one more with the slow weights."""
        fast = self._states_of(outputs.features)
        replayed = batch.samples.x[batch.n_new :]
        if not len(replayed):
            return None
        with torch.no_grad():
            features, _ = self.model.with_weights(self.slow.weights(), replayed)
            slow = self._states_of(features)
        differences = [h_slow - h_fast[batch.n_new :] for h_slow, h_fast in zip(slow, fast, strict=True)]
        if self.options.consistency == "one_sided":
            differences = [difference.relu() for difference in differences]
        n_layers = len(differences) + (self.options.layers == "all")  # the embedding's difference is 0
        return self.gamma * sum(difference.square().mean() for difference in differences) / n_layers

    def _states_of(self, features: Tensor) -> list[Tensor]:
        """The hidden states that are compared, of the forward pass that the features come from."""
        return [features] if self.states is None else self.states.taken()

    def after_step(self, step: int, batch: Batch) -> None:
        """Move the slow weights."""
        self.slow.follow(self.model, self.rho.clamp(max=1 - 1 / (step + 1)))

    def end_task(self, task: Task) -> None:
        assert self._memory_after_task is not None
        memory, n_seen = self._memory_after_task
        self.memory.copy_(torch.from_numpy(memory))
        self.n_seen.fill_(n_seen)

    def predict(self, x: Tensor, task: Tensor | None) -> Tensor:
        if self.options.evaluated == "fast":
            return super().predict(x, task)
        return self.model.answer.restrict(self.model.with_weights(self.slow.weights(), x)[1], task, predicting=True)

    @torch.no_grad()
    def measurements(self) -> list[Measurement]:
        """Also how far the slow weights are behind."""
        fast, slow = self.model.trained(), self.slow.weights()
        squares = sum(float((fast[name] - slow[name]).square().sum()) for name in fast)
        of_fast = sum(float(weight.square().sum()) for weight in fast.values())
        return [*super().measurements(), Measurement("slow_distance", "", math.sqrt(squares / of_fast))]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        """Also from older checkpoints, which hold the slow weights as buffers of the strategy itself."""
        for name in self.model.trained():
            older = prefix + buffer_name("slow", name)
            if older in state_dict:
                state_dict[f"{prefix}slow.{buffer_name('of', name)}"] = state_dict.pop(older)
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def notes(self) -> list[str]:
        return [
            "the method of the paper's abstract with the constants of its code, whose slow adapter never moves; that the head is "
            f"interpolated too and that the {self.options.evaluated} adapter predicts are our choices",
            *self._notes,
        ]


class BlockOutputs:
    """What the blocks of a transformer made of the tokens in its last forward pass in training mode."""

    def __init__(self, blocks: nn.Sequential) -> None:
        self._states: list[Tensor] = []
        self._n_blocks = len(blocks)
        for block in blocks:
            block.register_forward_hook(self._keep)

    def _keep(self, block: nn.Module, _inputs: tuple[Tensor], output: Tensor) -> None:
        if block.training:
            # Of texts the states at their ends, which all that fills up a row leaves as they are.
            self._states.append(at_the_end(output) if isinstance(block, Block) else output)

    def taken(self) -> list[Tensor]:
        """The outputs (B, N, D) of all blocks; of a language model (B, D)."""
        states, self._states = self._states[-self._n_blocks :], []
        return states
