"""Unpack archives safely: only below their own folder, and only if they fit on the disk.

torchvision unpacks its downloads with `tarfile` and `zipfile` without checks. Inside a block, both are made
safe: tar members pass Python's data filter (PEP 706, the default from Python 3.14 on), and the sizes that an
archive declares for its members are added up before the members are written.
"""

from __future__ import annotations

import shutil
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness.core.errors import UserError

ROOM = 0.9
"""Share of the free space that unpacking may fill."""


@contextmanager
def safe_extraction(folder: Path) -> Iterator[None]:
    """Unpack archives in this block as described above.

    Args:
        folder: a folder on the disk that is unpacked to; it need not exist yet.

    Raises:
        UserError: from within the block, before the member that would not fit is written.
    """
    there = next(p for p in (folder.resolve(), *folder.resolve().parents) if p.exists())
    room = ROOM * shutil.disk_usage(there).free
    unpacked = 0
    was_filter = tarfile.TarFile.__dict__.get("extraction_filter")
    was_extract = zipfile.ZipFile.extractall

    def count(size: int, name: str) -> None:
        nonlocal unpacked
        unpacked += size
        if unpacked > room:
            raise UserError(
                f"an archive would unpack to more than the {room / 2**30:.1f} GiB that are free at {there} "
                f"(at {name}); it may be malicious, or the disk is too small"
            )

    def checked(member: tarfile.TarInfo, path: str) -> tarfile.TarInfo | None:
        count(member.size, member.name)
        return tarfile.data_filter(member, path)

    def extract(self: zipfile.ZipFile, *arguments: Any, **named: Any) -> None:
        for entry in self.infolist():
            count(entry.file_size, entry.filename)
        was_extract(self, *arguments, **named)

    tarfile.TarFile.extraction_filter = staticmethod(checked)
    zipfile.ZipFile.extractall = extract  # type: ignore[method-assign]
    try:
        yield
    finally:
        zipfile.ZipFile.extractall = was_extract  # type: ignore[method-assign]
        tarfile.TarFile.extraction_filter = was_filter
