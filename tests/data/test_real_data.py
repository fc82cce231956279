"""The real data sets, where there are any: read, recognised by content, refused when damaged."""

from pathlib import Path

import numpy as np
import pytest

from clbench.config import DataConfig
from clbench.errors import DataError
from clbench.registry import SOURCES


def config(root, **options) -> DataConfig:
    return DataConfig(root=str(root), download=False, **options)


@pytest.mark.parametrize(
    ("name", "folder", "sizes", "shape", "note"),
    [
        ("mnist", None, (60_000, 10_000), (1, 28, 28), ""),
        ("fashion_mnist", None, (60_000, 10_000), (1, 28, 28), ""),
        ("cifar100", None, (50_000, 10_000), (3, 32, 32), ""),
        ("cifar10", "cifar10_small", (5_000, 1_000), (3, 32, 32), "subset"),
        ("cifar10", "cifar10_lossy", (50_000, 10_000), (3, 32, 32), "approximate pixels"),
        ("gtsrb", "GTSRB32", (6_450, 2_580), (3, 32, 32), "subset"),
        ("pacs", "PACS64", (9_005, 986), (3, 64, 64), "resized"),
        ("omniglot", None, (9_885, 3_295), (1, 105, 105), ""),
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


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar100", "omniglot"])
def test_statistics_are_those_of_the_training_pixels(name, real_data):
    data = SOURCES[name](config(real_data))
    levels = np.arange(256) / 255
    for channel, (mean, std) in enumerate(zip(data.mean, data.std, strict=True)):
        frequencies = np.bincount(data.train.pixels[:, channel].ravel(), minlength=256)
        assert mean == pytest.approx(np.average(levels, weights=frequencies), abs=2e-4)
        assert std == pytest.approx(np.average((levels - mean) ** 2, weights=frequencies) ** 0.5, abs=2e-4)


def copied_mnist(real_data: Path, folder: Path) -> Path:
    (folder / "MNIST" / "raw").mkdir(parents=True)
    for file in (real_data / "MNIST" / "raw").glob("*-ubyte"):
        (folder / "MNIST" / "raw" / file.name).write_bytes(file.read_bytes())
    return folder / "MNIST" / "raw"


def test_one_changed_pixel_of_mnist_is_refused(real_data, tmp_path):
    file = copied_mnist(real_data, tmp_path) / "t10k-images-idx3-ubyte"
    content = bytearray(file.read_bytes())
    content[3_000_000] ^= 1
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"the test images of mnist at .*raw are damaged") as error:
        SOURCES["mnist"](config(tmp_path))
    assert "\n" not in str(error.value)


def test_mnist_in_another_order_is_accepted(real_data, tmp_path):
    raw = copied_mnist(real_data, tmp_path)
    order = np.random.default_rng(0).permutation(10_000)
    for name, header, shape in (
        ("t10k-images-idx3-ubyte", 16, (10_000, 784)),
        ("t10k-labels-idx1-ubyte", 8, (10_000,)),
    ):
        content = (raw / name).read_bytes()
        shuffled = np.frombuffer(content, np.uint8, offset=header).reshape(shape)[order]
        (raw / name).write_bytes(content[:header] + shuffled.tobytes())
    assert SOURCES["mnist"](config(tmp_path)).note == ""
