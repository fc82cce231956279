"""Networks that make the weights of another network from an embedding, in chunks.

All N weights of the target network, one after another, are cut into ⌈N / chunk_size⌉ chunks, the last of which is cut off
where the weights end; a chunk may hold the end of one layer and the beginning of the next. With e the embedding of a task and
c_i the embedding of chunk i, learned and the same for all tasks:

    chunked      chunk_i = f([e; c_i])                          f an MLP (von Oswald et al. 2020, arXiv:1906.00695)
    recurrent    h_i, s_i = LSTM([e; c_i], (h_{i−1}, s_{i−1})),  chunk_i = W_o h_i + b_o        (Chandra et al. 2023,
                 h_0 = s_0 = 0                                  arXiv:2209.07712)

so that a recurrent one's chunk depends on those before it. With ``magnitude_invariant`` (Ortiz, Guttag & Dalca 2024,
arXiv:2304.07645) the size of the inputs no longer sets the size of the outputs: f sees E(γ) = [cos(πγ/2), sin(πγ/2)] of the
inputs γ ∈ [0, 1]^d, whose length is √d whatever γ is, and what comes out is added to learned weights Θ₀, which start as the
target network's own initialisation does:

    Θ = Θ₀ + f(E(γ)),     γ = sigmoid([e; c_i])

The sigmoid is our choice (task embeddings are not bounded, and the paper does not treat them), and so is a last layer that
starts as its hidden layers do: the paper's separate initialisation for every target tensor has no meaning for chunks.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "elu": F.elu,
    "sigmoid": torch.sigmoid,
    "leaky_relu": F.leaky_relu,
}


class Pieces(NamedTuple):
    """What a hypernetwork makes, in which pieces, from what.

    Attributes:
        n_weights: N.
        chunk_size: weights per chunk.
        embedding_size, chunk_embedding_size: entries of e and of c_i.
        chunk_embedding_std: standard deviation of the normal distribution that chunk embeddings are drawn from.
        start: with ``magnitude_invariant`` the weights (N,) that Θ₀ starts from, else None.
    """

    n_weights: int
    chunk_size: int
    embedding_size: int
    chunk_embedding_size: int
    chunk_embedding_std: float = 1.0
    start: Tensor | None = None


class Hypernetwork(nn.Module):
    """What both kinds share: chunk embeddings, the encoding of the inputs, and how chunks become weights."""

    def __init__(self, pieces: Pieces) -> None:
        super().__init__()
        self.n_weights = pieces.n_weights
        self.n_chunks = math.ceil(pieces.n_weights / pieces.chunk_size)
        self.magnitude_invariant = pieces.start is not None
        self.n_inputs = (pieces.embedding_size + pieces.chunk_embedding_size) * (2 if self.magnitude_invariant else 1)
        drawn = torch.randn(self.n_chunks, pieces.chunk_embedding_size)
        self.chunk_embeddings = nn.Parameter(pieces.chunk_embedding_std * drawn)
        if pieces.start is not None:
            self.start = nn.Parameter(pieces.start.detach().clone())

    def forward(self, embedding: Tensor) -> Tensor:
        """All weights (N,) of the target network for a task embedding (embedding_size,)."""
        weights = self.chunks(self.inputs(embedding)).reshape(-1)[: self.n_weights]
        return self.start + weights if self.magnitude_invariant else weights

    def inputs(self, embedding: Tensor) -> Tensor:
        """What the network sees for every chunk, (n_chunks, n_inputs); the task embedding is the same in all of them."""
        both = torch.cat([embedding.expand(self.n_chunks, -1), self.chunk_embeddings], dim=1)
        return encoded(both.sigmoid()) if self.magnitude_invariant else both

    def chunks(self, inputs: Tensor) -> Tensor:
        """The chunks (n_chunks, chunk_size) for inputs (n_chunks, n_inputs)."""
        raise NotImplementedError


class ChunkedHypernetwork(Hypernetwork):
    """An MLP that makes every chunk by itself.

    Args:
        pieces: what is made.
        hidden: units of each hidden layer; none makes a linear map.
        activation: after every hidden layer, a key of :data:`ACTIVATIONS`; LeakyReLU where ``magnitude_invariant``.
    """

    def __init__(self, pieces: Pieces, hidden: Sequence[int], activation: str) -> None:
        super().__init__(pieces)
        self.activation = ACTIVATIONS["leaky_relu" if self.magnitude_invariant else activation]
        sizes = [self.n_inputs, *hidden, pieces.chunk_size]
        self.layers = nn.ModuleList(nn.Linear(n_in, n_out) for n_in, n_out in pairwise(sizes))
        for layer in self.layers:
            assert isinstance(layer, nn.Linear)
            nn.init.zeros_(layer.bias)
            if self.magnitude_invariant:
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="leaky_relu")
            else:
                nn.init.xavier_uniform_(layer.weight)

    def chunks(self, inputs: Tensor) -> Tensor:
        *hidden, last = self.layers
        for layer in hidden:
            inputs = self.activation(layer(inputs))
        return last(inputs)


class RecurrentHypernetwork(Hypernetwork):
    """An LSTM cell that goes through the chunks in order, and a linear map from its state to a chunk.

    All of its weights and biases start uniform in ±1/√H. The cell has PyTorch's layout: rows of the input, forget, cell and
    output gate, and a bias on both sides.

    Args:
        pieces: what is made.
        state_size: H, entries of the LSTM's state.
    """

    def __init__(self, pieces: Pieces, state_size: int) -> None:
        super().__init__(pieces)
        self.state_size = state_size
        self.input_maps = nn.Linear(self.n_inputs, 4 * state_size)
        self.state_maps = nn.Linear(state_size, 4 * state_size)
        self.output_map = nn.Linear(state_size, pieces.chunk_size)
        bound = 1 / math.sqrt(state_size)
        for layer in (self.input_maps, self.state_maps, self.output_map):
            nn.init.uniform_(layer.weight, -bound, bound)
            nn.init.uniform_(layer.bias, -bound, bound)

    def chunks(self, inputs: Tensor) -> Tensor:
        from_inputs = self.input_maps(inputs)  # of all chunks at once: only the state has to wait for the chunk before
        hidden = cell = inputs.new_zeros(self.state_size)
        states = []
        for gates in from_inputs:
            i, f, g, o = (gates + self.state_maps(hidden)).chunk(4)
            cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
            hidden = o.sigmoid() * cell.tanh()
            states.append(hidden)
        return self.output_map(torch.stack(states))


def encoded(inputs: Tensor) -> Tensor:
    """E(γ) (..., 2d) of inputs γ (..., d) in [0, 1]: the cosines, then the sines; its length is √d."""
    angle = inputs * (math.pi / 2)
    return torch.cat([angle.cos(), angle.sin()], dim=-1)
