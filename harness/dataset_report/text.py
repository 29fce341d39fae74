"""The findings about a data set as sentences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath

import numpy as np

from harness.data import Leak
from harness.data.groups import suggested_pattern
from harness.data.leakage import describe_groups
from harness.dataset_report.inspection import LEAST, LOOKED_AT, WIDE, DataSetReport

SHOWN = 3
ALIKE = 0.2
"""Share of the images that nearly look like others from which groups are suggested."""


def findings(report: DataSetReport) -> list[str]:
    """One sentence per finding; what is as it should be is not mentioned."""
    return [
        *_counts(report),
        *report.target.notes,
        *_groups(report),
        *_shapes(report),
        *_files(report),
        *_doubles(report),
    ]


def _counts(report: DataSetReport) -> Iterator[str]:
    counts, names = report.counts, report.target.classes
    low, high = int(counts.argmin()), int(counts.argmax())
    official = ""
    if report.test_counts is not None:
        official = f", {report.test_counts.sum()} of them an official test set"
    if report.target.official_val is not None:
        official += f" and {report.target.official_val.sum()} a validation set"
    spread = f"{counts[low]} ({names[low]}) to {counts[high]} ({names[high]})"
    spread = spread if counts[low] < counts[high] else str(counts[low])
    yield f"{len(names)} classes, {counts.sum()} images{official}: {spread} per class."
    if counts[high] >= WIDE * counts[low]:
        yield (
            f"The classes are unequal: the largest has {counts[high] / counts[low]:.0f} times as many "
            "images as the smallest. They are used as they are, so accuracy is mostly that of the large "
            "classes (exact_shots=True takes equally many of each, X[classes=A+B] leaves classes out)."
        )
    if small := [names[i] for i in np.flatnonzero(counts < LEAST)]:
        yield f"Classes with fewer than {LEAST} images: {', '.join(small)}."
    if report.test_counts is not None and (empty := np.flatnonzero(report.test_counts == 0)).size:
        yield f"Classes without official test images: {', '.join(names[i] for i in empty)}."


def _groups(report: DataSetReport) -> Iterator[str]:
    target = report.target
    if target.groups is not None:
        sizes = np.unique(target.groups, return_counts=True)[1]
        yield (
            f"{len(sizes)} groups of {span(sizes)} images: the images of a group are in one part of every "
            "split."
        )
        if torn := describe_groups(target):
            yield f"LEAKAGE: {torn}; test accuracy may flatter."
    elif report.name.startswith("folder:"):
        names = report.names_in_classes()
        if pattern := suggested_pattern(names):
            like = (
                "sub-folders"
                if pattern == ".*/"
                else f"names such as {PurePosixPath(names[0]).name}"
            )
            yield (
                f"The {like} suggest groups (patients, sequences, products), whose images should not be in "
                f"two parts of a split: to keep them together write "
                f"{_with_option(report.name, 'group', pattern)}."
            )
    own = target.groups is None and ":" in report.name
    if own and (alike := _alike(report)) >= ALIKE * len(report.looked_at):
        yield (
            f"{alike} images nearly look like another one of their class: if they are frames of one "
            "sequence or of one object, name these groups (folder:PATH[group=REGEX] or a column `group`), "
            "or test accuracy flatters."
        )


def _alike(report: DataSetReport) -> int:
    """Images that are near duplicates of another one of their class, copies of files apart."""
    labels = report.target.labels
    pairs = [leak.positions for leak in report.doubles if not _same(report, leak)]
    return len({i for a, b in pairs if labels[a] == labels[b] for i in (a, b)})


def _with_option(name: str, option: str, value: str) -> str:
    """The target with one option more."""
    inner, bracket, rest = name.partition("[")
    own = f",{rest}" if bracket and rest.startswith("layout=") else f"]{bracket}{rest}"
    return f"{inner}[{option}={value}{own}"


def span(sizes: np.ndarray) -> str:
    """The least and the greatest, or the one that all are."""
    low, high = int(sizes.min()), int(sizes.max())
    return f"{low} to {high}" if low < high else str(low)


def _shapes(report: DataSetReport) -> Iterator[str]:
    if not report.shapes:
        return
    sides = np.array([(w, h) for (w, h, _), n in report.shapes.items() for _ in range(n)])
    low, high = sides.min(0), sides.max(0)
    if len({(w, h) for w, h, _ in report.shapes}) == 1:
        yield f"Every image is {low[0]} x {low[1]} pixels."
    else:
        yield (
            f"Sizes are mixed: {low[0]} to {high[0]} pixels wide, {low[1]} to {high[1]} high, median "
            f"shorter side {report.short_side}; each is resized by its shorter side and cropped square."
        )
    modes: dict[str, int] = {}
    for (_, _, mode), count in report.shapes.items():
        modes[mode] = modes.get(mode, 0) + count
    if set(modes) != {"RGB"}:
        shown = ", ".join(f"{n} {mode}" for mode, n in sorted(modes.items(), key=lambda x: -x[1]))
        deep = any(mode.startswith("I") for mode in modes)
        stretched = ", grey levels of 16 bits stretched from each image's darkest to its brightest"
        yield f"Modes: {shown}; all become RGB, transparent pixels white{stretched if deep else ''}."


def _files(report: DataSetReport) -> Iterator[str]:
    if report.broken:
        yield f"Images that cannot be read: {_few([report.short(p) for p in report.broken])}."
    flat = report.thumbnails.flatten(1)
    if len(blank := np.flatnonzero((flat.amin(1) == flat.amax(1)).numpy())):
        shown = [report.at(int(i)) for i in report.looked_at[blank]]
        yield f"Images that are black, white or grey all over, as they are read: {_few(shown)}."
    if report.misnamed:
        shown = [f"{report.short(path)} is {kind}" for path, kind in report.misnamed.items()]
        yield f"Images in another format than their name says: {_few(shown)}."


def _doubles(report: DataSetReport) -> Iterator[str]:
    target = report.target
    if report.same_files:
        shown = [" = ".join(report.at(i) for i in group[:3]) for group in report.same_files]
        yield f"Files that are equal, byte by byte: {_few(shown)}."
    near = [leak for leak in report.doubles if not _same(report, leak)]
    if near:
        yield (
            "Pairs of images that look the same (=) or nearly (~; small grey copies correlate by 0.99): "
            f"{_few([_pair(report, leak) for leak in near])}."
        )
    crossing = [
        leak for leak in report.doubles if len(set(target.labels[list(leak.positions)])) > 1
    ]
    if crossing:
        yield (
            "Of all these, pairs in different classes, so that a label may be wrong: "
            f"{_few([_pair(report, leak) for leak in crossing])}."
        )
    if report.leaks:
        yield (
            "LEAKAGE: official test or validation images that are training images too, or nearly: "
            f"{_few([_pair(report, leak) for leak in report.leaks])}; remove them from one part, or test "
            "accuracy flatters."
        )
    if len(report.looked_at) < len(target.labels) and len(target.labels) > LOOKED_AT:
        yield (
            f"{len(report.looked_at)} of {len(target.labels)} images were decoded to look for broken ones "
            "and doubles."
        )


def details(report: DataSetReport) -> list[str]:
    """The files and pairs that the sentences count, one a line, at most 300 of a kind."""
    kinds = (
        [f"cannot be read: {path}: {why}" for path, why in report.broken.items()],
        [f"leak: {_pair(report, leak)}" for leak in report.leaks],
        [f"alike: {_pair(report, leak)}" for leak in report.doubles],
        [f"{report.short(path)} is {kind}" for path, kind in report.misnamed.items()],
    )
    return [line for lines in kinds for line in lines[:300]]


def _same(report: DataSetReport, leak: Leak) -> bool:
    return any(set(leak.positions) <= set(group) for group in report.same_files)


def _pair(report: DataSetReport, leak: Leak) -> str:
    a, b = leak.positions
    return f"{report.at(a)} {'=' if leak.exact else '~'} {report.at(b)}"


def _few(items: Sequence[str]) -> str:
    """How many, and the first ones."""
    more = "; ..." if len(items) > SHOWN else ""
    return f"{len(items)} ({'; '.join(items[:SHOWN])}{more})"
