"""Rotations, permutations, domains, superclasses and groups of classes: what each task shows."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from clbench.data.images import ImageSet
from clbench.errors import ConfigError
from clbench.scenarios.domain_incremental import rotated
from clbench.scenarios.frozen import stream_content


def shown(split, task):
    """uint8 images and labels of a task, as numpy arrays."""
    pixels, labels, _ = split.take(split.ids(task))
    return pixels.numpy(), labels.numpy()


def as_set(pixels, labels):
    return sorted((p.tobytes(), int(label)) for p, label in zip(pixels, labels, strict=True))


# ---- rotation -------------------------------------------------------------------------------------------------------


def bilinear_rotation(image: np.ndarray, angle: float) -> np.ndarray:
    """One channel turned counter-clockwise, pixel by pixel: each target pixel is looked up where it came from."""
    height, width = image.shape
    cy, cx, phi = (height - 1) / 2, (width - 1) / 2, math.radians(angle)
    out = np.zeros(image.shape)
    for y in range(height):
        for x in range(width):
            dx, dy = x - cx, y - cy  # y points down, so turning back is clockwise in these coordinates
            sx, sy = cx + math.cos(phi) * dx - math.sin(phi) * dy, cy + math.sin(phi) * dx + math.cos(phi) * dy
            for iy in (math.floor(sy), math.floor(sy) + 1):
                for ix in (math.floor(sx), math.floor(sx) + 1):
                    if 0 <= iy < height and 0 <= ix < width:
                        out[y, x] += (1 - abs(sy - iy)) * (1 - abs(sx - ix)) * image[iy, ix]
    return out


@pytest.mark.parametrize("angle", [9.0, 80.0, 160.0, -33.0])
def test_rotation_is_bilinear_and_counter_clockwise(angle):
    images = np.random.default_rng(0).integers(0, 256, (3, 2, 8, 8), dtype=np.uint8)
    turned = rotated(images, angle, "bilinear")
    expected = np.array([[bilinear_rotation(channel, angle) for channel in image] for image in images])
    assert turned.dtype == np.uint8
    assert np.abs(turned - expected).max() <= 0.51  # rounded to the nearest integer


@pytest.mark.parametrize("interpolation", ["bilinear", "nearest"])
def test_a_quarter_turn_is_exact(interpolation):
    images = np.random.default_rng(0).integers(0, 256, (5, 1, 6, 6), dtype=np.uint8)
    assert (rotated(images, 90.0, interpolation) == np.rot90(images, axes=(2, 3))).all()


def test_rotation_shows_all_images_in_every_task(make_source, build_stream):
    data = make_source()
    scenario = build_stream(data, "rotation", angles=[0.0, 90.0, 360.0])
    assert scenario.setting == "domain"
    assert scenario.task_names == ["0°", "90°", "360°"]
    assert scenario.task_classes == [list(range(6))] * 3
    for split, images in ((scenario.train, data.train), (scenario.test, data.test)):
        for task, turns in enumerate([0, 1, 0]):
            expected = np.rot90(images.pixels, turns, axes=(2, 3))
            assert as_set(*shown(split, task)) == as_set(expected, images.labels)


@pytest.mark.parametrize("angles", [[], [0.0, math.nan], [math.inf]])
def test_angles_have_to_be_numbers(make_source, build_stream, angles):
    with pytest.raises(ConfigError, match=r"scenario.angles=\[.*\] has to list one angle in degrees per task"):
        build_stream(make_source(), "rotation", angles=angles)


# ---- permutation ----------------------------------------------------------------------------------------------------


def orders(scenario):
    """For every task the order of the pixels, or None for a task that shows them as they are."""
    n_pixels = math.prod(scenario.input_shape)
    identity = torch.arange(n_pixels)
    return [None if (p == identity).all() else p.tolist() for p in scenario.train.permutations]


def test_permutations_move_pixels_and_keep_channels_together(make_source, build_stream):
    data = make_source(shape=(3, 4, 4))
    scenario = build_stream(data, "permutation", n_tasks=3, identity_first=True)
    assert scenario.task_names == ["identity", "permutation 1", "permutation 2"]
    assert as_set(*shown(scenario.train, 0)) == as_set(data.train.pixels, data.train.labels)
    for task in (1, 2):
        order = np.array(orders(scenario)[task]).reshape(3, 16)
        assert sorted(order[0]) == list(range(16))
        assert (order == order[0] + 16 * np.arange(3)[:, None]).all()
        for split, images in ((scenario.train, data.train), (scenario.test, data.test)):
            expected = images.pixels.reshape(-1, 3, 16)[:, :, order[0]].reshape(-1, 3, 4, 4)
            assert as_set(*shown(split, task)) == as_set(expected, images.labels)


def test_permutations_do_not_depend_on_the_number_of_tasks_and_are_drawn_from_the_seed(make_source, build_stream):
    def drawn(seed, **options):
        return orders(build_stream(make_source(), "permutation", seed, **{"identity_first": False, **options}))

    four, two = drawn(0, n_tasks=4), drawn(0, n_tasks=2)
    assert None not in four
    assert len({tuple(order) for order in four}) == 4
    assert four[:2] == two
    assert drawn(0, n_tasks=4) == four
    assert drawn(1, n_tasks=4) != four
    assert drawn(1, n_tasks=4, permutation_seed=0) == four
    assert drawn(0, n_tasks=4, identity_first=True) == [None, *four[1:]]


# ---- domains --------------------------------------------------------------------------------------------------------


def test_domains_come_in_the_order_named(make_source, build_stream):
    data = make_source(n_domains=3)
    scenario = build_stream(data, "domains", domains=["d2", "d0"])
    assert scenario.task_names == ["d2", "d0"]
    for split, images in ((scenario.train, data.train), (scenario.test, data.test)):
        for task, domain in enumerate([2, 0]):
            mine = images.domains == domain
            assert as_set(*shown(split, task)) == as_set(images.pixels[mine], images.labels[mine])
    assert build_stream(data, "domains").task_names == ["d0", "d1", "d2"]


def test_domains_can_be_cut_to_some_classes(make_source, build_stream):
    data = make_source(n_domains=2)
    scenario = build_stream(data, "domains", classes=[4, 1])
    assert scenario.class_names == ["c4", "c1"]
    mine = (data.train.domains == 1) & np.isin(data.train.labels, [1, 4])
    expected = as_set(data.train.pixels[mine], np.where(data.train.labels[mine] == 4, 0, 1))
    assert as_set(*shown(scenario.train, 1)) == expected


@pytest.mark.parametrize(
    ("n_domains", "options", "message"),
    [
        (1, {}, "scenario.source=tiny has no domains: kind=domains needs a source with domains, such as pacs"),
        (2, {"domains": ["d0", "d7"]}, "unknown domain of tiny 'd7': Valid choices: d0, d1"),
        (2, {"domains": ["d1", "d1"]}, "none twice. Valid choices: d0, d1"),
        (2, {"domains": []}, "at least one domain"),
        (2, {"classes": [0, 6]}, r"scenario.classes=\[0, 6\] has to name .* out of 0..5"),
    ],
)
def test_wrong_domains_are_answered_with_the_choices(make_source, build_stream, n_domains, options, message):
    with pytest.raises(ConfigError, match=message):
        build_stream(make_source(n_domains=n_domains), "domains", **options)


# ---- superclasses ---------------------------------------------------------------------------------------------------

SUPERCLASS = np.array([1, 0, 1, 0, 0, 1])  # classes 1, 3, 4 form superclass 0, and 0, 2, 5 superclass 1


def test_every_task_shows_one_further_class_of_each_superclass(make_source, build_stream):
    data = make_source(superclass=SUPERCLASS)
    scenario = build_stream(data, "superclass")
    assert scenario.n_classes == 2
    assert scenario.n_tasks == 3
    for task, (of_superclass_0, of_superclass_1) in enumerate([(1, 0), (3, 2), (4, 5)]):
        for split, images in ((scenario.train, data.train), (scenario.test, data.test)):
            mine = np.isin(images.labels, [of_superclass_0, of_superclass_1])
            expected = as_set(images.pixels[mine], (images.labels[mine] == of_superclass_1).astype(int))
            assert as_set(*shown(split, task)) == expected


def test_the_order_within_superclasses_can_be_drawn(make_source, build_stream):
    data = make_source(superclass=SUPERCLASS)
    recipes = [build_stream(data, "superclass", seed, class_order="shuffled").recipe for seed in (0, 0, 1, 2, 3)]
    assert recipes[0] == recipes[1]
    assert len({str(recipe) for recipe in recipes}) > 2
    same_order = []
    for recipe in recipes:
        of_each = list(zip(*recipe["classes_shown"], strict=True))
        members = [["c1", "c3", "c4"], ["c0", "c2", "c5"]]
        assert [sorted(names) for names in of_each] == members
        positions = [[m.index(name) for name in names] for m, names in zip(members, of_each, strict=True)]
        same_order.append(positions[0] == positions[1])
    assert not all(same_order)  # each superclass has an order of its own


@pytest.mark.parametrize(
    ("superclass", "message"),
    [
        (None, "scenario.source=tiny has no superclasses: .* such as cifar100"),
        (np.array([0, 0, 0, 1, 1, 0]), r"superclasses of tiny have \[2, 4\] classes"),
    ],
)
def test_superclasses_have_to_exist_and_be_equally_large(make_source, build_stream, superclass, message):
    with pytest.raises(ConfigError, match=message):
        build_stream(make_source(superclass=superclass), "superclass")


# ---- groups of classes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["natural", "shuffled"])
@pytest.mark.parametrize(("size", "n_tasks"), [(2, 3), (2, 7), (4, 3), (6, 2)])
def test_every_task_tells_classes_of_its_own_apart(make_source, build_stream, order, size, n_tasks):
    """Under the labels 0, 1, …; within a round of six // size tasks no class comes twice."""
    data = make_source()
    scenario = build_stream(
        data, "class_groups", n_tasks=n_tasks, classes_per_task=size, class_order=order, validation=0.2
    )
    groups = [[int(name[1:]) for name in names] for names in scenario.recipe["classes_shown"]]
    assert (scenario.n_tasks, scenario.n_classes) == (n_tasks, size)
    assert scenario.task_classes == [list(range(size))] * n_tasks
    if order == "natural":
        assert groups == [[size * (t % (6 // size)) + i for i in range(size)] for t in range(n_tasks)]
    for start in range(0, n_tasks, 6 // size):
        shown_in_round = [c for group in groups[start : start + 6 // size] for c in group]
        assert len(set(shown_in_round)) == len(shown_in_round)
    for task, group in enumerate(groups):
        mine = np.isin(data.test.labels, group)
        expected = as_set(data.test.pixels[mine], [group.index(c) for c in data.test.labels[mine]])
        assert as_set(*shown(scenario.test, task)) == expected
        mine = np.isin(data.train.labels, group)
        expected = as_set(data.train.pixels[mine], [group.index(c) for c in data.train.labels[mine]])
        assert sorted(as_set(*shown(scenario.train, task)) + as_set(*shown(scenario.validation, task))) == expected


def test_every_round_and_every_seed_has_an_order_of_its_own(make_source, build_stream):
    def groups(seed, n_tasks):
        scenario = build_stream(make_source(), "class_groups", seed, n_tasks=n_tasks)
        return [tuple(names) for names in scenario.recipe["classes_shown"]]

    drawn = groups(0, 12)
    assert groups(0, 5) == drawn[:5]  # whatever comes later
    assert groups(1, 12) != drawn
    assert len({tuple(drawn[start : start + 3]) for start in (0, 3, 6, 9)}) == 4


def test_more_classes_per_task_than_there_are(make_source, build_stream):
    with pytest.raises(ConfigError, match=r"scenario.classes_per_task=4 is out of range: it has to be at most 3"):
        build_stream(make_source(), "class_groups", n_tasks=1, classes_per_task=4, classes=[0, 3, 5])


# ---- what the kinds share -------------------------------------------------------------------------------------------

KINDS = {
    "rotation": {"angles": [0.0, 90.0]},
    "permutation": {"n_tasks": 2, "identity_first": True},
    "domains": {},
    "superclass": {},
    "class_groups": {"n_tasks": 2},
    "random_label": {"n_tasks": 2},
    "label_permutation": {"n_tasks": 2, "identity_first": False},
}
DRAWN = ("permutation", "class_groups", "random_label", "label_permutation")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("setting", ["task", "class"])
def test_other_settings_number_the_classes_of_every_task_anew(make_source, build_stream, kind, setting):
    data = make_source(n_domains=2, superclass=np.array([0, 0, 1, 1, 2, 2]))
    shared = build_stream(data, kind, **KINDS[kind])
    own = build_stream(data, kind, setting=setting, **KINDS[kind])
    n = shared.n_classes
    assert own.setting == setting
    assert own.n_classes == 2 * n
    assert own.task_classes == [list(range(n)), list(range(n, 2 * n))]
    assert own.train.hashes == shared.train.hashes
    for task in (0, 1):
        pixels, labels = shown(own.train, task)
        assert as_set(pixels, labels - task * n) == as_set(*shown(shared.train, task))


@pytest.mark.parametrize("kind", KINDS)
def test_only_drawn_streams_depend_on_the_seed(make_source, build_stream, kind):
    data = make_source(n_domains=2, superclass=np.array([0, 0, 1, 1, 2, 2]))
    hashes = {build_stream(data, kind, seed, **KINDS[kind]).hash for seed in (0, 1)}
    assert len(hashes) == (2 if kind in DRAWN else 1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_subset_of_the_training_images_is_drawn_once(make_source, build_stream, kind):
    """Every task shows so many of its images, those of them that it shares with another task the same ones."""
    data = make_source(n_domains=2, superclass=np.array([0, 0, 1, 1, 2, 2]))
    whole = build_stream(data, kind, **KINDS[kind])

    def subset(seed, n=12, **options):
        return build_stream(data, kind, seed, images=n, **KINDS[kind], **options)

    scenario = subset(0)
    for task in range(2):
        assert len(scenario.train.ids(task)) == 12
        assert (
            set(as_set(*shown(scenario.train, task))) <= set(as_set(*shown(whole.train, task)))
            or kind == "random_label"
        )
    assert scenario.test.hashes == (scenario.train.hashes if kind == "random_label" else whole.test.hashes)
    assert subset(0).train.hashes == scenario.train.hashes != subset(1).train.hashes
    held_out = subset(0, validation=0.5)
    if kind != "random_label":
        assert stream_content(held_out)["tasks"] == stream_content(scenario)["tasks"]
    if kind not in ("domains", "superclass", "class_groups"):  # the tasks have the same images
        assert scenario.train.hashes[0] == scenario.train.hashes[1]
    if kind not in DRAWN:
        assert subset(0, images_seed=3).hash == subset(1, images_seed=3).hash
    n = len(whole.train.ids(0))
    with pytest.raises(ConfigError, match=f"scenario.images={n + 1} is more than the {n} training images of task"):
        subset(0, n + 1)


def test_a_subset_of_the_images_does_not_depend_on_how_they_are_packed(make_source, build_stream):
    data = make_source()
    order = np.random.default_rng(0).permutation(len(data.train))
    repacked = dataclasses.replace(data, train=ImageSet(data.train.pixels[order], data.train.labels[order]))
    for kind in ("permutation", "random_label"):
        hashes = {build_stream(source, kind, images=20, **KINDS[kind]).hash for source in (data, repacked)}
        assert len(hashes) == 1


def test_the_share_that_is_held_out_of_a_subset_is_exact(make_source, build_stream):
    """Of every class, rounded: half of what is shown of it."""
    options = {"images": 30, "n_tasks": 2, "identity_first": True}
    whole = build_stream(make_source(), "permutation", **options)
    split = build_stream(make_source(), "permutation", validation=0.5, **options)
    counts = [np.bincount(shown(part, 1)[1], minlength=6) for part in (whole.train, split.validation)]
    assert counts[1].tolist() == [round(0.5 * n) for n in counts[0].tolist()]
