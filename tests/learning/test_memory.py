"""Replay memories: what is kept and drawn, and how often."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2, chisquare

from clbench.errors import ConfigError
from clbench.learning.parts.memory import EMPTY, draw_balanced, draw_uniform, reservoir_step
from clbench.testing.small_runs import small_network, small_options


def stream_into_reservoir(size, n, batch, rng):
    memory, n_seen = np.full(size, EMPTY), 0
    for start in range(0, n, batch):
        n_seen = reservoir_step(memory, n_seen, np.arange(start, min(start + batch, n)), rng)
    assert n_seen == n
    return memory


def test_reservoir_keeps_every_sample_with_probability_m_over_n():
    """χ² test over 4,000 streams: M = 8 of n = 50, offered in batches of 7."""
    rng = np.random.default_rng(0)
    streams, size, n = 4000, 8, 50
    kept = np.zeros(n)
    for _ in range(streams):
        memory = stream_into_reservoir(size, n, 7, rng)
        assert len(set(memory)) == size
        kept[memory] += 1
    p = size / n
    # Each count is binomial; their sum is fixed, which takes one degree of freedom and leaves a factor n / (n − 1).
    statistic = ((kept - streams * p) ** 2 / (streams * p * (1 - p))).sum() * (n - 1) / n
    assert 0.001 < chi2.sf(statistic, n - 1) < 0.999


def test_reservoir_pairs_are_kept_together_as_often_as_they_should():
    """Uniform over subsets, not only over single samples: P(i and j) = M (M − 1) / (n (n − 1))."""
    rng = np.random.default_rng(1)
    streams, size, n = 4000, 4, 10
    together = np.zeros((n, n))
    for _ in range(streams):
        memory = stream_into_reservoir(size, n, 3, rng)
        together[np.ix_(memory, memory)] += 1
    expected = streams * size * (size - 1) / (n * (n - 1))
    pairs = together[np.triu_indices(n, 1)]
    assert np.abs(pairs - expected).max() < 4.5 * np.sqrt(expected)


@given(n=st.integers(0, 30), size=st.integers(1, 40), batch=st.integers(1, 10))
def test_reservoir_keeps_everything_while_there_is_room(n, size, batch):
    memory = stream_into_reservoir(size, min(n, size), batch, np.random.default_rng(0))
    assert memory[: min(n, size)].tolist() == list(range(min(n, size)))
    assert (memory[min(n, size) :] == EMPTY).all()


@given(sizes=st.lists(st.integers(0, 12), max_size=8), n=st.integers(0, 60), seed=st.integers(0, 2**20))
def test_balanced_draw_is_as_equal_as_the_groups_allow(sizes, n, seed):
    bounds = np.cumsum([0, *sizes])
    groups = [np.arange(a, b) for a, b in pairwise(bounds)]
    drawn = draw_balanced(groups, n, np.random.default_rng(seed))
    assert len(drawn) == len(set(drawn.tolist())) == min(n, sum(sizes))
    counts = np.array([np.isin(group, drawn).sum() for group in groups])
    for group, count in zip(groups, counts, strict=True):
        assert count == len(group) or count >= counts.max() - 1  # only an exhausted group gives fewer


def test_balanced_draw_takes_every_member_and_every_remainder_equally_often():
    rng = np.random.default_rng(2)
    groups = [np.arange(0, 6), np.arange(6, 12), np.arange(12, 18)]
    counts = np.zeros(18)
    for _ in range(3000):
        counts[draw_balanced(groups, 7, rng)] += 1  # 2, 2 and 3: the third one is drawn
    assert chisquare(counts.reshape(3, 6).sum(1)).pvalue > 0.001
    assert chisquare(counts).pvalue > 0.001


@given(size=st.integers(0, 20), n=st.integers(0, 30))
def test_uniform_draw_is_without_replacement(size, n):
    drawn = draw_uniform(np.arange(size), n, np.random.default_rng(0))
    assert len(drawn) == len(set(drawn.tolist())) == min(size, n)
    assert drawn.dtype == np.int64


@pytest.mark.parametrize("name", ["er", "gem", "agem"])
def test_room_for_a_sample_of_every_class_and_task_is_required(name, small_setup):
    small_setup(f"strategy={name}", "strategy.memory_size=10")
    with pytest.raises(
        ConfigError, match="too small for split_digits with 10 classes in 5 tasks: it has to be at least 10"
    ):
        small_setup(f"strategy={name}", "strategy.memory_size=9")


@pytest.mark.parametrize("name", ["er", "ilora"])
def test_a_memory_larger_than_the_data_says_so(name, small_setup):
    options = [*small_options(name), *small_network(name), "scenario=split_digits", "scenario.tasks=2"]
    n = len(small_setup(*options).scenario.train)
    for size, expected in (
        (n - 1, []),
        (n, [f"memory_size={n} has room for all {n} training samples: everything is kept"]),
    ):
        notes = small_setup(*options, f"strategy.memory_size={size}").learner.strategies[0].notes()
        assert [note for note in notes if "memory_size" in note] == expected
