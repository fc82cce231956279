"""Prompts that depend on the image: its query q(x) (D), the features of the frozen network without prompts, meets keys.

==================  ===================  ==================================================================================
PromptPool          L2P                  the prompts of the nearest keys, one after another
TaskPrompts         DualPrompt           in training the current task's, in evaluation that of the nearest key
PromptComponents    CODA-Prompt          the sum of all, weighted by how near the keys are
==================  ===================  ==================================================================================

Near is the cosine cos(q, k) = qᵀk / (‖q‖ ‖k‖). Every sample chooses by itself. Cosines are computed entry by entry, not as a
product of matrices, which some devices round to a few digits: a choice could then depend on the batch.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clbench.models.prompts import Prompt


class PromptPool(Prompt):
    """L2P's pool in the form of prefixes: of every prompt half of the vectors are keys, the other half values.

    Args:
        size: prompts M.
        length: vectors L of each, an even number.
        width: D.
        top_k: how many prompts a sample gets.
    """

    uses_query = True

    def __init__(self, size: int, length: int, width: int, top_k: int) -> None:
        super().__init__()
        self.vectors = nn.Parameter(torch.rand(size, length, width))
        self.keys = nn.Parameter(torch.rand(size, width))
        self.top_k = top_k

    def keys_and_values(self, query: Tensor | None) -> tuple[Tensor, Tensor]:
        """(B, top_k · L / 2, D) each."""
        assert query is not None
        nearest = cosines(query, self.keys).topk(self.top_k).indices
        keys, values = self.vectors[nearest].chunk(2, dim=2)
        return keys.flatten(1, 2), values.flatten(1, 2)

    def matching_loss(self, query: Tensor) -> Tensor:
        """The mean of 1 − cos(q, k) over samples and the keys that each has chosen."""
        return (1 - cosines(query, self.keys).topk(self.top_k).values).mean()


class TaskPrompts(Prompt):
    """DualPrompt's E-prompts: one with a key for every task.

    In training all samples have the prompt of the current task. In evaluation each has that of the nearest key among the tasks
    learned so far, the current one included.

    Args:
        n_tasks: tasks of the stream T.
        length: vectors L of each prompt, an even number.
        width: D.
    """

    uses_query = True
    task: Tensor

    def __init__(self, n_tasks: int, length: int, width: int) -> None:
        super().__init__()
        self.vectors = nn.Parameter(torch.rand(n_tasks, length, width))
        self.keys = nn.Parameter(torch.rand(n_tasks, width))
        self.register_buffer("task", torch.zeros((), dtype=torch.int64))

    def begin_task(self, task: int, generator: torch.Generator) -> dict[str, Tensor]:
        self.task.fill_(task)
        return {}

    def keys_and_values(self, query: Tensor | None) -> tuple[Tensor, Tensor]:
        """In training (L / 2, D) each, in evaluation (B, L / 2, D)."""
        assert query is not None
        if self.training:
            vectors = self.vectors.index_select(0, self.task[None])[0]
        else:
            not_learned = torch.arange(len(self.keys), device=self.keys.device) > self.task
            nearest = cosines(query, self.keys).masked_fill(not_learned, -math.inf).argmax(-1)
            vectors = self.vectors[nearest]
        keys, values = vectors.chunk(2, dim=-2)
        return keys, values

    def matching_loss(self, query: Tensor) -> Tensor:
        """The mean of 1 − cos(q, k) over samples, with the current task's key."""
        return (1 - cosines(query, self.keys.index_select(0, self.task[None]))).mean()


class PromptComponents(Prompt):
    """CODA-Prompt's components P_m with attention vectors A_m and keys K_m: one prompt for every sample,

        P = Σ_m α_m P_m,   α_m = cos(q ⊙ A_m, K_m)

    The components are divided among the tasks in order. Those of a task begin when it does, orthogonal to all before; later
    tasks use them too, but train only their own.

    Args:
        size: components M of all tasks together, at least one for every task.
        length: vectors L of a prompt, an even number.
        width: D.
        n_tasks: tasks of the stream.
    """

    uses_query = True
    task: Tensor
    task_of: Tensor

    def __init__(self, size: int, length: int, width: int, n_tasks: int) -> None:
        super().__init__()
        self.vectors = nn.Parameter(torch.zeros(size, length, width))
        self.attention = nn.Parameter(torch.zeros(size, width))
        self.keys = nn.Parameter(torch.zeros(size, width))
        self.register_buffer("task_of", torch.arange(size) * n_tasks // size)
        self.register_buffer("task", torch.zeros((), dtype=torch.int64))

    def begin_task(self, task: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Draw the task's components, A, K and P each orthogonal to what earlier tasks have made of theirs."""
        self.task.fill_(task)
        earlier, new = self.task_of < task, self.task_of == task
        renewed = {}
        with torch.no_grad():
            for name, tensor in self.named_parameters():
                drawn = orthogonal_to(tensor[earlier].flatten(1), int(new.sum()), generator)
                tensor[new] = drawn.reshape(tensor[new].shape).to(tensor)
                renewed[name] = new.view(-1, *[1] * (tensor.dim() - 1)).expand_as(tensor)
        return renewed

    def keys_and_values(self, query: Tensor | None) -> tuple[Tensor, Tensor]:
        """(B, L / 2, D) each."""
        assert query is not None
        near = cosines(query[:, None] * self._trained(self.attention), self._trained(self.keys))
        weights = near * (self.task_of <= self.task)
        keys, values = torch.einsum("bm,mld->bld", weights, self._trained(self.vectors)).chunk(2, dim=1)
        return keys, values

    def orthogonality_loss(self) -> Tensor:
        """Σ_B ‖B Bᵀ − I‖² (squared Frobenius norms) over B = P, A, K of the components so far, one in a row; a scalar."""
        so_far = self.task_of <= self.task
        pairs = so_far[:, None] & so_far
        losses = []
        for tensor in (self.vectors, self.attention, self.keys):
            rows = self._trained(tensor).flatten(1)
            deviation = rows @ rows.T - torch.eye(len(rows), device=rows.device, dtype=rows.dtype)
            losses.append((deviation * pairs).square().sum())
        return torch.stack(losses).sum()

    def _trained(self, tensor: Tensor) -> Tensor:
        """The tensor (M, …) with gradients for the current task's components alone, in training."""
        if not self.training:
            return tensor
        current = (self.task_of == self.task).reshape(-1, *[1] * (tensor.dim() - 1))
        return torch.where(current, tensor, tensor.detach())


def cosines(queries: Tensor, keys: Tensor) -> Tensor:
    """cos (B, M) between queries (B, D), or (B, M, D) where every key has its own, and keys (M, D)."""
    return F.cosine_similarity(queries[:, None] if queries.dim() == 2 else queries, keys, dim=-1)


def orthogonal_to(earlier: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """``n`` unit vectors (n, D), float64 on the CPU, orthogonal to each other and to all rows of ``earlier`` (m, D).

    Gram-Schmidt on draws from N(0, I). Where only D − m < n directions are left, the rest are drawn directions.
    """
    m, width = earlier.shape
    drawn = torch.randn(n, width, dtype=torch.float64, generator=generator)
    # In A = QR, column i of Q times the sign of R_ii is what Gram-Schmidt leaves of column i of A.
    q, r = torch.linalg.qr(torch.cat([earlier.cpu().double(), drawn]).T)
    n_left = max(0, min(n, width - m))
    left = (q * r.diagonal().sign()).T[m : m + n_left]
    return torch.cat([left, F.normalize(drawn[n_left:], dim=1)])
