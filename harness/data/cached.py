"""A cache of arrays with one row per image, in which each row is used only if its hash is correct.

    rows = Cache(folder, budget).array({"what": "pixels of digits", ...}, count=1797, shape=(3, 32, 32))
    rows.fill(positions, fingerprints, make)
    batch = rows.take(positions[:32])

The key of an entry is the hash of everything that determines its values. Entries are files that all processes
of a machine map into memory, and rows are computed when they are first needed. The checksum of a row is the
SHA-256 of its bytes and of its fingerprint, a hash of its input. A row that is incomplete, damaged or
outdated has a wrong checksum and is computed again.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import mmap
import os
import shutil
import tempfile
import time
import weakref
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from harness.core.errors import first_line
from harness.core.units import format_bytes
from harness.data.cache_folder import Entry, default_folder, make_folder, paths_of, read_entry

Positions = NDArray[np.int64]
Fingerprints = NDArray[np.uint8]
"""(n, k) bytes: a hash of the input of each row."""
Make = Callable[[Positions], torch.Tensor]
"""Positions -> (len(positions), *shape) values."""

GIB = 2**30
DEFAULT_BUDGET = 10 * GIB
RESIDENT = GIB
"""Number of bytes read from a mapped entry after which its pages are given back to the system."""
_CHECKSUM = np.dtype([("sha256", np.uint8, 32), ("seconds", "<f4"), ("check", "<u4")])
"""Hash of a row and its fingerprint; seconds that the row took; checksum of both."""


class CacheFull(Exception):
    """The rows do not fit into the budget or on the disk. Callers continue without the cache."""


@dataclass(frozen=True)
class Cache:
    """A folder for cached rows, with a budget.

    Attributes:
        folder: folder shared by all processes of this machine; None caches rows in the memory of this
            process.
        budget: largest number of bytes; 0 switches the cache off.
    """

    folder: Path | None = None
    budget: int = DEFAULT_BUDGET

    def array(
        self,
        key: Mapping[str, str],
        count: int,
        shape: tuple[int, ...],
        dtype: torch.dtype = torch.uint8,
    ) -> CachedArray:
        """The entry with that key; if there is none, an empty one is created.

        Args:
            key: everything that determines the values; "what" describes them for people.
            count: number of rows, filled or not.
            shape: shape of one row.
            dtype: type of the values.

        Raises:
            CacheFull: if the folder cannot be used, or the system has no room for that many rows.
        """
        return _open(self, json.dumps(dict(sorted(key.items()))), count, shape, dtype)

    def problem(self) -> str:
        """Why the folder cannot be used; empty if it can."""
        if self.folder is None or not self.budget:
            return ""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder):
                return ""
        except OSError as error:
            return f"cannot write to the cache folder {self.folder}: {first_line(error)}"

    def entries(self) -> list[Entry]:
        """The entries in the folder, least recently used first."""
        folders = (
            [] if self.folder is None else [p.parent for p in self.folder.glob("*/about.json")]
        )
        found = [entry for folder in folders if (entry := read_entry(folder)) is not None]
        return sorted(found, key=lambda entry: entry.used)

    def empty(self) -> int:
        """Delete all entries and return their number. Running processes can still use those they have
        open."""
        entries = self.entries()
        for entry in entries:
            shutil.rmtree(entry.folder, ignore_errors=True)
        return len(entries)

    def make_room(self, need: int) -> None:
        """Delete the least recently used entries until `need` more bytes fit.

        Raises:
            CacheFull: if they cannot.
        """
        held = 0
        if self.folder is None:
            held = sum(rows.held for rows in _live if rows.cache == self)
        if need + held > self.budget:
            raise CacheFull(
                f"{format_bytes(need)} do not fit the budget of {format_bytes(self.budget)}"
            )
        if self.folder is None:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)  # it may have been deleted meanwhile
            free = shutil.disk_usage(self.folder).free
        except OSError as error:
            raise CacheFull(f"the cache cannot be used: {error}") from error
        entries, mine = self.entries(), {rows.folder for rows in _live}
        others = [entry for entry in entries if entry.folder not in mine]
        # Half of the free space is left to others. Entries are deleted only if that makes enough room.
        over = max(sum(e.size for e in entries) + need - self.budget, 2 * need - free)
        if over > sum(entry.size for entry in others):
            raise CacheFull(
                f"{format_bytes(need)} do not fit the budget or the disk besides the entries in use"
            )
        for entry in others:
            if over <= 0:
                break
            shutil.rmtree(entry.folder, ignore_errors=True)
            over -= entry.size


def default_cache() -> Cache:
    """The cache in the user's cache folder; one that is off if that folder cannot be used."""
    cache = Cache(default_folder())
    return Cache(None, 0) if cache.problem() else cache


@dataclass(frozen=True)
class CachedView:
    """A selection of rows in a given order: `view[i]` is row `index[i]`."""

    rows: CachedArray
    index: Positions

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, at: torch.Tensor | slice) -> torch.Tensor:
        """(n, *shape) values of n positions of the view."""
        return self.rows.take(self.index[at if isinstance(at, slice) else at.numpy()])


class CachedArray:
    """An array with rows of one shape; made by Cache.array."""

    def __init__(
        self, cache: Cache, key: str, count: int, shape: tuple[int, ...], dtype: torch.dtype
    ) -> None:
        self.cache, self.count, self.shape, self.dtype = cache, count, shape, dtype
        self.key = hashlib.sha256(f"{key}{count}{shape}{dtype}".encode()).hexdigest()
        self.row_bytes = math.prod(shape) * dtype.itemsize
        self.held = 0
        self.folder: Path | None = None
        self._known = np.zeros(count, bool)
        self._touched = 0
        self._map: mmap.mmap | None = None
        self._files: tuple[int, int] | None = None
        sizes = (count * self.row_bytes, count * _CHECKSUM.itemsize)
        if cache.folder is None:
            self._bytes = np.zeros(sizes[0], np.uint8)
            self._checksums = np.zeros(count, _CHECKSUM)
        else:
            self.folder = cache.folder / self.key
            make_folder(self.folder, json.loads(key), sizes)
            rows, checksums = (os.open(path, os.O_RDWR) for path in paths_of(self.folder))
            self._files = (rows, checksums)
            weakref.finalize(self, _close, self._files)
            maps = [mmap.mmap(rows, sizes[0]), mmap.mmap(checksums, sizes[1])]
            self._map = maps[0]
            self._bytes = np.frombuffer(maps[0], np.uint8)
            self._checksums = np.frombuffer(maps[1], _CHECKSUM)
        with torch.inference_mode(False):  # training may read it later
            self._values = torch.from_numpy(self._bytes).view(dtype).view(count, *shape)
        _live.add(self)

    def fill(
        self, index: Positions, fingerprints: Fingerprints, make: Make, chunk: int = 256
    ) -> float:
        """Compute those rows at `index` that are absent, damaged or outdated.

        Args:
            index: positions, in any order.
            fingerprints: (len(index), k) bytes, a hash of the input of each row.
            make: computes the rows at given positions.
            chunk: largest number of rows computed at a time.

        Returns:
            Seconds that this call took.

        Raises:
            CacheFull: if the rows do not fit; nothing is computed then.
        """
        began = time.perf_counter()
        index, first = np.unique(index, return_index=True)
        fingerprints = fingerprints[first]
        unsure = np.flatnonzero(~self._known[index])
        todo = [i for i in unsure if not self._holds(index[i], fingerprints[i])]
        if todo:
            self.cache.make_room(len(todo) * self.row_bytes)
        for start in range(0, len(todo), chunk):
            at = todo[start : start + chunk]
            self._make(index[at], fingerprints[at], make)
        self._known[index] = True
        return time.perf_counter() - began

    def forget(self) -> None:
        """Forget which rows are up to date, so that `fill` compares each row with its fingerprint."""
        self._known[:] = False

    def take(self, index: Positions) -> torch.Tensor:
        """(n, *shape) copies of filled rows."""
        if self._map is not None:
            self._touched += len(index) * self.row_bytes
            if self._touched > RESIDENT:
                self._map.madvise(mmap.MADV_DONTNEED)  # the pages stay in the file
                self._touched = 0
        return self._values[torch.from_numpy(index)]

    def checksums(self, index: Positions) -> Fingerprints:
        """(n, 32) hashes of filled rows, to be used as fingerprints of rows computed from them."""
        found: Fingerprints = self._checksums["sha256"][index]
        return found

    def seconds(self, index: Positions) -> float:
        """Seconds that computing these rows took, in this or any earlier process."""
        return float(self._checksums["seconds"][np.unique(index)].sum(dtype=np.float64))

    def _make(self, index: Positions, fingerprints: Fingerprints, make: Make) -> None:
        began = time.perf_counter()
        made = make(index).detach().to("cpu", self.dtype).contiguous()
        if made.shape != (len(index), *self.shape):
            raise ValueError(f"expected shape {(len(index), *self.shape)}, got {tuple(made.shape)}")
        raw = made.view(len(index), -1).view(torch.uint8).numpy()
        share = np.float32((time.perf_counter() - began) / len(index))
        checksums = np.zeros(len(index), _CHECKSUM)
        checksums["seconds"] = share
        for i, row in enumerate(raw):
            checksums["sha256"][i] = _hash(row, fingerprints[i])
            checksums["check"][i] = _check(checksums[i])
        for start, end in _runs(index):
            self._write(int(index[start]), raw[start:end], checksums[start:end])
        self.held += raw.nbytes

    def _write(self, at: int, raw: NDArray[np.uint8], checksums: NDArray[Any]) -> None:
        if self._files is None:
            self._bytes[at * self.row_bytes :][: raw.nbytes] = raw.reshape(-1)
            self._checksums[at : at + len(checksums)] = checksums
            return
        # Written to the file, not to the mapped memory: there a full disk would end the process.
        for file, values, size in zip(
            self._files, (raw, checksums), (self.row_bytes, _CHECKSUM.itemsize), strict=True
        ):
            try:
                _write_all(file, values.tobytes(), at * size)
            except OSError as error:
                raise CacheFull(f"the cache could not be written: {error}") from error

    def _holds(self, position: int, fingerprint: NDArray[np.uint8]) -> bool:
        checksum = self._checksums[position]
        # A row without a checksum is a hole in the file. It is not read, because a full tmpfs has
        # no page for it.
        if not checksum["check"] or checksum["check"] != _check(checksum):
            return False
        row = self._bytes[position * self.row_bytes :][: self.row_bytes]
        return bool((checksum["sha256"] == _hash(row, fingerprint)).all())


_live: weakref.WeakSet[CachedArray] = weakref.WeakSet()


def clear_caches() -> None:
    """Compare every row with its fingerprint before it is used again, because files may have changed."""
    for rows in _live:
        rows.forget()


@lru_cache(maxsize=16)
def _open(
    cache: Cache, key: str, count: int, shape: tuple[int, ...], dtype: torch.dtype
) -> CachedArray:
    try:
        return CachedArray(cache, key, count, shape, dtype)
    except (OSError, MemoryError) as error:
        raise CacheFull(f"the cache cannot be used: {first_line(error)}") from error


def _hash(row: NDArray[np.uint8], fingerprint: NDArray[np.uint8]) -> Fingerprints:
    hashed = hashlib.sha256(row.data)
    hashed.update(fingerprint.tobytes())
    return np.frombuffer(hashed.digest(), np.uint8)


def _check(checksum: NDArray[Any]) -> int:
    return zlib.crc32(checksum["sha256"].tobytes() + checksum["seconds"].tobytes()) or 1


def _runs(index: Positions) -> Iterator[tuple[int, int]]:
    """The runs of consecutive numbers in sorted positions, as (start, end) indices into `index`."""
    edges = [0, *(np.flatnonzero(np.diff(index) != 1) + 1).tolist(), len(index)]
    return itertools.pairwise(edges)


def _write_all(file: int, data: bytes, offset: int) -> None:
    left = memoryview(data)
    while left:
        written = os.pwrite(file, left, offset)
        left, offset = left[written:], offset + written


def _close(files: tuple[int, int]) -> None:
    for file in files:
        os.close(file)
