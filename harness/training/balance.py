"""Class weights and balanced batches, for classes with unequal numbers of training images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from harness.core.errors import UserError
from harness.training.optimizer import in_batches


def class_weights(labels: np.ndarray, classes: Sequence[str]) -> torch.Tensor:
    """(classes,) weight n / (k n_c) of each of k classes with n_c of the n training images.

    Raises:
        UserError: if a class has no training images.
    """
    counts = np.bincount(labels, minlength=len(classes))
    if missing := [name for name, count in zip(classes, counts, strict=True) if not count]:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(
            f"class_weights 'balanced' needs training examples of every class, {missing[0]!r}{more} has "
            "none: leave it out with [classes=...]"
        )
    weights = len(labels) / (len(classes) * counts)
    return torch.from_numpy(weights.astype(np.float32))


def balanced_batches(
    labels: torch.Tensor, size: int, generator: torch.Generator
) -> Sequence[torch.Tensor]:
    """As many positions as there are labels, drawn with replacement so that each class is equally likely, in
    batches of `size`."""
    chances = 1 / torch.bincount(labels)[labels].double()
    drawn = torch.multinomial(chances, len(labels), replacement=True, generator=generator)
    return in_batches(drawn, size)
