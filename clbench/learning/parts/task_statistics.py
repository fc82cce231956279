"""BatchNorm statistics of every task, for methods with a network per task.

Running means and variances are no weights: no mask or hypernetwork makes them, and training on a later task moves them. With
one set for all tasks an old network would forget through them, whatever its weights do. So the model's own statistics are
those of the task being learned, a copy is kept when it ends, and the task's number chooses among the copies (von Oswald et
al. 2020, ``condition=task_id``).
"""

import torch
from torch import Tensor, nn

from clbench.models.continual import ContinualModel


class TaskStatistics(nn.Module):
    """A copy of the running statistics (T, ...) for each of T tasks.

    Args:
        model: the network; a task's training starts from the statistics that the task before has left.
        n_tasks: T.
    """

    def __init__(self, model: ContinualModel, n_tasks: int) -> None:
        super().__init__()
        self._names = [name for name in norm_statistics(model) if not name.endswith("num_batches_tracked")]
        for name in self._names:
            kept = model.get_buffer(name)
            self.register_buffer(_flat(name), torch.zeros(n_tasks, *kept.shape, dtype=kept.dtype, device=kept.device))

    def store(self, model: ContinualModel, task: int) -> None:
        """Keep the model's statistics as those of ``task``."""
        for name in self._names:
            self.get_buffer(_flat(name))[task] = model.get_buffer(name)

    def of(self, task: int) -> dict[str, Tensor]:
        """The statistics of ``task`` by the names of the model's buffers, for ``torch.func.functional_call``."""
        return {name: self.get_buffer(_flat(name))[task] for name in self._names}


def norm_statistics(model: ContinualModel) -> dict[str, Tensor]:
    """Running means, variances and counts of batches of all normalisation layers, by the names of the model's buffers."""
    return {
        f"{name}.{buffer}": tensor
        for name, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._NormBase)
        for buffer, tensor in module.named_buffers()
    }


def _flat(name: str) -> str:
    """A name that a buffer may have: without dots."""
    return name.replace(".", "_")
