"""Kept rows are what was made, made once, and made again when they are absent, damaged or stale."""

from __future__ import annotations

import multiprocessing
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from harness import cache as command
from harness.data import cached as module
from harness.data.cache_folder import default_folder
from harness.data.cached import Cache, CachedArray, CachedView, CacheFull, Positions

COUNT, SHAPE = 20, (2, 3)
ROW = 24
"""Bytes of a row: 2 x 3 float32."""


class Maker:
    """Row i is filled with i + shift; remembers what it was asked for."""

    def __init__(self, shift: float = 0) -> None:
        self.shift = shift
        self.asked: list[list[int]] = []

    def __call__(self, at: Positions) -> torch.Tensor:
        self.asked.append(at.tolist())
        values = torch.from_numpy(at).float() + self.shift
        return values[:, None, None].expand(-1, *SHAPE)


def reopened(cache: Cache, **key: str) -> CachedArray:
    """As another process would see the entry."""
    module._open.cache_clear()
    return cache.array({"what": "numbers", **key}, COUNT, SHAPE, torch.float32)


def fingerprints(index: Positions, of: int = 0) -> module.Fingerprints:
    return np.full((len(index), 4), of, np.uint8)


def fill(
    rows: CachedArray, index: list[int], make: Callable[[Positions], torch.Tensor], of: int = 0
) -> None:
    positions = np.array(index)
    rows.fill(positions, fingerprints(positions, of), make)


@pytest.fixture(params=["memory", "folder"])
def cache(request: pytest.FixtureRequest, tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache" if request.param == "folder" else None)


@pytest.fixture
def on_disk(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


def test_rows_are_made_once_in_any_order_and_with_repetitions(cache: Cache) -> None:
    rows, maker = reopened(cache), Maker()
    fill(rows, [5, 3, 5, 19], maker)
    fill(rows, [3, 4], maker)
    assert maker.asked == [[3, 5, 19], [4]]
    taken = rows.take(np.array([19, 3, 3, 4]))
    assert taken.shape == (4, *SHAPE)
    assert taken[:, 0, 0].tolist() == [19, 3, 3, 4]


def test_what_is_taken_is_a_copy(cache: Cache) -> None:
    rows = reopened(cache)
    fill(rows, [1], Maker())
    rows.take(np.array([1])).fill_(9)
    assert rows.take(np.array([1])).unique().tolist() == [1]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16, torch.float64])
def test_every_dtype_comes_back_bitwise(cache: Cache, dtype: torch.dtype) -> None:
    made = torch.randn(3, 7, generator=torch.Generator().manual_seed(0)).mul(50).to(dtype)
    rows = cache.array({"what": str(dtype)}, 3, (7,), dtype)
    rows.fill(np.arange(3), fingerprints(np.arange(3)), lambda at: made[torch.from_numpy(at)])
    assert torch.equal(rows.take(np.arange(3)), made)


def test_other_processes_find_what_one_made(on_disk: Cache) -> None:
    fill(reopened(on_disk), [1, 2], Maker())
    again, maker = reopened(on_disk), Maker()
    fill(again, [1, 2, 3], maker)
    assert maker.asked == [[3]]
    assert again.take(np.array([2, 3]))[:, 0, 0].tolist() == [2, 3]


def test_other_keys_and_stale_stamps_are_made_anew(on_disk: Cache) -> None:
    fill(reopened(on_disk), [1, 2], Maker())
    other = Maker(100)
    fill(reopened(on_disk, weights="others"), [1], other)
    assert other.asked == [[1]]
    newer = Maker(200)
    rows = reopened(on_disk)
    fill(rows, [2], newer, of=7)
    assert newer.asked == [[2]], "the image behind row 2 changed"
    assert rows.take(np.array([2])).unique().tolist() == [202]


@pytest.mark.parametrize("file", ["rows.bin", "checksums.bin"])
def test_one_flipped_bit_is_noticed(on_disk: Cache, file: str) -> None:
    rows = reopened(on_disk)
    fill(rows, list(range(COUNT)), Maker())
    assert rows.folder is not None
    path = rows.folder / file
    raw = bytearray(path.read_bytes())
    size = len(raw) // COUNT
    raw[7 * size + size - 2] ^= 1
    path.write_bytes(raw)
    maker, again = Maker(), reopened(on_disk)
    fill(again, list(range(COUNT)), maker)
    assert maker.asked == [[7]]
    assert again.take(np.array([7])).unique().tolist() == [7]


@pytest.mark.parametrize(
    "harm", ["truncated", "no checksums", "no description", "a file in its place"]
)
def test_a_damaged_entry_is_replaced(on_disk: Cache, harm: str) -> None:
    rows = reopened(on_disk)
    fill(rows, [1], Maker())
    folder = rows.folder
    assert folder is not None
    if harm == "truncated":
        (folder / "rows.bin").write_bytes(b"x")
    elif harm == "no checksums":
        (folder / "checksums.bin").unlink()
    elif harm == "no description":
        (folder / "about.json").unlink()
    else:
        shutil.rmtree(folder)
        folder.write_text("?")
        folder.unlink()
    maker = Maker()
    fill(reopened(on_disk), [1], maker)
    assert maker.asked == [[1]]


def test_seconds_are_those_of_whoever_made_the_row(
    on_disk: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = iter(range(0, 1000, 3))
    monkeypatch.setattr("harness.data.cached.time.perf_counter", lambda: float(next(now)))
    fill(reopened(on_disk), [4, 5, 6], Maker())  # one chunk of 3 rows, 3 seconds
    found = reopened(on_disk)
    assert found.seconds(np.array([4, 5, 6])) == pytest.approx(3)
    assert found.seconds(np.array([4, 4])) == pytest.approx(1)
    assert found.fill(np.array([4]), fingerprints(np.array([4])), Maker()) == 3  # begun and ended


@pytest.mark.parametrize("folder", [False, True])
def test_what_exceeds_the_budget_is_refused_whole(tmp_path: Path, folder: bool) -> None:
    page = 4096 if folder else ROW
    cache = Cache(tmp_path / "cache" if folder else None, 3 * page)
    rows = cache.array({"what": "pages"}, COUNT, (page,))
    maker = lambda at: torch.ones(len(at), page, dtype=torch.uint8)  # noqa: E731
    with pytest.raises(CacheFull, match="do not fit"):
        rows.fill(np.arange(4), fingerprints(np.arange(4)), maker)
    rows.fill(np.arange(2), fingerprints(np.arange(2)), maker)
    assert rows.take(np.arange(2)).unique().tolist() == [1]


def test_longest_unused_entries_make_room_and_those_in_use_stay(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", 5 * 2**20)

    def entry(name: str) -> CachedArray:
        rows = cache.array({"what": name}, 2, (2**20,))
        rows.fill(
            np.arange(2), fingerprints(np.arange(2)), lambda at: torch.ones(len(at), 2**20).byte()
        )
        return rows

    entry("old")
    module._open.cache_clear()
    second = entry("second")
    entry("third")
    assert [e.what for e in cache.entries()] == ["second", "third"], "old made room"
    assert second.take(np.arange(1)).unique().tolist() == [1]
    with pytest.raises(CacheFull):
        entry("fourth")  # both others are in use


def test_a_full_disk_is_no_crash(on_disk: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = reopened(on_disk)

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("harness.data.cached.os.pwrite", full)
    with pytest.raises(CacheFull, match="No space left"):
        fill(rows, [1], Maker())
    monkeypatch.undo()
    maker = Maker()
    fill(rows, [1], maker)
    assert maker.asked == [[1]]


def test_a_folder_that_cannot_be_used_is_done_without(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    unusable = Cache(tmp_path / "file")
    assert "file" in unusable.problem()
    with pytest.raises(CacheFull, match="cannot be used"):
        unusable.array({"what": "x"}, 1, (1,))
    assert Cache(tmp_path / "folder").problem() == ""
    with pytest.raises(CacheFull, match="cannot be used"):
        Cache().array({"what": "more than any machine has"}, 2**20, (2**40,))


def test_a_request_that_cannot_be_met_deletes_nothing(on_disk: Cache) -> None:
    fill(reopened(on_disk), [1], Maker())
    module._open.cache_clear()
    for budget, need in ((0, 1), (10**6, 10**9)):
        with pytest.raises(CacheFull):
            Cache(on_disk.folder, budget).make_room(need)
    assert len(on_disk.entries()) == 1


def test_a_folder_deleted_meanwhile_is_made_again(on_disk: Cache) -> None:
    rows = reopened(on_disk)
    fill(rows, [1], Maker())
    assert on_disk.folder is not None
    shutil.rmtree(on_disk.folder)
    fill(rows, [1, 2], Maker())
    assert rows.take(np.array([1, 2]))[:, 0, 0].tolist() == [1, 2]


def test_checksums_of_equal_rows_are_equal_whatever_they_took(cache: Cache) -> None:
    """They are fingerprints of what is made from the rows: decoding an image again must not make it stale."""
    one, other = reopened(cache), reopened(cache, twin="yes")
    fill(one, [1, 2, 3], Maker())
    fill(other, [2], Maker())
    assert (one.checksums(np.array([2])) == other.checksums(np.array([2]))).all()


def _race(folder: Path, number: int) -> None:
    rows = Cache(folder).array({"what": "numbers"}, COUNT, SHAPE, torch.float32)
    fill(rows, list(range(number, COUNT)), Maker())
    assert rows.take(np.arange(number, COUNT))[:, 0, 0].tolist() == list(range(number, COUNT))


@pytest.mark.slow
def test_processes_that_start_at_once_share_one_entry(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    started = [context.Process(target=_race, args=(tmp_path / "cache", n)) for n in range(2)]
    for process in started:
        process.start()
    for process in started:
        process.join()
    assert [p.exitcode for p in started] == [0, 0]
    cache = Cache(tmp_path / "cache")
    assert len(cache.entries()) == 1
    assert not list((tmp_path / "cache").glob(".*")), "nothing half-made is left"
    maker = Maker()
    fill(reopened(cache), list(range(COUNT)), maker)
    assert maker.asked == []


def test_pages_of_a_large_entry_are_given_back(
    on_disk: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RESIDENT", 5 * ROW)
    rows = reopened(on_disk)
    fill(rows, list(range(COUNT)), Maker())
    for _ in range(4):
        assert rows.take(np.arange(COUNT))[:, 0, 0].tolist() == list(range(COUNT))
    assert rows._touched <= 5 * ROW


def test_a_view_is_indexed_by_positions_and_slices(cache: Cache) -> None:
    rows = reopened(cache)
    fill(rows, [2, 4, 6], Maker())
    view = CachedView(rows, np.array([6, 2, 4]))
    assert len(view) == 3
    assert view[torch.tensor([2, 0])][:, 0, 0].tolist() == [4, 6]
    assert view[1:][:, 0, 0].tolist() == [2, 4]


def test_wrong_shape_is_refused(cache: Cache) -> None:
    with pytest.raises(ValueError, match="expected shape"):
        fill(reopened(cache), [0], lambda at: torch.zeros(len(at), 3))


def test_command_lists_and_empties(on_disk: Cache, capsys: pytest.CaptureFixture[str]) -> None:
    fill(reopened(on_disk), [1], Maker())
    arguments = ["--cache-dir", str(on_disk.folder)]
    assert command.main(arguments) == 0
    shown = capsys.readouterr().out
    assert "numbers" in shown
    assert "1 entries" in shown
    assert command.main([*arguments, "--empty"]) == 0
    assert on_disk.entries() == []
    assert command.main(["--cache-dir", "/nowhere"]) == 2
    assert "/nowhere" in capsys.readouterr().err


def test_default_folder_is_the_users_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "transfer-harness"


def test_without_a_home_the_cache_is_a_temporary_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless(_: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "expanduser", homeless)
    assert default_folder().parent == Path(tempfile.gettempdir())
