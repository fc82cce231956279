"""The validation split: held out of the training data only, stratified, the same every time; and the locked test stream."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clbench.data.images import ImageSet
from clbench.errors import ConfigError, TestStreamLocked


def samples(split):
    """(pixels, label, task) of every sample of a split."""
    pixels, labels, tasks = split.take(torch.arange(len(split)))
    return [(p.numpy().tobytes(), int(y), int(t)) for p, y, t in zip(pixels, labels, tasks, strict=True)]


KINDS = [
    ("class_incremental", {"increment": 2}),
    ("domains", {}),
    ("rotation", {"angles": [0.0, 90.0]}),
    ("permutation", {"n_tasks": 2, "identity_first": True}),
]


@pytest.mark.parametrize(("kind", "options"), KINDS)
@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(fraction=st.floats(0.1, 0.8), seed=st.integers(0, 5))
def test_held_out_samples_are_taken_from_training_only_and_from_every_class(
    make_source, build_stream, kind, options, fraction, seed
):
    data = make_source(n_domains=2 if kind == "domains" else 1)
    whole = build_stream(data, kind, seed, **options)
    scenario = build_stream(data, kind, seed, validation=fraction, **options)
    kept, held_out = samples(scenario.train), samples(scenario.validation)
    assert sorted(kept + held_out) == sorted(
        samples(whole.train)
    )  # nothing lost, nothing twice, nothing of the test split
    assert samples(scenario.test) == samples(whole.test)
    assert not set(kept) & set(held_out)
    expected = round(fraction * 10)  # of the 10 training images of each class (and domain)
    counts = {}
    for _, label, task in held_out:
        counts[task, label] = counts.get((task, label), 0) + 1
    assert set(counts.values()) == {expected}
    assert len(counts) == sum(len(labels) for labels in whole.task_classes)


def test_the_draw_depends_on_the_seed_alone(make_source, build_stream):
    def held_out(seed, **options):
        return samples(build_stream(make_source(), "class_incremental", seed, validation=0.3, **options).validation)

    assert held_out(0, increment=2) == held_out(0, increment=2)
    assert held_out(0, increment=2) != held_out(1, increment=2)
    of_two, of_three = held_out(0, increment=2), held_out(0, increment=3)
    assert {pixels for pixels, _, _ in of_two} == {pixels for pixels, _, _ in of_three}


def test_a_stream_without_validation_holds_nothing_out(make_source, build_stream):
    assert build_stream(make_source(), "class_incremental", increment=2).validation is None


def test_a_fraction_that_holds_nothing_out_is_refused(make_source, build_stream):
    with pytest.raises(ConfigError, match=r"has no validation samples: raise scenario\.validation=0\.01"):
        build_stream(make_source(), "class_incremental", increment=2, validation=0.01)


def test_evaluating_on_validation_locks_the_test_stream(small_setup):
    setup = small_setup("scenario.validation=0.2", "evaluator.split=validation")
    with pytest.raises(TestStreamLocked, match="test stream of split_digits is locked while tuning"):
        _ = setup.scenario.test
    assert setup.evaluator.split is setup.scenario.validation


def test_evaluating_on_test_does_not(small_setup):
    setup = small_setup("scenario.validation=0.2")
    assert setup.evaluator.split is setup.scenario.test


def test_evaluating_on_validation_needs_one(small_setup):
    with pytest.raises(ConfigError, match=r"needs scenario\.validation above 0"):
        small_setup("evaluator.split=validation")


def test_strata_are_kept_when_classes_differ_in_size(make_source, build_stream):
    data = make_source(n_classes=2)
    keep = np.flatnonzero((data.train.labels == 0) | (np.cumsum(data.train.labels == 1) <= 5))
    uneven = dataclasses.replace(data, train=ImageSet(data.train.pixels[keep], data.train.labels[keep]))
    scenario = build_stream(uneven, "class_incremental", increment=1, validation=0.4)
    assert [len(scenario.validation.ids(task)) for task in (0, 1)] == [4, 2]
