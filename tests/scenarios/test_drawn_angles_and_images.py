"""What GEM's and Mammoth's streams draw for every task: its angle, and its images."""

import numpy as np
import pytest

from clbench.errors import ConfigError

DRAWN = {"angles": None, "n_tasks": 6, "angle_range": [0.0, 180.0]}


def angles(scenario) -> list[float]:
    return scenario.recipe["angles"]


def images(scenario, task: int, split: str = "train") -> list[bytes]:
    part = getattr(scenario, split)
    return sorted(digest.tobytes() for digest in part.digests[part.ids(task).numpy()])


def test_with_bins_each_angle_lies_in_its_own(make_source, build_stream):
    data = make_source(shape=(1, 4, 4))
    places = []
    for seed in range(30):
        drawn = np.array(angles(build_stream(data, "rotation", seed, **DRAWN, angle_draw="bins")))
        places.append((drawn - 30 * np.arange(6)) / 30)  # within the bin
    places = np.array(places)
    assert (places >= 0).all()
    assert (places < 1).all()
    assert len(np.unique(places)) == places.size
    assert abs(places.mean() - 0.5) < 4 * np.sqrt(1 / 12 / places.size)  # of uniform numbers
    assert abs(places.std() - np.sqrt(1 / 12)) < 0.03


def test_without_bins_each_angle_lies_anywhere(make_source, build_stream):
    data = make_source(shape=(1, 4, 4))
    options = {**DRAWN, "angle_range": [-90.0, 30.0], "angle_draw": "uniform"}
    drawn = np.array([angles(build_stream(data, "rotation", seed, **options)) for seed in range(30)])
    assert drawn.min() >= -90
    assert drawn.max() < 30
    for of_task in drawn.T:  # every task's angles spread over the range
        assert of_task.min() < -60
        assert of_task.max() > 0


@pytest.mark.parametrize("draw", ["uniform", "bins"])
def test_a_seed_of_their_own_gives_all_seeds_the_same_angles(make_source, build_stream, draw):
    data = make_source()
    by_seed = [angles(build_stream(data, "rotation", seed, **DRAWN, angle_draw=draw)) for seed in (0, 1, 0)]
    assert by_seed[0] == by_seed[2] != by_seed[1]
    fixed = [angles(build_stream(data, "rotation", seed, **DRAWN, angle_draw=draw, angle_seed=1)) for seed in (0, 7)]
    assert fixed == [by_seed[1]] * 2


def test_the_stream_is_that_of_the_angles_it_has_drawn(make_source, build_stream):
    data = make_source()
    drawn = build_stream(data, "rotation", 3, **DRAWN, angle_draw="bins")
    listed = build_stream(data, "rotation", 3, angles=angles(drawn))
    assert drawn.hash == listed.hash
    shown = [stream.train.take(stream.train.ids(4))[0].numpy() for stream in (drawn, listed)]
    assert np.array_equal(*shown)


def test_a_task_has_its_angle_however_many_tasks_there_are(make_source, build_stream):
    data = make_source()
    few, many = (
        angles(build_stream(data, "rotation", **{**DRAWN, "n_tasks": n}, angle_draw="uniform")) for n in (3, 6)
    )
    assert few == many[:3]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"angles": [0.0, 90.0], "n_tasks": 2}, "scenario.n_tasks=2 is for angles that are drawn"),
        ({"angles": [0.0], "angle_seed": 0}, "scenario.angle_seed=0 is for angles that are drawn"),
        ({"angles": None}, "scenario.angles=null draws the angles: set scenario.n_tasks"),
        ({"angles": None, "n_tasks": 2, "angle_range": [0.0, 9.0]}, "scenario.angles=null draws the angles"),
        ({**DRAWN, "angle_draw": "bins", "angle_range": [90.0, 0.0]}, r"scenario.angle_range=\[90.0, 0.0\] has to be"),
        ({**DRAWN, "angle_draw": "bins", "angle_range": [0.0]}, r"scenario.angle_range=\[0.0\] has to be the lowest"),
        ({"angles": [0.0], "images_anew": True}, "scenario.images_anew=true draws scenario.images anew"),
    ],
)
def test_what_angles_are_drawn_from_is_given_whole_or_not_at_all(make_source, build_stream, options, sentence):
    with pytest.raises(ConfigError, match=sentence):
        build_stream(make_source(), "rotation", **options)


# ---- images -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "options"),
    [("rotation", {"angles": [0.0, 40.0, 90.0]}), ("permutation", {"n_tasks": 3, "identity_first": True})],
)
def test_every_task_draws_its_images_by_itself(make_source, build_stream, kind, options):
    data = make_source()  # 60 training images
    shared = build_stream(data, kind, images=20, **options)
    anew = build_stream(data, kind, images=20, images_anew=True, **options)
    assert images(shared, 0) == images(shared, 1) == images(shared, 2)
    assert images(anew, 0) == images(shared, 0)  # the first task is the same
    assert len({tuple(images(anew, task)) for task in range(3)}) == 3
    assert [len(set(images(anew, task))) for task in range(3)] == [20] * 3
    assert anew.hash != shared.hash
    for task in range(3):
        assert images(anew, task, "test") == images(shared, task, "test")


def test_over_the_tasks_all_images_are_drawn_about_equally_often(make_source, build_stream):
    data = make_source()
    stream = build_stream(data, "permutation", n_tasks=60, identity_first=False, images=20, images_anew=True)
    drawn, counts = np.unique([image for task in range(60) for image in images(stream, task)], return_counts=True)
    assert len(drawn) == 60  # of the source
    assert abs(counts - 20).max() < 4.5 * np.sqrt(60 * (1 / 3) * (2 / 3))


def test_which_images_are_drawn_is_a_matter_of_their_seed(make_source, build_stream):
    data = make_source()
    options = {"angles": [0.0, 90.0], "images": 20, "images_anew": True}
    one, other, fixed = (
        build_stream(data, "rotation", seed, **options, images_seed=own) for seed, own in ((0, None), (1, None), (1, 0))
    )
    assert images(fixed, 1) == images(one, 1) != images(other, 1)


def test_images_held_out_are_held_out_of_all_tasks(make_source, build_stream):
    data = make_source()
    stream = build_stream(
        data, "permutation", n_tasks=4, identity_first=True, images=30, images_anew=True, validation=0.3
    )
    trained_on = {image for task in range(4) for image in images(stream, task)}
    held_out = {image for task in range(4) for image in images(stream, task, "validation")}
    assert held_out
    assert not trained_on & held_out
    for task in range(4):
        assert len(images(stream, task)) + len(images(stream, task, "validation")) == 30
