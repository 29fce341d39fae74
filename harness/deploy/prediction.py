"""Classify images with an exported model, batch by batch."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from harness.core.errors import UserError
from harness.data.media import Medium
from harness.data.tree import SkippedFiles, files_below
from harness.deploy.model import Model

BATCH = 32


@dataclass(frozen=True)
class Prediction:
    """Prediction for one image.

    Attributes:
        path: the image.
        classes: the most probable ones, the first first.
        probabilities: theirs.
        problem: why the image could not be read; "" if it could.
    """

    path: Path
    classes: tuple[str, ...] = ()
    probabilities: tuple[float, ...] = ()
    problem: str = ""


def predict(model: Model, paths: Sequence[Path], top: int) -> Iterator[Prediction]:
    """One prediction per image, in order.

    Args:
        model: the network.
        paths: of the images.
        top: classes per image, the most probable first.
    """
    for start in range(0, len(paths), BATCH):
        some = paths[start : start + BATCH]
        pixels, problems = _read(model, some)
        shares = iter(model.probabilities(pixels).tolist() if len(pixels) else ())
        for path in some:
            if path in problems:
                yield Prediction(path, problem=problems[path])
                continue
            ranked = sorted(zip(next(shares), model.classes, strict=True), reverse=True)[:top]
            yield Prediction(path, tuple(c for _, c in ranked), tuple(p for p, _ in ranked))


def _read(model: Model, paths: Sequence[Path]) -> tuple[torch.Tensor, dict[Path, str]]:
    """The images that can be read, one after the other, and why the others cannot."""
    read: list[torch.Tensor] = []
    problems: dict[Path, str] = {}
    for path in paths:
        try:
            read.append(model.read(path))
        except UserError as error:
            problems[path] = str(error)
    return torch.stack(read) if read else torch.empty(0), problems


def example_files(paths: Iterable[Path], medium: type[Medium]) -> tuple[list[Path], list[str]]:
    """Files as they are, folders as the examples below them, and notes on the files skipped there."""
    found: list[Path] = []
    notes: list[str] = []
    for path in paths:
        if os.path.isdir(path):
            skipped = SkippedFiles(medium)
            found += files_below(path, skipped)
            notes += skipped.notes(path)
        else:
            found.append(path)
    return found, notes
