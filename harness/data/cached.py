"""A cache of arrays with one row per image, in which each row is used only if its hash is correct.

    rows = Cache(folder, budget).array({"what": "pixels of digits", ...}, count=1797, shape=(3, 32, 32))
    rows.fill(positions, fingerprints, make)
    batch = rows.take(positions[:32])

Entries are keyed by the hash of everything that decides their values, lie in files that all processes of a
machine map into memory, and are filled as rows are asked for. A row's checksum is the SHA-256 of its bytes
and of its fingerprint, the hash of what it was made from: a torn, damaged or stale row has a wrong checksum,
and is made again.
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
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from harness.core.errors import first_line
from harness.core.units import format_bytes

Positions = NDArray[np.int64]
Fingerprints = NDArray[np.uint8]
"""(n, k) bytes: what each row is made from."""
Make = Callable[[Positions], torch.Tensor]
"""Positions -> (len(positions), *shape) values."""

GIB = 2**30
DEFAULT_BUDGET = 10 * GIB
RESIDENT = GIB
"""Bytes of one mapped entry that are read before its pages are given back to the system."""
_CHECKSUM = np.dtype([("sha256", np.uint8, 32), ("seconds", "<f4"), ("check", "<u4")])
"""Hash of a row and its fingerprint; seconds that it took; checksum of both."""


class CacheFull(Exception):
    """The rows asked for do not fit: budget or disk. Whoever asked goes on without."""


@dataclass(frozen=True)
class Cache:
    """Where rows are kept, and how many bytes of them.

    Attributes:
        folder: shared by all processes of this machine; None keeps rows in this process.
        budget: bytes; 0 keeps nothing.
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
        """The entry of that key, made empty where there is none.

        Args:
            key: everything that decides the values; "what" says in words what they are.
            count: number of rows, filled or not.
            shape: of one row.
            dtype: of its values.

        Raises:
            CacheFull: if the folder cannot be used, or the system has no room for so many rows.
        """
        return _open(self, json.dumps(dict(sorted(key.items()))), count, shape, dtype)

    def problem(self) -> str:
        """Why nothing can be kept in the folder; empty when it can."""
        if self.folder is None or not self.budget:
            return ""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder):
                return ""
        except OSError as error:
            return f"cannot keep anything in {self.folder}: {first_line(error)}"

    def entries(self) -> list[Entry]:
        """What lies in the folder, the longest unused first."""
        folders = (
            [] if self.folder is None else [p.parent for p in self.folder.glob("*/about.json")]
        )
        found = [entry for folder in folders if (entry := _entry(folder)) is not None]
        return sorted(found, key=lambda entry: entry.used)

    def empty(self) -> int:
        """Delete every entry; returns how many there were. Running processes keep what they have open."""
        entries = self.entries()
        for entry in entries:
            shutil.rmtree(entry.folder, ignore_errors=True)
        return len(entries)

    def make_room(self, need: int) -> None:
        """Let go of the longest unused entries until `need` more bytes fit.

        Raises:
            CacheFull: if they cannot.
        """
        if self.folder is None:
            if need + sum(rows.held for rows in _live if rows.cache == self) > self.budget:
                raise CacheFull(
                    f"{format_bytes(need)} do not fit the budget of {format_bytes(self.budget)}"
                )
            return
        if need > self.budget:
            raise CacheFull(
                f"{format_bytes(need)} do not fit the budget of {format_bytes(self.budget)}"
            )
        try:
            self.folder.mkdir(parents=True, exist_ok=True)  # somebody may have deleted it
            free = shutil.disk_usage(self.folder).free
        except OSError as error:
            raise CacheFull(f"the cache cannot be used: {error}") from error
        entries, mine = self.entries(), {rows.folder for rows in _live}
        others = [entry for entry in entries if entry.folder not in mine]
        # Half of what is free is left to others. Nothing is deleted unless that makes room enough.
        over = max(sum(e.size for e in entries) + need - self.budget, 2 * need - free)
        if over > sum(entry.size for entry in others):
            raise CacheFull(
                f"{format_bytes(need)} do not fit the budget or the disk beside what is in use"
            )
        for entry in others:
            if over <= 0:
                break
            shutil.rmtree(entry.folder, ignore_errors=True)
            over -= entry.size


@dataclass(frozen=True)
class Entry:
    """One entry of a cache folder: what it is in words, bytes on disk, when last used (Unix time)."""

    folder: Path
    what: str
    size: int
    used: float


@dataclass(frozen=True)
class CachedView:
    """Some rows in an order of their own: `view[i]` is row `index[i]`."""

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
            _make_folder(self.folder, json.loads(key), sizes)
            rows, checksums = (os.open(path, os.O_RDWR) for path in _paths(self.folder))
            self._files = (rows, checksums)
            weakref.finalize(self, _close, self._files)
            maps = [mmap.mmap(rows, sizes[0]), mmap.mmap(checksums, sizes[1])]
            self._map = maps[0]
            self._bytes = np.frombuffer(maps[0], np.uint8)
            self._checksums = np.frombuffer(maps[1], _CHECKSUM)
        with torch.inference_mode(False):  # whoever opens it first, training may read it
            self._values = torch.from_numpy(self._bytes).view(dtype).view(count, *shape)
        _live.add(self)

    def fill(
        self, index: Positions, fingerprints: Fingerprints, make: Make, chunk: int = 256
    ) -> float:
        """Make the rows at `index` that are absent, damaged or stale.

        Args:
            index: positions, in any order.
            fingerprints: (len(index), k) bytes, what each of them is made from.
            make: makes some of them.
            chunk: at most so many at a time.

        Returns:
            Seconds that it took.

        Raises:
            CacheFull: if they do not fit; nothing is made then.
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
        """Take no row for known: `fill` compares each with what it was made from."""
        self._known[:] = False

    def take(self, index: Positions) -> torch.Tensor:
        """(n, *shape) copies of filled rows."""
        if self._map is not None:
            self._touched += len(index) * self.row_bytes
            if self._touched > RESIDENT:
                self._map.madvise(mmap.MADV_DONTNEED)  # the file keeps them; only our share goes
                self._touched = 0
        return self._values[torch.from_numpy(index)]

    def checksums(self, index: Positions) -> Fingerprints:
        """(n, 32) hashes of filled rows: the fingerprints of whatever is made from them."""
        found: Fingerprints = self._checksums["sha256"][index]
        return found

    def seconds(self, index: Positions) -> float:
        """What making these rows took, whoever did it and whenever."""
        return float(self._checksums["seconds"][np.unique(index)].sum(dtype=np.float64))

    def _make(self, index: Positions, fingerprints: Fingerprints, make: Make) -> None:
        began = time.perf_counter()
        made = make(index).detach().to("cpu", self.dtype).contiguous()
        if made.shape != (len(index), *self.shape):
            raise ValueError(f"made {tuple(made.shape)}, want {(len(index), *self.shape)}")
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
        # Written, not mapped: a full disk is an error here and would be a crash there.
        for file, values, size in zip(
            self._files, (raw, checksums), (self.row_bytes, _CHECKSUM.itemsize), strict=True
        ):
            try:
                _write_all(file, values.tobytes(), at * size)
            except OSError as error:
                raise CacheFull(f"the cache could not be written: {error}") from error

    def _holds(self, position: int, fingerprint: NDArray[np.uint8]) -> bool:
        checksum = self._checksums[position]
        # A row without a checksum is a hole in the file: it is not read, as a full tmpfs has no page for it.
        if not checksum["check"] or checksum["check"] != _check(checksum):
            return False
        row = self._bytes[position * self.row_bytes :][: self.row_bytes]
        return bool((checksum["sha256"] == _hash(row, fingerprint)).all())


_live: weakref.WeakSet[CachedArray] = weakref.WeakSet()


def clear_caches() -> None:
    """Compare every row with what it was made from before it is used again: files may have changed."""
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
    """Stretches of consecutive numbers in sorted positions, as (start, end) in them."""
    edges = [0, *(np.flatnonzero(np.diff(index) != 1) + 1).tolist(), len(index)]
    return itertools.pairwise(edges)


def _paths(folder: Path) -> tuple[Path, Path]:
    return folder / "rows.bin", folder / "checksums.bin"


def _make_folder(folder: Path, key: Mapping[str, str], sizes: tuple[int, int]) -> None:
    """A complete, empty entry, unless there is one: made beside its place, then renamed into it."""
    if _is_sound(folder, sizes):
        with suppress(OSError):
            os.utime(folder / "about.json")
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir()
    rows, checksums = _paths(beside)
    with rows.open("wb") as file:
        file.truncate(sizes[0])  # a hole: no disk until rows are written
    checksums.write_bytes(bytes(sizes[1]))  # no hole: these are read before they are written
    (beside / "about.json").write_text(json.dumps(key, indent=1))
    try:
        beside.rename(folder)
    except OSError:
        if not _is_sound(folder, sizes):  # damaged, not another process's
            shutil.rmtree(folder, ignore_errors=True)
            beside.rename(folder)
        shutil.rmtree(beside, ignore_errors=True)


def _is_sound(folder: Path, sizes: tuple[int, int]) -> bool:
    try:
        found = tuple(path.stat().st_size for path in _paths(folder))
    except OSError:
        return False
    return found == sizes and (folder / "about.json").is_file()


def _entry(folder: Path) -> Entry | None:
    about = folder / "about.json"
    try:
        size = sum(path.stat().st_blocks * 512 for path in _paths(folder))
        what = str(json.loads(about.read_text())["what"])
        return Entry(folder, what, size, about.stat().st_mtime)
    except (OSError, ValueError, TypeError, KeyError):
        return None  # being deleted, or damaged: the next use makes it anew


def _write_all(file: int, data: bytes, offset: int) -> None:
    left = memoryview(data)
    while left:
        written = os.pwrite(file, left, offset)
        left, offset = left[written:], offset + written


def _close(files: tuple[int, int]) -> None:
    for file in files:
        os.close(file)


def default_folder() -> Path:
    """transfer-harness in the user's cache folder ($XDG_CACHE_HOME, else ~/.cache); that for temporary files
    where a user has no home."""
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    except RuntimeError:
        return Path(tempfile.gettempdir()) / f"transfer-harness-{os.getuid()}"
    return folder / "transfer-harness"
