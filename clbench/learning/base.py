"""What a method is, and when it may act.

A strategy overrides only what it needs of

========================  =============================================================================================
``begin_task``            new teacher, anchors; the model already has the new task's outputs. May draw weights anew
``weights_renewed``       weights have been drawn anew: what was kept of the old ones is of no use any more
``plan``                  which samples every step of the task sees: replayed and reference samples are named here
``recall``                which samples a memory's slots hold, where only training finds out
``stages``                further parts of the task's training: with the head alone, with a plan and a budget of their own, …
``outputs``               how a training batch passes through the network; default: through the model as it is
``data_loss``             loss on the batch's samples; default: cross-entropy on all of them, replayed ones with their labels
``data_weight``           how much the loss on samples counts beside the strategy's penalty
``penalty``               a further loss term (regularisation, distillation)
``edit_gradients``        change the gradient before the optimizer sees it (projection, masks)
``rate_factor``           a factor of the learning rate for single parameters
``after_step``            update buffers after the optimizer's step, or draw weights anew
``learn``                 learn from a batch without a gradient, in place of loss and optimizer, in tasks where the method
                          does not ``learns_by_gradient``
``end_task``              consolidate: Fisher, anchors, memories
``prepare_for_eval``      derive what prediction needs (class means, merged adapters); never touches training state
``predict``               logits per sample; default: the model's
``predict_task``          the same where all samples are of one known task, for methods with a network per task
``measurements``          what the method reports of itself at a task's end (sparsity, parameter counts, …)
``notes``                 what a reader of its results has to know
========================  =============================================================================================

What a hook has to work with:

* ``self.options``: the options, checked, as the dataclass ``config`` has them; its fields are made with
  :func:`clbench.options.option`, and what has no default there is in ``conf/strategy/<name>.yaml``;
* ``self.model``: ``model(x)``, the logits (B, n_classes) of all classes; ``model.features(x)``, ``model.head``, and
  ``model.answer.restrict(logits, task)``, which rules out the classes that are not to be seen, as
  :meth:`Strategy.cross_entropy` does; ``model.answer.first_seen``, by label the task from which on it is seen, unless
  ``model.answer.sees_all``; what is trained is ``self.flat_parameters()``, (P,);
* in ``__init__``, the scenario: ``scenario.n_tasks``, ``scenario.n_classes``, ``scenario.setting``;
* ``batch.samples``: images ``x`` (B, C, H, W), labels ``y`` (B,) and ``task`` (B,); see :class:`Batch`;
* ``task`` in ``begin_task``, ``plan``, ``stages`` and ``end_task``: ``task.index`` (from 0), ``task.ids`` of the samples that
  arrive, ``task.samples(ids)``, ``task.batches(ids, batch_size)``, which yields them as :class:`Samples`, and
  ``task.torch_generator(purpose)``, the source of all random numbers; gradients are on there, so that what needs none is under
  ``torch.no_grad()``;
* :class:`clbench.learning.parts.memory.TaskMemory`, which stores samples of every task at its end;
* ``self.tasks_seen`` and ``self.tasks_learned``: how many tasks have begun and ended, whole numbers that resuming restores.

Everything a strategy remembers is a parameter or a buffer, and that includes its real-valued options: each float field of
its config is a 0-d buffer of the same name, so that a hook of a step reads ``self.lam``, and not ``self.options.lam``.
``outputs``, ``data_loss``, ``penalty``, ``edit_gradients``, ``after_step`` and ``learn`` are pure functions of parameters,
buffers and batch: they never read a tensor's value on the host. So the same method runs eagerly, compiled, or ``vmap``-ped over
seeds and options.

Strategies compose (``strategy.plus``), and a hook runs in the order in which they are named, the main strategy first. Weights are
drawn anew by the model (rows of the head, as their classes come), by ``begin_task`` (a task's prompts, a fresh adapter) and by
``after_step`` (units that are reset). Whoever does it returns which, and the core tells all strategies at once by
``weights_renewed``: so none of them has to know of the others. What may not be combined is written down in
:mod:`clbench.learning.composition`, from what each strategy overrides and from the traits that its :class:`Needs` declare: a
method that does nothing in the first task, say, has ``Needs(traits=frozenset({"acts from second task"}))``.

:mod:`clbench.testing` has the tests that every strategy has to pass, for those in packages of their own too, of which
``examples/stable_sgd`` is one.

A strategy may have parameters of its own, which are trained beside the model's (a hypernetwork); those that are not to be
trained (a teacher) say ``requires_grad_(False)``.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad
from torch.nn.attention import SDPBackend, sdpa_kernel

from clbench.config import StrategyConfig
from clbench.errors import ConfigError
from clbench.learning.stage import Stage
from clbench.models.continual import ContinualModel
from clbench.scenarios.scenario import Samples, Scenario
from clbench.scenarios.task import Task


@dataclass(frozen=True)
class Needs:
    """What a method requires and where it applies; validation, ``list`` and the test matrix are made from it.

    Attributes:
        boundaries: it acts at task boundaries, so it has to be told them.
        memory: it stores training samples.
        settings: scenario settings in which it is defined.
        all_data: it reads earlier tasks' data in full (an upper bound, not a continual learner).
        cost_grows: a training step costs more the more tasks have been learned.
        weights_only: it looks at the weights alone and never sends samples through the model by itself, so that it composes
            with methods that make or mask the weights.
        transformer: it acts within a transformer.
        vision: within a vision transformer as timm builds it, and no other.
        traits: what decides with which other strategies it goes together, keys of
            :data:`clbench.learning.traits.TRAITS`; see :meth:`Strategy.traits`.
        optimizers: the values of ``trainer.optimizer`` with which it is what it says.
        weight_decay: whether it is so with ``trainer.weight_decay`` above 0.
        alone: why runs of it cannot be trained as one stack (:mod:`clbench.training.fleet`), a clause that completes "they
            cannot be stacked, because ..."; empty where they can.
    """

    boundaries: bool = True
    memory: bool = False
    settings: tuple[str, ...] = ("class", "task", "domain")
    all_data: bool = False
    cost_grows: bool = False
    weights_only: bool = False
    transformer: bool = False
    vision: bool = False
    traits: frozenset[str] = frozenset()
    optimizers: tuple[str, ...] = ("sgd", "adam", "adamw", "adagrad")
    weight_decay: bool = True
    alone: str = ""


class Plan(NamedTuple):
    """What every step of one task sees, made on the CPU before the task's first step: one tensor per step.

    Attributes:
        new: ids (int64) of samples of the current task; none in a step of replayed samples alone.
        replay: ids of earlier samples, trained on beside the new ones, or None.
        reference: ids of earlier samples that are not trained on but looked at by ``edit_gradients``, or None.
        reference_sizes: how many of the reference samples belong to each of the groups that follow one another in them.
        replay_slots, reference_slots: int64 (n,), slots of a memory, where what it holds is found out while training; the ids are
            asked of :meth:`Strategy.recall` at the step, and stand after those of ``replay`` or in place of ``reference``.
        columns: what else a strategy has planned for every step, by a name that begins with the strategy's own: slots of a
            memory, draws, weights. Tensors of any type, whose shapes do not depend on what the network computes.
    """

    new: list[Tensor]
    replay: list[Tensor] | None = None
    reference: list[Tensor] | None = None
    reference_sizes: tuple[int, ...] = ()
    replay_slots: list[Tensor] | None = None
    reference_slots: list[Tensor] | None = None
    columns: dict[str, list[Tensor]] = {}  # noqa: RUF012 - never changed in place, see with_columns

    def with_columns(self, **columns: list[Tensor]) -> "Plan":
        """The plan with further columns."""
        return self._replace(columns={**self.columns, **columns})


class Batch(NamedTuple):
    """What one training step sees, from the plan to the last hook; every tensor on the training device.

    Attributes:
        samples: the new samples, then the replayed ones.
        ids: int64 (B,), their sample ids.
        n_new: how many of them are new.
        reference: reference samples of the plan, or None.
        reference_sizes: the sizes of the groups in them, see :class:`Plan`.
        columns: the plan's columns at this step, by name.
        update: (P,) the change of the trained parameters that the optimizer would make for the loss gradient; in
            ``edit_gradients`` of a strategy that ``looks_ahead``, else None.
        gradient: (P,) of the step's loss, before strategies or clipping changed it; in ``after_step`` where a strategy
            ``keeps_gradient``, else None.
        outputs: of the step's own forward pass, detached; in ``after_step`` where a strategy ``keeps_outputs``, else None.
    """

    samples: Samples
    ids: Tensor
    n_new: int
    reference: Samples | None = None
    reference_sizes: tuple[int, ...] = ()
    columns: dict[str, Tensor] = {}  # noqa: RUF012 - never changed in place
    update: Tensor | None = None
    gradient: Tensor | None = None
    outputs: "Outputs | None" = None


class Outputs(NamedTuple):
    """One forward pass over ``batch.samples``: features (B, n_features) and logits (B, n_classes), not restricted."""

    features: Tensor
    logits: Tensor


class Measurement(NamedTuple):
    """Something that a method reports of itself at the end of a task.

    Attributes:
        quantity: what, with underscores; a name stands for one formula.
        part: of what: a layer, an earlier task; empty for the whole.
        value: how much.
    """

    quantity: str
    part: str
    value: float


class Strategy(nn.Module):
    """Base of all methods.

    Args:
        config: the method's options, already checked field by field.
        model: the network; the strategy borrows it (it is not a submodule of the strategy).
        scenario: the stream's shape; training data come through :class:`Task`.
    """

    config: ClassVar[type[StrategyConfig]] = StrategyConfig
    needs: ClassVar[Needs] = Needs()
    renews_weights: ClassVar[bool] = False
    """Whether the optimizer has to forget what it remembers of the weights that ``after_step`` draws anew."""
    changes_network: ClassVar[bool] = False
    """Whether it puts modules into the network, which strategies beside it have to find there."""
    learns_at_task_end: ClassVar[bool] = False
    """Whether it learns nothing of a task until the task is over, so that how learning goes on within a task has no meaning."""
    takes_over_at_task_end: ClassVar[bool] = False
    """Whether it predicts otherwise once a task is over, even where it does nothing in ``end_task``."""
    model: ContinualModel

    def __init__(self, config: StrategyConfig, model: ContinualModel, scenario: Scenario) -> None:
        super().__init__()
        object.__setattr__(self, "model", model)  # not registered: several strategies share one model
        self.options = config
        self.name = config.name
        self.tasks_learned = 0  # tasks whose training has ended
        self.tasks_seen = 0  # tasks whose training has begun
        self.stage = Stage()  # that the task's training is in; set by the learner
        for spec in dataclasses.fields(config):
            value = getattr(config, spec.name)
            if isinstance(value, float):
                self.register_buffer(spec.name, torch.tensor(value))

    @classmethod
    def traits(cls, options: Any) -> frozenset[str]:
        """What decides with which others it goes together, where it has these ``options``: those of its ``needs``, and more."""
        return cls.needs.traits

    # ---- hooks ----------------------------------------------------------------------------------------------------

    def begin_task(self, task: Task) -> Tensor | None:
        """Called once before a task's first step, after the model has grown.

        May change weights. Returns which of the trained ones, boolean (P,) in the order of :meth:`flat_parameters`, it has drawn
        anew, or None for none.
        """
        return None

    def weights_renewed(self, renewed: Tensor) -> None:
        """Called where trained weights have just been drawn anew, by the model or by a strategy, this one included.

        Before a task's first step, and after a step in the course of ``after_step``; pure, as that is.

        Args:
            renewed: boolean (P,), which, in the order of :meth:`flat_parameters`. They have their new values already.
        """

    def plan(self, task: Task, plan: Plan) -> Plan:
        """Amend the plan of the task.

        Called after ``begin_task``, and again when a killed run resumes within the task: it may not change state that it
        reads. ``replay`` is named by one strategy of a run at most, the one that also has the loss on it (``data_loss``): a
        second one would overwrite it. A step's new samples may be none, and a column may be missing in tasks that do not use it.
        """
        return plan

    def recall(self, slots: Tensor) -> Tensor:
        """Sample ids, int64 (n,), that the memory holds in ``slots`` (n,) before the step; for a plan that names slots.

        For memories whose content depends on the network. Pure, so that no step waits for the device; where images lie in the
        host's memory, the ids have to be read there all the same.
        """
        raise NotImplementedError(f"{self.name} plans ids, not slots")

    def stages(self, task: Task, n_steps: int) -> list[Stage]:
        """The task's stages beside the main one, see :mod:`clbench.learning.stage`; ``n_steps`` is the length of the plan.

        Asked after ``plan``, also when a killed run resumes within the task: it may not change state.
        """
        return []

    def outputs(self, batch: Batch) -> Outputs:
        """One forward pass over the batch's samples.

        What it makes of a sample depends on that sample alone: with ``trainer.microbatch`` it is called for pieces of a batch,
        which have ``samples``, ``ids`` and ``n_new`` of their own and neither columns nor reference samples.
        """
        features = self.model.features(batch.samples.x)
        return Outputs(features, self.model.head(features))

    def data_loss(self, batch: Batch, outputs: Outputs) -> dict[str, Tensor]:
        """Named loss terms on the batch's samples; the trainer minimises the sum of all terms.

        The term called ``new`` is the plasticity term, every other one counts as stability. A strategy that replays samples for
        anything but their labels overrides this, with a term ``new`` of ``[: batch.n_new]`` alone.
        """
        return {"new": self.cross_entropy(outputs.logits, batch.samples).mean()}

    @property
    def data_weight(self) -> float:
        """What the terms of ``data_loss`` are multiplied by in the task being learned; weights of several strategies multiply."""
        return 1.0

    def penalty(self, batch: Batch, outputs: Outputs) -> Tensor | None:
        """A further loss term (scalar), or None."""
        return None

    def edit_gradients(self, gradient: Tensor, batch: Batch) -> Tensor:
        """The gradient (P,) the optimizer gets, from the loss gradient (P,).

        In the order of :meth:`flat_parameters`, followed by the strategy's own trained parameters; of those of other strategies
        it sees nothing.
        """
        return gradient

    @property
    def keeps_outputs(self) -> bool:
        """Whether ``after_step`` wants ``batch.outputs`` in the task being learned."""
        return False

    @property
    def keeps_gradient(self) -> bool:
        """Whether ``after_step`` wants ``batch.gradient`` in the task being learned."""
        return False

    @property
    def looks_ahead(self) -> bool:
        """Whether ``edit_gradients`` wants ``batch.update`` in the task being learned."""
        return False

    def rate_factor(self, parameter: str) -> float:
        """The factor of the learning rate for a trained parameter, by its name, e.g. ``backbone.layers.0.weight``.

        Factors of several strategies multiply; 0 holds the parameter. Asked when a task or a stage begins. A strategy's own
        parameters are called ``<place>.<name>``, where the main strategy has place 0.
        """
        return 1.0

    @property
    def fewest_looked_at(self) -> int | None:
        """The fewest samples that ``edit_gradients`` sends through the network at a time in training; None for none."""
        return None

    def after_step(self, step: int, batch: Batch) -> Tensor | None:
        """Called after every optimizer step, made for ``batch``; ``step`` of the task have been taken.

        May change weights in place. Returns which of the trained ones, boolean (P,) in the order of :meth:`flat_parameters`,
        have been drawn anew, or None for none; all strategies are told by ``weights_renewed``. Where the strategy
        ``renews_weights``, what the optimizer remembers of them (momentum, moments, and how many steps Adam has averaged over)
        starts from nothing.
        """
        return None

    @property
    def learns_by_gradient(self) -> bool:
        """Whether the plan of the task being learned is: where not, :meth:`learn` takes the place of losses and optimizer."""
        return True

    def learn(self, batch: Batch) -> dict[str, Tensor]:
        """Learn from the batch without a gradient; returns named losses (scalars) for the record.

        Called with samples as they are, without augmentation, and with the network in evaluation mode.
        """
        raise NotImplementedError(f"{self.name} learns by gradient")

    def end_task(self, task: Task) -> None:
        """Called once after a task's last step, in evaluation mode."""

    def prepare_for_eval(self) -> None:
        """Called before every evaluation."""

    def predict(self, x: Tensor, task: Tensor | None) -> Tensor:
        """Logits (B, n_classes) of images (B, C, H, W), −inf where a class is ruled out.

        ``task`` (B,) is None where the scenario hides it. Per sample: the answer for one image never depends on the others.
        """
        return self.model.answer.restrict(self.model(x), task, predicting=True)

    @property
    def predicts_from_features(self) -> bool:
        """Whether ``predict``, where it is overridden, looks at images through ``model.features`` alone.

        Evaluations then start from what the network's frozen stages made of them.
        """
        return False

    def predict_task(self, x: Tensor, task: int) -> Tensor:
        """Logits (B, n_classes) of images that are all of the one ``task``, which the scenario gives.

        Where a strategy overrides this, evaluations never mix tasks in a forward pass, so that each takes one network.
        """
        return self.predict(x, torch.full((len(x),), task, device=x.device))

    def measurements(self) -> list[Measurement]:
        """What there is to report at the end of a task; called after ``end_task``."""
        return []

    def notes(self) -> list[str]:
        """Sentences that a reader of the results has to know: a part that is a reconstruction, say."""
        return []

    # ---- what methods share ---------------------------------------------------------------------------------------

    def cross_entropy(self, logits: Tensor, samples: Samples) -> Tensor:
        """Cross-entropy (B,) per sample over the logits the sample may see."""
        return self.model.answer.losses(logits, samples)

    def flat_parameters(self, where: str = "all") -> Tensor:
        """The model's trained parameters as one vector (P,); ``where`` other than ``all`` leaves the head out.

        That is ``backbone``, and ``attention`` once :meth:`ContinualModel.train_only_attention` has frozen all but that.

        Raises:
            ConfigError: nothing of the model is trained.
        """
        chosen = "" if where == "all" else "backbone."
        parts = [p.reshape(-1) for name, p in self.model.trained().items() if name.startswith(chosen)]
        if not parts:
            raise ConfigError(
                f"{self.name} acts on trained weights of the network, of which there are none: model.frozen leaves none, or "
                "a hypernetwork makes them all"
            )
        return torch.cat(parts)

    def first_drawn(self, initial: Tensor, renewed: Tensor) -> Tensor:
        """``initial`` weights (P,), completed by those that have been drawn for the first time among ``renewed``, boolean (P,).

        What had not been drawn when the run began was 0: the prompts of tasks to come. Rows of the head that are drawn once more
        keep the first draw, which is of the same distribution.
        """
        return torch.where(renewed & (initial == 0), self.flat_parameters(), initial)

    def flat_gradient(self, samples: Samples) -> Tensor:
        """Gradient (P,) of the mean cross-entropy on ``samples`` with respect to the trainable parameters.

        Attention is computed step by step: the backward pass of torch's fused kernels cannot be ``vmap``-ped, as in a fleet.

        The pass leaves no trace in the model. BatchNorm layers that train normalise with the statistics of ``samples``, as
        they do in a training step, but their running statistics do not move: those depend on the batches trained on, and on
        nothing a strategy looks at beside them. (In the code of GEM's authors they follow the memory batches too.)
        """
        parameters = {name: p.detach() for name, p in self.model.trained().items()}
        buffers = {name: buffer.clone() for name, buffer in self.model.named_buffers()}

        def loss(parameters: dict[str, Tensor], buffers: dict[str, Tensor]) -> Tensor:
            logits = functional_call(self.model, (parameters, buffers), (samples.x,))
            return self.cross_entropy(logits, samples).mean()

        with sdpa_kernel(SDPBackend.MATH):
            return torch.cat([g.reshape(-1) for g in grad(loss)(parameters, buffers).values()])


def buffer_name(kind: str, name: str) -> str:
    """The name of the buffer that keeps something of the parameter or module ``name``: buffers' names have no dots."""
    return f"{kind}_{name.replace('.', '_')}"
