"""Read a table with one row per example: CSV with any usual separator and encoding, or Parquet."""

from __future__ import annotations

import csv
import io
import itertools
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from harness.core.errors import UserError, one_line
from harness.data.columns import (
    EXAMPLES,
    choose,
    choose_examples,
    group_notes,
    missing,
    simplified,
)
from harness.data.encoding import FALLBACK, decoded
from harness.data.images import shown
from harness.data.labels import normalized, numbered_classes, numbered_groups
from harness.data.lookup import find_images
from harness.data.media import Texts, kind_of
from harness.data.parts import TEST, TRAIN, class_notes, official_parts, part_named
from harness.data.target import FileTarget, Target, TextTarget

SEPARATORS = ",;\t|"
LOOKED_AT = 50
"""Number of rows from which the separator is determined."""
Columns = dict[str, list[str]]


def table_target(path: str, options: Mapping[str, str]) -> Target:
    """The images, sounds or texts of a table.

    Args:
        path: path of the table.
        options: "image", "audio" or "text", "label", "split", "group": names of columns, if they are not the
            usual ones. For sounds: "seconds", "rate"; for texts: "tokens" (see harness.data.media).

    Raises:
        UserError: if the table cannot be read, a column is ambiguous, an image is missing, or two rows have
            the same image.
    """
    file = Path(path).expanduser()
    what = f"target csv:{path}"
    if not os.path.isfile(file):
        raise UserError(f"{what}: no such file; name a table with columns image, label[, split]")
    columns, notes = read_columns(file, what)
    there = list(columns)
    chosen: dict[str, str | None] = {}
    example, role, more = choose_examples(there, options, what)
    notes += more
    for other in ("label", "split", "group"):
        chosen[other], more = choose(other, there, options, what)
        notes += more
    if chosen["label"] is None:
        raise missing("label", there, what)
    images, labels = columns[example], columns[chosen["label"]]
    if not images:
        raise UserError(f"{what}: the table has no rows")
    meant = "split" in options or simplified(chosen["split"] or "") == "split"
    parts, more = _parts(columns, chosen["split"], meant, what)
    notes += more
    kept, more = _labelled(images, labels, parts, EXAMPLES[role], what)
    notes += more
    images, labels, parts = ([column[i] for i in kept] for column in (images, labels, parts))
    classes, positions = numbered_classes(labels, what)
    own = official_parts(parts, what, EXAMPLES[role])
    shared = f"csv:{file.name}", classes, positions, own.test
    if role == "text":
        medium, presented = Texts.of_texts(images, options, what)
        places = tuple(f"row {i + 1}" for i in kept)
        target: Target = TextTarget(*shared, tuple(images), places)
    else:
        hints = [{normalized(a), b} for a, b in zip(labels, parts, strict=True)]
        paths, more = find_images(images, hints, file.parent, EXAMPLES[role], what)
        notes += more
        kind = kind_of(paths, what)
        _refuse_double(paths, kind.noun, what)
        medium, presented = kind.of(paths, options, what)
        target = FileTarget(*shared, paths)
    names = np.array(classes, dtype=object)[positions]
    by_part = {part: names[np.array(parts) == part] for part in dict.fromkeys(parts)}
    notes += [*own.notes, *class_notes(by_part, what, medium.noun)]
    more = group_notes(columns, [example, *chosen.values()], medium.noun)
    group = chosen["group"]
    return replace(
        target,
        official_val=own.val,
        groups=None if group is None else numbered_groups([columns[group][i] for i in kept]),
        notes=(*notes, *presented, *more),
        medium=medium,
    )


def _parts(
    columns: Columns, split: str | None, meant: bool, what: str
) -> tuple[list[str], list[str]]:
    """The part of each image; an image without an entry is for training.

    Args:
        columns: columns of the table.
        split: name of the column that may hold the parts.
        meant: whether the column is known to hold the parts (named by the user, or called "split"). If not, a
            column with other values is ignored.
        what: the target, for messages.
    """
    count = len(next(iter(columns.values())))
    if split is None:
        return [TRAIN] * count, []
    parts = [part_named(text) if text else TRAIN for text in columns[split]]
    unknown = sorted({t for t, part in zip(columns[split], parts, strict=True) if part is None})
    if unknown and not meant:
        return [TRAIN] * count, [
            f"Column {split!r} does not contain parts such as train and test and is not used."
        ]
    if unknown:
        few = ", ".join(map(repr, unknown[:3]))
        raise UserError(f"{what}: split must be train, val or test, got {few} in column {split!r}")
    return [str(part) for part in parts], []


def _labelled(
    images: list[str], labels: list[str], parts: list[str], noun: str, what: str
) -> tuple[list[int], list[str]]:
    """The rows to use: all, or those outside a test part without labels."""
    hidden = [i for i, part in enumerate(parts) if part == TEST]
    if hidden and not any(labels[i] for i in hidden) and len(hidden) < len(parts):
        kept = [i for i, part in enumerate(parts) if part != TEST]
        notes = [f"The {len(hidden)} test {noun}s have no labels and are skipped."]
    else:
        kept, notes = list(range(len(parts))), []
    for i in kept:
        if not images[i] or not labels[i]:
            raise UserError(f"{what}: row {i + 1} has no {noun} or no label")
    return kept, notes


def _refuse_double(paths: tuple[Path, ...], noun: str, what: str) -> None:
    seen: set[str] = set()
    for path in paths:
        if (normal := os.path.normpath(path)) in seen:
            raise UserError(f"{what}: {noun} {shown(path)} is listed twice")
        seen.add(normal)


def read_columns(file: Path, what: str) -> tuple[Columns, list[str]]:
    """The values of each column, without surrounding blanks, and notes on how the table was read.

    Raises:
        UserError: if the file is not a table.
    """
    with one_line(f"{what} cannot be read as a table"):  # pyarrow and codecs have their own kinds
        content = file.read_bytes()
        if content.startswith(b"PAR1"):
            return _parquet(content), []
        if content.startswith((b"PK\3\4", b"\x1f\x8b")):
            raise ValueError("it is a workbook or an archive; save it as CSV")
        text, guessed = decoded(content)
        note = f"The table is not in UTF-8 and was read as {FALLBACK}."
        return _rows(text), [note] if guessed else []


def _rows(text: str) -> Columns:
    """The columns of a text with any usual separator; the first line holds their names."""
    declared = re.match(r'"?sep=(.)"?\r?\n', text)  # as spreadsheets write it
    text = text[declared.end() :] if declared else text
    separator = declared[1] if declared else max(SEPARATORS, key=lambda sign: _fit(text, sign))
    rows = _records(text, separator, csv.QUOTE_MINIMAL)
    if not rows:
        raise ValueError("it is empty")
    header = [name.lstrip("\ufeff") for name in _without_end(rows[0][1])]
    if double := [name for name in header if header.count(name) > 1]:
        raise ValueError(f"two columns are called {double[0]!r}")
    columns: Columns = {name: [] for name in header}
    for line, row in rows[1:]:
        if len(_without_end(row)) > len(header):
            raise ValueError(f"line {line} has {len(row)} fields, the first one {len(header)}")
        for name, cell in itertools.zip_longest(header, row[: len(header)], fillvalue=""):
            columns[name].append(cell)
    return columns


def _records(text: str, separator: str, quoting: int) -> list[tuple[int, list[str]]]:
    """Number of the last line and fields, without surrounding blanks, of each row that is not empty.

    Tables separated by tabs are often written without quoting, so that a text may begin with a quote.

    Raises:
        ValueError: if quotes are opened and not closed in a row.
    """
    lines = list(io.StringIO(text, newline=""))
    form: dict[str, Any] = {
        "delimiter": separator,
        "skipinitialspace": True,
        "quoting": quoting,
    }
    reader = csv.reader(lines, **form)
    rows: list[tuple[int, list[str]]] = []
    line = 1
    try:
        for row in reader:
            if reader.line_num > line:  # a quote that is not closed would join it with other rows
                list(csv.reader(lines[line - 1 : reader.line_num], strict=True, **form))
            if any(row):
                rows.append((reader.line_num, [cell.strip() for cell in row]))
            line = reader.line_num + 1
    except csv.Error as error:
        if separator == "\t" and quoting != csv.QUOTE_NONE:
            return _records(text, separator, csv.QUOTE_NONE)
        wrong = "quotes that are not closed, or not doubled inside of a quoted field"
        if "field limit" in str(error):
            wrong = f"a field of more than {csv.field_size_limit():,} characters"
        raise ValueError(
            f"the row that begins in line {line} has {wrong}; close its quotes, or put long texts into files "
            "of their own and their names into the table"
        ) from error
    return rows


def _fit(text: str, separator: str) -> tuple[bool, bool, int]:
    """How well a separator splits the first lines into several fields, the same number in each."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True)
    try:
        counts = [len(row) for row in itertools.islice(reader, LOOKED_AT) if row]
    except csv.Error:
        return False, False, 0
    first = counts[0] if counts else 0
    return first > 1, len(set(counts)) == 1, first


def _without_end(row: list[str]) -> list[str]:
    """A row without the empty fields at its end."""
    while row and not row[-1]:
        row = row[:-1]
    return row


def _parquet(content: bytes) -> Columns:
    import pandas as pd  # takes half a second, and most targets need none

    table = pd.read_parquet(io.BytesIO(content)).reset_index()
    table = table.astype(object).where(table.notna(), None)  # null is None in every column
    table = table.drop(columns=[name for name in ("index", "level_0") if name in table])
    return {str(name): [_as_text(value) for value in table[name]] for name in table.columns}


def _as_text(value: object) -> str:
    """A value of a Parquet table as text; "" for null."""
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return ""
    if isinstance(value, dict):
        raise ValueError("it contains the images themselves; use hf: with a folder of such files")
    return value.decode() if isinstance(value, bytes) else str(value).strip()
