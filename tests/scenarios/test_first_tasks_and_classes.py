"""``scenario.tasks``, the first tasks of a stream, and ``scenario.classes`` where tasks share their classes."""

import numpy as np
import pytest
import torch

from clbench.compose import compose
from clbench.errors import ConfigError
from clbench.options import check_fields, to_dataclass
from clbench.scenarios.build import build
from clbench.scenarios.scenario import Scenario, Split
from clbench.set_up import set_up

KINDS = {
    "class_incremental": {"increment": 2},
    "task_incremental": {"increment": 1, "base": 3},
    "rotation": {"angles": [0.0, 90.0, 180.0]},
    "permutation": {"n_tasks": 3, "identity_first": True},
    "domains": {},
    "superclass": {},
    "class_groups": {"n_tasks": 3},
    "random_label": {"n_tasks": 3, "images": 15},
    "label_permutation": {"n_tasks": 3, "identity_first": False},
}
"""Options of every kind, on a source of six classes, three domains and two superclasses."""

SHARED = {kind: options for kind, options in KINDS.items() if not kind.endswith("incremental")}


@pytest.fixture
def stream(make_source, build_stream):
    """A function: kind and options → stream."""
    data = {
        kind: make_source(n_domains=3 if kind == "domains" else 1, superclass=np.array([0, 0, 1, 0, 1, 1]))
        for kind in KINDS
    }

    def make(kind: str, seed: int = 0, **options) -> Scenario:
        return build_stream(data[kind], kind, seed, **{**KINDS[kind], **options})

    return make


def shown(split: Split, task: int) -> list[tuple[bytes, int]]:
    """Images and labels of a task, sorted."""
    pixels, labels, _ = split.take(split.ids(task))
    return sorted((image.tobytes(), int(label)) for image, label in zip(pixels.numpy(), labels, strict=True))


def settings(kind: str) -> list[dict]:
    return [{"setting": setting} for setting in ("domain", "task", "class")] if kind in SHARED else [{}]


CASES = [(kind, options) for kind in KINDS for options in settings(kind)]

# ---- the first tasks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "options"), CASES)
@pytest.mark.parametrize("n", [1, 2])
def test_the_first_tasks_are_those_of_the_whole_stream(stream, kind, options, n):
    """Names, classes, images and labels, in all splits; the head has the classes that occur, and no more."""
    whole, first = stream(kind, validation=0.2, **options), stream(kind, tasks=n, validation=0.2, **options)
    assert first.n_tasks == n
    assert first.setting == whole.setting
    assert first.task_names == whole.task_names[:n]
    assert first.task_classes == whole.task_classes[:n]
    assert first.class_names == whole.class_names[: first.n_classes]
    assert sorted({c for classes in first.task_classes for c in classes}) == list(range(first.n_classes))
    assert first.content["tasks"] == whole.content["tasks"][:n]
    for name in ("train", "validation", "test"):
        for task in range(n):
            assert shown(getattr(first, name), task) == shown(getattr(whole, name), task)
        assert len(getattr(first, name)) == sum(len(getattr(whole, name).ids(task)) for task in range(n))


@pytest.mark.parametrize(("kind", "options"), CASES)
def test_all_tasks_are_the_whole_stream(stream, kind, options):
    whole = stream(kind, **options)
    assert stream(kind, tasks=whole.n_tasks, **options).hash == whole.hash
    assert stream(kind, tasks=1, **options).hash != whole.hash


@pytest.mark.parametrize(
    ("kind", "shorter"),
    [("rotation", {"angles": [0.0, 90.0]}), ("permutation", {"n_tasks": 2}), ("domains", {"domains": ["d0", "d1"]}),
     *((kind, {"n_tasks": 2}) for kind in ("class_groups", "random_label", "label_permutation"))],
)  # fmt: skip
def test_equal_streams_have_equal_hashes_however_they_were_asked_for(stream, kind, shorter):
    """Two of three rotations are the stream of those two rotations."""
    by_tasks, by_options = stream(kind, tasks=2), stream(kind, **shorter)
    assert by_tasks.content["tasks"] == by_options.content["tasks"]
    assert by_tasks.hash == by_options.hash


@pytest.mark.parametrize("kind", KINDS)
def test_more_tasks_than_there_are(stream, kind):
    n = stream(kind).n_tasks
    with pytest.raises(ConfigError, match=rf"scenario\.tasks={n + 1} is more than the {n} tasks of tiny"):
        stream(kind, tasks=n + 1)


@pytest.mark.parametrize("order", ["shuffled", 1993, [5, 0, 4, 1, 3, 2]])
def test_the_first_tasks_follow_the_class_order(stream, order):
    whole = stream("class_incremental", 3, class_order=order)
    first = stream("class_incremental", 3, class_order=order, tasks=1)
    assert first.class_names == whole.class_names[:2] != ["c0", "c1"]


def test_the_first_tasks_are_not_the_frozen_stream():
    """And the record says why; whole, the stream is the frozen one."""
    small = ["scenario=split_digits", "model.hidden=[4]", "device=cpu"]
    assert set_up(compose(small)).scenario.frozen == "split_digits/v1"
    first = set_up(compose([*small, "scenario.tasks=2"])).scenario
    assert first.frozen is None
    assert first.note == "not the frozen stream split_digits/v1: tasks=2"


# ---- all but the first tasks -------------------------------------------------------------------------------------------


def moves_labels(kind, options) -> bool:
    return kind in ("class_incremental", "task_incremental") or options.get("setting", "domain") != "domain"


def relabels(kind: str) -> bool:
    return kind in ("random_label", "label_permutation")


@pytest.mark.parametrize(("kind", "options"), [c for c in CASES if not (relabels(c[0]) and moves_labels(*c))])
@pytest.mark.parametrize(("skip", "tasks"), [(1, None), (2, None), (1, 1)])
def test_the_tasks_that_are_left_are_those_of_the_whole_stream(stream, kind, options, skip, tasks):
    """Images, names, classes and labels, which begin at 0 where earlier tasks had labels of their own."""
    whole = stream(kind, validation=0.2, **options)
    if skip >= whole.n_tasks:
        pytest.skip("fewer tasks")
    left = stream(kind, skip_tasks=skip, tasks=tasks, validation=0.2, **options)
    end = whole.n_tasks if tasks is None else skip + tasks
    first = min(whole.task_classes[skip]) if moves_labels(kind, options) else 0
    assert left.task_names == whole.task_names[skip:end]
    assert left.task_classes == [[c - first for c in classes] for classes in whole.task_classes[skip:end]]
    assert sorted({c for classes in left.task_classes for c in classes}) == list(range(left.n_classes))
    assert left.class_names == whole.class_names[first : first + left.n_classes]
    for name in ("train", "validation", "test"):
        for task in range(end - skip):
            expected = [(image, label - first) for image, label in shown(getattr(whole, name), skip + task)]
            assert shown(getattr(left, name), task) == expected
    assert left.hash != whole.hash


def test_none_is_skipped_of_a_stream_that_says_nothing(stream):
    assert stream("class_incremental", skip_tasks=None).hash == stream("class_incremental").hash


@pytest.mark.parametrize("kind", KINDS)
def test_not_all_tasks_are_skipped(stream, kind):
    n = stream(kind).n_tasks
    with pytest.raises(ConfigError, match=rf"scenario\.skip_tasks={n} leaves none of the {n} tasks of tiny"):
        stream(kind, skip_tasks=n)
    with pytest.raises(
        ConfigError, match=rf"tasks={n} is more than the {n - 1} tasks of tiny that scenario\.skip_tasks=1"
    ):
        stream(kind, skip_tasks=1, tasks=n)


def test_random_labels_are_not_moved(stream):
    with pytest.raises(ConfigError, match=r"scenario\.skip_tasks=1 moves the labels of later tasks"):
        stream("random_label", skip_tasks=1, setting="class")


def test_a_run_on_what_is_left_of_digits(small_trainer):
    """Three tasks of two classes each: six outputs, and all metrics of three tasks."""
    trainer = small_trainer("scenario=split_digits", "scenario.skip_tasks=2", "strategy=er", "strategy.memory_size=20")
    trainer.fit()
    assert trainer.scenario.note == "not the frozen stream split_digits/v1: skip_tasks=2"
    assert trainer.scenario.class_names == ["4", "5", "6", "7", "8", "9"]
    assert trainer.learner.model.head.out_features == 6
    assert sorted(trainer.tasks.task_learning.unique()) == [0, 1, 2]


def test_no_task_is_out_of_range():
    with pytest.raises(ConfigError, match=r"scenario\.tasks=0 is out of range: it has to be at least 1"):
        check_fields(to_dataclass(compose(["scenario.tasks=0"])), "")


# ---- some of the classes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["rotation", "permutation", "domains"])
@pytest.mark.parametrize("classes", [[1, 4], [4, 1], [0, 2, 5]])
def test_only_these_classes_are_shown_in_every_task(stream, kind, classes):
    """The images of the whole stream that are of these classes, labelled in the order in which the classes are named."""
    whole, part = stream(kind), stream(kind, classes=classes)
    assert part.class_names == [f"c{c}" for c in classes]
    assert part.task_names == whole.task_names
    assert part.task_classes == [list(range(len(classes)))] * 3
    for name in ("train", "test"):
        for task in range(3):
            expected = [(image, classes.index(c)) for image, c in shown(getattr(whole, name), task) if c in classes]
            assert shown(getattr(part, name), task) == sorted(expected)
            assert len(expected) > 0


@pytest.mark.parametrize("kind", ["rotation", "permutation", "domains"])
def test_classes_of_their_own_for_every_task(stream, kind):
    part = stream(kind, classes=[3, 1], setting="class")
    assert part.n_classes == 6
    assert part.task_classes == [[0, 1], [2, 3], [4, 5]]
    assert [name[:2] for name in part.class_names] == ["c3", "c1"] * 3
    assert {label for task in range(3) for _, label in shown(part.train, task)} == set(range(6))


@pytest.mark.parametrize("chosen", [0, 1])
def test_superclasses_are_chosen_by_number(stream, chosen):
    """Task t shows the t-th class of every superclass that is left."""
    members = [[0, 1, 3], [2, 4, 5]]
    whole, part = stream("superclass"), stream("superclass", classes=[chosen])
    assert part.class_names == [", ".join(f"c{c}" for c in members[chosen])]
    assert part.task_classes == [[0], [0], [0]]
    for task in range(3):
        expected = [(image, 0) for image, label in shown(whole.train, task) if label == chosen]
        assert shown(part.train, task) == sorted(expected)
    both = stream("superclass", classes=[1, 0])
    assert both.class_names == list(reversed(whole.class_names))
    for task in range(3):
        assert shown(both.test, task) == sorted((image, 1 - label) for image, label in shown(whole.test, task))


def test_two_halves_of_the_classes_share_no_image(stream):
    for kind in SHARED:
        n = 1 if kind == "superclass" else 3
        one = stream(kind, classes=list(range(n)))
        other = stream(kind, classes=list(range(n, 2 * n)))
        ours, theirs = ({image for task in range(3) for image, _ in shown(s.train, task)} for s in (one, other))
        assert not ours & theirs
        assert len(one.train) == len(other.train)


@pytest.mark.parametrize("kind", SHARED)
def test_all_classes_are_the_stream_without_the_option(stream, kind):
    n = 2 if kind == "superclass" else 6
    assert stream(kind, classes=list(range(n))).hash == stream(kind).hash


@pytest.mark.parametrize("kind", SHARED)
@pytest.mark.parametrize("classes", [[], [0, 0], [0, 6], [-1]])
def test_classes_that_do_not_exist_are_refused(stream, kind, classes):
    last = 1 if kind == "superclass" else 5
    with pytest.raises(ConfigError) as raised:
        stream(kind, classes=classes)
    assert str(raised.value) == (
        f"scenario.classes={classes} has to name at least one class and none twice, out of 0..{last}"
    )


@pytest.mark.parametrize(
    "overrides",
    [
        ["scenario=rotated_mnist", "scenario.angles=[0,90]"],
        ["scenario=permuted_mnist", "scenario.n_tasks=2"],
    ],
)
def test_from_the_command_line(overrides):
    words = [*overrides, "scenario.source=digits", "scenario.frozen=null", "scenario.classes=[7,2]", "scenario.tasks=1"]
    config = to_dataclass(compose(words))
    scenario = build(config.scenario, config.data, 0, torch.device("cpu"))
    assert (scenario.class_names, scenario.n_tasks) == (["7", "2"], 1)
    assert len(scenario.train) + len(scenario.test) == 179 + 177  # sevens and twos among scikit-learn's digits
