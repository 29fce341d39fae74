"""Image classification sets of Hugging Face `datasets`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from harness.data.target import Target, TorchvisionTarget
from harness.errors import UserError, first_line


def huggingface_target(path: str, options: Mapping[str, str]) -> Target:
    """An image classification set of Hugging Face `datasets`: a folder made by save_to_disk, else a name
    on the hub. Needs an image column and a ClassLabel column; its "test" part is the official test set."""
    try:
        import datasets
    except ImportError:
        raise UserError(f"target hf:{path} needs the extra: pip install -e '.[hf]'") from None
    try:
        on_disk = Path(path).expanduser().is_dir()
        found = datasets.load_from_disk(path) if on_disk else datasets.load_dataset(path)
    except Exception as error:  # hub, OSError, ValueError kinds
        raise UserError(
            f"target hf:{path}: neither a folder made by save_to_disk nor to be had from the hub "
            f"({first_line(error)})"
        ) from error
    by_name = found if isinstance(found, datasets.DatasetDict) else {"train": found}
    parts = [by_name[name] for name in ("train", "test") if name in by_name]
    features = parts[0].features if parts else {}
    kinds = {type(kind).__name__: column for column, kind in features.items()}
    if not {"Image", "ClassLabel"} <= kinds.keys():
        raise UserError(
            f"target hf:{path}: needs a train part with an Image and a ClassLabel column"
        )
    label = kinds["ClassLabel"]
    labels = np.concatenate([np.asarray(part[label], np.int64) for part in parts])
    test = np.repeat([False, True], [len(p) for p in parts]) if len(parts) == 2 else None
    images = tuple(_ImageColumn(part, kinds["Image"]) for part in parts)
    classes = tuple(map(str, features[label].names))
    return TorchvisionTarget(f"hf:{Path(path).name}", classes, labels, test, images)


@dataclass(frozen=True)
class _ImageColumn:
    """The images of a Hugging Face data set, indexed as torchvision's sets are."""

    rows: Any
    column: str

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Image.Image]:
        return (self.rows[index][self.column],)
