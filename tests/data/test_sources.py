"""Sources: read, verified by content, and missing data answered with what belongs where."""

import numpy as np
import pytest
from PIL import Image

from clbench.config import DataConfig
from clbench.data.images import ImageSet, SourceData, content_hash
from clbench.data.location import verified
from clbench.errors import DataError
from clbench.registry import SOURCES


def config(root, **options) -> DataConfig:
    return DataConfig(root=str(root), download=False, **options)


def digits() -> SourceData:
    return SOURCES["digits"](DataConfig())


def test_digits_are_the_ones_that_ship_with_scikit_learn():
    from sklearn.datasets import load_digits

    data = digits()
    assert len(data.train) + len(data.test) == 1797
    assert np.bincount(data.test.labels).min() >= 34
    total = int(data.train.pixels.astype(int).sum() + data.test.pixels.astype(int).sum())
    assert total == int(np.round(load_digits().images * 255 / 16).sum())
    assert data.mean[0] == pytest.approx((data.train.pixels / 255).mean(), abs=1e-3)
    assert data.std[0] == pytest.approx((data.train.pixels / 255).std(), abs=1e-3)


# ---- content hashes -------------------------------------------------------------------------------------------------------


def altered(change) -> SourceData:
    """Digits with the training split passed through ``change(pixels, labels)``."""
    data = digits()
    pixels, labels = change(data.train.pixels.copy(), data.train.labels.copy())
    return SourceData(ImageSet(pixels, labels), data.test, data.class_names, data.mean, data.std)


def one_pixel(pixels, labels):
    pixels[700, 0, 3, 3] ^= 1
    return pixels, labels


def one_label(pixels, labels):
    labels[700] = (labels[700] + 1) % 10
    return pixels, labels


def one_missing(pixels, labels):
    return pixels[1:], labels[1:]


def one_doubled(pixels, labels):
    pixels[0], labels[0] = pixels[1], labels[1]
    return pixels, labels


@pytest.mark.parametrize("damage", [one_pixel, one_label, one_missing, one_doubled])
def test_damaged_copy_is_refused(damage):
    with pytest.raises(DataError, match="the train images of digits are damaged or not the official ones"):
        verified("digits", altered(damage))


def test_repacked_copy_is_accepted():
    order = np.random.default_rng(0).permutation(1442)
    verified("digits", altered(lambda pixels, labels: (pixels[order], labels[order])))


def test_hash_of_a_subset_is_the_sum_over_it():
    images = digits().train
    half = len(images) // 2
    total = int(content_hash(images.digests), 16)
    parts = [int(content_hash(images.digests[part]), 16) for part in (slice(None, half), slice(half, None))]
    lanes = [sum(p >> 64 for p in parts) % 2**64, sum(p % 2**64 for p in parts) % 2**64]
    assert total == (lanes[0] << 64) + lanes[1]


def test_hash_depends_on_the_shape():
    pixels, labels = np.zeros((2, 1, 4, 4), np.uint8), np.zeros(2, np.int64)
    assert ImageSet(pixels, labels).content_hash != ImageSet(pixels.reshape(2, 1, 2, 8), labels).content_hash


# ---- missing --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", [n for n in SOURCES.names() if n not in ("digits", "folder") and not n.startswith("random")]
)
def test_missing_data_say_what_belongs_where(name, tmp_path):
    with pytest.raises(DataError) as error:
        SOURCES[name](config(tmp_path))
    sentence = str(error.value)
    assert str(tmp_path) in sentence
    assert "put " in sentence
    assert "\n" not in sentence


def test_failed_download_is_part_of_the_sentence(tmp_path, monkeypatch):
    def no_network(*_arguments, **_options):
        raise OSError("network is unreachable\nand more")

    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", no_network)
    with pytest.raises(DataError) as error:
        SOURCES["mnist"](DataConfig(root=str(tmp_path)))
    assert "the download failed" in str(error.value)
    assert "\n" not in str(error.value)


# ---- folders --------------------------------------------------------------------------------------------------------------


def write_images(folder, count, size=(8, 8), seed=0):
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    for i in range(count):
        Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(folder / f"{i:03d}.png")


def test_folder_without_a_split(tmp_path):
    for seed, name in enumerate(["cat", "ant"]):
        write_images(tmp_path / "animals" / name, 10, seed=seed)
    data = SOURCES["folder"](config(tmp_path, folder="animals", test_fraction=0.3))
    assert data.class_names == ["ant", "cat"]
    assert np.bincount(data.train.labels).tolist() == [7, 7]
    assert np.bincount(data.test.labels).tolist() == [3, 3]
    first = np.asarray(Image.open(tmp_path / "animals" / "ant" / "000.png")).transpose(2, 0, 1)
    assert any(np.array_equal(first, image) for image in data.train.pixels)


def test_folder_with_a_split_and_other_sizes(tmp_path):
    for part in ("train", "val"):
        write_images(tmp_path / "set" / part / "a", 3, size=(12, 8))
        write_images(tmp_path / "set" / part / "b", 2, size=(8, 8))
    with pytest.raises(DataError, match=r"set scenario\.image_size"):
        SOURCES["folder"](config(tmp_path, folder="set"))
    data = SOURCES["folder"](config(tmp_path, folder="set", image_size=6))
    assert data.train.pixels.shape == (5, 3, 6, 6)
    assert data.test.labels.tolist() == [0, 0, 0, 1, 1]


def test_decoded_once_and_again_when_a_file_changes(tmp_path):
    write_images(tmp_path / "set" / "a", 4)
    with pytest.raises(DataError, match="no class of set has enough images"):
        SOURCES["folder"](config(tmp_path, folder="set"))
    load = lambda: SOURCES["folder"](config(tmp_path, folder="set", test_fraction=0.25))  # noqa: E731
    first = load()
    caches = sorted((tmp_path / ".clbench-cache").iterdir())
    assert {c.suffix for c in caches} == {".npy"}
    load()
    assert sorted((tmp_path / ".clbench-cache").iterdir()) == caches
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "set" / "a" / "000.png", compress_level=0)
    assert load().train.content_hash != first.train.content_hash


def test_unreadable_image_is_named(tmp_path):
    write_images(tmp_path / "set" / "a", 2)
    (tmp_path / "set" / "a" / "001.png").write_bytes(b"not an image")
    with pytest.raises(DataError, match=r"001\.png cannot be decoded"):
        SOURCES["folder"](config(tmp_path, folder="set", test_fraction=0.5))


def test_tiny_imagenet_layout(tmp_path):
    root = tmp_path / "tiny-imagenet-200"
    for wnid in ("n02", "n01"):
        write_images(root / "train" / wnid / "images", 3)
    write_images(root / "val" / "images", 2)
    (root / "val" / "val_annotations.txt").write_text("000.png\tn02\t0\t0\t9\t9\n001.png\tn01\t0\t0\t9\t9\n")
    data = SOURCES["tiny_imagenet"](config(tmp_path))
    assert data.class_names == ["n01", "n02"]
    assert data.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert data.test.labels.tolist() == [1, 0]


def test_domainnet_layout(tmp_path):
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


def test_mini_imagenet_layout(tmp_path):
    for part, name in (("train", "n2"), ("test", "n1")):
        write_images(tmp_path / "miniimagenet" / part / name, 12)
    data = SOURCES["mini_imagenet"](config(tmp_path))
    assert data.class_names == ["n1", "n2"]
    assert (len(data.train), len(data.test)) == (20, 4)
    assert data.train.pixels.shape[1:] == (3, 84, 84)


# ---- real data ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "folder", "sizes", "shape", "note"),
    [
        ("mnist", None, (60_000, 10_000), (1, 28, 28), ""),
        ("fashion_mnist", None, (60_000, 10_000), (1, 28, 28), ""),
        ("cifar100", None, (50_000, 10_000), (3, 32, 32), ""),
        ("cifar10", "cifar10_small", (5_000, 1_000), (3, 32, 32), "subset"),
        ("gtsrb", "GTSRB32", (6_450, 2_580), (3, 32, 32), "subset"),
        ("pacs", "PACS64", (9_005, 986), (3, 64, 64), "resized"),
        ("omniglot", None, (9_885, 3_295), (1, 28, 28), ""),
    ],
)
def test_real_data(name, folder, sizes, shape, note, real_data):
    try:
        data = SOURCES[name](config(real_data, folder=folder))
    except DataError as missing:
        pytest.skip(str(missing))
    assert (len(data.train), len(data.test)) == sizes
    assert data.train.pixels.shape[1:] == shape
    assert note in data.note
    assert bool(note) == bool(data.note)
    assert set(np.unique(data.train.labels)) == set(range(len(data.class_names)))


def test_superclasses_of_cifar100(real_data):
    data = SOURCES["cifar100"](config(real_data))
    assert np.bincount(data.superclass).tolist() == [5] * 20
    members = {
        data.class_names[c] for c in np.flatnonzero(data.superclass == data.superclass[data.class_names.index("shark")])
    }
    assert members == {"aquarium_fish", "flatfish", "ray", "shark", "trout"}


def test_statistics_of_cifar100_are_those_of_the_pixels(real_data):
    data = SOURCES["cifar100"](config(real_data))
    assert data.mean == pytest.approx((data.train.pixels / 255).mean((0, 2, 3)), abs=1e-3)
    assert data.std == pytest.approx((data.train.pixels / 255).std((0, 2, 3)), abs=1e-3)
