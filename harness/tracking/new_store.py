"""Make an empty MLflow database in a process of its own, while this one imports torch and checks the study.

with NewStore() as new:
    ...                        # seconds of other work
    new.put(path)
"""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
import tempfile
from contextlib import closing, redirect_stdout
from pathlib import Path
from types import TracebackType

from harness.core.stores import create_sqlite, sqlite_path

LONGEST = 60
"""Seconds to wait for the process; afterwards the store is made as if there were none."""


class NewStore:
    """A database that another process makes in a temporary folder and sends here. Either process removes the
    folder, so that nothing is left behind when this one is killed."""

    def __enter__(self) -> NewStore:
        self._folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, self._folder.name],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.communicate()
        self._folder.cleanup()

    def put(self, path: Path) -> None:
        """Write the database to `path`, unless a file is there or making it failed. MLflow then makes one,
        or says why it cannot."""
        try:
            made, _ = self._process.communicate(timeout=LONGEST)
        except subprocess.TimeoutExpired:
            return
        if self._process.returncode == 0:
            create_sqlite(path, lambda url: Path(str(sqlite_path(url))).write_bytes(made))


def main(folder: Path) -> None:
    """Make the database in that folder, remove the folder, and write the database to standard output."""
    from harness.tracking.experiment import open_store

    path = folder / "mlflow.db"
    with redirect_stdout(sys.stderr):
        open_store(f"sqlite:///{path}")
    with closing(sqlite3.connect(path)) as connection:
        made = connection.serialize()
    shutil.rmtree(folder)
    sys.stdout.buffer.write(made)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
