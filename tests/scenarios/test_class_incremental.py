"""Class- and task-incremental streams: who is in which task, under which label."""

import dataclasses

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clbench.errors import ConfigError
from clbench.registry import SCENARIOS
from clbench.scenarios.build import Part, StreamPlan
from clbench.scenarios.class_incremental import class_order


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    n_classes=st.integers(2, 12),
    base=st.none() | st.integers(1, 12),
    increment=st.integers(1, 6),
    kind_seed=st.integers(0, 9),
)
def test_tasks_partition_the_classes_or_the_choices_are_named(
    make_source, build_stream, n_classes, base, increment, kind_seed
):
    data = make_source(n_classes)
    order = [int(c) for c in np.random.default_rng(kind_seed).permutation(n_classes)]
    options = {"increment": increment, "base": base, "class_order": order}
    first = increment if base is None else base
    if first > n_classes or (n_classes - first) % increment:
        with pytest.raises(ConfigError, match=f"increment={increment} does not divide") as error:
            build_stream(data, "class_incremental", **options)
        rest = n_classes - (base or 0)
        choices = [i for i in range(1, rest + 1) if rest % i == 0]
        named = error.value.args[0].split("Valid choices: ")[1]
        assert named == (", ".join(map(str, choices)) if choices else "none: base is too large")
        return
    scenario = build_stream(data, "class_incremental", **options)
    assert [len(labels) for labels in scenario.task_classes] == [first] + [increment] * (
        (n_classes - first) // increment
    )
    assert [label for labels in scenario.task_classes for label in labels] == list(
        range(n_classes)
    )  # labels count up in the order of arrival
    assert scenario.class_names == [f"c{c}" for c in order]
    for split, images in ((scenario.train, data.train), (scenario.test, data.test)):
        assert len(split) == len(images)
        for task, labels in enumerate(scenario.task_classes):
            pixels, y, tasks = split.take(split.ids(task))
            assert set(y.tolist()) == set(labels)
            assert set(tasks.tolist()) == {task}
            expected = {(images.pixels[i].tobytes(), order.index(images.labels[i])) for i in range(len(images))}
            assert {(p.numpy().tobytes(), int(label)) for p, label in zip(pixels, y, strict=True)} <= expected


def test_task_incremental_cuts_the_same_tasks_and_gives_the_identity(make_source, build_stream):
    hidden = build_stream(make_source(), "class_incremental", increment=2)
    given = build_stream(make_source(), "task_incremental", increment=2)
    assert (hidden.setting, given.setting) == ("class", "task")
    assert hidden.task_classes == given.task_classes
    assert hidden.train.hashes == given.train.hashes


def test_answers_follow_their_classes_and_are_part_of_the_stream(make_source, build_stream):
    """Labels are numbered in the order of arrival, so the answers are too; another answer makes another stream."""
    data = make_source(4, answers=(" a", " b", " c", " d"))
    scenario = build_stream(data, "class_incremental", increment=2, class_order=[2, 0, 3, 1])
    assert scenario.answers == (" c", " a", " d", " b")
    assert build_stream(data, "class_incremental", increment=2, class_order=[2, 0, 3, 1], tasks=1).answers == (
        " c",
        " a",
    )
    other = dataclasses.replace(data, answers=(" a", " b", " c", " e"))
    plain = make_source(4)
    hashes = {build_stream(d, "class_incremental", increment=2).hash for d in (data, other, plain)}
    assert len(hashes) == 3
    assert build_stream(plain, "class_incremental", increment=2).answers is None


def test_a_label_of_two_answers_has_none(make_source, build_stream):
    """Two classes under one label can only be told by number, unless they are said alike."""
    superclass = np.array([0, 0, 1, 1])
    differ = make_source(4, superclass=superclass, answers=(" a", " b", " c", " d"))
    alike = make_source(4, superclass=superclass, answers=(" a", " a", " c", " c"))
    assert build_stream(differ, "superclass").answers is None
    assert build_stream(alike, "superclass").answers == (" a", " c")
    assert build_stream(alike, "superclass", setting="task").answers == (" a", " c", " a", " c")


def order_of(class_order_option, n_classes=10, seed=0, classes=None):
    config = SCENARIOS["class_incremental"].config
    return class_order(
        config(
            name="x",
            kind="class_incremental",
            source="tiny",
            increment=1,
            class_order=class_order_option,
            classes=classes,
        ),
        n_classes,
        seed,
    )


def test_class_orders():
    assert order_of("natural") == list(range(10))
    assert order_of([3, 1, 2, 0], 4) == [3, 1, 2, 0]
    assert order_of("natural", classes=[7, 5, 2]) == [7, 5, 2]
    assert sorted(order_of("shuffled", seed=1)) == list(range(10))
    assert order_of("shuffled", seed=1) == order_of("shuffled", seed=1) != order_of("shuffled", seed=2)
    assert order_of(5, seed=1) == order_of(5, seed=2) != order_of(6, seed=1)


def test_order_1993_is_the_published_one():
    # The order that iCaRL, PyCIL and their successors print and copy: numpy seeded with 1993, a permutation of 100.
    assert order_of(1993, 100)[:10] == [68, 56, 78, 8, 23, 84, 90, 65, 74, 76]


@pytest.mark.parametrize(
    ("option", "classes", "message"),
    [
        ([0, 1, 2, 2], None, r"class_order=\[0, 1, 2, 2\] has to name each of the 4 classes exactly once, out of 0..3"),
        ([0, 1, 2], None, "exactly once"),
        ([0, 1, 2, 4], None, "exactly once"),
        ([0, 1, 2, "3"], None, "exactly once"),
        ([[0], 1, 2, 3], None, "exactly once"),
        ([0, 1, 2, 3], [0, 3], r"each of the 2 classes exactly once, out of \[0, 3\]"),
        ("suffled", None, "'suffled' is unknown. Valid choices: natural, shuffled, an integer seed, a list"),
        (True, None, "True is unknown"),
        (-1, None, "-1 is unknown"),
        ("natural", [0, 0], r"scenario.classes=\[0, 0\] has to name .* out of 0..3"),
        ("natural", [4], "out of 0..3"),
        ("natural", [], "at least one class"),
    ],
)
def test_a_wrong_class_order_is_answered_with_the_choices(option, classes, message):
    with pytest.raises(ConfigError, match=message):
        order_of(option, 4, classes=classes)


def test_without_increment_every_task_is_a_superclass(make_source, build_stream):
    data = make_source(superclass=np.array([1, 0, 1, 0, 0, 2]))
    natural = build_stream(data, "task_incremental", increment=None)
    assert natural.class_names == ["c0", "c2", "c1", "c3", "c4", "c5"]
    assert natural.task_classes == [[0, 1], [2, 3, 4], [5]]
    chosen = build_stream(data, "task_incremental", increment=None, class_order=[4, 5, 0, 1, 2, 3])
    assert chosen.class_names == ["c4", "c1", "c3", "c5", "c0", "c2"]
    assert chosen.task_classes == [[0, 1, 2], [3], [4, 5]]
    assert [len(chosen.train.ids(task)) for task in range(3)] == [30, 10, 20]


def test_superclass_tasks_need_superclasses_and_no_base(make_source, build_stream):
    with pytest.raises(ConfigError, match="increment=null makes a task of each superclass, but tiny has none"):
        build_stream(make_source(), "class_incremental", increment=None)
    with pytest.raises(ConfigError, match=r"base=2 needs scenario\.increment"):
        build_stream(make_source(superclass=np.zeros(6, int)), "class_incremental", increment=None, base=2)


def named_superclasses(make_source, **fields):
    return make_source(superclass=np.array([1, 0, 1, 0, 0, 2]), superclass_names=["zero", "one", "two"], **fields)


def test_superclasses_are_taken_by_name_in_the_order_given(make_source, build_stream):
    data = named_superclasses(make_source)
    everything = build_stream(data, "class_incremental", increment=None)
    assert everything.task_names == ["one", "zero", "two"]  # in the order of the classes
    some = build_stream(
        data, "class_incremental", increment=None, superclasses=["two", "one"], class_order=[5, 4, 3, 2, 1, 0]
    )
    assert some.task_names == ["two", "one"]
    assert some.class_names == ["c5", "c2", "c0"]
    assert some.task_classes == [[0], [1, 2]]
    assert [len(some.train.ids(task)) for task in range(2)] == [10, 20]
    assert build_stream(data, "class_incremental", increment=2).task_names[0] == "c0, c1"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"superclasses": ["onee"]}, "unknown superclass of tiny 'onee': did you mean 'one'"),
        (
            {"superclasses": ["one", "one"]},
            r"superclasses=\['one', 'one'\] has to name at least one superclass, and none twice",
        ),
        ({"superclasses": []}, "has to name at least one superclass"),
        ({"superclasses": ["three"]}, "superclasses names three, which is not there. Valid choices: one, zero, two"),
        ({"superclasses": ["two"], "classes": [0, 1]}, "unknown superclass of tiny 'two': Valid choices: one, zero"),
        (
            {"superclasses": ["one"], "increment": 2},
            "is for tasks of a superclass each: set scenario.increment=null, which is 2",
        ),
    ],
)
def test_superclasses_that_cannot_be_taken_are_answered_with_the_choices(options, message, make_source, build_stream):
    data = named_superclasses(make_source, refused={"three": "which is not there"})
    with pytest.raises(ConfigError, match=message):
        build_stream(data, "class_incremental", **{"increment": None, **options})


def test_superclasses_without_names_cannot_be_named(make_source, build_stream):
    with pytest.raises(ConfigError, match=r"the superclasses of tiny have none: set scenario\.class_order instead"):
        build_stream(make_source(superclass=np.zeros(6, int)), "class_incremental", increment=None, superclasses=["a"])


@pytest.mark.parametrize("setting", ["class", "task", "domain"])
def test_a_class_of_two_tasks_is_refused_where_outputs_are_of_one(setting, make_source, build_stream, monkeypatch):
    """Of a kind of a user's own: the label would be hidden from the samples of all its tasks but the last."""
    classes = [[0, 1], [2, 3], [0, 2]]

    class Returning:
        config = SCENARIOS["class_incremental"].config

        @classmethod
        def plan(cls, config, data, seed):
            parts = [Part({c: c for c in labels}) for labels in classes]
            return StreamPlan(setting, data.class_names[:4], ["a", "b", "c"], classes, parts)

    monkeypatch.setitem(SCENARIOS._entries, "returning", Returning)
    source = make_source(4)
    if setting == "domain":
        assert build_stream(source, "returning", increment=2).task_classes == classes
        return
    with pytest.raises(
        ConfigError, match=r"class 'c0' of scenario tiny is in the tasks 0 and 2, and in a .*-incremental stream"
    ):
        build_stream(source, "returning", increment=2)
