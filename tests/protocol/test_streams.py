"""The streams that are tuned and evaluated on: halves, first tasks, other scenarios, and what is refused as a leak."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from clbench.config import typed, without_hydra
from clbench.data.images import ImageSet, SourceData
from clbench.errors import ConfigError, TestStreamLocked
from clbench.protocol.options import ProtocolConfig
from clbench.protocol.streams import classes_of, halves, overlap, plan_streams, refuse_leak, scenario_of
from clbench.registry import SOURCES
from clbench.scenarios.class_incremental import ClassIncrementalConfig
from clbench.scenarios.frozen import stream_content
from clbench.scenarios.scenario import Scenario, Split
from clbench.set_up import set_up

TINY = ["scenario=split_digits", "scenario.source=tiny", "scenario.frozen=null", "model.hidden=[4]"]
SUPERCLASSES_AS_TASKS = ["scenario=omniglot", "scenario.source=tiny", "scenario.image_size=null", "model=mlp"]
SUPERCLASSES_AS_LABELS = ["scenario=cifar100_superclass", "scenario.source=tiny", "scenario.frozen=null", "model=mlp"]


def images(labels: np.ndarray, seed: int, shape: tuple[int, int, int] = (1, 4, 4)) -> ImageSet:
    """A random image for every label."""
    pixels = np.random.default_rng(seed).integers(0, 256, (len(labels), *shape), dtype=np.uint8)
    return ImageSet(pixels, labels)


def source(
    n_classes: int, superclass: list[int] | None = None, seed: int = 1, prefix: str = "c", per_class: int = 10
) -> SourceData:
    """Random images, ``per_class`` for training and 4 for testing of every class."""
    return SourceData(
        train=images(np.repeat(np.arange(n_classes), per_class), seed),
        test=images(np.repeat(np.arange(n_classes), 4), seed + 1),
        class_names=[f"{prefix}{c}" for c in range(n_classes)],
        mean=(0.5,),
        std=(0.25,),
        superclass=None if superclass is None else np.asarray(superclass),
    )


@pytest.fixture
def provide(monkeypatch) -> Callable[..., None]:
    """A function: data, and the name of the source that delivers them from then on."""

    def put(data: SourceData, name: str = "tiny") -> None:
        SOURCES.names()  # import the real ones first
        monkeypatch.setitem(SOURCES._entries, name, lambda _config: data)

    return put


@pytest.fixture
def streams(compose, options_of) -> Callable[..., tuple[Callable[..., Scenario], Callable[..., Scenario], str]]:
    """A function: overrides and options → tuning stream (kind, seed), evaluation stream (seed), note."""

    def make(overrides: list[str], **options):
        planned = plan_streams(overrides, options_of(**options), compose)
        tuning = lambda kind="two_phase", seed=0: scenario_of(compose([*overrides, *planned.tuning[kind]]), seed)  # noqa: E731
        evaluation = lambda seed=100: scenario_of(compose([*overrides, *planned.evaluation]), seed)  # noqa: E731
        return tuning, evaluation, planned.note

    return make


def sizes(scenario: Scenario) -> list[int]:
    return [len(classes) for classes in scenario.task_classes]


TWO_PHASE = {"kinds": ["two_phase"], "halves": "index"}

# ---- halves ---------------------------------------------------------------------------------------------------------


def test_the_first_and_the_second_half_of_the_classes(streams):
    """Ten digits, two per task: each half of five holds two whole tasks, and the fifth class of each is left out."""
    tuning, evaluation, note = streams(["scenario=split_digits"], **TWO_PHASE)
    assert tuning().class_names == ["0", "1", "2", "3"]
    assert evaluation().class_names == ["5", "6", "7", "8"]
    assert sizes(tuning()) == sizes(evaluation()) == [2, 2]
    assert note == "2 classes are in neither half, since halves of equal tasks do not hold them"
    common = refuse_leak(tuning(), evaluation())
    assert (common.classes, common.images) == ([], 0)
    assert tuning().hash == tuning().hash != tuning(seed=1).hash  # the validation split is the seed's
    assert stream_content(tuning()) == stream_content(tuning(seed=1))


def test_the_setting_of_the_halves_is_that_of_the_scenario(streams):
    tuning, evaluation, note = streams(["scenario=split_digits_task", "scenario.increment=1"], **TWO_PHASE)
    assert (tuning().setting, evaluation().setting) == ("task", "task")
    assert (tuning().class_names, evaluation().class_names) == (["0", "1", "2", "3", "4"], ["5", "6", "7", "8", "9"])
    assert note == ""


@settings(max_examples=150, deadline=None)
@given(
    n=st.integers(2, 40),
    increment=st.integers(1, 8),
    base=st.none() | st.integers(1, 12),
    mode=st.sampled_from(["index", "seeded"]),
    data=st.data(),
)
def test_halves_are_disjoint_equal_and_as_large_as_whole_tasks_allow(n, increment, base, mode, data):
    given = data.draw(st.none() | st.sets(st.integers(0, n - 1), min_size=2).map(list))
    config = ClassIncrementalConfig(
        name="x", kind="class_incremental", source="tiny", increment=increment, base=base, classes=given
    )
    options = ProtocolConfig(kinds=["two_phase"], halves=mode)
    pool = set(range(n)) if given is None else set(given)
    first = base or increment
    whole_tasks = [t for t in range(2, n + 1) if first + (t - 1) * increment <= len(pool) // 2]
    if not whole_tasks:
        with pytest.raises(ConfigError, match="does not make two tasks of x"):
            halves(config, source(n, per_class=1), options)
        return
    one, other, note = halves(config, source(n, per_class=1), options)
    assert len(one) == len(other) == first + (max(whole_tasks) - 1) * increment
    assert len(set(one)) == len(one)
    assert not set(one) & set(other)
    assert set(one) | set(other) <= pool
    assert (one, other, note) == halves(config, source(n, per_class=1), options)
    left_out = len(pool) - 2 * len(one)
    assert note == "" if left_out == 0 else note.startswith(f"{left_out} class")
    if mode == "index":
        assert max(one) < min(other)


def test_seeded_halves_are_drawn(streams):
    """Another seed, another half; the same seed, the same half; not the alphabet's."""
    found = []
    for seed in (0, 0, 1, 2):
        tuning, evaluation, _ = streams(
            ["scenario=split_digits"], kinds=["two_phase"], halves="seeded", halves_seed=seed
        )
        found.append((set(tuning().class_names), set(evaluation().class_names)))
        assert not found[-1][0] & found[-1][1]
        refuse_leak(tuning(), evaluation())
    assert found[0] == found[1]
    assert len({tuple(sorted(one)) for one, _ in found}) == 3
    assert all(one != {"0", "1", "2", "3"} for one, _ in found)


def test_base_and_increment(streams, provide):
    """18 classes, 5 and then 2 at a time: of a half of nine 5 + 2 + 2."""
    provide(source(18))
    tuning, evaluation, note = streams([*TINY, "scenario.base=5", "scenario.increment=2"], **TWO_PHASE)
    assert sizes(tuning()) == sizes(evaluation()) == [5, 2, 2]
    assert tuning().class_names == [f"c{c}" for c in range(9)]
    assert evaluation().class_names == [f"c{c}" for c in range(9, 18)]
    assert note == ""


def test_the_sentence_about_classes_that_do_not_make_two_tasks(streams):
    with pytest.raises(ConfigError) as raised:
        streams(["scenario=split_digits", "scenario.increment=5"], **TWO_PHASE)
    assert str(raised.value) == (
        "half of the 10 classes of digits does not make two tasks of split_digits (first task 5 classes, then 5 each): set "
        "scenario.increment to at most 2"
    )


def test_an_explicit_class_order_keeps_what_is_left(streams):
    tuning, evaluation, _ = streams(
        ["scenario=split_digits", "scenario.class_order=[9,3,8,1,0,2,7,5,6,4]", "scenario.increment=1"], **TWO_PHASE
    )
    assert tuning().class_names == ["3", "1", "0", "2", "4"]
    assert evaluation().class_names == ["9", "8", "7", "5", "6"]


def test_a_numbered_class_order_permutes_each_half(streams):
    """The order that numpy.random.RandomState(1993) gives five classes, in both halves."""
    overrides = ["scenario=split_digits", "scenario.class_order=1993", "scenario.increment=1"]
    tuning, evaluation, _ = streams(overrides, **TWO_PHASE)
    order = np.random.RandomState(1993).permutation(5)
    assert tuning().class_names == [str(c) for c in order]
    assert evaluation().class_names == [str(5 + c) for c in order]


def test_a_class_order_for_every_seed(streams):
    tuning, evaluation, _ = streams(
        ["scenario=split_digits", "scenario.increment=1"], **TWO_PHASE, shuffle_classes=True
    )
    orders = [tuple(tuning(seed=seed).class_names) for seed in range(4)]
    assert len(set(orders)) > 1
    assert {frozenset(order) for order in orders} == {frozenset("01234")}
    assert {frozenset(evaluation(seed=seed).class_names) for seed in (100, 101)} == {frozenset("56789")}
    kept, _, _ = streams(["scenario=split_digits", "scenario.class_order=1993"], **TWO_PHASE, shuffle_classes=True)
    assert kept(seed=0).class_names == kept(seed=1).class_names  # an order that the user chose stays


@pytest.mark.parametrize("shuffle", [False, True])
def test_domain_incremental_streams_are_halved_by_class(streams, shuffle):
    overrides = ["scenario=rotated_mnist", "scenario.source=digits", "scenario.frozen=null", "scenario.angles=[0,90]"]
    tuning, evaluation, note = streams(overrides, **TWO_PHASE, shuffle_classes=shuffle)
    assert (tuning().class_names, evaluation().class_names) == (list("01234"), list("56789"))
    assert tuning().task_names == evaluation().task_names == ["0°", "90°"]
    assert note == ""
    refuse_leak(tuning(), evaluation())


# ---- superclasses ---------------------------------------------------------------------------------------------------

INTERLEAVED = [0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3]
"""Class c is of superclass c mod 4: three classes each."""


def test_tasks_that_are_superclasses_are_halved_by_superclass(streams, provide):
    provide(source(12, INTERLEAVED))
    tuning, evaluation, note = streams(SUPERCLASSES_AS_TASKS, **TWO_PHASE)
    tasks = lambda scenario: [{scenario.class_names[c] for c in task} for task in scenario.task_classes]  # noqa: E731
    assert tasks(tuning()) == [{"c0", "c4", "c8"}, {"c1", "c5", "c9"}]
    assert tasks(evaluation()) == [{"c2", "c6", "c10"}, {"c3", "c7", "c11"}]
    refuse_leak(tuning(), evaluation())
    assert note == ""  # no class is left out


def test_of_an_odd_number_of_superclasses_one_is_left_out(streams, provide):
    provide(source(10, [0, 1, 2, 3, 4, 0, 1, 2, 3, 4]))
    tuning, evaluation, note = streams(SUPERCLASSES_AS_TASKS, **TWO_PHASE)
    assert set(tuning().class_names) == {"c0", "c5", "c1", "c6"}
    assert set(evaluation().class_names) == {"c2", "c7", "c3", "c8"}
    assert note.startswith("1 superclass is in neither half")


def test_superclasses_of_different_sizes_can_be_halved(streams, provide):
    """As Omniglot's alphabets, of 20 to 47 characters: no two halves of them have tasks of the same sizes."""
    provide(source(10, [0, 0, 0, 1, 1, 2, 2, 3, 3, 3]))
    tuning, evaluation, _ = streams(SUPERCLASSES_AS_TASKS, **TWO_PHASE)
    assert (sizes(tuning()), sizes(evaluation())) == ([3, 2], [2, 3])
    common = refuse_leak(tuning(), evaluation())
    assert (common.classes, common.images) == ([], 0)


def test_a_choice_of_classes_is_kept_when_superclasses_are_halved(streams, provide):
    """Two classes of every superclass were chosen, so the third ones stay out."""
    provide(source(12, INTERLEAVED))
    tuning, evaluation, _ = streams([*SUPERCLASSES_AS_TASKS, "scenario.classes=[0,1,2,3,4,5,6,7]"], **TWO_PHASE)
    assert set(tuning().class_names) == {"c0", "c4", "c1", "c5"}
    assert set(evaluation().class_names) == {"c2", "c6", "c3", "c7"}


@pytest.mark.parametrize("mode", ["index", "seeded"])
def test_labels_that_are_superclasses_are_halved(streams, provide, mode):
    """Each half has two of the four labels, and its three tasks show a class of both."""
    provide(source(12, INTERLEAVED))
    tuning, evaluation, note = streams(SUPERCLASSES_AS_LABELS, kinds=["two_phase"], halves=mode, shuffle_classes=True)
    every = {"c0, c4, c8", "c1, c5, c9", "c10, c2, c6", "c11, c3, c7"}
    names = [
        {", ".join(sorted(name.split(", "))) for name in scenario.class_names} for scenario in (tuning(), evaluation())
    ]
    assert names[0] | names[1] == every
    assert not names[0] & names[1]
    if mode == "index":
        assert names[0] == {"c0, c4, c8", "c1, c5, c9"}
    assert sizes(tuning()) == sizes(evaluation()) == [2, 2, 2]
    assert note == ""
    refuse_leak(tuning(), evaluation())


# ---- conventional, first task, first tasks --------------------------------------------------------------------------


def test_all_kinds_of_a_study_are_evaluated_on_the_same_stream(streams):
    kinds = ["two_phase", "conventional", "first_task", "first_k"]
    tuning, evaluation, _ = streams(
        ["scenario=split_digits", "scenario.increment=1"], kinds=kinds, halves="index", first_tasks=3
    )
    assert tuning("two_phase").class_names == list("01234")
    assert evaluation().class_names == tuning("conventional").class_names == list("56789")
    assert tuning("first_task").class_names == ["5"]
    assert tuning("first_k").class_names == ["5", "6", "7"]


@pytest.mark.parametrize("seed", [0, 3])
@pytest.mark.parametrize(("kind", "n"), [("first_task", 1), ("first_k", 2), ("conventional", 5)])
def test_first_tasks_are_those_of_the_evaluation_stream_to_the_image(streams, kind, n, seed):
    tuning, evaluation, _ = streams(["scenario=split_digits"], kinds=[kind], first_tasks=2)
    assert stream_content(tuning(kind, seed))["tasks"] == stream_content(evaluation())["tasks"][:n]
    held_out = len(tuning(kind, seed).validation) / (len(tuning(kind, seed).train) + len(tuning(kind, seed).validation))
    assert held_out == pytest.approx(0.1, abs=0.01)


def images_of(split: Split, task: int) -> set[bytes]:
    return {image.tobytes() for image in split.take(split.ids(task))[0].numpy()}


def test_no_image_of_a_later_task_is_in_the_first_tasks_stream(streams):
    """Not even in its test split, which is locked."""
    tuning, evaluation, _ = streams(["scenario=split_digits"], kinds=["first_task"])
    first, whole = tuning("first_task"), evaluation()
    shown = set().union(*(images_of(split, 0) for split in (first.train, first.validation, first._test)))
    for split in (whole.train, whole.test):
        for task in range(whole.n_tasks):
            of_task = images_of(split, task)
            assert (of_task <= shown) if task == 0 else not (of_task & shown)


def test_more_first_tasks_than_there_are(streams):
    tuning, _, _ = streams(["scenario=split_digits"], kinds=["first_k"], first_tasks=6)
    with pytest.raises(ConfigError, match=r"scenario\.tasks=6 is more than the 5 tasks of split_digits"):
        tuning("first_k")


@pytest.mark.parametrize("kind", ["first_task", "first_k"])
def test_first_tasks_that_every_seed_draws_anew_are_refused(streams, kind):
    """As protocol.shuffle_classes is: the tasks that are tuned on would not be those that the evaluation begins with."""
    with pytest.raises(ConfigError, match="shuffled"):
        streams(["scenario=split_digits", "scenario.class_order=shuffled"], kinds=[kind])


# ---- what tuning may see --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["two_phase", "conventional", "first_task", "first_k"])
def test_the_test_split_is_locked_while_tuning_and_open_for_evaluation(compose, options_of, kind):
    overrides = ["scenario=split_digits", "model.hidden=[4]", "device=cpu"]
    options = options_of(kinds=[kind], halves="index", first_tasks=2)
    planned = plan_streams(overrides, options, compose)
    tuning = set_up(without_hydra(compose([*overrides, *planned.tuning[kind]]))).scenario
    with pytest.raises(TestStreamLocked, match="the test stream of split_digits is locked while tuning"):
        _ = tuning.test
    evaluation = set_up(without_hydra(compose([*overrides, *planned.evaluation]))).scenario
    assert len(evaluation.test) > 0
    assert evaluation.validation is None  # the selected configuration is trained on all training data


def test_a_metric_at_task_ends_needs_no_evaluation_in_between(compose, options_of):
    """Whatever the evaluation phase is recorded with."""
    for chosen in ([], ["evaluator=adaptive"], ["evaluator.every=7"]):
        usual = typed(compose(chosen)).evaluator
        for metric, expected in (("average_incremental_pooled", ("periodic", 0)), ("AAA", (usual.kind, usual.every))):
            planned = plan_streams(chosen, options_of(metric=metric, validation=0.25), compose)
            tuning = typed(compose([*chosen, *planned.tuning["conventional"]]))
            assert (tuning.evaluator.kind, tuning.evaluator.every) == expected
            assert (tuning.evaluator.split, tuning.scenario.validation) == ("validation", 0.25)
            assert typed(compose([*chosen, *planned.evaluation])).evaluator == usual


# ---- another scenario to tune on ------------------------------------------------------------------------------------


def test_another_scenario_is_tuned_on_with_the_network_and_schedule_of_the_evaluated_one(
    compose, streams, options_of, provide
):
    """split_mnist's own file says another schedule, other augmentation-free normalisation and no threads."""
    provide(source(10, prefix="m"), "mnist")
    overrides = [
        "scenario=split_digits",
        "scenario.source=tiny",
        "scenario.frozen=null",
        "trainer.momentum=0.5",
        "model.hidden=[7]",
    ]
    provide(source(10, seed=5))
    planned = plan_streams(overrides, options_of(kinds=["two_phase"], tune_on="split_mnist"), compose)
    tuned = typed(compose([*overrides, *planned.tuning["two_phase"]]))
    evaluated = typed(compose([*overrides, *planned.evaluation]))
    assert (tuned.scenario.name, evaluated.scenario.name) == ("split_mnist", "split_digits")
    assert tuned.trainer == evaluated.trainer == typed(compose(overrides)).trainer
    assert tuned.model == evaluated.model
    assert tuned.model.hidden == [7]
    assert (tuned.evaluator.subset, tuned.evaluator.every) == (evaluated.evaluator.subset, 0)


def test_other_classes_are_no_leak(streams, provide):
    provide(source(10, prefix="m"), "mnist")
    tuning, evaluation, _ = streams(["scenario=split_digits"], kinds=["two_phase"], tune_on="split_mnist")
    assert tuning().class_names == [f"m{c}" for c in range(10)]
    assert evaluation().class_names == [str(c) for c in range(10)]
    common = refuse_leak(tuning(), evaluation())
    assert (common.classes, common.images, common.n_images) == ([], 0, 140)


def test_a_scenario_to_tune_on_that_does_not_exist(streams):
    with pytest.raises(ConfigError, match="unknown scenario 'split_mnits': did you mean 'split_mnist'"):
        streams(["scenario=split_digits"], kinds=["two_phase"], tune_on="split_mnits")


# ---- leaks ----------------------------------------------------------------------------------------------------------


def test_the_same_scenario_is_a_leak(streams):
    tuning, evaluation, _ = streams(["scenario=split_digits"], kinds=["two_phase"], tune_on="split_digits")
    with pytest.raises(
        ConfigError, match=r"the tuning stream has classes of the evaluation stream, 0, 1, 2, 3, 4 …: choose"
    ):
        refuse_leak(tuning(), evaluation())


def test_one_class_in_common_is_a_leak(streams, provide):
    """By its name, though none of its images is the same."""
    names = [f"m{c}" for c in range(9)] + ["7"]
    made = source(10)
    provide(SourceData(made.train, made.test, names, made.mean, made.std), "mnist")
    tuning, evaluation, _ = streams(["scenario=split_digits"], kinds=["two_phase"], tune_on="split_mnist")
    with pytest.raises(ConfigError, match="classes of the evaluation stream, 7: choose"):
        refuse_leak(tuning(), evaluation())


@pytest.mark.parametrize("copied", ["all images", "the test images of one class"])
def test_images_under_the_names_of_other_classes_are_a_leak(streams, tmp_path, copied):
    """A folder of four classes, of which the second half repeats images of the first."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 10), ("test", 5)):
        for name in "abcd":
            (tmp_path / "set" / part / name).mkdir(parents=True)
            for i in range(count):
                Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(
                    tmp_path / "set" / part / name / f"{i}.png"
                )
    for theirs, ours in (("a", "c"), ("b", "d")):
        for part in ("train", "test"):
            for file in (tmp_path / "set" / part / theirs).iterdir():
                if copied == "all images":
                    Image.open(file).save(tmp_path / "set" / part / ours / file.name)
                elif (part, theirs) == ("test", "a"):
                    Image.open(file).save(tmp_path / "set" / "train" / ours / file.name)
    overrides = [
        "scenario=split_digits", "scenario.source=folder", "scenario.frozen=null", "scenario.increment=1",
        f"data.root={tmp_path}", "data.folder=set", "data.duplicates=keep",
    ]  # fmt: skip
    tuning, evaluation, _ = streams(overrides, **TWO_PHASE)
    assert (tuning().class_names, evaluation().class_names) == (["a", "b"], ["c", "d"])
    expected = 30 if copied == "all images" else 5
    assert overlap(tuning(), evaluation()).images == expected
    with pytest.raises(
        ConfigError, match=f"{expected} of 30 images of the tuning stream are in the evaluation stream as well"
    ):
        refuse_leak(tuning(), evaluation())


@pytest.mark.parametrize(("shared", "refused"), [(0, False), (1, False), (2, True)])
def test_a_thousandth_of_the_images_may_be_the_same(streams, provide, shared, refused):
    """CIFAR-100 itself holds a few images under two labels. Here: of 500 + 500 images in each half, ``shared``."""
    labels = np.repeat(np.arange(4), 500)
    train, test = images(labels, 1), images(np.repeat(np.arange(4), 1), 2)
    train.pixels[1000 : 1000 + shared] = train.pixels[:shared]
    provide(SourceData(train, test, list("abcd"), (0.5,), (0.25,)))
    tuning, evaluation, _ = streams([*TINY, "scenario.increment=1"], **TWO_PHASE)
    assert overlap(tuning(), evaluation()).images == shared
    if refused:
        with pytest.raises(ConfigError, match="2 of 1002 images"):
            refuse_leak(tuning(), evaluation())
    else:
        assert refuse_leak(tuning(), evaluation()).images == shared


def test_permuted_pixels_hide_no_image(compose, provide):
    """The same images under other names, their pixels in another order."""
    made = source(4)
    provide(made)
    provide(SourceData(made.train, made.test, list("wxyz"), made.mean, made.std), "mnist")
    permuted = ["scenario=permuted_mnist", "scenario.frozen=null", "scenario.n_tasks=2"]
    tuning = scenario_of(compose(permuted), 0)
    evaluation = scenario_of(compose([*permuted, "scenario.source=tiny", "scenario.permutation_seed=1"]), 0)
    with pytest.raises(ConfigError, match="56 of 56 images"):
        refuse_leak(tuning, evaluation)


def test_classes_are_the_same_in_whatever_task_they_are_shown(compose):
    """With setting=task a class is named after its task, ``3 (90°)``, and is the same class of digits all the same."""
    rotated = [
        "scenario=rotated_mnist", "scenario.source=digits", "scenario.frozen=null", "scenario.setting=task",
    ]  # fmt: skip
    tuning = scenario_of(compose([*rotated, "scenario.angles=[30,60]"]), 0)
    evaluation = scenario_of(compose([*rotated, "scenario.angles=[100,140]"]), 0)
    with pytest.raises(ConfigError, match="classes of the evaluation stream"):
        refuse_leak(tuning, evaluation)


RANDOM_LABELS = ["scenario=random_label_mnist", "scenario.source=digits", "scenario.n_tasks=2", "scenario.images=100"]


def test_random_labels_are_tuned_on_other_images_of_other_classes(streams):
    """Two phases: the labels of either half are those of its own classes, so that neither stream repeats the other's."""
    tuning, evaluation, note = streams(RANDOM_LABELS, **TWO_PHASE, validation=0.001)
    assert (tuning().class_names, evaluation().class_names, note) == (list("01234"), list("56789"), "")
    common = refuse_leak(tuning(), evaluation())
    assert (common.classes, common.images, common.n_images) == ([], 0, 100)
    with pytest.raises(ConfigError, match="classes of the evaluation stream"):
        refuse_leak(tuning(seed=0), tuning(seed=1))


def test_random_labels_are_tuned_on_other_labels_of_other_seeds(streams):
    """Conventional: judged on what was trained on, under labels that the evaluation does not have."""
    tuning, evaluation, _ = streams(RANDOM_LABELS, kinds=["conventional"])
    tuned, evaluated = tuning("conventional"), evaluation()
    assert tuned.validation is tuned.train
    assert evaluated.test is evaluated.train
    assert not set(tuned.recipe["labels"]) & set(evaluated.recipe["labels"])


def test_groups_of_classes_are_compared_by_the_classes_that_they_show(streams):
    """Their labels have the same names in both halves, and say nothing."""
    binary = ["scenario=binary_cifar100", "scenario.source=digits", "scenario.n_tasks=3", "model=mlp"]
    tuning, evaluation, _ = streams(binary, **TWO_PHASE)
    assert set(classes_of(tuning())) <= set("01234")
    assert set(classes_of(evaluation())) <= set("56789")
    assert tuning().class_names == evaluation().class_names
    assert refuse_leak(tuning(), evaluation()).images == 0
    with pytest.raises(ConfigError, match="classes of the evaluation stream"):
        refuse_leak(tuning(seed=0), tuning(seed=1))


@pytest.mark.parametrize(
    ("tuning", "evaluation"),
    [
        (["scenario.classes=[0,1,2,3]"], ["scenario.classes=[4,5,6,7,8,9]"]),
        (["scenario.classes=[0,1,2,3]"], ["scenario.classes=[5,6,7,8]", "scenario.increment=1"]),
        (["scenario.classes=[0,1,2,3]"], ["scenario=split_digits_task", "scenario.classes=[5,6,7,8]"]),
        (
            ["scenario.increment=1", "scenario.base=2", "scenario.classes=[0,1,2,3]"],
            ["scenario.increment=1", "scenario.base=3", "scenario.classes=[5,6,7,8,9]"],
        ),
    ],
    ids=["number of tasks", "classes per task", "setting", "classes of the first task"],
)
def test_streams_of_another_configuration_are_refused(compose, tuning, evaluation):
    with pytest.raises(ConfigError, match="is not of the same configuration as the evaluation stream"):
        refuse_leak(scenario_of(compose(tuning), 0), scenario_of(compose(evaluation), 100))
