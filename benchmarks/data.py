"""The images that all programs read: Fashion-MNIST as folders of 96 px PNG files, created once.

    python -m benchmarks.data --per-class 400

DIR/all contains one folder per class, for the harness. DIR/train and DIR/val contain hard links to the images
that the split of the harness draws, for the other programs.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks import recipe
from benchmarks.study import make_study
from harness.data import load_target, split_indices
from harness.inputs import Pixels
from harness.search.plan import trial_seed
from harness.search.space import first_draw

FULL, SMALL = 400, 40
"""Images per class, for the benchmark and for a quick test."""


def scratch() -> Path:
    """Folder for files that can be created again."""
    return Path(tempfile.gettempdir()) / "transfer-harness-benchmarks"


def make_folders(per_class: int, root: Path | None = None) -> Path:
    """The folder DIR with `per_class` images of each class. It is created if it is absent, and appears only
    when it is complete.

    Args:
        per_class: images per class, a multiple of 4.
        root: where DIR is put; None is the system's folder for temporary files.
    """
    data = (root or scratch()) / f"fashion-mnist-{recipe.SIZE}-{per_class}"
    if data.is_dir():
        return data
    data.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(dir=data.parent, prefix=".unfinished-"))
    try:
        _write_images(unfinished / "all", per_class)
        _link_parts(unfinished)
        unfinished.rename(data)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return data


def _write_images(folder: Path, per_class: int) -> None:
    target = load_target("fashion_mnist")
    for label, name in enumerate(target.classes):
        chosen = np.flatnonzero(target.labels == label)[:per_class]
        images = target.read(chosen, Pixels(recipe.SIZE)).permute(0, 2, 3, 1).numpy()
        into = folder / name.replace("/", " or ")
        into.mkdir(parents=True)
        for number, image in enumerate(images):
            Image.fromarray(image).save(into / f"{number:05d}.png")


def _link_parts(data: Path) -> None:
    """Create hard links, so that programs read files without following symbolic links."""
    study = make_study(recipe.WORKS[0], data)
    spec, seed = first_draw(study, study.cells()[0]), trial_seed(study, "tune", 0)
    assert spec.seed == seed
    target = load_target(spec.target)
    split = split_indices(target, spec)
    for part, positions in (("train", split.train), ("val", split.val)):
        for position in positions:
            file = Path(target.describe(position))
            into = data / part / file.parent.name
            into.mkdir(parents=True, exist_ok=True)
            os.link(file, into / file.name)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.data")
    parser.add_argument("--per-class", type=int, default=FULL)
    print(make_folders(parser.parse_args().per_class))
