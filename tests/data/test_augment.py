"""Batched augmentation equals torchvision's, sample by sample, for the same parameters."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms.v2 import functional as tv

from clbench.config import AugmentConfig
from clbench.data import augment
from clbench.data.augment import Augmentation


def images(batch: int = 6, channels: int = 3, size: tuple[int, int] = (9, 11)) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (batch, channels, *size), generator=generator, dtype=torch.uint8)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@settings(deadline=None, max_examples=30)
@given(pad=st.integers(1, 4), data=st.data())
def test_crop(pad, data):
    x = images()
    offsets = torch.tensor([[data.draw(st.integers(0, 2 * pad)) for _ in range(2)] for _ in x])
    ours = augment.crop(torch.nn.functional.pad(x, (pad,) * 4), offsets, (9, 11))
    for image, (top, left), out in zip(x, offsets.tolist(), ours, strict=True):
        assert torch.equal(out, tv.crop(tv.pad(image, [pad]), top, left, 9, 11))


def test_flip():
    x, flipped = images(), torch.tensor([True, False, True, True, False, False])
    for image, is_flipped, out in zip(x, flipped, augment.flip(x, flipped), strict=True):
        assert torch.equal(out, tv.horizontal_flip(image) if is_flipped else image)


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
@pytest.mark.parametrize("channels", [1, 3])
def test_colour_jitter(name, channels):
    x = images(channels=channels).float()
    factors = torch.tensor([0.0, 0.3, 0.9, 1.0, 1.4, 2.0])
    ours = getattr(augment, f"adjust_{name}")(x, factors)
    for image, factor, out in zip(x, factors, ours, strict=True):
        expected = 255 * getattr(tv, f"adjust_{name}")(image / 255, float(factor))
        torch.testing.assert_close(out, expected, atol=0.05, rtol=0)


def test_parameters_are_per_sample_and_cover_their_range():
    """4,000 copies of one image: every offset and both flips occur about equally often."""
    x = torch.arange(49, dtype=torch.uint8).view(1, 1, 7, 7).repeat(4000, 1, 1, 1) + 1
    shifted = Augmentation(AugmentConfig(crop_padding=2))(x, generator())
    kinds, counts = torch.unique(shifted.flatten(1), dim=0, return_counts=True)
    assert len(kinds) == 25
    assert counts.min() > 100
    flipped = Augmentation(AugmentConfig(flip=True))(x, generator())
    assert abs((flipped != x).flatten(1).any(1).float().mean() - 0.5) < 0.03
    bright = Augmentation(AugmentConfig(brightness=0.5))(
        torch.full((4000, 1, 2, 2), 100, dtype=torch.uint8), generator()
    )
    assert 50 <= bright.min() < 53
    assert 147 < bright.max() <= 150


def test_deterministic_and_apart_from_the_global_generator():
    every = Augmentation(AugmentConfig(crop_padding=2, flip=True, brightness=0.2, contrast=0.2, saturation=0.2))
    before = torch.get_rng_state()
    first, second, other = every(images(), generator(1)), every(images(), generator(1)), every(images(), generator(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_crop_and_flip_keep_uint8():
    assert Augmentation(AugmentConfig(crop_padding=2, flip=True))(images(), generator()).dtype == torch.uint8


def test_training_inputs_differ_between_steps_but_not_between_runs(small_setup):
    options = ["strategy=finetune", "scenario.augment.crop_padding=2", "scenario.augment.flip=true"]
    first, second = small_setup(*options), small_setup(*options)
    ids = torch.arange(8)
    step0, step1 = (first.inputs.training(first.scenario.train, ids, 0, step).x for step in (0, 1))
    assert not torch.equal(step0, step1)
    assert torch.equal(step1, second.inputs.training(second.scenario.train, ids, 0, 1).x)
    plain = first.inputs.plain(first.scenario.train, ids).x
    assert torch.equal(plain, second.inputs.plain(second.scenario.train, ids).x)
