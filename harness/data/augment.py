"""How are training images varied? A policy by name, drawn from the trial's own generator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torchvision.transforms import v2


@dataclass(frozen=True)
class Augment:
    """One policy of torchvision's v2 transforms.

    Attributes:
        per_image: applied to each image by itself, or None.
        per_batch: mixes images and labels of a batch, or None.
    """

    per_image: Any = None
    per_batch: Any = None

    def __call__(
        self, images: torch.Tensor, labels: torch.Tensor, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Varied copies of a batch.

        Args:
            images: (n, 3, s, s) uint8.
            labels: (n,) int64.
            generator: source of all randomness; one number is drawn per batch.

        Returns:
            Images, uint8 or (when mixed) float in [0, 255], and labels, (n,) int64 or (when mixed) (n,
            classes) probabilities.
        """
        if self.per_image is None and self.per_batch is None:
            return images, labels
        seed = int(torch.randint(2**31, (), generator=generator))
        # torchvision draws from torch's global generator; the fork keeps that inside this function.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if self.per_image is not None:
                images = torch.stack([self.per_image(image) for image in images])
            if self.per_batch is not None:
                images, labels = self.per_batch(images.float(), labels)
        return images, labels


def augmentation(name: str, size: int, num_classes: int) -> Augment:
    """The policy of that name.

    Args:
        name: "none"; "flip_crop" (mirror, and crop after padding by an eighth); "rotation" (up to 15
            degrees); "trivial" (TrivialAugment, Mueller & Hutter 2021); "rand" (RandAugment, Cubuk et
            al. 2020); "mixup" (Zhang et al. 2018, alpha 0.2); "cutmix" (Yun et al. 2019, alpha 1).
        size: side of the images in pixels.
        num_classes: needed to mix labels.

    Raises:
        KeyError: on another name; specs are checked when they are made.
    """
    bilinear = v2.InterpolationMode.BILINEAR
    flip_crop = v2.Compose(
        [
            v2.RandomHorizontalFlip(),
            v2.RandomCrop(size, padding=max(1, size // 8), padding_mode="reflect"),
        ]
    )
    policies = {
        "none": Augment(),
        "flip_crop": Augment(flip_crop),
        "rotation": Augment(v2.RandomRotation(15, interpolation=bilinear)),
        "trivial": Augment(v2.TrivialAugmentWide(interpolation=bilinear)),
        "rand": Augment(v2.RandAugment(interpolation=bilinear)),
        "mixup": Augment(per_batch=v2.MixUp(alpha=0.2, num_classes=num_classes)),
        "cutmix": Augment(per_batch=v2.CutMix(alpha=1.0, num_classes=num_classes)),
    }
    return policies[name]
