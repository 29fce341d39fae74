"""Open the Optuna storage at a URL; it is created if absent, and refused if it is something else.

Only the coordinator of a study writes to it, so a SQLite file is enough for any number of workers.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from typing import Any, TypeVar

import optuna
from sqlalchemy import event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, PendingRollbackError

from harness.core.addresses import read_only_url, sqlite_url
from harness.core.errors import one_line, without_password
from harness.core.stores import create_sqlite, require_sqlite, sqlite_path, warn_of_network

SQLITE_TIMEOUT_SECONDS = 60
SERVER_SECONDS = 240.0
"""How long to wait for a database server that restarts."""
KINDS = "sqlite:///PATH or postgresql+psycopg://USER@HOST/DATABASE"
T = TypeVar("T")


def open_storage(url: str) -> optuna.storages.BaseStorage:
    """The Optuna storage at a URL: sqlite:///PATH or any SQLAlchemy database URL.

    Raises:
        UserError: if it cannot be opened or written; a password in the URL is not shown.
    """
    with _opening(url):
        check_storage_url(url)
        sqlite = sqlite_path(url)
        if sqlite is None:
            # Without the ping the first call after a restart of the server would fail.
            server = {"pool_pre_ping": True, "pool_size": 1, "max_overflow": 2}
            return _cached(optuna.storages.RDBStorage(url, engine_kwargs=server))
        create_sqlite(sqlite, lambda uri: optuna.storages.RDBStorage(uri).engine.dispose())
        with closing(sqlite3.connect(sqlite, timeout=SQLITE_TIMEOUT_SECONDS)) as connection:
            connection.isolation_level = None
            connection.execute("BEGIN IMMEDIATE")  # fails where the file cannot be written
            connection.execute("ROLLBACK")
        warn_of_network(sqlite, "a local disk, or a PostgreSQL server")
        options = {"connect_args": {"timeout": SQLITE_TIMEOUT_SECONDS}}
        storage = optuna.storages.RDBStorage(sqlite_url(sqlite), engine_kwargs=options)
        _write_without_waiting(storage)
        return _cached(storage)


def check_storage_url(url: str) -> None:
    """Refuse an invalid storage URL before any slow step. Nothing is opened or created.

    Raises:
        UserError: as `open_storage` would.
    """
    with _opening(url):
        if (sqlite := sqlite_path(url)) is None:
            make_url(url).get_dialect().import_dbapi()
        elif sqlite.exists():
            require_sqlite(sqlite, "Optuna", or_empty=True)


def _opening(url: str) -> AbstractContextManager[None]:
    return one_line(f"cannot open the storage {without_password(url)}", f" (must be {KINDS})")


def read_storage(url: str) -> optuna.storages.BaseStorage:
    """Open an existing storage for reading; a SQLite file is opened read-only.

    Raises:
        UserError: if there is none or it cannot be read; a password in the URL is not shown.
    """
    with one_line(f"cannot read the storage {without_password(url)}"):
        if sqlite := sqlite_path(url):
            if not sqlite.is_file():
                raise FileNotFoundError(f"there is no file {sqlite}; name another with --storage")
            require_sqlite(sqlite, "Optuna")
            url = read_only_url(sqlite)
        storage = _cached(optuna.storages.RDBStorage(url, skip_table_creation=True))
        storage.get_all_studies()
        return storage


def patiently(call: Callable[[], T], pause: Callable[[float], None] = time.sleep) -> T:
    """The result of the call; it is repeated for some minutes if a database server cannot be reached.

    Raises:
        Exception: the storage's last exception. Calls to a locked SQLite file are not repeated, because
            SQLite itself has waited for a minute.
    """
    waited, seconds = 0.0, 0.5
    while True:
        try:
            return call()
        except (DBAPIError, PendingRollbackError, optuna.exceptions.StorageInternalError) as error:
            cause = error if isinstance(error, DBAPIError) else error.__cause__ or error
            away = isinstance(cause, (OperationalError, InterfaceError, PendingRollbackError))
            local = isinstance(getattr(cause, "orig", None), sqlite3.Error)
            if not away or local or waited >= SERVER_SECONDS:
                raise
        pause(seconds)
        waited, seconds = waited + seconds, min(2 * seconds, 10.0)


def _cached(storage: optuna.storages.RDBStorage) -> optuna.storages.BaseStorage:
    """The storage with one shared cache of finished trials. By default each Optuna Study has its own
    cache, and reading ten thousand trials takes seconds."""
    return optuna.storages.get_storage(storage)


def _write_without_waiting(storage: optuna.storages.RDBStorage) -> None:
    """Let SQLite return before a write has reached the disk. A killed process loses nothing, a power cut
    at most the last trials, and the file stays intact (sqlite.org/pragma.html#pragma_synchronous, in WAL
    mode)."""
    storage.engine.dispose()  # connections opened before the listener would lack it

    @event.listens_for(storage.engine, "connect")
    def _set(connection: Any, _record: Any) -> None:
        connection.execute("PRAGMA synchronous=NORMAL")
