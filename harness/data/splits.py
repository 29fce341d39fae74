"""Splits: the training, validation and test images of a target for a seed, as three disjoint sets."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from harness.core.errors import UserError, counted, few
from harness.core.folds import Fold
from harness.core.spec import TrialSpec, derive_seed
from harness.data.cached import Cache, CachedView, CacheFull
from harness.data.folds import validation_fold
from harness.data.groups import grouped_parts, grouped_test
from harness.data.target import Indices, Target
from harness.data.targets import load_target
from harness.inputs import Input

Mask = NDArray[np.bool_]
Parts = tuple[Indices, Indices, Indices]
"""Training, validation and test images of a class."""
LONGEST_TAG = 4500
"""Characters; MLflow stores at most 5000 of a tag."""


@dataclass(frozen=True)
class Examples:
    """Examples in the form in which a network takes them.

    Attributes:
        values: n rows of that form: a tensor, or a view of cached rows.
        labels: (n,) int64 labels.
        index: (n,) positions in the target.
        form: kind of input.
    """

    values: torch.Tensor | CachedView
    labels: torch.Tensor
    index: Indices
    form: Input

    @property
    def tensor(self) -> torch.Tensor:
        """(n, *form.shape), all loaded into memory."""
        return self.values[:]

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, size: int = 1024) -> Iterator[torch.Tensor]:
        """The rows, `size` at a time."""
        return (self.values[start : start + size] for start in range(0, len(self), size))

    def part(self, at: torch.Tensor) -> Examples:
        """The examples at these positions."""
        if isinstance(self.values, CachedView):
            values: torch.Tensor | CachedView = CachedView(
                self.values.rows, self.values.index[at.numpy()]
            )
        else:
            values = self.values[at]
        return Examples(values, self.labels[at], self.index[at.numpy()], self.form)


@dataclass(frozen=True)
class SplitIndices:
    """Positions in the target of the images of each part. No image and no group is in two parts."""

    train: Indices
    val: Indices
    test: Indices


def split_indices(target: Target, spec: TrialSpec) -> SplitIndices:
    """Stratified train, validation and test positions.

    The test images depend only on the target, so that a test image is never used for training or selection,
    whatever the seed. Validation and training images are drawn from the rest by (target, seed); for the same
    seed, the images of fewer shots are a subset of those of more shots. Official parts are used as they are:
    if there is an official validation set, the seed draws only the training images. All images of a group are
    in the same part.

    `shots`, `val_shots` and `test_shots` are upper bounds per class. At most half of the images of a class
    are drawn as test images, and at most half of the rest as validation images, unless `exact_shots`.

    With `fold`, the validation images are that fold of all images that are not test images, those of an
    official validation set among them; the test images are the same as without it.

    Raises:
        UserError: naming the classes that are too small.
    """
    is_test, is_val = target.official_test, target.official_val
    if target.groups is not None and spec.fold:
        is_test = grouped_test(target)
    elif target.groups is not None:
        is_test, is_val = grouped_parts(target, spec.seed)
    streams = [
        np.random.default_rng(derive_seed(*names))
        for names in (
            ("test", target.identity),
            ("validation", target.identity),
            ("split", target.identity, spec.seed),
        )
    ]
    members = [np.flatnonzero(target.labels == label) for label in range(len(target.classes))]
    if spec.fold:
        found = _fold_parts(members, is_test, is_val, target, spec, streams)
    else:
        found = [_split_class(own, is_test, is_val, spec, streams) for own in members]
    noun = target.medium.noun
    too_small = [
        f"class {name!r} has {counted(len(own), noun)}, too few for {part}"
        for name, own, part in zip(target.classes, members, found, strict=True)
        if isinstance(part, str)
    ]
    if too_small:
        advice = "lower shots, val_shots or test_shots, or " if spec.exact_shots else ""
        raise UserError(
            f"target {spec.target}: {few(too_small)} ({advice}add {noun}s, or leave the "
            "class out with [classes=...])"
        )
    chosen = [part for part in found if not isinstance(part, str)]
    parts = [np.sort(np.concatenate(part)).astype(np.int64) for part in zip(*chosen, strict=True)]
    return SplitIndices(*parts)


def images_per_class(target: Target, split: SplitIndices) -> str:
    """Number of images per class in each part, as JSON: {"train": ..., "val": ..., "test": ...}.

    A part is one number if it is the same for every class, else a mapping from class to number. If that
    would be too long for a tag, it is "least" and "most" with their classes, and the total "all".
    """
    parts = {"train": split.train, "val": split.val, "test": split.test}
    counts = {
        name: np.bincount(target.labels[at], minlength=len(target.classes)).tolist()
        for name, at in parts.items()
    }
    named = {
        name: own[0] if len(set(own)) == 1 else dict(zip(target.classes, own, strict=True))
        for name, own in counts.items()
    }
    text = json.dumps(named, ensure_ascii=False)
    if len(text) <= LONGEST_TAG:
        return text
    ends = {
        name: {
            "least": [min(own), target.classes[own.index(min(own))][:100]],
            "most": [max(own), target.classes[own.index(max(own))][:100]],
            "all": sum(own),
        }
        for name, own in counts.items()
    }
    return json.dumps(ends, ensure_ascii=False)


def _split_class(
    members: Indices,
    is_test: Mask | None,
    is_val: Mask | None,
    spec: TrialSpec,
    streams: Sequence[np.random.Generator],
) -> Parts | str:
    """The training, validation and test images of one class, or the sizes for which it is too small.

    Args:
        members: positions of its images.
        is_test, is_val: masks of the official parts; None if a part is drawn here.
        spec: the requested numbers of images.
        streams: random streams for test images, for official validation images, and for draws by the seed.
    """
    of_test, of_val, drawn = streams
    test, rest, sizes = _test_and_rest(members, is_test, is_val, spec, of_test)
    rest = drawn.permutation(np.sort(rest))
    if is_val is None:
        val, rest = rest[: sizes.val], rest[sizes.val :]
    else:
        val = of_val.permutation(members[is_val[members]])[: spec.val_shots]
    least = (1, int(is_val is None), int(is_test is None))
    if spec.exact_shots:
        given = (spec.shots, spec.val_shots, spec.test_shots)
        least = (given[0] or 1, given[1] or sizes.val, given[2] or sizes.test)
    return _if_enough((rest[: spec.shots], val, test), least, spec)


def _fold_parts(
    members: Sequence[Indices],
    is_test: Mask | None,
    is_val: Mask | None,
    target: Target,
    spec: TrialSpec,
    streams: Sequence[np.random.Generator],
) -> list[Parts | str]:
    """The same of all classes, where the validation images are a fold.

    Raises:
        UserError: if a class has fewer images, or groups, than there are folds.
    """
    of_test, _, drawn = streams
    tests, pools = [], []
    for own in members:
        test, rest, _ = _test_and_rest(own, is_test, is_val, spec, of_test)
        tests.append(test)
        pools.append(rest if is_val is None else np.concatenate([rest, own[is_val[own]]]))
    held = validation_fold(target, np.sort(np.concatenate(pools)), Fold.parse(spec.fold))
    found = []
    for test, pool in zip(tests, pools, strict=True):
        train = drawn.permutation(np.sort(pool[~held[pool]]))[: spec.shots]
        least = (1, 1, int(is_test is None))
        if spec.exact_shots:
            least = (spec.shots or 1, 1, spec.test_shots or 1)
        found.append(_if_enough((train, pool[held[pool]], test), least, spec))
    return found


def _test_and_rest(
    members: Indices,
    is_test: Mask | None,
    is_val: Mask | None,
    spec: TrialSpec,
    of_test: np.random.Generator,
) -> tuple[Indices, Indices, _Sizes]:
    """The test images of one class, the images that are left, without an official validation part, and the
    sizes of the parts."""
    free = np.ones(len(members), np.bool_)
    for mask in (is_test, is_val):
        if mask is not None:
            free &= ~mask[members]
    rest = members[free]
    sizes = _sizes(len(rest), is_test is None, is_val is None, spec)
    if is_test is None:
        order = of_test.permutation(rest)
        # At least the default quarter is set aside, even if fewer images are scored, because a test image
        # of one cell must not be a training image of another.
        return order[: sizes.test], order[sizes.aside :], sizes
    return of_test.permutation(members[is_test[members]])[: spec.test_shots], rest, sizes


def _if_enough(parts: Parts, least: tuple[int, int, int], spec: TrialSpec) -> Parts | str:
    """The parts, or the sizes for which the class is too small: `least` for each of them."""
    if all(len(part) >= want for part, want in zip(parts, least, strict=True)):
        return parts
    train_words = str(spec.shots or "at least 1") if spec.exact_shots else "1"
    return f"{least[2]} test + {least[1]} validation + {train_words} for training"


@dataclass(frozen=True)
class _Sizes:
    """Numbers of images of a class: scored as test images, set aside for the test, and used for
    validation."""

    test: int
    aside: int
    val: int


def _sizes(free: int, draws_test: bool, draws_val: bool, spec: TrialSpec) -> _Sizes:
    """How to divide the images of a class that are in no official part: the same for every number of shots,
    so that cells that differ in it have the same test images.

    Args:
        free: number of these images.
        draws_test, draws_val: whether these parts are drawn from them.
        spec: the requested numbers of images.
    """
    quarter = round(0.25 * free)
    test = (spec.test_shots or max(1, quarter)) if draws_test else 0
    test = test if spec.exact_shots else min(test, free // 2)
    aside = max(test, quarter) if draws_test else 0
    rest = max(0, free - aside)
    val = (spec.val_shots or max(1, round(0.2 * rest))) if draws_val else 0
    return _Sizes(test, aside, val if spec.exact_shots else min(val, rest // 2))


@lru_cache(maxsize=24)
def read_examples(
    target: str, part: tuple[int, ...], form: Input, cache: Cache = Cache()
) -> Examples:
    """The examples of a target at the given positions; with a cache, each is decoded only once.

    Args:
        target: name of the target.
        part: positions in the target.
        form: the form in which the network takes them.
        cache: where the rows are stored; if they do not fit, they stay in the memory of this process.
    """
    source = load_target(target)
    index = np.array(part, np.int64)
    labels = torch.from_numpy(source.labels[index])
    key = {
        "what": f"{source.name} as {form}",
        "target": source.key,
        **source.medium.key(),
        **form.key(),
    }
    try:
        rows = cache.array(key, len(source.labels), form.shape, form.dtype)
        rows.fill(index, source.fingerprints(index), lambda at: source.read(at, form))
    except CacheFull:
        return Examples(source.read(index, form), labels, index, form)
    return Examples(CachedView(rows, index), labels, index, form)
