"""List or delete cached outputs of frozen layers and decoded images on this machine.

    python -m harness.cache
    python -m harness.cache --empty

Everything in the cache can be deleted: it is computed again when a trial needs it.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness.core.command_line import Parser, run_command
from harness.core.errors import UserError
from harness.core.html import as_table
from harness.core.units import format_bytes

if TYPE_CHECKING:
    from harness.data.cached import Cache, Entry


@dataclass(frozen=True)
class CacheContents:
    """What is kept; a table in a notebook.

    Attributes:
        folder: where.
        entries: one per kind of rows, with its size in bytes and when it was last used.
    """

    folder: Path
    entries: tuple[Entry, ...]

    @property
    def size(self) -> int:
        """Bytes of all entries."""
        return sum(entry.size for entry in self.entries)

    def _repr_html_(self) -> str:
        caption = f"{len(self.entries)} entries, {format_bytes(self.size)}, in {self.folder}"
        rows = [(format_bytes(e.size), _when(e), e.what) for e in self.entries]
        return as_table(caption, ("size", "last used", "what"), rows)


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = Parser(
        prog="python -m harness.cache",
        description="List what is kept of frozen layers and decoded images, or delete it.",
    )
    parser.add_argument("--cache-dir", type=Path, help="the folder (default: in the user's cache)")
    parser.add_argument("--empty", action="store_true", help="delete every entry")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    return run_command(lambda: run(parse(argv)))


def run(arguments: argparse.Namespace) -> int:
    """Everything after the command line has been read.

    Raises:
        UserError: if the folder named does not exist.
    """
    found = list_cache(arguments.cache_dir)
    if arguments.empty:
        count = empty_cache(arguments.cache_dir)
        print(f"deleted {count} entries, {format_bytes(found.size)}, from {found.folder}")
        return 0
    for entry in found.entries:
        print(f"{format_bytes(entry.size):>9}  last used {_when(entry)}  {entry.what}")
    print(f"{len(found.entries)} entries, {format_bytes(found.size)}, in {found.folder}")
    return 0


def list_cache(folder: Path | None = None) -> CacheContents:
    """What is kept of frozen layers and decoded images.

    Args:
        folder: where; None is the folder in the user's cache.

    Raises:
        UserError: if the folder named does not exist.
    """
    cache = _cache(folder)
    assert cache.folder is not None
    return CacheContents(cache.folder, tuple(cache.entries()))


def empty_cache(folder: Path | None = None) -> int:
    """Delete every entry, and say how many there were.

    Raises:
        UserError: if the folder named does not exist.
    """
    cache = _cache(folder)
    assert cache.folder is not None
    (cache.folder / "checksums.db").unlink(missing_ok=True)
    return cache.empty()


def _cache(folder: Path | None) -> Cache:
    from harness.data.cached import Cache, default_folder

    if folder and not Path(folder).is_dir():
        raise UserError(f"--cache-dir {folder} is not a folder")
    return Cache(Path(folder) if folder else default_folder())


def _when(entry: Entry) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used))


if __name__ == "__main__":
    sys.exit(main())
