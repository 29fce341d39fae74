"""Images of one size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, final

import torch
from PIL import Image
from torch.nn import functional as F
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tvf

from harness.core.versions import versions
from harness.inputs.augment import AUGMENTATIONS, Augment, image_augmentation
from harness.inputs.base import Input, Prepare
from harness.inputs.corruptions import CORRUPTIONS, corrupt_images


@final
@dataclass(frozen=True)
class Pixels(Input):
    """Square RGB images: (3, s, s) uint8, normalised per channel.

    Attributes:
        resolution: side in pixels.
        interpolation: how images are resized to that resolution.
        mean, std: mean and standard deviation of each channel, for pixels in [0, 1].
    """

    resolution: int
    interpolation: str = "bilinear"
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)

    augmentations: ClassVar[tuple[str, ...]] = AUGMENTATIONS
    corruptions: ClassVar[tuple[str, ...]] = CORRUPTIONS

    @property
    def shape(self) -> tuple[int, ...]:
        return 3, self.resolution, self.resolution

    def __str__(self) -> str:
        return f"{self.resolution} x {self.resolution} pixels"

    def key(self) -> dict[str, str]:
        return {"interpolation": self.interpolation, **versions("torch", "torchvision")}

    def square(self, images: torch.Tensor) -> torch.Tensor:
        """(..., h, w) images with the shorter side resized to the resolution, then a centre crop."""
        mode = v2.InterpolationMode(self.interpolation)
        resized = tvf.resize(images, [self.resolution], interpolation=mode, antialias=True)
        cropped: torch.Tensor = tvf.center_crop(resized, [self.resolution, self.resolution])
        return cropped

    def stretched(self, images: torch.Tensor) -> torch.Tensor:
        """(..., h, w) images with both sides resized to the resolution."""
        mode = v2.InterpolationMode(self.interpolation)
        sides = [self.resolution, self.resolution]
        resized: torch.Tensor = tvf.resize(images, sides, interpolation=mode, antialias=True)
        return resized

    def row(self, example: Any) -> torch.Tensor:
        """(3, s, s) uint8 of an RGB image of Pillow."""
        assert isinstance(example, Image.Image)
        return self.square(tvf.pil_to_tensor(example))

    def preparation(self, device: torch.device, layout: torch.memory_format) -> Prepare:
        mean, std = (
            torch.tensor(values, device=device).view(1, 3, 1, 1) * 255
            for values in (self.mean, self.std)
        )
        return lambda rows: ((rows.float() - mean) / std).contiguous(memory_format=layout)

    def random(self, count: int, generator: torch.Generator) -> torch.Tensor:
        return torch.randint(256, (count, *self.shape), generator=generator, dtype=self.dtype)

    def at(self, resolution: int) -> Pixels:
        return replace(self, resolution=resolution)

    def augmentation(self, name: str, num_classes: int) -> Augment:
        return image_augmentation(name, num_classes)

    def corrupted(
        self,
        rows: torch.Tensor,
        name: str,
        generator: torch.Generator,
        read: Callable[[Input], torch.Tensor],
    ) -> torch.Tensor:
        return corrupt_images(rows, name, generator)

    def thumbnails(self, rows: torch.Tensor) -> torch.Tensor:
        """Grey, 16 x 16."""
        return F.interpolate(rows.float().mean(1, keepdim=True), (16, 16), mode="area").flatten(1)

    def pictures(self, rows: torch.Tensor) -> torch.Tensor:
        return rows

    def in_words(self) -> str:
        side = self.resolution
        return (
            f"An image in RGB is resized so that its shorter side has {side} px ({self.interpolation}), cut "
            f"to the centre {side} x {side} px, {self.normalisation()}."
        )

    def normalisation(self) -> str:
        """The end of `in_words`."""
        return (
            f"scaled to [0, 1], and normalised with mean {list(self.mean)} and standard deviation "
            f"{list(self.std)}"
        )

    def describe(self) -> dict[str, Any]:
        return {
            "resolution": self.resolution,
            "mean": self.mean,
            "std": self.std,
            "interpolation": self.interpolation,
        }
