"""SHA-256 of files, cached with the size and times of each file, so that unchanged files are read only once.

The cache is a small SQLite file in the user's cache folder. If it cannot be written, every process reads the
files again.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from harness.core.errors import one_line
from harness.data.cache_folder import default_folder
from harness.data.images import shown

FILE_NAME = "checksums.db"
SETTLED = 2.0
"""Seconds. The hash of a file that was written less than this before it was read is not cached, because the
file may be written again within the resolution of its times."""
BATCH = 500
"""Number of paths per query; older versions of SQLite accept at most 999 variables."""

State = tuple[int, int, int, int]
"""Size, time of the last write and time of the last change of the file's metadata in ns, and inode."""
_read: dict[str, tuple[State, bytes]] = {}
"""Hashes that this process has read."""


def checksums(paths: Sequence[Path]) -> list[bytes]:
    """The SHA-256 of each file, 32 bytes; a file is read again only if its size or times have changed.

    Raises:
        UserError: naming a file that cannot be read.
    """
    names = [os.path.abspath(path) for path in paths]
    states = {name: _state(path) for name, path in zip(names, paths, strict=True)}
    unknown = [n for n in states if n not in _read or _read[n][0] != states[n]]
    if unknown:
        _read.update(_recalled(unknown))
        wrong = [n for n in unknown if n not in _read or _read[n][0] != states[n]]
        began = time.time_ns()
        with ThreadPoolExecutor(8) as pool:
            found = dict(zip(wrong, pool.map(_digest, map(Path, wrong)), strict=True))
        _read.update({n: (states[n], digest) for n, digest in found.items()})
        settled = [n for n in wrong if states[n][1] < began - SETTLED * 1e9]
        _remember({n: _read[n] for n in settled})
        digests = [_read[name][1] for name in names]
        for name in set(wrong) - set(settled):
            del _read[name]
        return digests
    return [_read[name][1] for name in names]


def _state(path: Path) -> State:
    with one_line(f"file {shown(path)} cannot be read"):
        found = path.stat()
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


def _digest(path: Path) -> bytes:
    with one_line(f"file {shown(path)} cannot be read"), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _recalled(names: Sequence[str]) -> dict[str, tuple[State, bytes]]:
    """Cached hashes of these files."""
    found: dict[str, tuple[State, bytes]] = {}
    with suppress(sqlite3.Error, OSError), _memory() as database:
        for start in range(0, len(names), BATCH):
            some = [os.fsencode(name) for name in names[start : start + BATCH]]
            marks = ",".join("?" * len(some))
            rows = database.execute(f"SELECT * FROM files WHERE path IN ({marks})", some)
            for name, size, written, changed, inode, digest in rows:
                found[os.fsdecode(name)] = (size, written, changed, inode), digest
    return found


def _remember(known: Mapping[str, tuple[State, bytes]]) -> None:
    if not known:
        return
    with suppress(sqlite3.Error, OSError, OverflowError), _memory() as database:
        database.execute(
            "CREATE TABLE IF NOT EXISTS files (path BLOB PRIMARY KEY, size INT, written INT, "
            "changed INT, inode INT, sha256 BLOB)"
        )
        rows = [(os.fsencode(name), *state, digest) for name, (state, digest) in known.items()]
        database.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?)", rows)


@contextmanager
def _memory() -> Iterator[sqlite3.Connection]:
    """Open the cache file; changes are committed if the block ends without an exception.

    Raises:
        sqlite3.Error, OSError: if it cannot be read or written.
    """
    path = default_folder() / FILE_NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(path, timeout=10)) as database, database:
        yield database
