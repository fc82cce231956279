"""Learners of one structure as tensors with a leading dimension, and their methods over it.

The trained weights of R learners are the rows of one matrix (R, P); every other parameter and buffer is a tensor (R, ...). A
frozen parameter of the model that is equal in all learners (a pretrained backbone) is kept once. The learner's own methods
run over the rows by ``torch.vmap``, through ``torch.func.functional_call``; of one learner they run as they are.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_flatten, tree_unflatten

from clbench.learning.base import Batch, Outputs
from clbench.learning.learner import Learner
from clbench.learning.microbatch import backward_in_pieces


def row_numbers(rows: Sequence[int], device: torch.device) -> Tensor:
    """``rows`` (n,) as a tensor on ``device``, for which the host does not wait: it is copied from page-locked memory."""
    numbers = torch.tensor(rows)
    return numbers.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else numbers


class Stack:
    """R states of a learner.

    Args:
        learner: gives structure, mode (training or evaluation) and whatever the state leaves out.
        shapes: names and shapes of the trained parameters, in the order of the flat weights.
        weights: (R, P).
        rest: other parameters and buffers by name, (R, ...).
        shared: parameters that all have in common.
        tied: further names of what the others name, such as of an embedding that is an output layer as well.
    """

    def __init__(
        self,
        learner: Learner,
        shapes: dict[str, torch.Size],
        weights: Tensor,
        rest: dict[str, Tensor],
        shared: dict[str, Tensor],
        tied: dict[str, str],
    ) -> None:
        self.learner, self.shapes, self.tied = learner, shapes, tied
        self.weights, self.rest, self.shared = weights, rest, shared

    @classmethod
    def of(cls, learners: Sequence[Learner]) -> "Stack":
        """Stack the learners, whose tensors become views of their rows: a change of one is a change of the other."""
        states = [dict(state_of(learner)) for learner in learners]
        shapes = {name: tensor.shape for name, tensor in states[0].items() if tensor.requires_grad}
        weights = torch.stack([torch.cat([state[name].detach().view(-1) for name in shapes]) for state in states])
        rest, shared = {}, {}
        for name in states[0].keys() - shapes.keys():
            tensors = [state[name].detach() for state in states]
            # Only the model's: what a strategy keeps frozen (a teacher) it may overwrite, for each learner by itself.
            frozen = isinstance(states[0][name], nn.Parameter) and name.startswith("model.")
            if frozen and all(torch.equal(tensors[0], tensor) for tensor in tensors[1:]):
                shared[name] = tensors[0]
            else:
                rest[name] = torch.stack(tensors)
        stack = cls(learners[0], shapes, weights, rest, shared, tied_names(learners[0]))
        for row, state in enumerate(states):
            for name, view in stack.state_of_one(weights[row], {n: t[row] for n, t in rest.items()}).items():
                state[name].data = view
        return stack

    def __len__(self) -> int:
        return len(self.weights)

    def select(self, rows: Tensor) -> "Stack":
        """A copy of some rows, by their numbers (n,)."""
        rest = {name: tensor[rows] for name, tensor in self.rest.items()}
        return Stack(self.learner, self.shapes, self.weights[rows], rest, self.shared, self.tied)

    def put(self, rows: Tensor, other: "Stack") -> None:
        """Write a selection back to its rows."""
        self.weights[rows] = other.weights
        for name, tensor in other.rest.items():
            self.rest[name][rows] = tensor

    def state_of_one(self, weights: Tensor, rest: dict[str, Tensor]) -> dict[str, Tensor]:
        """A learner's state by name, from its flat weights (P,) and what it does not share of the rest."""
        pieces = weights.split([shape.numel() for shape in self.shapes.values()])
        trained = {name: piece.view(shape) for piece, (name, shape) in zip(pieces, self.shapes.items(), strict=True)}
        return {**trained, **rest, **self.shared}

    # ---- the learner's methods ----------------------------------------------------------------------------------------

    def losses_and_gradients(
        self, batch: Batch, microbatch: int | None = None
    ) -> tuple[dict[str, Tensor], Outputs | None, Tensor]:
        """All loss terms (R,) by name, the outputs (R, B, ...) where they are kept, and the gradients (R, P) of the terms' sums.

        The batch's tensors, here and below, are (R, B, ...). With ``microbatch`` so many samples of each run pass through the
        network at a time, see :mod:`clbench.learning.microbatch`.
        """
        compilation = self.learner.compilation
        weights = self.weights.detach().requires_grad_()

        def in_pieces(size: int) -> tuple[dict[str, Tensor], Outputs, Tensor]:
            weights.grad = None

            def outputs_of(piece: Batch) -> Outputs:
                return self._run("stacked outputs", _outputs, self, weights, self.rest, piece)

            def terms_of(batch: Batch, outputs: Outputs) -> dict[str, Tensor]:
                return self._run("stacked terms", _terms, self, weights, self.rest, batch, outputs)

            terms, outputs = backward_in_pieces(batch, size, outputs_of, terms_of, dim=1)
            assert weights.grad is not None
            return terms, outputs, weights.grad

        def differentiate() -> tuple[dict[str, Tensor], Outputs | None, Tensor]:
            if microbatch is not None and batch.ids.shape[1] > microbatch:
                return in_pieces(microbatch)
            terms, outputs = self._run("stacked losses", _losses, self, weights, self.rest, batch)
            # The rows do not touch each other, so the sum's gradient holds each row's own; a NaN stays in its row.
            total = torch.stack([term.sum() for term in terms.values()]).sum()
            (gradients,) = torch.autograd.grad(total, weights)
            return terms, outputs, gradients

        terms, outputs, gradients = compilation.guarded(differentiate)
        kept = None if outputs is None else Outputs(*(compilation.kept(tensor) for tensor in outputs))
        return {name: compilation.kept(term) for name, term in terms.items()}, kept, gradients

    def edited(self, gradients: Tensor, batch: Batch) -> Tensor:
        """The gradients (R, P) as the strategies edit them."""

        def edit(weights: Tensor, rest: dict[str, Tensor], gradient: Tensor, batch: Batch) -> Tensor:
            return self.call("edit_gradients", weights, rest, gradient, batch)

        return _over_rows(edit, self.weights, self.rest, gradients, batch).detach()

    def recall(self, slots: Tensor) -> Tensor:
        """Sample ids (R, n) in the planned slots (R, n) of the learners' memories."""
        return _over_rows(partial(self.call, "recall"), self.weights, self.rest, slots)

    def after_step(self, step: int, batch: Batch) -> Tensor | None:
        """Every strategy's hook, which changes weights and buffers in place; which weights (R, P) were drawn anew, or None."""

        def act(weights: Tensor, rest: dict[str, Tensor], batch: Batch) -> Tensor:
            renewed = self.call("after_step", weights, rest, step, batch)
            return weights.new_zeros(()) if renewed is None else renewed  # vmap wants a result

        renewed = _over_rows(act, self.weights, self.rest, batch)
        return renewed if renewed.dim() == 2 else None

    def learn(self, batch: Batch) -> dict[str, Tensor]:
        """What is learned without gradients, in place; losses (R,) by name."""

        def learn(weights: Tensor, rest: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
            return self.call("learn", weights, rest, batch)

        return _over_rows(learn, self.weights, self.rest, batch)

    def predict(self, x: Tensor, task: Tensor | int, shared_inputs: bool) -> Tensor:
        """Logits (R, n, C) of samples (R, n, ...), or of one and the same (n, ...) for all rows.

        ``task`` (R, n) or (n,) holds the samples' tasks; a whole number says that all are of that one.
        """
        arguments = (self, self.weights, self.rest, x, task, shared_inputs)
        return self.learner.compilation.guarded(lambda: self._run("stacked predictions", _predictions, *arguments))

    def _run(self, name: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """``function(*arguments)`` as ``trainer.compile`` says; eagerly for transformers, see :class:`Compilation`."""
        compilation = self.learner.compilation
        if getattr(self.learner.model.backbone, "transformer", None) is None:
            return compilation.run(name, function, *arguments)
        compilation.leave_out("stacks of vision transformers")
        return function(*arguments)

    def call(self, hook: str, weights: Tensor, rest: dict[str, Tensor], *arguments: Any) -> Any:
        """The learner's method ``hook`` with the state that one row describes."""
        state = self.state_of_one(weights, rest)
        # Not by functional_call, which would look for names that are tied in every call.
        state |= {name: state[other] for name, other in self.tied.items()}
        return functional_call(self.learner, state, (hook, *arguments), tie_weights=False)


def _losses(
    stack: Stack, weights: Tensor, rest: dict[str, Tensor], batch: Batch
) -> tuple[dict[str, Tensor], Outputs | None]:
    def losses(weights: Tensor, rest: dict[str, Tensor], batch: Batch) -> tuple[Any, ...]:
        terms, outputs = stack.call("loss_and_outputs", weights, rest, batch)
        return (terms,) if outputs is None else (terms, outputs)  # vmap returns tensors alone

    terms, *outputs = _over_rows(losses, weights, rest, batch)
    return terms, outputs[0] if outputs else None


def _outputs(stack: Stack, weights: Tensor, rest: dict[str, Tensor], batch: Batch) -> Outputs:
    def outputs(weights: Tensor, rest: dict[str, Tensor], batch: Batch) -> Outputs:
        return stack.call("outputs", weights, rest, batch)

    return _over_rows(outputs, weights, rest, batch)


def _terms(stack: Stack, weights: Tensor, rest: dict[str, Tensor], batch: Batch, outputs: Outputs) -> dict[str, Tensor]:
    def terms(weights: Tensor, rest: dict[str, Tensor], batch: Batch, outputs: Outputs) -> dict[str, Tensor]:
        return stack.call("terms", weights, rest, batch, outputs)

    return _over_rows(terms, weights, rest, batch, outputs)


def _predictions(
    stack: Stack, weights: Tensor, rest: dict[str, Tensor], x: Tensor, task: Tensor | int, shared_inputs: bool
) -> Tensor:
    def predict(weights: Tensor, rest: dict[str, Tensor], x: Tensor, task: Tensor | int) -> Tensor:
        return stack.call("prepare_and_predict", weights, rest, x, task)

    if len(weights) == 1:
        of_one = {name: tensor[0] for name, tensor in rest.items()}
        of_x, of_task = (x, task) if shared_inputs else (x[0], task if isinstance(task, int) else task[0])
        return predict(weights[0], of_one, of_x, of_task)[None]
    where = None if shared_inputs else 0
    return torch.vmap(predict, in_dims=(0, 0, where, None if isinstance(task, int) else where))(weights, rest, x, task)


def _over_rows(function: Callable, *arguments: Any) -> Any:
    """``function`` for every row of the tensors in the arguments; whole numbers and None are passed on as they are."""
    # The tensors alone, one after another: vmap walks through nested arguments several times, which costs more than it looks.
    leaves, structure = tree_flatten(arguments)
    places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]

    def of_tensors(*tensors: Tensor) -> Any:
        of_row = list(leaves)
        for place, tensor in zip(places, tensors, strict=True):
            of_row[place] = tensor
        return function(*tree_unflatten(of_row, structure))

    return torch.vmap(of_tensors, randomness="different")(*(leaves[place] for place in places))


def share_frozen(first: Learner, other: Learner) -> None:
    """Let ``other`` use the frozen parameters of ``first``'s model where its own are equal, so that they are held once.

    Nothing may then change them in place: who changes such a weight (a merged adapter, a checkpoint) makes a new tensor of it.
    """
    own = dict(other.model.named_parameters())
    for name, parameter in first.model.named_parameters():
        mine = own.get(name)
        if mine is not None and not (parameter.requires_grad or mine.requires_grad) and torch.equal(parameter, mine):
            mine.data = parameter.data


def tied_names(learner: Learner) -> dict[str, str]:
    """The names of parameters and buffers that :func:`state_of` leaves out, with that under which it has them."""
    kept = {id(tensor): name for name, tensor in state_of(learner)}
    named = (*learner.named_parameters(remove_duplicate=False), *learner.named_buffers(remove_duplicate=False))
    return {name: kept[id(tensor)] for name, tensor in named if kept[id(tensor)] != name}


def state_of(learner: Learner) -> list[tuple[str, Tensor]]:
    """Every parameter and buffer with its name, each once."""
    return [*learner.named_parameters(), *learner.named_buffers()]
