"""Classify images, sounds or texts with an exported model.

    python -m harness.predict models/freeze_depth photo.jpg folder/ --top 3

Files that cannot be read are named on stderr, and the others are classified; the exit code is then 2.
"""

from __future__ import annotations

import csv as csv_files
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from harness.core.caller import undisturbed
from harness.core.command_line import command
from harness.core.errors import UserError

if TYPE_CHECKING:
    from harness.deploy.prediction import Prediction

MANY = 20
"""Results that fill a screen: with more, files that could not be read are counted again at the end."""


@undisturbed()
def predict_images(
    model: str | Path, images: Sequence[str | Path], top: int = 1
) -> Iterator[Prediction]:
    """One prediction per file, in order; a folder stands for the images, sounds or texts in it.

    Args:
        model: folder that harness.export wrote.
        images: files and folders, of sounds or texts if the model is for them.
        top: classes per file, the most probable first.

    Raises:
        UserError: if there is no model, its weights are not those that were written, or there is no example.
    """
    from harness.deploy.model import open_model
    from harness.deploy.prediction import example_files, predict

    if top < 1:
        raise UserError(f"--top must be at least 1, got {top}")
    opened = open_model(Path(model))
    kind = type(opened.medium)
    paths, notes = example_files(map(Path, images), kind)
    for line in notes:
        print(f"note: {line}", file=sys.stderr)
    if not paths:
        raise UserError(f"no {kind.noun}s in {', '.join(map(str, images))}")
    return predict(opened, paths, top)


def run(model: Path, images: list[Path], *, top: int = 1, csv: bool = False) -> int:
    """Classify images, sounds or texts with an exported model.

    Files that cannot be read are named on stderr, and the others are classified; the exit code is then 2.

    Args:
        model: folder that harness.export wrote.
        images: image files, or folders of them; sounds or texts if the model is for those.
        top: classes per file, the most probable first.
        csv: print a table with the columns image, rank, class and probability.
    """
    predictions = predict_images(model, images, top)
    table = csv_files.writer(sys.stdout, lineterminator="\n") if csv else None
    if table is not None:
        table.writerow(["image", "rank", "class", "probability"])
    total, broken = 0, []
    for found in predictions:
        total += 1
        if found.problem:
            broken.append(found.path)
            print(f"error: {' '.join(found.problem.split())}", file=sys.stderr)
            continue
        ranked = list(zip(found.classes, found.probabilities, strict=True))
        if table is not None:
            table.writerows([found.path, i, c, f"{p:.6f}"] for i, (c, p) in enumerate(ranked, 1))
        else:
            print(f"{found.path}: {', '.join(f'{c} {p:.1%}' for c, p in ranked)}")
    if broken and total > MANY:
        print(
            f"error: {len(broken)} of {total} files could not be read, first {broken[0]}",
            file=sys.stderr,
        )
    return 2 if broken else 0


main = command("harness.predict", run, int)

if __name__ == "__main__":
    sys.exit(main())
