"""Named random streams: every use of randomness draws from its own generator.

A stream is identified by (seed, purpose, task). Because no two purposes share a generator, turning one of them on or
off (evaluation, say) cannot shift the numbers another one draws.
"""

import hashlib
import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor


def stream_seed(seed: int, purpose: str, task: int = 0) -> int:
    """A 63-bit seed for the stream ``(seed, purpose, task)``; distinct streams get unrelated seeds."""
    digest = hashlib.blake2b(f"{seed}/{purpose}/{task}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def torch_generator(seed: int, purpose: str, task: int = 0, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator for the stream ``(seed, purpose, task)``."""
    generator = torch.Generator(device=device)
    generator.manual_seed(stream_seed(seed, purpose, task))
    return generator


def numpy_generator(seed: int, purpose: str, task: int = 0) -> np.random.Generator:
    """A numpy generator for the stream ``(seed, purpose, task)``."""
    return np.random.default_rng(stream_seed(seed, purpose, task))


@contextmanager
def torch_draws_from(seed: int, purpose: str) -> Iterator[None]:
    """Within, torch's own generator of the CPU draws from the stream ``(seed, purpose)``; afterwards it is as it was.

    For what draws without a generator, as initial weights do, on the CPU. Other devices' generators are not touched, as they
    would be by ``torch.manual_seed``.
    """
    before = torch.get_rng_state()
    torch.default_generator.manual_seed(stream_seed(seed, purpose))
    try:
        yield
    finally:
        torch.set_rng_state(before)


def hashed_uniform(key: Tensor, n: int) -> Tensor:
    """float64 (n,) in [0, 1): uniform numbers that are a function of ``key`` (int64 scalar) and nothing else.

    A generator without a state: what is drawn within a training step, run alone, compiled or ``vmap``-ped over many keys, is
    the same. The numbers are those of SplitMix64 (Steele, Lea & Flood 2014) seeded with ``key``.
    """
    z = key + (torch.arange(n, device=key.device) + 1) * _signed(0x9E3779B97F4A7C15)
    z = (z ^ _shifted_right(z, 30)) * _signed(0xBF58476D1CE4E5B9)
    z = (z ^ _shifted_right(z, 27)) * _signed(0x94D049BB133111EB)
    return _shifted_right(z ^ _shifted_right(z, 31), 11).double() * 2.0**-53


def hashed_normal(key: Tensor, n: int) -> Tensor:
    """float64 (n,): numbers of the normal distribution N(0, 1) that are a function of ``key`` (int64 scalar) alone."""
    uniform = hashed_uniform(key, n).clamp(min=2.0**-53)  # 0 would become −∞
    return math.sqrt(2) * torch.erfinv(2 * uniform - 1)


def _signed(constant: int) -> int:
    """The int64 with the bits of an unsigned 64-bit constant."""
    return constant - 2**64 if constant >= 2**63 else constant


def _shifted_right(z: Tensor, bits: int) -> Tensor:
    """``z`` shifted as if it were unsigned: int64's own shift copies the sign."""
    return (z >> bits) & (2 ** (64 - bits) - 1)
