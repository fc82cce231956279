"""Batched augmentation equals torchvision's, sample by sample, for the same parameters."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from clbench.config import AugmentConfig
from clbench.data import augment
from clbench.data.augment import Augmentation

EVERYTHING = AugmentConfig(resized_crop=0.5, crop_padding=2, flip=True, brightness=0.2, contrast=0.2, saturation=0.2)


def images(batch: int = 6, channels: int = 3, size: tuple[int, int] = (9, 11)) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (batch, channels, *size), generator=generator, dtype=torch.uint8)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---- equal to torchvision -------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=30)
@given(pad=st.integers(1, 4), data=st.data())
def test_crop(pad, data):
    x = images()
    offsets = torch.tensor([[data.draw(st.integers(0, 2 * pad)) for _ in range(2)] for _ in x])
    ours = augment.crop(torch.nn.functional.pad(x, (pad,) * 4), offsets, (9, 11))
    for image, (top, left), out in zip(x, offsets.tolist(), ours, strict=True):
        assert torch.equal(out, tv.crop(tv.pad(image, [pad]), top, left, 9, 11))


@settings(deadline=None, max_examples=30)
@given(data=st.data())
def test_resized_crop(data):
    x = images()
    heights = [data.draw(st.integers(1, 9)) for _ in x]
    widths = [data.draw(st.integers(1, 11)) for _ in x]
    windows = [
        (data.draw(st.integers(0, 9 - h)), data.draw(st.integers(0, 11 - w)), h, w)
        for h, w in zip(heights, widths, strict=True)
    ]
    ours = augment.resized_crop(x, torch.tensor(windows))
    for image, window, out in zip(x, windows, ours, strict=True):
        torch.testing.assert_close(out, tv.resized_crop(image.float(), *window, [9, 11]), atol=0.05, rtol=0)


def test_flip():
    x, flipped = images(), torch.tensor([True, False, True, True, False, False])
    for image, is_flipped, out in zip(x, flipped, augment.flip(x, flipped), strict=True):
        assert torch.equal(out, tv.horizontal_flip(image) if is_flipped else image)


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
@pytest.mark.parametrize("channels", [1, 3])
def test_colour_jitter(name, channels):
    x = images(channels=channels)
    factors = torch.tensor([0.0, 0.3, 0.9, 1.0, 1.4, 2.0])
    ours = getattr(augment, f"adjust_{name}")(x.float(), factors)
    theirs = getattr(tv, f"adjust_{name}")
    for image, factor, out in zip(x, factors.tolist(), ours, strict=True):
        torch.testing.assert_close(out, 255 * theirs(image / 255, factor), atol=0.01, rtol=0)
        in_whole_grey_levels = theirs(image, factor).float()
        torch.testing.assert_close(out.floor(), in_whole_grey_levels, atol=1, rtol=0)


def test_normalise(small_setup):
    """(pixels / 255 − mean) / std, as torchvision's ``normalize``, through the pipeline that training uses."""
    setup = small_setup("scenario.mean=[0.3]", "scenario.std=[0.7]")
    x = images(channels=1)
    torch.testing.assert_close(setup.inputs.normalise(x), tv.normalize(x / 255, [0.3], [0.7]), atol=1e-6, rtol=0)
    torch.testing.assert_close(setup.inputs.normalise(x), setup.inputs.normalise(x.float()))


# ---- random parameters ----------------------------------------------------------------------------------------------------


def test_offsets_and_flips_are_per_sample_and_uniform():
    """4,000 copies of one image: every offset and both directions occur about equally often."""
    x = torch.arange(49, dtype=torch.uint8).view(1, 1, 7, 7).repeat(4000, 1, 1, 1) + 1
    shifted = Augmentation(AugmentConfig(crop_padding=2))(x, generator())
    kinds, counts = torch.unique(shifted.flatten(1), dim=0, return_counts=True)
    assert len(kinds) == 25
    assert counts.min() > 100
    assert counts.max() < 220
    flipped = Augmentation(AugmentConfig(flip=True))(x, generator())
    assert abs((flipped != x).flatten(1).any(1).float().mean() - 0.5) < 0.03


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
@pytest.mark.parametrize(("strength", "low", "high"), [(0.25, 0.75, 1.25), (2.0, 0.0, 3.0)])
def test_jitter_factors_are_per_sample_and_uniform(name, strength, low, high, monkeypatch):
    drawn = []
    monkeypatch.setattr(augment, f"adjust_{name}", lambda images, factors: drawn.append(factors) or images)
    Augmentation(AugmentConfig(**{name: strength}))(images(batch=4000), generator())
    [factors] = drawn
    assert len(factors.unique()) > 3900
    assert low <= factors.min() < low + 0.01 * strength
    assert high - 0.01 * strength < factors.max() <= high
    assert factors.mean() == pytest.approx((low + high) / 2, abs=0.03 * strength)


@settings(deadline=None, max_examples=50)
@given(height=st.integers(1, 40), width=st.integers(1, 40), smallest=st.floats(0.01, 1.0), seed=st.integers(0, 1000))
def test_windows_lie_within_the_image(height, width, smallest, seed):
    top, left, h, w = augment.draw_windows(50, height, width, smallest, generator(seed)).T
    assert h.min() >= 1
    assert w.min() >= 1
    assert top.min() >= 0
    assert left.min() >= 0
    assert (top + h).max() <= height
    assert (left + w).max() <= width


def test_windows_are_distributed_as_torchvisions():
    """4,000 windows of each: the mean of every coordinate and of the area agree within four standard errors."""
    ours = augment.draw_windows(4000, 24, 32, 0.2, generator()).double()
    reference = v2.RandomResizedCrop((24, 32), scale=(0.2, 1.0))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        blank = torch.zeros(1, 24, 32)
        drawn = [reference.make_params([blank]) for _ in range(4000)]
    theirs = torch.tensor([[d[key] for key in ("top", "left", "height", "width")] for d in drawn]).double()
    for get in (*(lambda t, c=c: t[:, c] for c in range(4)), lambda t: t[:, 2] * t[:, 3]):
        a, b = get(ours), get(theirs)
        assert abs(a.mean() - b.mean()) < 4 * (2 * b.var() / 4000).sqrt()
        assert abs(a.std() / b.std() - 1) < 0.1
    assert len(ours.unique(dim=0)) > 1000


def test_whole_image_where_no_window_fits():
    """An image twice as wide as high at full area: the window with ratio 4/3 in the middle, as torchvision's."""
    windows = augment.draw_windows(3, 12, 48, 1.0, generator())
    assert windows.tolist() == [[0, 16, 12, 16]] * 3
    assert augment.draw_windows(1, 12, 12, 1.0, generator())[0, 2:].tolist() == [12, 12]


def test_deterministic_and_apart_from_the_global_generator():
    every = Augmentation(EVERYTHING)
    before = torch.get_rng_state()
    first, second, other = every(images(), generator(1)), every(images(), generator(1)), every(images(), generator(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert first.shape == images().shape
    assert first.min() >= 0
    assert first.max() <= 255


def test_samples_of_one_batch_get_different_parameters():
    x = images(batch=1).repeat(16, 1, 1, 1)
    assert len(Augmentation(EVERYTHING)(x, generator()).unique(dim=0)) == 16


def test_crop_and_flip_keep_uint8():
    assert Augmentation(AugmentConfig(crop_padding=2, flip=True))(images(), generator()).dtype == torch.uint8


def test_input_is_left_alone():
    x = images()
    before = x.clone()
    Augmentation(EVERYTHING)(x, generator())
    assert torch.equal(x, before)


@pytest.mark.parametrize("option", ["resized_crop", "crop_padding", "flip", "brightness", "contrast", "saturation"])
def test_every_option_counts_as_a_change(option):
    assert not Augmentation.changes_anything(AugmentConfig())
    assert Augmentation.changes_anything(AugmentConfig(**{option: True if option == "flip" else 1}))


def test_training_inputs_differ_between_steps_but_not_between_runs(small_setup):
    options = ["strategy=finetune", "scenario.augment.crop_padding=2", "scenario.augment.flip=true"]
    first, second = small_setup(*options), small_setup(*options)
    ids = torch.arange(8)
    step0, step1 = (first.inputs.training(first.scenario.train, ids, 0, step).x for step in (0, 1))
    assert not torch.equal(step0, step1)
    assert torch.equal(step1, second.inputs.training(second.scenario.train, ids, 0, 1).x)
    plain = first.inputs.plain(first.scenario.train, ids).x
    assert torch.equal(plain, second.inputs.plain(second.scenario.train, ids).x)
