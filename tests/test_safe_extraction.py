"""Archives that unpack to more than there is room for, or outside their folder, are refused."""

from __future__ import annotations

import io
import shutil
import tarfile
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torchvision

from harness.data import load_target
from harness.data.safe_extraction import safe_extraction
from tests.refusals import refused

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
        with refused(r"more than the 0\.0 GiB that are free at"):
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


# --- outside the folder ----------------------------------------------------------------------------


def downloaded(kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torchvision unpacks a tar file with one member that points outside its folder."""
    name = kind if kind.startswith("/") else {"path": "../outside"}.get(kind, "x")
    member = tarfile.TarInfo(name)
    if kind == "link":
        member.type, member.linkname = tarfile.SYMTYPE, "../outside"
    if kind == "device":
        member.type = tarfile.CHRTYPE
    with tarfile.open(folder / "x.tar", "w") as tar:
        tar.addfile(member, io.BytesIO())

    def unpacks(*_: object, **__: object) -> None:
        torchvision.datasets.utils.extract_archive(str(folder / "x.tar"), str(folder / "in"))
        raise ValueError("unpacked")

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", unpacks)
    load_target("cifar10")


def test_absolute_path_in_a_downloaded_archive_lands_inside_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with refused("^target CIFAR10 could not be loaded by torchvision: .*unpacked"):
        downloaded(str(tmp_path / "elsewhere"), tmp_path, monkeypatch)
    assert not (tmp_path / "elsewhere").exists()
    assert [p.name for p in (tmp_path / "in").rglob("elsewhere")] == ["elsewhere"]


@pytest.mark.parametrize("kind", ["path", "link", "device"])
def test_downloaded_archive_that_reaches_outside_is_refused(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = "^target CIFAR10 could not be loaded by torchvision: .*(outside|device|special)"
    with refused(said):
        downloaded(kind, tmp_path, monkeypatch)
    assert not (tmp_path / "outside").exists()
