"""The content hash: blind to how images are packed, and to nothing else."""

import dataclasses

import numpy as np
import pytest
import torch

from clbench.data.images import ImageSet
from clbench.seeding import torch_generator


def reordered(images: ImageSet, seed: int) -> ImageSet:
    order = np.random.default_rng(seed).permutation(len(images))
    domains = None if images.domains is None else images.domains[order]
    return ImageSet(images.pixels[order], images.labels[order], domains)


def repacked(data, seed):
    return dataclasses.replace(data, train=reordered(data.train, seed), test=reordered(data.test, seed))


def with_train(data, pixels=None, labels=None):
    train = data.train
    changed = ImageSet(
        train.pixels if pixels is None else pixels, train.labels if labels is None else labels, train.domains
    )
    return dataclasses.replace(data, train=changed)


KINDS = [
    ("class_incremental", {"increment": 2}),
    ("class_incremental", {"increment": 2, "validation": 0.3}),
    ("task_incremental", {"increment": 3, "class_order": "shuffled"}),
    ("rotation", {"angles": [0.0, 30.0]}),
    ("permutation", {"n_tasks": 2, "identity_first": False}),
    ("domains", {"validation": 0.2}),
    ("superclass", {}),
]


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_a_repacked_source_gives_the_same_stream_sample_by_sample(make_source, build_stream, kind, options):
    data = make_source(n_domains=2 if kind == "domains" else 1, superclass=np.array([0, 0, 1, 1, 2, 2]))
    original, copy = build_stream(data, kind, **options), build_stream(repacked(data, 7), kind, **options)
    assert copy.hash == original.hash
    for split in ("train", "validation", "test"):
        a, b = getattr(original, split), getattr(copy, split)
        if a is None:
            continue
        assert a.bounds == b.bounds
        # Not only the same set: the same order, so that the same seed gives the same batches and evaluation subsets.
        ids = torch.randperm(len(a), generator=torch_generator(0, "test"))
        assert all((x == y).all() for x, y in zip(a.take(ids), b.take(ids), strict=True))


def one_pixel(data):
    pixels = data.train.pixels.copy()
    pixels[17, 0, 3, 2] ^= 1
    return with_train(data, pixels=pixels)


def one_label(data):
    labels = data.train.labels.copy()
    labels[17] = (labels[17] + 1) % 6
    return with_train(data, labels=labels)


def one_missing(data):
    return with_train(data, pixels=data.train.pixels[1:], labels=data.train.labels[1:])


def one_doubled(data):
    train = data.train
    return with_train(
        data, pixels=np.concatenate([train.pixels, train.pixels[:1]]), labels=np.append(train.labels, train.labels[0])
    )


def swapped_labels(data):
    """Two images of different classes exchange labels: the same pixels, the same number of each label."""
    labels = data.train.labels.copy()
    other = int(np.flatnonzero(labels != labels[0])[0])
    labels[[0, other]] = labels[[other, 0]]
    return with_train(data, labels=labels)


def one_test_pixel(data):
    pixels = data.test.pixels.copy()
    pixels[3, 0, 0, 0] ^= 128
    return dataclasses.replace(data, test=ImageSet(pixels, data.test.labels))


@pytest.mark.parametrize("change", [one_pixel, one_label, one_missing, one_doubled, swapped_labels, one_test_pixel])
@pytest.mark.parametrize(
    ("kind", "options"), [("class_incremental", {"increment": 2}), ("rotation", {"angles": [0.0, 30.0]})]
)
def test_any_change_of_the_data_changes_the_hash(make_source, build_stream, change, kind, options):
    data = make_source()
    original, changed = build_stream(data, kind, **options), build_stream(change(data), kind, **options)
    assert changed.hash != original.hash
    assert changed.content != original.content


def test_any_change_of_the_stream_changes_the_hash(make_source, build_stream):
    data = make_source(n_domains=2, superclass=np.array([0, 0, 1, 1, 2, 2]))
    streams = [
        ("class_incremental", {"increment": 2}),
        ("class_incremental", {"increment": 3}),
        ("class_incremental", {"increment": 2, "base": 4}),
        ("class_incremental", {"increment": 2, "class_order": [1, 0, 2, 3, 4, 5]}),
        ("class_incremental", {"increment": 2, "class_order": [2, 3, 0, 1, 4, 5]}),
        ("class_incremental", {"increment": 2, "classes": [0, 1, 2, 3]}),
        ("class_incremental", {"increment": 2, "validation": 0.2}),
        ("class_incremental", {"increment": 2, "validation": 0.3}),
        ("class_incremental", {"increment": 2, "image_size": 2}),
        ("class_incremental", {"increment": 2, "pad": 1}),
        ("class_incremental", {"increment": 2, "pad": 2}),
        ("task_incremental", {"increment": 2}),
        ("rotation", {"angles": [0.0, 30.0]}),
        ("rotation", {"angles": [0.0, 30.5]}),
        ("rotation", {"angles": [0.0, 30.0000001]}),
        ("rotation", {"angles": [30.0, 0.0]}),
        ("rotation", {"angles": [0.0, 30.0], "interpolation": "nearest"}),
        ("rotation", {"angles": [0.0, 30.0], "setting": "task"}),
        ("permutation", {"n_tasks": 2, "identity_first": False}),
        ("permutation", {"n_tasks": 2, "identity_first": True}),
        ("permutation", {"n_tasks": 2, "identity_first": False, "permutation_seed": 3}),
        ("domains", {"domains": ["d0", "d1"]}),
        ("domains", {"domains": ["d1", "d0"]}),
        ("superclass", {}),
        ("superclass", {"setting": "class"}),
    ]
    hashes = [build_stream(data, kind, **options).hash for kind, options in streams]
    assert len(set(hashes)) == len(streams)


def test_what_is_drawn_from_the_seed_changes_the_hash(make_source, build_stream):
    data = make_source(superclass=np.array([0, 0, 0, 1, 1, 1]))
    for kind, options in [
        ("class_incremental", {"increment": 2, "class_order": "shuffled"}),
        ("class_incremental", {"increment": 2, "validation": 0.3}),
        ("permutation", {"n_tasks": 2, "identity_first": True}),
        ("superclass", {"class_order": "shuffled"}),
    ]:
        assert len({build_stream(data, kind, seed, **options).hash for seed in range(5)}) > 3, kind
        assert build_stream(data, kind, 1, **options).hash == build_stream(data, kind, 1, **options).hash


def test_resizing_does_not_let_a_librarys_rounding_into_the_hash(make_source, build_stream):
    whole = build_stream(make_source(), "class_incremental", increment=2, validation=0.3)
    small = build_stream(make_source(), "class_incremental", increment=2, validation=0.3, image_size=2)
    assert small.input_shape == (1, 2, 2)
    for split in ("train", "validation", "test"):
        assert getattr(small, split).hashes == getattr(whole, split).hashes
    assert small.hash != whole.hash
