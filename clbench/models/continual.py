"""Backbone and head as one network.

The head (:mod:`clbench.models.heads`) is always one layer with an output for every class of the stream, so that tensor shapes
never change.
Which of its outputs a sample sees, the answer object says (:mod:`clbench.models.answers`).

An output that no sample sees gets no gradient, and its weights are drawn anew when its task begins. So the fixed layer
computes exactly what a growing layer would, given an optimizer that starts anew with every task (trainer.reset_optimizer).
Unlike a separate layer per task, it lets weight decay shrink the heads of earlier tasks too.

The backbone is a chain of stages (:mod:`clbench.models.stages`), the first of which may be frozen. What nothing in training
changes need not be computed again, which is exact in evaluation mode::

    n = model.frozen_prefix()  # in training mode
    h = model.prefix(x, n)
    with model.after_prefix(n):
        logits = model(h)  # bit for bit model(x)
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.hooks import RemovableHandle

from clbench.errors import ConfigError
from clbench.models.answers import ClassLabels, SpokenLabels
from clbench.models.heads import CosineHead, VerbaliserHead, make_head
from clbench.models.hidden_layers import HEAD, HiddenLayer
from clbench.models.initialisation import drawn_like, initialise

ATTENTION = re.compile(r"(^|\.)blocks\.\d+\.attn\.qkv\.(weight|bias)$")
"""Names of the parameters, in timm's vision transformers, that make queries, keys and values of tokens."""


class ContinualModel(nn.Module):
    """``forward(x)`` gives the logits of all classes, ``restrict`` leaves those a sample may see.

    Args:
        backbone: module with an attribute ``n_features``, (B, C, H, W) → (B, n_features).
        task_classes: labels of every task.
        setting: ``class``, ``task`` or ``domain``.
        logit_scope: class-incremental only: ``all``, ``seen`` or ``current``.
        frozen: number of stages, counted from the input, that are not trained and stay in evaluation mode.
        zero_head: whether every task but the first begins with a head of zeros.
        trained: what is trained in the stages that are not frozen: ``all``, or ``attention``, see :meth:`train_only_attention`.
        first_seen: for every label the task with which its first sample arrives; None: the one task that it belongs to. Where
            methods are not told of tasks, a number beyond the last one, until :meth:`see` has met the label.
        head, head_scale, head_proxies: see :mod:`clbench.models.heads`.
        init: how the weights of a linear head are drawn, see :mod:`clbench.models.initialisation`.
        answer_tokens: head=verbaliser: of every class the token of its answer in the language model's vocabulary.

    Raises:
        ConfigError: the backbone has fewer stages, or parameters or buffers outside its stages, or no such attention.
    """

    backbone: Any
    """A module with ``n_features``, and with whatever its kind adds: stages, hidden layers, timm's attributes."""

    def __init__(
        self,
        backbone: nn.Module,
        task_classes: list[list[int]],
        setting: str,
        logit_scope: str = "seen",
        frozen: int = 0,
        zero_head: bool = False,
        trained: str = "all",
        first_seen: list[int] | None = None,
        head: str = "linear",
        head_scale: float | None = None,
        head_proxies: int = 1,
        init: str = "default",
        answer_tokens: list[int] | None = None,
    ) -> None:
        super().__init__()
        output = backbone.__dict__.pop("output_weight", None)  # of a language model
        answers = ClassLabels if answer_tokens is None else SpokenLabels
        self.answer = answers(task_classes, setting, logit_scope, first_seen)
        self.backbone = backbone
        self.head: nn.Linear | CosineHead | VerbaliserHead
        if answer_tokens is None:
            self.head = make_head(head, int(self.backbone.n_features), self.answer.n_classes, head_scale, head_proxies)
        else:
            self.head = VerbaliserHead(output, answer_tokens)
        initialise(self.head, init)
        self.init = init
        self.frozen, self.zero_head = frozen, zero_head
        self._n_features_before: int | None = None  # before the network has last grown
        self._n_done = 0  # stages that the inputs of features() have been through
        self._to_come: Sequence[nn.Module] = ()  # the others, while some have been
        self._found: dict[str, Tensor] | None = None  # what activations() collects while it runs
        self._hooks: list[RemovableHandle] = []
        self._watch_activations()
        self._check_stages()
        for stage in islice(self.stages().values(), frozen):
            stage.requires_grad_(False)
        if trained == "attention":
            self.train_only_attention("model.trained=attention")
        self.train()

    def features(self, x: Tensor) -> Tensor:
        """Penultimate features (B, n_features) of normalised images (B, C, H, W)."""
        if not self._n_done:
            return self.backbone(x)
        for stage in self._to_come:
            x = stage(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, n_classes) of all classes of the stream; see :meth:`restrict`."""
        return self.head(self.features(x))

    def with_weights(self, weights: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
        """Features and logits that the network computes with ``weights`` in place of its own parameters and buffers.

        ``weights`` need not name all of them; the rest is the network's own.
        """
        of_backbone = {n.removeprefix("backbone."): t for n, t in weights.items() if n.startswith("backbone.")}
        features = functional_call(self.backbone, of_backbone, (x,), tie_weights=False)
        of_head = {n.removeprefix("head."): t for n, t in weights.items() if n.startswith("head.")}
        return features, functional_call(self.head, of_head, (features,))

    @contextmanager
    def judged(self) -> Iterator[None]:
        """Within, the logits of a head that speaks have the further column that :meth:`SpokenLabels.judge` reads."""
        if not isinstance(self.head, VerbaliserHead):
            yield
            return
        self.head.shows_likeliest = True
        try:
            yield
        finally:
            self.head.shows_likeliest = False

    # ---- hidden layers ----------------------------------------------------------------------------------------------

    def hidden_layers(self) -> list[HiddenLayer]:
        """The hidden layers from the input on, with names of modules within this network; [] where they are not known.

        See :mod:`clbench.models.hidden_layers`, which also says what a unit is.
        """
        if not hasattr(type(self.backbone), "hidden_layers"):
            return []

        def within(name: str | None) -> str | None:
            return name if name in (None, HEAD) else f"backbone.{name}"

        return [
            HiddenLayer(name, f"backbone.{activation}", within(incoming), within(norm), within(outgoing))
            for name, activation, incoming, norm, outgoing in self.backbone.hidden_layers()
        ]

    def activations(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits (B, n_classes) of images x, and the activations of every hidden layer by the layer's name.

        Both come from one forward pass, so gradients flow through them, and BatchNorm in training mode moves its statistics
        once. Not within :meth:`after_prefix`, where the first layers are not run.
        """
        assert not self._n_done, "the activations of the stages that are left out cannot be had"
        found: dict[str, Tensor] = {}
        self._found = found
        try:
            return self(x), found
        finally:
            self._found = None

    def replace_backbone(self, backbone: nn.Module) -> None:
        """Put another backbone in place of the present one, of which it may be made; it has as many features."""
        for hook in self._hooks:
            hook.remove()
        self.backbone = backbone
        self._watch_activations()
        self._check_stages()

    def _watch_activations(self) -> None:
        self._hooks = []
        for layer in self.hidden_layers():
            # For good, since torch.compile cannot trace that a hook is added and removed.
            keep = partial(self._keep_activations, layer.name)
            self._hooks.append(self.get_submodule(layer.activation).register_forward_hook(keep))

    def _keep_activations(self, layer: str, _module: nn.Module, _inputs: tuple[Tensor], h: Tensor) -> None:
        """Forward hook of the layer's activation module."""
        if self._found is not None:
            self._found[layer] = h

    # ---- stages ---------------------------------------------------------------------------------------------------

    def stages(self) -> dict[str, nn.Module]:
        """The backbone's stages by name, in order; see :mod:`clbench.models.stages`."""
        # Asked of the class, since a backbone may well have a layer called "stages".
        return self.backbone.stages() if hasattr(type(self.backbone), "stages") else {"backbone": self.backbone}

    def train(self, mode: bool = True) -> "ContinualModel":
        """Training or evaluation mode; frozen stages are always in evaluation mode."""
        super().train(mode)
        if mode and self.frozen:
            for stage in islice(self.stages().values(), self.frozen):
                stage.eval()
        return self

    @contextmanager
    def in_evaluation_mode(self) -> Iterator[None]:
        """Within, all modules are in evaluation mode; afterwards each is in the mode in which it was."""
        modes = [(module, module.training) for module in self.modules()]
        self.eval()
        try:
            yield
        finally:
            for module, training in modes:
                module.training = training

    def frozen_prefix(self) -> int:
        """The number of leading stages that training leaves as they are, because of ``frozen`` or for other reasons.

        None of their parameters is trained, and modules that hold buffers (BatchNorm's statistics) are in evaluation mode.
        Has to be asked in training mode, as the trainer sets it: ``trainer.batch_norm`` may freeze statistics as well,
        from the first or from the second task on.
        """
        assert self.training, "in evaluation mode it cannot be seen which statistics move in training"
        n = 0
        for stage in self.stages().values():
            moves = (module.training and any(True for _ in module.buffers(recurse=False)) for module in stage.modules())
            if any(parameter.requires_grad for parameter in stage.parameters()) or any(moves):
                break
            n += 1
        return n

    def prefix(self, x: Tensor, n: int) -> Tensor:
        """What the first n stages make of images x (B, C, H, W); its shape depends on the network."""
        for stage in islice(self.stages().values(), n):
            x = stage(x)
        return x

    @contextmanager
    def after_prefix(self, n: int, stages: Sequence[nn.Module] | None = None) -> Iterator[None]:
        """Within, :meth:`features` and ``forward`` take the output of ``prefix(x, n)`` in place of x.

        Only of this model: a copy of it that a strategy keeps still takes images. ``stages`` are those of :meth:`stages`, where
        the caller has kept them: for new ones torch.compile would trace anew.
        """
        self._n_done = n
        self._to_come = [*(stages or self.stages().values())][n:] if n else ()
        try:
            yield
        finally:
            self._n_done, self._to_come = 0, ()

    def _check_stages(self) -> None:
        stages = self.stages()
        if self.frozen > len(stages):
            raise ConfigError(f"model.frozen={self.frozen} is out of range: it has to be at most {len(stages)}, the number of "
                              f"stages of this network ({', '.join(stages)})")  # fmt: skip
        held = {id(tensor) for stage in stages.values() for tensor in (*stage.parameters(), *stage.buffers())}
        own = (*self.backbone.named_parameters(), *self.backbone.named_buffers())
        left_out = [name for name, tensor in own if id(tensor) not in held]
        if left_out:
            raise ConfigError(f"stages() of {type(self.backbone).__name__} leaves out {', '.join(left_out)}: every parameter "
                              "and buffer has to be in a stage")  # fmt: skip

    # ---- outputs ----------------------------------------------------------------------------------------------------

    def grow(self, task: int) -> None:
        """Make the modules with which ``task`` is learned, where the backbone grows: it has a method ``grow(task)``.

        Called before every task begins, and for all tasks that have begun before a checkpoint is loaded. Nothing is drawn here:
        the head's columns for new features are 0 until the task begins. See :mod:`clbench.models.expandable`.
        """
        if not self.grows:
            return
        self.backbone.grow(task)
        n_features, narrow = int(self.backbone.n_features), self.head
        assert isinstance(narrow, nn.Linear), "heads of other kinds do not grow"
        self._n_features_before = narrow.in_features
        if n_features != narrow.in_features:
            weight = narrow.weight
            wide = nn.utils.skip_init(
                nn.Linear, n_features, narrow.out_features, device=weight.device, dtype=weight.dtype
            )
            with torch.no_grad():
                wide.weight.zero_()[:, : narrow.in_features] = weight
                wide.bias.copy_(narrow.bias)
            self.head = wide

    @property
    def grows(self) -> bool:
        """Whether the network gets further modules when tasks begin."""
        return hasattr(type(self.backbone), "grow")

    def begin_task(self, task: int, generator: torch.Generator) -> Tensor | None:
        """Let the classes of ``task`` be seen, and draw their head weights (as ``init`` says).

        So are all classes' weights of features that the network has grown for the task. With ``zero_head`` all of the head is
        set to 0 instead. Returns which trained weights, boolean (P,), are new, or None.
        """
        self.answer.current_task.fill_(task)
        if task > 0 and self.zero_head:
            with torch.no_grad():
                for parameter in self.head.parameters():
                    parameter.zero_()
            return self._rows_of_head(torch.ones_like(self.answer.class_task, dtype=torch.bool))
        n_before = self._n_features_before or self.head.in_features
        if task == 0 or (self.answer.sees_all and n_before == self.head.in_features):
            return None
        rows = (
            torch.zeros_like(self.answer.class_task, dtype=torch.bool)
            if self.answer.sees_all
            else self.answer.first_seen == task
        )
        new = {f"head.{name}": _expanded(rows, parameter).clone() for name, parameter in self._rows_by_name()}
        if not new:
            return None
        new["head.weight"][..., n_before:] = True
        with torch.no_grad():
            for name, tensor in self._rows_by_name():
                drawn = drawn_like(tensor, self.init, self.head.in_features, generator)
                tensor.copy_(torch.where(new[f"head.{name}"], drawn.to(tensor), tensor))
        return self.flat_mask(new)

    def _rows_by_name(self) -> list[tuple[str, nn.Parameter]]:
        """The head's trained parameters that have rows of every class, which a factor of all cosines has not."""
        return [(name, p) for name, p in self.head.named_parameters() if p.requires_grad and p.dim() > 0]

    def _rows_of_head(self, chosen: Tensor) -> Tensor | None:
        """Boolean (P,) of the trained weights: some rows of the head, chosen by a boolean (n_classes,)."""
        return self.flat_mask(
            {f"head.{name}": _expanded(chosen, parameter) for name, parameter in self._rows_by_name()}
        )

    def flat_mask(self, of_parameters: dict[str, Tensor]) -> Tensor | None:
        """Boolean (P,) of the trained weights, from booleans of some parameters' shapes by name; None where none are trained."""
        parts = [
            (of_parameters[name] if name in of_parameters else torch.zeros_like(parameter, dtype=torch.bool)).reshape(
                -1
            )
            for name, parameter in self.trained().items()
        ]
        return torch.cat(parts) if parts else None

    def trained(self) -> dict[str, Tensor]:
        """The parameters that are trained, by name, in the order of the flat gradient.

        Under ``torch.func.functional_call`` plain tensors, which cannot say whether they are trained, stand in for
        parameters; then it is those that were trained when this was last asked outside.
        """
        parameters = dict(self.named_parameters())
        if all(isinstance(parameter, nn.Parameter) for parameter in parameters.values()):
            self._trained = [name for name, parameter in parameters.items() if parameter.requires_grad]
        return {name: parameters[name] for name in self._trained}

    def train_only_attention(self, asked_by: str) -> None:
        """Freeze the backbone but for ``blocks.*.attn.qkv``, the projections to queries, keys and values (Smith et al. 2023).

        The head stays trained, and what is frozen already stays frozen.

        Args:
            asked_by: the option that wants it, for the message of an error.

        Raises:
            ConfigError: the backbone has no such weights, or they are frozen.
        """
        # By the names of stages, which stay when those before them are left out, see clbench.scenarios.cached_prefix.
        named = [(f"{stage}.{n}", p) for stage, part in self.stages().items() for n, p in part.named_parameters()]
        attention = [p for name, p in named if ATTENTION.search(name)]
        if not attention:
            raise ConfigError(
                f"{asked_by} needs the weights blocks.*.attn.qkv of a vision transformer, which this network has not: choose "
                "model=small_vit, or model=timm with a ViT, e.g. model.name=vit_base_patch16_224"
            )
        if not any(p.requires_grad for p in attention):
            raise ConfigError(
                f"{asked_by} has nothing to train: all attention weights of the network are frozen, by "
                f"model.frozen={self.frozen} or by another strategy"
            )
        kept = {id(p) for p in attention}
        for p in self.backbone.parameters():
            if id(p) not in kept:
                p.requires_grad_(False)


def _expanded(rows: Tensor, like: Tensor) -> Tensor:
    """Boolean, of the shape of ``like`` (n, …): True in the chosen rows (n,)."""
    return rows.view(-1, *[1] * (like.dim() - 1)).expand_as(like)
