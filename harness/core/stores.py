"""Paths of the databases, and creation of SQLite files that is safe against kills and concurrent
processes."""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Literal
from uuid import uuid4

from harness.core.addresses import sqlite_path as sqlite_path
from harness.core.addresses import sqlite_url
from harness.core.errors import UserError

ROOT = Path("mlruns")
Program = Literal["MLflow", "Optuna"]
TABLES: dict[Program, frozenset[str]] = {
    "MLflow": frozenset({"experiments", "runs", "tags", "params", "metrics"}),
    "Optuna": frozenset({"studies", "trials", "version_info"}),
}
"""Tables that every version of the program has; it regards a file without them as a new database. The
two cannot share one file: each calls its schema's version `alembic_version` and refuses the other's."""
OPTION: dict[Program, str] = {"MLflow": "--tracking-uri", "Optuna": "--storage"}
MOUNTS = Path("/proc/self/mounts")
NETWORK = frozenset("nfs nfs4 cifs smb3 smbfs lustre gpfs beegfs ceph afs fuse.sshfs".split())
"""Kinds of file systems on which SQLite's locks are not to be trusted (sqlite.org/faq.html#q5)."""

_log = logging.getLogger(__name__)


def default_tracking_uri(root: Path = ROOT) -> str:
    """The SQLite database under `root`, in the form that MLflow expects."""
    return sqlite_url(root / "mlflow.db")


def record_url(storage: str | None, tracking_uri: str | None, root: Path = ROOT) -> str:
    """URL of the record: the user's, else a database beside MLflow's, or in `root` if MLflow is a server."""
    return storage or sqlite_url(_folder_of(tracking_uri or "", root) / "optuna.db")


def record_home(storage: str | None, tracking_uri: str | None, root: Path = ROOT) -> Path:
    """The folder for files of trials: the record's, or `root` where the record is on a server."""
    return _folder_of(record_url(storage, tracking_uri, root), root)


def _folder_of(url: str, root: Path) -> Path:
    path = sqlite_path(url)
    return root.resolve() if path is None else path.parent


def create_sqlite(path: Path, make_tables: Callable[[str], object]) -> None:
    """Make a complete SQLite database at `path` unless one is there.

    The tables are made in a temporary file in the same folder that is then linked into place: a kill
    in the middle of the migrations, or several processes starting at once, would otherwise leave a
    database that no later process can open. WAL makes each later write several times cheaper.

    Args:
        path: where the database belongs.
        make_tables: opens the sqlite:/// URL it is given and makes all tables.
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
    """Check, before the program opens it, that `path` is a SQLite database of this program, which would write
    its tables into any other, and try a folder or a text file again for minutes. The file is not changed.

    Args:
        path: of the file.
        program: that is about to open it.
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
        f"{path} holds no {program} tables; it {what} and was left as it is: "
        f"name another by {OPTION[program]}"
    )


def _tables(path: Path) -> set[str]:
    def look(how: str) -> set[str]:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?{how}", uri=True)) as connection:
            names = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            return {name for (name,) in names}

    try:
        return look("mode=ro")
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode != sqlite3.SQLITE_READONLY_ROLLBACK:
            raise
        # A writer was killed, and a reader may not roll back its incomplete transaction: ignore that.
        return look("immutable=1")


def warn_of_network(path: Path, better: str) -> None:
    """Warn, in the log, of a database whose file system's locks are not to be trusted.

    Args:
        path: of the file.
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
    """The kind of the file system that `path` lies on if it is a network's; else ""."""
    try:
        lines = [line.split() for line in MOUNTS.read_text(errors="surrogateescape").splitlines()]
    except OSError:  # not Linux
        return ""
    # "\\040" stands for a blank; the deepest mount point counts, of two equal ones the later.
    points = [(Path(line[1].replace("\\040", " ")), line[2]) for line in lines if len(line) > 2]
    inside = [(len(at.parts), kind) for at, kind in points if path.resolve().is_relative_to(at)]
    _, kind = max(reversed(inside), key=lambda found: found[0], default=(0, ""))
    return kind if kind in NETWORK else ""
