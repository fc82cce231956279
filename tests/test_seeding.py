"""Random numbers without a state: SplitMix64's own, uniform, and the same in every way of computing them."""

import pytest
import torch

from clbench.seeding import hashed_uniform, stream_seed, torch_draws_from
from clbench.training.fleet import Fleet


def splitmix64(key: int, n: int) -> list[float]:
    """The published algorithm in whole numbers modulo 2⁶⁴."""
    numbers, state = [], key % 2**64
    for _ in range(n):
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        z = state
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        numbers.append(((z ^ (z >> 31)) >> 11) * 2.0**-53)
    return numbers


@pytest.mark.parametrize("key", [0, 1, 2**63 - 1, -5, 1234567890123456789])
def test_the_numbers_are_those_of_splitmix64(key):
    assert hashed_uniform(torch.tensor(key), 50).tolist() == splitmix64(key, 50)


def test_under_vmap_every_key_draws_its_own():
    keys = torch.tensor([3, 4, 2**40])
    together = torch.vmap(lambda key: hashed_uniform(key, 7))(keys)
    assert torch.equal(together, torch.stack([hashed_uniform(key, 7) for key in keys]))


def test_uniform_and_without_trace_of_neighbouring_keys():
    first, second = (hashed_uniform(torch.tensor(key), 20000) for key in (10, 11))
    counts = torch.histc(first, 20, 0, 1)
    assert ((counts - 1000) ** 2 / 1000).sum() < 43.8  # χ², 19 degrees of freedom, p = 0.001
    assert torch.corrcoef(torch.stack([first, second]))[0, 1].abs() < 0.03


# ---- torch's own generators -------------------------------------------------------------------------------------------


@pytest.fixture
def seeds_of_gpus(monkeypatch) -> list[int]:
    """The seeds that all CUDA generators are given, one after another."""
    seeds: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
    return seeds


def test_initial_weights_leave_all_generators_alone(seeds_of_gpus):
    before = torch.get_rng_state()
    with torch_draws_from(3, "initialisation"):
        drawn = torch.rand(4)
    assert torch.equal(drawn, torch.rand(4, generator=torch.Generator().manual_seed(stream_seed(3, "initialisation"))))
    assert torch.equal(torch.get_rng_state(), before)
    assert not seeds_of_gpus


def test_a_run_draws_from_its_own_stream_whatever_was_built_before(small_trainer, seeds_of_gpus):
    trainers = [small_trainer("strategy=er", "strategy.memory_size=40", f"seed={seed}") for seed in (5, 6, 7)]
    assert not seeds_of_gpus
    trainers[0].begin()
    assert seeds_of_gpus == [stream_seed(5, "dropout")]
    assert torch.initial_seed() == stream_seed(5, "dropout")


def test_a_fleet_draws_from_the_stream_of_its_first_member(small_trainer, seeds_of_gpus):
    fleet = Fleet([small_trainer(f"seed={seed}", checkpoint=str(seed)) for seed in (8, 9)])
    fleet.fit()
    assert seeds_of_gpus[-1] == stream_seed(8, "dropout")
    assert torch.initial_seed() == stream_seed(8, "dropout")
