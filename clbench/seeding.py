"""Named random streams: every use of randomness draws from its own generator.

A stream is identified by (seed, purpose, task). Because no two purposes share a generator, turning one of them on or
off (evaluation, say) cannot shift the numbers another one draws.
"""

import hashlib

import numpy as np
import torch


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
