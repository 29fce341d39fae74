"""Bundles: what two machines recorded of one study, merged, is what one would have recorded."""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import pytest

from analysis.load import load_study
from harness import bundle, merge_bundles, pack_study, sync_study
from harness.search.bundles import Part, read_bundle
from harness.search.merge import plan_merge, write_merge
from harness.search.plan import Shard
from harness.search.record import Record
from harness.search.storage import open_storage
from harness.study import main as study_main
from harness.training.trial import Limits
from tests.bundles import (
    COMMAND,
    FULL,
    PROBE,
    STUDY_FILE,
    Machine,
    Make,
    Shards,
    WithStores,
    contents,
    refused,
    results,
    same_results,
)

MEASURED = ("seconds", "peak", "measured", "forecast", "prefix", "env.")
"""Columns that differ from one run of a study to the next."""


@pytest.fixture(scope="module")
def whole(
    shards: Shards, with_stores: WithStores, tmp_path_factory: pytest.TempPathFactory
) -> Machine:
    """Both cells on one machine."""
    command = COMMAND.format(space=shards.probe.parent / "toy.py")
    machine = Machine(with_stores(tmp_path_factory.mktemp("whole")), command=command)
    machine.train(Shard())
    sync_study("toy", tracking_uri=machine.uri)
    return machine


# --- what is merged --------------------------------------------------------------------------------


def test_two_shards_merged_are_one_whole_run(shards: Shards, whole: Machine, into: Path) -> None:
    done = merge_bundles([shards.probe, shards.full], into)
    assert (done.new, done.old, done.trials, done.behind) == ((4, 4), (0, 0), 8, "")
    uri = f"sqlite:///{into}/mlflow.db"
    same_results(uri, whole.uri)
    assert len(results(uri)["predictions"]) == 2 * 2
    one, other = load_study("toy", uri).info, load_study("toy", whole.uri).info
    assert replace(one, experiment_id="") == replace(
        other, experiment_id="", command=COMMAND.format(space=shards.probe.parent / "toy.py")
    )


def test_bundles_may_come_one_by_one_and_in_any_order(
    shards: Shards, whole: Machine, into: Path
) -> None:
    assert merge_bundles([shards.full], into).trials == 4
    assert merge_bundles([shards.probe], into).trials == 8
    same_results(f"sqlite:///{into}/mlflow.db", whole.uri)


def test_merging_again_changes_nothing(
    shards: Shards, into: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = [str(shards.probe), str(shards.full), "--into", str(into)]
    assert bundle.main(both) == 0
    assert capsys.readouterr().out == (
        f"{shards.probe}: 4 new trials, 0 there before\n"
        f"{shards.full}: 4 new trials, 0 there before\n"
        f"study toy in {into}: 8 trials\n"
    )
    runs = load_study("toy", f"sqlite:///{into}/mlflow.db").trials
    before = contents(into)
    assert bundle.main(both) == 0
    assert "0 new trials, 4 there before" in capsys.readouterr().out
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
    shards: Shards, whole: Machine, into: Path, tmp_path: Path
) -> None:
    merge_bundles([shards.probe, shards.full], into)
    again = pack_study("toy", tmp_path / "again.zip", tracking_uri=f"sqlite:///{into}/mlflow.db")
    assert (again.trials, again.predictions, again.running) == (8, 1, 0)
    assert merge_bundles([again.file, shards.probe], tmp_path / "third").new == (8, 0)
    same_results(f"sqlite:///{tmp_path}/third/mlflow.db", whole.uri)


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
    assert "exists and is not a bundle of a study; it was not changed" in said
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
