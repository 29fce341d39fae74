"""Torchvision's classification sets, downloaded on first use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torchvision

from harness.data.archives import careful_archives
from harness.data.target import Indices, Target, TorchvisionTarget
from harness.errors import UserError, first_line

DOWNLOADS = Path("data")
"""Where torchvision keeps what it downloads."""

TORCHVISION = {
    name.lower(): name
    for name in (
        "CIFAR10 CIFAR100 Caltech101 Caltech256 Country211 DTD EMNIST EuroSAT FER2013 FGVCAircraft "
        "FashionMNIST Flowers102 Food101 GTSRB Imagenette KMNIST LFWPeople MNIST OxfordIIITPet PCAM "
        "QMNIST RenderedSST2 SEMEION STL10 SUN397 SVHN StanfordCars USPS"
    ).split()
    if hasattr(torchvision.datasets, name)
}


def torchvision_target(name: str) -> Target:
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
