"""Inspect a data set: counts, sizes, files that are not examples, broken and duplicate examples."""

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
from harness.data.media import Images, Medium
from harness.data.target import ArrayTarget, FileTarget, Indices
from harness.inputs import Input

MOST_DECODED = 3000
"""Largest number of images that are decoded to find broken images and duplicates. Headers are read, and files
compared, for all images."""
LEAST = 5
"""Smallest number of images of a class with which a study is possible: 3 for training, 1 for validation and 1
for the test."""
IMBALANCED = 3.0
"""Ratio of the largest to the smallest class from which the imbalance is reported."""


@dataclass(frozen=True, repr=False)
class DataSetReport:
    """Counts, sizes and problems of a data set.

    Attributes:
        name: name of the target as the user wrote it.
        target: the data set.
        counts: (classes,) number of images per class.
        test_counts: (classes,) number of official test images per class; None if there is no official test
            set.
        shapes: (width, height, mode) -> number of files, from their headers; empty if there are no files.
        decoded: (k,) positions of the images that were decoded.
        rows: (k, *form.shape), the decoded images.
        form: the form in which they were decoded.
        broken: file -> why it cannot be read.
        misnamed: file -> its actual format, which differs from that of its name.
        same_files: groups of positions whose files are identical.
        duplicates: pairs of decoded images that are identical or nearly so.
        leaks: such pairs, and identical files, between different official parts.
    """

    name: str
    target: Target
    counts: Indices
    test_counts: Indices | None
    shapes: Counter[tuple[int, int, str]]
    decoded: Indices
    rows: torch.Tensor
    form: Input
    broken: dict[str, str]
    misnamed: dict[str, str]
    same_files: tuple[tuple[int, ...], ...]
    duplicates: tuple[Leak, ...]
    leaks: tuple[Leak, ...]

    def __repr__(self) -> str:
        from harness.dataset_report.text import findings  # it imports this module

        return "\n- ".join((self.target.name, *findings(self)))

    def _repr_html_(self) -> str:
        from harness.dataset_report.contact_sheet import draw, picture
        from harness.dataset_report.text import findings

        found = "".join(f"<li>{html.escape(line)}</li>" for line in findings(self))
        return f"<p>{html.escape(self.target.name)}</p><ul>{found}</ul>{picture(draw(self), self.nouns)}"

    @cached_property
    def _root(self) -> str:
        """The folder that contains all files of the target; "" if there are no files."""
        files = [p for i in self.decoded.tolist() if (p := _file(self.target, i))]
        return os.path.commonpath(files) + os.sep if len(files) > 1 else ""

    def short(self, path: str) -> str:
        """A file's name within the target."""
        return path.removeprefix(self._root)

    def at(self, position: int) -> str:
        """A short name of the image at that position."""
        return self.short(self.target.describe(position))

    def names_in_classes(self) -> list[str]:
        """Paths of the images below their class folders; empty if the target is not read from files."""
        target = self.target
        if not isinstance(target, FileTarget):
            return []
        folders: defaultdict[tuple[int, str], list[Path]] = defaultdict(list)
        keys = zip(target.labels.tolist(), target.part_names.tolist(), strict=True)
        for key, path in zip(keys, target.paths, strict=True):
            folders[key].append(path)
        names: list[str] = []
        for files in folders.values():
            top = Path(os.path.commonpath([file.parent for file in files]))
            names += [file.relative_to(top).as_posix() for file in files]
        return names

    @cached_property
    def copies(self) -> dict[int, int]:
        """Position -> number of its group in `same_files`."""
        return {i: number for number, group in enumerate(self.same_files) for i in group}

    @property
    def nouns(self) -> str:
        """What the examples are called."""
        return f"{self.target.medium.noun}s"

    @property
    def short_side(self) -> int | None:
        """Median of the shorter sides in pixels."""
        sides = [min(w, h) for (w, h, _), n in self.shapes.items() for _ in range(n)]
        return round(float(np.median(sides))) if sides else None


def inspect_target(name: str) -> DataSetReport:
    """The report on the target of that name.

    Raises:
        UserError: if there is no such target, or none of its images can be read.
    """
    target = load_target(name)
    labels, official = target.labels, target.official_test
    classes = len(target.classes)
    test = None if official is None else np.bincount(labels[official], minlength=classes)
    files = {i: path for i in range(len(labels)) if (path := _file(target, i)) is not None}
    images = isinstance(target.medium, Images)
    shapes, misnamed, broken = (
        _headers(files) if images else (Counter(), {}, _broken(files, target.medium))
    )
    whole = np.array([i for i in _some(target) if str(files.get(int(i))) not in broken], np.int64)
    form = target.medium.preview()
    decoded = list(_decoded(target, whole, form, broken))
    if not decoded:
        file, why = next(iter(broken.items()))
        noun = target.medium.noun
        raise UserError(f"target {name}: no {noun} can be read, the first is {file}: {why}")
    seen = np.array([i for i, _ in decoded], np.int64)
    rows = torch.stack([row for _, row in decoded])
    same, parts = _same_files(files), target.part_names
    # Copies in another official part are examples of their own.
    apart = labels + classes * np.unique(parts, return_inverse=True)[1]
    duplicates = [
        leak
        for leak in _duplicates(Examples(rows, torch.from_numpy(apart[seen]), seen, form), same)
        if target.groups is None or len({*target.groups[list(leak.positions)]}) > 1
    ]
    leaks = tuple(_across(duplicates, parts))
    if not shapes and isinstance(target, ArrayTarget):
        height, width = target.images.shape[1:3]
        mode = "L" if target.images.ndim == 3 else "RGB"
        shapes[width, height, mode] = len(labels)
    if images and isinstance(target, HubTarget):
        shapes = target.shapes()
    return DataSetReport(
        name=name,
        target=target,
        counts=np.bincount(labels, minlength=classes),
        test_counts=test,
        shapes=shapes,
        decoded=seen,
        rows=rows,
        form=form,
        broken=broken,
        misnamed=misnamed,
        same_files=same,
        duplicates=tuple(duplicates),
        leaks=leaks,
    )


def _file(target: Target, position: int) -> Path | None:
    path = Path(target.describe(position))
    return path if path.is_file() else None


def _headers(
    files: dict[int, Path],
) -> tuple[Counter[tuple[int, int, str]], dict[str, str], dict[str, str]]:
    """The shapes of all images, the misnamed files, and the files without an image header."""
    shapes: Counter[tuple[int, int, str]] = Counter()
    misnamed: dict[str, str] = {}
    broken: dict[str, str] = {}
    known = image_suffixes()
    for path in files.values():
        try:
            with open_header(path) as image:
                shapes[image.width, image.height, image.mode] += 1
                promised = known.get(path.suffix.lower())
                found = "JPEG" if image.format == "MPO" else image.format  # telephones name it .jpg
                if promised and promised not in (found, image.format):
                    misnamed[str(path)] = str(image.format)
        except Exception:  # Pillow raises OSError, SyntaxError, ValueError, struct.error, ...
            broken[str(path)] = "not readable as an image"
    return shapes, misnamed, broken


def _broken(files: dict[int, Path], medium: Medium) -> dict[str, str]:
    """The files that cannot be used."""
    return {str(path): why for path in files.values() if (why := medium.problem(path))}


def _some(target: Target) -> Indices:
    """At most MOST_DECODED positions: the same share of every class, evenly spaced."""
    share = min(1.0, MOST_DECODED / len(target.labels))
    chosen = []
    for label in range(len(target.classes)):
        members = np.flatnonzero(target.labels == label)
        count = max(1, round(share * len(members)))
        chosen.append(members[np.linspace(0, len(members) - 1, count).round().astype(int)])
    return np.sort(np.concatenate(chosen)).astype(np.int64)


def _decoded(
    target: Target, positions: Indices, form: Input, broken: dict[str, str]
) -> Iterator[tuple[int, torch.Tensor]]:
    """The images that can be read; the others are added to `broken`."""
    for start in range(0, len(positions), 64):
        some = positions[start : start + 64]
        try:
            yield from zip(some.tolist(), target.read(some, form), strict=True)
        except UserError:  # at least one is broken: read them one by one
            for i in some:
                try:
                    yield int(i), target.read(np.array([i]), form)[0]
                except UserError as error:
                    broken[target.describe(int(i))] = str(error)


def _same_files(files: dict[int, Path]) -> tuple[tuple[int, ...], ...]:
    by_size: defaultdict[int, list[int]] = defaultdict(list)
    for i, path in files.items():
        by_size[path.stat().st_size].append(i)
    by_hash: defaultdict[bytes, list[int]] = defaultdict(list)
    for group in by_size.values():
        if len(group) > 1:  # only files of the same size can be identical
            for i, digest in zip(group, checksums([files[i] for i in group]), strict=True):
                by_hash[digest].append(i)
    return tuple(tuple(group) for group in by_hash.values() if len(group) > 1)


def _duplicates(examples: Examples, same: tuple[tuple[int, ...], ...]) -> list[Leak]:
    """Each pair of duplicates once, including identical files that were not decoded."""
    found = find_leaks({"": examples, " ": examples})
    # Equal rows do not prove that the full images are equal.
    pairs = {tuple(sorted(leak.positions)): leak for leak in found}
    for group in same:
        for i in group[1:]:
            pairs[group[0], i] = Leak(("", ""), (group[0], i), exact=True)
    return [replace(pairs[a, b], positions=(a, b)) for a, b in sorted(pairs) if a != b]


def _across(duplicates: list[Leak], part: np.ndarray) -> Iterator[Leak]:
    """The pairs whose images are in different official parts."""
    for leak in duplicates:
        first, second = (str(part[i]) for i in leak.positions)
        if first != second:
            yield replace(leak, parts=(first, second))
