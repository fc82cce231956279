"""Random labels and permuted labels: the same images in every task, under which labels."""

import dataclasses

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clbench.data.images import ImageSet

HYPOTHESIS = settings(
    max_examples=20, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def labelling(split, task):
    """Image → label, of a task."""
    pixels, labels, _ = split.take(split.ids(task))
    return {image.tobytes(): int(label) for image, label in zip(pixels.numpy(), labels, strict=True)}


def labellings(scenario):
    return [labelling(scenario.train, task) for task in range(scenario.n_tasks)]


def true_labels(images, classes):
    """Image → its own label, the position of its class in ``classes``."""
    return {
        image.tobytes(): classes.index(int(c))
        for image, c in zip(images.pixels, images.labels, strict=True)
        if c in classes
    }


def histogram(labels, n):
    return np.bincount(list(labels.values()), minlength=n).tolist()


@st.composite
def options(draw):
    """Classes, number of images and number of tasks."""
    classes = draw(st.lists(st.integers(0, 5), min_size=2, max_size=6, unique=True))
    images = draw(st.none() | st.integers(len(classes), 10 * len(classes)))
    return {"classes": classes, "images": images, "n_tasks": draw(st.integers(1, 4))}


# ---- random labels --------------------------------------------------------------------------------------------------


@HYPOTHESIS
@given(options=options(), seed=st.integers(0, 3), label_seed=st.none() | st.integers(0, 3))
def test_random_labels_are_permuted_among_the_same_images(make_source, build_stream, options, seed, label_seed):
    data = make_source()
    n = len(options["classes"])
    scenario = build_stream(data, "random_label", seed, label_seed=label_seed, **options)
    tasks = labellings(scenario)
    own = {image: y for image, y in true_labels(data.train, options["classes"]).items() if image in tasks[0]}
    assert len(tasks) == options["n_tasks"]
    assert len(own) == (options["images"] or 10 * n)
    for task in tasks:
        assert task.keys() == own.keys()
        assert histogram(task, n) == histogram(own, n)
    longer = build_stream(data, "random_label", seed, label_seed=label_seed, **{**options, "n_tasks": 5})
    assert labellings(longer)[: len(tasks)] == tasks


def test_random_labels_say_nothing_about_the_class(make_source, build_stream):
    """Ten images in each of forty tasks: of every class about as many under every label, where relabelling classes gives all."""
    data = make_source()
    tasks = labellings(build_stream(data, "random_label", n_tasks=40))
    own = true_labels(data.train, list(range(6)))
    together = np.zeros((6, 6))
    for task in tasks:
        for image, label in task.items():
            together[own[image], label] += 1
    assert np.abs(together - 400 / 6).max() < 5 * np.sqrt(400 / 6)
    assert len({tuple(sorted(task.items())) for task in tasks}) == 40
    assert all(len({task[image] for image in own if own[image] == 0}) > 1 for task in tasks)


def test_random_labels_are_drawn_from_the_seed_unless_they_have_their_own(make_source, build_stream):
    def drawn(seed, **options):
        scenario = build_stream(make_source(), "random_label", seed, n_tasks=2, **options)
        return scenario.recipe["labels"], labellings(scenario)

    assert drawn(0) == drawn(0)
    assert drawn(0)[0] != drawn(1)[0]
    assert drawn(0)[1] != drawn(1)[1]
    assert drawn(1, label_seed=0) == drawn(0)
    digests = drawn(0)[0]
    assert len(set(digests)) == 2


def test_the_recipe_tells_labellings_apart_and_not_packings(make_source, build_stream):
    data = make_source()
    order = np.random.default_rng(0).permutation(len(data.train))
    repacked = dataclasses.replace(data, train=ImageSet(data.train.pixels[order], data.train.labels[order]))
    one, other = (build_stream(source, "random_label", n_tasks=3) for source in (data, repacked))
    assert one.hash == other.hash
    assert labellings(one) == labellings(other)
    assert one.hash != build_stream(data, "random_label", n_tasks=3, label_seed=1).hash


@pytest.mark.parametrize("validation", [0.0, 0.01, 0.3])
def test_random_labels_are_judged_on_what_was_trained_on(make_source, build_stream, validation):
    """A share that would hold nothing out elsewhere holds nothing out here either, and is no error."""
    scenario = build_stream(make_source(), "random_label", n_tasks=2, images=20, validation=validation)
    assert [len(scenario.train.ids(task)) for task in range(2)] == [20, 20]
    for split in (scenario.test, *([scenario.validation] if validation else [])):
        assert [labelling(split, task) for task in range(2)] == labellings(scenario)
    assert (scenario.validation is None) == (validation == 0)


# ---- permuted labels ------------------------------------------------------------------------------------------------


def bijection(split, images, classes, task):
    """π of a task as a list, after checking that the labels of the split are a function of the class."""
    own = true_labels(images, classes)
    pairs = {(own[image], label) for image, label in labelling(split, task).items()}
    assert len(pairs) == len(classes)
    return [label for _, label in sorted(pairs)]


@HYPOTHESIS
@given(options=options(), seed=st.integers(0, 3), label_seed=st.none() | st.integers(0, 3), identity=st.booleans())
def test_labels_are_a_bijection_of_the_classes(make_source, build_stream, options, seed, label_seed, identity):
    data, classes = make_source(), options["classes"]
    options = {"label_seed": label_seed, "identity_first": identity, **options, "images": None}
    scenario = build_stream(data, "label_permutation", seed, **options)
    found = [bijection(scenario.train, data.train, classes, task) for task in range(scenario.n_tasks)]
    assert found == [bijection(scenario.test, data.test, classes, task) for task in range(scenario.n_tasks)]
    assert all(sorted(labels) == list(range(len(classes))) for labels in found)
    assert all(task.keys() == true_labels(data.train, classes).keys() for task in labellings(scenario))
    if identity:
        assert found[0] == list(range(len(classes)))
    longer = build_stream(data, "label_permutation", seed, **{**options, "n_tasks": 5})
    assert labellings(longer)[: scenario.n_tasks] == labellings(scenario)


def test_permuted_labels_are_drawn_from_the_seed_unless_they_have_their_own(make_source, build_stream):
    def drawn(seed, **options):
        scenario = build_stream(make_source(), "label_permutation", seed, n_tasks=4, identity_first=False, **options)
        digests = scenario.recipe["label_permutations"]
        assert len({str(sorted(task.items())) for task in labellings(scenario)}) == len(set(digests)) == 4
        return digests

    assert drawn(0) == drawn(0) != drawn(1)
    assert drawn(1, label_seed=0) == drawn(0)
