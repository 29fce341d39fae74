"""Is another process of this machine at it already? A lock that the system drops when its holder dies."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.errors import UserError, first_line


@contextmanager
def sole_runner(folder: Path, name: str) -> Iterator[None]:
    """Hold the lock of that name.

    Raises:
        UserError: if another process holds it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        opened = (folder / f".{name}.lock").open("a+")
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {first_line(error)}") from error
    with opened as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            raise UserError(
                f"{name!r} is running already (process {lock.read().strip() or 'unknown'}); "
                "wait for it or stop it"
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield
