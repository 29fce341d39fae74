"""Make an empty MLflow database in a process of its own, while this one imports torch and checks the study.

with NewStore() as new:
    ...                        # seconds of other work
    new.put(path)
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType

from harness.core.stores import create_sqlite, sqlite_path

LONGEST = 60
"""Seconds to wait for the process; afterwards the store is made as if there were none."""


class NewStore:
    """A database that is being made in a temporary folder, which is removed at the end of the block."""

    def __enter__(self) -> NewStore:
        self._folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self._path = Path(self._folder.name, "mlflow.db")
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(self._path)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
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
        self._process.wait()
        self._folder.cleanup()

    def put(self, path: Path) -> None:
        """Copy the database to `path`, unless a file is there or making it failed. MLflow then makes its own,
        or says why it cannot."""
        try:
            code = self._process.wait(LONGEST)
        except subprocess.TimeoutExpired:
            return
        if code == 0:
            create_sqlite(path, lambda url: shutil.copyfile(self._path, str(sqlite_path(url))))


if __name__ == "__main__":
    from harness.tracking.experiment import open_store

    open_store(f"sqlite:///{sys.argv[1]}")
