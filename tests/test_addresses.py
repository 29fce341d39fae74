"""Databases in any folder, also one that was moved: files are found, and written, where they lie now."""

from __future__ import annotations

import importlib
import shlex
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import optuna
import pytest
from mlflow import MlflowClient
from sqlalchemy import create_engine, text

from analysis.load import load_study
from analysis.publish import publish
from harness.core.addresses import current_uri, read_only_url, sqlite_path, sqlite_url
from harness.core.command_line import program
from harness.core.stores import default_tracking_uri, record_home
from harness.search.storage import open_storage, read_storage
from harness.tracking.experiment import Experiment
from tests.processes import environment
from tests.refusals import refused
from tests.test_callers import STUDY, WithStores, furnish

ODD = ["a#b", "a?b", "a%41b", "a b", "100%", "Käfer λ", "a+b;c&d=e", 'it\'s "x"', "a@b:c"]


@pytest.mark.parametrize("name", ODD)
def test_url_of_a_file_leads_every_library_to_that_file(
    name: str, tmp_path: Path, with_stores: WithStores
) -> None:
    folder = with_stores(tmp_path / name / "mlruns")
    uri = default_tracking_uri(folder)
    assert sqlite_path(uri) == folder / "mlflow.db"
    made = Experiment(uri, "toy", {})
    (tmp_path / "weights").write_text("some")
    made.keep("a", {}, {}, {}, {"weights": tmp_path / "weights"})
    storage = open_storage(sqlite_url(folder / "optuna.db"))
    optuna.create_study(storage=storage, study_name="mine")
    assert [s.study_name for s in read_storage(sqlite_url(folder / "optuna.db")).get_all_studies()]
    engine = create_engine(read_only_url(folder / "mlflow.db"))
    with engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM runs")).scalar() == 1
    engine.dispose()
    assert len(list((folder / "artifacts" / "toy").rglob("weights"))) == 1
    assert {p.name for p in tmp_path.iterdir()} == {name, "weights"}
    assert {p.name.split("-")[0] for p in folder.iterdir()} == {
        "artifacts",
        "mlflow.db",
        "optuna.db",
    }


def test_relative_url_is_of_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert sqlite_path("sqlite:///mlruns/mlflow.db") == tmp_path / "mlruns" / "mlflow.db"
    assert sqlite_path("postgresql://host/name") is None


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("sqlite://", "in memory"),
        ("sqlite:///:memory:", "in memory"),
        ("sqlite:///file::memory:?uri=true", "in memory"),
        ("sqlite://mlruns/mlflow.db", "three slashes"),
        ("sqlite:///what?/mlflow.db", "write %3F"),
    ],
)
def test_url_that_would_lead_elsewhere_than_to_its_file_is_refused(url: str, said: str) -> None:
    with refused(said):
        record_home(url, None)
    with refused(said):
        record_home(None, url)


def test_programs_are_named_as_a_shell_reads_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "it's #1" / "bin"
    place.mkdir(parents=True)
    monkeypatch.setattr(sys, "executable", str(place / "python"))
    assert shlex.split(program("mlflow")) == [str(place / "mlflow")]
    monkeypatch.chdir(tmp_path)
    assert shlex.split(program("mlflow")) == ["it's #1/bin/mlflow"]


# --- a project that is moved -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recorded", "now"),
    [
        ("OLD/mlruns/artifacts/toy/1/artifacts", "NEW/mlruns/artifacts/toy/1/artifacts"),
        ("OLD/artifacts/mlruns/artifacts/toy/1/artifacts", "NEW/mlruns/artifacts/toy/1/artifacts"),
        ("NEW/mlruns/artifacts/toy/1/artifacts", "NEW/mlruns/artifacts/toy/1/artifacts"),
        ("OLD/elsewhere/artifacts/toy/1/artifacts", "OLD/elsewhere/artifacts/toy/1/artifacts"),
        ("OLD/mlruns/1/artifacts", "OLD/mlruns/1/artifacts"),
        ("OLD/mlruns/artifacts/other/1/artifacts", "OLD/mlruns/artifacts/other/1/artifacts"),
    ],
)
def test_folder_of_a_run_is_looked_for_beside_the_database_if_it_was_there(
    recorded: str, now: str, tmp_path: Path
) -> None:
    old, new = tmp_path / "o#ld", tmp_path / "n%65w"
    (new / "mlruns").mkdir(parents=True)
    uri = Path(recorded.replace("OLD", str(old)).replace("NEW", str(new))).as_uri()
    wanted = Path(now.replace("OLD", str(old)).replace("NEW", str(new)))
    assert current_uri(uri, "toy", sqlite_url(new / "mlruns" / "mlflow.db")) == wanted.as_uri()


def test_folder_that_was_renamed_too_is_found_by_what_lies_in_it(tmp_path: Path) -> None:
    uri = (tmp_path / "mlruns" / "artifacts" / "toy" / "1").as_uri()
    (tmp_path / "kept" / "artifacts" / "toy").mkdir(parents=True)
    found = current_uri(uri, "toy", sqlite_url(tmp_path / "kept" / "mlflow.db"))
    assert found == (tmp_path / "kept" / "artifacts" / "toy" / "1").as_uri()


def test_folder_on_a_server_is_none_of_ours() -> None:
    for uri in ("mlflow-artifacts:/1/artifacts", "s3://bucket/mlruns/artifacts/toy/1"):
        for store in ("http://host:5000", "sqlite:///mlruns/mlflow.db"):
            assert current_uri(uri, "toy", store) == uri


def command(folder: Path, monkeypatch: pytest.MonkeyPatch, words: str) -> None:
    monkeypatch.chdir(folder)
    name, *options = words.split()
    assert importlib.import_module(name).main(options) == 0


def files(folder: Path) -> Mapping[Path, bytes]:
    """All but the databases, which this process may tidy up whenever it closes them."""
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and ".db" not in p.name}


@pytest.mark.parametrize(
    "how", ["moved", *(pytest.param(how, marks=pytest.mark.slow) for how in ("copied", "renamed"))]
)
@pytest.mark.slow
def test_study_goes_on_where_its_folder_was_moved_to(
    how: str,
    tmp_path: Path,
    with_stores: WithStores,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    old, new = tmp_path / "old", tmp_path / "new #1"
    furnish(old, with_stores)
    command(old, monkeypatch, "harness.study --space toy.py --device cpu")
    shutil.copytree(old, new)
    if how != "copied":
        shutil.rmtree(old)
    if how == "renamed":
        (new / "mlruns").rename(new / "kept")
        (new / "mlruns").symlink_to("kept")
    before = files(old)
    table = load_study("toy", default_tracking_uri(new / "mlruns"))
    assert len(table.predictions) == 2 * 40  # repeats and test images
    command(new, monkeypatch, "analysis.report --study toy")
    command(new, monkeypatch, "harness.study --space toy.py --device cpu --repeats 2")
    command(new, monkeypatch, "harness.export --study toy --space toy.py --device cpu")
    command(new, monkeypatch, "harness.sync --study toy")
    assert files(old) == before
    assert old.exists() == (how == "copied")
    table = load_study("toy", default_tracking_uri(new / "mlruns"))
    assert len(table.predictions) == 4 * 40
    assert set(table.trials["outcome"]) == {"complete"}
    kept = list((new / "mlruns").resolve().rglob("predictions.parquet"))
    assert len(kept) == 4
    assert len(list((new / "mlruns").resolve().rglob("index.html"))) == 1
    client = MlflowClient(default_tracking_uri(new / "mlruns"))  # as the UI shows them
    for run in table.predictions["run_id"].unique():
        assert [f.path for f in client.list_artifacts(run)] == ["predictions.parquet"]


def test_database_that_may_not_be_written_keeps_its_report_to_itself(
    tmp_path: Path,
    mlflow_template: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    old, new = tmp_path / "old" / "mlruns", tmp_path / "new" / "mlruns"
    old.mkdir(parents=True)
    shutil.copy(mlflow_template, old / "mlflow.db")
    client = MlflowClient(default_tracking_uri(old))
    experiment = client.create_experiment("toy", (old / "artifacts" / "toy").as_uri())
    client.create_run(experiment, tags={"kind": "study"})
    shutil.copytree(old, new)
    shutil.rmtree(old)
    with closing(sqlite3.connect(new / "mlflow.db")) as connection:
        connection.execute("PRAGMA journal_mode=DELETE")
        connection.execute(
            "CREATE TRIGGER t BEFORE UPDATE ON experiments BEGIN SELECT RAISE(FAIL, 'no'); END"
        )
    assert publish("toy", default_tracking_uri(new), [mlflow_template]) == ""
    assert "could not be logged" in capsys.readouterr().out
    assert not old.exists()


@pytest.mark.slow
def test_printed_commands_run_in_a_folder_whose_name_is_no_plain_url(
    tmp_path: Path, with_stores: WithStores
) -> None:
    here = furnish(tmp_path / "it's #1, 50%41 ä?b", with_stores)
    (here / "toy.py").rename(here / "my toy.py")
    (here / "my toy.py").write_text(STUDY.replace("repeats=1)", "repeats=1, name='toy')"))

    def shell(line: str) -> str:
        done = subprocess.run(
            line,
            shell=True,
            cwd=here,
            env=environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    python = f"{shlex.quote(sys.executable)} -m"
    said = shell(f"{python} harness.study --space 'my toy.py' --device cpu")
    said += shell(said.partition("report:")[2].splitlines()[0])
    shell(f"{python} harness.status --study toy")
    exported = shell(f"{python} harness.export --study toy --space 'my toy.py' --out 'my model'")
    shell(exported.splitlines()[-1].replace("IMAGES...", "--help"))
    again = load_study("toy", default_tracking_uri(here / "mlruns")).info.command
    shell(again.replace("python", shlex.quote(sys.executable), 1))
    assert {p.name for p in tmp_path.iterdir()} == {here.name}
    assert [p.name for p in here.glob("*.db")] == []
