"""Folders of image files: what is train, what is test, decoding and its cache."""

import numpy as np
import pytest
from PIL import Image

from clbench.config import DataConfig
from clbench.data import decode
from clbench.errors import ConfigError, DataError
from clbench.registry import SOURCES


def config(root, **options) -> DataConfig:
    return DataConfig(root=str(root), download=False, **options)


def test_folder_without_a_split(tmp_path, write_images):
    for seed, name in enumerate(["cat", "ant"]):
        write_images(tmp_path / "animals" / name, 10, seed=seed)
    data = SOURCES["folder"](config(tmp_path, folder="animals", test_fraction=0.3))
    assert data.class_names == ["ant", "cat"]
    assert np.bincount(data.train.labels).tolist() == [7, 7]
    assert np.bincount(data.test.labels).tolist() == [3, 3]
    first = np.asarray(Image.open(tmp_path / "animals" / "ant" / "000.png")).transpose(2, 0, 1)
    assert any(np.array_equal(first, image) for image in data.train.pixels)


def test_folder_with_a_split_and_other_sizes(tmp_path, write_images):
    for part in ("train", "val"):
        write_images(tmp_path / "set" / part / "a", 3, size=(12, 8))
        write_images(tmp_path / "set" / part / "b", 2, size=(8, 8))
    with pytest.raises(DataError, match=r"set scenario\.image_size"):
        SOURCES["folder"](config(tmp_path, folder="set"))
    data = SOURCES["folder"](config(tmp_path, folder="set", image_size=6))
    assert data.train.pixels.shape == (5, 3, 6, 6)
    assert data.test.labels.tolist() == [0, 0, 0, 1, 1]


def test_both_splits_get_one_size(tmp_path, write_images):
    """The test images are squares of one size, the training images are not."""
    write_images(tmp_path / "set" / "train" / "a", 2, size=(12, 8))
    write_images(tmp_path / "set" / "test" / "a", 2, size=(8, 8))
    data = SOURCES["folder"](config(tmp_path, folder="set", image_size=6))
    assert data.train.pixels.shape == data.test.pixels.shape == (2, 3, 6, 6)


def test_squares_of_one_size_are_kept_for_the_content_hash(tmp_path, write_images):
    """Whatever size a run asks for, the images that are verified are those in the files."""
    write_images(tmp_path / "set" / "a", 4)
    hashes = {
        SOURCES["folder"](config(tmp_path, folder="set", test_fraction=0.25, image_size=size)).train.content_hash
        for size in (None, 6, 8, 12)
    }
    assert len(hashes) == 1


def test_the_shorter_side_is_scaled_and_the_centre_cut_out(tmp_path):
    """Left, middle and right thirds of a wide image in three colours: only the middle one is left."""
    wide = np.repeat(np.array([[10, 20, 30], [40, 50, 60], [70, 80, 90]], np.uint8), 20, axis=0)[None].repeat(20, 0)
    for name, image in (("a", wide), ("b", wide.transpose(1, 0, 2))):
        (tmp_path / "set" / name).mkdir(parents=True)
        for i in range(2):
            Image.fromarray(image).save(tmp_path / "set" / name / f"{i}.png")
    all_alike = config(tmp_path, folder="set", test_fraction=0.5, image_size=10, duplicates="keep")
    data = SOURCES["folder"](all_alike)
    assert data.train.pixels.shape == (2, 3, 10, 10)
    assert (data.train.pixels[:, :, 1:-1, 1:-1] == np.array([40, 50, 60])[None, :, None, None]).all()


def test_folder_needs_a_name_and_equal_classes(tmp_path, write_images):
    with pytest.raises(ConfigError, match=r"scenario\.source=folder needs data\.folder"):
        SOURCES["folder"](config(tmp_path))
    write_images(tmp_path / "set" / "train" / "a", 2)
    write_images(tmp_path / "set" / "test" / "b", 2)
    with pytest.raises(DataError, match="differ: a, b"):
        SOURCES["folder"](config(tmp_path, folder="set"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no images"):
        SOURCES["folder"](config(tmp_path, folder="empty"))


def test_decoded_once_and_again_when_a_file_changes(tmp_path, monkeypatch, write_images):
    write_images(tmp_path / "set" / "a", 4)
    with pytest.raises(DataError, match=r"no class of .*set has enough images"):
        SOURCES["folder"](config(tmp_path, folder="set"))
    load = lambda: SOURCES["folder"](config(tmp_path, folder="set", test_fraction=0.25))  # noqa: E731
    first = load()
    assert isinstance(first.train.pixels, np.memmap)
    [cache] = (tmp_path / decode.CACHE_FOLDER).iterdir()
    assert cache.suffix == ".npy"
    with monkeypatch.context() as patch:
        patch.setattr(decode, "_decode", None)  # so that decoding would fail
        assert load().train.content_hash == first.train.content_hash
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "set" / "a" / "000.png", compress_level=0)
    assert load().train.content_hash != first.train.content_hash


def test_nothing_unfinished_is_left_behind(tmp_path, monkeypatch, write_images):
    monkeypatch.setattr(decode, "DECODED_AT_ONCE", 2)
    write_images(tmp_path / "set" / "a", 5)
    (tmp_path / "set" / "a" / "004.png").write_bytes(b"not an image")
    with pytest.raises(DataError, match=r"004\.png cannot be decoded"):
        SOURCES["folder"](config(tmp_path, folder="set", test_fraction=0.5))
    assert list((tmp_path / decode.CACHE_FOLDER).iterdir()) == []


def test_cache_of_a_root_that_cannot_be_written(tmp_path, monkeypatch, write_images):
    write_images(tmp_path / "data" / "set" / "a", 4)
    monkeypatch.setattr(decode.os, "access", lambda folder, _: tmp_path / "cache" in folder.parents)
    monkeypatch.setattr(decode, "user_cache_path", lambda _name: tmp_path / "cache")
    SOURCES["folder"](config(tmp_path / "data", folder="set", test_fraction=0.25))
    assert len(list((tmp_path / "cache" / "decoded").iterdir())) == 1


def test_unreadable_image_is_named(tmp_path, write_images):
    write_images(tmp_path / "set" / "a", 2)
    (tmp_path / "set" / "a" / "001.png").write_bytes(b"not an image")
    with pytest.raises(DataError, match=r"001\.png cannot be decoded"):
        SOURCES["folder"](config(tmp_path, folder="set", test_fraction=0.5))


# ---- lists of files -------------------------------------------------------------------------------------------------------


def write_lists(root, **lists):
    for split, lines in lists.items():
        (root / f"{split}.txt").write_text("".join(f"{line}\n" for line in lines))


def first_pixels(root, names) -> list[int]:
    """The first red value of image files, which tells random images of one test apart."""
    return [int(np.asarray(Image.open(root / name))[0, 0, 0]) for name in names]


def test_lists_say_which_image_is_in_which_split(tmp_path, write_images):
    root = tmp_path / "set"
    for seed, name in enumerate(["bee", "ant"]):
        write_images(root / name, 3, seed=seed)
    Image.open(root / "ant" / "002.png").save(root / "ant" / "ant _ 2.png")  # ImageNet-A's names hold spaces
    train, test = ["bee/002.png", "ant/001.png", "ant/ant _ 2.png"], ["bee/000.png"]
    write_lists(root, train=train, test=test)
    data = SOURCES["folder"](config(tmp_path, folder="set"))
    assert data.class_names == ["ant", "bee"]
    assert data.train.labels.tolist() == [0, 0, 1]
    assert data.train.pixels[:, 0, 0, 0].tolist() == first_pixels(root, [*train[1:], train[0]])
    assert data.test.labels.tolist() == [1]
    assert data.test.pixels[:, 0, 0, 0].tolist() == first_pixels(root, test)
    assert data.note == ""


def test_lists_may_number_the_classes(tmp_path, write_images):
    root = tmp_path / "set"
    for seed, name in enumerate(["ant", "bee"]):
        write_images(root / name, 2, seed=seed)
    write_lists(root, train=["ant/000.png 2", "bee/000.png 0"], test=["ant/001.png 2", "bee/001.png 0"])
    data = SOURCES["folder"](config(tmp_path, folder="set"))
    assert data.class_names == ["bee", "ant"]  # no image has number 1, so that it is no class
    assert data.train.labels.tolist() == data.test.labels.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        (["ant/000.png"], None, r"are not at .*test\.txt: put the list of that split's images"),
        (["ant/000.png"], [], r"test\.txt names no images"),
        (["ant/000.png", "ant/001.png"], ["ant/001.png"], r"both name .*001\.png"),
        (["ant/000.png 0"], ["ant/001.png"], "number the classes of some images and not of others"),
        (["ant/000.png"], ["ant/009.png"], r"names 1 of 1 images that are not below .*set, such as 'ant/009\.png'"),
    ],
)
def test_lists_that_make_no_split(train, test, message, tmp_path, write_images):
    write_images(tmp_path / "set" / "ant", 2)
    write_lists(tmp_path / "set", train=train, **({} if test is None else {"test": test}))
    with pytest.raises(DataError, match=message):
        SOURCES["folder"](config(tmp_path, folder="set"))


@pytest.mark.parametrize(("source", "folder"), [("imagenet_r", "imagenet-r"), ("imagenet_a", "imagenet-a")])
def test_the_split_of_imagenet_r_and_a(source, folder, tmp_path, write_images):
    """A fifth is held out, and that is noted; lists come before that, and train/ and test/ before lists."""
    root = tmp_path / folder
    for seed, wnid in enumerate(["n02", "n01"]):
        write_images(root / wnid, 5, seed=seed)
    held_out = SOURCES[source](config(tmp_path))
    assert held_out.class_names == ["n01", "n02"]
    assert held_out.test.labels.tolist() == [0, 1]
    assert held_out.test.pixels[:, 0, 0, 0].tolist() == first_pixels(root, ["n01/004.png", "n02/004.png"])
    assert (
        held_out.note
        == f"{folder} came without a split: data.test_fraction=0.2 of every class is held out as test data"
    )
    write_lists(root, train=["n01/000.png", "n02/001.png"], test=["n01/002.png"])
    listed = SOURCES[source](config(tmp_path))
    assert (listed.train.labels.tolist(), listed.test.labels.tolist(), listed.note) == ([0, 1], [0], "")
    for part in ("train", "test"):
        write_images(root / part / "n07", 3)
    assert SOURCES[source](config(tmp_path)).class_names == ["n07"]


def test_cub200_layout(tmp_path, write_images):
    """The numbers of the images, not their order in the lists, say what belongs together."""
    root = tmp_path / "CUB_200_2011"
    for seed, name in enumerate(["001.Albatross", "002.Ani"]):
        write_images(root / "images" / name, 2, size=(12, 10), seed=seed)
    paths = ["001.Albatross/000.png", "001.Albatross/001.png", "002.Ani/000.png", "002.Ani/001.png"]
    write_lists(root, images=[f"{i} {path}" for i, path in enumerate(paths, start=1)])
    write_lists(root, train_test_split=["4 1", "3 0", "1 1", "2 0"])
    data = SOURCES["cub200"](config(tmp_path, image_size=6))
    assert data.class_names == ["001.Albatross", "002.Ani"]
    assert data.train.labels.tolist() == data.test.labels.tolist() == [0, 1]
    squares = SOURCES["folder"](config(tmp_path, folder="CUB_200_2011/images", test_fraction=0.5, image_size=6))
    assert np.array_equal(data.train.pixels, [squares.train.pixels[0], squares.test.pixels[1]])  # images 1 and 4
    assert np.array_equal(data.test.pixels, [squares.test.pixels[0], squares.train.pixels[1]])
    write_lists(root, train_test_split=["4 1", "3 0", "1 1"])
    with pytest.raises(DataError, match=r"image 2 is in only one of .*images\.txt and .*train_test_split\.txt"):
        SOURCES["cub200"](config(tmp_path))


def test_domainnet_200_pools_the_domains(tmp_path, write_images):
    root = tmp_path / "domainnet"
    for seed, domain in enumerate(["sketch", "real"]):
        write_images(root / domain / "bee", 2, seed=seed)
        write_images(root / domain / "ant", 2, seed=seed + 2)
    numbered = {"bee": 0, "ant": 1}
    rows = {
        i: [f"{d}/{n}/{i}.png {c}" for d in ("sketch", "real") for n, c in numbered.items()] for i in ("000", "001")
    }
    with pytest.raises(DataError, match=r"are not at .*train\.txt"):
        SOURCES["domainnet_200"](config(tmp_path))
    write_lists(root, train=rows["000"], test=rows["001"])
    data = SOURCES["domainnet_200"](config(tmp_path))
    assert data.class_names == ["bee", "ant"]
    assert data.train.domains is None
    assert data.train.labels.tolist() == data.test.labels.tolist() == [1, 0, 1, 0]


# ---- sources of their own -------------------------------------------------------------------------------------------------


def test_tiny_imagenet_layout(tmp_path, write_images):
    root = tmp_path / "tiny-imagenet-200"
    for wnid in ("n02", "n01"):
        write_images(root / "train" / wnid / "images", 3)
    write_images(root / "val" / "images", 2)
    (root / "val" / "val_annotations.txt").write_text("000.png\tn02\t0\t0\t9\t9\n001.png\tn01\t0\t0\t9\t9\n")
    data = SOURCES["tiny_imagenet"](config(tmp_path))
    assert data.class_names == ["n01", "n02"]
    assert data.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert data.test.labels.tolist() == [1, 0]


def test_domainnet_layout(tmp_path, write_images):
    root = tmp_path / "domainnet"
    for domain in ("sketch", "real"):
        for label, name in enumerate(["ant", "bee"]):
            write_images(root / domain / name, 3, size=(10, 9), seed=label)
        rows = [f"{domain}/{name}/{i:03d}.png {label}" for label, name in enumerate(["ant", "bee"]) for i in range(3)]
        (root / f"{domain}_train.txt").write_text("\n".join(row for row in rows if "002" not in row))
        (root / f"{domain}_test.txt").write_text("\n".join(row for row in rows if "002" in row))
    data = SOURCES["domainnet"](config(tmp_path, image_size=8))
    assert data.domain_names == ["real", "sketch"]
    assert data.class_names == ["ant", "bee"]
    assert data.train.domains.tolist() == [0] * 4 + [1] * 4
    assert data.test.labels.tolist() == [0, 1, 0, 1]


def test_listed_images_have_to_exist(tmp_path, write_images):
    root = tmp_path / "domainnet"
    write_images(root / "real" / "ant", 2)
    (root / "real_train.txt").write_text("real/ant/000.png 0\n")
    (root / "real_test.txt").write_text("real/ant/999.png 0\n")
    with pytest.raises(DataError, match=r"names 1 of 1 images that are not below .*999\.png"):
        SOURCES["domainnet"](config(tmp_path))


def test_mini_imagenet_layout(tmp_path, write_images):
    for part, name, size in (("train", "n2", (90, 100)), ("test", "n1", (84, 84))):
        write_images(tmp_path / "miniimagenet" / part / name, 12, size=size)
    data = SOURCES["mini_imagenet"](config(tmp_path))
    assert data.class_names == ["n1", "n2"]
    assert (len(data.train), len(data.test)) == (20, 4)
    assert data.train.pixels.shape[1:] == (3, 84, 84)
    originals = [Image.open(tmp_path / "miniimagenet" / "test" / "n1" / f"{i:03d}.png") for i in (5, 11)]
    expected = np.stack([np.asarray(image).transpose(2, 0, 1) for image in originals])
    assert np.array_equal(data.test.pixels[data.test.labels == 0], expected)
    write_images(tmp_path / "miniimagenet" / "val" / "n1", 12)
    with pytest.raises(DataError, match="the class n1 is in more than one of train, val, test"):
        SOURCES["mini_imagenet"](config(tmp_path))


def test_pacs_layout(tmp_path, write_images):
    for seed, domain in enumerate(["art_painting", "cartoon", "photo", "sketch"]):
        for name in ("dog", "cat"):
            write_images(tmp_path / "PACS" / domain / name, 10, seed=seed)
    data = SOURCES["pacs"](config(tmp_path))
    assert data.class_names == ["cat", "dog"]
    assert np.bincount(data.train.domains * 2 + data.train.labels).tolist() == [9] * 8
    assert np.bincount(data.test.domains * 2 + data.test.labels).tolist() == [1] * 8
    last = np.asarray(Image.open(tmp_path / "PACS" / "sketch" / "dog" / "009.png")).transpose(2, 0, 1)
    assert np.array_equal(data.test.pixels[(data.test.domains == 3) & (data.test.labels == 1)][0], last)
    write_images(tmp_path / "PACS" / "sketch" / "horse", 10)
    with pytest.raises(DataError, match="sketch differ: horse"):
        SOURCES["pacs"](config(tmp_path))
