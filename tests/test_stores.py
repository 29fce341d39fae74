"""Is a database that is not ours left alone? By each command that is given one."""

from __future__ import annotations

import importlib
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from harness.record import PlainInfo, Recorder, StudyInfo
from mlflow import MlflowClient

from harness.errors import UserError
from harness.search.storage import open_storage
from harness.stores import require_sqlite

READERS = {
    "harness.status": ["--study", "toy"],
    "harness.verify": ["--study", "toy"],
    "harness.export": ["--study", "toy"],
    "harness.replay": ["0" * 32],
    "harness.rank": ["--target", "digits", "--sources", "tf_efficientnet_lite0,mobilenetv2_100"],
    "analysis.report": ["--study", "toy"],
    "analysis.recommend": ["--study", "toy"],
}
INFO = StudyInfo("toy", "?", "python", {"strategy": ["a"]}, {}, 1, 1, "random", (), "0")


@pytest.fixture(params=["empty", "another program's", "the other store"])
def foreign(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Path], Path]:
    """Makes the file at a path, given the database of the program that it could be mistaken for."""

    def make(other: Path) -> Path:
        path = tmp_path / "x.db"
        if request.param == "the other store":
            shutil.copy(other, path)
            return path
        with closing(sqlite3.connect(path)) as connection:
            if request.param != "empty":  # names that MLflow and Optuna use, too
                connection.execute("CREATE TABLE experiments (id INTEGER)")
                connection.execute("CREATE TABLE trials (id INTEGER)")
        path.touch()
        return path

    return make


def refused_by(name: str, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a command refused its input with, having printed nothing else."""
    capsys.readouterr()
    assert importlib.import_module(name).main(arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1
    return said.err


@pytest.mark.parametrize("name", READERS)
def test_a_reader_leaves_a_database_without_mlflows_tables_as_it_is(
    name: str,
    foreign: Callable[[Path], Path],
    optuna_template: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    path = foreign(optuna_template)
    before = path.read_bytes()
    line = refused_by(name, [*READERS[name], "--tracking-uri", f"sqlite:///{path}"], capsys)
    assert f"{path} holds no MLflow tables; it " in line
    assert path.read_bytes() == before


@pytest.mark.parametrize("name", ["harness.status", "harness.verify"])
def test_a_reader_leaves_a_database_without_optunas_tables_as_it_is(
    name: str,
    foreign: Callable[[Path], Path],
    tracking_uri: str,
    mlflow_template: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    Recorder(tracking_uri, INFO)
    path = foreign(mlflow_template)
    before = path.read_bytes()
    stores = ["--tracking-uri", tracking_uri, "--storage", f"sqlite:///{path}"]
    line = refused_by(name, ["--study", "toy", *stores], capsys)
    assert f"{path} holds no Optuna tables; it " in line
    assert path.read_bytes() == before


@pytest.mark.parametrize("name", ["harness.status", "harness.verify"])
@pytest.mark.parametrize("text", ["not a line of a journal", None], ids=["other", "absent"])
def test_a_reader_neither_repairs_nor_makes_a_journal_that_is_none(
    name: str,
    text: str | None,
    tracking_uri: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    Recorder(tracking_uri, INFO)
    path = tmp_path / "journal.log"
    if text is not None:
        path.write_text(text)
    stores = ["--tracking-uri", tracking_uri, "--storage", f"journal:{path}"]
    assert str(path) in refused_by(name, ["--study", "toy", *stores], capsys)
    assert (path.read_text() if path.exists() else None) == text


def test_a_study_leaves_the_database_of_another_program_as_it_is(
    mlflow_template: Path,
    optuna_template: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    mlflow, optuna = tmp_path / "m.db", tmp_path / "o.db"
    shutil.copy(mlflow_template, mlflow)
    shutil.copy(optuna_template, optuna)
    before = mlflow.read_bytes(), optuna.read_bytes()
    space = ["--space", "freeze_depth", "--device", "cpu"]
    line = refused_by("harness.study", [*space, "--storage", f"sqlite:///{mlflow}"], capsys)
    assert "m.db holds no Optuna tables; it is MLflow's" in line
    with pytest.raises(UserError, match=r"o\.db holds no MLflow tables; it is Optuna's"):
        Recorder(f"sqlite:///{optuna}", PlainInfo("toy"))
    with pytest.raises(UserError, match=r"m\.db holds no Optuna tables"):
        open_storage(f"sqlite:///{mlflow}")
    assert (mlflow.read_bytes(), optuna.read_bytes()) == before
    assert sorted(p.name for p in tmp_path.glob("*.db")) == ["m.db", "o.db"]
    assert not (tmp_path / "mlruns").exists()


def test_a_database_whose_writer_was_killed_is_known_without_being_changed(tmp_path: Path) -> None:
    """A journal that is left behind is rolled back by the next who writes, which a reader may not."""
    path, copy = tmp_path / "x.db", tmp_path / "copy.db"
    with closing(sqlite3.connect(path)) as writer:
        for table in ("studies", "trials", "version_info"):
            writer.execute(f"CREATE TABLE {table} (x)")
        writer.commit()
        writer.execute("PRAGMA cache_size = 1")  # so that pages reach the file before the commit
        writer.executemany("INSERT INTO trials VALUES (?)", [("x" * 999,)] * 99)
        shutil.copy(path, copy)
        shutil.copy(f"{path}-journal", f"{copy}-journal")
    before = copy.read_bytes()
    require_sqlite(copy, "Optuna")
    assert copy.read_bytes() == before
    assert Path(f"{copy}-journal").exists()


KILLED_IN_THE_MIDDLE = """
import os, signal, sqlite3, sys
from pathlib import Path
from harness.stores import create_sqlite

def half(uri):
    with sqlite3.connect(uri.removeprefix("sqlite:///")) as made:
        made.execute("CREATE TABLE experiments (experiment_id)")
    os.kill(os.getpid(), signal.SIGKILL)

create_sqlite(Path(sys.argv[1]), half)
"""


def test_kill_while_the_tables_are_made_leaves_none_that_a_later_process_would_take_for_whole(
    tmp_path: Path,
) -> None:
    path = tmp_path / "mlflow.db"
    killed = subprocess.run([sys.executable, "-c", KILLED_IN_THE_MIDDLE, str(path)])
    assert killed.returncode == -signal.SIGKILL
    assert not path.exists()
    Recorder(f"sqlite:///{path}", PlainInfo("toy"))
    require_sqlite(path, "MLflow")


def test_run_that_is_no_trial_is_ended_when_its_file_cannot_be_kept(
    tracking_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / "model").write_text("x")
    monkeypatch.setattr(MlflowClient, "log_artifact", full)
    recorder = Recorder(tracking_uri, PlainInfo("toy"))
    with pytest.raises(OSError, match="No space"):
        recorder.keep("x", {}, {}, {}, {"model": tmp_path / "model"})
    client = MlflowClient(tracking_uri=tracking_uri)
    experiment = client.get_experiment_by_name("toy")
    assert experiment is not None
    assert [r.info.status for r in client.search_runs([experiment.experiment_id])] == ["FAILED"]
