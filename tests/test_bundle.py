"""Bundles: what two machines recorded of one study, merged, is what one would have recorded."""

from __future__ import annotations

import hashlib
import json
import shutil
import sqlite3
import stat
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import optuna
import pandas as pd
import pytest

from analysis.load import load_study
from harness import bundle, merge_bundles, pack_study, sync_study
from harness.core.errors import UserError
from harness.core.results import WAITED
from harness.search.bundles import Part, read_bundle
from harness.search.lock import sole_runner
from harness.search.merge import plan_merge, write_merge
from harness.search.plan import Shard
from harness.search.record import Record
from harness.search.storage import open_storage
from harness.study import main as study_main
from harness.training.trial import Limits
from tests.toy import Place, make_study

STUDY_FILE = "# what `space` looks like does not matter to a bundle\n"
COMMAND = "python -m harness.study --space {space}"
STUDY = make_study(repeats=2)
PROBE, FULL = Shard(1, 2), Shard(2, 2)


class Machine(Place):
    """A record, with results that are a function of the configuration in place of training."""

    def __init__(self, folder: Path, **info: Any) -> None:
        space_file = folder / "toy.py"
        space_file.write_text(STUDY_FILE)
        fields = {
            "command": COMMAND.format(space=space_file),
            "source": STUDY_FILE,
            "space_sha256": hashlib.sha256(STUDY_FILE.encode()).hexdigest(),
        }
        super().__init__(folder, **{**fields, **info})
        self.study = replace(STUDY, name=info.get("name", "toy"))
        self.record().describe(self.info(self.study))

    def train(self, *shards: Shard, **options: Any) -> Machine:
        """Trials and repeats of these cells, into the record only."""
        for shard in shards:
            uri, self.uri = self.uri, ""
            self.run(self.study, shard=shard, **options)
            self.uri = uri
        return self

    def pack(self, name: str = "", **options: Any) -> Path:
        out = self.folder / (name or f"{self.folder.name}.zip")
        pack_study(self.study.name, out, tracking_uri=self.uri, **options)
        return out


Make = Callable[..., Machine]


WithStores = Callable[[Path], Path]


@pytest.fixture
def machine(with_stores: WithStores, tmp_path: Path) -> Make:
    return lambda folder, **info: Machine(with_stores(tmp_path / folder), **info)


class Shards(NamedTuple):
    probe: Path
    full: Path
    whole: Machine


@pytest.fixture(scope="module")
def shards(with_stores: WithStores, tmp_path_factory: pytest.TempPathFactory) -> Shards:
    """Bundles of the two cells, each of a machine of its own, and both cells on one machine."""
    folder = tmp_path_factory.mktemp("machines")
    command = COMMAND.format(space=folder / "a" / "toy.py")
    options = f"{command} --cells 1/2 --storage sqlite:///a.db"
    one = Machine(with_stores(folder / "a"), command=options)
    other = Machine(with_stores(folder / "b"), command=f"{command} --cells 2/2")
    whole = Machine(with_stores(folder / "whole"), command=command).train(Shard())
    sync_study("toy", tracking_uri=whole.uri)
    return Shards(one.train(PROBE).pack(), other.train(FULL).pack(), whole)


@pytest.fixture
def into(with_stores: WithStores, tmp_path: Path) -> Path:
    """A folder whose databases have nothing in them."""
    return with_stores(tmp_path / "into")


MEASURED = ("seconds", "peak", "measured", "forecast", "prefix", "env.")
"""Columns that differ from one run of a study to the next."""


def results(uri: str) -> dict[str, pd.DataFrame]:
    """What the report is made from, without what differs from one run of a study to the next."""
    table = load_study("toy", uri)
    runs = table.trials.set_index("run_id")[["cell", "phase", "index"]]
    trials = table.trials.drop(columns=["run_id", "start_time"])
    epochs = table.epochs.join(runs, on="run_id").drop(columns="run_id")
    predictions = table.predictions.drop(columns="run_id")
    return {
        "trials": trials.sort_values(["cell", "phase", "index"], ignore_index=True),
        "epochs": epochs.sort_values(["cell", "phase", "index", "epoch"], ignore_index=True),
        "predictions": predictions.sort_values(["cell", "seed", "example"], ignore_index=True),
    }


def same_results(one: str, other: str, but: tuple[str, ...] = ()) -> None:
    for name, frame in results(one).items():
        others = results(other)[name]
        kept = [c for c in frame.columns if not any(word in c for word in (*but, WAITED))]
        pd.testing.assert_frame_equal(frame[kept], others[kept], obj=name)


def contents(folder: Path) -> dict[str, str | bytes]:
    """Every file below a folder but those of locks; of a database what it holds."""
    found: dict[str, str | bytes] = {}
    for path in folder.rglob("*"):
        if path.is_file() and not path.name.endswith((".lock", "-wal", "-shm")):
            name = str(path.relative_to(folder))
            try:
                with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as connection:
                    found[name] = "\n".join(connection.iterdump())
            except sqlite3.DatabaseError:
                found[name] = path.read_bytes()
    return found


def refused(arguments: list[object], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that the command refuses its input with."""
    capsys.readouterr()
    assert bundle.main([*map(str, arguments)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err.removeprefix("error: ").rstrip()


def edited(
    path: Path, out: Path, change: Callable[[dict[str, Any]], Mapping[str, Any] | None]
) -> Path:
    """A bundle that somebody has written anew.

    Args:
        change: is given member -> content, "bundle.json" as a mapping, and may change it.
    """
    with zipfile.ZipFile(path) as archive:
        members: dict[str, Any] = {name: archive.read(name) for name in archive.namelist()}
    members["bundle.json"] = json.loads(members["bundle.json"])
    change(members)
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, json.dumps(content) if isinstance(content, dict) else content)
    return out


def changed(where: tuple[str, ...], more: dict[str, Any], members: dict[str, Any]) -> None:
    """A change for `edited`: adds to the members, or to what one of them holds."""
    for name in where:
        members = members[name]
    members.update(more)


# --- what is merged --------------------------------------------------------------------------------


def test_two_shards_merged_are_one_whole_run(shards: Shards, into: Path) -> None:
    done = merge_bundles([shards.probe, shards.full], into)
    assert (done.new, done.old, done.trials, done.behind) == ((4, 4), (0, 0), 8, "")
    uri = f"sqlite:///{into}/mlflow.db"
    same_results(uri, shards.whole.uri)
    assert len(results(uri)["predictions"]) == 2 * 2
    one, other = load_study("toy", uri).info, load_study("toy", shards.whole.uri).info
    assert replace(one, experiment_id="") == replace(
        other, experiment_id="", command=COMMAND.format(space=shards.probe.parent / "toy.py")
    )


def test_bundles_may_come_one_by_one_and_in_any_order(shards: Shards, into: Path) -> None:
    assert merge_bundles([shards.full], into).trials == 4
    assert merge_bundles([shards.probe], into).trials == 8
    same_results(f"sqlite:///{into}/mlflow.db", shards.whole.uri)


def test_merging_again_changes_nothing(
    shards: Shards, into: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = [str(shards.probe), str(shards.full), "--into", str(into)]
    assert bundle.main(both) == 0
    assert capsys.readouterr().out == (
        f"{shards.probe}: 4 trials are new, 0 were there before\n"
        f"{shards.full}: 4 trials are new, 0 were there before\n"
        f"study toy in {into}: 8 trials\n"
    )
    runs = load_study("toy", f"sqlite:///{into}/mlflow.db").trials
    before = contents(into)
    assert bundle.main(both) == 0
    assert "0 trials are new, 4 were there before" in capsys.readouterr().out
    after = contents(into)
    assert before | {"mlflow.db": b""} == after | {"mlflow.db": b""}
    pd.testing.assert_frame_equal(load_study("toy", f"sqlite:///{into}/mlflow.db").trials, runs)


def test_one_bundle_given_twice_is_merged_once(shards: Shards, into: Path) -> None:
    assert merge_bundles([shards.probe, shards.probe], into).new == (4, 0)


@pytest.mark.slow
def test_a_bundle_of_a_study_that_went_on_adds_what_is_new(machine: Make, into: Path) -> None:
    grown = machine("grown").train(PROBE)
    merge_bundles([grown.pack()], into)
    assert merge_bundles([grown.train(FULL).pack()], into).new == (4,)


@pytest.mark.slow
def test_a_merged_record_can_be_packed_and_merged(
    shards: Shards, into: Path, tmp_path: Path
) -> None:
    merge_bundles([shards.probe, shards.full], into)
    again = pack_study("toy", tmp_path / "again.zip", tracking_uri=f"sqlite:///{into}/mlflow.db")
    assert (again.trials, again.predictions, again.running) == (8, 1, 0)
    assert merge_bundles([again.file, shards.probe], tmp_path / "third").new == (8, 0)
    same_results(f"sqlite:///{tmp_path}/third/mlflow.db", shards.whole.uri)


def test_an_unpacked_bundle_is_a_record(
    shards: Shards, mlflow_template: Path, tmp_path: Path
) -> None:
    shutil.unpack_archive(shards.probe, tmp_path / "mlruns")
    shutil.copy(mlflow_template, tmp_path / "mlruns")
    uri = f"sqlite:///{tmp_path}/mlruns/mlflow.db"
    assert sync_study("toy", tracking_uri=uri).trials == 4
    assert len(load_study("toy", uri).predictions) == 2


@pytest.mark.slow
def test_attempts_that_count_for_nothing_are_merged_too(machine: Make, into: Path) -> None:
    one, other = machine("one"), machine("other").train(PROBE)
    one.world.fail_on({1}, ValueError("no"))
    events = one.events(one.study, shard=PROBE)
    next(events)
    one.search(one.study).begin(1, inline=True)  # runs for ever
    done = pack_study("toy", one.folder / "one.zip", tracking_uri=one.uri)
    assert done.trials == 1
    assert done.running == 1
    assert merge_bundles([done.file, other.pack()], into).new == (1, 4)
    trials = load_study("toy", f"sqlite:///{into}/mlflow.db").trials
    assert sorted(trials["outcome"]) == ["complete"] * 4 + ["crashed"]


@pytest.mark.slow
def test_a_trial_that_was_not_run_gives_way_to_one_that_was(machine: Make, into: Path) -> None:
    large = machine("large").train(PROBE)
    small = machine("small").train(PROBE, limits=Limits(memory=1))
    assert merge_bundles([small.pack(), large.pack()], into).new == (2, 4)
    assert merge_bundles([large.pack(), small.pack()], into).new == (0, 0)


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.mark.slow
def test_a_merge_that_is_killed_at_any_write_is_completed_by_the_same_merge(
    shards: Shards, with_stores: WithStores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = [read_bundle(p, tmp_path / p.stem) for p in (shards.probe, shards.full)]
    writes = [
        (optuna.Study, "add_trial"), (optuna.Study, "set_user_attr"), (Record, "keep_predictions")
    ]  # fmt: skip
    left = 0

    def merge(folder: Path) -> list[str]:
        record = Record(open_storage(f"sqlite:///{folder}/optuna.db"), folder)
        known = Part.of(record, "toy", "here") if record.has("toy") else None
        write_merge(plan_merge(parts, known), record)
        found = record.trials(record.info("toy"))
        assert all(record.predictions(t).is_file() for t in found if t.predictions)
        return sorted(f"{t.slot} {t.metrics}" for t in found)

    for owner, name in writes:
        real = getattr(owner, name)

        def write(*arguments: Any, real: Any = real) -> Any:
            nonlocal left
            if left == 0:
                raise Killed
            left -= 1
            return real(*arguments)

        monkeypatch.setattr(owner, name, write)
    left = 99
    expected, needed = merge(with_stores(tmp_path / "reference")), 99 - left
    assert (len(expected), needed) == (8, 8 + 2 + 4)
    for number in range(needed):
        folder = with_stores(tmp_path / str(number))
        left = number
        with pytest.raises(Killed):
            merge(folder)
        left = 99
        assert merge(folder) == expected


# --- what is packed --------------------------------------------------------------------------------


def test_a_bundle_says_what_is_in_it(shards: Shards) -> None:
    with zipfile.ZipFile(shards.probe) as archive:
        said = json.loads(archive.read("bundle.json"))
        assert archive.read("study.py").decode() == STUDY_FILE
        assert (said["study"], said["trials"], said["predictions"]) == ("toy", {"complete": 4}, 1)
        [table] = [name for name in archive.namelist() if name.startswith("predictions/")]
        assert table == f"predictions/toy/{hashlib.sha256(archive.read(table)).hexdigest()}.parquet"


def test_other_studies_of_the_record_are_not_packed(machine: Make, into: Path) -> None:
    both = machine("both").train(PROBE)
    both.record().describe(replace(both.info(both.study), name="secret"))
    with zipfile.ZipFile(both.pack()) as archive:
        assert b"secret" not in archive.read("optuna.db")


def test_what_cannot_be_packed_is_refused(
    machine: Make, shards: Shards, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = machine("one").train(PROBE)
    uri = ["--tracking-uri", one.uri]
    out = tmp_path / "x.zip"
    said = refused(["--study", "no", "--out", out, *uri], capsys)
    assert said == "the record has no study 'no'; it has: toy"
    database = one.folder / "optuna.db"
    before = database.read_bytes()
    said = refused(["--study", "toy", "--out", database, *uri], capsys)
    assert "exists and is no bundle of a study; it was left as it is" in said
    assert database.read_bytes() == before
    other = machine("two", name="other").pack()
    assert "is a bundle of study 'other'" in refused(
        ["--study", "toy", "--out", other, *uri], capsys
    )
    said = refused(["--study", "toy", "--out", tmp_path / "one" / "toy.py" / "x.zip", *uri], capsys)
    assert said.startswith("cannot write ")
    tables = sorted((one.folder / "predictions" / "toy").iterdir())
    tables[0].write_text("example,label\n")
    assert "were changed" in refused(["--study", "toy", "--out", out, *uri], capsys)
    tables[0].unlink()
    assert "are missing" in refused(["--study", "toy", "--out", out, *uri], capsys)
    assert not out.exists()
    assert refused([], capsys).startswith("--study NAME and --out FILE are required")
    assert refused(["--study", "toy"], capsys).startswith(
        "--study NAME and --out FILE are required"
    )
    assert "to merge, give" in refused([shards.probe], capsys)
    assert "to merge, give" in refused([shards.probe, "--into", out, "--study", "toy"], capsys)
    pack = ["--study", "toy", "--out", out, "--storage", f"sqlite:///{out}"]
    assert "there is no file" in refused(pack, capsys)


# --- what is refused -------------------------------------------------------------------------------


@pytest.fixture
def unchanged(shards: Shards, into: Path) -> Iterator[None]:
    """A record of one cell that a refused merge must leave as it was."""
    merge_bundles([shards.full], into)
    before = contents(into)
    yield
    assert contents(into) == before


Refuse = Callable[..., str]


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
            f"{bad} is no bundle of a study, or was cut off"
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
        assert f"its member {name!r} does not belong into a bundle" in refuse(shards.full, bad)
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
        ({"study": "another"}, "does not belong into a bundle"),
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
        other = machine(f"machine {number}", **info).train(PROBE).pack()
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
    assert "is no bundle" in refused([file, "--into", fresh], capsys)
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


# --- a study that is really run ----------------------------------------------------------------------

REAL = '''
"""Which of the two?"""
from harness import Study, TrialSpec, strategies

ARMS = {"probe": lambda t: strategies.LinearProbe(), "full": lambda t: strategies.FullFineTune()}


def space(trial, strategy):
    return TrialSpec(
        target="digits", backbone="test_resnet", strategy=ARMS[strategy](trial), source="scratch",
        shots=5, val_shots=4, test_shots=6, resolution=32, epochs=2, batch_size=16,
        lr=trial.suggest_float("lr", 1e-3, 1e-1, log=True),
    )


study = Study(name="toy", compare={"strategy": ARMS}, space=space, trials=2, repeats=1)
'''


@pytest.mark.slow
def test_shards_that_were_trained_give_the_numbers_of_one_run(
    with_stores: WithStores, into: Path, tmp_path: Path
) -> None:
    file = tmp_path / "toy.py"
    file.write_text(REAL)
    uris = {}
    for name, cells in (("whole", []), ("a", ["--cells", "1/2"]), ("b", ["--cells", "2/2"])):
        uris[name] = f"sqlite:///{with_stores(tmp_path / name)}/mlflow.db"
        options = ["--space", str(file), "--tracking-uri", uris[name], "--device", "cpu", "--quiet"]
        assert study_main([*options, *cells]) == 0
    packed = [
        pack_study("toy", tmp_path / f"{n}.zip", tracking_uri=uris[n]).file for n in ("a", "b")
    ]
    assert merge_bundles(packed, into).new == (3, 3)
    again = pack_study("toy", tmp_path / "merged.zip", tracking_uri=f"sqlite:///{into}/mlflow.db")
    for packed_file in (*packed, again.file):
        assert zipfile.Path(packed_file, "study.py").read_text() == REAL
    same_results(f"sqlite:///{into}/mlflow.db", uris["whole"], but=MEASURED)
