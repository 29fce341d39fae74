"""Archives that unpack to more than there is room for are refused before they are written."""

from __future__ import annotations

import io
import shutil
import tarfile
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.core.errors import UserError
from harness.data.safe_extraction import safe_extraction

SIZE = 3_000_000


@pytest.fixture(autouse=True)
def little_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk with 2 MB free."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2_000_000))


def bomb(path: Path, size: int) -> Path:
    """Zeros, which hardly take room while they are packed."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
            made.writestr("big", bytes(size))
    else:
        member = tarfile.TarInfo("big")
        member.size = size
        with tarfile.open(path, "w:gz") as tar:
            tar.addfile(member, io.BytesIO(bytes(size)))
    assert path.stat().st_size < 100_000
    return path


def unpack(path: Path, into: Path) -> None:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as packed:
            packed.extractall(into)
    else:
        with tarfile.open(path) as tar:
            tar.extractall(into)


@pytest.mark.filterwarnings("ignore:.*filter extracted tar archives:DeprecationWarning")
@pytest.mark.parametrize("name", ["x.zip", "x.tgz"])
def test_archive_without_room_is_refused_before_it_is_written(name: str, tmp_path: Path) -> None:
    packed, into = bomb(tmp_path / name, SIZE), tmp_path / "in"
    with safe_extraction(tmp_path / "not" / "there"):
        with pytest.raises(UserError, match=r"more than the 0\.0 GiB that are free at"):
            unpack(packed, into)
        assert not (into / "big").exists()
    unpack(packed, into)  # nothing is left of it after the block
    assert (into / "big").stat().st_size == SIZE


@pytest.mark.parametrize("name", ["x.zip", "x.tgz"])
def test_archive_with_room_is_unpacked(name: str, tmp_path: Path) -> None:
    packed = bomb(tmp_path / name, SIZE // 3)
    with safe_extraction(tmp_path):
        unpack(packed, tmp_path / "in")
    assert (tmp_path / "in" / "big").stat().st_size == SIZE // 3
