"""Which images train, which select, which test? (target, seed) -> three disjoint parts."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from harness.data.targets import Indices, Target, load_target
from harness.spec import TrialSpec, UserError, derive_seed


@dataclass(frozen=True)
class Examples:
    """Decoded images: `images` (n, 3, size, size) uint8, `labels` (n,) int64, `index` (n,) positions."""

    images: torch.Tensor
    labels: torch.Tensor
    index: Indices


@dataclass(frozen=True)
class SplitIndices:
    """Positions in the target; no two of the three share one."""

    train: Indices
    val: Indices
    test: Indices


def split_indices(target: Target, spec: TrialSpec) -> SplitIndices:
    """Stratified train, validation and test positions.

    The test images depend on the target alone: whatever the seed, no image that is ever scored as test
    was trained on or selected on. Validation and training images are drawn from the rest by
    (target, seed); with one seed, fewer shots are a subset of more shots.

    Raises:
        UserError: naming the class that is too small.
    """
    fixed = np.random.default_rng(derive_seed("test", target.name))
    drawn = np.random.default_rng(derive_seed("split", target.name, spec.seed))
    chosen: list[tuple[Indices, Indices, Indices]] = []
    for label, class_name in enumerate(target.classes):
        members = np.flatnonzero(target.labels == label)
        if target.official_test is None:
            order = fixed.permutation(members)
            count = spec.test_shots or max(1, round(0.25 * len(members)))
            # At least the default quarter is set aside, whatever is scored of it: no test image of one
            # cell may be a training image of another.
            aside = max(count, round(0.25 * len(members)))
            test, rest = order[:count], order[aside:]
        else:
            order = fixed.permutation(members[target.official_test[members]])
            count = spec.test_shots or len(order)
            test, rest = order[:count], members[~target.official_test[members]]
        rest = drawn.permutation(np.sort(rest))
        val_count = spec.val_shots or max(1, round(0.2 * len(rest)))
        val, rest = rest[:val_count], rest[val_count:]
        train = rest[: spec.shots] if spec.shots else rest
        if len(test) < count or len(val) < val_count or len(train) < (spec.shots or 1):
            raise UserError(
                f"target {spec.target}: class {class_name!r} has {len(members)} images, too few for "
                f"{count} test + {val_count} validation + {spec.shots or 'at least 1'} training "
                "images (lower shots, val_shots or test_shots, or add images)"
            )
        chosen.append((train, val, test))
    parts = [np.sort(np.concatenate(part)).astype(np.int64) for part in zip(*chosen, strict=True)]
    return SplitIndices(*parts)


@lru_cache(maxsize=24)
def read_examples(target: str, part: tuple[int, ...], size: int, interpolation: str) -> Examples:
    """The images of a target at the given positions, decoded once per process."""
    source = load_target(target)
    index = np.array(part, np.int64)
    images = source.read(index, size, interpolation)
    return Examples(images, torch.from_numpy(source.labels[index]), index)
