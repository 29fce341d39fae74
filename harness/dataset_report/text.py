"""Findings about a data set, as sentences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath

import numpy as np

from harness.core.errors import counted
from harness.data import Leak
from harness.data.groups import suggested_pattern
from harness.data.leakage import describe_groups
from harness.dataset_report.inspection import IMBALANCED, LEAST, MOST_DECODED, DataSetReport

SHOWN = 3
ALIKE = 0.2
"""Share of near duplicates among the images from which groups are suggested."""


def findings(report: DataSetReport) -> list[str]:
    """One sentence per finding. Problems are mentioned only where there are any."""
    return [
        *_counts(report),
        *report.target.notes,
        *_groups(report),
        *_shapes(report),
        *_files(report),
        *_duplicates(report),
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
    yield f"{len(names)} classes, {counts.sum()} {report.nouns}{official}: {spread} per class."
    if counts[high] >= IMBALANCED * counts[low]:
        yield (
            f"The classes are imbalanced: the largest has {counts[high] / counts[low]:.0f} times as many "
            f"{report.nouns} as the smallest. All {report.nouns} are used, so accuracy depends mostly on the "
            "large classes "
            "(metric='balanced_accuracy' counts all classes equally, exact_shots=True takes the same number "
            "from each class, X[classes=A+B] selects classes)."
        )
    if small := [names[i] for i in np.flatnonzero(counts < LEAST)]:
        yield f"Classes with fewer than {LEAST} {report.nouns}: {', '.join(small)}."
    if report.test_counts is not None and (empty := np.flatnonzero(report.test_counts == 0)).size:
        yield f"Classes without official test {report.nouns}: {', '.join(names[i] for i in empty)}."


def _groups(report: DataSetReport) -> Iterator[str]:
    target = report.target
    if target.groups is not None:
        sizes = np.unique(target.groups, return_counts=True)[1]
        yield (
            f"{counted(len(sizes), 'group')} of {span(sizes)} {report.nouns}: all of a group are in the same "
            "part of a split."
        )
        if torn := describe_groups(target):
            yield f"LEAKAGE: {torn}; test accuracy may be too high."
    elif report.name.startswith("folder:"):
        names = report.names_in_classes()
        if pattern := suggested_pattern(names):
            like = (
                "sub-folders"
                if pattern == ".*/"
                else f"names such as {PurePosixPath(names[0]).name}"
            )
            yield (
                f"The {like} suggest groups (patients, sequences, products). To put all {report.nouns} of a "
                f"group into the same part of a split, write {_with_option(report.name, 'group', pattern)}."
            )
    own = target.groups is None and ":" in report.name
    if own and (alike := _alike(report)) >= ALIKE * len(report.decoded):
        yield (
            f"{alike} {report.nouns} are near duplicates of another one of their class. If they show the "
            "same object or are frames of one sequence, define groups (folder:PATH[group=REGEX] or a column "
            "`group`); otherwise test accuracy is too high."
        )


def _alike(report: DataSetReport) -> int:
    """Number of images that are near duplicates of another image of their class, not counting identical
    files."""
    labels = report.target.labels
    pairs = [leak.positions for leak in report.duplicates if not _same(report, leak)]
    return len({i for a, b in pairs if labels[a] == labels[b] for i in (a, b)})


def _with_option(name: str, option: str, value: str) -> str:
    """The name of the target with one more option."""
    inner, bracket, rest = name.partition("[")
    own = f",{rest}" if bracket and rest.startswith("layout=") else f"]{bracket}{rest}"
    return f"{inner}[{option}={value}{own}"


def span(sizes: np.ndarray) -> str:
    """The smallest and the largest size, or the size if all are equal."""
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
            f"Image sizes differ: {low[0]} to {high[0]} pixels wide, {low[1]} to {high[1]} high, median "
            f"shorter side {report.short_side}; the shorter side is resized, and the centre is cropped to a "
            "square."
        )
    modes: dict[str, int] = {}
    for (_, _, mode), count in report.shapes.items():
        modes[mode] = modes.get(mode, 0) + count
    if set(modes) != {"RGB"}:
        shown = ", ".join(f"{n} {mode}" for mode, n in sorted(modes.items(), key=lambda x: -x[1]))
        deep = any(mode.startswith("I") for mode in modes)
        stretched = ", 16-bit grey levels stretched to the range of each image"
        yield (
            f"Modes: {shown}; all are converted to RGB, transparent pixels to white"
            f"{stretched if deep else ''}."
        )


def _files(report: DataSetReport) -> Iterator[str]:
    if report.broken:
        broken = [report.short(path) for path in report.broken]
        yield f"{report.nouns.capitalize()} that cannot be read: {_few(broken)}."
    flat = report.rows.flatten(1)
    if len(blank := np.flatnonzero((flat.amin(1) == flat.amax(1)).numpy())):
        shown = [report.at(int(i)) for i in report.decoded[blank]]
        uniform = "silent" if report.nouns == "sounds" else "uniformly black, white or grey"
        yield f"{report.nouns.capitalize()} that are {uniform}: {_few(shown)}."
    if report.misnamed:
        shown = [f"{report.short(path)} is {kind}" for path, kind in report.misnamed.items()]
        yield f"Images whose format differs from their suffix: {_few(shown)}."


def _duplicates(report: DataSetReport) -> Iterator[str]:
    target = report.target
    if same := _uniform_classes(report):
        yield f"Classes in which all {report.nouns} are the same: {_few(same)}."
    if report.same_files:
        shown = [" = ".join(report.at(i) for i in group[:3]) for group in report.same_files]
        yield f"Identical files: {_few(shown)}."
    near = [leak for leak in report.duplicates if not _same(report, leak)]
    if near:
        yield (
            f"Pairs of {report.nouns} that are identical (=) or near duplicates (~; correlation of "
            f"{target.medium.alike} at least {report.form.near:g}): "
            f"{_pairs(report, near)}."
        )
    crossing = [
        leak for leak in report.duplicates if len(set(target.labels[list(leak.positions)])) > 1
    ]
    if crossing:
        yield (
            "Duplicates in different classes, one of which may have a wrong label: "
            f"{_pairs(report, crossing)}."
        )
    if report.leaks:
        yield (
            f"LEAKAGE: identical {report.nouns} or near duplicates in different official parts: "
            f"{_pairs(report, report.leaks)}; remove them from one part, otherwise "
            "test accuracy is too high."
        )
    if len(report.decoded) < len(target.labels) and len(target.labels) > MOST_DECODED:
        yield (
            f"{len(report.decoded)} of {len(target.labels)} {report.nouns} were decoded to look for broken "
            "ones and duplicates."
        )


def _uniform_classes(report: DataSetReport) -> list[str]:
    """Names of the classes whose examples are all equal, as far as they were decoded."""
    labels = report.target.labels[report.decoded]
    members = [report.rows[labels == label] for label in range(len(report.target.classes))]
    return [
        name
        for name, rows in zip(report.target.classes, members, strict=True)
        if len(rows) > 1 and bool((rows == rows[:1]).all())
    ]


def details(report: DataSetReport) -> list[str]:
    """The files and pairs that the sentences count, one per line, at most 300 of each kind."""
    kinds = (
        [f"cannot be read: {path}: {why}" for path, why in report.broken.items()],
        [f"leak: {_pair(report, leak)}" for leak in report.leaks[:300]],
        [f"alike: {_pair(report, leak)}" for leak in report.duplicates[:300]],
        [f"{report.short(path)} is {kind}" for path, kind in report.misnamed.items()],
    )
    return [line for lines in kinds for line in lines[:300]]


def _same(report: DataSetReport, leak: Leak) -> bool:
    first, second = map(report.copies.get, leak.positions)
    return first is not None and first == second


def _pair(report: DataSetReport, leak: Leak) -> str:
    a, b = leak.positions
    return f"{report.at(a)} {'=' if leak.exact else '~'} {report.at(b)}"


def _pairs(report: DataSetReport, leaks: Sequence[Leak]) -> str:
    """The number of pairs, and the first ones; there may be millions."""
    return _few([_pair(report, leak) for leak in leaks[: SHOWN + 1]], len(leaks))


def _few(items: Sequence[str], count: int | None = None) -> str:
    """The number of items, and the first ones."""
    more = "; ..." if len(items) > SHOWN else ""
    return f"{count or len(items)} ({'; '.join(items[:SHOWN])}{more})"
