"""Bundles that are damaged, malicious, of another study or of trials that are there change nothing."""

from __future__ import annotations

import shutil
import stat
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from analysis.load import load_study
from harness import bundle, merge_bundles
from harness.core.errors import UserError
from harness.search.bundles import read_bundle
from harness.search.lock import sole_runner
from tests.bundles import FULL, PROBE, Make, Shards, WithStores, changed, contents, edited, refused

Refuse = Callable[..., str]


@pytest.fixture(scope="module")
def one_cell(
    shards: Shards, with_stores: WithStores, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, str | bytes]]:
    """A record of one cell, and what is in it."""
    folder = with_stores(tmp_path_factory.mktemp("one cell"))
    merge_bundles([shards.full], folder)
    return folder, contents(folder)


@pytest.fixture
def unchanged(one_cell: tuple[Path, dict[str, str | bytes]], into: Path) -> Iterator[None]:
    """A record that a refused merge must leave as it was."""
    folder, before = one_cell
    shutil.copytree(folder, into, dirs_exist_ok=True)
    yield
    assert contents(into) == before


@pytest.fixture
def refuse(unchanged: None, into: Path, capsys: pytest.CaptureFixture[str]) -> Refuse:
    """The line that a merge of these bundles is refused with."""
    return lambda *bundles: refused([*bundles, "--into", into], capsys)


def test_what_is_no_archive_or_only_a_part_of_one_is_refused(
    shards: Shards, refuse: Refuse, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.zip"
    whole = shards.probe.read_bytes()
    for content in (b"", b"no archive", whole[:10], whole[: len(whole) // 2], whole[:-1]):
        bad.write_bytes(content)
        assert refuse(shards.probe, bad).startswith(
            f"{bad} is not a bundle of a study, or is truncated"
        )
    assert refuse(tmp_path / "none.zip").startswith(f"cannot read bundle {tmp_path}/none.zip: ")
    assert refuse(tmp_path).startswith(f"cannot read bundle {tmp_path}: ")
    other = edited(shards.probe, bad, lambda m: m.pop("bundle.json"))
    assert "it has no bundle.json" in refuse(other)


def test_a_byte_that_was_changed_on_the_way_is_noticed(shards: Shards, tmp_path: Path) -> None:
    whole = shards.probe.read_bytes()
    reference = read_bundle(shards.probe, tmp_path / "reference")
    noticed, bad = 0, tmp_path / "bad.zip"
    positions = range(0, len(whole), max(1, len(whole) // 60))
    for position in positions:
        flipped = bytearray(whole)
        flipped[position] ^= 0x10
        bad.write_bytes(flipped)
        folder = tmp_path / str(position)
        try:
            part = read_bundle(bad, folder)
        except UserError:
            noticed += 1
        else:  # dates and the like in the archive's own index
            assert part.trials == reference.trials
            packed, found = contents(tmp_path / "reference"), contents(folder)
            assert packed | {"bundle.json": b""} == found | {"bundle.json": b""}
    assert noticed > 0.9 * len(positions)


def test_members_that_do_not_belong_there_are_refused(
    shards: Shards, refuse: Refuse, tmp_path: Path
) -> None:
    names = ["../x", "/x", "predictions/../../x", "..\\x", "C:/x", "folder/", "x.py", "mlflow.db"]
    for name in names:
        bad = edited(shards.probe, tmp_path / "bad.zip", partial(changed, (), {name: b"text"}))
        assert f"its member {name!r} does not belong in a bundle" in refuse(shards.full, bad)
        assert not (tmp_path / "x").exists()


def test_a_link_is_never_followed(shards: Shards, refuse: Refuse, tmp_path: Path) -> None:
    def change(members: dict[str, Any]) -> None:
        del members[table]

    with zipfile.ZipFile(shards.probe) as archive:
        [table] = [name for name in archive.namelist() if name.startswith("predictions/")]
    bad = edited(shards.probe, tmp_path / "bad.zip", change)
    with zipfile.ZipFile(bad, "a") as archive:
        link = zipfile.ZipInfo(table)
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
    assert "its test predictions were changed" in refuse(bad)


def test_a_bomb_is_refused_before_it_is_unpacked(
    shards: Shards, refuse: Refuse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.data.safe_extraction.ROOM", 0)
    assert "it may be malicious, or the disk is too small" in refuse(shards.probe)


def test_a_bundle_of_another_format_or_of_none_is_refused(
    shards: Shards, refuse: Refuse, tmp_path: Path
) -> None:
    cases: list[tuple[dict[str, object], str]] = [
        ({"format": 3}, "its format is 3, this harness reads format 4"),
        ({"format": "1"}, "its bundle.json is not that of a bundle"),
        ({"study": "../toy"}, "its bundle.json is not that of a bundle"),
        ({"study": 1}, "its bundle.json is not that of a bundle"),
        ({"study": "another"}, "does not belong in a bundle"),
    ]
    for said, message in cases:
        bad = edited(shards.probe, tmp_path / "bad.zip", partial(changed, ("bundle.json",), said))
        assert message in refuse(bad)


def test_a_bundle_that_lacks_a_table_of_predictions_is_refused(
    shards: Shards, refuse: Refuse, tmp_path: Path
) -> None:
    def change(members: dict[str, Any]) -> None:
        table = next(name for name in members if name.startswith("predictions/"))
        del members[table]

    bad = edited(shards.probe, tmp_path / "bad.zip", change)
    assert "probe, repeat 0: its test predictions are missing" in refuse(bad)


def test_another_study_is_refused(machine: Make, shards: Shards, refuse: Refuse) -> None:
    cases: dict[str, dict[str, Any]] = {
        "are not of the same study: name other and toy": {"name": "other"},
        "hash of the study file 000000000000 and ": {"space_sha256": "0" * 64},
        "factors ": {"factors": {"strategy": ["full", "probe"]}},
        "trials per cell 3 and 2": {"trials": 3},
        "repeats per cell 1 and 2": {"repeats": 1},
        "sampler tpe and random": {"sampler": "tpe"},
        "seed 7 and 0": {"seed": 7},
    }
    for number, (message, info) in enumerate(cases.items()):
        other = machine(f"machine {number}", **info).pack()
        assert message in refuse(shards.probe, other)
        if "name" not in info:
            assert message in refuse(other)


def test_a_slot_that_two_machines_settled_is_refused_with_both_named(
    machine: Make, shards: Shards, refuse: Refuse
) -> None:
    twice = machine("twice").train(FULL).pack()
    said = refuse(shards.probe, twice)
    assert said.startswith(f"full, trial 0 was run twice: in bundle {twice} (complete on ")
    assert " and in the record in " in said
    other = machine("other").train(PROBE).pack()
    said = refuse(shards.probe, other)
    assert f"probe, trial 0 was run twice: in bundle {other} (complete on " in said
    assert f") and in bundle {shards.probe} (complete on " in said


def test_other_images_are_refused(
    machine: Make, shards: Shards, refuse: Refuse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "harness.search.cell.inputs_of", lambda *_: {"sha256 of the images": "1" * 64}
    )
    other = machine("machine").train(PROBE).pack()
    assert "differ in the sha256 of the images of digits: 111111111111 and " in refuse(other)


def test_a_record_that_a_command_works_on_is_refused(
    shards: Shards, refuse: Refuse, into: Path
) -> None:
    with sole_runner(into, "toy"):
        assert "'toy' is running already (process " in refuse(shards.probe)


def test_a_place_that_cannot_be_merged_into_is_refused(
    shards: Shards, into: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file"
    file.write_text("text")
    assert "cannot " in refused([shards.probe, "--into", file], capsys)
    (into / "mlflow.db").write_text("no database")
    before = contents(into)
    assert "cannot open the tracking store" in refused([shards.probe, "--into", into], capsys)
    assert contents(into) == before
    fresh = tmp_path / "fresh"
    assert "is not a bundle" in refused([file, "--into", fresh], capsys)
    assert not fresh.exists()
    odd = ["--tracking-uri", "nonsense://x"]
    assert "cannot open the tracking store" in refused(
        [shards.probe, "--into", fresh, *odd], capsys
    )
    assert not fresh.exists()


def test_a_tracking_server_that_is_away_keeps_no_bundle_from_the_record(
    shards: Shards, into: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    away = ["--tracking-uri", "http://127.0.0.1:9"]
    assert bundle.main([str(shards.probe), "--into", str(into), *away]) == 1
    said = capsys.readouterr()
    assert f"study toy in {into}: 4 trials" in said.out
    assert "MLflow lacks a part of it" in said.err
    assert (
        "python -m harness.sync --study toy --tracking-uri http://127.0.0.1:9 --storage "
        in said.err
    )
    assert merge_bundles([shards.probe], into).new == (0,)
    assert len(load_study("toy", f"sqlite:///{into}/mlflow.db").trials) == 4
