"""Every command leaves databases of other programs unchanged."""

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
from mlflow import MlflowClient

from harness.core.errors import UserError
from harness.core.stores import require_sqlite, sqlite_path
from harness.search.storage import open_storage
from harness.tracking.experiment import Experiment, open_store

READERS = {
    "harness.export": ["--study", "toy"],
    "harness.replay": ["0" * 32],
    "harness.rank": ["--target", "digits", "--sources", "tf_efficientnet_lite0,mobilenetv2_100"],
    "analysis.report": ["--study", "toy"],
    "analysis.recommend": ["--study", "toy"],
}


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


@pytest.mark.parametrize("name", ["harness.status", "harness.sync"])
def test_a_reader_leaves_a_database_without_optunas_tables_as_it_is(
    name: str,
    foreign: Callable[[Path], Path],
    tracking_uri: str,
    mlflow_template: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = foreign(mlflow_template)
    before = path.read_bytes()
    stores = ["--tracking-uri", tracking_uri, "--storage", f"sqlite:///{path}"]
    line = refused_by(name, ["--study", "toy", *stores], capsys)
    assert f"{path} holds no Optuna tables; it " in line
    assert path.read_bytes() == before


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
        Experiment(f"sqlite:///{optuna}", "toy", {})
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
from harness.core.stores import create_sqlite

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
    Experiment(f"sqlite:///{path}", "toy", {})
    require_sqlite(path, "MLflow")


def test_run_that_is_no_trial_is_ended_when_its_file_cannot_be_kept(
    tracking_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / "model").write_text("x")
    monkeypatch.setattr(MlflowClient, "log_artifact", full)
    experiment = Experiment(tracking_uri, "toy", {})
    with pytest.raises(OSError, match="No space"):
        experiment.keep("x", {}, {}, {}, {"model": tmp_path / "model"})
    found = MlflowClient(tracking_uri=tracking_uri).search_runs([experiment.id])
    assert [r.info.status for r in found] == ["FAILED"]


RACER = """
import sys
from harness.search.storage import open_storage
from harness.tracking.experiment import open_store
print("ready", flush=True)
sys.stdin.readline()
open_store(f"sqlite:///{sys.argv[1]}/mlflow.db")
open_storage(f"sqlite:///{sys.argv[1]}/optuna.db")
"""


@pytest.mark.slow
def test_commands_that_start_at_once_on_no_database_make_one_of_each(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        racer.communicate("go\n")
    assert [racer.returncode for racer in racers] == [0] * 4
    assert {p.name.partition("-")[0] for p in folder.iterdir()} == {"mlflow.db", "optuna.db"}
    for name in ("mlflow.db", "optuna.db"):
        with closing(sqlite3.connect(folder / name)) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_database_that_is_there_is_left_alone(tracking_uri: str) -> None:
    path = sqlite_path(tracking_uri)
    assert path is not None
    inode = path.stat().st_ino
    open_store(tracking_uri)
    assert path.stat().st_ino == inode
