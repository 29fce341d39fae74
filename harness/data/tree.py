"""Find the examples below a folder, and report the files that are skipped."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from harness.core.errors import one_line
from harness.data.images import shown
from harness.data.media import Images, Medium

SYSTEM = frozenset(
    (
        *("__macosx", "icon\r", "thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin"),
        *("system volume information", "@eadir", "#recycle", "lost+found", "__pycache__"),
    )
)
"""Names of files and folders that operating systems and servers create, in lower case."""
SHOWN = 3


@dataclass
class SkippedFiles:
    """Skipped files and folders by kind, where the others are examples of a medium."""

    medium: type[Medium] = Images
    by_kind: dict[str, list[Path]] = field(default_factory=dict)

    @property
    def unread(self) -> str:
        """The kind of the files that are not examples."""
        return f"not readable as {self.medium.noun}s"

    def add(self, kind: str, path: Path) -> None:
        """Add one of that kind."""
        self.by_kind.setdefault(kind, []).append(path)

    def notes(self, root: Path) -> Iterator[str]:
        """One sentence per kind, with the first names."""
        for kind, paths in self.by_kind.items():
            more = ", ..." if len(paths) > SHOWN else ""
            names = ", ".join(shown(_below(path, root)) for path in sorted(paths)[:SHOWN])
            count = _suffixes(paths) if kind == self.unread else len(paths)
            yield f"Skipped, {kind}: {count} ({names}{more})."


HIDDEN = "hidden or created by the operating system"
NOT_A_FILE = "broken or circular links, pipes and devices"


def files_below(folder: Path, skipped: SkippedFiles) -> list[Path]:
    """The examples in a folder and its sub-folders, sorted.

    Links to files and folders are followed, but no folder is entered twice.

    Raises:
        UserError: if a folder cannot be read.
    """
    return sorted(_files(folder, skipped))


def contains(folder: Path, medium: type[Medium]) -> bool:
    """Whether there is an example of that medium in a folder or below it."""
    return next(_files(folder, SkippedFiles(medium)), None) is not None


def _files(root: Path, skipped: SkippedFiles) -> Iterator[Path]:
    entered: set[Path] = set()
    waiting = [root]
    while waiting:
        folder = waiting.pop()
        if (real := _real(folder)) in entered:
            skipped.add(NOT_A_FILE, folder)
            continue
        entered.add(real)
        folders, files = list_folder(folder, skipped)
        for path in files:
            if skipped.medium.recognises(path):
                yield path
            else:
                skipped.add(skipped.unread, path)
        waiting += reversed(folders)


def list_folder(folder: Path, skipped: SkippedFiles) -> tuple[list[Path], list[Path]]:
    """The sub-folders and files in a folder, links last.

    Hidden entries are skipped, and so are links to a folder that contains this one.

    Raises:
        UserError: if the folder cannot be read.
    """
    with one_line(f"folder {shown(folder)} cannot be read"), os.scandir(folder) as found:
        entries = sorted(found, key=lambda entry: (entry.is_symlink(), entry.name))
    folders: list[Path] = []
    files: list[Path] = []
    for entry in entries:
        path = folder / entry.name
        if is_hidden(entry.name):
            skipped.add(HIDDEN, path)
        elif _is(entry.is_dir) and not (entry.is_symlink() and _leads_back(path)):
            folders.append(path)
        elif _is(entry.is_file):
            files.append(path)
        else:
            skipped.add(NOT_A_FILE, path)
    return folders, files


def _is(kind: Callable[[], bool]) -> bool:
    try:
        return kind()
    except OSError:  # a link to itself
        return False


def _leads_back(link: Path) -> bool:
    return _real(link.parent).is_relative_to(_real(link))


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))


def is_hidden(name: str) -> bool:
    """Whether the name is hidden or was created by an operating system."""
    return name.startswith(".") or name.lower() in SYSTEM


def _below(path: Path, root: Path) -> Path:
    return path.relative_to(root) if path.is_relative_to(root) else path


def _suffixes(paths: Iterable[Path]) -> str:
    """E.g. "3 .txt, 1 without suffix"."""
    counted = Counter(path.suffix.lower() or "without suffix" for path in paths)
    most = sorted(counted.items(), key=lambda item: (-item[1], item[0]))
    others = sum(count for _, count in most[SHOWN:])
    texts = [f"{count} {suffix}" for suffix, count in most[:SHOWN]]
    return ", ".join([*texts, f"{others} others"] if others else texts)
