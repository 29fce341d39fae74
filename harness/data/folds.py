"""Division of a target's images into folds: stratified by class, all images of a group in the same fold."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from harness.core.errors import UserError, counted, few
from harness.core.folds import Fold
from harness.core.spec import derive_seed
from harness.data.groups import ATTEMPTS, folds
from harness.data.target import Indices, Target


def validation_fold(target: Target, pool: Indices, fold: Fold) -> NDArray[np.bool_]:
    """The images of one fold of scikit-learn's StratifiedKFold, or StratifiedGroupKFold if there are groups.

    Args:
        target: the images.
        pool: positions of those that are divided, in rising order.
        fold: which fold of which division.

    Returns:
        A mask of all images of the target.

    Raises:
        UserError: if a class has fewer images, or groups, in the pool than there are folds.
    """
    labels = target.labels[pool]
    groups = np.arange(len(pool)) if target.groups is None else target.groups[pool]
    _require_enough(target, labels, groups, fold.count)
    seed = derive_seed("folds", target.identity, fold.shuffle)
    division = _division(labels.tobytes(), groups.tobytes(), fold.count, seed)
    if division is None:
        raise UserError(
            f"target {target.name}: its groups cannot be divided into {fold.count} folds so that every class "
            "is in every fold; use fewer folds, or add groups"
        )
    mask = np.zeros(len(target.labels), np.bool_)
    mask[pool[division == fold.number - 1]] = True
    return mask


@lru_cache(maxsize=64)
def _division(labels: bytes, groups: bytes, count: int, seed: int) -> Indices | None:
    """(n,) fold of each image, from 0; None if no division was found in which each fold has every class."""
    y, g = np.frombuffer(labels, np.int64), np.frombuffer(groups, np.int64)
    for attempt in range(ATTEMPTS):
        found = folds(y, g, count, seed + attempt)
        pairs = np.unique(np.stack([y, found]), axis=1)
        if pairs.shape[1] == count * len(np.unique(y)):
            return found
    return None


def _require_enough(target: Target, labels: Indices, groups: Indices, count: int) -> None:
    """Raises UserError unless every class has an image, of a group of its own, for every fold."""
    nouns, grouped = f"{target.medium.noun}s", target.groups is not None
    what, of = ("group", f" of {nouns}") if grouped else (target.medium.noun, "")
    found = np.bincount(
        np.unique(np.stack([labels, groups]), axis=1)[0], minlength=len(target.classes)
    )
    small = [
        f"class {name!r} has {counted(n, what)}{of}, not counting test {nouns}"
        for name, n in zip(target.classes, found.tolist(), strict=True)
        if n < count
    ]
    if small:
        raise UserError(
            f"target {target.name}: {few(small)}, fewer than the {count} folds: use fewer "
            f"folds, add {what}s, or leave the class out with [classes=...]"
        )
