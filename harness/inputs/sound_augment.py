"""Augmentation of spectrograms: policies by name."""

from __future__ import annotations

import torch
from torchvision.transforms import v2

from harness.inputs.augment import Augment

SHARE = 8
"""Shifts and masks are up to this fraction of the axis."""
MASKS = 2
AUGMENTATIONS = ("none", "time_shift", "spec_augment", "mixup")


def sound_augmentation(
    name: str, time: int, band: int, num_classes: int, length: int | None = None
) -> Augment:
    """The policy of that name for spectrograms, and for samples, which are spectrograms of one band.

    Args:
        name: "none"; "time_shift" (by up to an eighth of the length; what leaves at one end enters at the
            other); "spec_augment" (two masks of up to an eighth of the length and two of up to an eighth of
            the bands, without time warping; Park et al. 2019); "mixup" (Zhang et al. 2018, alpha 0.2).
        time, band: axes of time and frequency in (n, ...) rows.
        num_classes: number of classes, needed to mix labels.
        length: number of leading time steps that are not padding; None is all.
    """

    def shift(rows: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        moved = rows.clone()
        sounds = moved.narrow(time, 0, length or rows.shape[time])
        most = sounds.shape[time] // SHARE
        steps = torch.randint(-most, most + 1, (len(rows),), generator=generator).tolist()
        for sound, step in zip(sounds, steps, strict=True):
            sound.copy_(sound.roll(step, time - 1))
        return moved

    def mask(rows: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        rows = rows.clone()
        for row in rows.narrow(time, 0, length or rows.shape[time]):
            for axis in (time - 1, band - 1) * MASKS:
                size = row.shape[axis]
                width = int(torch.randint(size // SHARE + 1, (), generator=generator))
                start = int(torch.randint(size - width + 1, (), generator=generator))
                row.narrow(axis, start, width).zero_()
        return rows

    policies = {
        "none": Augment(name),
        "time_shift": Augment(name, shift),
        "spec_augment": Augment(name, mask),
        "mixup": Augment(name, per_batch=v2.MixUp(alpha=0.2, num_classes=num_classes)),
    }
    return policies[name]
