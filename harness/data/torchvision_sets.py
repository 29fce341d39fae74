"""Torchvision's image classification data sets, read from data/ or downloaded into it on first use."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torchvision
from torch.utils.data import ConcatDataset, Subset

from harness.core.errors import UserError, first_line
from harness.data.safe_extraction import safe_extraction
from harness.data.target import Indices, Target, TorchvisionTarget

DOWNLOADS = Path("data")
"""Folder of torchvision's downloads."""


@dataclass(frozen=True)
class _Set:
    """Arguments of one of torchvision's classes for each part.

    Attributes:
        kind: name of the class.
        train, val, test: arguments for each part; None if there is no such part with labels.
        folder: folder below DOWNLOADS.
        classes: class names, if the class does not provide them.
        can_download: whether torchvision downloads it.
    """

    kind: str
    train: Mapping[str, Any] = field(default_factory=dict)
    val: Mapping[str, Any] | None = None
    test: Mapping[str, Any] | None = None
    folder: str = ""
    classes: tuple[str, ...] = ()
    can_download: bool = True


def _by_flag(kind: str, **more: Any) -> _Set:
    return _Set(kind, {"train": True, **more}, None, {"train": False, **more})


def _by_split(kind: str, train: str = "train", val: str = "", test: str = "test") -> _Set:
    return _Set(kind, {"split": train}, {"split": val} if val else None, {"split": test})


def _inaturalist(train: str) -> _Set:
    return _Set("INaturalist", {"version": train}, None, {"version": "2021_valid"})


_EMOTIONS = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
_SETS = {
    **{name.lower(): _by_flag(name) for name in ("CIFAR10", "CIFAR100", "FashionMNIST", "KMNIST")},
    **{name.lower(): _by_flag(name) for name in ("MNIST", "QMNIST", "USPS")},
    "emnist": _by_flag("EMNIST", split="balanced"),
    **{
        f"emnist_{split}": _by_flag("EMNIST", split=split)
        for split in ("byclass", "bymerge", "letters", "digits", "mnist")
    },
    **{name.lower(): _Set(name) for name in ("Caltech101", "Caltech256", "EuroSAT", "SEMEION")},
    "sun397": _Set("SUN397"),
    "lfwpeople": _Set("LFWPeople", {"split": "10fold"}),
    "omniglot": _Set("Omniglot", {"background": True}),
    "omniglot_evaluation": _Set("Omniglot", {"background": False}),
    **{name.lower(): _by_split(name) for name in ("Food101", "GTSRB", "STL10", "SVHN")},
    "stanfordcars": _by_split("StanfordCars"),
    "fer2013": _Set(
        "FER2013",
        {"split": "train"},
        None,
        {"split": "test"},
        classes=_EMOTIONS,
        can_download=False,
    ),
    "oxfordiiitpet": _by_split("OxfordIIITPet", "trainval"),
    **{name.lower(): _by_split(name, val="val") for name in ("DTD", "FGVCAircraft", "Flowers102")},
    "renderedsst2": _by_split("RenderedSST2", val="val"),
    "country211": _by_split("Country211", val="valid"),
    # The labels of their test images are not public, so the validation part is the test part.
    "clevrclassification": _by_split("CLEVRClassification", test="val"),
    "imagenette": _by_split("Imagenette", test="val"),
    "imagenet": _Set(
        "ImageNet",
        {"split": "train"},
        None,
        {"split": "val"},
        folder="imagenet",
        can_download=False,
    ),
    "places365": _Set(
        "Places365",
        {"split": "train-standard", "small": True},
        None,
        {"split": "val", "small": True},
    ),
    "inaturalist": _inaturalist("2021_train"),
    "inaturalist_mini": _inaturalist("2021_train_mini"),
}
TORCHVISION = {
    name: made for name, made in sorted(_SETS.items()) if hasattr(torchvision.datasets, made.kind)
}
"""Name of the target -> its data set, for those in the installed version."""


def torchvision_target(name: str) -> Target:
    """A torchvision classification data set with its parts, downloaded on first use.

    Raises:
        UserError: if it is not in DOWNLOADS and cannot be downloaded.
    """
    made = TORCHVISION[name.lower()]
    try:
        with safe_extraction(Path(DOWNLOADS)):
            parts = list(_parts(made))
    except Exception as error:  # urllib, RuntimeError, missing optional packages, ...
        raise UserError(
            f"target {made.kind} could not be loaded by torchvision: {first_line(error)} "
            f"(it is read from {DOWNLOADS}/, or downloaded into it, which needs the network)"
        ) from error
    classes, labels = _labelled(parts)
    which = np.repeat([part.name for part in parts], [len(part.labels) for part in parts])
    names = {part.name for part in parts}
    return TorchvisionTarget(
        name.lower(),
        classes,
        labels,
        which == "test" if "test" in names else None,
        ConcatDataset([Subset(part.images, part.order.tolist()) for part in parts]),
        official_val=which == "val" if "val" in names else None,
    )


@dataclass(frozen=True)
class _Part:
    """One part of a set.

    Attributes:
        name: "train", "val" or "test".
        images: torchvision's data set.
        order: (n,) positions in `images`, in the order in which they are read.
        labels: (n,) labels in that order.
        classes: class names; position = label.
    """

    name: str
    images: Any
    order: Indices
    labels: Indices
    classes: Sequence[str]


def _parts(made: _Set) -> Iterator[_Part]:
    """The parts with labels, train first."""
    for name, arguments in (("train", made.train), ("val", made.val), ("test", made.test)):
        if arguments is None:
            continue
        images = _load(made, arguments)
        labels, order = _labels_of(images)
        if any(label is None for label in labels):  # FER2013's own test.csv has none
            continue
        numbers = np.asarray(labels, np.int64)[order]
        yield _Part(name, images, order, numbers, made.classes or _names_of(images, numbers))


def _load(made: _Set, arguments: Mapping[str, Any]) -> Any:
    """The data set from existing files; if they are missing, it is downloaded where possible."""
    kind, root = getattr(torchvision.datasets, made.kind), DOWNLOADS / made.folder
    if not made.can_download:
        return kind(root, **arguments)
    try:
        return kind(root, **arguments, download=False)
    except Exception:  # RuntimeError, FileNotFoundError, ...: files are missing or incomplete
        return kind(root, **arguments, download=True)


def _labels_of(images: Any) -> tuple[list[Any], Indices]:
    """A label per image, and an order of the images that is the same on every machine, because some data sets
    list folders in the order of the file system."""
    if hasattr(images, "_flat_character_images"):  # Omniglot
        pairs = images._flat_character_images
        names = [f"{images._characters[label]}/{file}" for file, label in pairs]
        return [label for _, label in pairs], _sorted(names)
    if hasattr(images, "all_categories"):  # iNaturalist
        pairs = images.index
        return [label for label, _ in pairs], _sorted([f"{c:05d}/{file}" for c, file in pairs])
    labels = _first(images, "targets", "labels", "_labels", "y")
    if labels is None:  # a list of (file or image, label)
        labels = [label for _, label in images._samples]
    if np.ndim(labels) == 2:  # QMNIST: class, writer, ...
        labels = np.asarray(labels)[:, 0]
    order = np.arange(len(labels), dtype=np.int64)
    if type(images).__name__ == "SUN397":
        order = _sorted([path.as_posix() for path in images._image_files])
    return list(labels), order


def _first(images: Any, *attributes: str) -> Any:
    """The first of these attributes that a data set has; None if it has none."""
    values = (getattr(images, name, None) for name in attributes)
    return next((value for value in values if value is not None), None)


def _sorted(names: Sequence[str]) -> Indices:
    return np.array(sorted(range(len(names)), key=names.__getitem__), np.int64)


def _names_of(images: Any, labels: Indices) -> list[str]:
    """Class names by label, made unique."""
    names: Sequence[Any] = _first(images, "classes", "categories", "all_categories", "_characters")
    by_index = getattr(images, "class_to_idx", {})
    if type(images).__name__ in ("LFWPeople", "Places365"):
        names = sorted(by_index, key=by_index.__getitem__)
    names = names or range(int(labels.max(initial=0)) + 1)
    text = [", ".join(n) if isinstance(n, tuple) else str(n) for n in names]
    if type(images).__name__ == "Places365":  # "/a/airfield"
        text = [name[3:] for name in text]
    own = getattr(images, "wnids", range(len(text)))
    return [t if text.count(t) == 1 else f"{t} ({own[i]})" for i, t in enumerate(text)]


def _labelled(parts: Sequence[_Part]) -> tuple[tuple[str, ...], Indices]:
    """The classes with images in any part, in order, and a label per image of all parts.

    Parts are joined by class names, because a part may lack some of the classes.
    """
    listed = list(dict.fromkeys(name for part in parts for name in part.classes))
    if hasattr(parts[0].images, "_characters"):  # Omniglot: in the order of folders
        listed.sort()
    present = {part.classes[label] for part in parts for label in np.unique(part.labels)}
    classes = tuple(name for name in listed if name in present)
    number = {name: i for i, name in enumerate(classes)}
    labels = [
        np.array([number.get(name, -1) for name in part.classes], np.int64)[part.labels]
        for part in parts
    ]
    return classes, np.concatenate(labels)
