"""Where does the search remember its trials? An Optuna storage that survives kills and company."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
from optuna.storages.journal import JournalFileBackend
from sqlalchemy import event

from harness.record import create_sqlite, require_sqlite, sqlite_path
from harness.spec import UserError, first_line, without_password

SQLITE_TIMEOUT_SECONDS = 60


def open_storage(url: str) -> optuna.storages.BaseStorage:
    """The Optuna storage at a URL: sqlite:///PATH, journal:PATH or any SQLAlchemy database URL.

    SQLite writes start with BEGIN IMMEDIATE: Optuna would otherwise hand one waiting trial to several
    workers.

    Raises:
        UserError: if it cannot be opened; a password in the URL is not shown.
    """
    try:
        if url.startswith("journal:"):
            path = Path(url.removeprefix("journal:"))
            path.parent.mkdir(parents=True, exist_ok=True)
            backend = JournalFileBackend(str(path))
            return optuna.storages.JournalStorage(backend)
        sqlite = sqlite_path(url)
        if sqlite is None:
            return optuna.storages.RDBStorage(url, engine_kwargs={"pool_pre_ping": True})
        create_sqlite(sqlite, lambda uri: optuna.storages.RDBStorage(uri).engine.dispose())
        require_sqlite(sqlite)
        storage = optuna.storages.RDBStorage(
            f"sqlite:///{sqlite}",
            engine_kwargs={"connect_args": {"timeout": SQLITE_TIMEOUT_SECONDS}},
        )
        _begin_immediate(storage)
        return storage
    except Exception as error:  # SQLAlchemy, sqlite3, OSError, ImportError of a driver, ...
        raise UserError(
            f"cannot open the storage {without_password(url)}: "
            f"{without_password(first_line(error))} "
            "(want sqlite:///PATH, journal:PATH or postgresql+psycopg://USER@HOST/DATABASE)"
        ) from error


def _begin_immediate(storage: optuna.storages.RDBStorage) -> None:
    storage.engine.dispose()  # connections opened before the listeners would lack them

    @event.listens_for(storage.engine, "connect")
    def _no_implicit_begin(connection: Any, _record: Any) -> None:
        connection.isolation_level = None

    @event.listens_for(storage.engine, "begin")
    def _begin(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")
