"""Where do the databases lie, and how does one come to be? SQLite files that survive kills and company."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

ROOT = Path("mlruns")


def default_tracking_uri(root: Path = ROOT) -> str:
    """The SQLite database under `root`, as MLflow wants it."""
    return f"sqlite:///{root.resolve()}/mlflow.db"


def home_of(tracking_uri: str, root: Path = ROOT) -> Path:
    """The folder for what lies beside MLflow's store: its database's, or `root` where it is a server."""
    path = sqlite_path(tracking_uri)
    return root.resolve() if path is None else path.parent


def search_url(tracking_uri: str, root: Path = ROOT) -> str:
    """Where Optuna's memory lies unless the user named another place: beside MLflow's store."""
    return f"sqlite:///{home_of(tracking_uri, root)}/optuna.db"


def sqlite_path(uri: str) -> Path | None:
    """The database file of a sqlite:/// URI, or None for any other store."""
    return Path(uri.removeprefix("sqlite:///")).resolve() if uri.startswith("sqlite:///") else None


def create_sqlite(path: Path, make_tables: Callable[[str], object]) -> None:
    """Make a complete SQLite database at `path` unless one is there.

    The tables are made in a temporary file in the same folder that is then linked into place: a kill
    in the middle of the migrations, or several processes starting at once, would otherwise leave a
    database that no later process can open. WAL makes each later write several times cheaper.

    Args:
        path: where the database belongs.
        make_tables: opens the sqlite:/// URI it is given and makes all tables.
    """
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    try:
        make_tables(f"sqlite:///{temporary}")
        with closing(sqlite3.connect(temporary)) as connection:
            connection.execute("PRAGMA journal_mode=WAL")
        # A FileExistsError says that another process was first; its database is as good as ours.
        with suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        for leftover in path.parent.glob(f"{temporary.name}*"):
            leftover.unlink()


def require_sqlite(path: Path) -> None:
    """Raises OSError or sqlite3.Error unless `path` is a SQLite database; MLflow and Optuna would retry a
    folder or a text file for minutes."""
    if not path.is_file():
        raise OSError(f"{path} is not a file")
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA schema_version")
