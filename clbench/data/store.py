"""Where decoded images live, and how a batch is taken from them.

A data set is decoded once; a batch is ``store.take(rows)``. The three placements differ only in where the uint8 images
are held: on the training device, in host memory, or in a memory-mapped file. From the latter two a batch is collected in
page-locked memory, from where it is copied to a CUDA device while the host goes on.
"""

import hashlib
import warnings
from weakref import WeakValueDictionary

import numpy as np
import psutil
import torch
from torch import Tensor

from clbench.errors import ConfigError

FRACTION_OF_DEVICE_MEMORY = 0.5
FRACTION_OF_HOST_MEMORY = 0.7


class Store:
    """uint8 images (N, C, H, W) on the device, on the host or memory-mapped.

    Args:
        pixels: uint8 array (N, C, H, W).
        device: the training device, where batches are wanted.
        placement: ``device``, ``host``, ``mmap`` or ``auto`` (device if it fits, else host, else mmap).

    Raises:
        ConfigError: ``mmap`` is asked for, and the images are not in a file of their own.
    """

    def __init__(self, pixels: np.ndarray, device: torch.device, placement: str = "auto") -> None:
        self.device = device
        self.placement = _choose_placement(pixels, device) if placement == "auto" else placement
        if self.placement == "mmap":
            if not isinstance(pixels, np.memmap):
                raise ConfigError(
                    "data.placement=mmap needs images that were decoded from image files and are used as they are there, "
                    "neither resized nor rotated; valid choices here: auto, device, host"
                )
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # that the array is read-only: nothing writes to it
                self._pixels = torch.from_numpy(pixels)
        else:
            self._pixels = torch.from_numpy(np.array(pixels))  # a private, writable copy in memory
            if self.placement == "device":
                self._pixels = self._pixels.to(device)
        self.shape, self.dtype = tuple(pixels.shape), self._pixels.dtype

    def __len__(self) -> int:
        return self.shape[0]

    def take(self, rows: Tensor) -> Tensor:
        """The images at ``rows``, uint8 (len(rows), C, H, W) on the device.

        ``rows`` lies where the images do: on the device for placement ``device``, else on the host.
        """
        if self.placement == "device" or self.device.type == "cpu":
            return self._pixels.index_select(0, rows)
        batch = torch.empty((len(rows), *self.shape[1:]), dtype=self._pixels.dtype, pin_memory=True)
        torch.index_select(self._pixels, 0, rows, out=batch)
        return batch.to(self.device, non_blocking=True)

    @property
    def samples(self) -> Tensor:
        """All of them, (N, …), wherever they are held."""
        return self._pixels

    @property
    def index_device(self) -> torch.device:
        """Where ``rows`` for :meth:`take` have to lie."""
        return self.device if self.placement == "device" else torch.device("cpu")


_STORES: WeakValueDictionary[tuple, Store] = WeakValueDictionary()


def shared_store(pixels: np.ndarray, device: torch.device, placement: str) -> Store:
    """The store of these images on ``device``; one for all runs of this process that are alive and use the same images."""
    if isinstance(pixels, np.memmap):  # too large to read for this
        whole = pixels
        while isinstance(whole.base, np.memmap):
            whole = whole.base
        # A part of a file keeps the offset of the whole, so that train and test would look alike by that.
        content: object = (str(pixels.filename), pixels.ctypes.data - whole.ctypes.data)
    else:
        content = hashlib.blake2b(np.ascontiguousarray(pixels).data, digest_size=16).digest()
    key = (content, pixels.shape, str(device), placement)
    store = _STORES.get(key)
    if store is None:
        _STORES[key] = store = Store(pixels, device, placement)
    return store


def _choose_placement(pixels: np.ndarray, device: torch.device) -> str:
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        if pixels.nbytes <= FRACTION_OF_DEVICE_MEMORY * free:
            return "device"
    if pixels.nbytes <= FRACTION_OF_HOST_MEMORY * _free_host_memory() or not isinstance(pixels, np.memmap):
        return "device" if device.type == "cpu" else "host"
    return "mmap"


def _free_host_memory() -> int:
    return psutil.virtual_memory().available
