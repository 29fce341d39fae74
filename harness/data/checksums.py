"""SHA-256 of files, cached with the size and times of each file, so that unchanged files are read only once.

The cache is a small SQLite file in the user's cache folder. If it cannot be written, every process reads the
files again.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import struct
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
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

STATE = struct.Struct("=qqqQ")
"""State of a file: size, time of the last write and time of the last change of its metadata in ns, and inode.
It is kept packed, because tuples would take several times the memory of a large folder's files."""
_read: dict[str, bytes] = {}
"""Hashes that this process has read: each file's packed state, followed by its digest."""


def checksums(paths: Sequence[Path]) -> list[bytes]:
    """The SHA-256 of each file, 32 bytes; a file is read again only if its size or times have changed.

    Raises:
        UserError: naming a file that cannot be read.
    """
    names = [os.path.abspath(path) for path in paths]
    states = {name: _state(path) for name, path in zip(names, paths, strict=True)}

    def changed(among: Iterable[str]) -> list[str]:
        return [name for name in among if not _read.get(name, b"").startswith(states[name])]

    unsettled: list[str] = []
    if unknown := changed(states):
        _read.update(_recalled(unknown))
        unread = changed(unknown)
        began = time.time_ns()
        with ThreadPoolExecutor(8) as pool:
            digests = list(pool.map(_digest, map(Path, unread)))
        _read.update((n, states[n] + digest) for n, digest in zip(unread, digests, strict=True))
        unsettled = [n for n in unread if STATE.unpack(states[n])[1] >= began - SETTLED * 1e9]
        _remember({name: _read[name] for name in set(unread) - set(unsettled)})
    found = [_read[name][STATE.size :] for name in names]
    for name in unsettled:
        del _read[name]
    return found


def _state(path: Path) -> bytes:
    with one_line(f"file {shown(path)} cannot be read"):
        found = path.stat()
    return STATE.pack(found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)


def _digest(path: Path) -> bytes:
    with one_line(f"file {shown(path)} cannot be read"), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _recalled(names: Sequence[str]) -> dict[str, bytes]:
    """Cached states and hashes of these files."""
    found: dict[str, bytes] = {}
    with suppress(sqlite3.Error, OSError, struct.error), _memory() as database:
        for start in range(0, len(names), BATCH):
            some = [os.fsencode(name) for name in names[start : start + BATCH]]
            marks = ",".join("?" * len(some))
            rows = database.execute(f"SELECT * FROM files WHERE path IN ({marks})", some)
            for name, *state, digest in rows:
                found[os.fsdecode(name)] = STATE.pack(*state) + digest
    return found


def _remember(known: Mapping[str, bytes]) -> None:
    if not known:
        return
    with suppress(sqlite3.Error, OSError, OverflowError), _memory() as database:
        database.execute(
            "CREATE TABLE IF NOT EXISTS files (path BLOB PRIMARY KEY, size INT, written INT, "
            "changed INT, inode INT, sha256 BLOB)"
        )
        rows = (
            (os.fsencode(name), *STATE.unpack_from(found), found[STATE.size :])
            for name, found in known.items()
        )
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
