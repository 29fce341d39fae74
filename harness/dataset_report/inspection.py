"""Inspect a data set: counts, sizes, files that are not images, broken and duplicate images."""

from __future__ import annotations

import html
import os
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from harness.core.errors import UserError
from harness.data import Examples, Leak, Target, find_leaks, load_target
from harness.data.checksums import checksums
from harness.data.huggingface import HubTarget
from harness.data.images import image_suffixes, open_header
from harness.data.target import ArrayTarget, FileTarget, Indices

LOOKED_AT = 3000
"""Images decoded at most, to find broken and double ones; headers and bytes of files are read of all."""
THUMBNAIL = 96
LEAST = 5
"""Images of a class from which something can be trained, selected and tested: 3, 1 and 1."""
WIDE = 3.0
"""Largest class by smallest from which the imbalance is worth a sentence."""


@dataclass(frozen=True, repr=False)
class DataSetReport:
    """What was found in a target.

    Attributes:
        name: as the user wrote it.
        target: the data set.
        counts: (classes,) images per class.
        test_counts: (classes,) of them in the official test set; None if there is none.
        shapes: (width, height, mode) -> number of files, from their headers; empty where there are none.
        looked_at: (k,) positions of the images that were decoded.
        thumbnails: those, (k, 3, s, s) uint8.
        broken: file -> why it cannot be read.
        misnamed: file -> the format that it has, unlike its name.
        same_files: groups of positions whose files are equal, byte by byte.
        doubles: pairs among `looked_at` that show the same picture, or nearly.
        leaks: such pairs, and equal files, between the given train and test parts.
    """

    name: str
    target: Target
    counts: Indices
    test_counts: Indices | None
    shapes: Counter[tuple[int, int, str]]
    looked_at: Indices
    thumbnails: torch.Tensor
    broken: dict[str, str]
    misnamed: dict[str, str]
    same_files: tuple[tuple[int, ...], ...]
    doubles: tuple[Leak, ...]
    leaks: tuple[Leak, ...]

    def __repr__(self) -> str:
        from harness.dataset_report.text import findings  # made of this

        return "\n- ".join((self.target.name, *findings(self)))

    def _repr_html_(self) -> str:
        from harness.dataset_report.contact_sheet import draw, picture
        from harness.dataset_report.text import findings

        found = "".join(f"<li>{html.escape(line)}</li>" for line in findings(self))
        return f"<p>{html.escape(self.target.name)}</p><ul>{found}</ul>{picture(draw(self))}"

    @cached_property
    def _root(self) -> str:
        """The folder that all files of the target lie in; "" where there are none."""
        files = [p for i in self.looked_at.tolist() if (p := _file(self.target, i))]
        return os.path.commonpath(files) + os.sep if len(files) > 1 else ""

    def short(self, path: str) -> str:
        """A file's name within the target."""
        return path.removeprefix(self._root)

    def at(self, position: int) -> str:
        """The image at that position, as shortly as it can be named."""
        return self.short(self.target.describe(position))

    def names_in_classes(self) -> list[str]:
        """Paths of the images below their class folders; none where the target is not read from files."""
        target = self.target
        if not isinstance(target, FileTarget):
            return []
        part = given_parts(target)
        folders: defaultdict[tuple[int, str], list[Path]] = defaultdict(list)
        keys = zip(target.labels.tolist(), part.tolist(), strict=True)
        for key, path in zip(keys, target.paths, strict=True):
            folders[key].append(path)
        names: list[str] = []
        for files in folders.values():
            top = Path(os.path.commonpath([file.parent for file in files]))
            names += [file.relative_to(top).as_posix() for file in files]
        return names

    @property
    def short_side(self) -> int | None:
        """Median of the shorter sides in pixels."""
        sides = [min(w, h) for (w, h, _), n in self.shapes.items() for _ in range(n)]
        return round(float(np.median(sides))) if sides else None


def inspect_target(name: str) -> DataSetReport:
    """Everything about the target of that name that can be seen without training.

    Raises:
        UserError: if there is no such target, or no image of it can be read.
    """
    target = load_target(name)
    labels, official = target.labels, target.official_test
    classes = len(target.classes)
    test = None if official is None else np.bincount(labels[official], minlength=classes)
    files = {i: path for i in range(len(labels)) if (path := _file(target, i)) is not None}
    shapes, misnamed, broken = _headers(files)
    whole = np.array([i for i in _some(target) if str(files.get(int(i))) not in broken], np.int64)
    thumbnails = list(_thumbnails(target, whole, broken))
    if not thumbnails:
        raise UserError(f"target {name}: no image can be read, first {next(iter(broken.items()))}")
    seen = np.array([i for i, _ in thumbnails], np.int64)
    pixels = torch.stack([p for _, p in thumbnails])
    same = _same_files(files)
    doubles = [
        leak
        for leak in _doubles(Examples(pixels, torch.from_numpy(labels[seen]), seen), same)
        if target.groups is None or len({*target.groups[list(leak.positions)]}) > 1
    ]
    leaks = tuple(_across(doubles, given_parts(target)))
    if not shapes and isinstance(target, ArrayTarget):
        height, width = target.images.shape[1:3]
        mode = "L" if target.images.ndim == 3 else "RGB"
        shapes[width, height, mode] = len(labels)
    if isinstance(target, HubTarget):
        shapes = target.shapes()
    return DataSetReport(
        name=name,
        target=target,
        counts=np.bincount(labels, minlength=classes),
        test_counts=test,
        shapes=shapes,
        looked_at=seen,
        thumbnails=pixels,
        broken=broken,
        misnamed=misnamed,
        same_files=same,
        doubles=tuple(doubles),
        leaks=leaks,
    )


def _file(target: Target, position: int) -> Path | None:
    path = Path(target.describe(position))
    return path if path.is_file() else None


def _headers(
    files: dict[int, Path],
) -> tuple[Counter[tuple[int, int, str]], dict[str, str], dict[str, str]]:
    """Shapes, misnamed files, and files without an image's header."""
    shapes: Counter[tuple[int, int, str]] = Counter()
    misnamed: dict[str, str] = {}
    broken: dict[str, str] = {}
    known = image_suffixes()
    for path in files.values():
        try:
            with open_header(path) as image:
                shapes[image.width, image.height, image.mode] += 1
                promised = known.get(path.suffix.lower())
                found = "JPEG" if image.format == "MPO" else image.format  # of telephones, in .jpg
                if promised and promised not in (found, image.format):
                    misnamed[str(path)] = str(image.format)
        except Exception:  # Pillow raises OSError, SyntaxError, ValueError, struct.error, ...
            broken[str(path)] = "no image that can be read"
    return shapes, misnamed, broken


def _some(target: Target) -> Indices:
    """At most LOOKED_AT positions, the same share of every class, spread over it."""
    share = min(1.0, LOOKED_AT / len(target.labels))
    chosen = []
    for label in range(len(target.classes)):
        members = np.flatnonzero(target.labels == label)
        count = max(1, round(share * len(members)))
        chosen.append(members[np.linspace(0, len(members) - 1, count).round().astype(int)])
    return np.sort(np.concatenate(chosen)).astype(np.int64)


def _thumbnails(
    target: Target, positions: Indices, broken: dict[str, str]
) -> Iterator[tuple[int, torch.Tensor]]:
    """Every image that can be read; the others are added to `broken`."""
    for start in range(0, len(positions), 64):
        some = positions[start : start + 64]
        try:
            yield from zip(some.tolist(), target.read(some, THUMBNAIL, "bilinear"), strict=True)
        except UserError:  # one of them is broken: which?
            for i in some:
                try:
                    yield int(i), target.read(np.array([i]), THUMBNAIL, "bilinear")[0]
                except UserError as error:
                    broken[target.describe(int(i))] = str(error)


def _same_files(files: dict[int, Path]) -> tuple[tuple[int, ...], ...]:
    by_size: defaultdict[int, list[int]] = defaultdict(list)
    for i, path in files.items():
        by_size[path.stat().st_size].append(i)
    by_hash: defaultdict[bytes, list[int]] = defaultdict(list)
    for group in by_size.values():
        if len(group) > 1:  # files of a size of their own are equal to none
            for i, digest in zip(group, checksums([files[i] for i in group]), strict=True):
                by_hash[digest].append(i)
    return tuple(tuple(group) for group in by_hash.values() if len(group) > 1)


def _doubles(examples: Examples, same: tuple[tuple[int, ...], ...]) -> list[Leak]:
    """Pairs of one picture, each once, equal files that were not decoded included."""
    found = find_leaks({"": examples, " ": examples})
    # Two thumbnails that are equal show the same picture; whether the files do is another question.
    pairs = {tuple(sorted(leak.positions)): leak for leak in found}
    for group in same:
        for i in group[1:]:
            pairs[group[0], i] = Leak(("", ""), (group[0], i), exact=True)
    return [replace(pairs[a, b], positions=(a, b)) for a, b in sorted(pairs) if a != b]


def _across(doubles: list[Leak], part: np.ndarray) -> Iterator[Leak]:
    """Of them, those whose images are in two given parts."""
    for leak in doubles:
        first, second = (str(part[i]) for i in leak.positions)
        if first != second:
            yield replace(leak, parts=(first, second))


def given_parts(target: Target) -> np.ndarray:
    """(n,) "train", "validation" or "test" for each image, as the data set has it."""
    part = np.full(len(target.labels), "train", dtype="<U10")
    for name, mask in (("validation", target.official_val), ("test", target.official_test)):
        if mask is not None:
            part[mask] = name
    return part
