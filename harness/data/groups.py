"""Splits by group: all images of one patient, sequence or product are in the same part."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold

from harness.data.target import Indices, Target
from harness.errors import UserError
from harness.spec import derive_seed

Mask = NDArray[np.bool_]
TEST_FOLDS, VAL_FOLDS = 4, 5
"""One fold of so many is held out: a quarter to test on, a fifth of the rest to select on."""
ATTEMPTS = 5
"""Random assignments tried with each number of folds until every part has images of every class."""


def grouped_parts(target: Target, seed: int) -> tuple[Mask, Mask]:
    """The test and validation images of a target with groups, as masks.

    Parts that the data set comes with are used as they are. Any other is one fold of scikit-learn's
    StratifiedGroupKFold, of the test part by the target alone, of the validation part by (target, seed).

    Raises:
        UserError: if a class has too few groups for every part to have one.
    """
    assert target.groups is not None
    test, val = target.official_test, target.official_val
    if test is None:
        rest = np.ones(len(target.labels), np.bool_) if val is None else ~val
        left = 2 if val is None else 1
        test = _held_out(target, rest, TEST_FOLDS, left, derive_seed("test", target.identity))
    if val is None:
        val = _held_out(target, ~test, VAL_FOLDS, 1, derive_seed("split", target.identity, seed))
    return test, val


def shared_groups(target: Target) -> int:
    """Groups that have images in more than one of the parts that the data set comes with."""
    if target.groups is None:
        return 0
    part = np.zeros(len(target.labels), np.int64)
    for number, mask in enumerate((target.official_test, target.official_val), 1):
        if mask is not None:
            part[mask] = number
    pairs = np.unique(np.stack([target.groups, part]), axis=1)
    return int((np.unique(pairs[0], return_counts=True)[1] > 1).sum())


def folds(labels: Indices, groups: Indices, count: int, seed: int) -> Indices:
    """(n,) fold of each image, 0 to count - 1; all images of a group are in the same one.

    Raises:
        ValueError: if there are fewer images of every class than folds.
    """
    fold = np.zeros(len(labels), np.int64)
    kind = StratifiedGroupKFold(count, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of a class with fewer images than folds
        for number, (_, held) in enumerate(kind.split(np.zeros(len(labels)), labels, groups)):
            fold[held] = number
    return fold


def _held_out(target: Target, rows: Mask, count: int, left: int, seed: int) -> Mask:
    """Among these images, a fold with images of every class.

    Args:
        target: with groups.
        rows: of the images to choose from.
        count: of folds.
        left: groups of every class that must stay outside.
        seed: of the assignment to folds.
    """
    assert target.groups is not None
    at = np.flatnonzero(rows)
    labels, groups = target.labels[at], target.groups[at]
    held = _best_fold(labels.tobytes(), groups.tobytes(), count, left, seed)
    if held is None:
        raise UserError(_too_few(target, left + 1))
    mask = np.zeros(len(target.labels), np.bool_)
    mask[at[held]] = True
    return mask


@lru_cache(maxsize=64)
def _best_fold(labels: bytes, groups: bytes, count: int, left: int, seed: int) -> Indices | None:
    """Positions of the fold whose share of every class is nearest to 1 / count; None if none will do.

    Cached, since it takes seconds for 50,000 groups. Fewer folds are tried where there are few groups.
    """
    y, g = np.frombuffer(labels, np.int64), np.frombuffer(groups, np.int64)
    total = np.bincount(y)
    for fewer in range(count, 1, -1):
        for attempt in range(ATTEMPTS):
            try:
                fold = folds(y, g, fewer, seed + attempt)
            except ValueError:
                break
            good = list(_usable(y, g, fold, fewer, left))
            if good:
                shares = [np.bincount(y[at], minlength=len(total)) for at in good]
                off = [
                    float(np.abs(s[total > 0] / total[total > 0] - 1 / count).max()) for s in shares
                ]
                return good[int(np.argmin(off))]
    return None


def _usable(y: Indices, g: Indices, fold: Indices, count: int, left: int) -> Iterator[Indices]:
    """Folds that hold every class and leave as many groups of each outside."""
    classes = np.unique(y)
    for number in range(count):
        held = fold == number
        outside = np.unique(np.stack([y[~held], g[~held]]), axis=1)[0]
        remain = [int((outside == label).sum()) >= left for label in classes]
        if set(np.unique(y[held])) == set(classes) and all(remain):
            yield np.flatnonzero(held)


def _too_few(target: Target, need: int) -> str:
    assert target.groups is not None
    pairs = np.unique(np.stack([target.labels, target.groups]), axis=1)[0]
    counts = np.bincount(pairs, minlength=len(target.classes))
    small = [
        f"class {name!r} has images of {counts[label]} groups"
        for label, name in enumerate(target.classes)
        if counts[label] < 3
    ]
    if not small:
        return (
            f"target {target.name}: its {len(np.unique(target.groups))} groups cannot be divided so that "
            "every class is in every part; add groups, or leave classes out with [classes=...]"
        )
    more = f" (and {len(small) - 5} more)" if len(small) > 5 else ""
    return (
        f"target {target.name}: {'; '.join(small[:5])}{more}: at least 3 are needed, since the images of "
        "a group are all trained on, all validated on or all tested on; add groups, or leave the class "
        "out with [classes=...]"
    )
