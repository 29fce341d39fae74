"""Which images train, which select, which test? (target, seed) -> three disjoint parts."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from harness.data.target import Indices, Target
from harness.data.targets import load_target
from harness.errors import UserError
from harness.packages import versions
from harness.rows import Cache, Full, View
from harness.spec import TrialSpec, derive_seed


@dataclass(frozen=True)
class Examples:
    """Decoded images.

    Attributes:
        pixels: n images, (3, size, size) uint8 each; a tensor, or a view of what is kept.
        labels: (n,) int64.
        index: (n,) positions in the target.
    """

    pixels: torch.Tensor | View
    labels: torch.Tensor
    index: Indices

    @property
    def images(self) -> torch.Tensor:
        """(n, 3, size, size) uint8, all of them in memory."""
        return self.pixels[:]

    def __len__(self) -> int:
        return len(self.labels)

    def part(self, at: torch.Tensor) -> Examples:
        """The examples at these positions."""
        if isinstance(self.pixels, View):
            pixels: torch.Tensor | View = View(self.pixels.rows, self.pixels.index[at.numpy()])
        else:
            pixels = self.pixels[at]
        return Examples(pixels, self.labels[at], self.index[at.numpy()])


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
def read_examples(
    target: str, part: tuple[int, ...], size: int, interpolation: str, cache: Cache = Cache()
) -> Examples:
    """The images of a target at the given positions, each decoded once per cache.

    Args:
        target: its name.
        part: positions in it.
        size: side of the images in pixels.
        interpolation: how they are resized.
        cache: where decoded images are kept; in this process when they do not fit it.
    """
    source = load_target(target)
    index = np.array(part, np.int64)
    labels = torch.from_numpy(source.labels[index])
    key = {
        "what": f"pixels of {source.name} at {size} x {size}",
        "target": source.key,
        "interpolation": interpolation,
        **versions("torch", "torchvision", "pillow"),
    }
    try:
        rows = cache.rows(key, len(source.labels), (3, size, size))
        rows.fill(index, source.stamps(index), lambda at: source.read(at, size, interpolation))
    except Full:
        return Examples(source.read(index, size, interpolation), labels, index)
    return Examples(View(rows, index), labels, index)
