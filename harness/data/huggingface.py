"""Read classification data sets of images, sounds or texts of Hugging Face `datasets`."""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import numpy as np
import torch

from harness.core.errors import UserError, one_line, optional_library, quoted
from harness.data.columns import (
    EXAMPLES,
    choose,
    group_notes,
    looks_like_groups,
    missing,
    named,
    only,
)
from harness.data.images import read_header
from harness.data.labels import normalized, numbered_classes, numbered_groups
from harness.data.media import Images, Medium, Sounds, Texts
from harness.data.parts import PARTS, TRAIN, class_notes, official_parts, part_named
from harness.data.target import Indices, Target, TextTarget, read_each
from harness.inputs import Input

FEATURES: dict[str, tuple[str, type[Medium]]] = {
    "Image": ("image", Images),
    "Audio": ("audio", Sounds),
}
"""Types of columns with examples -> the option that names one, and what is in it."""
STRINGS = ("string", "large_string")
BATCH = 256
"""Number of rows whose encoded images are in memory at a time."""


@final
@dataclass(frozen=True)
class HubTarget(Target):
    """Examples in a column of a data set, decoded in the same way as files.

    Attributes:
        rows: data set with the encoded bytes of the examples.
        column: name of their column.
        places: (n,) where each is from, e.g. "row 3 of train".
    """

    rows: Any
    column: str
    places: tuple[str, ...]

    def describe(self, position: int) -> str:
        return f"{self.name}: {self.places[position]}"

    def _identity(self) -> Iterable[bytes]:
        yield b"" if self.official_test is None else self.official_test.tobytes()
        yield from (hashlib.sha256(content).digest() for content, _ in self._contents())

    def shapes(self) -> Counter[tuple[int, int, str]]:
        """(width, height, mode) -> number of images, from their headers, without unreadable images."""
        found: Counter[tuple[int, int, str]] = Counter()
        for content, suffix in self._contents():
            if (header := read_header(content, suffix)) is not None:
                found[header] += 1
        return found

    def _contents(self) -> Iterator[tuple[bytes, str]]:
        """The bytes and the suffix of every image."""
        for start in range(0, len(self.rows), BATCH):
            for i, value in enumerate(self.rows[start : start + BATCH][self.column], start):
                yield _content(value, self.describe(i)), _suffix(value)

    def read(self, indices: Indices, form: Input) -> torch.Tensor:
        def example(position: int) -> Any:
            name, value = self.describe(position), self.rows[int(position)][self.column]
            return self.medium.decode(io.BytesIO(_content(value, name)), name, _suffix(value))

        return read_each(example, indices, form)


def _content(value: Mapping[str, Any], name: str) -> bytes:
    """The bytes of an example, from its row or from the file that the row names."""
    if value["bytes"] is not None:
        return bytes(value["bytes"])
    with one_line(f"example {name} cannot be read"):
        return Path(value["path"]).read_bytes()


def _suffix(value: Mapping[str, Any]) -> str:
    return Path(value["path"] or "").suffix


def huggingface_target(path: str, options: Mapping[str, str]) -> Target:
    """A data set of labelled images, sounds or texts: a folder made by save_to_disk, a folder of Parquet
    files, or a name on the hub.

    Args:
        path: path of the folder, or name on the hub.
        options: "image", "audio" or "text", "label", "group": names of columns, needed if there are several
            candidates. For sounds: "seconds", which is needed, and "rate"; for texts: "tokens" (see
            harness.data.media).

    Raises:
        UserError: if it cannot be loaded, a column is ambiguous, or an image is missing.
    """
    what = f"target hf:{path}"
    parts, notes = _parts(_loaded(path, what), what)
    features = next(iter(parts.values())).features
    image, medium, more = _example_column(features, options, what)
    notes += more
    label, more = _label_column(features, [n for n in features if n != image], options, what)
    notes += more
    others = [name for name in features if name not in (image, label)]
    group, more = choose("group", others, options, what)
    notes += more

    texts: list[str] = []
    kept: dict[str, Indices] = {}
    by_part: dict[str, set[str]] = {}
    for part, rows in parts.items():
        written = _as_text(rows, label)
        kept[part] = np.flatnonzero([bool(text) for text in written])
        if unlabelled := len(rows) - len(kept[part]):
            notes.append(
                f"Part {part}: {unlabelled} of {len(rows)} {medium.noun}s have no label and are skipped."
            )
        if medium is not Texts:
            _refuse_absent(rows, image, kept[part], medium.noun, f"{what}: part {part}")
        if len(kept[part]):
            by_part[part] = {text for text in written if text}
            texts += [text for text in written if text]
    own = official_parts([part for part, at in kept.items() for _ in at], what, medium.noun)
    classes, labels = _classes(texts, features[label], what)
    if unused := [n for n in getattr(features[label], "names", ()) if normalized(n) not in classes]:
        notes.append(f"Classes without {medium.noun}s are left out: {quoted(unused)}.")
    notes += [*own.notes, *class_notes(by_part, what, medium.noun)]
    shared = f"hf:{Path(path).name}", classes, labels, own.test
    places = tuple(f"row {row} of {part}" for part, at in kept.items() for row in at)
    if medium is Texts:
        contents = [text or "" for text in _column(parts, kept, image)]
        presented, more = Texts.of_texts(contents, options, what)
        target: Target = TextTarget(*shared, tuple(contents), places)
    else:
        from datasets import concatenate_datasets

        presented, more = medium.of((), options, what)
        encoded = [_encoded(rows, image).select(kept[part]) for part, rows in parts.items()]
        target = HubTarget(*shared, concatenate_datasets(encoded), image, places)
    notes += more
    values = {
        name: ["" if _is_missing(value) else str(value) for value in _column(parts, kept, name)]
        for name in others
        if name == group or looks_like_groups(name)
    }
    notes += group_notes(values, [group], medium.noun)
    return replace(
        target,
        official_val=own.val,
        groups=None if group is None else numbered_groups(values[group]),
        notes=tuple(notes),
        medium=presented,
    )


def _loaded(path: str, what: str) -> Any:
    datasets = optional_library("datasets", f"{what} needs the extra: pip install -e '.[hf]'")
    with one_line(
        f"{what} is not a folder made by save_to_disk and cannot be loaded from the hub"
    ):  # hub, OSError, ValueError kinds
        folder = Path(path).expanduser()
        if any((folder / name).is_file() for name in ("dataset_dict.json", "state.json")):
            return datasets.load_from_disk(str(folder))
        return datasets.load_dataset(str(folder) if folder.is_dir() else path)


def _parts(found: Any, what: str) -> tuple[dict[str, Any], list[str]]:
    """The training, validation and test parts that exist, and notes on other parts."""
    by_name = dict(found) if isinstance(found, dict) else {TRAIN: found}
    by_name = {name: rows for name, rows in by_name.items() if len(rows)}
    meant = {name: part_named(name) for name in by_name}
    if len(by_name) == 1 and not any(meant.values()):
        return {TRAIN: next(iter(by_name.values()))}, []
    others = [name for name, part in meant.items() if part is None]
    notes = [f"Skipped parts: {quoted(others)}."] if others else []
    parts = {}
    for part in PARTS:
        names = [name for name in by_name if meant[name] == part]
        if len(names) > 1:
            raise UserError(f"{what}: any of {quoted(names)} could be the {part} part")
        if names:
            parts[part] = by_name[names[0]]
    if TRAIN not in parts:
        raise UserError(f"{what}: needs a train part; the parts are {quoted(list(by_name))}")
    return parts, notes


def _example_column(
    features: Mapping[str, Any], options: Mapping[str, str], what: str
) -> tuple[str, type[Medium], list[str]]:
    """The column of the examples, and their medium: images if there are any, else sounds, else texts; and
    notes on it."""
    for kind, (option, medium) in FEATURES.items():
        columns = [name for name, found in features.items() if type(found).__name__ == kind]
        if any(other in options for other in EXAMPLES if other != option):
            continue
        if columns and option in options:
            return named(options[option], columns, what), medium, []
        if (column := only(columns, option, what)) is not None:
            return column, medium, []
    strings = [n for n, found in features.items() if getattr(found, "dtype", "") in STRINGS]
    text, notes = choose("text", strings, options, what)
    if text is None:
        raise UserError(
            f"{what}: needs an Image or Audio column, or one with texts ([text=COLUMN]); the columns are "
            f"{quoted(list(features))}"
        )
    return text, Texts, notes


def _label_column(
    features: Mapping[str, Any], there: Sequence[str], options: Mapping[str, str], what: str
) -> tuple[str, list[str]]:
    """The label column: the one given as an option, else the only ClassLabel column, else a column of texts
    or numbers."""
    if "label" in options:
        return named(options["label"], there, what), []
    columns = [name for name in there if type(features[name]).__name__ == "ClassLabel"]
    if (column := only(columns, "label", what)) is not None:
        return column, []
    plain = [name for name in there if type(features[name]).__name__ == "Value"]
    label, notes = choose("label", plain, options, what)
    if label is None:
        raise missing("label", there, what)
    return label, notes


def _as_text(rows: Any, label: str) -> list[str]:
    """The label of each row as text; "" for a row without a label."""
    kind, values = rows.features[label], list(rows[label])
    if type(kind).__name__ == "ClassLabel":
        return ["" if v is None or v < 0 else normalized(kind.names[v]) for v in values]
    if all(_is_missing(value) or value == -1 for value in values):
        return [""] * len(values)  # -1 for every row: the labels are hidden
    return ["" if _is_missing(value) else normalized(str(value)) for value in values]


def _is_missing(value: object) -> bool:
    """Whether a value is null, or NaN, which stands for null in a column of floats."""
    return value is None or value != value


def _classes(texts: Sequence[str], kind: Any, what: str) -> tuple[tuple[str, ...], Indices]:
    """The classes with images, in the order of the ClassLabel; without one, sorted by number or text."""
    if type(kind).__name__ != "ClassLabel":
        return numbered_classes(texts, what)
    used = set(texts)
    classes = tuple(dict.fromkeys(name for name in map(normalized, kind.names) if name in used))
    if len(classes) < 2:
        raise UserError(f"{what}: needs at least 2 classes with examples, found {len(classes)}")
    order = {name: i for i, name in enumerate(classes)}
    return classes, np.array([order[text] for text in texts], np.int64)


def _column(parts: Mapping[str, Any], kept: Mapping[str, Indices], name: str) -> Iterator[Any]:
    """The values of a column in the rows that are used, part by part."""
    for part, rows in parts.items():
        values = list(rows[name])
        yield from (values[row] for row in kept[part])


def _refuse_absent(rows: Any, column: str, kept: Indices, noun: str, what: str) -> None:
    """Raises UserError naming the first row that has a label but no example."""
    from pyarrow import compute

    stored = _encoded(rows, column).data.column(column)
    nothing = [compute.is_null(compute.struct_field(stored, name)) for name in ("bytes", "path")]
    absent = kept[np.logical_and(*map(np.asarray, nothing))[kept]]
    if len(absent):
        more = f" (and {len(absent) - 1} more)" if len(absent) > 1 else ""
        raise UserError(f"{what}: row {absent[0]} has no {noun}{more}")


def _encoded(rows: Any, column: str) -> Any:
    """The examples as encoded bytes, without the other columns."""
    kind = type(rows.features[column])
    return rows.select_columns([column]).cast_column(column, kind(decode=False))
