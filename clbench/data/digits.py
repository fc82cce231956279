"""scikit-learn's handwritten digits: 1,797 images of 8×8 pixels that ship with the package (UCI ML, Alpaydin & Kaynak)."""

import functools
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from clbench.config import DataConfig
from clbench.data.images import ImageSet, SourceData
from clbench.data.location import verified
from clbench.errors import DataError
from clbench.registry import SOURCES


@SOURCES.register("digits")
def digits(config: DataConfig) -> SourceData:
    """8×8 digits, grey levels 0..16 scaled to 0..255; every fifth image of a class is a test image."""
    return _read()


@functools.cache
def _read() -> SourceData:
    table = np.loadtxt(_file(), delimiter=",")
    pixels = np.round(table[:, :64].reshape(-1, 1, 8, 8) * (255 / 16)).astype(np.uint8)
    labels = table[:, 64].astype(np.int64)
    position_in_class = np.empty_like(labels)
    for label in range(10):
        members = np.flatnonzero(labels == label)
        position_in_class[members] = np.arange(len(members))
    is_test = position_in_class % 5 == 4
    data = SourceData(
        train=ImageSet(pixels[~is_test], labels[~is_test]),
        test=ImageSet(pixels[is_test], labels[is_test]),
        class_names=[str(digit) for digit in range(10)],
        mean=(0.3053,),
        std=(0.3763,),
    )
    return verified("digits", data, "the installed scikit-learn")


def _file() -> Path:
    """The table of ``sklearn.datasets.load_digits``; to import scikit-learn for it takes half as long as torch."""
    package = find_spec("sklearn")
    if package is None or package.origin is None:
        raise DataError("scenario.source=digits is in scikit-learn, which is not installed: pip install scikit-learn")
    file = Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
    if not file.is_file():
        raise DataError(f"{file}, scikit-learn's digits, is not there: install scikit-learn anew")
    return file
