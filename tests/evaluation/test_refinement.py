"""The policy of the adaptive evaluator: what it models, what it asks for, what it finds."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clbench.evaluation.refinement import AT_ONCE, MARKS, RESERVED, Refinement, expected_undercut

N = 1000


def replay(policy: Refinement, curves: np.ndarray, lengths: list[int], window: int, state=None) -> list[int]:
    """Every iteration the policy asks for on a stream: curves (iterations + 1, tasks), task i of lengths[i] iterations.

    ``state`` is called with the policy before every window and returns the policy that goes on.
    """
    asked: list[int] = []

    def tell(iteration: int, task: int) -> None:
        asked.append(iteration)
        policy.tell(iteration, np.round(N * curves[iteration, : task + 1]), np.full(task + 1, N))

    tell(0, 0)
    start = 0
    for task, length in enumerate(lengths):
        for first in range(start + 1, start + length + 1, window):
            last = min(first + window - 1, start + length)
            policy = state(policy) if state else policy
            while request := policy.ask(task, first, last):
                assert 0 < len(request) <= max(AT_ONCE, len(MARKS))
                assert all(first <= i <= last for i in request)
                for iteration in request:
                    tell(iteration, task)
        start += length
    assert len(asked) == len(set(asked)), "nothing is evaluated twice"
    return asked


def dip(at: float, width: float, depth: float, length: int) -> np.ndarray:
    """Accuracy .9 on iterations 1 … length after a switch, but for a smooth dip."""
    return 0.9 - depth * np.exp(-(((np.arange(1, length + 1) - at) / width) ** 2))


# ---- the model --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("a", "b", "after", "h"), [(0.30, 0.34, 0.8, 16), (0.30, 0.30, 0.5, 8), (0.5, 0.31, 0.36, 30)])
def test_undercut_is_that_of_simulated_bridges(a, b, after, h):
    """20,000 Brownian bridges in steps of 1/100 of the interval; a finite step misses .58 σ√step of the minimum."""
    minimum, gap, steps = 0.28, 10, 100
    got = expected_undercut(np.array([0, h, h + gap]), np.array([[a], [b], [after]]), np.array([minimum]))[0, 0]
    on_the_line = (gap * a + h * after) / (h + gap)
    rate = (b - on_the_line) ** 2 / (h * gap / (h + gap))
    rng, time = np.random.default_rng(0), np.arange(1, steps + 1) / steps
    walk = rng.normal(size=(20_000, steps)).cumsum(1) / math.sqrt(steps)
    bridge = a + (b - a) * time + math.sqrt(rate * h) * (walk - time * walk[:, -1:])
    lowest = bridge.min(1) - 0.5826 * math.sqrt(rate * h / steps)
    assert got == pytest.approx(np.maximum(minimum - lowest, 0).mean(), rel=0.05)


def test_a_slope_is_no_reason_to_look_closer_but_a_bend_is():
    """σ² reaches the intervals at a bend and those next to them: a fall that turns into a rise at the fourth of eight points."""
    at = np.arange(0, 80, 10)
    fall = 0.9 - 0.005 * at[:, None]
    assert expected_undercut(at, fall, fall.min(0)).max() < 1e-6
    turned = 0.5 + 0.005 * np.abs(at[:, None] - 30)
    undercut = expected_undercut(at, turned, turned.min(0))[:, 0]
    assert undercut[[2, 3]].min() > 10 * undercut[[1, 4]].max() > 0
    assert undercut[[0, 5, 6]].max() < 1e-6


def test_undercut_of_what_can_not_be_lower():
    """Neighbouring iterations have nothing between them; below 0 there is nothing; a curve that stands still stays."""
    at = np.array([1, 2, 20, 40])
    moving = np.array([[0.5], [0.0], [0.7], [0.1]])
    assert expected_undercut(at, moving, np.array([0.0])).tolist() == [[0], [0], [0]]
    got = expected_undercut(at, moving, np.array([0.05]))[:, 0]
    assert got[0] == 0
    assert (got[1:] > 0).all()
    assert (got <= 0.05).all()
    assert expected_undercut(at, np.full((4, 1), 0.4), np.array([0.4])).max() < 1e-5


@settings(deadline=None, max_examples=100)
@given(st.lists(st.integers(0, N), min_size=2, max_size=20), st.integers(0, N), st.integers(1, 10**6))
def test_undercut_is_a_finite_accuracy(counts, minimum, distance):
    accuracies = np.array(counts)[:, None] / N
    minimum = min(accuracies.min(), minimum / N)
    undercut = expected_undercut(distance * np.arange(len(counts)), accuracies, np.array([minimum]))
    assert np.isfinite(undercut).all()
    assert (undercut >= 0).all()
    assert (undercut <= minimum).all()


# ---- what is asked -----------------------------------------------------------------------------------------------------------


def test_skeleton_follows_the_switch_and_ends_every_window():
    policy = Refinement(n_tasks=2)
    flat = np.full((201, 2), 0.5)
    assert replay(policy, flat, [100, 100], window=64) == [0, 1, 4, 16, 64, 100, 101, 104, 116, 164, 200]


@pytest.mark.parametrize("window", [32, 64])
@pytest.mark.parametrize(("at", "width"), [(7, 3), (20, 6), (45, 15), (90, 30)])
@pytest.mark.parametrize("depth", [0.2, 0.8])
def test_smooth_dips_are_found(at, width, depth, window):
    """Three tasks, two switches; the second dip is the deeper one. At most an eighth, and within .2 points."""
    curves = np.full((601, 3), 0.9)
    curves[201:401, 0] = dip(at, width, depth / 2, 200)
    curves[401:, 0] = dip(at, width, depth, 200)
    curves[401:, 1] = dip(at + 2, width, 0.9 * depth, 200)
    asked = replay(Refinement(n_tasks=3), curves, [200, 200, 200], window)
    assert len(asked) <= 601 / 8
    for task in (0, 1):
        after = [i for i in asked if i > 200 * (task + 1)]
        lowest = curves[200 * (task + 1) + 1 :, task].min()
        assert curves[after, task].min() - lowest <= 0.002


def test_what_is_lost_altogether_is_looked_at_no_further():
    """Accuracy 0 cannot be undercut, and what moves above a minimum that is lower by far does not matter."""
    curves = np.full((401, 2), 0.5)
    curves[101:, 0] = 0
    curves[150:, 0] = 0.04 + 0.04 * np.sin(np.arange(150, 401))  # less than MOVED
    asked = replay(Refinement(n_tasks=2), curves, [100, 300], window=32)
    skeleton = replay(Refinement(n_tasks=2, share=0), curves, [100, 300], window=32)
    assert asked == skeleton


def test_moves_of_the_first_task_are_resolved_with_what_is_not_reserved():
    """There is no minimum to look for, but a rise within some iterations, which the learning curve's metrics need."""
    curves = np.where(np.arange(513) > 300, 0.9, 0.1)[:, None]
    asked = replay(Refinement(n_tasks=2), curves, [512], window=64)
    assert {300, 301} <= set(asked)
    noise = np.random.default_rng(0).random((513, 1))
    asked = replay(Refinement(n_tasks=2), noise, [512], window=64)
    assert (1 - RESERVED) * 512 / 8 - 1 <= len(asked) <= (1 - RESERVED) * 512 / 8 + 1  # 1: the end of the last window


@st.composite
def streams(draw):
    lengths = draw(st.lists(st.integers(1, 90), min_size=1, max_size=4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    noise = rng.normal(size=(sum(lengths) + 1, len(lengths)))
    curves = noise if draw(st.booleans()) else noise.cumsum(0) / 10
    return (
        lengths,
        1 / (1 + np.exp(-curves)),
        draw(st.integers(1, 70)),
        draw(st.sampled_from([0, 1 / 16, 1 / 8, 1 / 2, 1])),
    )


@settings(deadline=None, max_examples=60)
@given(streams())
def test_budget_holds_and_a_resumed_run_goes_on_alike(stream):
    """Jagged and smooth streams, any window: no more than the share, or else no more than the skeleton in excess of it."""
    lengths, curves, window, share = stream
    asked = replay(Refinement(len(lengths), share), curves, lengths, window)
    skeleton = replay(Refinement(len(lengths), 0), curves, lengths, window)
    assert set(skeleton) <= set(asked)
    spent = [i for i in asked if i not in set(skeleton)]
    assert len(spent) <= share * sum(lengths)
    assert not spent or len(asked) <= share * max(spent) + window + len([i for i in skeleton if i > max(spent)])

    def reload(policy: Refinement) -> Refinement:
        resumed = Refinement(len(lengths), share)
        resumed.load_state(json.loads(json.dumps(policy.state_dict(), allow_nan=False)))
        return resumed

    # ``replay`` tells iteration 0 to the policy it was given, so the first state already holds an evaluation.
    assert replay(Refinement(len(lengths), share), curves, lengths, window, state=reload) == asked


def test_everything_is_evaluated_where_the_share_is_everything():
    """On a curve that may go lower anywhere, no budget and no tolerance: every iteration after the first task."""
    rng = np.random.default_rng(0)
    curves = rng.uniform(0.3, 0.7, (121, 2))
    asked = replay(Refinement(2, share=1, tolerance=0), curves, [40, 80], window=32)
    assert set(range(41, 121)) <= set(asked)
