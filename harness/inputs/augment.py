"""Augmentation of training images: policies by name, with random numbers from the trial's own generator.

It runs where the images are; the random numbers are drawn on the CPU, so they are the same on every device.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch.nn import functional as F
from torchvision.transforms import v2

T = TypeVar("T")
AUGMENTATIONS = ("none", "flip_crop", "rotation", "trivial", "rand", "mixup", "cutmix")
Vary = Callable[[torch.Tensor, torch.Generator], torch.Tensor]
"""n rows -> the same number of varied rows, each independent of the others."""


@dataclass(frozen=True)
class Augment:
    """One augmentation policy.

    Attributes:
        name: as in TrialSpec.
        per_image: function that varies each image by itself, or None.
        per_batch: one of torchvision's v2 transforms that mixes images and labels of a batch, or None.
    """

    name: str
    per_image: Vary | None = None
    per_batch: Any = None

    def __call__(
        self, images: torch.Tensor, labels: torch.Tensor, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Varied copies of a batch.

        Args:
            images: (n, 3, s, s) uint8, on any device.
            labels: (n,) int64.
            generator: source of all random numbers, on the CPU.

        Returns:
            The images, uint8, and labels, (n,) int64; after mixing, images in float in [0, 255] and (n,
            classes) probabilities.
        """
        if self.per_image is not None:
            images = self.per_image(images, generator)
        if self.per_batch is not None:
            images, labels = _seeded(lambda: self.per_batch(images.float(), labels), generator)
        return images, labels


def image_augmentation(name: str, num_classes: int) -> Augment:
    """The policy of that name for images.

    Args:
        name: "none"; "flip_crop" (mirror, and crop after padding by an eighth); "rotation" (up to 15
            degrees); "trivial" (TrivialAugment, Mueller & Hutter 2021); "rand" (RandAugment, Cubuk et
            al. 2020); "mixup" (Zhang et al. 2018, alpha 0.2); "cutmix" (Yun et al. 2019, alpha 1).
        num_classes: number of classes, needed to mix labels.

    Raises:
        KeyError: on an unknown name, which a TrialSpec refuses beforehand.
    """
    bilinear = v2.InterpolationMode.BILINEAR
    policies = {
        "none": Augment(name),
        "flip_crop": Augment(name, _flip_crop),
        "rotation": Augment(name, _rotation),
        "trivial": Augment(name, _one_by_one(v2.TrivialAugmentWide(interpolation=bilinear))),
        "rand": Augment(name, _one_by_one(v2.RandAugment(interpolation=bilinear))),
        "mixup": Augment(name, per_batch=v2.MixUp(alpha=0.2, num_classes=num_classes)),
        "cutmix": Augment(name, per_batch=v2.CutMix(alpha=1.0, num_classes=num_classes)),
    }
    return policies[name]


def _flip_crop(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Mirror at random, and shift by up to an eighth of the side, with reflected edges."""
    count, side = len(images), images.shape[-1]
    pad = max(1, side // 8)
    flip = torch.rand(count, generator=generator) < 0.5
    shifts = torch.randint(-pad, pad + 1, (2, count, 1), generator=generator)
    rows, columns = (torch.arange(side) + shift for shift in shifts)
    rows, columns = ((side - 1 - (side - 1 - x.abs()).abs()) for x in (rows, columns))
    columns = torch.where(flip[:, None], columns.flip(1), columns)
    rows, columns = rows.to(images.device), columns.to(images.device)
    which = torch.arange(count, device=images.device)[:, None, None, None]
    channels = torch.arange(images.shape[1], device=images.device)[None, :, None, None]
    return images[which, channels, rows[:, None, :, None], columns[:, None, None, :]]


def _rotation(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Rotate about the centre by up to 15 degrees, bilinear, with black outside the image."""
    angle = (torch.rand(len(images), generator=generator) * 30 - 15).deg2rad()
    zero = torch.zeros_like(angle)
    matrix = torch.stack(
        [angle.cos(), -angle.sin(), zero, angle.sin(), angle.cos(), zero], dim=1
    ).view(-1, 2, 3)
    grid = F.affine_grid(matrix.to(images.device), list(images.shape), align_corners=False)
    turned = F.grid_sample(images.float(), grid, mode="bilinear", align_corners=False)
    return turned.round().to(torch.uint8)


def _one_by_one(transform: Any) -> Vary:
    """Apply a torchvision transform, which draws once per call, to each image separately."""

    def vary(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return _seeded(lambda: torch.stack([transform(image) for image in images]), generator)

    return vary


def _seeded(draw: Callable[[], T], generator: torch.Generator) -> T:
    """Call `draw`, which uses torch's global generator of the CPU as torchvision does, without changing that
    generator."""
    seed = int(torch.randint(2**31, (), generator=generator))
    with torch.random.fork_rng(devices=[]):
        # Not the generators of other devices, from which dropout draws.
        torch.default_generator.manual_seed(seed)
        return draw()
