"""Find the image files for the names in a table, even if the table was written on another system or for
another folder."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from harness.core.errors import UserError
from harness.data.images import shown
from harness.data.media import suffixes
from harness.data.tree import is_hidden

MOST_FILES = 500_000
"""Largest number of files below a table's folder that are searched."""
SHOWN = 3
START = r"([A-Za-z]:|\w+://)"
"""Drive of a Windows path, or scheme of a URL."""


def find_images(
    names: Sequence[str], hints: Sequence[set[str]], folder: Path, noun: str, what: str
) -> tuple[tuple[Path, ...], list[str]]:
    """The file of each name, and notes on how the files were found.

    A name is first read as a path relative to the table's folder or the two folders above it. If there is
    no such file, it is searched for below the table's folder: a relative name by its whole path, an absolute
    one or a URL by its last components (at least file name and folder). Separators, letter case and Unicode
    form are ignored, and the suffix may be missing.

    Args:
        names: names as written in the table.
        hints: for each image, folder names that decide between several matching files: its label and part.
        folder: folder of the table.
        noun: what an example is called in messages.
        what: the target, for messages.

    Raises:
        UserError: if a file is missing or several match, naming the first one and the searched folders.
    """
    tree = _Files(folder)
    paths: list[Path] = []
    absent: list[str] = []
    unclear: list[str] = []
    searched: list[tuple[str, Path]] = []
    for name, hint in zip(names, hints, strict=True):
        if (path := _as_written(name, folder)) is not None:
            paths.append(path)
            continue
        fitting = tree.fitting(name, hint)
        if not fitting:
            absent.append(name)
        elif len(fitting) > 1:
            few = " or ".join(shown(path.relative_to(folder)) for path in fitting[:2])
            unclear.append(f"{shown(name)} could be {few}")
        else:
            paths.append(fitting[0])
            searched.append((name, fitting[0]))
    if absent:
        first = ", ".join(_describe(name, folder) for name in absent[:SHOWN])
        raise UserError(
            f"{what}: {len(absent)} {noun}s are missing, the first is {first}; the names were searched for "
            f"as written, in {shown(folder.absolute())} and the two folders above it, and by their last "
            "parts below it"
        )
    if unclear:
        raise UserError(
            f"{what}: {len(unclear)} {noun} names match several files: {'; '.join(unclear[:SHOWN])}; "
            "write the folder into the name as well"
        )
    notes = []
    if searched:
        name, path = searched[0]
        found = shown(path.relative_to(folder))
        notes.append(
            f"{noun.capitalize()}s found by the last parts of their names: {len(searched)} (the first, "
            f"{shown(name)}, is {found})."
        )
    return tuple(paths), notes


def _as_written(name: str, folder: Path) -> Path | None:
    """The file of that name; backslashes may separate folders."""
    for text in dict.fromkeys((name, name.replace("\\", "/"))):
        for base in (folder, folder / "..", folder / "../.."):
            if os.path.isfile(path := base / text):  # False for a name that is too long
                return path
    return None


def _describe(name: str, folder: Path) -> str:
    if "://" in name:
        return shown(name)
    text = shown(folder / name.replace("\\", "/"))
    return text if "\\" not in name else f"{shown(name)} ({text})"


@dataclass(frozen=True)
class _Files:
    """The files below a folder, indexed by the last components of their paths."""

    folder: Path

    def fitting(self, name: str, hint: set[str]) -> list[Path]:
        """The files that match the name; a single one if the match is unambiguous."""
        text = name.replace("\\", "/")
        absolute = bool(re.match(rf"/|{START}", text))
        parts = [p for p in re.sub(f"^{START}", "", text).split("/") if p not in ("", ".", "..")]
        if not parts:
            return []
        wanted = [_key(part) for part in parts]
        scored = [
            (score, path)
            for path, have, below in self._by_name.get(wanted[-1], ())
            if (score := _agreeing(wanted, have)) >= (min(2, below) if absolute else len(wanted))
        ]
        most = max((score for score, _ in scored), default=0)
        best = [path for score, path in scored if score == most]
        matching = [p for p in best if {_key(part) for part in p.parts[:-1]} & set(map(_key, hint))]
        return matching if len(matching) == 1 else best

    @cached_property
    def _by_name(self) -> dict[str, list[tuple[Path, list[str], int]]]:
        """Key of a file name, with and without suffix -> the file, the keys of its path components, and the
        number of components below the folder."""
        found: defaultdict[str, list[tuple[Path, list[str], int]]] = defaultdict(list)
        above = len(self.folder.absolute().parts)
        entered: set[str] = set()
        known, count = suffixes(), 0
        for root, folders, files in os.walk(self.folder, followlinks=True):
            folders[:] = sorted(name for name in folders if not is_hidden(name))
            if (real := os.path.realpath(root)) in entered or count > MOST_FILES:
                folders.clear()
                continue
            entered.add(real)
            count += len(files)
            keys = [_key(part) for part in Path(root).absolute().parts]
            for name in sorted(files):
                if is_hidden(name):
                    continue
                key, (stem, suffix) = _key(name), os.path.splitext(name)
                entry = (Path(root, name), [*keys, key], len(keys) + 1 - above)
                found[key].append(entry)
                if suffix.lower() in known:
                    found[_key(stem)].append(entry)
        return found


def _agreeing(wanted: list[str], have: list[str]) -> int:
    """Number of components at the end that agree: the file name, with or without suffix, and folders."""
    count = 1
    while count < min(len(wanted), len(have)) and wanted[-1 - count] == have[-1 - count]:
        count += 1
    return count


def _key(text: str) -> str:
    """A name in a form for comparison: NFC and case-folded."""
    return unicodedata.normalize("NFC", text).casefold()
