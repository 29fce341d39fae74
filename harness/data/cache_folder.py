"""The folder of a cache on disk: one folder per entry, with rows, their checksums and a description."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Entry:
    """One entry of a cache folder: description, bytes on disk, and time of its last use (Unix time)."""

    folder: Path
    what: str
    size: int
    used: float


def paths_of(folder: Path) -> tuple[Path, Path]:
    """The files of the rows and of their checksums."""
    return folder / "rows.bin", folder / "checksums.bin"


def make_folder(folder: Path, key: Mapping[str, str], sizes: tuple[int, int]) -> None:
    """Create an empty entry unless there is one: complete under another name first, then renamed."""
    if _is_sound(folder, sizes):
        with suppress(OSError):
            os.utime(folder / "about.json")
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir()
    rows, checksums = paths_of(beside)
    with rows.open("wb") as file:
        file.truncate(sizes[0])  # a hole, which takes no space until rows are written
    checksums.write_bytes(
        bytes(sizes[1])
    )  # not a hole, because these are read before they are written
    (beside / "about.json").write_text(json.dumps(key, indent=1))
    try:
        beside.rename(folder)
    except OSError:
        if not _is_sound(folder, sizes):  # damaged, not just created by another process
            shutil.rmtree(folder, ignore_errors=True)
            beside.rename(folder)
        shutil.rmtree(beside, ignore_errors=True)


def _is_sound(folder: Path, sizes: tuple[int, int]) -> bool:
    try:
        found = tuple(path.stat().st_size for path in paths_of(folder))
    except OSError:
        return False
    return found == sizes and (folder / "about.json").is_file()


def read_entry(folder: Path) -> Entry | None:
    """The entry in that folder; None while it is being deleted, and if it is damaged."""
    about = folder / "about.json"
    try:
        size = sum(path.stat().st_blocks * 512 for path in paths_of(folder))
        what = str(json.loads(about.read_text())["what"])
        return Entry(folder, what, size, about.stat().st_mtime)
    except (OSError, ValueError, TypeError, KeyError):
        return None  # the next use creates it again


def default_folder() -> Path:
    """The folder transfer-harness in the user's cache folder ($XDG_CACHE_HOME, else ~/.cache), or in the
    folder for temporary files if the user has no home."""
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    except RuntimeError:
        return Path(tempfile.gettempdir()) / f"transfer-harness-{os.getuid()}"
    return folder / "transfer-harness"
