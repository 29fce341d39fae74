"""Classify images with an exported model.

    python -m harness.predict models/freeze_depth photo.jpg folder/ --top 3

Images that cannot be read are named on stderr, the others predicted; the exit code is then 2.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness.core.caller import undisturbed
from harness.core.command_line import Parser, run_command
from harness.core.errors import UserError

if TYPE_CHECKING:
    import torch

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


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = Parser(
        prog="python -m harness.predict", description="Classify images with an exported model."
    )
    parser.add_argument("model", type=Path, help="folder that harness.export wrote")
    parser.add_argument("images", nargs="+", type=Path, help="files, or folders of them")
    parser.add_argument("--top", type=int, default=1, help="classes per image (default: 1)")
    parser.add_argument("--csv", action="store_true", help="print image,rank,class,probability")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    return run_command(lambda: run(parse(argv)))


def run(arguments: argparse.Namespace) -> int:
    """Everything after the command line has been read; 2 if an image could not be read.

    Raises:
        UserError: on bad input.
    """
    if arguments.top < 1:
        raise UserError(f"--top must be at least 1, got {arguments.top}")
    paths, notes = _files(arguments.images)
    for line in notes:
        print(f"note: {line}", file=sys.stderr)
    predictions = predict_images(arguments.model, paths or arguments.images, arguments.top)
    table = csv.writer(sys.stdout, lineterminator="\n") if arguments.csv else None
    if table is not None:
        table.writerow(["image", "rank", "class", "probability"])
    broken = 0
    for found in predictions:
        if found.problem:
            broken += 1
            print(f"error: {' '.join(found.problem.split())}", file=sys.stderr)
            continue
        ranked = list(zip(found.classes, found.probabilities, strict=True))
        if table is not None:
            table.writerows([found.path, i, c, f"{p:.6f}"] for i, (c, p) in enumerate(ranked, 1))
        else:
            print(f"{found.path}: {', '.join(f'{c} {p:.1%}' for c, p in ranked)}")
    return 2 if broken else 0


@undisturbed()
def predict_images(
    model: str | Path, images: Sequence[str | Path], top: int = 1
) -> Iterator[Prediction]:
    """One prediction per image, in order; a folder stands for the images in it.

    Args:
        model: folder that harness.export wrote.
        images: files and folders.
        top: classes per image, the most probable first.

    Raises:
        UserError: if there is no model, its weights are not those that were written, or there is no image.
    """
    from harness.deploy.model import open_model

    opened = open_model(Path(model))
    paths, _ = _files(map(Path, images))
    if not paths:
        raise UserError(f"no images in {', '.join(map(str, images))}")
    return _predict(opened, paths, top)


def _predict(model: Model, paths: Sequence[Path], top: int) -> Iterator[Prediction]:
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
    import torch

    read: list[torch.Tensor] = []
    problems: dict[Path, str] = {}
    for path in paths:
        try:
            read.append(model.read(path))
        except UserError as error:
            problems[path] = str(error)
    return torch.stack(read) if read else torch.empty(0), problems


def _files(paths: Iterable[Path]) -> tuple[list[Path], list[str]]:
    """Files as they are, folders as the images below them, and what is passed over there."""
    from harness.data.images import is_folder
    from harness.data.tree import SkippedFiles, images_below

    found: list[Path] = []
    notes: list[str] = []
    for path in paths:
        if is_folder(path):
            skipped = SkippedFiles()
            found += images_below(path, skipped)
            notes += skipped.notes(path)
        else:
            found.append(path)
    return found, notes


if __name__ == "__main__":
    sys.exit(main())
