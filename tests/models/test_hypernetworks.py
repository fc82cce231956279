"""Hypernetworks against loops over chunks, PyTorch's own LSTM cell and closed forms."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from clbench.models.hypernetworks import ChunkedHypernetwork, Pieces, RecurrentHypernetwork, encoded


def chunked(n=23, chunk=5, hidden=(4,), start=None, activation="elu", std=1.0):
    return ChunkedHypernetwork(Pieces(n, chunk, 3, 2, std, start), hidden, activation).double()


def recurrent(n=23, chunk=5, state=6, start=None):
    return RecurrentHypernetwork(Pieces(n, chunk, 3, 2, start=start), state).double()


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 40), chunk=st.integers(1, 45))
def test_chunks_are_concatenated_and_cut_off(n, chunk):
    h = chunked(n, chunk)
    e = torch.randn(3, dtype=torch.float64)
    weights = h(e)
    assert weights.shape == (n,)
    assert len(h.chunk_embeddings) == math.ceil(n / chunk)
    first, last = h.layers
    by_hand = []
    for c in h.chunk_embeddings:
        by_hand += (last.weight @ nn.functional.elu(first.weight @ torch.cat([e, c]) + first.bias) + last.bias).tolist()
    torch.testing.assert_close(weights, torch.tensor(by_hand[:n], dtype=torch.float64))


def test_the_recurrent_one_is_pytorchs_lstm_cell():
    h = recurrent()
    e = torch.randn(3, dtype=torch.float64)
    cell = nn.LSTMCell(5, 6).double()
    names = {"weight_ih": h.input_maps.weight, "bias_ih": h.input_maps.bias,
             "weight_hh": h.state_maps.weight, "bias_hh": h.state_maps.bias}  # fmt: skip
    cell.load_state_dict(names)
    state, memory, made = torch.zeros(1, 6).double(), torch.zeros(1, 6).double(), []
    for c in h.chunk_embeddings:
        state, memory = cell(torch.cat([e, c])[None], (state, memory))
        made.append(h.output_map(state)[0])
    torch.testing.assert_close(h(e), torch.cat(made)[:23])


def test_a_chunk_of_the_recurrent_one_depends_on_those_before_it_and_only_on_them():
    h = recurrent()
    e = torch.randn(3, dtype=torch.float64)
    for i in range(5):
        part = h(e)[5 * i : 5 * i + 5].sum()
        (gradient,) = torch.autograd.grad(part, h.chunk_embeddings)
        depends = gradient.abs().sum(1) > 0
        assert depends.tolist() == [k <= i for k in range(5)]


@pytest.mark.parametrize("make", [chunked, recurrent])
def test_every_chunk_sees_the_same_task_embedding(make):
    h = make()
    e = torch.randn(3, dtype=torch.float64)
    seen = []
    layer = h.layers[0] if make is chunked else h.input_maps
    layer.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    h(e)
    (inputs,) = seen
    assert torch.equal(inputs[:, :3], e.expand(5, 3))
    assert torch.equal(inputs[:, 3:], h.chunk_embeddings)


def test_parameter_counts():
    d, H, chunk, n_chunks, c = 3, 6, 5, 5, 2
    counted = sum(p.numel() for p in recurrent().parameters())
    assert counted == 4 * (d + c + 1) * H + 4 * (H + 1) * H + (H + 1) * chunk + n_chunks * c
    counted = sum(p.numel() for p in chunked().parameters())
    assert counted == (d + c + 1) * 4 + (4 + 1) * chunk + n_chunks * c


def test_initial_weights():
    """Xavier-uniform and no biases for the MLP; uniform in ±1/√H for the LSTM."""
    torch.manual_seed(0)
    h = chunked(n=4000, chunk=2000, hidden=(100,))
    for layer in h.layers:
        n_out, n_in = layer.weight.shape
        bound = math.sqrt(6 / (n_in + n_out))
        assert layer.weight.abs().max() <= bound
        assert layer.weight.detach().std() == pytest.approx(bound / math.sqrt(3), rel=0.1)
        assert not layer.bias.any()
    for std in (1.0, 0.1):
        assert chunked(4000, 1, std=std).chunk_embeddings.detach().std() == pytest.approx(std, rel=0.05)
    r = recurrent(state=400)
    for parameter in (r.state_maps.weight, r.input_maps.bias, r.output_map.weight):
        assert parameter.abs().max() <= 1 / 20
        assert parameter.detach().std() == pytest.approx(1 / 20 / math.sqrt(3), rel=0.1)


class TestMagnitudeInvariance:
    @settings(max_examples=20, deadline=None)
    @given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
    def test_the_encoding_has_length_root_d(self, gamma):
        inputs = torch.tensor(gamma, dtype=torch.float64)
        assert encoded(inputs).norm() == pytest.approx(math.sqrt(len(gamma)))
        expected = [math.cos(math.pi * g / 2) for g in gamma] + [math.sin(math.pi * g / 2) for g in gamma]
        torch.testing.assert_close(encoded(inputs), torch.tensor(expected, dtype=torch.float64))

    @pytest.mark.parametrize("make", [chunked, recurrent])
    def test_outputs_are_added_to_learned_weights(self, make):
        start = torch.randn(23, dtype=torch.float64)
        h = make(start=start)
        assert torch.equal(h.start, start)
        assert h.start.requires_grad
        e = torch.randn(3, dtype=torch.float64)
        both = torch.cat([e.expand(5, 3), h.chunk_embeddings], dim=1)
        expected = start + h.chunks(encoded(torch.sigmoid(both))).flatten()[:23]
        torch.testing.assert_close(h(e), expected)

    def test_scaling_the_embedding_does_not_scale_what_the_network_sees(self):
        h = chunked(start=torch.zeros(23))
        e = torch.randn(3, dtype=torch.float64)
        sizes = [h.inputs(scale * e).norm(dim=1) for scale in (0.1, 1.0, 100.0)]
        for size in sizes:
            torch.testing.assert_close(size, torch.full((5,), math.sqrt(5), dtype=torch.float64))
