"""Classes and groups from the labels of images, as written in a table or column."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Hashable, Iterable, Sequence
from decimal import Decimal

import numpy as np

from harness.core.errors import UserError
from harness.data.target import Indices

WHOLE = re.compile(r"([+-]?)(0|[1-9]\d*)(\.0*)?")
NUMBER = re.compile(r"[+-]?(0|[1-9]\d*)(\.\d+)?")


def normalized(text: str) -> str:
    """The text in Unicode normal form NFC and without surrounding blanks, so that texts can be compared."""
    return unicodedata.normalize("NFC", text).strip()


def numbered_classes(written: Sequence[str], what: str) -> tuple[tuple[str, ...], Indices]:
    """The classes, and the index of each image's class.

    Different spellings of a number (1, 1.0) are one class. Classes are in numeric order if all of them are
    numbers, else sorted as text.

    Args:
        written: the label of each image, not empty.
        what: the target, for messages.

    Raises:
        UserError: if a label is not printable text, or there is only one class.
    """
    labels = np.array([_canonical(normalized(text)) for text in written], dtype=object)
    classes = sorted(set(labels))
    if unsafe := [label for label in classes if not label.isprintable()]:
        raise UserError(f"{what}: label {unsafe[0]!r} is not printable; rename it")
    if len(classes) < 2:
        raise UserError(f"{what}: needs at least 2 classes, found {len(classes)}")
    if all(map(NUMBER.fullmatch, classes)):
        classes.sort(key=lambda label: (Decimal(label), label))
    position = {label: i for i, label in enumerate(classes)}
    return tuple(classes), np.array([position[label] for label in labels], np.int64)


def numbered(keys: Iterable[Hashable]) -> Indices:
    """The number of each key, in the order in which they first occur."""
    number: dict[Hashable, int] = {}
    return np.array([number.setdefault(key, len(number)) for key in keys], np.int64)


def numbered_groups(written: Sequence[str]) -> Indices:
    """The number of each image's group; an image without an entry is a group of its own."""
    texts = [_canonical(normalized(text)) for text in written]
    return numbered((text, -1 if text else i) for i, text in enumerate(texts))


def _canonical(label: str) -> str:
    """Write whole numbers without decimals. Other numbers are unchanged, because 1.1 and 1.10 may be
    versions."""
    if not (match := WHOLE.fullmatch(label)):
        return label
    sign, digits, _ = match.groups()
    return ("-" if sign == "-" and digits != "0" else "") + digits
