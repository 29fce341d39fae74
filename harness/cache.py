"""List or delete cached outputs of frozen layers and decoded examples on this machine.

    python -m harness.cache
    python -m harness.cache --empty

Everything in the cache can be deleted: it is computed again when a trial needs it.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness.core.command_line import command
from harness.core.errors import UserError
from harness.core.html import as_table
from harness.core.units import format_bytes

if TYPE_CHECKING:
    from harness.data.cache_folder import Entry
    from harness.data.cached import Cache


@dataclass(frozen=True)
class CacheContents:
    """Contents of the cache; a table in a notebook.

    Attributes:
        folder: the folder of the cache.
        entries: one per cached array, with its size in bytes and when it was last used.
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


def list_cache(folder: Path | None = None) -> CacheContents:
    """List cached outputs of frozen layers and decoded examples.

    Args:
        folder: the folder of the cache; None is that in the user's cache.

    Raises:
        UserError: if the given folder does not exist.
    """
    cache = _cache(folder)
    assert cache.folder is not None
    return CacheContents(cache.folder, tuple(cache.entries()))


def empty_cache(folder: Path | None = None) -> int:
    """Delete every entry, and return their number.

    Raises:
        UserError: if the given folder does not exist.
    """
    cache = _cache(folder)
    assert cache.folder is not None
    (cache.folder / "checksums.db").unlink(missing_ok=True)
    return cache.empty()


def _cache(folder: Path | None) -> Cache:
    from harness.data.cache_folder import default_folder
    from harness.data.cached import Cache

    if folder and not Path(folder).is_dir():
        raise UserError(f"--cache-dir {folder} is not a folder")
    return Cache(Path(folder) if folder else default_folder())


def _when(entry: Entry) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used))


def run(*, cache_dir: Path | None = None, empty: bool = False) -> None:
    """List cached outputs of frozen layers and decoded examples on this machine, or delete them.

    Everything in the cache can be deleted: it is computed again when a trial needs it.

    Args:
        cache_dir: folder of the cache; the default is in the user's cache.
        empty: delete every entry.
    """
    found = list_cache(cache_dir)
    if empty:
        count = empty_cache(cache_dir)
        print(f"deleted {count} entries, {format_bytes(found.size)}, from {found.folder}")
        return
    for entry in found.entries:
        print(f"{format_bytes(entry.size):>9}  last used {_when(entry)}  {entry.what}")
    print(f"{len(found.entries)} entries, {format_bytes(found.size)}, in {found.folder}")


main = command("harness.cache", run)

if __name__ == "__main__":
    sys.exit(main())
