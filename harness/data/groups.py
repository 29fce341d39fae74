"""Splits by group: all images of one patient, sequence or product are in the same part of the split."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from harness.core.errors import UserError, counted, few
from harness.core.spec import derive_seed
from harness.data.images import shown
from harness.data.labels import numbered
from harness.data.target import Indices, Target

Mask = NDArray[np.bool_]
TEST_FOLDS, VAL_FOLDS = 4, 5
"""Numbers of folds, one of which is held out: a quarter for the test, and a fifth of the rest for
validation."""
ATTEMPTS = 5
"""Largest number of random assignments tried for each number of folds until every part has images of every
class."""


def grouped_parts(target: Target, seed: int) -> tuple[Mask, Mask]:
    """The test and validation images of a target with groups, as masks.

    Official parts are used as they are. A missing part is one fold of scikit-learn's StratifiedGroupKFold;
    the test part depends only on the target, the validation part on (target, seed).

    Raises:
        UserError: if a class has too few groups for every part to have one.
    """
    test, val = grouped_test(target), target.official_val
    if val is None:
        val = held_out(target, ~test, VAL_FOLDS, 1, derive_seed("split", target.identity, seed))
    return test, val


def grouped_test(target: Target) -> Mask:
    """The test images of a target with groups; see `grouped_parts`."""
    test, val, groups = target.official_test, target.official_val, target.groups
    if test is None:
        assert groups is not None
        # Not from groups with validation images, which with k-fold resampling are trained on too.
        rest = np.ones(len(groups), np.bool_) if val is None else ~np.isin(groups, groups[val])
        left = 2 if val is None else 1
        test = held_out(target, rest, TEST_FOLDS, left, derive_seed("test", target.identity))
    return test


def shared_groups(target: Target) -> int:
    """Number of groups that have images in more than one of the official parts."""
    if target.groups is None:
        return 0
    part = np.unique(target.part_names, return_inverse=True)[1]
    pairs = np.unique(np.stack([target.groups, part]), axis=1)
    return int((np.unique(pairs[0], return_counts=True)[1] > 1).sum())


def folds(labels: Indices, groups: Indices, count: int, seed: int) -> Indices:
    """(n,) fold of each image, 0 to count - 1; all images of a group are in the same one.

    Raises:
        ValueError: if there are fewer images of every class than folds.
    """
    # Imported here: scikit-learn takes seconds to import, and few targets have groups.
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    fold = np.zeros(len(labels), np.int64)
    # If each image is its own group, the faster splitter gives the same result.
    alone = len(np.unique(groups)) == len(groups)
    kind = (StratifiedKFold if alone else StratifiedGroupKFold)(
        count, shuffle=True, random_state=seed
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # about a class with fewer images than folds
        for number, (_, held) in enumerate(kind.split(np.zeros(len(labels)), labels, groups)):
            fold[held] = number
    return fold


def held_out(target: Target, rows: Mask, count: int, left: int, seed: int) -> Mask:
    """A fold of these images that contains images of every class.

    Args:
        target: target with groups.
        rows: mask of the images to choose from.
        count: number of folds.
        left: number of groups of every class that must remain outside the fold.
        seed: seed of the assignment to folds.
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
    """Positions of the fold whose share of every class is nearest to 1 / count; None if no fold is suitable.

    If there are few groups, fewer folds are tried. Cached, because it takes seconds for 50,000 groups.
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
    """The folds that contain every class and leave at least `left` groups of each class outside."""
    classes = np.unique(y)
    for number in range(count):
        held = fold == number
        outside = np.unique(np.stack([y[~held], g[~held]]), axis=1)[0]
        remain = [int((outside == label).sum()) >= left for label in classes]
        if set(np.unique(y[held])) == set(classes) and all(remain):
            yield np.flatnonzero(held)


def _too_few(target: Target, need: int) -> str:
    assert target.groups is not None
    nouns = f"{target.medium.noun}s"
    pairs = np.unique(np.stack([target.labels, target.groups]), axis=1)[0]
    counts = np.bincount(pairs, minlength=len(target.classes))
    small = [
        f"class {name!r} has {nouns} of {counted(counts[label], 'group')}"
        for label, name in enumerate(target.classes)
        if counts[label] < 3
    ]
    if not small:
        return (
            f"target {target.name}: its {len(np.unique(target.groups))} groups cannot be divided so that "
            "every class is in every part; add groups, or leave classes out with [classes=...]"
        )
    return (
        f"target {target.name}: {few(small)}: at least 3 are needed, because all {nouns} of "
        "a group are in the same part (training, validation or test); add groups, or leave the class "
        "out with [classes=...]"
    )


def groups_from_names(names: Sequence[str], pattern: str, what: str) -> tuple[Indices, str]:
    """The group of each image, taken from its name, and a note on the groups.

    Args:
        names: paths of the images below the folder, with "/".
        pattern: regular expression, searched in the file name, or else in the path; the group is the text
            of its capturing groups, or else the whole match.
        what: the target, for messages.

    Raises:
        UserError: if the expression is invalid, does not match every name, or finds only one group.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UserError(f"{what}: group={pattern} is not a regular expression: {error}") from error
    found = [compiled.search(PurePosixPath(n).name) or compiled.search(n) for n in names]
    keys = [match and (match.groups() or (match[0],)) for match in found]
    if strangers := [name for name, key in zip(names, keys, strict=True) if key is None]:
        raise UserError(
            f"{what}: group={pattern} does not match {len(strangers)} of {len(names)} names, the first is "
            f"{shown(Path(strangers[0]))}"
        )
    groups = numbered(keys)
    if not groups.any():
        raise UserError(f"{what}: group={pattern} puts all examples into one group, {keys[0]}")
    return groups, f"Groups are read from names ({pattern})."


def suggested_pattern(names: Sequence[str]) -> str:
    """A regular expression for the groups that these names suggest, "" if there are none. Groups may be
    sub-folders of the class folders, or the first of two numbers in the name, as in patient03_frame17.png.

    Args:
        names: paths of the images below the class folders, with "/".
    """
    for pattern in (".*/", r"^\D*\d+", r"^\D*\d+\D+\d+"):
        more = "" if pattern == ".*/" else r"\D+\d"
        compiled, whole = re.compile(pattern), re.compile(pattern + more)
        texts = [n if pattern == ".*/" else PurePosixPath(n).stem for n in names]
        keys = Counter(match[0] for t in texts if whole.search(t) and (match := compiled.search(t)))
        if sum(keys.values()) >= 0.9 * len(names) and 3 <= len(keys) <= 0.5 * len(names):
            return pattern
    return ""
