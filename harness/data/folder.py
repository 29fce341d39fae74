"""Images in a folder, one sub-folder per class."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from harness.data.images import IMAGE_SUFFIXES, is_file, shown
from harness.data.target import FileTarget, Target
from harness.errors import UserError, first_line


def folder_target(path: str, options: Mapping[str, str]) -> Target:
    root = Path(path).expanduser()
    if not root.is_dir():
        raise UserError(f"target folder:{path}: no such folder; want one sub-folder per class")
    try:
        folders = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    except OSError as error:
        raise UserError(f"target folder:{path} cannot be read: {first_line(error)}") from error
    paths: list[Path] = []
    labels: list[int] = []
    if unsafe := [folder for folder in folders if not folder.name.isprintable()]:
        raise UserError(
            f"target folder:{path}: class folder {shown(unsafe[0])!r} is no printable text; rename it"
        )
    for label, folder in enumerate(folders):
        found = sorted(
            p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and is_file(p)
        )
        if not found:
            raise UserError(f"target folder:{path}: class folder {folder.name!r} holds no images")
        paths += found
        labels += [label] * len(found)
    if len(folders) < 2:
        raise UserError(
            f"target folder:{path}: needs at least 2 class folders with images, found {len(folders)}"
        )
    name = f"folder:{root.resolve().name}"
    classes = tuple(folder.name for folder in folders)
    return FileTarget(name, classes, np.array(labels, np.int64), None, tuple(paths))
