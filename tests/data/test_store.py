"""The Store: the same batches wherever the images are held."""

import numpy as np
import pytest
import torch

from clbench.data import store
from clbench.data.store import Store
from clbench.errors import ConfigError

CPU = torch.device("cpu")


@pytest.fixture
def mapped(tmp_path) -> np.memmap:
    pixels = np.random.default_rng(0).integers(0, 256, (50, 3, 4, 4), np.uint8)
    np.save(tmp_path / "pixels.npy", pixels)
    return np.load(tmp_path / "pixels.npy", mmap_mode="r")


@pytest.mark.parametrize("placement", ["device", "host", "mmap", "auto"])
def test_every_placement_gives_the_same_batches(placement, mapped):
    rows = torch.tensor([3, 3, 49, 0])
    held = Store(mapped, CPU, placement)
    batch = held.take(rows.to(held.index_device))
    assert batch.dtype == torch.uint8
    assert np.array_equal(batch.numpy(), mapped[rows.numpy()])
    assert len(held) == 50


def test_batches_are_copies(mapped):
    held = Store(mapped, CPU, "device")
    batch = held.take(torch.tensor([0]))
    batch.zero_()
    assert np.array_equal(held.take(torch.tensor([0])).numpy(), mapped[:1])


def test_mmap_needs_a_file():
    with pytest.raises(ConfigError, match=r"data\.placement=mmap"):
        Store(np.zeros((2, 1, 2, 2), np.uint8), CPU, "mmap")


def test_auto_leaves_on_disk_what_does_not_fit(mapped, monkeypatch):
    assert Store(mapped, CPU, "auto").placement == "device"
    monkeypatch.setattr(store, "_free_host_memory", lambda: mapped.nbytes)
    assert Store(mapped, CPU, "auto").placement == "mmap"
