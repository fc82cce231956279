"""Interim: mnist family and cifar, to be replaced."""

import os
from pathlib import Path

import numpy as np

from clbench.config import DataConfig
from clbench.data.images import ImageSet, SourceData
from clbench.errors import DataError
from clbench.registry import SOURCES


def _root(config):
    return Path(config.root or os.environ.get("CLBENCH_DATA") or ".")


def _mnist(cls, mean, std):
    def load(config: DataConfig) -> SourceData:
        root = _root(config)
        sets = []
        for train in (True, False):
            d = cls(str(root), train=train, download=False)
            sets.append(ImageSet(d.data.numpy()[:, None], d.targets.numpy().astype(np.int64)))
        return SourceData(*sets, class_names=[str(c) for c in d.classes], mean=mean, std=std)
    return load


def _register():
    import torchvision.datasets as tv
    SOURCES.register("mnist")(_mnist(tv.MNIST, (0.1307,), (0.3081,)))
    SOURCES._entries["fashion_mnist"] = _mnist(tv.FashionMNIST, (0.2860,), (0.3530,))


_register()


@SOURCES.register("cifar100")
def cifar100(config: DataConfig) -> SourceData:
    import torchvision.datasets as tv
    root = _root(config)
    class C(tv.CIFAR100):
        train_list = [["train", None]]
        test_list = [["test", None]]
        meta = dict(tv.CIFAR100.meta, md5=None)
    if not (root / "cifar-100-python").exists():
        raise DataError(f"cifar100 missing: put cifar-100-python in {root}")
    sets = []
    for train in (True, False):
        d = C(str(root), train=train, download=False)
        sets.append(ImageSet(np.ascontiguousarray(d.data.transpose(0, 3, 1, 2)), np.array(d.targets, np.int64)))
    return SourceData(*sets, class_names=d.classes, mean=(.5071, .4867, .4408), std=(.2675, .2565, .2761))
