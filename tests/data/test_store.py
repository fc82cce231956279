"""The Store: the same batches wherever the images are held."""

import numpy as np
import pytest
import torch
from PIL import Image

from clbench.data import store
from clbench.data.store import Store, shared_store
from clbench.errors import ConfigError

CPU = torch.device("cpu")
PLACEMENTS = ["device", "host", "mmap", "auto"]


@pytest.fixture
def mapped(tmp_path) -> np.memmap:
    pixels = np.random.default_rng(0).integers(0, 256, (50, 3, 4, 4), np.uint8)
    np.save(tmp_path / "pixels.npy", pixels)
    return np.load(tmp_path / "pixels.npy", mmap_mode="r")


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_every_placement_gives_the_same_batches(placement, mapped, recwarn):
    rows = torch.tensor([3, 3, 49, 0])
    held = Store(mapped, CPU, placement)
    batch = held.take(rows.to(held.index_device))
    assert batch.dtype == torch.uint8
    assert np.array_equal(batch.numpy(), mapped[rows.numpy()])
    assert len(held) == 50
    assert not recwarn.list


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_batches_are_copies(placement, mapped):
    held = Store(mapped, CPU, placement)
    batch = held.take(torch.tensor([0]))
    batch.zero_()
    assert np.array_equal(held.take(torch.tensor([0])).numpy(), mapped[:1])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_every_placement_gives_the_same_batches_on_cuda(placement, mapped):
    held = Store(mapped, torch.device("cuda"), placement)
    for seed in range(20):  # batches in quick succession, so that a buffer that is reused too early would show
        rows = torch.randint(0, 50, (64,), generator=torch.Generator().manual_seed(seed))
        batch = held.take(rows.to(held.index_device))
        assert batch.is_cuda
        assert np.array_equal(batch.cpu().numpy(), mapped[rows.numpy()])


def test_every_placement_trains_on_the_same_inputs(tmp_path, small_setup):
    """A stream of a folder of image files, built as a run builds it: equal inputs, and nothing is copied for mmap."""
    rng = np.random.default_rng(0)
    for label in "abcd":
        (tmp_path / "set" / label).mkdir(parents=True)
        for i in range(10):
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(tmp_path / "set" / label / f"{i}.png")
    inputs = {}
    for placement in PLACEMENTS:
        setup = small_setup(
            "strategy=finetune", "scenario.source=folder", "scenario.name=own", "scenario.frozen=null",
            "scenario.augment.crop_padding=1",
            f"data.root={tmp_path}", "data.folder=set", f"data.placement={placement}",
        )  # fmt: skip
        split = setup.scenario.train
        assert split.store.placement == (placement if placement != "auto" else "device")
        batches = [setup.inputs.training(split, split.ids(task), task, 5) for task in range(2)]
        batches.append(setup.inputs.plain(setup.scenario.test, torch.tensor([7, 0, 3])))
        inputs[placement] = batches
    for placement in PLACEMENTS[1:]:
        for ours, expected in zip(inputs[placement], inputs["device"], strict=True):
            assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_equally_many_training_and_test_images_of_one_file_are_two_stores(placement, mapped):
    """The parts of a memory map all name the offset of the whole file."""
    train, test = (shared_store(part, CPU, placement) for part in (mapped[:25], mapped[25:]))
    rows = torch.tensor([0, 24])
    assert np.array_equal(train.take(rows).numpy(), mapped[[0, 24]])
    assert np.array_equal(test.take(rows).numpy(), mapped[[25, 49]])
    assert shared_store(mapped[25:], CPU, placement) is test


def test_mmap_needs_a_file():
    with pytest.raises(ConfigError, match=r"data\.placement=mmap needs .* valid choices here: auto, device, host"):
        Store(np.zeros((2, 1, 2, 2), np.uint8), CPU, "mmap")


def test_auto_leaves_on_disk_what_does_not_fit(mapped, monkeypatch):
    assert Store(mapped, CPU, "auto").placement == "device"
    monkeypatch.setattr(store, "_free_host_memory", lambda: mapped.nbytes)
    assert Store(mapped, CPU, "auto").placement == "mmap"
    assert Store(np.array(mapped), CPU, "auto").placement == "device"  # it is in memory already
