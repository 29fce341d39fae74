"""Small pictures made by the tests."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from PIL import Image


def paint(path: Path, level: int = 0) -> None:
    """A picture of one grey level."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 8), level).save(path)


def write_noise(
    folder: Path, count: int = 1, suffix: str = ".png", kind: str = "PNG", seed: int = 0
) -> Path:
    """So many pictures of noise, no two of them equal; returns their folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        seeds = [seed, int.from_bytes(os.fsencode(folder / str(i))[-12:])]
        noise = np.random.default_rng(seeds).integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(noise).save(folder / f"{i}{suffix}", kind)
    return folder


def write_classes(root: Path, seed: int = 0, **counts: int) -> Path:
    """A folder for each class with so many pictures of noise; returns the folder of all."""
    for name, count in counts.items():
        write_noise(root / name, count, seed=seed)
    return root
