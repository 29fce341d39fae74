"""Paths of the databases, and creation of SQLite files that is safe if processes are killed or start at the
same time."""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Literal
from uuid import uuid4

from harness.core.addresses import read_only_uri, sqlite_url
from harness.core.addresses import sqlite_path as sqlite_path
from harness.core.errors import UserError

ROOT = Path("mlruns")
Program = Literal["MLflow", "Optuna"]
TABLES: dict[Program, frozenset[str]] = {
    "MLflow": frozenset({"experiments", "runs", "tags", "params", "metrics"}),
    "Optuna": frozenset({"studies", "trials", "version_info"}),
}
"""Tables that exist in every version of the program. The two programs cannot share a file, because each
stores the version of its schema in a table `alembic_version` and refuses the other's."""
OPTION: dict[Program, str] = {"MLflow": "--tracking-uri", "Optuna": "--storage"}
MOUNTS = Path("/proc/self/mounts")
NETWORK = frozenset("nfs nfs4 cifs smb3 smbfs lustre gpfs beegfs ceph afs fuse.sshfs".split())
"""File systems on which SQLite's locks are unreliable (sqlite.org/faq.html#q5)."""

_log = logging.getLogger(__name__)


def default_tracking_uri(root: Path = ROOT) -> str:
    """URL of the SQLite database in `root`, in the form that MLflow expects."""
    return sqlite_url(root / "mlflow.db")


def record_url(storage: str | None, tracking_uri: str | None, root: Path = ROOT) -> str:
    """URL of the record: the given one, or else a database beside MLflow's, or in `root` if MLflow is a
    server."""
    return storage or sqlite_url(_folder_of(tracking_uri or "", root) / "optuna.db")


def record_home(storage: str | None, tracking_uri: str | None, root: Path = ROOT) -> Path:
    """Folder for files of trials: that of the record, or `root` if the record is on a server."""
    return _folder_of(record_url(storage, tracking_uri, root), root)


def _folder_of(url: str, root: Path) -> Path:
    path = sqlite_path(url)
    return root.resolve() if path is None else path.parent


def create_sqlite(path: Path, make_tables: Callable[[str], object]) -> None:
    """Create a complete SQLite database at `path` if there is none.

    The tables are created in a temporary file in the same folder, which is then linked to the path. Otherwise
    a process that is killed during the migrations, or several processes that start at once, would leave a
    database that cannot be opened. WAL mode makes later writes several times faster.

    Args:
        path: path of the database.
        make_tables: creates all tables in the database at the sqlite:/// URL that it is given.
    """
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        make_tables(sqlite_url(temporary))
        with closing(sqlite3.connect(temporary)) as connection:
            connection.execute("PRAGMA journal_mode=WAL")
        # A FileExistsError says that another process was first; its database is as good as ours.
        with suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        for leftover in path.parent.glob(f"{temporary.name}*"):
            leftover.unlink()


def require_sqlite(path: Path, program: Program, or_empty: bool = False) -> None:
    """Check that `path` is a SQLite database of this program, before the program opens it: it would write its
    tables into any other database, and would retry a folder or a text file for minutes. The file is not
    changed.

    Args:
        path: path of the file.
        program: the program that will open it.
        or_empty: accept a database without tables, for callers that may create them.

    Raises:
        UserError: if it is a database of another program.
        OSError, sqlite3.Error: if it is not a database.
    """
    if not path.is_file():
        raise OSError(f"{path} is not a file")
    found = _tables(path)
    if TABLES[program] <= found or (or_empty and not found):
        return
    whose = next((f"{other}'s" for other, tables in TABLES.items() if tables <= found), "")
    what = f"is {whose or 'of another program'}" if found else "is empty"
    raise UserError(
        f"{path} holds no {program} tables; it {what} and was not changed: "
        f"name another with {OPTION[program]}"
    )


def _tables(path: Path) -> set[str]:
    def look(uri: str) -> set[str]:
        with closing(sqlite3.connect(uri, uri=True)) as connection:
            names = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            return {name for (name,) in names}

    try:
        return look(read_only_uri(path))
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode != sqlite3.SQLITE_READONLY_ROLLBACK:
            raise
        # A writer was killed, and a reader may not roll back its incomplete transaction: ignore that.
        return look(f"{path.resolve().as_uri()}?immutable=1")


def warn_of_network(path: Path, better: str) -> None:
    """Log a warning if a database is on a file system with unreliable locks.

    Args:
        path: path of the file.
        better: what to use instead.
    """
    if kind := _network_file_system(path):
        _log.warning(
            "warning: %s lies on %s, where SQLite may lose trials when several machines write; use %s",
            path,
            kind,
            better,
        )


def _network_file_system(path: Path) -> str:
    """The type of the network file system that contains `path`; "" if it is a local one."""
    try:
        lines = [line.split() for line in MOUNTS.read_text(errors="surrogateescape").splitlines()]
    except OSError:  # not Linux
        return ""
    # "\\040" stands for a blank; the deepest mount point counts, of two equal ones the later.
    points = [(Path(line[1].replace("\\040", " ")), line[2]) for line in lines if len(line) > 2]
    inside = [(len(at.parts), kind) for at, kind in points if path.resolve().is_relative_to(at)]
    _, kind = max(reversed(inside), key=lambda found: found[0], default=(0, ""))
    return kind if kind in NETWORK else ""
