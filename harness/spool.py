"""What is written down while the store that it belongs in does not answer? One file of JSON lines per run.

A line is appended whole or not at all, and lines are taken out in the order in which they came, by one
process at a time. Whoever dies in between leaves the file: what is taken out twice must do no harm.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Entry = dict[str, Any]


class Spool:
    """The files of one study.

    Args:
        folder: where they lie; it is made when something is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def waiting(self) -> list[str]:
        """The runs of which something is kept here."""
        return sorted(path.stem for path in self.folder.glob("*.jsonl"))

    def holds(self, run: str) -> bool:
        """True if something of that run is kept here."""
        return self._path(run).exists()

    def append(self, run: str, entry: Entry) -> None:
        """Keep one entry.

        Raises:
            OSError: if it cannot be written; nothing of it is left then.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        line = json.dumps(entry).encode() + b"\n"
        while True:
            file = os.open(self._path(run), os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
                if os.fstat(file).st_nlink:  # else another process emptied and deleted it just now
                    _write(file, line)
                    return
            finally:
                os.close(file)

    def entries(self, run: str) -> list[Entry]:
        """What is kept of that run, in order."""
        try:
            return _parsed(self._path(run).read_bytes())
        except FileNotFoundError:
            return []

    @contextmanager
    def emptying(self, run: str) -> Iterator[list[Entry]]:
        """What is kept of that run; deleted if the block ends well. Nothing if another process is at it."""
        try:
            file = os.open(self._path(run), os.O_RDONLY)
        except FileNotFoundError:
            yield []
            return
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield []
                return
            if not os.fstat(file).st_nlink:
                yield []
                return
            yield self.entries(run)
            self._path(run).unlink()
        finally:
            os.close(file)

    def set_aside(self, run: str) -> Path:
        """Put what the store refuses where it is kept and holds up nothing; returns the place."""
        place = self._path(run).with_suffix(".refused")
        return self._path(run).rename(place)

    def _path(self, run: str) -> Path:
        return self.folder / f"{run}.jsonl"


def _write(file: int, line: bytes) -> None:
    """Append a line to an open, locked file, and see that it is on the disk."""
    size = os.fstat(file).st_size
    if size and os.pread(file, 1, size - 1) != b"\n":
        line = b"\n" + line  # whoever wrote last died in the middle of a line
    try:
        left = memoryview(line)
        while left:
            left = left[os.write(file, left) :]
        os.fsync(file)
    except OSError:
        os.ftruncate(file, size)
        raise


def _parsed(content: bytes) -> list[Entry]:
    """Every whole line; one that was cut off is left out."""
    found = []
    for line in content.splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found
