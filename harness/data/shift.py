"""Shifts of the test set, by name: changes of the test images under which a model is scored again."""

from __future__ import annotations

import numpy as np
import torch
from torchvision.transforms.v2 import functional as tvf

from harness.core.spec import derive_seed
from harness.data.splits import Examples

NOISE_SD = 0.15
CONTRAST = 0.3
PATCHES = 4
IMBALANCE = 10.0


def shifted(examples: Examples, name: str) -> Examples:
    """The test images under one shift; the result is the same in every trial.

    Args:
        examples: n test examples of side s.
        name: "noise" (Gaussian, sd 15 % of the range), "blur" (Gaussian, sd 4 % of the side),
            "contrast" (to 30 %), "patch_shuffle" (a 4 x 4 grid of tiles in random order), or
            "label_shift" (a subset in which the first class is ten times as frequent as the last, the
            others in between on a geometric scale). Noise and contrast follow ImageNet-C (Hendrycks &
            Dietterich 2019) at a medium severity.

    Raises:
        KeyError: on an unknown name, which a TrialSpec refuses beforehand.
    """
    generator = torch.Generator().manual_seed(derive_seed("shift", name, len(examples.labels)))
    if name == "label_shift":
        return _label_shift(examples, generator)
    images = {"noise": _noise, "blur": _blur, "contrast": _contrast, "patch_shuffle": _shuffle}[
        name
    ](examples.images, generator)
    return Examples(images, examples.labels, examples.index)


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
    """The tiles of each image in a random order of its own; remaining pixels at the edges are unchanged."""
    side = images.shape[-1] // PATCHES
    out = images.clone()
    for image in out:
        order = torch.randperm(PATCHES * PATCHES, generator=generator).tolist()
        tiles = [
            image[:, r * side : (r + 1) * side, c * side : (c + 1) * side].clone()
            for r in range(PATCHES)
            for c in range(PATCHES)
        ]
        for place, take in enumerate(order):
            r, c = divmod(place, PATCHES)
            image[:, r * side : (r + 1) * side, c * side : (c + 1) * side] = tiles[take]
    return out


def _label_shift(examples: Examples, generator: torch.Generator) -> Examples:
    classes = int(examples.labels.max()) + 1
    counts = torch.bincount(examples.labels, minlength=classes)
    wanted = IMBALANCE ** -torch.linspace(0, 1, classes)
    keep = []
    for label in range(classes):
        members = torch.nonzero(examples.labels == label)[:, 0]
        order = members[torch.randperm(len(members), generator=generator)]
        keep.append(order[: max(1, round(float(counts.min() * wanted[label])))])
    rows = torch.cat(keep).sort().values
    return Examples(examples.pixels[rows], examples.labels[rows], examples.index[rows.numpy()])
