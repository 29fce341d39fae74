"""Images listed in a table, one row per image."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from harness.data.images import is_file, shown
from harness.data.target import FileTarget, Target
from harness.errors import UserError, first_line


def table_target(path: str, options: Mapping[str, str]) -> Target:
    """A table with the columns image (path, relative to the table's folder), label and, if the data set
    has its own test images, split (train or test)."""
    file = Path(path).expanduser()
    if not is_file(file):
        raise UserError(f"target csv:{path}: no such file; want columns image, label[, split]")
    try:
        table = pd.read_csv(
            file,
            dtype=str,
            skipinitialspace=True,
            encoding="utf-8-sig",
            keep_default_na=False,
            na_values=[""],
        )
    except (ValueError, OSError) as error:  # empty, not text, ragged rows
        raise UserError(
            f"target csv:{path} cannot be read as a table: {first_line(error)}"
        ) from error
    table = table.apply(lambda column: column.str.strip())
    if complaint := _complaint(table):
        raise UserError(f"target csv:{path}: {complaint}; want columns image, label[, split]")
    paths = tuple(file.parent / image for image in table["image"])
    absent = [p for p in paths if not is_file(p)]
    if absent:
        raise UserError(
            f"target csv:{path}: {len(absent)} images are absent, first {shown(absent[0])}"
        )
    if len(set(paths)) < len(paths):
        raise UserError(f"target csv:{path}: an image is listed twice")
    classes, labels = np.unique(table["label"].to_numpy(str), return_inverse=True)
    if len(classes) < 2:
        raise UserError(f"target csv:{path}: needs at least 2 classes, found {len(classes)}")
    test = None
    if "split" in table:
        split = table["split"].fillna("train").replace("", "train")
        if unknown := set(split) - {"train", "test"}:
            raise UserError(f"target csv:{path}: split must be train or test, got {min(unknown)!r}")
        test = (split == "test").to_numpy() if (split == "test").any() else None
    names = tuple(map(str, classes))
    return FileTarget(f"csv:{file.name}", names, labels.astype(np.int64), test, paths)


def _complaint(table: pd.DataFrame) -> str:
    """What is wrong with a table of images and labels; "" if nothing is."""
    if missing := {"image", "label"} - set(table.columns):
        comma = "" if len(table.columns) > 1 else " (columns are told apart by commas)"
        return f"column {min(missing)!r} is absent{comma}"
    if table.empty:
        return "it has no rows"
    if (table[["image", "label"]].fillna("") == "").any(axis=None):
        return "an image or label is empty"
    unsafe = [label for label in table["label"] if not label.isprintable()]
    return f"label {unsafe[0]!r} is no printable text" if unsafe else ""
