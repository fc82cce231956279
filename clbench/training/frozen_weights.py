"""Weights with which a network starts and that a run leaves as they are: a checkpoint names them by their SHA-256.

They come from the file of a pretrained network, or are drawn from the seed, and are there again when the run is set up to go on.
Whatever else a learner holds is in the checkpoint: what is trained, every buffer, and frozen weights that are no longer what they
were (an adapter has been merged into them), or that have been frozen after set-up.
"""

import hashlib
from pathlib import Path

import torch
from torch import Tensor

from clbench.errors import DataError
from clbench.learning.learner import Learner


class FrozenWeights:
    """The frozen parameters of a learner's network at the start of a run.

    Args:
        learner: as it has been set up, before it is trained or loaded.
    """

    def __init__(self, learner: Learner) -> None:
        self._learner = learner
        named = learner.model.named_parameters(prefix="model", remove_duplicate=False)
        self.sha256 = {name: sha256_of(parameter) for name, parameter in named if not parameter.requires_grad}
        """By their names in the learner's state."""

    def left_out_of(self, state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
        """The learner's ``state`` without those of them that are what they were, and the SHA-256 of these by name."""
        same = {name: was for name, was in self.sha256.items() if name in state and sha256_of(state[name]) == was}
        return {name: tensor for name, tensor in state.items() if name not in same}, same

    def put_into(self, state: dict[str, Tensor], left_out: dict[str, str], path: Path) -> dict[str, Tensor]:
        """The whole state that has been saved at ``path`` by :meth:`left_out_of`, with the learner's own tensors; before loading.

        Raises:
            DataError: the network does not start with the weights that the run began with.
        """
        others = [name for name, sha256 in left_out.items() if self.sha256.get(name) != sha256]
        if others:
            raise DataError(
                f"the network starts with other frozen weights than those of the checkpoint {path} ({len(others)} of "
                f"{len(left_out)} tensors, such as {others[0].removeprefix('model.')}): bring back the file that they came from, "
                "or the machine that drew them from the seed, or move the checkpoint away to begin anew"
            )
        own = self._learner.state_dict()
        return {**{name: own[name] for name in left_out}, **state}


def sha256_of(tensor: Tensor) -> str:
    """SHA-256 of a tensor's values, of any type."""
    values = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(values.numpy().data).hexdigest()
