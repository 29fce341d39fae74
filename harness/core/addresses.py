"""URLs of SQLite files, the command that opens the MLflow UI, and artifact locations after the folder of a
database was moved."""

from __future__ import annotations

import os
import shlex
import sqlite3
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from urllib.parse import unquote, urlparse

from harness.core.errors import UserError, without_password

ARTIFACTS = "artifacts"
"""Folder beside the database with one folder per experiment."""
LOCATIONS = (("runs", "artifact_uri"), ("logged_models", "artifact_location"))
"""Tables and columns with absolute artifact locations, besides those of the experiments."""


def sqlite_url(path: Path) -> str:
    """The URL of a database file, for a path with any characters."""
    from sqlalchemy import URL, make_url  # --help must not wait for it

    file = str(path.resolve())
    plain = f"sqlite:///{file}"  # with # and blanks too, but not with ? and %41
    if make_url(plain).database == file:
        return plain
    return URL.create("sqlite", database=file).render_as_string()


def viewer_command(tracking_uri: str, mlflow: str = "mlflow") -> str:
    """The command that opens the MLflow UI, or the address to open in a browser; without passwords.

    Args:
        tracking_uri: the store.
        mlflow: how to call MLflow's program.
    """
    uri = without_password(tracking_uri)
    if uri.startswith(("http://", "https://")):
        return f"open {uri} in a browser"
    return f"{mlflow} ui --backend-store-uri {shlex.quote(uri)} --host 127.0.0.1 --workers 1"


def remove_stray_folder(url: str) -> None:
    """Remove the empty folder that MLflow 3.17 creates when it opens a database file whose URL contains
    escaped characters, such as %3F for ? and %25 for %."""
    path = sqlite_path(url)
    folder = Path(url.removeprefix("sqlite:///")).absolute().parent
    if path is not None and "%" in url and folder.resolve() != path.parent:
        with suppress(OSError):
            os.removedirs(folder)


def sqlite_path(url: str) -> Path | None:
    """The absolute path of a sqlite:///PATH URL, or None for any other store.

    Raises:
        UserError: if the database would be in memory, or its path cannot be what the user means.
    """
    if not url.startswith("sqlite://"):
        return None
    from sqlalchemy import make_url

    made = make_url(url)
    if made.host:
        raise UserError(f"{url} has no path; write three slashes: sqlite:///PATH")
    if not made.database or ":memory:" in made.database:
        raise UserError(
            f"the database at {url} would be in memory, and lost when the command ends; name a file: "
            "sqlite:///PATH"
        )
    if "?" in url and not made.query:
        raise UserError(f"the path in {url} ends before the ?; write %3F for a ?, and %25 for a %")
    return Path(made.database).resolve()


def read_only_url(path: Path) -> str:
    """The URL that opens a database file read-only."""
    from sqlalchemy import URL

    uri, _, query = read_only_uri(path).replace("file://", "file:").partition("?")
    options = {**dict([query.split("=")]), "uri": "true"}
    return URL.create("sqlite", database=uri, query=options).render_as_string()


def read_only_uri(path: Path) -> str:
    """The URI with which sqlite3 opens a database file read-only. In a folder that cannot be written to,
    SQLite cannot coordinate with writers of a database in WAL mode, and opens it only as immutable."""
    path = path.resolve()
    writable = os.access(path.parent, os.W_OK, effective_ids=True)
    shared = writable or path.with_name(f"{path.name}-wal").exists()
    return f"{path.as_uri()}?{'mode=ro' if shared else 'immutable=1'}"


def artifact_location(database: Path, experiment: str) -> str:
    """Location of the artifacts of an experiment: beside the database."""
    return (database.resolve().parent / ARTIFACTS / experiment).as_uri()


def current_uri(uri: str, experiment: str, tracking_uri: str) -> str:
    """The present location of a run's artifacts, which may have been moved since MLflow recorded it.

    Args:
        uri: the recorded location.
        experiment: name of the run's experiment.
        tracking_uri: address of its store.
    """
    folder, database = local_folder(uri), sqlite_path(tracking_uri)
    now = folder and database and _moved(folder, experiment, database)
    return now.as_uri() if now else uri


def local_folder(uri: str) -> Path | None:
    """The folder at an artifact URI, or None if it is not on this machine."""
    parts = urlparse(uri)
    if parts.scheme == "file":
        return Path(unquote(parts.path))
    return Path(uri) if not parts.scheme and uri else None


def adopt_artifacts(database: Path) -> None:
    """Correct the artifact locations in an MLflow database whose folder was moved or copied. Otherwise MLflow
    would read and write at the old place.

    Raises:
        sqlite3.Error: if they are wrong and the database cannot be written.
    """
    with closing(sqlite3.connect(database, timeout=30, isolation_level=None)) as connection:
        names = {n for (n,) in connection.execute("SELECT name FROM sqlite_master")}
        moved = list(_moved_experiments(connection, database)) if "experiments" in names else []
        if not moved:
            return
        connection.execute("BEGIN IMMEDIATE")
        for experiment, old, new in moved:
            connection.execute(
                "UPDATE experiments SET artifact_location = ? WHERE experiment_id = ?",
                (new, experiment),
            )
            for table, column in (x for x in LOCATIONS if x[0] in names):
                connection.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) "
                    f"WHERE experiment_id = ? AND substr({column}, 1, ?) = ?",
                    (new, len(old) + 1, experiment, len(old) + 1, f"{old}/"),
                )
        connection.execute("COMMIT")


def _moved_experiments(
    connection: sqlite3.Connection, database: Path
) -> Iterator[tuple[int, str, str]]:
    """(id, old location, new location) of each experiment whose artifacts were moved with the database."""
    found = connection.execute("SELECT experiment_id, name, artifact_location FROM experiments")
    for experiment, name, old in found:
        folder = local_folder(old or "")
        new = None if folder is None else _moved(folder, name, database)
        if new is not None:
            yield experiment, old.rstrip("/"), new.as_uri()


def _moved(folder: Path, experiment: str, database: Path) -> Path | None:
    """The present location of an artifact folder of an experiment; None if it was not moved, or was never
    beside the database.

    It was beside the database if the end of its path, from the name of the database's folder on, is the same
    as now; or, if that folder was renamed too, if it exists here and no longer at the old place.
    """
    home = database.resolve().parent
    for i in reversed(range(1, len(folder.parts) - 1)):
        if folder.parts[i : i + 2] != (ARTIFACTS, experiment):
            continue
        old, now = Path(*folder.parts[:i]), home.joinpath(*folder.parts[i:])
        if old.exists() and home.exists() and old.samefile(home):
            return None
        renamed = not folder.exists() and (home / ARTIFACTS / experiment).exists()
        return now if old.name == home.name or renamed else None
    return None
