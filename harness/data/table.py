"""Read a table with one row per image or sound: CSV with any usual separator and encoding, or Parquet."""

from __future__ import annotations

import codecs
import csv
import io
import itertools
import os
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from harness.core.errors import UserError, first_line
from harness.data.columns import choose, group_notes, missing, simplified
from harness.data.images import is_file, shown
from harness.data.labels import normalized, numbered_classes, numbered_groups
from harness.data.lookup import find_images
from harness.data.media import kind_of
from harness.data.parts import TEST, TRAIN, differences, official_parts, part_named
from harness.data.target import FileTarget, Target

SEPARATORS = ",;\t|"
BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
LOOKED_AT = 50
"""Number of rows from which the separator is determined."""
Columns = dict[str, list[str]]


def table_target(path: str, options: Mapping[str, str]) -> Target:
    """The images or sounds of a table.

    Args:
        path: path of the table.
        options: "image" or "audio", "label", "split", "group": names of columns, if they are not the usual
            ones. For sounds: "seconds", "rate" (see harness.data.media.Sounds).

    Raises:
        UserError: if the table cannot be read, a column is ambiguous, an image is missing, or two rows have
            the same image.
    """
    file = Path(path).expanduser()
    what = f"target csv:{path}"
    if not is_file(file):
        raise UserError(f"{what}: no such file; name a table with columns image, label[, split]")
    columns, notes = read_columns(file, what)
    there = list(columns)
    chosen: dict[str, str | None] = {}
    for role in ("image", "label", "split", "group"):
        chosen[role], more = choose(role, there, options, what)
        notes += more
    image, label = chosen["image"], chosen["label"]
    if image is None or "audio" in options:
        image, more = choose("audio", there, options, what)
        notes += more
    if image is None or label is None:
        raise missing("image" if image is None else "label", there, what)
    images, labels = columns[image], columns[label]
    if not images:
        raise UserError(f"{what}: the table has no rows")
    meant = "split" in options or simplified(chosen["split"] or "") == "split"
    parts, more = _parts(columns, chosen["split"], meant, what)
    notes += more
    kept, more = _labelled(images, labels, parts, what)
    notes += more
    images, labels, parts = ([column[i] for i in kept] for column in (images, labels, parts))
    classes, positions = numbered_classes(labels, what)
    hints = [{normalized(a), b} for a, b in zip(labels, parts, strict=True)]
    paths, more = find_images(images, hints, file.parent, what)
    notes += more
    _refuse_double(paths, what)
    medium, presented = kind_of(paths).of(paths, options, what)
    names = np.array(classes, dtype=object)[positions]
    own = official_parts(parts, what)
    by_part = {part: names[np.array(parts) == part] for part in dict.fromkeys(parts)}
    notes += [*own.notes, *(differences(by_part, what) if len(by_part) > 1 else ())]
    group = chosen["group"]
    return FileTarget(
        f"csv:{file.name}",
        classes,
        positions,
        own.test,
        paths,
        official_val=own.val,
        groups=None if group is None else numbered_groups([columns[group][i] for i in kept]),
        notes=(*notes, *presented, *group_notes(columns, list(chosen.values()))),
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
    images: list[str], labels: list[str], parts: list[str], what: str
) -> tuple[list[int], list[str]]:
    """The rows to use: all, or those outside a test part without labels."""
    hidden = [i for i, part in enumerate(parts) if part == TEST]
    if hidden and not any(labels[i] for i in hidden) and len(hidden) < len(parts):
        kept = [i for i, part in enumerate(parts) if part != TEST]
        notes = [f"The {len(hidden)} test images have no labels and are skipped."]
    else:
        kept, notes = list(range(len(parts))), []
    for i in kept:
        if not images[i] or not labels[i]:
            raise UserError(f"{what}: an image or label is empty, the first in row {i + 1}")
    return kept, notes


def _refuse_double(paths: tuple[Path, ...], what: str) -> None:
    seen: set[str] = set()
    for path in paths:
        if (normal := os.path.normpath(path)) in seen:
            raise UserError(f"{what}: an image is listed twice, the first is {shown(path)}")
        seen.add(normal)


def read_columns(file: Path, what: str) -> tuple[Columns, list[str]]:
    """The values of each column, without surrounding blanks, and notes on how the table was read.

    Raises:
        UserError: if the file is not a table.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise UserError(f"{what} cannot be read as a table: {first_line(error)}") from error
    try:
        if content.startswith(b"PAR1"):
            return _parquet(content), []
        if content.startswith((b"PK\3\4", b"\x1f\x8b")):
            raise ValueError("it is a workbook or an archive; save it as CSV")
        text, notes = _text(content)
        return _rows(text), notes
    except UserError:
        raise
    except Exception as error:  # pyarrow and codecs have their own kinds
        raise UserError(f"{what} cannot be read as a table: {first_line(error)}") from error


def _text(content: bytes) -> tuple[str, list[str]]:
    """Decode a file by its byte order mark, else as UTF-8, as UTF-16 if it has many zero bytes, else as
    cp1252."""
    for mark, encoding in BOMS:
        if content.startswith(mark):
            return content.decode(encoding), []
    try:
        text = content.decode("utf-8")
        if text.count("\0") * 4 < len(text):
            return text, []
    except UnicodeDecodeError:
        pass
    even, odd = content[::2].count(0), content[1::2].count(0)
    if even + odd > len(content) // 4:
        return content.decode("utf-16-be" if even > odd else "utf-16-le"), []
    text = content.decode("cp1252")
    if re.search(r"[\x00-\x08\x0e-\x1f]", text):
        raise ValueError("it is not text")
    return text, ["The table is not in UTF-8 and was read as cp1252 (Western European Windows)."]


def _rows(text: str) -> Columns:
    """The columns of a text with any usual separator; the first line holds their names."""
    declared = re.match(r'"?sep=(.)"?\r?\n', text)  # as spreadsheets write it
    text = text[declared.end() :] if declared else text
    separator = declared[1] if declared else max(SEPARATORS, key=lambda sign: _fit(text, sign))
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True)
    rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if any(row)]
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
