"""Corruptions of images, by name."""

from __future__ import annotations

import numpy as np
import torch
from torchvision.transforms.v2 import functional as tvf

from harness.core.spec import SHIFTS

NOISE_SD = 0.15
CONTRAST = 0.3
PATCHES = 4
CORRUPTIONS = tuple(name for name in SHIFTS if name != "label_shift")


def corrupt_images(images: torch.Tensor, name: str, generator: torch.Generator) -> torch.Tensor:
    """Images under one corruption.

    Args:
        images: (n, 3, s, s) uint8.
        name: "noise" (Gaussian, sd 15 % of the range), "blur" (Gaussian, sd 4 % of the side), "contrast" (to
            30 %), or "patch_shuffle" (a 4 x 4 grid of tiles in random order). Noise and contrast follow
            ImageNet-C (Hendrycks & Dietterich 2019) at a medium severity.
        generator: source of all random numbers.

    Raises:
        KeyError: on an unknown name, which a TrialSpec refuses beforehand.
    """
    corruptions = {"noise": _noise, "blur": _blur, "contrast": _contrast, "patch_shuffle": _shuffle}
    return corruptions[name](images, generator)


def _noise(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    noise = torch.randn(images.shape, generator=generator) * NOISE_SD * 255
    return (images + noise).round().clamp(0, 255).to(torch.uint8)


def _blur(images: torch.Tensor, _: torch.Generator) -> torch.Tensor:
    sigma = 0.04 * images.shape[-1]
    kernel = 2 * int(np.ceil(2 * sigma)) + 1
    blurred: torch.Tensor = tvf.gaussian_blur(images, [kernel, kernel], [sigma, sigma])
    return blurred


def _contrast(images: torch.Tensor, _: torch.Generator) -> torch.Tensor:
    faded: torch.Tensor = tvf.adjust_contrast(images, CONTRAST)
    return faded


def _shuffle(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """The tiles of each image in a random order of its own."""
    orders = [torch.randperm(PATCHES * PATCHES, generator=generator) for _ in images]
    return with_tiles_moved(images, PATCHES, torch.stack(orders))


def with_tiles_moved(images: torch.Tensor, k: int, order: torch.Tensor) -> torch.Tensor:
    """Copies of images whose k x k tiles are in another order; remaining pixels at the lower and right edges
    are unchanged.

    Args:
        images: (n, 3, s, s), s at least k.
        k: number of tiles per side.
        order: (n, k * k) which tile, row by row, comes to each place.
    """
    side = images.shape[-1] // k
    square = images[:, :, : k * side, : k * side]
    tiles = square.unflatten(3, (k, side)).unflatten(2, (k, side))  # n, 3, k, side, k, side
    tiles = tiles.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
    moved = tiles[torch.arange(len(images))[:, None], order].unflatten(1, (k, k))
    out = images.clone()
    out[:, :, : k * side, : k * side] = moved.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)
    return out
