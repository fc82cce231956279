"""``scenario.pad``: zeros around every image, before anything else is done to it."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from torchvision import transforms
from torchvision.transforms.functional import to_pil_image

from clbench.config import AugmentConfig
from clbench.scenarios.build import sources_kept
from clbench.scenarios.domain_incremental import rotated
from clbench.scenarios.inputs import InputPipeline


def inputs_of(scenario) -> InputPipeline:
    return InputPipeline(scenario, AugmentConfig(), 0, torch.device("cpu"))


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_inputs_are_those_of_torchvisions_pad_before_normalisation(make_source, build_stream, split):
    scenario = build_stream(
        make_source(), "class_incremental", increment=2, validation=0.3, pad=2, mean=[0.1], std=[0.2752]
    )
    plain = build_stream(make_source(), "class_incremental", increment=2, validation=0.3)
    of_torchvision = transforms.Compose(
        [transforms.Pad(2, fill=0), transforms.ToTensor(), transforms.Normalize((0.1,), (0.2752,))]
    )
    assert scenario.input_shape == (1, 8, 8)
    ids = getattr(scenario, split).ids(1)
    x, y, _ = inputs_of(scenario).plain(getattr(scenario, split), ids)
    images, labels, _ = getattr(plain, split).take(ids)
    expected = torch.stack([of_torchvision(to_pil_image(image)) for image in images])
    torch.testing.assert_close(x, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(x[..., :2, :], torch.full_like(x[..., :2, :], -0.1 / 0.2752))
    assert torch.equal(y, labels)


def test_the_sources_mean_and_deviation_become_those_of_padded_pixels(make_source, build_stream):
    data = make_source(shape=(3, 4, 6))
    pixels = data.train.pixels / 255
    data = dataclasses.replace(
        data, mean=tuple(pixels.mean((0, 2, 3))), std=tuple(pixels.std((0, 2, 3)))
    )  # fmt: skip
    scenario = build_stream(data, "class_incremental", increment=2, pad=3)
    framed = np.pad(pixels, ((0, 0), (0, 0), (3, 3), (3, 3)))
    np.testing.assert_allclose(scenario.mean, framed.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(scenario.std, framed.std((0, 2, 3)), rtol=1e-12)


def test_mnist_gets_the_constants_of_hsu_et_al(make_source, build_stream):
    data = dataclasses.replace(make_source(shape=(1, 28, 28)), mean=(0.1307,), std=(0.3081,))
    scenario = build_stream(data, "class_incremental", increment=2, pad=2)
    assert scenario.input_shape == (1, 32, 32)
    assert [round(value, 4) for value in (*scenario.mean, *scenario.std)] == [0.1001, 0.2752]


def test_permutations_are_of_the_padded_pixels(make_source, build_stream):
    data = make_source()
    scenario = build_stream(data, "permutation", n_tasks=3, identity_first=True, pad=1)
    assert scenario.train.permutations.shape == (3, 36)
    framed, moved = (scenario.train.take(scenario.train.ids(task))[0] for task in (0, 1))
    order = scenario.train.permutations[1]
    assert sorted(order.tolist()) == list(range(36))
    assert torch.equal(moved.flatten(2), framed.flatten(2)[:, :, order])
    assert moved[..., 0, :].any()  # the frame is moved with the image


def test_images_are_padded_before_they_are_turned(make_source, build_stream):
    data = make_source()
    scenario = build_stream(data, "rotation", angles=[45.0], pad=2)
    shown = scenario.train.take(scenario.train.ids(0))[0].numpy()
    framed = np.pad(data.train.pixels, ((0, 0), (0, 0), (2, 2), (2, 2)))
    expected = rotated(framed, 45.0, "bilinear")
    assert sorted(image.tobytes() for image in shown) == sorted(image.tobytes() for image in expected)


def test_and_after_they_are_resized(make_source, build_stream):
    small = build_stream(make_source(), "class_incremental", increment=2, image_size=2)
    scenario = build_stream(make_source(), "class_incremental", increment=2, image_size=2, pad=1)
    framed, image = (stream.train.take(stream.train.ids(0))[0] for stream in (scenario, small))
    assert torch.equal(framed[..., 1:-1, 1:-1], image)
    assert framed.sum() == image.sum()


def test_only_a_padded_stream_says_so(make_source, build_stream):
    plain = build_stream(make_source(), "class_incremental", increment=2)
    assert set(plain.recipe) == {"kind", "image_size"}
    framed = build_stream(make_source(), "class_incremental", increment=2, pad=1)
    assert framed.recipe["pad"] == 1
    assert framed.train.hashes == plain.train.hashes  # those of the source's own images


def test_a_frozen_stream_keeps_its_definition_and_a_padded_one_is_another(small_setup):
    assert small_setup("scenario=split_digits").scenario.frozen == "split_digits/v1"
    framed = small_setup("scenario=split_digits", "scenario.pad=2").scenario
    assert framed.frozen is None
    assert framed.note == "not the frozen stream split_digits/v1: pad=2"
    assert framed.input_shape == (1, 12, 12)
    assert math.isclose(framed.mean[0] / small_setup("scenario=split_digits").scenario.mean[0], 64 / 144)


def test_a_source_that_is_kept_is_kept_for_each_frame(make_source, build_stream):
    data = make_source()
    with sources_kept():
        sizes = [build_stream(data, "class_incremental", increment=2, pad=pad).input_shape for pad in (None, 1, 2, 1)]
    assert sizes == [(1, 4, 4), (1, 6, 6), (1, 8, 8), (1, 6, 6)]
