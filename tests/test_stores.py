"""The databases of a study: made, refused, and those of other programs left as they are."""

from __future__ import annotations

import importlib
import logging
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import optuna
import pytest
from mlflow import MlflowClient

from analysis.load.database import Database
from harness.core import stores
from harness.core.stores import default_tracking_uri, require_sqlite, sqlite_path
from harness.search.cell import CellSearch
from harness.search.record import Record
from harness.search.storage import open_storage, read_storage
from harness.tracking.experiment import Experiment, open_store
from tests.lab import make_study
from tests.processes import python
from tests.refusals import refused

STUDY = ["--study", "toy"]
RANK = ["--target", "digits", "--sources", "tf_efficientnet_lite0,mobilenetv2_100"]
READERS = {
    "harness.export": ("MLflow", STUDY),
    "harness.replay": ("MLflow", ["0" * 32]),
    "harness.rank": ("MLflow", RANK),
    "analysis.report": ("MLflow", STUDY),
    "analysis.recommend": ("MLflow", STUDY),
    "harness.status": ("Optuna", STUDY),
    "harness.sync": ("Optuna", STUDY),
}
"""Command -> the library whose tables it looks for first, and what it cannot do without."""


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
def test_a_reader_leaves_a_database_without_its_tables_as_it_is(
    name: str,
    foreign: Callable[[Path], Path],
    tracking_uri: str,
    mlflow_template: Path,
    optuna_template: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    library, arguments = READERS[name]
    path = foreign(optuna_template if library == "MLflow" else mlflow_template)
    before, url = path.read_bytes(), f"sqlite:///{path}"
    of_mlflow = url if library == "MLflow" else tracking_uri
    storage = [] if library == "MLflow" else ["--storage", url]
    line = refused_by(name, [*arguments, "--tracking-uri", of_mlflow, *storage], capsys)
    assert f"{path} holds no {library} tables; it " in line
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
    with refused(r"o\.db holds no MLflow tables; it is Optuna's"):
        Experiment(f"sqlite:///{optuna}", "toy", {})
    with refused(r"m\.db holds no Optuna tables"):
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
    killed = python("-c", KILLED_IN_THE_MIDDLE, str(path))
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


# --- what is refused --------------------------------------------------------------------------------


@pytest.fixture
def database(optuna_template: Path, tmp_path: Path) -> Path:
    """An Optuna database without studies."""
    return Path(shutil.copy(optuna_template, tmp_path / "study.db"))


@pytest.mark.parametrize("content", [b"These are no trials\n" * 200, None], ids=["text", "folder"])
def test_what_is_no_database_is_refused(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "study.db"
    path.mkdir() if content is None else path.write_bytes(content)
    with refused("^cannot open the storage sqlite:///.*study.db"):
        open_storage(f"sqlite:///{path}")
    assert content is None or path.read_bytes() == content


def test_empty_file_becomes_a_database(tmp_path: Path) -> None:
    (tmp_path / "study.db").touch()
    found = open_storage(f"sqlite:///{tmp_path / 'study.db'}")
    assert optuna.get_all_study_names(found) == []


def test_database_that_may_not_be_written_is_refused(
    optuna_template: Path, for_nobody: tuple[Path, Callable[[], None]]
) -> None:
    folder, become = for_nobody
    path = Path(shutil.copy(optuna_template, folder / "study.db"))
    path.chmod(0o444)
    become()
    with refused("^cannot open the storage .*(readonly|unable to open)"):
        open_storage(f"sqlite:///{path}")


def test_databases_in_a_folder_that_may_not_be_written_are_read(
    optuna_template: Path, mlflow_template: Path, for_nobody: tuple[Path, Callable[[], None]]
) -> None:
    folder, become = for_nobody
    shutil.copy(optuna_template, folder / "optuna.db")
    shutil.copy(mlflow_template, folder / "mlflow.db")
    for name in ("optuna.db", "mlflow.db"):
        (folder / name).chmod(0o444)
    folder.chmod(0o555)
    become()
    assert read_storage(f"sqlite:///{folder / 'optuna.db'}").get_all_studies() == []
    assert [found.name for found in Database(folder / "mlflow.db").experiments()] == ["Default"]


@pytest.mark.parametrize("schema", ["v3.0.0.d", "v99.0.0.a"], ids=["older", "newer"])
def test_database_of_another_optuna_is_refused_with_the_way_out(
    schema: str, database: Path
) -> None:
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("UPDATE alembic_version SET version_num = ?", (schema,))
        connection.commit()
    with refused("^cannot open the storage .*(optuna storage upgrade|pip install -U optuna)"):
        open_storage(f"sqlite:///{database}")


def test_study_that_minimizes_is_refused() -> None:
    kept = optuna.storages.InMemoryStorage()
    optuna.create_study(study_name="toy/full", storage=kept, direction="minimize")
    study = make_study(compare={"strategy": ["full"]})
    with refused("^Optuna study 'toy/full' was not made by this harness"):
        CellSearch(Record(kept, Path()), study, {"strategy": "full"})


def unreachable() -> int:
    """A port that refuses connections at once."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+nodriver://ann:s3cret@h/x",
        "postgresql+psycopg://ann:s3cret@127.0.0.1:{port}/x",
        "postgresql://ann@127.0.0.1:{port}/x?password=s3cret&connect_timeout=1",
        "mysql://ann:s3cr@t/s3cret@127.0.0.1:{port}/x",
        "redis://:s3cret@127.0.0.1:{port}",
    ],
    ids=["no driver", "no server", "in the query", "with @ and /", "no user"],
)
def test_password_of_a_storage_is_not_shown(url: str) -> None:
    with refused("^cannot open the storage ") as caught:
        open_storage(url.format(port=unreachable()))
    assert "s3cr" not in str(caught.value)
    assert "127.0.0.1" in str(caught.value) or "nodriver" in str(caught.value)


def test_password_in_a_drivers_message_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise OSError("no route for host=h user=ann password=s3cret, postgresql://ann:s3cret@h/x")

    monkeypatch.setattr(optuna.storages, "RDBStorage", fails)
    with refused("^cannot open the storage .*no route for host=h") as caught:
        open_storage("postgresql+psycopg://ann:s3cret@h/x")
    assert "s3cret" not in str(caught.value)


def test_journal_is_refused_with_what_takes_its_place(tmp_path: Path) -> None:
    with refused(r"^cannot open the storage journal:.*\(must be sqlite:///PATH or postgresql"):
        open_storage(f"journal:{tmp_path}/study.log")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("kind", "warned"), [("nfs4", True), ("ext4", False)], ids=["nfs", "local"]
)
def test_database_on_a_network_is_warned_of(
    kind: str,
    warned: bool,
    database: Path,
    mlflow_template: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    mounts = database.with_name("mounts")
    mounts.write_text(f"disk / ext4 rw 0 0\nhost:/x {database.parent} {kind} rw 0 0\n")
    monkeypatch.setattr(stores, "MOUNTS", mounts)
    with caplog.at_level(logging.WARNING):
        open_storage(f"sqlite:///{database}")
        assert ("a local disk, or a PostgreSQL server" in caplog.text) == warned
        shutil.copy(mlflow_template, database.with_name("mlflow.db"))
        Experiment(f"sqlite:///{database.with_name('mlflow.db')}", "toy", {})
    assert ("of an MLflow server" in caplog.text) == warned


def test_deleted_experiment_is_refused_with_the_way_out(tracking_uri: str) -> None:
    made = Experiment(tracking_uri, "toy", {})
    made.client.delete_experiment(made.id)
    with refused(
        r"^experiment 'toy' was deleted in MLflow: restore it \(mlflow experiments restore"
    ):
        Experiment(tracking_uri, "toy", {})


def test_file_store_beside_the_database_does_no_harm(tracking_uri: str, tmp_path: Path) -> None:
    (tmp_path / "mlruns" / "0").mkdir()
    (tmp_path / "mlruns" / "0" / "meta.yaml").write_text("artifact_location: x\nname: Default\n")
    assert default_tracking_uri(tmp_path / "mlruns") == tracking_uri
    assert list(Experiment(tracking_uri, "toy", {}).search()) == []


def test_file_store_as_the_store_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mlruns").mkdir()
    with refused("^cannot open the tracking store file:.*maintenance mode"):
        Experiment(f"file:{tmp_path}/mlruns", "toy", {})


def test_output_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mlruns").touch()
    uri = default_tracking_uri(tmp_path / "mlruns")
    with refused("^cannot open the tracking store .*mlruns"):
        Experiment(uri, "toy", {})
