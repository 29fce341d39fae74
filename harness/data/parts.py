"""The official parts of a data set (training, validation and test), by their usual names."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from harness.core.errors import UserError, quoted

TRAIN, VAL, TEST = "train", "val", "test"
PARTS = (TRAIN, VAL, TEST)
_NAMES = {
    TRAIN: "train training",
    VAL: "val valid validation dev development",
    TEST: "test testing",
}
_PART = {
    name + ending: part
    for part, names in _NAMES.items()
    for name in names.split()
    for ending in ("", "set", "data", "split")
}


MISSING = frozenset("nan <na> #n/a n/a null".split())
"""How programs write a missing label, in lower case. Not "none" and "na", which may be names."""


@dataclass(frozen=True)
class OfficialParts:
    """The official test and validation images of a data set.

    Attributes:
        test, val: (n,) True for images of that part; None if there is no such part.
        notes: notes on the parts, one sentence each.
    """

    test: NDArray[np.bool_] | None
    val: NDArray[np.bool_] | None
    notes: tuple[str, ...]


def part_named(name: str) -> str | None:
    """The part that a name means, in any letter case: "train" for "Training_set"; None for other names."""
    return _PART.get(re.sub(r"[\W_]", "", name).lower())


def official_parts(names: Sequence[str], what: str, noun: str = "image") -> OfficialParts:
    """The official parts of a data set. If there is no test part, the validation part is used as the test
    part.

    Args:
        names: "train", "val" or "test" for each image.
        what: the target, for messages.
        noun: what an example is called in messages.

    Raises:
        UserError: if there are parts, but none to train on.
    """
    part = np.array(names)
    counts = {name: int((part == name).sum()) for name in PARTS}
    if counts[TEST] == len(part) or not counts[TRAIN]:
        there = " and ".join(f"{counts[p]} {p}" for p in PARTS if counts[p])
        raise UserError(f"{what}: no training {noun}s, only {there}")
    if counts[TEST]:
        given = (
            f"{counts[TRAIN]} training, {counts[VAL]} validation and {counts[TEST]} test {noun}s"
        )
        note = f"The official parts are used: {given}." if counts[VAL] else ""
        return OfficialParts(
            part == TEST, part == VAL if counts[VAL] else None, (note,) if note else ()
        )
    if counts[VAL]:
        note = f"There is no test part, so the {counts[VAL]} validation {noun}s are used as test {noun}s."
        return OfficialParts(part == VAL, None, (note,))
    return OfficialParts(None, None, ())


def class_notes(classes: Mapping[str, Iterable[str]], what: str, noun: str = "image") -> list[str]:
    """Notes on classes without test images, and on names that are probably not those of classes of their own.

    Args:
        classes: part -> the classes of which it has images.
        what: the target, for messages.
        noun: what an example is called in messages.

    Raises:
        UserError: if the classes of the parts differ in any other way, naming the classes.
    """
    sets = {part: set(names) for part, names in classes.items()}
    held_out = TEST if TEST in sets else VAL
    wrong, notes = [], []
    for part, names in sets.items():
        if extra := sorted(names - sets[TRAIN]):
            wrong.append(f"{quoted(extra)} in {part} only, not in {TRAIN}")
        if (missing := sorted(sets[TRAIN] - names)) and part == held_out:
            notes.append(f"Classes without test {noun}s: {quoted(missing)}.")
        elif missing:
            wrong.append(f"{quoted(missing)} not in {part}")
    if wrong:
        raise UserError(f"{what}: the parts have different classes: {'; '.join(wrong)}")
    return notes + _odd_names(set[str]().union(*sets.values()))


def _odd_names(classes: Iterable[str]) -> list[str]:
    """Notes on classes whose names differ in letter case only, or stand for a missing label."""
    alike: defaultdict[str, list[str]] = defaultdict(list)
    for name in sorted(classes):
        alike[name.casefold()].append(name)
    notes = [
        f"Classes whose names differ in letter case only: {quoted(names)}; if they mean the same, write "
        "them in the same way."
        for names in alike.values()
        if len(names) > 1
    ]
    if absent := [name for names in alike.values() for name in names if name.lower() in MISSING]:
        notes.append(
            f"{quoted(absent)} is a class like the others; if it means that the label is missing, "
            "leave these examples out."
        )
    return notes
