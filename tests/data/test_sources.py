"""Content hashes: a damaged copy is refused, a repacked one is not. Missing data: the sentence says what belongs where."""

import numpy as np
import pytest

from clbench.config import DataConfig
from clbench.data.images import ImageSet, SourceData, content_hash
from clbench.data.location import data_root, verified
from clbench.errors import ConfigError, DataError
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
    with pytest.raises(
        DataError, match=r"the train images of digits at here are damaged or not the official ones.* expected 993bb8"
    ):
        verified("digits", altered(damage), "here")


def test_damaged_texts_are_not_called_images():
    texts = ImageSet(np.zeros((2, 8), np.int32), np.array([0, 1]))
    with pytest.raises(DataError, match="the train texts of clinc150 at here are damaged"):
        verified("clinc150", SourceData(texts, texts, ["a", "b"], (), ()), "here")


def test_repacked_copy_is_accepted():
    order = np.random.default_rng(0).permutation(1442)
    assert verified("digits", altered(lambda pixels, labels: (pixels[order], labels[order])), "here").note == ""


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


# ---- missing and damaged --------------------------------------------------------------------------------------------------

FOLDERS = (
    "tiny_imagenet", "mini_imagenet", "imagenet_r", "imagenet_a", "cub200", "domainnet", "domainnet_200", "pacs",
)  # fmt: skip
FETCHED = ("mnist", "fashion_mnist", "kmnist", "emnist", "svhn", "usps", "cifar10", "cifar100", "gtsrb", "omniglot")


@pytest.mark.parametrize("name", FOLDERS + FETCHED)
def test_missing_data_say_what_belongs_where(name, tmp_path):
    with pytest.raises(DataError) as error:
        SOURCES[name](config(tmp_path))
    sentence = str(error.value)
    assert str(tmp_path) in sentence
    assert "put " in sentence
    assert "\n" not in sentence
    assert ("data.download=false" in sentence) == (name in FETCHED)


@pytest.mark.parametrize("name", FETCHED)
def test_failed_download_is_part_of_the_sentence(name, tmp_path, monkeypatch):
    def no_network(*_arguments, **_options):
        raise OSError("network is unreachable\nand more")

    for module in ("mnist", "cifar", "gtsrb", "omniglot"):
        monkeypatch.setattr(f"torchvision.datasets.{module}.download_and_extract_archive", no_network)
    for module in ("svhn", "usps"):
        monkeypatch.setattr(f"torchvision.datasets.{module}.download_url", no_network)
    with pytest.raises(DataError) as error:
        SOURCES[name](DataConfig(root=str(tmp_path)))
    assert "(the download failed: " in str(error.value)
    assert "network is unreachable and more): put " in str(error.value)
    assert "\n" not in str(error.value)


def test_root_is_the_option_else_the_environment_else_a_cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("CLBENCH_DATA", str(tmp_path / "environment"))
    assert data_root(DataConfig(root=str(tmp_path))) == tmp_path
    assert data_root(DataConfig()) == tmp_path / "environment"
    monkeypatch.delenv("CLBENCH_DATA")
    assert "clbench" in str(data_root(DataConfig()))


def test_image_size_is_the_scenarios(small_setup):
    with pytest.raises(ConfigError, match=r"set scenario\.image_size instead"):
        small_setup("data.image_size=32")
