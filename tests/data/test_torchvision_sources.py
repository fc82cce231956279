"""Sources that torchvision reads, on made-up files in the official layouts."""

import bz2
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision import datasets

from clbench.config import DataConfig
from clbench.errors import DataError
from clbench.registry import SOURCES


def config(root, **options) -> DataConfig:
    return DataConfig(root=str(root), download=False, **options)


def write_idx(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    header = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(header + array.astype(np.uint8).tobytes())


def write_kmnist(root: Path) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    pixels, labels = rng.integers(0, 256, (12, 28, 28), np.uint8), np.arange(12) % 10
    for part, n in (("train", 12), ("t10k", 10)):
        write_idx(root / "KMNIST" / "raw" / f"{part}-images-idx3-ubyte", pixels[:n])
        write_idx(root / "KMNIST" / "raw" / f"{part}-labels-idx1-ubyte", labels[:n])
    return pixels, labels


@pytest.mark.parametrize("folder", [None, "elsewhere"])
def test_mnist_family(tmp_path, folder):
    pixels, labels = write_kmnist(tmp_path / (folder or ""))
    data = SOURCES["kmnist"](config(tmp_path, folder=folder))
    assert np.array_equal(data.train.pixels[:, 0], pixels)
    assert np.array_equal(data.train.labels, labels)
    assert len(data.test) == 10
    assert data.class_names[1] == "ki"


@pytest.mark.parametrize("length", [0, 2, 10, 16, 1000])
@pytest.mark.parametrize("download", [False, True])
def test_truncated_idx_file(tmp_path, length, download):
    write_kmnist(tmp_path)
    file = tmp_path / "KMNIST" / "raw" / "train-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(DataError, match="the data of kmnist cannot be read from") as error:
        SOURCES["kmnist"](DataConfig(root=str(tmp_path), download=download))
    assert "\n" not in str(error.value)
    assert "download failed" not in str(error.value)


def write_cifar10(folder: Path) -> dict[str, np.ndarray]:
    folder.mkdir(parents=True)
    rng, written = np.random.default_rng(0), {}
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        written[name] = rng.integers(0, 256, (10, 3072), np.uint8)
        (folder / name).write_bytes(pickle.dumps({"data": written[name], "labels": list(range(10))}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    return written


def test_cifar10_in_another_folder(tmp_path):
    written = write_cifar10(tmp_path / "copy" / "cifar-10-batches-py")
    data = SOURCES["cifar10"](config(tmp_path, folder="copy"))
    assert data.class_names == list("abcdefghij")
    assert data.train.pixels.shape == (50, 3, 32, 32)
    assert np.array_equal(data.test.pixels, written["test_batch"].reshape(-1, 3, 32, 32))  # channels first, as stored


@pytest.mark.parametrize("content", [b"", b"\x80\x04", pickle.dumps({"data": 1}), pickle.dumps([1])])
def test_damaged_cifar_file(tmp_path, content):
    write_cifar10(tmp_path / "cifar-10-batches-py")
    (tmp_path / "cifar-10-batches-py" / "data_batch_2").write_bytes(content)
    with pytest.raises(DataError, match=r"the data of cifar10 cannot be read from .*cifar-10-batches-py \(damaged: "):
        SOURCES["cifar10"](config(tmp_path))


def test_svhn(tmp_path, monkeypatch):
    from scipy.io import savemat

    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3, 10), np.uint8)
    for name in ("train", "test"):
        savemat(tmp_path / f"{name}_32x32.mat", {"X": pixels, "y": np.arange(1, 11)[:, None]})
    without_md5 = {name: [url, file, None] for name, (url, file, _) in datasets.SVHN.split_list.items()}
    monkeypatch.setattr(datasets.SVHN, "split_list", without_md5)
    data = SOURCES["svhn"](config(tmp_path))
    assert np.array_equal(data.train.pixels, pixels.transpose(3, 2, 0, 1))
    assert data.train.labels.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]  # the file's label 10 is the digit 0


def test_usps(tmp_path):
    lines = "".join(
        f"{label + 1} " + " ".join(f"{i}:{-1 + label / 5}" for i in range(1, 257)) + "\n" for label in range(10)
    )
    for name in ("usps.bz2", "usps.t.bz2"):
        (tmp_path / name).write_bytes(bz2.compress(lines.encode()))
    data = SOURCES["usps"](config(tmp_path))
    assert data.train.pixels.shape == (10, 1, 16, 16)
    assert data.train.labels.tolist() == list(range(10))
    assert data.test.pixels[5].max() == 127
    (tmp_path / "usps.bz2").write_bytes(b"BZh9 but no more")
    with pytest.raises(DataError, match=r"usps\.bz2 \(damaged: "):
        SOURCES["usps"](config(tmp_path))


def test_gtsrb_in_torchvisions_layout(tmp_path, write_images):
    base = tmp_path / "gtsrb"
    for label in range(3):
        write_images(base / "GTSRB" / "Training" / f"{label:05d}", 2, size=(30 + label, 40), suffix="ppm", seed=label)
    write_images(base / "GTSRB" / "Final_Test" / "Images", 3, size=(50, 50), suffix="ppm")
    rows = "".join(f"{i:03d}.ppm;1;1;1;1;1;1;{2 - i}\n" for i in range(3))
    (base / "GT-final_test.csv").write_text("Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId\n" + rows)
    data = SOURCES["gtsrb"](config(tmp_path))
    assert data.train.pixels.shape == (6, 3, 32, 32)
    assert data.train.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert data.test.pixels.shape == (3, 3, 32, 32)
    assert data.test.labels.tolist() == [2, 1, 0]


def test_omniglot_split_by_drawer(tmp_path):
    rng = np.random.default_rng(0)
    for number, name in enumerate(["Greek/character01", "Greek/character02", "Avesta/character01"], start=965):
        folder = tmp_path / "omniglot-py" / "images_evaluation" / name
        folder.mkdir(parents=True)
        for drawer in range(1, 21):
            ink = np.full((10, 10), 255, np.uint8)
            ink[rng.integers(10), rng.integers(10)] = 0
            ink[0, 0] = drawer
            Image.fromarray(ink).save(folder / f"{number:04d}_{drawer:02d}.png")
    data = SOURCES["omniglot"](config(tmp_path))
    assert data.class_names == ["Avesta/character01", "Greek/character01", "Greek/character02"]
    assert data.superclass.tolist() == [0, 1, 1]
    assert np.bincount(data.train.labels).tolist() == [15] * 3
    assert sorted(255 - data.test.pixels[data.test.labels == 1][:, 0, 0, 0]) == [16, 17, 18, 19, 20]
    assert np.median(data.train.pixels) == 0  # paper is dark, ink is bright
