"""Leakage between the parts of a split: exact and near duplicates, and groups in more than one official
part."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from harness.core.errors import counted
from harness.data.groups import shared_groups
from harness.data.splits import Examples
from harness.data.target import Target


@dataclass(frozen=True)
class Leak:
    """Two examples in different parts of a split that are the same, or nearly.

    Attributes:
        parts: the two parts, e.g. ("train", "test").
        positions: positions of the two examples in the target.
        exact: whether their rows are equal; otherwise their thumbnails correlate by at least `Input.near`.
    """

    parts: tuple[str, str]
    positions: tuple[int, int]
    exact: bool


def find_leaks(parts: Mapping[str, Examples]) -> list[Leak]:
    """Duplicates between each pair of parts.

    Near duplicates are found by the Pearson correlation of thumbnails: of images, 16 x 16 grey copies, so
    that it is robust to re-compression, rescaling and changes of brightness, but not to crops or rotations;
    of texts, counts of words. In data sets of coarse images (8 x 8 digits) different images may count as near
    duplicates, so look at the listed pairs.

    Of equal examples of one class in one part, only the first is paired with each of those in the other part,
    and each of the others with the first of these: otherwise their number would be squared.
    """
    seen = {name: _Distinct.of(part) for name, part in parts.items()}
    names = list(parts)
    found: list[Leak] = []
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            a, b = seen[first], seen[second]
            for row, column in _close(a.thumbnails, b.thumbnails, parts[first].form.near):
                exact = a.contents[row] == b.contents[column]
                found += [
                    Leak((first, second), pair, exact)
                    for pair in _pairs(a.copies[row], b.copies[column])
                ]
    return found


@dataclass(frozen=True)
class _Distinct:
    """The different examples of a part; equal ones of several classes are kept apart.

    Attributes:
        contents: a hash of the row of each.
        copies: the positions in the target of the examples that are equal to it.
        thumbnails: (n, d), standardised.
    """

    contents: list[bytes]
    copies: list[list[int]]
    thumbnails: torch.Tensor

    @classmethod
    def of(cls, examples: Examples) -> _Distinct:
        """The different examples of a part."""
        small, contents = [], []
        for rows in examples.batches():
            small.append(examples.form.thumbnails(rows))
            contents += [hashlib.blake2b(row.numpy()).digest() for row in rows.contiguous()]
        members: defaultdict[tuple[bytes, int], list[int]] = defaultdict(list)
        for at, key in enumerate(zip(contents, examples.labels.tolist(), strict=True)):
            members[key].append(at)
        copies = [examples.index[own].tolist() for own in members.values()]
        firsts = [own[0] for own in members.values()]
        thumbnails = _standardised(torch.cat(small)[firsts])
        return cls([content for content, _ in members], copies, thumbnails)


def _pairs(first: Sequence[int], second: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Pairs in which each of these positions occurs; as few as possible."""
    yield from ((first[0], other) for other in second)
    yield from ((other, second[0]) for other in first[1:])


def _close(a: torch.Tensor, b: torch.Tensor, least: float) -> Iterator[tuple[int, int]]:
    """Pairs of rows that correlate by at least `least`, computed in blocks of rows."""
    for start in range(0, len(a), 1024):
        for row, column in torch.nonzero(a[start : start + 1024] @ b.T >= least).tolist():
            yield start + row, column


def describe_leaks(leaks: Sequence[Leak], target: Target) -> str:
    """One line with the number of duplicates, the first few of them, and the number of groups in more than
    one official part; empty if there are none."""
    torn = describe_groups(target)
    if not leaks:
        return f"target {target.name}: {torn}" if torn else ""
    exact = sum(leak.exact for leak in leaks)
    shown = [
        f"{target.describe(leak.positions[0])} ({leak.parts[0]}) "
        f"{'=' if leak.exact else '~'} {target.describe(leak.positions[1])} ({leak.parts[1]})"
        for leak in sorted(leaks, key=lambda leak: not leak.exact)[:5]
    ]
    return (
        f"target {target.name}: {exact} exact and {len(leaks) - exact} near duplicates between train, "
        f"validation and test: {'; '.join(shown)}{'; ...' if len(leaks) > 5 else ''}"
        f"{'; also, ' * bool(torn)}{torn}"
    )


def describe_groups(target: Target) -> str:
    """A sentence with the number of groups in more than one official part; "" if there are none."""
    torn, noun = shared_groups(target), target.medium.noun
    return f"{counted(torn, 'group')} with {noun}s in more than one official part" if torn else ""


def _standardised(thumbnails: torch.Tensor) -> torch.Tensor:
    """(n, d) with mean 0 and length 1; a uniform image gives zeros, so that it correlates with no other."""
    return F.normalize(thumbnails - thumbnails.mean(1, keepdim=True), dim=1)
