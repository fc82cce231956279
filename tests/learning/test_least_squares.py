"""Recursive and closed-form ridge regression against each other and against the normal equations."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clbench.learning.parts.least_squares import downdate, ridge, update_ridge


def problem(seed: int, n: int, d: int, c: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Features (n, d) with eigenvalues over three decades, and one-hot targets (n, c) that come class after class."""
    generator = torch.Generator().manual_seed(seed)
    H = torch.randn(n, d, generator=generator, dtype=torch.float64) * torch.logspace(0, -1.5, d, dtype=torch.float64)
    labels = torch.arange(n) * c // n
    return H, torch.nn.functional.one_hot(labels, c).double()


def normal_equations(H: torch.Tensor, Y: torch.Tensor, lam: float) -> torch.Tensor:
    """Ridge as ordinary least squares with √λ I below the features, by a QR factorisation: no G, no inverse."""
    d = H.shape[1]
    rows = torch.cat([H, lam**0.5 * torch.eye(d, dtype=torch.float64)])
    return torch.linalg.lstsq(rows, torch.cat([Y, torch.zeros(d, Y.shape[1], dtype=torch.float64)])).solution


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 10**6), st.lists(st.integers(1, 9), min_size=1, max_size=8), st.sampled_from([0.01, 0.1, 1.0, 100.0])
)
def test_any_order_and_batching_gives_the_joint_solution(seed, sizes, lam):
    n, d, c = sum(sizes), 6, 4
    H, Y = problem(seed, n, d, c)
    joint = normal_equations(H, Y, lam)
    torch.testing.assert_close(ridge(H.T @ H, H.T @ Y, lam), joint, rtol=0, atol=1e-8)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    R, W = torch.eye(d, dtype=torch.float64) / lam, torch.zeros(d, c, dtype=torch.float64)
    for chosen in order.split(sizes):
        R, W = update_ridge(R, W, H[chosen], Y[chosen])
    torch.testing.assert_close(W, joint, rtol=0, atol=1e-8)
    torch.testing.assert_close(R @ (H.T @ H + lam * torch.eye(d)), torch.eye(d, dtype=torch.float64))


def test_classes_that_come_later_start_as_columns_of_zeros():
    """Columns appended when their class begins give what columns of zeros from the start give."""
    H, Y = problem(0, 60, 8, 3)  # samples 0-19 are of class 0, 20-39 of class 1, 40-59 of class 2
    R, W = torch.eye(8, dtype=torch.float64), torch.zeros(8, 3, dtype=torch.float64)
    grown_R, grown = R, W[:, :0]
    for c, chosen in enumerate(torch.arange(60).split(20)):
        R, W = update_ridge(R, W, H[chosen], Y[chosen])
        assert (W[:, c + 1 :] == 0).all()
        grown = torch.cat([grown, torch.zeros(8, 1, dtype=torch.float64)], 1)
        grown_R, grown = update_ridge(grown_R, grown, H[chosen], Y[chosen, : c + 1])
    torch.testing.assert_close(grown, W)
    torch.testing.assert_close(W, normal_equations(H, Y, 1.0))


def test_thousands_of_updates_stay_symmetric_and_exact():
    """5000 single-sample updates, one direction hundreds of times as large as the others, and a small λ.

    With the update as it is written in papers, P Hᵀ (…)⁻¹ H P, the weights are wrong in the fourth digit.
    """
    H, Y = problem(1, 5000, 12, 5)
    H, lam = H + 100, 1e-6
    R, W = torch.eye(12, dtype=torch.float64) / lam, torch.zeros(12, 5, dtype=torch.float64)
    for h, y in zip(H.split(1), Y.split(1), strict=True):
        R, W = update_ridge(R, W, h, y)
    assert (R - R.T).abs().max() <= 1e-14 * R.abs().max()
    torch.testing.assert_close(W, normal_equations(H, Y, lam), rtol=0, atol=1e-6)
    assert torch.linalg.eigvalsh(R).min() > 0


@pytest.mark.parametrize("alpha", [0.01, 1.0, 30.0])
def test_the_projector_of_orthogonal_weight_modification_is_the_same_matrix(alpha):
    H, _ = problem(2, 20, 7, 2)
    P = torch.eye(7, dtype=torch.float64)
    R = P / alpha
    for batch in H.split(6):
        P, R = downdate(P, batch, alpha), downdate(R, batch)
    projector = torch.eye(7) - H.T @ torch.linalg.inv(H @ H.T + alpha * torch.eye(20)) @ H
    torch.testing.assert_close(P, projector)
    torch.testing.assert_close(P, alpha * R)


def test_a_single_sample_is_the_published_rank_one_rule():
    """k = P rᵀ, P ← P − k kᵀ/(α + r k), with a tensor α."""
    H, _ = problem(3, 8, 5, 2)
    P, r, alpha = H.T @ H + torch.eye(5), H[:1], torch.tensor(0.3)
    k = P @ r.T
    torch.testing.assert_close(downdate(P, r, alpha), P - k @ k.T / (alpha + r @ k))


def test_stacked_problems_are_solved_as_each_alone():
    problems = [problem(seed, 15, 5, 3) for seed in range(3)]
    H, Y = (torch.stack(part) for part in zip(*problems, strict=True))
    lam = torch.tensor([0.1, 1.0, 10.0], dtype=torch.float64)
    R, W = torch.eye(5, dtype=torch.float64) / lam.view(3, 1, 1), torch.zeros(3, 5, 3, dtype=torch.float64)
    stacked_R, stacked_W = torch.vmap(update_ridge)(R, W, H, Y)
    joint = torch.vmap(ridge)(H.mT @ H, H.mT @ Y, lam)
    for i in range(3):
        alone_R, alone_W = update_ridge(R[i], W[i], H[i], Y[i])
        torch.testing.assert_close(stacked_R[i], alone_R)
        torch.testing.assert_close(stacked_W[i], alone_W)
        torch.testing.assert_close(joint[i], normal_equations(H[i], Y[i], float(lam[i])))


def test_a_penalty_lost_in_rounding_gives_no_weights():
    """Two equal features: G is singular, and λ = 10⁻³⁰ cannot be seen beside it."""
    H = torch.ones(4, 2, dtype=torch.float64)
    assert ridge(H.T @ H, H.T @ H, 1e-30).isnan().all()
    assert ridge(H.T @ H, H.T @ H, 1e-3).isfinite().all()
