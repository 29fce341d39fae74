"""Where does the search remember its trials? An Optuna storage that survives kills and company."""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import optuna
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from sqlalchemy import event
from sqlalchemy.engine import make_url

from harness.addresses import read_only_url, sqlite_url
from harness.errors import UserError, first_line, without_password
from harness.search.patience import open_patiently
from harness.stores import create_sqlite, require_sqlite, sqlite_path, warn_of_network

SQLITE_TIMEOUT_SECONDS = 60
LOCK_SECONDS = 30
"""After so long the lock of a journal is taken from a process that does not release it."""
_log = logging.getLogger(__name__)


def open_storage(url: str) -> optuna.storages.BaseStorage:
    """The Optuna storage at a URL: sqlite:///PATH, journal:PATH or any SQLAlchemy database URL.

    SQLite writes start with BEGIN IMMEDIATE: Optuna would otherwise hand one waiting trial to several
    workers. A journal whose last line was torn by a full disk or a power cut is repaired. Both that and a
    SQLite file on a network's file system are warned of in the log.

    Raises:
        UserError: if it cannot be opened or written; a password in the URL is not shown.
    """
    try:
        return _remembering(_open(url))
    except UserError:
        raise
    except Exception as error:  # SQLAlchemy, sqlite3, OSError, ImportError of a driver, ...
        raise _cannot_open(url, error) from error


def check_storage_url(url: str) -> None:
    """Refuse what cannot be a storage's URL, before anything slow is done. Nothing is opened or made.

    Raises:
        UserError: as `open_storage` would.
    """
    try:
        if journal := _journal_path(url):
            _require_journal(journal)
        elif (sqlite := sqlite_path(url)) is None:
            make_url(url).get_dialect().import_dbapi()
        elif sqlite.exists():
            require_sqlite(sqlite, "Optuna", or_empty=True)
    except UserError:
        raise
    except Exception as error:  # SQLAlchemy, sqlite3, OSError, ImportError of a driver
        raise _cannot_open(url, error) from error


def _cannot_open(url: str, error: Exception) -> UserError:
    return UserError(
        f"cannot open the storage {without_password(url)}: {first_line(error)} "
        "(want sqlite:///PATH, journal:PATH or postgresql+psycopg://USER@HOST/DATABASE)"
    )


def _remembering(storage: optuna.storages.BaseStorage) -> optuna.storages.BaseStorage:
    """The same, with one memory of the trials that have ended. Optuna gives each Study object a memory of its
    own, and ten thousand trials take seconds to read."""
    return optuna.storages.get_storage(storage)


def _open(url: str) -> optuna.storages.BaseStorage:
    if path := _journal_path(url):
        _require_journal(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = RepairingLock(path)
        if path.is_file() and not _ends_whole(path):
            lock.acquire()  # whoever has it has repaired it
            lock.release()
        return optuna.storages.JournalStorage(JournalFileBackend(str(path), lock))
    sqlite = sqlite_path(url)
    if sqlite is None:
        return open_patiently(url)
    create_sqlite(sqlite, lambda uri: optuna.storages.RDBStorage(uri).engine.dispose())
    _require_writable(sqlite)
    warn_of_network(sqlite, "--storage journal:PATH or a PostgreSQL server")
    storage = optuna.storages.RDBStorage(
        sqlite_url(sqlite),
        engine_kwargs={"connect_args": {"timeout": SQLITE_TIMEOUT_SECONDS}},
    )
    _begin_immediate(storage)
    return storage


def _journal_path(url: str) -> Path | None:
    return Path(url.removeprefix("journal:")) if url.startswith("journal:") else None


def _require_journal(path: Path) -> None:
    """Raises UserError or OSError if something is at `path` that is no journal: its end would be cut off as
    if it were torn, or lines written behind it. The file is not changed."""
    if path.is_dir():
        raise IsADirectoryError("it is a folder")
    if not path.exists():
        return
    with path.open("rb") as file:
        if file.read(1) not in (b"", b"{"):  # a line is a JSON object
            raise UserError(f"{path} is no journal of Optuna's and was left as it is")


class RepairingLock(JournalFileSymlinkLock):
    """The lock of a journal. Whoever gets it first cuts off what a writer left that died in the middle of a
    line: the next one would be written behind it, and no process could read the journal from then on.

    Args:
        path: of the journal.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), LOCK_SECONDS)
        self._path = path

    def acquire(self) -> bool:
        began = time.monotonic()
        super().acquire()
        if (waited := time.monotonic() - began) >= LOCK_SECONDS:
            _log.warning("warning: the lock of %s was not released in %.0f s", self._path, waited)
        try:
            if self._path.exists() and not _ends_whole(self._path):
                self._cut()
        except BaseException:
            self.release()
            raise
        return True

    def _cut(self) -> None:
        """Keeps a copy of the file as it was."""
        content = self._path.read_bytes()
        copy = self._path.with_name(f"{self._path.name}.torn.{len(content)}")
        copy.write_bytes(content)
        os.truncate(self._path, content.rfind(b"\n") + 1)
        _log.warning(
            "warning: the last line of %s was torn and is cut off; %s has it", self._path, copy
        )


def _ends_whole(path: Path) -> bool:
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return True
        file.seek(-1, os.SEEK_END)
        return file.read() == b"\n"


def _require_writable(path: Path) -> None:
    """Raises UserError, OSError or sqlite3.Error unless `path` is an Optuna database, or an empty one, and
    can be written to."""
    require_sqlite(path, "Optuna", or_empty=True)
    with closing(sqlite3.connect(path, timeout=SQLITE_TIMEOUT_SECONDS)) as connection:
        connection.isolation_level = None
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("ROLLBACK")


def _begin_immediate(storage: optuna.storages.RDBStorage) -> None:
    storage.engine.dispose()  # connections opened before the listeners would lack them

    @event.listens_for(storage.engine, "connect")
    def _no_implicit_begin(connection: Any, _record: Any) -> None:
        connection.isolation_level = None

    @event.listens_for(storage.engine, "begin")
    def _begin(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")


def require_storage(url: str) -> None:
    """Refuse, before it is opened, what is no storage yet: who reads or repairs does not make one. A server
    is not asked.

    Raises:
        UserError: if there is no such file, or it is not Optuna's.
    """
    try:
        journal, sqlite = _journal_path(url), sqlite_path(url)
        for path in (p for p in (journal, sqlite) if p and not p.is_file()):
            raise FileNotFoundError(f"there is no file {path}; name another by --storage")
        if journal:
            _require_journal(journal)
        elif sqlite:
            require_sqlite(sqlite, "Optuna")
    except (OSError, sqlite3.Error) as error:
        raise _cannot_read(url, error) from error


def read_storage(url: str) -> optuna.storages.BaseStorage:
    """The storage at a URL to be looked at: it must exist, and a SQLite file is opened read-only.

    Raises:
        UserError: if there is none or it cannot be read; a password in the URL is not shown.
    """
    require_storage(url)
    try:
        storage: optuna.storages.BaseStorage
        if journal := _journal_path(url):
            storage = optuna.storages.JournalStorage(JournalFileBackend(str(journal)))
        else:
            if sqlite := sqlite_path(url):
                url = read_only_url(sqlite)
            storage = _remembering(optuna.storages.RDBStorage(url, skip_table_creation=True))
        storage.get_all_studies()
    except Exception as error:  # SQLAlchemy, sqlite3, OSError, ImportError of a driver, ...
        raise _cannot_read(url, error) from error
    return storage


def _cannot_read(url: str, error: Exception) -> UserError:
    return UserError(f"cannot read the storage {without_password(url)}: {first_line(error)}")
